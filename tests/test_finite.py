"""A training ends at the first number that is none; one step learns; own losses and optimisers; fastai's interface."""
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.interpret import ClassificationInterpretation
from torch import nn

import asc.train.learner
from asc.core import InputError, seed_everything
from asc.data.splits import read_split
from asc.experiment.checks import check_training
from asc.experiment.recipe import TrainingData, create_training
from asc.experiment.seeds import run_config
from asc.experiment.stacked import check_stacked, train_stacked
from asc.load import open_model
from asc.model.classifier import create_classifier
from asc.run.parameters import full_parameters
from asc.run.trust import trust
from asc.train.averages import EMA, SWA
from asc.train.callbacks import create_callbacks
from asc.train.clips import ClipData
from asc.train.learner import create_learner, fit, make_dls
from asc.train.options import TrainingOptions
from asc.train.precision import MixedPrecision
from asc.train.resume import Checkpoint
from asc.train.schedules import create_schedule, schedules
from asc.train.tune import tune

OWN = '''
import torch
from torch import nn

class Poly(nn.CrossEntropyLoss):
    def __init__(self, epsilon:float=1.):
        super().__init__()
        self.epsilon = epsilon
    def forward(self, pred, target): return super().forward(pred, target) * (1 + self.epsilon)

class Sign(torch.optim.Optimizer):
    def __init__(self, params, lr=.1): super().__init__(params, dict(lr=lr))
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group['params']:
                if p.grad is not None: p -= group['lr'] * p.grad.sign()
'''


def toy(*cbs, lr=.1, net=None, bad=None, epochs=3, folder=None):
    "A few epochs of a tiny network; `bad`: the number in one clip of the training list"
    seed_everything(0)
    rows = [(torch.randn(4), torch.tensor(i % 2)) for i in range(32)]
    if bad is not None: rows[5][0][0] = bad
    dls = DataLoaders.from_dsets(rows, rows[8:16], bs=8, num_workers=0, device='cpu')
    learn = create_learner(dls, net or nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), cbs=cbs, path=folder)
    learn.remove_cb(learn.epoch_log)
    with learn.no_bar(): fit(learn, epochs, lr)
    return learn


@pytest.fixture
def data(packed):
    "Twenty training and ten validation clips"
    corpus, store = packed
    rows = read_split(corpus, 100)
    return TrainingData(store, rows[::18], rows[5::36], corpus.scenes, corpus.devices, facts=dict(lists={}))


SMALL = dict(epochs=2, bs=8, backbone_args=dict(base=8))


@pytest.mark.parametrize('callbacks', [[], [EMA(.9)], [SWA(.5)], [MixedPrecision('bf16')]],
                         ids=['plain', 'ema', 'swa', 'bf16'])
def test_a_rate_too_high(callbacks):
    with pytest.raises(InputError, match=r'^the training loss is not finite .* in epoch 1, step \d, at lr=.*lower lr'):
        toy(*callbacks, lr=1e30)


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_a_clip_that_is_no_sound(bad):
    with pytest.raises(InputError,
                       match='epoch 1, step . at lr|epoch 1, step .*the batch that was read.*check the sounds'):
        toy(bad=bad)


def test_nothing_is_saved(tmp_path):
    with pytest.raises(InputError, match='not finite'): toy(Checkpoint(tmp_path), lr=1e30)
    assert not list(tmp_path.glob('*.pt'))


def test_weights_before_they_are_kept(tmp_path):
    "A weight that no loss depends on is looked at, too"
    net = nn.Sequential(nn.Linear(4, 2))
    net.register_buffer('spare', torch.tensor(float('nan')))
    with pytest.raises(InputError,
                       match='1 weights are not finite after epoch 1, spare first'): toy(Checkpoint(tmp_path), net=net)
    assert not list(tmp_path.glob('*.pt'))


def test_learning_rate_finder():
    "Rates far too high are what it looks for; a network that is broken from the start is refused"
    learn = toy(epochs=1)
    before = [p.clone() for p in learn.model.parameters()]
    with learn.no_bar(): rates = learn.lr_find(start_lr=1e-3, end_lr=1e35, num_it=60, stop_div=False, show_plot=False)
    assert np.isfinite(rates.valley)
    assert all(torch.equal(p, q) for p, q in zip(before, learn.model.parameters()))
    learn.model[0].weight.data.fill_(float('nan'))
    with learn.no_bar(), pytest.raises(InputError, match='not finite'): learn.lr_find(num_it=60, show_plot=False)


