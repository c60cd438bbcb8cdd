"""What every test may use: the synthetic corpus, and the real data of ../shared where it is (never part of the project)."""
import os
from pathlib import Path

import pytest
import torch

from asc.data.synthetic import make_synthetic

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='session')
def root(): return ROOT


@pytest.fixture(scope='session')
def shared():
    "The folder of real data beside the checkout; tests that need it skip without it"
    for folder in (os.environ.get('ASC_SHARED'), ROOT.parent/'shared', ROOT/'shared'):
        if folder and (Path(folder)/'data').is_dir(): return Path(folder)
    pytest.skip('no real data here (set ASC_SHARED to a folder that holds data/)')


@pytest.fixture(scope='session')
def synthetic(tmp_path_factory):
    "A small synthetic corpus: 2 training recordings and one test segment a scene"
    return make_synthetic(tmp_path_factory.mktemp('corpus')/'synthetic-small', train=2, progress=False)


@pytest.fixture
def one_thread():
    "For tests of many small tensors, where torch's threads only wait for each other"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)
