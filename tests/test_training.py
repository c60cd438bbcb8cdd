"""Options of a training on a real classifier: schedules, losses, averages, precision, freezing, sizes of batches."""
import copy
import math

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, update_bn

from asc.train.options import TrainingOptions
from asc.backbone.blocks import relus_in_place
from asc.backbone.zoo import backbones, create_backbone, list_backbones
from asc.core import InputError, seed_everything
from asc.data.splits import read_split
from asc.model.classifier import create_classifier
from asc.experiment.stacked import check_stacked
from asc.train.accumulate import Accumulate, batches_a_step
from asc.train.averages import EMA
from asc.train.callbacks import check_callbacks, create_callbacks
from asc.train.compiled import Compiled
from asc.model.body import head_of
from asc.train.finetune import layer_groups, layers_of
from asc.train.clips import ClipData
from asc.train.learner import create_learner, fit, make_dls
from asc.train.losses import create_loss
from asc.train.precision import MixedPrecision
from asc.train.resume import Checkpoint
from asc.train.schedules import create_schedule
from networks import SHAPES, SMALL, need

pytestmark = pytest.mark.usefixtures('one_thread')
STEPS = [
    'resample',
    'mel',
    {'freq_mask': {'size': 48}},
    'log',
    {'freq_mixstyle': {'p': .4, 'alpha': .3}},
]
MIXUP = [*STEPS, {'mixup': {'alpha': .3}}]


@pytest.fixture
def learner(packed, tmp_path):
    "learner(n=20, bs=8, steps=…, cbs=…, loss=…, **options): a Learner with a small CP-Mobile and those callbacks"
    corpus, store = packed
    rows = read_split(corpus, 100).iloc[::3]
    def make(n=20, bs=8, n_valid=10, steps=STEPS, cbs=(), loss='ce', splitter=None, **options):
        seed_everything(0)
        def data(rows):
            return ClipData(store, rows, corpus.scenes, corpus.devices)
        dls = make_dls(data(rows[:n]), data(rows[len(rows) - n_valid:]), bs, device='cpu')
        model = create_classifier(
            pipeline=steps, rate=store.rate, scenes=corpus.scenes, backbone_args=dict(base=8)
        )
        more = {} if splitter is None else dict(splitter=splitter(model)[0])
        return create_learner(
            dls,
            model,
            loss_func=create_loss(loss),
            cbs=[*create_callbacks(dls, TrainingOptions(**options)), *cbs],
            path=tmp_path,
            **more,
        )
    return make


def run(learn, epochs=2, lr=1e-2, **kw):
    "Train without a progress bar"
    with learn.no_bar(): fit(learn, epochs, lr, **kw)
    return learn


def state(learn):
    "A copy of the weights"
    return {k: v.clone() for k, v in learn.model.state_dict().items()}


def same(a, b):
    "Equal to the last bit"
    return all(torch.equal(a[k], b[k]) for k in a)


# schedules

def rates(spec, epochs, batches):
    "The rates a fit really used, batch by batch"
    rows = [(torch.zeros(1), torch.tensor(0))] * batches
    learn = create_learner(
        DataLoaders.from_dsets(rows, [], bs=1, num_workers=0, device='cpu'), nn.Linear(1, 1)
    )
    with learn.no_bar(): fit(learn, epochs, 1e-3, schedule=spec)
    return learn.recorder.lrs


def theirs(make, epochs, batches):
    "The rates of a scheduler of torch's, batch by batch"
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1e-3)
    sched, out = make(opt), []
    for _ in range(epochs):
        out += [opt.param_groups[0]['lr']] * batches
        opt.step()
        sched.step()
    return out


@pytest.mark.parametrize(
    'spec, torchs, epochs',
    [
        ({'cosine': {'last': .01}}, lambda o: lr_scheduler.CosineAnnealingLR(o, 12, 1e-5), 12),
        (
            {'cosine_restarts': {'t0': 2, 'last': .001, 'of': 14}},
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2, 2, 1e-6),
            14,
        ),
        (
            {'cosine_restarts': {'t0': 3, 'mult': 1, 'of': 7}},
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 1),
            7,
        ),
        (
            {
                'chain': {
                    'pieces': [[3, {'constant': {'factor': .1}}], [6, {'cosine': {'last': 0.}}]]
                }
            },
            lambda o: lr_scheduler.SequentialLR(
                o,
                [lr_scheduler.ConstantLR(o, .1, 99), lr_scheduler.CosineAnnealingLR(o, 6)],
                [3],
            ),
            9,
        ),
    ],
)
def test_schedules_equal_torchs(spec, torchs, epochs):
    "Per epoch, as fastai steps them in a fit, against torch's schedulers"
    ours, want = rates(spec, epochs, 3), theirs(torchs, epochs, 3)
    assert ours == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize('clips', [6970, 13900, 34900, 69800, 139620])
