"""When the memory of the device is out: a sentence with a number that fits, and a run that goes on with it."""
import gc
import re

import pytest
import torch
from fastai.data.core import DataLoaders
from torch import nn

from asc.core import InputError, seed_everything
from asc.data.splits import read_test
from asc.model.classifier import create_classifier
from asc.train.accumulate import Accumulate
from asc.train.clips import ClipData
from asc.train.embedding import clip_embeddings
from asc.train.learner import create_learner, fit, predict_logits
from asc.train.resume import Checkpoint
from asc.train.room import free_computed


def toy(device, bs, folder, accumulate=1, resume=False, cbs=()):
    "Three epochs of a network whose activations are larger than its weights"
    seed_everything(0)
    rows = [(torch.randn(500, 4), torch.tensor(i % 2)) for i in range(200)]
    dls = DataLoaders.from_dsets(rows, rows[:8], bs=bs, num_workers=0, device=torch.device('emulated', 0))
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Flatten(), nn.Linear(8000, 2))
    config = dict(bs=bs, accumulate=accumulate)
    cbs = [Checkpoint(folder, config, resume), *cbs, *([Accumulate(accumulate)] if accumulate > 1 else [])]
    learn = create_learner(dls, net, cbs=cbs, path=folder)
    with learn.no_bar(): fit(learn, 3, 1e-2)
    return learn


def room(device, megabytes):
    "Leave so much memory, beside what is in use"
    gc.collect()
    device.memory.refused, device.memory.capacity = 0, device.memory.allocated + int(megabytes * 1_000_000)


def advice(error): return [int(re.search(fr'{name}=(\d+)', error).group(1)) for name in ('give bs', 'accumulate')]


@pytest.mark.parametrize('bs, megabytes', [(200, 20), (128, 8), (200, 3)])
def test_what_is_advised_fits(bs, megabytes, tmp_path, emulated):
    "… with as many clips a step, and is not far less than what fits"
    room(emulated, megabytes)
    with pytest.raises(InputError, match=f'^out of memory: emulated:0 has none for bs={bs} ') as refused:
        toy(emulated, bs, tmp_path)
    small, every = advice(str(refused.value))
    assert small * every == bs and '\n' not in str(refused.value)
    assert '.pt' not in str(refused.value)
    del refused
    room(emulated, megabytes)
    toy(emulated, small, tmp_path, every)


def test_an_epoch_is_kept(tmp_path, emulated):
    "Memory that is taken away later: the run goes on with smaller batches of as many clips a step"
    from fastai.callback.core import Callback
    class Thief(Callback):
        def before_train(self):
            if self.epoch == 1: emulated.memory.capacity = emulated.memory.allocated + 9_000_000
    with pytest.raises(InputError, match='resume=True.*checkpoint.pt') as refused: toy(emulated, 200, tmp_path, cbs=[Thief()])
    small, every = advice(str(refused.value))
    room(emulated, 1000)
    learn = toy(emulated, small, tmp_path, every, resume=True)
    assert len(learn.epoch_log.history) == 3
    with pytest.raises(InputError, match=f'bs was {small}, is 32'): toy(emulated, 32, tmp_path, resume=True)


def test_not_even_one_clip(tmp_path, emulated):
    room(emulated, .1)
    with pytest.raises(InputError, match='out of memory: .* for the network; free some'): toy(emulated, 64, tmp_path)
    assert not list(tmp_path.glob('*.pt'))


def test_a_device_that_does_not_say(tmp_path, emulated, monkeypatch):
    "Half the batch is advised"
    monkeypatch.setattr('asc.train.room.peak_memory', lambda device: None)
    room(emulated, 9)
    with pytest.raises(InputError, match='not known.*give bs=100 and accumulate=2'): toy(emulated, 200, tmp_path)


def test_other_words(tmp_path, emulated):
    "Backends whose error is a RuntimeError"
    from fastai.callback.core import Callback
    class Fail(Callback):
        def after_pred(self): raise RuntimeError('MPS backend out of memory (MPS allocated: 9 GB)')
    with pytest.raises(InputError, match='^out of memory: emulated:0 has none for bs=64'): toy(emulated, 64, tmp_path, cbs=[Fail()])


@pytest.mark.parametrize('answers', [predict_logits, clip_embeddings])
def test_answers_in_halves(packed, emulated, answers, monkeypatch):
    "What is answered does not depend on how many clips are asked about at once"
    corpus, store = packed
    seed_everything(0)
    model = create_classifier(rate=store.rate, scenes=corpus.scenes, backbone_args=dict(base=8),
                              frontend_args=dict(n_mels=64))
    clips = ClipData(store, read_test(corpus)[:8], corpus.scenes, corpus.devices)
    ours = torch.as_tensor(answers(model, clips, 8))
    model.to(emulated.DEVICE)
    halvings = []

    def noted(*args):
        halvings.append(1)
        free_computed(*args)
    monkeypatch.setattr('asc.train.room.free_computed', noted)
    room(emulated, 14)
    assert torch.allclose(torch.as_tensor(answers(model, clips, 8)), ours, atol=1e-5)
    assert halvings
    room(emulated, .1)
    with pytest.raises(InputError, match='for a single clip'): answers(model, clips, 8)
