"""The device of these tests: the emulated one, in a process of their own, which `tests/test_accelerator.py` starts.

By hand: `ASC_ON_DEVICE=1 python -m pytest tests/on_device`."""
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))
import emulated as device


@pytest.fixture
def emulated():
    "The emulated accelerator, its counters at zero, nothing refused but what the environment names"
    refused = set(device.refused)
    device.reset()
    yield device
    device.reset()
    device.refused.clear()
    device.refused.update(refused)
    device.memory.capacity = None
