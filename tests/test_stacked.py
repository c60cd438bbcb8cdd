"""Seeds trained at once and alone: the same batches to the last bit, the same weights but for rounding; refusals."""
import copy
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import AvgSmoothLoss
from torch.func import stack_module_state

from asc.train.options import TrainingOptions
from asc.backbone.zoo import create_backbone, list_backbones
from asc.core import InputError
from asc.data.splits import read_split
from asc.data.store import pack
from asc.experiment.recipe import TrainingData, create_training
from asc.experiment.seeds import train_runs
from asc.experiment.turns import Turns
from asc.experiment.stacked import check_stacked, train_stacked
from asc.experiment.vmap import stacked_call
from asc.run.parameters import full_parameters
from asc.teach.logits import save_teacher
from asc.train.resume import random_states, read_checkpoint
from networks import SMALL, need

pytestmark = pytest.mark.usefixtures('one_thread')
SHAPES = dict.fromkeys(list_backbones(), (64, 32)) | dict(
    tf_sepnet_64=(128, 64), tf_sepnet_40=(128, 64), cnn3=(40, 51), passt_s=(128, 100),
    beats=(128, 98), cnn_gru=(256, 33), cnn_gru_2=(256, 33),
)
SMALL = SMALL | dict(cnn6_60k=dict(bands=64))
CNN3 = dict(
    backbone='cnn3',
    frontend='cnn3',
    steps=[
        'resample', 'mel', {'freq_mask': {'size': 8}}, 'log', {'freq_mixstyle': {'p': .4}},
        {'mixup': {'alpha': .3}},
    ],
)
CP = dict(backbone='cp_mobile_24', backbone_args=dict(base=8, blocks=(1, 1, 1), strides={}))


@pytest.fixture
def training(packed, tmp_path):
    "training(seed, folder, exact=True, n=7, **options) -> learner that keeps spectrograms as learn.seen, and fit"
    corpus, store = packed
    rows = read_split(corpus, 100).iloc[::3]
    def make(seed, folder, exact=True, n=7, **options):
        data = TrainingData(store, rows[:n], rows[-4:], corpus.scenes, corpus.devices)
        choice = TrainingOptions(seed=seed, **dict(dict(epochs=2, bs=5, lr=1e-2), **options))
        learn, fit = create_training(data, choice, tmp_path/folder/f'{seed}.csv')
        pipe, learn.seen = learn.model.pipeline, []
        plain = pipe.forward
        def forward(*args):
            learn.seen.append(plain(*args))
            return learn.seen[-1].double() if exact else learn.seen[-1]
        if exact: learn.model.backbone.double()
        pipe.forward = forward
        return learn, fit
    return make


def run(make):
    "Train without a progress bar"
    learn, fit = make()
    with learn.no_bar(): fit()
    return learn


def both(training, seeds=(0, 1), **options):
    "The same seeds at once and alone"
    with redirect_stdout(StringIO()):
        return train_stacked([partial(training, s, 'stacked', **options) for s in seeds]), [
            run(partial(training, s, 'alone', **options)) for s in seeds
        ]


def check_same(stacked, alone, tol):
    "The same batches to the last bit; logits and histories equal but for rounding"
    for a, b in zip(stacked, alone):
        assert len(a.seen) == len(b.seen)
        assert all(torch.equal(x, y) for x, y in zip(a.seen, b.seen))
        x = a.seen[-1].to(next(a.model.backbone.parameters()).dtype)
        z, y = (l.model.backbone.eval()(x) for l in (a, b))
        assert (z - y).abs().max() < tol * y.abs().max()
        h, g = (pd.DataFrame(l.epoch_log.history).astype(float) for l in (a, b))
        assert list(h) == list(g)
        assert len(h) == 2
        assert (h - g).abs().max().max() < tol
        assert (h == pd.read_csv(a.epoch_log.path)).all().all()
        counts = [
            {
                k: v.item()
                for k, v in l.model.state_dict().items()
                if k.endswith('num_batches_tracked')
            }
            for l in (a, b)
        ]
        assert counts[0] == counts[1] and all(counts[0].values())
    assert not torch.equal(stacked[0].seen[0], stacked[1].seen[0])


