"""kill -9 at any moment: the continued training ends in the bytes of one that was left alone; a half-written checkpoint never counts."""
import multiprocessing as mp
import os
import random
import resource
import signal
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders

from asc.train.averages import EMA, SWA, EarlyStop, KeepBest
from asc.model.classifier import create_classifier
from asc.core import InputError, seed_everything
from asc.data.corpus import load_corpus
from asc.train.finetune import Freeze
from asc.train.learner import ClipData, create_learner, fit, make_dls
from asc.train.precision import MixedPrecision
from asc.train.resume import Checkpoint, read_checkpoint
from asc.train.targets import MixUpLoss
from asc.data.splits import read_split
from asc.data.store import pack

STEPS = [
    {'roll': {'seconds': .1}},
    'resample',
    'mel',
    {'freq_mask': {'size': 48}},
    'log',
    {'freq_mixstyle': {'p': .4, 'alpha': .3}},
    {'mixup': {'alpha': .3}},
]
EPOCHS = 4
OPTIONS = dict(
    average=lambda: [EMA(.9), KeepBest(), EarlyStop(9)],
    swa=lambda: [SWA(.5), MixedPrecision('bf16'), KeepBest('accuracy'), Freeze('in_c', 2)],
)
SCHEDULES = dict(average='warmup_cosine', swa={'ramp': {'of': 150}})


def train(corpus, store, folder, options, resume, tell=lambda _: None):
    "One real, small training: 20 training and 10 validation clips, everything random that there is"
    torch.set_num_threads(1)
    begun = resume and (folder/'checkpoint.pt').exists()
    # what is resumed must not depend on the seed
    seed_everything(int(time.time()) if begun else 3)
    corpus = load_corpus(corpus)
    store = pack(corpus, store, progress=False)
    rows = read_split(corpus, 100).iloc[::3]
    data = lambda rows, **kw: ClipData(store, rows, corpus.scenes, corpus.devices, **kw)
    dls = make_dls(data(rows[:20], crop='windows'), data(rows[-10:]), 8, device='cpu')
    model = create_classifier(
        pipeline=STEPS, rate=store.rate, scenes=corpus.scenes, backbone_args=dict(base=8)
    )
    learn = create_learner(
        dls,
        model,
        history=folder/'history.csv',
        cbs=[
            MixUpLoss(),
            *OPTIONS[options](),
            Checkpoint(folder, dict(options=options), resume=resume),
        ],
    )
    tell('begins')
    with open(os.devnull, 'w') as f, redirect_stdout(f), learn.no_bar():
        fit(learn, EPOCHS, 1e-2, schedule=SCHEDULES[options])
    torch.save(model.state_dict(), folder/'final.pt')
    tell('ends')


def child(corpus, store, folder, options, resume, pipe):
    train(corpus, store, folder, options, resume, pipe.send)


def half_writer(corpus, store, folder, options, resume, pipe):
    "As `child`, but killed in the middle of writing the third checkpoint"
    whole, count = Path.write_bytes, iter(range(100))
    def write(self, data):
        if next(count) < 2: return whole(self, data)
        whole(self, data[:5000])
        os.kill(os.getpid(), signal.SIGKILL)
    Path.write_bytes = write
    train(corpus, store, folder, options, resume, pipe.send)


@pytest.fixture(scope='module')
def start(synthetic, tmp_path_factory):
    "start(folder, options, resume) -> a process that trains, and the pipe it tells its progress through"
    ctx = mp.get_context('forkserver')
    store = tmp_path_factory.mktemp('store')
    light = 'classifier corpus finetune learner precision resume softmixup store'.split()
    # imported once, not in every child
    ctx.set_forkserver_preload(['torch._dynamo', *(f'asc.{m}' for m in light)])
    def start(folder, options, resume=False, target=child):
        folder.mkdir(exist_ok=True)
        ours, theirs = ctx.Pipe()
        p = ctx.Process(target=target, args=(synthetic, store, folder, options, resume, theirs))
        p.start()
        theirs.close()
        return p, ours
    return start


@pytest.fixture(scope='module')
def whole(start, tmp_path_factory):
    "Trainings nobody touched, and how long they took"
    def run(options):
        if options not in done:
            folder = tmp_path_factory.mktemp('whole')
            p, pipe = start(folder, options)
            assert pipe.recv() == 'begins'
            t = time.time()
            assert pipe.recv() == 'ends'
            done[options] = folder, time.time() - t
            p.join()
        return done[options]
    done = {}
    return run