def test_stacked_seeds_and_one_device(data, packed):
    corpus, store = packed

    def make(seed):
        return create_training(data, TrainingOptions(seed=seed, lr=1e3, clip=0., backbone='cnn3', frontend='cnn3',
                                                     pipeline='easy_cnn3', bs=8, epochs=2, schedule='constant'))
    with pytest.raises(InputError, match='not finite'):
        train_stacked([lambda s=s: make_diverging(make, s) for s in range(2)])
    clips = ClipData(store, data.train, corpus.scenes, corpus.devices)
    model = create_classifier(rate=store.rate, scenes=corpus.scenes, backbone_args=dict(base=8))
    next(iter(model.backbone.parameters())).data.fill_(float('nan'))
    with pytest.raises(InputError, match='no step was made before'): tune(model, clips, clips, 'full', epochs=1, bs=8)


def make_diverging(make, seed):
    "A training whose network begins with a NaN"
    learn, train = make(seed)
    next(iter(learn.model.backbone.parameters())).data.fill_(float('nan'))
    return learn, train


# schedules

@pytest.mark.parametrize('steps', [1, 2, 3])
@pytest.mark.parametrize('name', [name for name in schedules if name != 'chain'])
def test_every_step_of_a_short_training_learns(name, steps):
    rate = create_schedule(name, 1., 1, steps)
    assert min(rate(k / steps) for k in range(steps)) > 0


def test_one_step_learns(data):
    learn, train = create_training(data, TrainingOptions(**SMALL | dict(epochs=1, bs=64)))
    before = {k: v.clone() for k, v in learn.model.backbone.named_parameters()}
    with learn.no_bar(): train()
    assert learn.train_iter == 1
    assert all(not torch.equal(v, before[k]) for k, v in learn.model.backbone.named_parameters())


@pytest.mark.parametrize('n', [4, 10, 81900])
def test_longer_schedules_stay(n):
    "The published schedule begins at 0, as ever"
    rate = create_schedule('warmup_cosine', 1., 1, n)
    assert [rate(0), rate(1)] == [0., schedules['warmup_cosine']()(1)]


# own losses and optimisers

@pytest.fixture
def mine(tmp_path):
    "mine(name): the address of a class in one's own file"
    (tmp_path/'mine.py').write_text(OWN, encoding='utf-8')
    trust(tmp_path/'mine.py')
    return lambda name: f"{tmp_path/'mine.py'}:{name}"


def test_own_loss_and_optimiser(data, mine, tmp_path):
    "Trained, resumed with the same file, refused with another"
    options = TrainingOptions(**SMALL, loss={mine('Poly'): {'epsilon': .5}}, optimizer=mine('Sign'))
    check_training(options)

    def training(resume):
        config = run_config(options.as_dict(), data)
        learn, train = create_training(data, options, cbs=[Checkpoint(tmp_path, config, resume)])
        with learn.no_bar(): train()
        return learn
    learn = training(False)
    assert (type(learn.opt.opt).__name__, learn.loss_func.epsilon) == ('Sign', .5)
    assert set(run_config(options.as_dict(), data)['own']) == {mine('Poly'), mine('Sign')}
    again = training(True)
    assert all(torch.equal(p, q) for p, q in zip(learn.model.parameters(), again.model.parameters()))
    (tmp_path/'mine.py').write_text(OWN + '# changed', encoding='utf-8')
    trust(tmp_path/'mine.py')
    with pytest.raises(InputError, match='another configuration: own was'): training(True)