def test_published_warm_up_of_every_split(clips):
    "The linear warm-up with cosine decay, step by step at the first epochs of TAU's five training lists"
    batches = -(-clips // 256)
    n = 150 * batches
    f = create_schedule({'warmup_cosine': {'warmup_steps': 2000}}, 1., 150, batches)
    pos = 0.
    for step in range(min(n, 5000)):
        if step % batches == 0:
            pos = step // batches / 150  # fastai's count
        if step < 2000:
            want = step / 2000
        else:
            want = .5 * (1 + math.cos(math.pi * (step - 2000) / (n - 2000)))
        assert f(pos) == pytest.approx(want, abs=1e-9)
        pos += 1 / n


@pytest.mark.parametrize(
    'W, s, L, last, E',
    [
        (14, 50, 84, .005, 150), (0, 1, 16, .1, 20), (15, 50, 85, .005, 150),
        (3, 3, 10, .01, 25), (4, 4, 26, .005, 30),
    ],
)
def test_published_ramps(W, s, L, last, E):
    "The ramp of cpjku23 and its relatives for the five published settings, at every epoch"
    f = create_schedule({'ramp': dict(warmup=W, start=s, length=L, last=last, of=E)}, 1., E, 7)
    for e in range(E):
        up = math.exp(-5 * (1 - max(e, .5) / W)**2) if e < W else 1
        down = 1 if e <= s else last + (1 - last) * (L - e + s) / L if e < s + L else last
        assert f(e / E) == f((e + .99) / E) == pytest.approx(up * down)


# losses

@pytest.mark.parametrize(
    'spec',
    [
        'ce',
        {'ce': {'label_smoothing': .1}},
        'focal',
        {'focal': {'gamma': 2, 'label_smoothing': .1}},
        {'focal': {'gamma': .5}},
    ],
)
def test_losses_take_labels_and_mixtures(spec):
    torch.manual_seed(0)
    pred = torch.randn(8, 10, requires_grad=True)
    y = torch.randint(10, (8,))
    lam = torch.rand(8, 1)
    loss = create_loss(spec)
    hard = F.one_hot(y, 10).float()
    mixed = lam * hard + (1 - lam) * hard.flip(0)
    loss.reduction = 'none'
    assert loss(pred, y).shape == (8,)
    assert torch.allclose(loss(pred, y), loss(pred, hard), atol=1e-6)
    both = lam[:, 0] * loss(pred, hard) + (1 - lam[:, 0]) * loss(pred, hard.flip(0))
    # all of them are linear in the target
    assert torch.allclose(loss(pred, mixed), both, atol=1e-5)
    loss.reduction = 'mean'
    assert torch.allclose(loss(pred, mixed), both.mean(), atol=1e-5)
    loss(pred, mixed).backward()
    assert torch.isfinite(pred.grad).all()


class Targets(Callback):
    "What the loss is given, in training and in validation"
    order = 5
    def before_fit(self): self.seen = []
    def after_pred(self):
        self.seen.append((self.training, tuple(self.y.shape)))


@pytest.mark.parametrize('loss', ['ce', '{"focal": {"gamma": 2, "label_smoothing": 0.1}}'])
def test_mixup_trains_on_mixtures_and_validates_on_labels(learner, loss):
    learn = run(learner(steps=MIXUP, loss=loss, cbs=[Targets()]), 1)
    assert {s for t, s in learn.targets.seen if t} == {(8, 10), (4, 10)}
    assert {s for t, s in learn.targets.seen if not t} == {(8,), (2,)}
    wave, device, y = learn.dls.valid_ds.batch(range(10))
    with torch.no_grad():
        log_loss = F.cross_entropy(learn.model.eval()(wave, device), y).item()
    # whatever it was trained with
    assert learn.recorder.values[-1][1] == pytest.approx(log_loss, rel=1e-4)


# averages

class Ends(Callback):
    "torch's averages beside ours: after every step, or after each of the last epochs"
    order, run_valid = -20, False
    def __init__(self, fn=None, first=None):
        self.fn = fn
        self.first = first
        self.twin = None
    def update(self):
        if self.twin is None:
            self.twin = AveragedModel(
                self.learn.model, avg_fn=self.fn and self.blend, use_buffers=True
            )
            self.n = 0
        self.twin.update_parameters(self.learn.model)
        self.n += 1
    def blend(self, avg, now, n): return self.fn(avg, now, self.n)
    def after_step(self):
        if self.first is None: self.update()
    def after_train(self):
        if self.first is not None and self.epoch >= self.first: self.update()


def test_ema_equals_torchs(learner):
    twin = Ends(lambda avg, now, n: avg + (1 - min(.9, (1 + n) / (10 + n))) * (now - avg))
    learn = run(learner(ema=.9, cbs=[twin]), 3)
    mine = learn.model.state_dict()
    for k, v in twin.twin.module.state_dict().items():
        if v.is_floating_point():
            assert torch.allclose(v, mine[k], atol=1e-5), k  # weights and BatchNorm's buffers


def test_swa_equals_torchs(learner):
    twin = Ends(first=2)
    # one batch: its order does not matter
    learn = run(learner(swa=.5, bs=20, steps=['resample', 'mel', 'log'], cbs=[twin]), 4)
    for k, v in twin.twin.module.named_parameters():
        assert torch.allclose(v, learn.model.get_parameter(k), atol=1e-6), k
    model = copy.deepcopy(learn.model)
    update_bn([learn.dls.train_ds.batch(range(20))[0]], model)
    for (k, a), (_, b) in zip(model.named_buffers(), learn.model.named_buffers()):
        assert torch.allclose(a, b, atol=1e-4), k


def test_best_epoch_is_what_was_validated(learner):
    "With an average and a tracker the finished model gives the best line of the history again"
    learn = run(learner(ema=.8, keep='best'), 4, lr=3e-2)
    losses = [v[1] for v in learn.recorder.values]
    assert learn.keep_best.best_epoch == 1 + losses.index(min(losses))
    with learn.no_bar():
        assert learn.validate()[0] == pytest.approx(min(losses), rel=1e-5)


def test_early_stop_logs_and_saves_the_last_epoch(learner, tmp_path):
    class Worse(Callback):
        order = 55
        def after_epoch(self):
            self.recorder.values[-1][1] = float(self.epoch)
    learn = run(learner(patience=2, cbs=[Worse(), Checkpoint(tmp_path)]), 9)
    assert len(learn.epoch_log.history) == 3
    checkpoint = torch.load(tmp_path/'checkpoint.pt', weights_only=True)
    assert checkpoint['callbacks']['early_stop'] == dict(best=0., wait=2, stopped=True)


# precision

def test_bf16_is_computed_on_this_device(learner):
    "Convolutions in bfloat16, the spectrogram and the weights in float32, and it learns"
    seen = {}
    learn = learner(precision='bf16')
    for name, m in learn.model.named_modules():
        if isinstance(m, nn.Conv2d):
            m.register_forward_hook(
                lambda m, a, out, name=name: seen.setdefault(name, set()).add(out.dtype)
            )
    learn.model.backbone.register_forward_pre_hook(
        lambda m, a: seen.setdefault('spectrogram', set()).add(a[0].dtype)
    )
    run(learn, 3)
    assert seen.pop('spectrogram') == {torch.float32}
    assert len(seen) > 10
    assert set.union(*seen.values()) == {torch.bfloat16}
    assert {p.dtype for p in learn.model.parameters()} == {torch.float32}
    plain = run(learner(), 3)
    assert learn.recorder.values[-1][0] == pytest.approx(plain.recorder.values[-1][0], rel=.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
@pytest.mark.parametrize('precision', ['fp16', 'bf16'])
def test_mixed_on_cuda(precision):
    "On a GPU the layers compute in 16 bits, and the scaler of fp16 is saved"
    class Net(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            self.seen = y.dtype
            return y
    rows = [(torch.randn(4), torch.tensor(i % 2)) for i in range(8)]
    learn = create_learner(
        DataLoaders.from_dsets(rows, rows, bs=4, num_workers=0, device='cuda'),
        Net(4, 2),
        cbs=MixedPrecision(precision),
    )
    with learn.no_bar(): learn.fit(2)
    assert learn.model.seen == dict(fp16=torch.float16, bf16=torch.bfloat16)[precision]


# freezing and rates

def test_frozen_encoder_is_untouched(learner):
    learn = learner(freeze='encoder')
    before = state(learn)
    run(learn)
    changed = {k.split('.')[1] for k, v in state(learn).items() if not torch.equal(v, before[k])}
    assert changed == {'feed_forward'}
    learn = learner(freeze='in_c, stages.s1', freeze_epochs=1)
    run(learn)
    assert not any(
        torch.equal(v, before[k]) for k, v in state(learn).items() if k.endswith('running_mean')
    )


@pytest.mark.parametrize('name', list_backbones())
def test_layers_of_every_network(name):
    "Every trainable parameter is in one group, the head is the last one"
    need(name)
    with torch.device('meta'): net = create_backbone(name)
    split, rates = layer_groups(net, .75)
    groups = split(net)
    ids = [id(p) for g in groups for p in g]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in net.parameters() if p.requires_grad}
    assert 3 <= len(groups) == len(rates) <= 20
    assert rates[-1] == 1
    assert rates == sorted(rates)
    head = net.get_submodule(head_of(net))
    assert {id(p) for p in head.parameters()} <= {id(p) for p in groups[-1]}
    assert layers_of(net)


def test_layer_wise_rates_move_layers_differently(learner):
    learn = learner(splitter=lambda m: layer_groups(m, 1e-6))
    before = state(learn)
    _, shares = layer_groups(learn.model, 1e-6)
    run(learn, lr=[1e-2 * s for s in shares], schedule='constant')
    move = {
        k: (v - before[k]).abs().max().item()
        for k, v in state(learn).items()
        if k in dict(learn.model.named_parameters())
    }
    assert move['backbone.in_c.0.0.weight'] < 1e-7 < 1e-3 < move['backbone.feed_forward.0.weight']
    assert learn.epoch_log.history[-1]['lr'] == 1e-2


# sizes

@pytest.mark.parametrize('name', [n for n in list_backbones()])
def test_every_network_trains_on_a_single_clip(name):
    need(name)
    torch.manual_seed(0)
    net = create_backbone(name, **SMALL.get(name, {})).train()
    x = torch.randn(1, 1, *SHAPES.get(name, backbones[name].shape))
    F.cross_entropy(net(x), torch.tensor([3])).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


# those have no ReLU
@pytest.mark.parametrize('name', [n for n in list_backbones() if n not in ('passt_s', 'beats')])
def test_relus_in_place_change_nothing(name):
    "The same loss and gradients when ReLUs write over their input"
    net = create_backbone(name, **SMALL.get(name, {}))
    x = torch.randn(2, 1, *SHAPES.get(name, backbones[name].shape))
    x = x.contiguous(memory_format=torch.channels_last)
    net.train().to(memory_format=torch.channels_last)
    def step(on):
        torch.manual_seed(0)
        net.zero_grad()
        loss = F.cross_entropy(relus_in_place(net, on)(x), torch.tensor([3, 4]))
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]
    assert any(type(m) is nn.ReLU for m in net.modules())
    assert all(torch.equal(a, b) for a, b in zip(step(True), step(False)))


@pytest.mark.parametrize('hooked', [False, True])
def test_relus_are_in_place_while_training(learner, hooked):
    "And only then, and not where somebody listens to the layers"
    learn, seen = learner(), []
    relu = next(m for m in learn.model.modules() if type(m) is nn.ReLU)
    if hooked: learn.model.backbone.stages.register_forward_hook(lambda *a: None)
    class Watch(Callback):
        def after_pred(self): seen.append(relu.inplace)
    run(learn, 1, cbs=[Watch()])
    assert set(seen) == {not hooked} and not relu.inplace


@pytest.mark.parametrize('error', [KeyboardInterrupt, InputError])
def test_an_error_leaves_the_model_as_it_was(learner, error):
    "In the middle of a step: no ReLU in place, no hook, no compiled call, nothing frozen"
    class Fails(Callback):
        # the last before the forward pass
        order = 130
        def before_batch(self):
            seen.append(
                (
                    relu.inplace,
                    net._compiled_call_impl is not None,
                    any(not p.requires_grad for p in net.parameters()),
                )
            )
            raise error('no')
    learn = learner(n=18, bs=9, freeze='in_c', cbs=[Compiled('eager'), Fails()])
    seen = []
    # leaves a clip alone
    learn.dls.train.bs = 17
    net = learn.model.backbone
    relu = next(m for m in learn.model.modules() if type(m) is nn.ReLU)
    with pytest.raises(error, match='no'): run(learn, 1)
    assert seen == [(True, True, True)]
    assert not relu.inplace
    assert net._compiled_call_impl is None
    assert all(p.requires_grad for p in net.parameters())
    assert not any(m._forward_pre_hooks for m in net.modules())
    copy.deepcopy(learn.model)


@pytest.mark.parametrize('n, bs, batches', [(3, 256, 1), (9, 8, 2), (1, 8, 1)])
def test_fewer_clips_than_a_batch(learner, n, bs, batches):
    learn = run(learner(n=n, bs=bs), 2)
    assert learn.train_iter == 2 * batches
    assert math.isfinite(learn.recorder.values[-1][0])


def test_image_network_with_a_lone_clip(learner):
    "A BatchNorm that sees one value is told in words"
    learn = learner(n=9, bs=8)
    learn.model.backbone = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 10), nn.BatchNorm1d(10)
    )
    with pytest.raises(
        InputError, match='9 training clips in batches of 8 leave one clip alone.*such as 9'
    ):
        run(learn)