@pytest.fixture
def exact(monkeypatch):
    "fastai's running loss in float64 too"
    monkeypatch.setattr(
        AvgSmoothLoss,
        'reset',
        lambda self: self.__dict__.update(count=0, val=torch.tensor(0., dtype=torch.float64)),
    )


@pytest.mark.parametrize(
    'options',
    [dict(CP, lr_decay=.7), dict(CNN3, clip=.5, ema=.9, keep='best', loss='focal')],
    ids=['rates by layer', 'dropout, mixup, clip, ema, best'],
)
def test_stacked_is_alone(training, exact, options):
    "In float64: spectrograms bit for bit, logits and history within 1e-6, the last batch being smaller"
    check_same(*both(training, **options), 1e-6)


def test_rounding_of_a_first_step(training):
    "In float32, and in bf16, the first step is that of a seed alone but for rounding"
    for precision, tol in (('float32', 1e-4), ('bf16', 3e-2)):
        stacked, alone = both(training, exact=False, **CP, precision=precision, epochs=1, bs=7)
        for a, b in zip(stacked, alone):
            assert all(torch.equal(x, y) for x, y in zip(a.seen, b.seen))
            assert a.recorder.losses[0].item() == pytest.approx(
                b.recorder.losses[0].item(), rel=tol
            )
            x, y = (
                torch.cat(
                    [
                        v.flatten()
                        for k, v in l.model.state_dict().items()
                        if k.endswith('running_mean')
                    ]
                )
                for l in (a, b)
            )
            assert (x - y).norm() < tol * y.norm()


