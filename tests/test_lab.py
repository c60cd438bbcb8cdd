"""A finished run out of the lab, as a user takes it there: explored, heard, made device-aware, handed in."""
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch

import asc
from asc.core import InputError
from asc.model.per_device import from_published
from asc.run.process import run_notebook
from asc.use.predict import open_model

from conftest import ROOT

ASC = [str(Path(sys.executable).with_name('asc'))]
SMALL = dict(backbone='cp_mobile_24', epochs=1, bs=32)


@pytest.fixture(scope='module')
def trained(synthetic, tmp_path_factory):
    return run_notebook(
        tmp_path_factory.mktemp('lab')/'run', data_dir=str(synthetic), **SMALL
    )['dir']


@pytest.fixture(scope='module')
def tuned(trained, tmp_path_factory):
    "A model for each device, of norms only"
    return run_notebook(
        tmp_path_factory.mktemp('lab')/'devices',
        'devices',
        folder=trained,
        parts=['bn'],
        epochs=1,
    )


def test_explore(trained, synthetic, tmp_path):
    run = run_notebook(
        tmp_path/'explore', 'explore', folder=trained, data_dir=str(synthetic), clips=10,
        points=90,
    )
    have = {p.name for p in Path(run['dir']).iterdir()}
    assert have >= {
        'counts.png', 'device_spectra.png', 'scenes.png', 'hardest.png', 'embeddings.png',
        'hardest.csv', 'embeddings.csv',
    }
    worst = pd.read_csv(tmp_path/'explore/hardest.csv')
    assert len(worst) == 5 and worst.p_true.is_monotonic_increasing
    assert len(pd.read_csv(tmp_path/'explore/embeddings.csv')) == 90


def test_device_models(trained, tuned):
    folder = Path(tuned['dir'])
    gains = pd.read_csv(folder/'gains.csv', index_col=0)
    # a stranger keeps the general model
    assert gains.loc['s6', 'general %'] == gains.loc['s6', 'bn %']
    assert gains.loc['s6', 'clips'] == 0
    assert {'general_metrics', 'macro_accuracy'} <= set(tuned['metrics'])
    assert (folder/'devices.safetensors').stat().st_size < (
        folder/'model.safetensors'
    ).stat().st_size
    budget = pd.read_csv(folder/'budget.csv', index_col=0)
    assert budget.passed.all() and 'unknown' in budget.index
    model = open_model(folder)
    assert model.devices == ['a', 'b', 'c', 's1', 's2', 's3', 's4', 's5', 's6']


def test_submission_of_device_models(tuned, synthetic, tmp_path):
    "The whole of an entry of 2025: answers, meta file with both results, and a package that works alone"
    run = run_notebook(
        tmp_path/'submit', 'submit', runs=[tuned['dir']], data_dir=str(synthetic),
        label='Curie_UP_task1_1', year='2025',
    )
    assert all(
        'placeholder' in p or 'author' in p or 'e-mail' in p
        for p in json.loads((tmp_path/'submit/params.json').read_text())['problems']
    )
    meta = (tmp_path/'submit/Curie_UP_task1_1/Curie_UP_task1_1.meta.yaml').read_text()
    assert 'general:' in meta and 'device_specific:' in meta
    table = pd.read_csv(tmp_path/'submit/devices.csv', header=[0, 1], index_col=0)
    assert (table['system 1'].macs == 29419156).all()
    assert {'a', 's10', 'unknown'} <= set(table.index)
    package = tmp_path/'submit/Curie_UP_task1_package'
    made = subprocess.run(
        [
            sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps',
            '--no-build-isolation', '--target', tmp_path/'site', package,
        ],
        capture_output=True,
        text=True,
    )
    if 'No module named pip' in made.stderr or find_spec('setuptools') is None:
        pytest.skip('no pip or setuptools in this environment')
    assert made.returncode == 0, made.stderr
    assert (tmp_path/'site/Curie_UP_task1/ckpts/Curie_UP_task1_1/devices.safetensors').is_file()


def test_asc_predict(trained, synthetic, tmp_path):
    "Files in, CSV out, and nothing else on the standard output; exit codes a script can trust"
    sounds = sorted((synthetic/'audio').glob('*.wav'))[:3]
    r = subprocess.run(
        [*ASC, 'predict', trained, *sounds, '--format', 'json'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, r.stderr
    rows = json.loads(r.stdout)
    assert [x['file'] for x in rows] == [str(s) for s in sounds]
    assert abs(sum(v for k, v in rows[0].items() if k in asc.SCENES) - 1) < 1e-4
    r = subprocess.run(
        [*ASC, 'predict', tmp_path/'nowhere', *sounds], cwd=ROOT, capture_output=True, text=True
    )
    assert r.returncode
    assert 'Traceback' not in r.stderr
    assert 'nowhere' in r.stderr
    r = subprocess.run([*ASC, 'predict', trained], cwd=ROOT, capture_output=True, text=True)
    assert r.returncode and 'name sound files or folders' in r.stderr


def test_predictions_are_those_of_the_run(trained, synthetic):
    preds = pd.read_csv(f'{trained}/predictions.csv').set_index('filename').iloc[::90]
    df = asc.predict(trained, [synthetic/f for f in preds.index])
    assert df[list(preds.columns[3:])].to_numpy() == pytest.approx(
        preds.iloc[:, 3:].to_numpy(), abs=1e-4
    )


def test_exported_file_predicts_the_same(trained, synthetic, tmp_path):
    pytest.importorskip('onnxruntime')
    from asc.export.onnx import export_model
    export_model(asc.load_model(trained), tmp_path/'model.onnx')
    sounds = sorted((synthetic/'audio').glob('*.wav'))[:4]
    one = asc.predict(trained, sounds)
    other = asc.predict(tmp_path/'model.onnx', sounds)
    assert one.scene.tolist() == other.scene.tolist()
    assert other[list(asc.SCENES)].to_numpy() == pytest.approx(
        one[list(asc.SCENES)].to_numpy(), abs=1e-3
    )
    with pytest.raises(InputError, match='was exported for 1 s'):
        asc.predict(tmp_path/'model.onnx', sounds, window=2.)


def test_microphone_without_one(monkeypatch):
    "A missing library or input ends in a sentence"
    monkeypatch.setitem(sys.modules, 'sounddevice', None)
    with pytest.raises(InputError, match=r"asc\[mic\]"):
        next(iter(asc.use.predict.microphone()))


def test_the_published_devices_are_ours(shared):
    "The 2025 winner as a model of ours says what the published one says, for known and unknown devices"
    path = shared/'data/weights/dcase2025_karasin_jku_sys4.ckpt'
    ours, theirs = from_published(path), asc.load_published(path)
    for wav in sorted((shared/'data/tau-samples').glob('*.wav')):
        x, rate = asc.frontend.logmel.load_sound(wav)
        for device in ('a', 's3', 'unknown'):
            code = torch.tensor([ours.devices.index(device) if device in ours.devices else -1])
            with torch.no_grad(): mine = ours(x, code).softmax(1)[0]
            # theirs in half precision
            assert mine.tolist() == pytest.approx(
                theirs.predict([wav], device).iloc[0, 2:].tolist(), abs=3e-3
            )
