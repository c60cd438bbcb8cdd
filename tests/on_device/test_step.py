"""No step of a training waits: nothing is read back and nothing is copied to the device between two batches."""
import math

import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from torch import nn

from asc.core import InputError, seed_everything
from asc.experiment.recipe import create_training
from asc.model.classifier import create_classifier, save_model
from asc.train.learner import create_learner, fit
from asc.train.options import TrainingOptions
from asc.train.resume import Checkpoint
from test_recipe_trainings import RECIPES, SMALLER, clips, files, small_options
from trainings import STEPS

# of an epoch: two tables of clips, the losses, the mean of training, whether weights are numbers, loss and accuracy
AN_EPOCH = 7
NETWORK = dict(backbone_args=SMALLER['cp_mobile_24'], frontend_args=dict(n_mels=64))
PLAIN = NETWORK | dict(steps=STEPS)


def around_mel(wave=(), mel=(), spec=()): return NETWORK | dict(steps=[*wave, 'resample', 'mel', *mel, 'log', *spec])


KINDS = {
    'ema': PLAIN | dict(ema=.9),
    'clip': PLAIN | dict(clip=1.),
    'freeze': PLAIN | dict(freeze='in_c'),
    'layer-wise rates': PLAIN | dict(lr_decay=.8),
    'bf16': PLAIN | dict(precision='bf16'),
    'focal': PLAIN | dict(loss='focal'),
    'best': PLAIN | dict(keep='best', patience=3),
    'mixup': around_mel(spec=[{'mixup': {'alpha': .3}}]),
    'shifted': PLAIN | dict(crop='shifted'),
    'self': PLAIN | dict(teacher='self', distill=dict(sees='augmented')),
    'live': PLAIN | dict(teacher='run', distill=dict(sees='clean')),
    'features': PLAIN | dict(teacher='run', distill=dict(
        sees='augmented',
        features=[dict(student='in_c', how=how) for how in ('mse', 'cosine', 'distance', 'angle')])),
    'pitch': around_mel([{'pitch_shift': {'semitones': [-2, 2]}}, {'gain': {}}]),
    'filters': around_mel((), [{'filter_augment': {}}, {'freq_gain': {}}, {'time_mask': {'size': 9, 'fill': 'mean'}}]),
    'styles': around_mel(spec=[{'channel_mixstyle': {'p': 1.}}, {'freq_mixstyle': {'p': 1., 'cross': True}}]),
    'choice': around_mel([{'choice': {'weights': [.5, .4, .1], 'steps': [{'dir': {'p': .5}}, {'pitch_shift': {}}, None]}}]),
}


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    "The run of a network that answers live"
    folder = tmp_path_factory.mktemp('teacher')
    save_model(create_classifier(pipeline=STEPS, frontend='dcase24', **NETWORK), folder)
    return folder


class Waits(Callback):
    "The waits of each step but the first of the second epoch, and of that epoch"
    order = 1000
    def __init__(self, device): self.device, self.steps, self.report = device, [], ''
    def before_epoch(self): self.device.reset()
    def before_train(self): self.seen = None
    def after_epoch(self): self.epoch_waits = self.device.waits()

    def after_batch(self):
        if not self.training or not self.epoch: return
        if self.seen is not None: self.note(self.device.waits() - self.seen)
        self.seen, self.start = self.device.waits(), len(self.device.events)

    def note(self, n):
        self.steps.append(n)
        if n: self.report += f'{self.device.events[self.start:]}\n'


def waits_of(clips, device, bar=False, **options):
    "What `Waits` has seen of two epochs of two steps"
    waits = Waits(device)
    learn, train = create_training(clips, TrainingOptions.of(dict(options, epochs=2, bs=3, device='emulated')), cbs=[waits])
    learn.create_mbar = bar
    if bar: train()
    else:
        with learn.no_bar(): train()
    return waits, learn


@pytest.mark.parametrize('name', RECIPES)
def test_recipe(name, clips, files, emulated):
    if 'passt' in name: pytest.importorskip('timm')
    options = small_options(name, files)
    if 'warmup_steps' in str(options['schedule']): options['schedule'] = {'warmup_cosine': {'warmup_steps': 2}}
    waits, _ = waits_of(clips, emulated, **options)
    assert waits.steps and not any(waits.steps), waits.report
    assert waits.epoch_waits <= AN_EPOCH, emulated.report()