# all together

EVERYTHING = dict(
    steps=MIXUP, loss='focal', precision='bf16', clip=1., ema=.9, freeze='in_c',
    freeze_epochs=1, patience=5, keep='best',
)


def test_one_seed_one_result_with_everything_on(learner):
    a, b = (state(run(learner(**EVERYTHING))) for _ in range(2))
    assert same(a, b)


def test_lr_find_leaves_everything_alone(learner, tmp_path):
    learn = learner(**EVERYTHING, cbs=[Checkpoint(tmp_path/'c')])
    before = state(learn)
    with learn.no_bar(): suggestion = learn.lr_find(num_it=10, show_plot=False)
    assert 1e-7 <= suggestion.valley <= 10
    assert same(before, state(learn))
    assert not (tmp_path/'c').exists()
    run(learn)
    assert (tmp_path/'c'/'checkpoint.pt').exists()
    assert len(learn.epoch_log.history) == 2


def test_clipped_gradients(learner):
    class Norm(Callback):
        order, run_valid = 20, False
        def before_fit(self): self.seen = []
        def before_step(self):
            self.seen.append(
                torch.stack([p.grad.norm() for p in self.learn.model.parameters()]).norm().item()
            )
    assert max(run(learner(clip=.05, cbs=[Norm()]), 1).norm.seen) <= .0501 < max(
        run(learner(cbs=[Norm()]), 1).norm.seen
    )