def same(a, b):
    "The same last digit everywhere"
    x, y = (torch.load(f/'final.pt', weights_only=True) for f in (a, b))
    assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
    assert (a/'history.csv').read_bytes() == (b/'history.csv').read_bytes()
    assert not [p.name for p in b.iterdir() if p.name.endswith('.part')]


def finish(start, folder, options):
    p, _ = start(folder, options, resume=True)
    p.join()
    assert p.exitcode == 0


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    for name in ('.history.csv.1.part', '.checkpoint.pt.1.part', '.train.ipynb.1.part'):
        (tmp_path/name).write_text('half')
    Checkpoint(tmp_path)
    # not while another may be at work
    assert len(list(tmp_path.iterdir())) == 3
    Checkpoint(tmp_path, resume=True)
    # not a training's
    assert [p.name for p in tmp_path.iterdir()] == ['.train.ipynb.1.part']


@pytest.mark.parametrize('options', OPTIONS)
def test_killed_at_random_moments(options, start, whole, tmp_path):
    "Five kills for each set of options, ten in all, at moments drawn over the whole training"
    ref, seconds = whole(options)
    rng, kills = random.Random(), 0
    for trial in range(20):
        if kills == 5: break
        folder = tmp_path/str(trial)
        p, pipe = start(folder, options)
        assert pipe.recv() == 'begins'
        time.sleep(rng.uniform(0, seconds))
        p.kill()
        p.join()
        if p.exitcode == 0:
            continue  # was quicker than the first one
        kills += p.exitcode == -signal.SIGKILL
        finish(start, folder, options)
        same(ref, folder)
    assert kills == 5


def test_killed_again_and_again(start, whole, tmp_path):
    "The same training killed at every stage of it, until it is through"
    ref, seconds = whole('average')
    for _ in range(30):
        p, pipe = start(tmp_path, 'average', resume=True)
        assert pipe.recv() == 'begins'
        time.sleep(random.uniform(.3, .6) * seconds)
        p.kill()
        p.join()
        if p.exitcode == 0: break
    finish(start, tmp_path, 'average')
    same(ref, tmp_path)


def test_killed_while_writing(start, whole, tmp_path):
    "Half a checkpoint lies there; the whole one before it counts"
    ref, _ = whole('average')
    p, _ = start(tmp_path, 'average', target=half_writer)
    p.join()
    assert p.exitcode == -signal.SIGKILL
    assert list(tmp_path.glob('.checkpoint.pt.*.part'))
    assert read_checkpoint(tmp_path/'checkpoint.pt')['epoch'] == 2
    finish(start, tmp_path, 'average')
    same(ref, tmp_path)


class FullDisk(Callback):
    "From the second epoch on no file may grow beyond 20 kB"
    def before_train(self):
        if self.epoch == 1:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
            )


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path):
    "An unwritable checkpoint is an error that says so, and the last whole one stays"
    rows = [(torch.randn(300), torch.tensor(i % 2)) for i in range(8)]
    dls = DataLoaders.from_dsets(rows, rows, bs=4, num_workers=0, device='cpu')
    learn = create_learner(dls, torch.nn.Linear(300, 300), cbs=[Checkpoint(tmp_path), FullDisk()])
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(
            InputError, match='could not write .*checkpoint.pt.*free some space'
        ), learn.no_bar():
            learn.fit(3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert read_checkpoint(tmp_path/'checkpoint.pt')['epoch'] == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_resume_with_the_progress_bar(tmp_path):
    "The bar over the epochs takes a late beginning"
    class Stop(Callback):
        def before_train(self):
            if self.epoch == 2: raise KeyboardInterrupt
    rows = [(torch.randn(4), torch.tensor(i % 2)) for i in range(8)]
    def learner(*cbs, **kw):
        dls = DataLoaders.from_dsets(rows, rows, bs=4, num_workers=0, device='cpu')
        return create_learner(dls, torch.nn.Linear(4, 2), cbs=[Checkpoint(tmp_path, **kw), *cbs])
    with pytest.raises(KeyboardInterrupt): learner(Stop()).fit(4)
    learn = learner(resume=True)
    learn.fit(4)
    assert [row['epoch'] for row in learn.epoch_log.history] == [1, 2, 3, 4]
    assert len(learn.recorder.losses) == 8


def test_a_pickle_is_not_read(tmp_path):
    "A file that would run code is refused"
    torch.save(dict(format='asc-checkpoint-1', config={}, bad=np.float64), tmp_path/'checkpoint.pt')
    with pytest.raises(InputError, match='no checkpoint or is damaged'):
        Checkpoint(tmp_path, resume=True)
