"""A finished run out of the lab, as a user takes it there: explored, heard, made device-aware, handed in."""
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch

import asc
from asc.core import InputError
from asc.run.process import run_notebook
from asc.load import open_model
import launch

pytestmark = pytest.mark.usefixtures('quick_kernels')
ASC = launch.BIN/'asc'


@pytest.fixture
def trained(finished):
    "The folder of a finished run, as a parameter of a notebook has it"
    return str(finished)


@pytest.fixture(scope='module')
def tuned(finished, quick_kernels, tmp_path_factory):
    "A model for each device, of norms only"
    out = tmp_path_factory.mktemp('lab')/'devices'
    return run_notebook(out, 'devices', folder=str(finished), parts=['bn'], epochs=1)


def test_explore(trained, synthetic, tmp_path):
    "Pictures of the data and of the run, its hardest clips, and a map of embeddings"
    options = dict(folder=trained, data_dir=str(synthetic), clips=10, points=90)
    run = run_notebook(tmp_path/'explore', 'explore', **options)
    assert {p.name for p in Path(run['dir']).iterdir()} >= {
        'counts.png', 'device_spectra.png', 'scenes.png', 'hardest.png', 'embeddings.png',
        'hardest.csv', 'embeddings.csv',
    }
    worst = pd.read_csv(tmp_path/'explore/hardest.csv')
    assert len(worst) == 5
    assert worst.p_true.is_monotonic_increasing
    assert len(pd.read_csv(tmp_path/'explore/embeddings.csv')) == 90


def test_device_models(tuned):
    "Devices that trained have norms of their own, within the budget, in a small file beside the model"
    folder = Path(tuned['dir'])
    gains = pd.read_csv(folder/'gains.csv', index_col=0)
    # a stranger keeps the general model
    assert gains.loc['s6', 'general %'] == gains.loc['s6', 'bn %']
    assert gains.loc['s6', 'clips'] == 0
    assert {'general_metrics', 'macro_accuracy'} <= set(tuned['metrics'])
    sizes = {name: (folder/f'{name}.safetensors').stat().st_size for name in ('devices', 'model')}
    assert sizes['devices'] < sizes['model']
    budget = pd.read_csv(folder/'budget.csv', index_col=0)
    assert budget.passed.all()
    assert 'unknown' in budget.index
    model = open_model(folder)
    assert model.devices == ['a', 'b', 'c', 's1', 's2', 's3', 's4', 's5', 's6']


def test_submission_of_device_models(tuned, synthetic, tmp_path):
    "The whole of an entry of 2025: answers, meta file with both results, and a package that works alone"
    options = dict(data_dir=str(synthetic), label='Curie_UP_task1_1', year='2025')
    run_notebook(tmp_path/'submit', 'submit', runs=[tuned['dir']], **options)
    for problem in json.loads((tmp_path/'submit/params.json').read_text())['problems']:
        assert 'placeholder' in problem or 'author' in problem or 'e-mail' in problem
    meta = (tmp_path/'submit/Curie_UP_task1_1/Curie_UP_task1_1.meta.yaml').read_text()
    assert 'general:' in meta
    assert 'device_specific:' in meta
    table = pd.read_csv(tmp_path/'submit/devices.csv', header=[0, 1], index_col=0)
    assert (table['system 1'].macs == 29419156).all()
    assert {'a', 's10', 'unknown'} <= set(table.index)
    package = tmp_path/'submit/Curie_UP_task1_package'
    pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-build-isolation']
    result = launch.run(*pip, '--target', tmp_path/'site', package)
    if 'No module named pip' in result.stderr or find_spec('setuptools') is None:
        pytest.skip('no pip or setuptools in this environment')
    launch.check(result)
    assert (tmp_path/'site/Curie_UP_task1/ckpts/Curie_UP_task1_1/devices.safetensors').is_file()


def test_asc_predict(trained, synthetic, tmp_path):
    "Files in, CSV out, and nothing else on the standard output; exit codes a script can trust"
    sounds = sorted((synthetic/'audio').glob('*.wav'))[:3]
    result = launch.check(launch.run(ASC, 'predict', trained, *sounds, '--format', 'json'))
    rows = json.loads(result.stdout)
    assert [row['file'] for row in rows] == [str(s) for s in sounds]
    assert abs(sum(rows[0][scene] for scene in asc.SCENES) - 1) < 1e-4
    missing = launch.run(ASC, 'predict', tmp_path/'nowhere', *sounds)
    assert missing.returncode
    assert 'Traceback' not in missing.stderr
    assert 'nowhere' in missing.stderr
    nothing = launch.run(ASC, 'predict', trained)
    assert nothing.returncode
    assert 'name sound files or folders' in nothing.stderr


def test_predictions_are_those_of_the_run(trained, synthetic):
    "asc.predict on files of the corpus gives the probabilities that the run wrote"
    table = pd.read_csv(f'{trained}/predictions.csv').set_index('filename').iloc[::90]
    scenes = list(table.columns[3:])
    answers = asc.predict(trained, [synthetic/name for name in table.index])
    assert answers[scenes].to_numpy() == pytest.approx(table[scenes].to_numpy(), abs=1e-4)


def test_exported_file_predicts_the_same(trained, synthetic, tmp_path):
    "A run and its ONNX file agree; the file refuses windows of another length"
    pytest.importorskip('onnxruntime')
    from asc.export.onnx import export_model
    export_model(asc.load_model(trained), tmp_path/'model.onnx')
    sounds = sorted((synthetic/'audio').glob('*.wav'))[:4]
    one = asc.predict(trained, sounds)
    other = asc.predict(tmp_path/'model.onnx', sounds)
    assert one.scene.tolist() == other.scene.tolist()
    scenes = list(asc.SCENES)
    assert other[scenes].to_numpy() == pytest.approx(one[scenes].to_numpy(), abs=1e-3)
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
    ours, theirs = asc.open_model(path, 44100).network, asc.load_published(path)
    for wav in sorted((shared/'data/tau-samples').glob('*.wav')):
        x, _ = asc.frontend.logmel.load_sound(wav)
        for device in ('a', 's3', 'unknown'):
            code = ours.devices.index(device) if device in ours.devices else -1
            with torch.no_grad():
                answer = ours(x, torch.tensor([code])).softmax(1)[0].tolist()
            # the published one computes in half precision
            expected = theirs.predict([wav], device).iloc[0, 2:].tolist()
            assert answer == pytest.approx(expected, abs=3e-3)