@pytest.mark.parametrize('kind', KINDS)
def test_kind(kind, clips, teacher, emulated):
    options = dict(KINDS[kind])
    if options.get('teacher') == 'run': options['teacher'] = str(teacher)
    waits, _ = waits_of(clips, emulated, **options)
    assert waits.steps and not any(waits.steps), waits.report
    assert waits.epoch_waits <= AN_EPOCH, emulated.report()


def test_half_precision_reads_whether_a_gradient_overflows(clips, emulated):
    emulated.refused.clear()                                   # the scaler of PyTorch divides in float64
    waits, _ = waits_of(clips, emulated, **PLAIN, precision='fp16')
    assert set(waits.steps) == {1}, waits.report


def test_swa_and_the_bar(clips, emulated):
    "The clips are gone through once more, for the statistics: a table more; the bar shows the loss of the last epoch"
    waits, learn = waits_of(clips, emulated, bar=True, **PLAIN, swa=.5)
    assert waits.steps and not any(waits.steps), waits.report
    assert waits.epoch_waits == AN_EPOCH + 1, emulated.report()


def test_recorder_after_a_training(clips, emulated):
    "What fastai's has: losses by step on the CPU, figures by epoch, a picture"
    _, learn = waits_of(clips, emulated, **PLAIN)
    recorder = learn.recorder
    assert {loss.device.type for loss in recorder.losses} == {'cpu'}
    assert float(learn.smooth_loss) == pytest.approx(float(recorder.losses[-1]), rel=1e-6)
    assert all(isinstance(value, float) for row in recorder.values for value in row)
    assert recorder.values[-1][0] == pytest.approx(float(recorder.losses[-1]), rel=1e-6)
    recorder.plot_loss(skip_start=0)


def toy(*cbs, lr=.1, bad=None, net=None, folder=None):
    "Three epochs of four steps of a tiny network; `bad`: a number in a clip of the second epoch's batches"
    seed_everything(0)
    rows = [(torch.randn(4), torch.tensor(i % 2)) for i in range(32)]
    if bad is not None: rows[5][0][0] = bad
    dls = DataLoaders.from_dsets(rows, rows[8:16], bs=8, num_workers=0, device=torch.device('emulated', 0))
    learn = create_learner(dls, net or nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), cbs=cbs, path=folder)
    learn.remove_cb(learn.epoch_log)
    with learn.no_bar(): fit(learn, 3, lr)
    return learn


class Poison(Callback):
    "Weights that are no numbers from a step on"
    def __init__(self, epoch, step): self.at = epoch, step
    def before_batch(self):
        if self.training and (self.epoch + 1, self.iter + 1) == self.at: self.model[0].weight.data.fill_(math.nan)


def test_a_loss_that_is_no_number(tmp_path, emulated):
    "Found when the epoch is over, with its step; the checkpoint is that of the epoch before"
    with pytest.raises(InputError, match=r'^the training loss is not finite \(nan\) in epoch 2, step 3, at lr=.*diverged'):
        toy(Checkpoint(tmp_path), Poison(2, 3), folder=tmp_path)
    assert torch.load(tmp_path/'checkpoint.pt', weights_only=True)['epoch'] == 1
    with pytest.raises(InputError, match='epoch 1, step 1, at lr=.*no step was made before'): toy(Poison(1, 1))
    with pytest.raises(InputError, match='epoch 1, step .*the batch that was read.*check the sounds'): toy(bad=math.nan)
    with pytest.raises(InputError, match='not finite .* in epoch 1'): toy(lr=1e30)


def test_learning_rate_finder(tmp_path, emulated):
    learn = toy(folder=tmp_path)
    with learn.no_bar(): rates = learn.lr_find(1e-3, 1e35, 60, stop_div=False, show_plot=False)
    assert math.isfinite(rates.valley)
    assert all(loss.device.type == 'cpu' for loss in learn.recorder.losses)
    learn.model[0].weight.data.fill_(math.nan)
    with learn.no_bar(), pytest.raises(InputError, match='not finite'): learn.lr_find(num_it=60, show_plot=False)
