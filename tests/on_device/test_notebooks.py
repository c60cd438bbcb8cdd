"""Run notebooks end to end in kernels of their own, which find the device by themselves and choose it."""
import json

import pytest

import launch
from asc.core import read_json
from asc.load import open_model
from entries import LABEL, ME

SMALL = dict(backbone_args=dict(base=8, blocks=[1, 1, 1], strides={}), epochs=1, bs=32)


@pytest.fixture(scope='session')
def trained(papermill, short_test, tmp_path_factory):
    "The folder of a run, the device not named"
    folder = tmp_path_factory.mktemp('runs')/'run'
    result = launch.check(papermill('train', data_dir=short_test, out=folder, **SMALL))
    assert 'device: emulated:0 (Emulated accelerator)' in result.stderr
    return folder


def test_train(trained):
    "What computed is in the record, by name; the model is opened anywhere"
    record = read_json(trained/'params.json')
    assert 'Emulated accelerator' in json.dumps(record)
    assert open_model(trained).kind == 'float'
    assert read_json(trained/'metrics.json')['log_loss'] > 0


def test_evaluate(trained, papermill, short_test, tmp_path):
    "On the device by name, and on the CPU: the same figures"
    found = []
    for device in ('emulated', 'cpu'):
        out = tmp_path/device
        launch.check(papermill('evaluate', model=trained, data_dir=short_test, out=out, device=device))
        found.append(read_json(out/'metrics.json')['log_loss'])
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert found[0] == pytest.approx(read_json(trained/'metrics.json')['log_loss'], abs=1e-5)


def test_quantize(trained, papermill, short_test, tmp_path):
    few = dict(calibration=16, parity_clips=16, runs_timed=5)
    launch.check(papermill('quantize', source=trained, data_dir=short_test, out=tmp_path/'quantized', **few))
    assert {path.name for path in (tmp_path/'quantized').iterdir()} >= {'ptq', 'qat'}


def test_submit(trained, papermill, short_test, tmp_path):
    names = dict(label=LABEL, name='Example', abbreviation='ex', authors=[ME])
    launch.check(papermill('submit', runs=[str(trained)], data_dir=short_test, out=tmp_path/'entry', **names))
    assert list(tmp_path.rglob(f'{LABEL}.output*.csv'))