@pytest.mark.parametrize('options, words', [
    (dict(loss='Poli'), 'no class or function Poli'), (dict(optimizer='Sing'), 'no class or function Sing'),
    (dict(loss='Sign'), 'loss'),
    (dict(optimizer='Poly'), 'optimizer'), (dict(loss={'Poly': {'eps': 1.}}), 'eps'),
    (dict(optimizer='nowhere.py:X'), 'nowhere.py'),
])
def test_own_classes_are_refused(options, words, mine):
    named = {}
    for key, value in options.items():
        if isinstance(value, dict): value = {mine(name): kw for name, kw in value.items()}
        named[key] = mine(value) if isinstance(value, str) and '.py' not in value else value
    with pytest.raises(InputError, match=words): check_training(TrainingOptions(**named))


def test_own_optimiser_is_not_stacked(mine):
    parameters = full_parameters('train', None, dict(backbone='cnn3', frontend='cnn3', pipeline='easy_cnn3'))
    with pytest.raises(InputError, match='optimizer=.*cannot be stacked'):
        check_stacked(**parameters | dict(optimizer=mine('Sign')))


# fastai's interface

@pytest.fixture(scope='module')
def learn(packed, tmp_path_factory):
    "A learner after an epoch"
    corpus, store = packed
    rows = read_split(corpus, 100)
    train, valid = (ClipData(store, part, corpus.scenes, corpus.devices) for part in (rows[::18], rows[5::36]))
    seed_everything(0)
    dls = make_dls(train, valid, 8, device='cpu')
    model = create_classifier(rate=store.rate, scenes=corpus.scenes, backbone_args=dict(base=8))
    learn = create_learner(dls, model, cbs=create_callbacks(dls), path=tmp_path_factory.mktemp('learner'))
    with learn.no_bar(): fit(learn, 1, 1e-2)
    learn.create_mbar = False
    learn.remove_cb(learn.progress) if hasattr(learn, 'progress') else None
    return learn


def test_answers_of_a_learner(learn):
    valid = learn.dls.valid_ds
    p, y = learn.get_preds()
    assert torch.allclose(p.sum(1), torch.ones(len(valid)), atol=1e-5)
    assert y.tolist() == valid.y.tolist()
    loss, accuracy = learn.validate()
    assert accuracy == pytest.approx(float((p.argmax(1) == y).float().mean()))
    rows = valid.rows
    assert learn.get_preds(dl=learn.dls.test_dl(rows.drop(columns='scene')))[1] is None
    assert torch.allclose(learn.get_preds(dl=learn.dls.test_dl(rows.filename.tolist()))[0], p, atol=1e-5)
    name, number, row = learn.predict(rows.iloc[0])
    assert name == valid.scenes[int(number)] and torch.allclose(row, p[0], atol=1e-5)
    with pytest.raises(InputError, match='give rows of the corpus'): learn.predict(torch.zeros(44100))
    before = list(learn.epoch_log.history)
    assert 'Total params' in learn.summary()
    assert learn.epoch_log.history == before


def test_interpretation(learn):
    seen = ClassificationInterpretation.from_learner(learn)
    matrix = seen.confusion_matrix()
    assert matrix.shape == (10, 10) and matrix.sum() == len(learn.dls.valid_ds)
    losses, numbers, items = seen.top_losses(3, items=True)
    assert losses[0] == losses.max()
    assert items.filename.tolist() == learn.dls.valid_ds.rows.filename.iloc[numbers].tolist()
    seen.show_results([0, 1])
    seen.plot_confusion_matrix()
    with pytest.raises(InputError, match='use top_losses'): seen.plot_top_losses(2)


def test_pictures_files_and_parts(learn):
    learn.dls.show_batch()
    learn.show_results()
    learn.freeze()
    learn.unfreeze()
    learn.save('kept')
    before = [p.clone() for p in learn.model.parameters()]
    for p in learn.model.parameters(): p.data.zero_()
    learn.load('kept')
    assert all(torch.equal(p, q) for p, q in zip(before, learn.model.parameters()))
    folder = learn.export()
    assert open_model(folder).classifier('a test').scenes == learn.model.scenes
    assert not list(learn.path.glob('*.pkl'))
    (learn.path/'models/broken.pth').write_bytes(b'no weights')
    with pytest.raises(InputError, match='broken.pth: does not fit'): learn.load('broken')
    with pytest.raises(InputError, match='there is no such file of weights'): learn.load('nowhere')
    with pytest.raises(InputError, match='tta_predictions'): learn.tta()
