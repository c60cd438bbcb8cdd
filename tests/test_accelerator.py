"""What runs on an accelerator, shown on an emulated one: each file of `tests/on_device` in a process of its own.

This shows that nothing mixes devices, that nothing asks for what a device lacks, that the results are those of the CPU,
and where the host waits. It does not show what only a real device has: kernels that do not exist or round differently,
work that is done later than it is asked for (an event or a pinned copy used too early), several devices, a graph that
is captured, the speed, and an allocator that breaks memory into pieces. `make gpu-check` is for those."""
import sys
from pathlib import Path

import launch
import pytest

FILES = sorted(Path(__file__).with_name('on_device').glob('test_*.py'))


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_on_device(path, shelf):
    "The emulated device refuses float64, as Apple's do"
    result = launch.run(
        sys.executable, '-m', 'pytest', '-q', '-p', 'no:xdist', '-p', 'no:cacheprovider', path,
        ASC_ON_DEVICE='1', ASC_SHELF=str(shelf), EMULATED_REFUSES='float64', PYTEST_ADDOPTS='', timeout=1200)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
