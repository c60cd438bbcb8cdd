"""The inference package of 2025: the bytes the organisers count, the right answers, and what their scripts look for.

The judge itself, a process of its own, runs in nbs/entry/15_package.ipynb."""
import copy
import importlib
import io
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
import torchinfo

from asc.core import SCENES, write_json
from asc.data.corpus import load_corpus
from asc.entry.package import _judge_answers, _judge_costs, halve_weights, write_bundle
from asc.entry.recomputed import answer_logits
from asc.frontend.mel import Resample
from asc.load import open_model
from asc.model.classifier import create_classifier, save_model
from asc.model.per_device import DeviceAware, save_devices
from asc.size.qat import save_quantised
from asc.size.qdq import calibrate, quantised_classifier

BYTES = {'float': 122296, 'branched half': 121304, 'integers': 64172, 'devices': 122296}
MACS = {'float': 29419156, 'branched half': 29681844, 'integers': 29416448, 'devices': 29419156}


@pytest.fixture(scope='module')
def runs(synthetic, tmp_path_factory):
    "One untrained network of the default kind in four forms; the folder of each"
    folder = tmp_path_factory.mktemp('runs')
    torch.manual_seed(0)
    model = create_classifier('cp_mobile_24', augment=False).eval()
    save_model(model, folder/'float')
    branches = dict(branches=['3x3', '1x1', '1x3', '3x1'])
    save_model(create_classifier('cp_mobile_24', backbone_args=branches, augment=False).eval(), folder/'branched half')
    halve_weights(folder/'branched half')
    small = quantised_classifier(model)
    with torch.no_grad(): calibrate(small.backbone, [model.pipeline(torch.randn(4, 44100) * .1)])
    save_quantised(small, folder/'integers')
    other = create_classifier('cp_mobile_24', augment=False).eval().backbone
    save_devices(DeviceAware(model, dict(b=other), ['a', 'b']), folder/'devices')
    for path in folder.iterdir(): write_json(path/'params.json', dict(data=dict(dir=str(synthetic))))
    return folder


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp('sound')/'a.wav'
    sf.write(path, np.random.default_rng(1).normal(0, .1, (32000, 2)), 32000)
    return path


@pytest.fixture
def package(runs, tmp_path, monkeypatch):
    "package(kind): its folder, and its module as the organisers import it"
    def package(kind):
        label = f'{kind.split()[0].capitalize()}_UP_task1'
        folder = write_bundle([runs/kind], tmp_path, label)
        monkeypatch.syspath_prepend(folder)
        return folder, importlib.import_module(f'{label}.{label}_1')
    yield package
    for name in [name for name in sys.modules if name.partition('.')[0].endswith('_UP_task1')]: del sys.modules[name]


@pytest.mark.parametrize('kind', BYTES)
def test_bytes_operations_and_answers(kind, package, runs, sound):
    "As `test_complexity.py` counts, and as the run itself answers"
    folder, api = package(kind)
    model = api.load_model()
    for device in ('a', 'b', 's10', 'unknown'):
        x, = api.load_inputs([str(sound)], [device], model)
        network = api.get_model_for_device(model, device)
        wide = torchinfo.summary(copy.deepcopy(network).float(), input_size=tuple(x.shape), verbose=0)
        assert wide.total_mult_adds == MACS[kind]
        assert sum(p.numel() * p.element_size() for p in network.parameters()) == BYTES[kind]
    logits, classes = api.predict(file_paths=[str(sound)] * 3, device_ids=['a', 'b', 'unknown'], model_file_path=None)
    assert classes == list(SCENES)
    assert torch.stack(logits).softmax(1).dtype == torch.float32
    opened = open_model(runs/kind)
    wave, rate = sf.read(sound, dtype='float32')
    wave = Resample(rate, opened.rate)(torch.from_numpy(wave.mean(1))[None])
    for device, found in zip(('a', 'b', 'unknown'), logits):
        number = device if device in opened.devices else 'unknown'
        with torch.no_grad(): expected = opened.logits(wave, number)[0]
        assert (found.softmax(0) - expected.softmax(0)).abs().max() < 2e-3


@pytest.mark.parametrize('kind', ['integers', 'devices'])
def test_what_the_scripts_save(kind, package):
    "`model.model` is what `evaluate_submission.py` saves; in the state of a quantised network, weights are int8"
    _, api = package(kind)
    state = api.load_model().model.state_dict()
    torch.save(state, io.BytesIO())
    small = dict(integers=torch.int8, devices=torch.float16)[kind]
    assert sum(value.numel() for value in state.values() if value.dtype == small) > 50000


def test_resources(package, synthetic):
    "A second of noise that nobody recorded, and the test list of the corpus"
    folder, _ = package('float')
    resources = folder/'Float_UP_task1/resources'
    info = sf.info(resources/'dummy.wav')
    assert (info.frames, info.samplerate, info.channels) == (44100, 44100, 1)
    listed = pd.read_csv(resources/'test.csv', sep='\t')
    corpus = pd.read_csv(synthetic/'test.csv', sep='\t')
    assert listed.filename.tolist() == corpus.filename.tolist()
    assert 'resources/*' in (folder/'setup.py').read_text()


def row(**changes): return dict(macs=29_000_000, params=61_148, bytes=122_296, types=['torch.float16']) | changes


@pytest.mark.parametrize('device, word', [
    (row(bytes=244_592), '244,592 bytes'), (row(macs=30_000_001), '30,000,001 operations'),
    (row(types=['torch.float64']), 'torch.float64')])
def test_a_package_over_the_limits(device, word):
    assert _judge_costs(dict(a=row())) == []
    fault, = _judge_costs(dict(a=row(), s1=device))
    assert word in fault


GOOD = dict(classes=list(SCENES), logits=[[0.] * 10] * 2, dummy=True, test_list='filename\tscene_label')


@pytest.mark.parametrize('change, word', [
    (dict(classes=list(SCENES[::-1])), 'the challenge has'), (dict(logits=[[0.] * 9] * 2), 'finite number'),
    (dict(logits=[[float('nan')] * 10] * 2), 'finite number'), (dict(dummy=False), 'dummy.wav'),
    (dict(test_list='name'), 'column filename')])
def test_a_package_with_other_answers(change, word):
    assert _judge_answers(GOOD) == []
    fault, = _judge_answers(GOOD | change)
    assert word in fault


def test_devices_of_an_evaluation_set(runs, tmp_path):
    "The list of 2025 names devices; each clip is answered by the network of its own, unknown ones by the general one"
    (tmp_path/'eval/audio').mkdir(parents=True)
    (tmp_path/'eval/evaluation_setup').mkdir()
    wave = np.random.default_rng(2).normal(0, .1, 44100)
    devices = ['b', 'a', 'unknown', 's10']
    for i in range(len(devices)): sf.write(tmp_path/f'eval/audio/{i}.wav', wave, 44100, 'PCM_24')
    lines = ['filename\tdevice_id'] + [f'audio/{i}.wav\t{device}' for i, device in enumerate(devices)]
    (tmp_path/'eval/evaluation_setup/fold1_test.csv').write_text('\r\n'.join(lines) + '\r\n')
    corpus = load_corpus(tmp_path/'eval', 'evaluation')
    model = open_model(runs/'devices').network
    own, *general = answer_logits([model], corpus, corpus.meta, tmp_path/'store')
    assert (own - general[0]).abs().max() > .01
    for answer in general: assert (answer - general[0]).abs().max() < 1e-5