def test_logits_of_a_teacher(training, exact, packed, tmp_path):
    "Offline distillation, by Adam: each seed with the teacher's rows of its own batch, mixed as its clips are"
    corpus, _ = packed
    rows = read_split(corpus, 100).iloc[::3]
    names = pd.concat([rows[:7], rows[-4:]]).filename
    torch.manual_seed(0)
    save_teacher(tmp_path/'teacher', names, torch.randn(len(names), 10).numpy(), corpus.scenes)
    check_same(
        *both(
            training, **CNN3, optimizer='adam', wd=1e-3, teacher=str(tmp_path/'teacher'),
            distill=dict(hard_weight=.5),
        ),
        1e-6,
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu(training, exact):
    "The masks of dropout and the batches come from the GPU's generator as each seed has it"
    stacked, alone = both(training, seeds=(0, 1, 2), **CNN3)
    check_same(stacked, alone, 1e-6)
    assert next(stacked[2].model.parameters()).is_cuda


@pytest.mark.parametrize('name', list_backbones())
def test_the_zoo(name):
    "A step of every network: logits, gradients and statistics as alone, with dropout; or refused by name"
    need(name)
    torch.manual_seed(0)
    nets, x = [], torch.randn(2, 3, 1, *SHAPES[name], dtype=torch.float64)
    for s in range(2):
        torch.manual_seed(s)
        nets.append(
            create_backbone(name, **SMALL.get(name, {})).double().to(
                memory_format=torch.channels_last
            ).train()
        )
    twins = copy.deepcopy(nets)
    turns = Turns(2)
    alone = []
    params, buffers = stack_module_state(nets)
    for s, net in enumerate(twins):
        torch.manual_seed(9 + s)
        turns.states[s] = random_states()
        if name in ('passt_s', 'beats', 'cnn_gru', 'cnn_gru_2'): continue
        alone.append(net(x[s].contiguous(memory_format=torch.channels_last)))
    if not alone:
        with pytest.raises(InputError, match='cannot be stacked .* one by one'):
            stacked_call(nets[0], params, buffers, x, turns)
        return
    torch.manual_seed(10)  # the last one is at work
    stacked = stacked_call(nets[0], params, buffers, x, turns)
    for z in (stacked, torch.stack(alone)):
        (z.softmax(-1) * torch.arange(10.)).sum().backward()
    # some norms are float32
    assert torch.allclose(
        stacked, torch.stack(alone), rtol=0, atol=1e-4 * alone[0].abs().max().item()
    )
    for s, net in enumerate(twins):
        largest = max(p.grad.abs().max() for p in net.parameters())
        assert all(
            (params[k].grad[s] - p.grad).abs().max() < 1e-4 * largest
            for k, p in net.named_parameters()
        )
        assert all(
            torch.allclose(buffers[k][s].double(), b.double(), atol=1e-5)
            for k, b in net.named_buffers()
        )


@pytest.mark.parametrize(
    'options, sentence',
    [
        (dict(precision='fp16'), "precision='fp16' cannot be stacked"),
        (dict(swa=.5), 'swa=0.5'),
        (dict(freeze='in_c'), "freeze='in_c'"),
        (dict(patience=3), 'patience=3'),
        (dict(teacher='self'), "teacher='self'"),
        (dict(log='tensorboard'), "log='tensorboard'"),
        (
            dict(backbone='beats', frontend='beats', backbone_args=SMALL['beats']),
            'a network of the kind BEATs',
        ),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else '',
)
def test_what_cannot_be_stacked(options, sentence):
    "Said before anything is trained, with the remedy"
    with pytest.raises(InputError, match=f'{sentence}.*train these seeds one by one'):
        check_stacked(**full_parameters('train', None, options))


def test_other_notebooks_are_not_stacked():
    with pytest.raises(InputError, match='this one has no backbone'):
        check_stacked(**{k: v for k, v in TrainingOptions().as_dict().items() if k != 'backbone'})


def test_an_error_ends_all(training):
    "One seed fails in its second epoch: the error is its own, and no thread is left waiting"
    class Fails(Callback):
        def before_train(self):
            if self.epoch == 1: raise InputError('the disk is full')
    def make(s):
        learn, fit = training(s, 'failing', exact=False, **CNN3)
        if s == 1: learn.add_cb(Fails())
        return learn, fit
    with redirect_stdout(StringIO()), pytest.raises(InputError, match='the disk is full'):
        train_stacked([partial(make, s) for s in range(3)])


class Killed(BaseException): "Stands for the end of the process"


def test_runs_go_on_where_each_was(synthetic, tmp_path, monkeypatch):
    "Killed while checkpoints are written: seeds equally far go on together, to the last digit; others from their own"
    monkeypatch.setattr(
        'asc.experiment.recipe.pack', partial(pack, store_dir=tmp_path/'store', progress=False)
    )
    monkeypatch.setattr('asc.experiment.recipe.read_split', lambda *args, **kw: read_split(*args, **kw)[::6])
    light = dict(
        data_dir=str(synthetic), subset=5, epochs=3, bs=9, backbone='cnn3', frontend='cnn3',
        pipeline='none',
    )
    def state(folder, s):
        return read_checkpoint(tmp_path/folder/f'{s}/checkpoint.pt')
    def go(folder, resume=False):
        runs = [
            dict(out=str(tmp_path/folder/f'{s}'), notebook='train', resume=resume) for s in range(2)
        ]
        for r in runs: Path(r['out']).mkdir(parents=True, exist_ok=True)
        for s, r in enumerate(runs):
            r['parameters'] = dict(
                full_parameters('train', None, dict(light, seed=s)), out=r['out']
            )
        with redirect_stdout(StringIO()) as output: train_runs(runs)
        return output.getvalue()
    def killed(folder, number): # number of the write
        plain, count = Path.write_bytes, iter(range(100))
        def write(self, data):
            if next(count) == number: raise Killed
            return plain(self, data)
        with monkeypatch.context() as m, pytest.raises(Killed):
            m.setattr(Path, 'write_bytes', write)
            go(folder)
        was = [state(folder, s)['epoch'] for s in range(2)]
        assert go(folder, True).count('continuing after epoch') == 2
        return was
    go('whole')
    # all are through
    assert killed('even', 2) == [1, 1]
    assert killed('uneven', 3) == [2, 1]
    assert go('even', True) == ''
    for s in range(2):
        whole, even, uneven = (state(d, s) for d in ('whole', 'even', 'uneven'))
        assert whole['epoch'] == even['epoch'] == uneven['epoch'] == 3
        assert whole['config'] == even['config']
        assert all(torch.equal(v, even['model'][k]) for k, v in whole['model'].items())
        assert whole['recorder']['losses'].tolist() == pytest.approx(
            uneven['recorder']['losses'].tolist(), abs=1e-3
        )
        # its own part of the stack
        assert all(v.untyped_storage().nbytes() == v.nbytes for v in whole['model'].values())
        histories = [tmp_path/f'{kind}/{s}/history.csv' for kind in ('whole', 'even')]
        assert histories[0].read_bytes() == histories[1].read_bytes()
