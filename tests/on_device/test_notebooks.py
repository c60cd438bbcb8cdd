"""Run notebooks end to end in kernels of their own, which find the device by themselves and choose it."""
import pytest

import launch
from asc.core import read_json
from entries import LABEL, ME


def test_evaluate(run, papermill, short_test, tmp_path):
    "On the CPU, of what the device had trained and tested: the same figures"
    launch.check(papermill('evaluate', model=run[0], data_dir=short_test, out=tmp_path/'out', device='cpu'))
    there, here = (read_json(folder/'metrics.json')['log_loss'] for folder in (run[0], tmp_path/'out'))
    assert there == pytest.approx(here, abs=1e-5)


def test_quantize(run, papermill, short_test, tmp_path):
    few = dict(calibration=16, parity_clips=16, runs_timed=5)
    launch.check(papermill('quantize', source=run[0], data_dir=short_test, out=tmp_path/'quantized', **few))
    assert {path.name for path in (tmp_path/'quantized').iterdir()} >= {'ptq', 'qat'}


def test_submit(run, papermill, short_test, tmp_path):
    names = dict(label=LABEL, name='Example', abbreviation='ex', authors=[ME])
    launch.check(papermill('submit', runs=[str(run[0])], data_dir=short_test, out=tmp_path/'entry', **names))
    assert list(tmp_path.rglob(f'{LABEL}.output*.csv'))
