"""Distillation: the published losses, trainings that are interrupted, what is saved, and the run that compares."""

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from fastai.callback.core import Callback
from torch.nn import functional as F

from asc.train.options import TrainingOptions
from asc.augment.mixup import mix_teacher
from asc.core import InputError, seed_everything
from asc.data.splits import read_split
from asc.load import opened
from asc.experiment.checks import check_training
from asc.experiment.recipe import TrainingData, create_training
from asc.model.classifier import create_classifier, load_model, save_model
from asc.teach.distill import DistillLoss, soft_loss
from asc.teach.logits import save_teacher
from asc.experiment.distillation import DISTILL, Distillation, read_distill
from asc.train.clips import ClipData
from asc.train.resume import Checkpoint, read_checkpoint
from conftest import ROOT
from steps import STEPS


@pytest.fixture(scope='module')
def data(packed):
    "Corpus, its store, 20 training and 8 validation clips"
    corpus, store = packed
    rows = read_split(corpus, 100).iloc[::3]
    return corpus, store, rows[:20], rows[-8:]


@pytest.fixture(scope='module')
def teacher(data, tmp_path_factory):
    "The folder of a run, and a file of logits over the whole training list"
    corpus, store, *_ = data
    folder = tmp_path_factory.mktemp('teacher')
    seed_everything(5)
    save_model(
        create_classifier(
            pipeline=STEPS, frontend='dcase24', rate=store.rate, scenes=corpus.scenes,
            backbone_args=dict(base=8),
        ),
        folder/'run',
    )
    rows = read_split(corpus, 100)
    y = torch.from_numpy(
        pd.Categorical(rows.scene, categories=corpus.scenes).codes.astype(np.int64)
    )
    recording = torch.from_numpy(pd.factorize(rows.recording)[0])
    of_recordings = torch.randn(len(y), len(corpus.scenes))[recording]
    of_clips = .5 * torch.randn(len(y), len(corpus.scenes))
    logits = 3 * F.one_hot(y, len(corpus.scenes)) + of_recordings + of_clips
    save_teacher(folder/'logits.safetensors', rows.filename.tolist(), logits, corpus.scenes)
    return dict(run=str(folder/'run'), file=str(folder/'logits.safetensors'), self='self')


def training(data, folder, cbs=(), **options):
    "A small learner and the function that trains it, its checkpoint and history in `folder`"
    corpus, store, train, valid = data
    folder.mkdir(exist_ok=True)
    kw = dict(steps=STEPS, epochs=2, bs=8, lr=1e-2, seed=3, backbone_args=dict(base=8))
    learn, fit = create_training(
        TrainingData(store, train, valid, corpus.scenes, corpus.devices),
        TrainingOptions(**{**kw, **options}), folder/'history.csv', cbs,
    )
    def quiet():
        with learn.no_bar(): fit()
    return learn, quiet


@pytest.mark.parametrize('K', [3, 10])
def test_reductions_of_the_published_systems(K):
    "torch's kl_div with the mean over elements is cpjku23's and easy-dcase's, over the batch dragonsearch's"
    x = torch.randn(7, K)
    z = torch.randn(7, K)
    T = 2.
    for reduction, theirs in (
        ('element_mean', dict(reduction='none')), ('batchmean', dict(reduction='batchmean'))
    ):
        kl = F.kl_div(
            (x / T).log_softmax(1), (z / T).log_softmax(1), log_target=True, **theirs
        ).mean()
        assert soft_loss(x, z, T, reduction).mean() == pytest.approx(float(T**2 * kl), rel=1e-5)
    assert soft_loss(x, z, T, 'batchmean').mean() == pytest.approx(
        K * float(soft_loss(x, z, T).mean()), rel=1e-5
    )


def test_mixed_rows_teach_what_mixed_losses_do():
    "λ·KL with the own row + (1 − λ)·KL with the partner's (easy-dcase) has the gradient of KL with the mixed row"
    z = torch.randn(6, 10)
    lam = torch.full((6,), .3)
    perm = torch.randperm(6)
    T = 2.
    grads = []
    for mixed in (True, False):
        x = torch.linspace(-1, 1, 60).reshape(6, 10).requires_grad_()
        if mixed:
            loss = soft_loss(x, mix_teacher(z, lam, perm, T), T)
        else:
            loss = lam * soft_loss(x, z, T) + (1 - lam) * soft_loss(x, z[perm], T)
        loss.mean().backward()
        grads.append(x.grad)
    assert torch.allclose(*grads, atol=1e-6)


@pytest.mark.parametrize(
    'name, published',
    [
        ('cpjku23-student_kd', (2., .02, 'element_mean')),
        ('tf_sepnet_kd', (2., .02, 'element_mean')),
        ('dragonsearch_kd', (5., .25, 'batchmean')),
    ],
)
def test_recipes_teach_as_published(name, published):
    recipe = yaml.safe_load((ROOT/f'nbs/recipes/{name}.yaml').read_text())
    o = read_distill(recipe['distill'], 'run')
    assert (o['temperature'], o['hard_weight'], o['reduction']) == published
    with pytest.raises(InputError, match='would do nothing without a teacher'):
        check_training(TrainingOptions(**recipe))


