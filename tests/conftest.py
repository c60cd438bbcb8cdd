"""What every test may use: the synthetic corpus, a run on it, quick kernels, and the real data where they are."""
import fcntl
import os
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

import damage as damages
import launch
from asc.data.corpus import load_corpus
from asc.data.store import pack
from asc.data.synthetic import make_synthetic
from launch import ROOT

# they need the emulated device, which is there for a whole process
collect_ignore = [] if 'ASC_ON_DEVICE' in os.environ else ['on_device']

# the list of own code that may run: that of nobody, and of this process
CONSENT = tempfile.TemporaryDirectory()
os.environ['ASC_TRUST'] = f'{CONSENT.name}/trusted.json'


@pytest.fixture(scope='session')
def root():
    "The folder of the project"
    return ROOT


@pytest.fixture(scope='session')
def shared():
    "The folder of real data beside the checkout, never part of the project; tests that need it skip without it"
    for folder in (os.environ.get('ASC_SHARED'), ROOT.parent/'shared', ROOT/'shared'):
        if folder and (Path(folder)/'data').is_dir(): return Path(folder)
    pytest.skip('no real data here (set ASC_SHARED to a folder that holds data/)')


@pytest.fixture(scope='session')
def shelf(tmp_path_factory):
    "The folder of what the processes of a session share, those that a test starts with ASC_SHELF, too"
    if 'ASC_SHELF' in os.environ: return Path(os.environ['ASC_SHELF'])
    base = tmp_path_factory.getbasetemp()
    return base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base


@pytest.fixture(scope='session')
def once(shelf):
    "once(name, make): a folder that `make(folder)` fills in the first process that asks; the others wait and use it"
    def once(name, make):
        with open(shelf/f'{name}.lock', 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shelf/f'{name}.made').exists():
                make(shelf/name)
                (shelf/f'{name}.made').touch()
        return shelf/name
    return once


@pytest.fixture(scope='session')
def synthetic(once):
    "The folder of a small synthetic corpus: 2 training recordings and one test segment a scene"
    return once('synthetic-small', partial(make_synthetic, train=2, progress=False))


@pytest.fixture(scope='session')
def short_test(once, synthetic):
    "The synthetic corpus with a test of 90 clips instead of 900: one snippet of each recording"
    return once('short-synthetic', partial(copy_with_short_test, synthetic))


def copy_with_short_test(corpus, folder):
    "Copy a corpus, and keep the snippet 0 of each recording in its test lists; sounds are linked"
    shutil.copytree(corpus, folder, ignore=shutil.ignore_patterns('audio'))
    (folder/'audio').symlink_to(corpus/'audio')
    for name in ('test.csv', 'evaluation_setup/fold1_test.csv', 'evaluation_setup/fold1_evaluate.csv'):
        path = folder/name
        rows = pd.read_csv(path, sep='\t')
        later = rows.filename.str.contains(r'-[1-9]-\w+\.wav$')
        rows[~later].to_csv(path, sep='\t', index=False)


@pytest.fixture(scope='session')
def packed(once, synthetic):
    "The synthetic corpus and its store"
    corpus = load_corpus(synthetic)
    folder = once('store', lambda folder: pack(corpus, folder, progress=False))
    return corpus, pack(corpus, folder, progress=False)


@pytest.fixture(scope='session')
def finished(once, synthetic):
    "A run of train.ipynb on the synthetic corpus: an epoch, started with a pipe as standard input"
    def train(folder):
        "Train into folder/run, and keep what the terminal showed"
        options = dict(data_dir=synthetic, epochs=1, bs=32, out=folder/'run')
        result = launch.papermill('train', stdin=subprocess.PIPE, **options)
        (folder/'terminal.txt').write_text(launch.check(result).stderr)
    return once('finished', train)/'run'


@pytest.fixture(scope='session')
def kernels(tmp_path_factory):
    "A Jupyter path whose kernels start from a process that has the large libraries loaded"
    with launch.quick_kernels(tmp_path_factory.mktemp('kernels')) as folder: yield folder


@pytest.fixture(scope='session')
def papermill(kernels):
    "`launch.papermill` with kernels that start at once"
    return partial(launch.papermill, kernels=kernels)


@pytest.fixture
def damage(record_property):
    "damage(kind, call, names, right): see `damage.outcome`; the end of the session counts the kinds"
    def damage(kind, call, names=(), right=None):
        record_property('damage', kind)
        record_property('ended', damages.outcome(call, names, right))
    return damage


def pytest_collection_modifyitems(items):
    "The longest test begins first: what is left to the end is left to one process alone"
    items.sort(key=lambda item: item.name != 'test_every_box_runs_as_printed')


def pytest_terminal_summary(terminalreporter):
    "How the damaged inputs of this session ended"
    reports = [report for end in ('passed', 'failed') for report in terminalreporter.stats.get(end, [])]
    damaged = [report for report in reports if dict(report.user_properties).get('damage')]
    if not damaged: return
    terminalreporter.section('damaged inputs')
    for line in damages.table(damaged): terminalreporter.write_line(line)


@pytest.fixture
def one_thread():
    "For tests of many small tensors, where torch's threads only wait for each other"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
