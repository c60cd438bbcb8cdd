"""What is asked of a model that its owner has moved to the device: answers, figures, files, pictures."""
import io
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch

from asc.backbone.weights import weights_fingerprint
from asc.export.card import parity
from asc.export.targets import export_targets, export_to
from asc.load import open_model
from asc.model.classifier import create_classifier, load_model, save_model
from asc.score.metrics import metrics
from asc.size.cost import complexity
from asc.size.qdq import calibrate, calibration_batches, quantised_classifier
from asc.teach.ensemble import ensemble
from asc.train.learner import predictions
from asc.train.melcache import MelCache
from asc.use.answers import predict_teacher
from asc.use.embedding import embeddings
from asc.use.microphones import compare_devices, explain, probabilities_over_time
from asc.use.predict import predict, predict_stream
from emulated import DEVICE
from trainings import SMALL_CP, few_clips
from twins import PLACES, assert_same, twice


@pytest.fixture(scope='module')
def data(packed): return few_clips(packed, 8)


@pytest.fixture(scope='module')
def clips(data): return data.clips(data.valid)


@pytest.fixture(scope='module')
def sounds(packed, data): return [str(packed[0].dir/name) for name in data.valid.filename]


@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    "The folder of a classifier"
    folder = tmp_path_factory.mktemp('run')/'run'
    torch.manual_seed(0)
    model = create_classifier(rate=data.store.rate, scenes=data.names, **SMALL_CP)
    with torch.no_grad(): model.train()(*data.clips(data.train).batch(range(8))[:2])
    save_model(model, folder)
    return folder


@pytest.fixture
def there(run):
    "there(place): what was opened, moved by its owner"
    return lambda place: load_model(run).to(place)


def same_tables(ours, theirs):
    "Tables that are equal to 1e-5"
    pd.testing.assert_frame_equal(ours, theirs, rtol=0, atol=1e-5)


def test_waves(there, clips):
    "Waves on the device, and on the CPU by way of what `open_model` makes of it"
    wave, device, _ = clips.batch(range(4))
    assert_same(*twice(lambda place: there(place)(wave.to(place), device.to(place))))
    opened = open_model(there(DEVICE))
    assert torch.allclose(opened.logits(wave, device).cpu(), there('cpu')(wave), atol=1e-5)
    assert torch.allclose(opened(wave.to(DEVICE)).cpu(), there('cpu')(wave).softmax(1), atol=1e-5)


def test_predictions(there, clips):
    ours, theirs = twice(lambda place: predictions(there(place), clips, bs=3))
    same_tables(ours, theirs)
    same_tables(*(pd.json_normalize(metrics(table, clips.scenes)) for table in (ours, theirs)))


def test_sounds(there, sounds):
    "Files, samples, a stream, windows over time, and what the head is given"
    same_tables(*twice(lambda place: predict(there(place), sounds, windows=True, hop=.5)))
    same_tables(*twice(lambda place: embeddings(there(place), sounds)))
    blocks = [np.zeros(20000, np.float32), np.ones(60000, np.float32) * .1]
    ours, theirs = (list(predict_stream(there(place), blocks, 44100)) for place in PLACES)
    for (second, one), (_, other) in zip(ours, theirs, strict=True): assert one == pytest.approx(other, abs=1e-5)
    wave = .1 * torch.randn(1, 66150)
    same_tables(*twice(lambda place: probabilities_over_time(there(place), wave, 44100)))


def test_opened_for_a_device(run, sounds):
    "`open_model(…).to('')` answers on the best device there is"
    model = open_model(run).to()
    assert next(model.network.parameters()).device == DEVICE
    same_tables(predict(run, sounds), predict(model, sounds))


def test_embeddings_of_clips(there, clips):
    same_tables(*twice(lambda place: embeddings(there(place), clips)))


def test_a_sound_explained(there):
    "What the page of the demo and its comparison of microphones say"
    wave = .1 * torch.randn(1, 66150)
    ours, theirs = twice(lambda place: explain(there(place), wave, 44100))
    assert ours.words() == theirs.words()
    ours, theirs = twice(lambda place: compare_devices({'one': there(place)}, wave, 44100))
    assert repr(ours) == repr(theirs)


def test_answers_in_a_file(there, data, tmp_path):
    "A teacher's file of clips and of windows; two of them together"
    def teach(place):
        window = dict(window=1., hop=.5)
        tables = [predict_teacher(there(place), data.store, data.valid, data.names, data.devices, **more)
                  for more in ({}, window)]
        return [torch.as_tensor(table.logits).float() for table in tables], ensemble([tables[0]] * 2).logits.float()
    ours, theirs = twice(teach)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)  # kept in 16 bits


def test_saved(there, run, tmp_path):
    "The same weights, wherever it lived; a state of torch's is read anywhere"
    save_model(there(DEVICE), tmp_path)
    assert open_model(tmp_path).fingerprint == open_model(run).fingerprint
    assert weights_fingerprint(there(DEVICE).backbone) == weights_fingerprint(there('cpu').backbone)
    file = io.BytesIO()
    torch.save(there(DEVICE).state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True, map_location='cpu')
    assert_same(there('cpu').state_dict(), {name: value.to(DEVICE) for name, value in state.items()})


def test_copied(there, clips):
    "Copies and halves"
    wave = clips.batch(range(2))[0].to(DEVICE)
    model = there(DEVICE)
    assert torch.equal(deepcopy(model)(wave).cpu(), model(wave).cpu())
    half = deepcopy(model)
    half.backbone.half()
    with torch.no_grad(): mel = half.pipeline(wave)
    assert torch.allclose(half.backbone(mel.half()).float().cpu(), model(wave).cpu(), atol=2e-2)


def test_figures(there):
    ours, theirs = (complexity(there(place).backbone, (1, 256, 65)) for place in PLACES)
    assert ours.layers.equals(theirs.layers)
    same = 'params', 'nonzero', 'bytes', 'buffers', 'macs', 'ram', 'ram_at'
    assert {key: ours.honest[key] for key in same} == {key: theirs.honest[key] for key in same}


def test_cached(data, tmp_path):
    "Mels computed on the device and kept on the host"
    def mels(place):
        model = create_classifier(pipeline='none', rate=data.store.rate, scenes=data.names, **SMALL_CP).to(place)
        return MelCache(data.store, model.pipeline, tmp_path/place.type).batch(data.store.index(data.valid.filename))
    torch.testing.assert_close(*twice(mels), rtol=0, atol=1e-5)


@pytest.mark.parametrize('target', export_targets)
def test_exported(target, there, data, tmp_path):
    "The very file that the model on the CPU gives, which agrees with the model on the device"
    pytest.importorskip('onnx')
    waves = data.clips(data.train).batch(range(8))[0]

    def write(place):
        model = there(place)
        precision = export_targets[target].precisions[0]
        if precision == 'int8':
            batches = calibration_batches(model, data.clips(data.train), 8, 4)
            model = quantised_classifier(model)
            calibrate(model.backbone, batches)
        path = tmp_path/f'model{export_targets[target].suffix}'
        facts = export_to(target, model, path, precision=precision)
        if target == 'onnx':
            card = parity(path, model, waves)
            assert card['max_probabilities'] < 1e-4, card
        return path.read_bytes(), {key: value for key, value in facts.items() if key != 'files'}
    assert write(PLACES[0]) == write(DEVICE)