def test_focus_as_published():
    "z + p − q against smoothed labels, equal shares of what the teacher finds likely, entropy raised; mixed labels too"
    z, t = torch.randn(6, 10, dtype=torch.float64), 2*torch.randn(6, 10, dtype=torch.float64)
    y = torch.nn.functional.one_hot(torch.arange(6), 10).double()
    for labels in (y, .7*y + .3*y.roll(1, 0)):
        w = (((t/2).softmax(1) > .1) + labels).clamp(0, 1)
        p, w = z.softmax(1), w/w.sum(1, keepdim=True)
        expected = torch.nn.functional.cross_entropy(z + p - t.softmax(1), .9*labels + .01, reduction='none')
        expected += torch.nn.functional.cross_entropy(z, w, reduction='none') + (p*p.log()).sum(1)
        found = DistillLoss(hard_weight=1., focus=True)
        assert abs(found(z, labels, t) - expected.mean()) < 1e-5
        found.reduction = 'none'
        assert torch.allclose(found(z, labels, t).float(), expected.float(), atol=1e-5)


def test_focus_trains(data, teacher, tmp_path):
    "A switch of `distill`, with a file of logits: other weights than without it, and the same twice"
    weights = []
    for i, distill in enumerate([dict(focus=True), dict(focus=True), {}]):
        distill = dict(hard_weight=.5) | distill
        learn, fit = training(data, tmp_path/str(i), teacher=teacher['file'], distill=distill, epochs=1)
        fit()
        weights.append(torch.cat([p.detach().flatten() for p in learn.model.parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_dragonsearch_teacher_sees_the_batch_before_mixstyle():
    "The recipe's live teacher fits its student: same frontend, a step that exists"
    r = yaml.safe_load((ROOT/'nbs/recipes/dragonsearch_kd.yaml').read_text())
    student, big = (
        create_classifier(b, r['frontend'], r['pipeline'])
        for b in (r['backbone'], 'tf_sepnet_dragon_80')
    )
    kd = Distillation('self', r['distill'])
    kd.kind, kd.models = 'run', [opened(big)]
    live, = kd.callbacks(student)
    assert live.sees == 'freq_mixstyle'
    assert sum(p.numel() for p in live.teacher.backbone.parameters()) == 194_770


class Stop(Callback):
    "Interrupts the second epoch"
    def before_train(self):
        if self.epoch == 1: raise KeyboardInterrupt


FEATURES = [dict(student='stages.s1', how='cosine'), dict(student='stages.s2', how='distance')]
WAYS = dict(
    file=dict(teacher='file', distill=dict(temperature=3.), ema=.9),
    live=dict(teacher='run', distill=dict(features=FEATURES), precision='bf16', crop='windows'),
    clean=dict(teacher='run', distill=dict(sees='clean'), crop='shifted', swa=.5),
    own=dict(teacher='self', distill=dict(decay=.9, features=FEATURES), keep='best'),
)


@pytest.mark.parametrize('way', WAYS)
def test_interrupted_training_ends_in_the_same_bits(way, data, teacher, tmp_path):
    "With every kind of teacher; what a teacher learns is in the checkpoint, a network that only answers is not"
    o = dict(WAYS[way], teacher=teacher[WAYS[way]['teacher']])
    whole, fit = training(data, tmp_path/'a', [Checkpoint(tmp_path/'a')], **o)
    fit()
    _, fit = training(data, tmp_path/'b', [Checkpoint(tmp_path/'b'), Stop()], **o)
    with pytest.raises(KeyboardInterrupt): fit()
    saved = read_checkpoint(tmp_path/'b/checkpoint.pt')
    assert saved['epoch'] == 1
    assert ('self_teacher' in saved['callbacks']) == (way == 'own')
    assert 'live_teacher' not in saved['callbacks']
    assert ('feature_loss' in saved['callbacks']) == ('features' in o['distill'])
    again, fit = training(
        data, tmp_path/'b', [Checkpoint(tmp_path/'b', resume=True)], **{**o, 'seed': 11}
    )
    torch.manual_seed(77)
    fit()
    for (k, a), b in zip(whole.model.state_dict().items(), again.model.state_dict().values()):
        assert torch.equal(a, b), k
    assert (tmp_path/'a/history.csv').read_bytes() == (tmp_path/'b/history.csv').read_bytes()
    if way == 'own':
        for a, b in zip(
            whole.self_teacher.teacher.state_dict().values(),
            again.self_teacher.teacher.state_dict().values(),
        ):
            assert torch.equal(a, b)


def test_what_is_saved_is_the_student(data, teacher, tmp_path):
    "Neither teacher nor adapters are in the model's file, and the teacher is as it was"
    learn, fit = training(
        data, tmp_path, teacher=teacher['run'], distill=dict(features=FEATURES), epochs=1
    )
    fit()
    save_model(learn.model, tmp_path)
    plain = create_classifier(rate=data[1].rate, backbone_args=dict(base=8)).backbone.state_dict()
    assert set(load_model(tmp_path).backbone.state_dict()) == set(plain)
    for a, b in zip(
        load_model(teacher['run']).state_dict().values(),
        learn.live_teacher.teacher.state_dict().values(),
    ):
        assert torch.equal(a, b)


def test_a_teacher_changes_the_student_and_nothing_else(data, teacher, tmp_path):
    "All weight on the labels gives the training without a teacher, to the last bit; less gives another"
    end = {}
    for name, o in dict(
        none={},
        hard=dict(teacher=teacher['file'], distill=dict(hard_weight=1.)),
        soft=dict(teacher=teacher['file']),
    ).items():
        learn, fit = training(data, tmp_path/name, epochs=1, **o)
        fit()
        end[name] = torch.cat([p.detach().flatten() for p in learn.model.parameters()])
    assert torch.allclose(end['none'], end['hard'], atol=1e-6)
    assert not torch.allclose(end['none'], end['soft'], atol=1e-3)


def test_windows_get_the_rows_of_their_windows(data):
    "The recording and second asked of the teacher are where the wave was cut"
    corpus, store, train, _ = data
    class Windows:
        starts = ()
        def at(self, recordings, seconds, scenes):
            self.requests = list(zip(recordings, seconds))
            return torch.zeros(len(seconds), len(scenes))
    w = Windows()
    clips = ClipData(store, train, corpus.scenes, corpus.devices, crop='windows', teacher=w)
    waves, *_, logits = clips.batch(range(8))
    assert logits.shape == (8, 10) and len({s for _, s in w.requests}) > 4
    for x, (recording, second) in zip(waves, w.requests):
        k = store.recordings[store.recordings.recording == recording].iloc[0]
        a = k.offset + round((second - k.snippet) * store.rate)
        assert np.array_equal(
            store.flat[a:a + store.clip_len], (x * 32768).numpy().astype(np.int16)
        )


def test_mels_from_the_cache_can_be_taught(data, teacher, tmp_path):
    "Offline, live, and live on clean clips: one frontend; another one is refused before training"
    steps = ['resample', {'mel': {'jitter': False}}, 'log', 'mixup']
    for name, o in dict(
        a=dict(teacher=teacher['file']),
        b=dict(teacher=teacher['run']),
        c=dict(teacher=teacher['run'], distill=dict(sees='clean')),
    ).items():
        learn, fit = training(data, tmp_path/name, cache=True, steps=steps, epochs=1, **o)
        fit()
        assert np.isfinite(learn.recorder.values[-1][0])
    with pytest.raises(InputError, match='another frontend'):
        training(
            data, tmp_path/'d', cache=True, steps=steps, frontend='cp', teacher=teacher['run'],
            distill=dict(sees='clean'),
        )


@pytest.mark.parametrize(
    'o, sentence',
    [
        (dict(teacher='nowhere.safetensors'), 'nowhere'),
        (dict(distill=dict(temperature=2.)), 'without a teacher'),
        (dict(teacher='file', crop='shifted'), "does not know: use crop='clips'"),
        (dict(teacher='file', crop='windows'), 'does not know'),
        (dict(teacher='file', distill=dict(sees='clean')), 'without a live teacher'),
        (dict(teacher='run', distill=dict(tau=2)), f"choose one of {', '.join(DISTILL)}"),
        (dict(teacher='run', distill=dict(features=[dict(student='s9')])), "no layer 's9'"),
        (dict(teacher='run', distill=dict(focus=True), loss='focal'), 'which takes its place'),
        (dict(teacher='run', distill=dict(focus=True, hard_weight=0.)), 'focus would do nothing with hard_weight=0'),
        (dict(init_from='nowhere'), 'nowhere'),
    ],
    ids=lambda v: '' if isinstance(v, str) else '-'.join(v),
)
def test_refused_before_training(o, sentence, data, teacher, tmp_path):
    o = {**o, 'teacher': teacher.get(o.get('teacher'), o.get('teacher', ''))}
    with pytest.raises(InputError, match=sentence):
        check_training(TrainingOptions(**o))
        training(data, tmp_path, **o)


def test_lr_find_with_teachers(data, tmp_path):
    "The search for a rate asks the teacher too, and leaves no hook behind"
    learn, _ = training(data, tmp_path, teacher='self', distill=dict(features=FEATURES))
    with learn.no_bar(): learn.lr_find(num_it=4, show_plot=False)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in learn.model.modules())


def test_pretraining_on_another_corpus(data, teacher, tmp_path):
    "init_from fills the network, keeps a head for the same classes, and the next training begins there"
    learn, _ = training(data, tmp_path, init_from=teacher['run'])
    was = load_model(teacher['run']).backbone.state_dict()
    for k, v in learn.model.backbone.state_dict().items():
        assert torch.equal(v, was[k]), k