# several batches a step

def alike(a, b):
    "Equal but for the order of sums"
    return all(torch.allclose(a[k], b[k], rtol=0, atol=1e-6) for k in a)


def accumulated(folder, bs, n, epochs=3, resume=False, stop=False, clips=21):
    "A training with everything that counts steps; its last step of an epoch has fewer clips"
    seed_everything(0)
    rows = [(torch.randn(4), torch.tensor(i % 2)) for i in range(clips)]
    dls = DataLoaders.from_dsets(rows, rows[:8], bs=bs, num_workers=0, drop_last=False, device='cpu')
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    ema = EMA(.9)
    cbs = [ema, GradientClip(.05), Checkpoint(folder, dict(bs=bs, accumulate=n), resume)]
    if stop: cbs.append(Stop())
    learn = create_learner(dls, net, cbs=cbs + ([Accumulate(n)] if n > 1 else []), path=folder)
    try:
        with learn.no_bar(): fit(learn, epochs, .05)
    except KeyboardInterrupt: pass
    return learn, ema


class Stop(Callback):
    def before_train(self):
        if self.epoch == 1: raise KeyboardInterrupt


@pytest.mark.parametrize('bs, n', [(4, 2), (2, 4), (1, 8), (3, 3)])
def test_accumulated_gradients_are_those_of_the_large_batch(bs, n, tmp_path):
    "Weights, average, steps and rates, clipped gradients, also where the last step has fewer clips; and when resumed"
    whole, mean = accumulated(tmp_path/'a', bs*n, 1)
    parts, other = accumulated(tmp_path/'b', bs, n)
    assert alike(whole.model.state_dict(), parts.model.state_dict())
    assert mean.n == other.n == 3 * -(-21 // (bs*n))
    accumulated(tmp_path/'c', bs*n, 1, stop=True)
    resumed, _ = accumulated(tmp_path/'c', bs, n, resume=True)
    assert alike(whole.model.state_dict(), resumed.model.state_dict())
    with pytest.raises(InputError, match='bs was'): accumulated(tmp_path/'c', bs*n + 1, 1, resume=True)


def test_accumulate_is_an_option(learner):
    "With all that a training has; it trains, and stacked seeds refuse it"
    learn = run(learner(bs=4, steps=MIXUP, accumulate=2, clip=1., ema=.9))
    assert batches_a_step(learn) == 2 and learn.recorder.losses
    options = TrainingOptions(accumulate=2).as_dict() | dict(backbone='cnn3', frontend='cnn3', pipeline='easy_cnn3')
    with pytest.raises(InputError, match='accumulate=2.*cannot be stacked'): check_stacked(**options)


# sharpness and soups

class OneEpoch(Callback):
    def before_epoch(self):
        if self.epoch == 1: raise KeyboardInterrupt


class FirstStep(Callback):
    "The gradients of the first step, and the statistics of norms there"
    order, run_valid, gradients = 20, False, None
    def before_step(self):
        if self.gradients is None: self.gradients = torch.cat([p.grad.flatten() for p in self.learn.model.parameters()])
        self.norms = [b.clone() for b in self.learn.model.backbone.buffers()]


@pytest.mark.parametrize('precision', ['float32', 'bf16'])
def test_sharpness_repeats_augmentation_targets_and_norms(learner, precision):
    "With MixUp, MixStyle, masks, accumulation and clipping, a second pass near the weights changes nothing"
    settings = dict(n=8, steps=MIXUP, bs=4, accumulate=2, clip=1., precision=precision)
    plain, near, far = (
        run(learner(sharpness=spec, cbs=[FirstStep()], **settings), 1)
        for spec in ('', {'kind': 'sam', 'rho': 1e-9}, {'kind': 'asam', 'rho': .5})
    )
    a, b, c = (learn.first_step.gradients for learn in (plain, near, far))
    assert (a - b).norm() < 1e-4 * a.norm() < 1e-2 < (a - c).norm() and c.norm() < 1.001
    assert all(torch.equal(x, y) for x, y in zip(plain.first_step.norms, far.first_step.norms))
    assert far.recorder.losses == plain.recorder.losses


def test_soup_of_a_resumed_training_has_the_same_bits(learner, tmp_path):
    "Stopped before its second epoch, and after its last; SAM and mixed precision as well"
    options = dict(sharpness='sam', soup={'kind': 'greedy', 'from': 0., 'candidates': 3}, precision='bf16', steps=MIXUP)
    whole = run(learner(**options, cbs=[Checkpoint(tmp_path/'a')]), 3)
    assert whole.soup.made['norms'] == 'reestimate' and len(whole.soup.made['candidates']) == 3
    with pytest.raises(KeyboardInterrupt): run(learner(**options, cbs=[OneEpoch(), Checkpoint(tmp_path/'b')]), 3)
    for _ in range(2):
        learn = run(learner(**options, cbs=[Checkpoint(tmp_path/'b', resume=True)]), 3)
        assert same(state(whole), state(learn)) and learn.soup.made == whole.soup.made


@pytest.mark.parametrize('options, words', {
    'soup and ema': (dict(soup='greedy', ema=.9), 'ema is another average'),
    'soup and keep': (dict(soup='greedy', keep='best'), 'of several epochs'),
    'soup and patience': (dict(soup='uniform', patience=3), 'before there are epochs'),
    'few epochs': (dict(soup='uniform', epochs=2), 'a soup needs two'),
    'word': (dict(soup='gready'), 'did you mean greedy'),
    'key': (dict(soup={'kind': 'greedy', 'candidate': 3}), 'did you mean candidates'),
    'text': (dict(sharpness='{kind: sam, rho: 0}'), 'sharpness rho=0'),
    'compile': (dict(sharpness='sam', compile=True), 'does not go with compile'),
    'features': (dict(sharpness='sam', teacher='self', distill={'features': [{'a': 'b'}]}), 'distill=features'),
}.values())
def test_techniques_that_do_not_go_together(options, words):
    with pytest.raises(InputError, match=words): check_callbacks(TrainingOptions(**options), torch.device('cpu'))
    stack = TrainingOptions(soup='greedy', backbone='cnn3', frontend='cnn3', pipeline='easy_cnn3').as_dict()
    with pytest.raises(InputError, match='soup=.greedy. cannot be stacked'): check_stacked(**stack)
