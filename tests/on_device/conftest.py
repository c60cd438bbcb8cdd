"""The device of these tests: the emulated one, in a process of their own, which `tests/test_accelerator.py` starts.

By hand: `ASC_ON_DEVICE=1 python -m pytest tests/on_device`."""
import os
import sys
from functools import partial
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))
import emulated as device
import launch


@pytest.fixture
def emulated():
    "The emulated accelerator, its counters at zero, nothing refused but what the environment names"
    refused = set(device.refused)
    device.reset()
    yield device
    device.reset()
    device.refused.clear()
    device.refused.update(refused)
    device.absent.clear()
    device.memory.capacity, device.memory.refused = None, 0


@pytest.fixture(scope='session')
def announced(tmp_path_factory):
    "Variables of a process in which PyTorch finds the emulated device by itself, for `launch.run`"
    folder = tmp_path_factory.mktemp('announced')
    device.entry_point(folder)
    places = [folder, launch.ROOT/'tests', launch.ROOT, *filter(None, [os.environ.get('PYTHONPATH')])]
    return dict(PYTHONPATH=os.pathsep.join(map(str, places)))


@pytest.fixture(scope='session')
def papermill(announced, tmp_path_factory):
    "`launch.papermill` on the emulated device, in processes and kernels of its own"
    with launch.quick_kernels(tmp_path_factory.mktemp('kernels'), **announced) as kernels:
        yield partial(launch.papermill, kernels=kernels, variables=announced)


@pytest.fixture(scope='session')
def asc(announced):
    "asc(*words): the command, on the emulated device"
    return lambda *words: launch.run(launch.BIN/'asc', *words, **announced)


@pytest.fixture(scope='session')
def run(once, papermill, short_test):
    "The folder of a run of train.ipynb on the device, which is not named, and what the terminal showed"
    small = dict(epochs=1, bs=32, subset=5, backbone_args=dict(base=8, blocks=[1, 1, 1], strides={}), nb_aug=2)

    def train(folder):
        shown = launch.check(papermill('train', data_dir=short_test, out=folder/'run', **small)).stderr
        (folder/'terminal.txt').write_text(shown)
    folder = once('emulated-run', train)
    return folder/'run', (folder/'terminal.txt').read_text()
