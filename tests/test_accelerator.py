"""What runs on an accelerator, shown on an emulated one: each file of `tests/on_device` in a process of its own."""
import sys
from pathlib import Path

import launch
import pytest

FILES = sorted(Path(__file__).with_name('on_device').glob('test_*.py'))


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_on_device(path):
    "The emulated device refuses float64, as Apple's do"
    result = launch.run(
        sys.executable, '-m', 'pytest', '-q', '-p', 'no:xdist', '-p', 'no:cacheprovider', path,
        ASC_ON_DEVICE='1', EMULATED_REFUSES='float64', PYTEST_ADDOPTS='', timeout=1200)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
