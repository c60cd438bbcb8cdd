"""A finished run out of the lab, as a user takes it there: asked about files, and exported."""
import json
import sys

import pandas as pd
import pytest
import torch

import asc
from asc.core import InputError
import launch

ASC = launch.BIN/'asc'


@pytest.fixture
def trained(finished):
    "The folder of a finished run, as a parameter of a notebook has it"
    return str(finished)


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
