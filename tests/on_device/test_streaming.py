"""Batches that are read ahead: asked for before a step ends, the same numbers, errors at their batch, no thread left."""
import gc
import threading

import noise
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback, CancelTrainException

from asc.core import InputError
from asc.data.store import pack
from asc.experiment.recipe import TrainingData, create_training
from asc.train.options import TrainingOptions

SMALL = dict(
    backbone='cp_mobile_24', backbone_args=dict(base=8, blocks=(1, 1, 1), strides={}), bs=4, epochs=2,
    steps=['resample', 'mel', 'log', {'freq_mixstyle': {'p': .5}}, {'mixup': {'alpha': .3}}],
)


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    "Fourteen seconds of noise in two recordings"
    folder = tmp_path_factory.mktemp('noise')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, 'RATE', 44100)
        corpus = noise.noise_corpus(folder/'corpus', recs=2, snippets=7, n=44100)
        return corpus, pack(corpus, folder/'store', progress=False)


def training(store, resident, cbs=(), **options):
    "A learner that trains on twelve of the clips and validates on two"
    corpus, packed = store
    rows = corpus.meta
    data = TrainingData(packed, rows[:12], rows[12:], ['rain', 'sun'], ['a', 'b'])
    choice = TrainingOptions(**SMALL | options)
    return create_training(data, choice, cbs=cbs, resident=resident)


def numbers(learn, fit):
    "What a training has learnt, and its history"
    with learn.no_bar(): fit()
    weights = [value.cpu() for value in learn.model.state_dict().values()]
    return weights, pd.DataFrame(learn.epoch_log.history).drop(columns='epoch').to_numpy().tolist()


@pytest.mark.parametrize('crop', ['clips', 'windows', 'shifted'])
def test_training_is_the_same(emulated, store, crop, capsys):
    "Resident and streamed: weights and history, to the last bit"
    near, far = (numbers(*training(store, resident, crop=crop)) for resident in (True, False))
    assert near[1] == far[1]
    assert all(torch.equal(a, b) for a, b in zip(near[0], far[0], strict=True))
    assert 'read from the store' not in capsys.readouterr().out


class Probe(Callback):
    "Waits for what is read ahead before the step of an optimiser, and notes when a step ends"
    def __init__(self, events): self.events = events
    def before_batch(self): self.events.append(('begin', self.iter))

    def before_step(self):
        thread = self.dl.dataset.ahead.thread
        if thread: thread.join(60)

    def after_batch(self): self.events.append(('end', self.iter))


@pytest.mark.parametrize('crop', ['clips', 'windows'])
def test_copy_is_asked_for_before_the_step_ends(emulated, store, crop):
    "Of every batch but the first of an epoch, by the thread that has read it"
    learn, fit = training(store, False, [Probe(emulated.events)], epochs=1, crop=crop)
    with learn.no_bar(): fit()
    order = [event for event in emulated.events if event[0] in ('begin', 'end') or 'ahead.py' in event[1]]
    kinds = [event[0] for event in order]
    ends = [i for i, kind in enumerate(kinds) if kind == 'end'][:3]
    begins = [i for i, kind in enumerate(kinds) if kind == 'begin'][:3]
    copies = [kinds[begin:end].count('copied to the device') for begin, end in zip(begins, ends)]
    assert copies == [3, 3, 0]                             # waves, devices and scenes of the next; the last has none
    assert all(begin == end + 1 for end, begin in zip(ends, begins[1:]))


def test_no_room(emulated, store, capsys):
    "Where the clips would take more than half of what is free, they are streamed, and a line says so"
    gc.collect()                                           # what earlier tests had there
    emulated.memory.capacity = emulated.memory.allocated + 2 * 14 * 2 * 44100 - 1000
    learn, _ = training(store, True)
    assert 'read from the store' in capsys.readouterr().out
    assert learn.dls.train_ds.ahead and learn.dls.valid_ds.ahead
    emulated.memory.capacity = None
    learn, _ = training(store, True)
    assert learn.dls.train_ds.resident and not learn.dls.train_ds.ahead


class Cancel(Callback):
    "Ends the training of an epoch after its first batch, once the next one is being read"
    def after_batch(self):
        if self.training: raise CancelTrainException()


def test_cancelled_epoch(emulated, store):
    "No thread is left, and the next epoch reads what it needs"
    before = threading.active_count()
    learn, fit = training(store, False, [Cancel()])
    learn.remove_cb(learn.epoch_log)                       # fastai tells no loss of such an epoch
    with learn.no_bar(): fit()
    assert threading.active_count() == before
    assert learn.dls.train_ds.ahead.future is None


def test_damaged_store(emulated, store, monkeypatch):
    "The error of a read comes as it is, when its batch is due: the third, read while the second is computed"
    learn, fit = training(store, False, epochs=1)
    data, steps = learn.dls.train_ds, []
    parts, reads = type(data)._parts, []
    def damaged(self, idx, start=None):
        reads.append(len(idx))
        if len(reads) == 3: raise InputError('x.i16 is damaged: pack again')
        return parts(self, idx, start)
    monkeypatch.setattr(type(data), '_parts', damaged)
    class Steps(Callback):
        def after_batch(self): steps.append(self.iter)
    learn.add_cb(Steps())
    before = threading.active_count()
    with learn.no_bar(), pytest.raises(InputError, match='^x.i16 is damaged: pack again$'): fit()
    assert steps == [0, 1] and reads == [4, 4, 4]
    assert threading.active_count() == before


@pytest.mark.parametrize('pipeline', ['dcase24', 'dragonsearch', 'sp4asc', 'easy_tfsepnet', 'cp'])
def test_guesses_are_right(emulated, store, monkeypatch, pipeline):
    "Whatever a pipeline draws, each batch of windows is read once"
    learn, fit = training(store, False, epochs=1, crop='windows', steps=[], pipeline=pipeline)
    parts, reads = type(learn.dls.train_ds)._parts, []
    def counted(self, idx, start=None):
        reads.append(len(idx))
        return parts(self, idx, start)
    monkeypatch.setattr(type(learn.dls.train_ds), '_parts', counted)
    with learn.no_bar(): fit()
    assert reads == [4, 4, 4, 2]
