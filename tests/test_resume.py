"""kill -9 at any moment: a resumed training ends in the same bytes as an undisturbed one; half a file never counts."""
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

from asc.core import InputError, seed_everything
from asc.data.corpus import load_corpus
from asc.data.splits import read_split
from asc.data.store import pack
from asc.model.classifier import create_classifier
from asc.train.averages import EMA, SWA, EarlyStop, KeepBest
from asc.train.finetune import Freeze
from asc.train.clips import ClipData
from asc.train.learner import create_learner, fit, make_dls
from asc.train.precision import MixedPrecision
from asc.train.resume import Checkpoint, read_checkpoint
from asc.train.targets import MixUpLoss
from steps import STEPS

EPOCHS = 4
# two sets of options: callbacks and schedule
OPTIONS = {
    'average': lambda: [EMA(.9), KeepBest(), EarlyStop(9)],
    'swa': lambda: [SWA(.5), MixedPrecision('bf16'), KeepBest('accuracy'), Freeze('in_c', 2)],
}
SCHEDULES = {'average': 'warmup_cosine', 'swa': {'ramp': {'of': 150}}}
# what a training imports, loaded once and not in every process
MODULES = [
    'torch._dynamo', 'asc.data.corpus', 'asc.data.splits', 'asc.data.store',
    'asc.model.classifier', 'asc.train.averages', 'asc.train.finetune', 'asc.train.learner',
    'asc.train.precision', 'asc.train.resume', 'asc.train.targets',
]


def train(corpus, store, folder, options, resume, report):
    "A small training with everything random that there is: 20 training and 10 validation clips"
    torch.set_num_threads(1)
    resuming = resume and (folder/'checkpoint.pt').exists()
    # what is resumed must not depend on the seed
    seed_everything(int(time.time()) if resuming else 3)
    learn = small_learner(load_corpus(corpus), store, folder, options, resume)
    report('begins')
    with open(os.devnull, 'w') as nowhere, redirect_stdout(nowhere), learn.no_bar():
        fit(learn, EPOCHS, 1e-2, schedule=SCHEDULES[options])
    torch.save(learn.model.state_dict(), folder/'final.pt')
    report('ends')


def small_learner(corpus, store, folder, options, resume):
    "A Learner with a small CP-Mobile, whose checkpoint and history are in the folder"
    store = pack(corpus, store, progress=False)
    rows = read_split(corpus, 100).iloc[::3]
    train = ClipData(store, rows[:20], corpus.scenes, corpus.devices, crop='windows')
    valid = ClipData(store, rows[-10:], corpus.scenes, corpus.devices)
    model = create_classifier(
        pipeline=STEPS, rate=store.rate, scenes=corpus.scenes, backbone_args=dict(base=8)
    )
    checkpoint = Checkpoint(folder, dict(options=options), resume=resume)
    cbs = [MixUpLoss(), *OPTIONS[options](), checkpoint]
    dls = make_dls(train, valid, 8, device='cpu')
    return create_learner(dls, model, history=folder/'history.csv', cbs=cbs)


def train_and_report(corpus, store, folder, options, resume, pipe):
    "What another process does: train, and say through the pipe when it begins and ends"
    train(corpus, store, folder, options, resume, pipe.send)


def die_while_writing(corpus, store, folder, options, resume, pipe):
    "As `train_and_report`, but killed in the middle of writing the third checkpoint"
    write_bytes = Path.write_bytes
    count = iter(range(100))

    def write_or_die(self, data):
        if next(count) < 2: return write_bytes(self, data)
        write_bytes(self, data[:5000])
        os.kill(os.getpid(), signal.SIGKILL)
    Path.write_bytes = write_or_die
    train(corpus, store, folder, options, resume, pipe.send)


@pytest.fixture(scope='module')
def start(packed, tmp_path_factory):
    "start(folder, options, resume) -> a process that trains, and the pipe it reports through"
    context = mp.get_context('forkserver')
    context.set_forkserver_preload(MODULES)
    corpus, store = packed

    def start(folder, options, resume=False, target=train_and_report):
        folder.mkdir(exist_ok=True)
        ours, theirs = context.Pipe()
        args = corpus.dir, store.folder.parent, folder, options, resume, theirs
        process = context.Process(target=target, args=args)
        process.start()
        theirs.close()
        return process, ours
    return start


@pytest.fixture(scope='module')
def undisturbed(start, tmp_path_factory):
    "undisturbed(options) -> the folder of a training nobody touched, and how long it took"
    finished = {}

    def train_once(options):
        if options not in finished:
            folder = tmp_path_factory.mktemp('undisturbed')
            process, pipe = start(folder, options)
            assert pipe.recv() == 'begins'
            begin = time.time()
            assert pipe.recv() == 'ends'
            finished[options] = folder, time.time() - begin
            process.join()
        return finished[options]
    return train_once


def check_same(a, b):
    "Two folders hold the same weights and history to the last digit, and nothing half-written"
    x, y = (torch.load(folder/'final.pt', weights_only=True) for folder in (a, b))
    assert x.keys() == y.keys()
    for name in x: assert torch.equal(x[name], y[name]), name
    assert (a/'history.csv').read_bytes() == (b/'history.csv').read_bytes()
    assert not [p.name for p in b.iterdir() if p.name.endswith('.part')]


def finish(start, folder, options):
    "Resume a training and let it end"
    process, _ = start(folder, options, resume=True)
    process.join()
    assert process.exitcode == 0


def start_and_kill(start, folder, options, seconds, resume=False):
    "Start a training and kill it these seconds after it has begun; its exit code"
    process, pipe = start(folder, options, resume=resume)
    assert pipe.recv() == 'begins'
    time.sleep(seconds)
    process.kill()
    process.join()
    return process.exitcode


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    "When a training is resumed, and only the files that a training writes"
    for name in ('history.csv', 'checkpoint.pt', 'train.ipynb'):
        (tmp_path/f'.{name}.1.part').write_text('half')
    Checkpoint(tmp_path)
    # another training may be at work
    assert len(list(tmp_path.iterdir())) == 3
    Checkpoint(tmp_path, resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ['.train.ipynb.1.part']


@pytest.mark.parametrize('options', OPTIONS)
def test_killed_at_random_moments(options, start, undisturbed, tmp_path):
    "Five kills for each set of options, ten in all, at moments drawn over the whole training"
    reference, seconds = undisturbed(options)
    rng = random.Random()
    kills = 0
    for trial in range(20):
        if kills == 5: break
        folder = tmp_path/str(trial)
        code = start_and_kill(start, folder, options, rng.uniform(0, seconds))
        # now and then a training is quicker than the first one
        if code == 0: continue
        kills += code == -signal.SIGKILL
        finish(start, folder, options)
        check_same(reference, folder)
    assert kills == 5


def test_killed_again_and_again(start, undisturbed, tmp_path):
    "The same training killed at every stage of it, until it is through"
    reference, seconds = undisturbed('average')
    for _ in range(30):
        moment = random.uniform(.3, .6) * seconds
        if start_and_kill(start, tmp_path, 'average', moment, resume=True) == 0: break
    finish(start, tmp_path, 'average')
    check_same(reference, tmp_path)


def test_killed_while_writing(start, undisturbed, tmp_path):
    "Half a checkpoint lies there; the whole one before it counts"
    reference, _ = undisturbed('average')
    process, _ = start(tmp_path, 'average', target=die_while_writing)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(tmp_path.glob('.checkpoint.pt.*.part'))
    assert read_checkpoint(tmp_path/'checkpoint.pt')['epoch'] == 2
    finish(start, tmp_path, 'average')
    check_same(reference, tmp_path)


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
