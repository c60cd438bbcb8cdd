"""Waves, devices, windows and lists that a model cannot answer: refused in a sentence by every door, never answered."""
import subprocess
from copy import deepcopy
from functools import cache
from pathlib import Path
from shutil import which
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from torch import nn

from asc.backbone.weights import weights_fingerprint
from asc.backbone.zoo import create_backbone, list_backbones
from asc.core import SCENES as SCENES_OF_TAU
from asc.core import InputError, seed_everything
from asc.data.samples import to_int16
from asc.experiment.recipe import open_start
from asc.export.c99 import export_c
from asc.export.onnx import ExportedModel
from asc.frontend.limits import samples_for
from asc.frontend.logmel import LogMel, create_frontend, list_frontends
from asc.load import Hearing, OpenModel, opened
from asc.model.adapter import Adapter
from asc.model.classifier import create_classifier
from asc.model.per_device import DeviceAware
from asc.model.published import PublishedClassifier, load_published
from asc.size.qdq import calibrate, calibration_batches, quantised_classifier
from asc.train.clips import ClipData
from asc.train.finetune import start_from
from asc.train.learner import create_learner, make_dls, predict_logits, predictions
from asc.train.melcache import MelCache
from asc.train.tta import tta_predictions
from asc.use.embedding import embeddings
from asc.use.microphones import probabilities_over_time
from asc.use.predict import predict, predict_stream
from networks import SMALL, need

RATE, SCENES, DEVICES = 8000, ['bus', 'park', 'tram'], ['a', 'b', 's1']
FRONTEND = dict(sample_rate=RATE, n_fft=512, win=400, hop=400, n_mels=32)
STEPS = ['resample', 'mel', {'freq_mask': {'size': 4}}, 'log']
BASE = dict(base=8, blocks=(1, 1), strides={})


@cache
def classifier(seed=0):
    seed_everything(seed)
    words = dict(pipeline=STEPS, rate=RATE, scenes=SCENES, frontend_args=FRONTEND, backbone_args=BASE)
    return create_classifier('cp_mobile_24', 'logmel', **words).eval()


class Own(nn.Module):
    "A module of the user's, which says only what it has to"
    scenes, sample_rate = SCENES, RATE

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 3)

    def forward(self, wave):
        return self.head(torch.stack([wave.mean(1), wave.square().mean(1)], 1))


@cache
def quantised():
    model = quantised_classifier(classifier())
    calibrate(model.backbone, [torch.randn(4, 1, 32, 21)])
    return model.eval()


@cache
def device_wise():
    return DeviceAware(classifier(), {'b': classifier(1).backbone}, DEVICES).eval()


@cache
def published():
    return PublishedClassifier('cp_mobile_24', LogMel(**FRONTEND).eval(), classifier().backbone, SCENES).eval()


class Session:
    "Stands for ONNX Runtime, which takes long to be given a file: the class around it is what is tried here"
    def get_inputs(self): return [SimpleNamespace(name='wave')]

    def run(self, outputs, inputs):
        mel = classifier().pipeline(torch.from_numpy(inputs['wave']))
        return [mel.mean((1, 2))[:, :3].numpy()]


def exported():
    facts = dict(classes=SCENES, rate=RATE, samples=RATE, precision='float32', kind='waveform', network='cp_mobile_24')
    return ExportedModel(Path('small.onnx'), Session(), facts)


@pytest.fixture(scope='module')
def models():
    "A model of every kind, and the doors that take a wave"
    file = exported()
    as_opened = OpenModel('small.onnx', 'exported', SCENES, RATE, DEVICES, file=file, fixed=True)
    return dict(float=opened(classifier()), wise=opened(device_wise()), quantised=opened(quantised()),
                module=opened(Own()), classifier=classifier(), published=published(),
                adapter=Adapter(classifier(), 16000), hearing=Hearing(opened(classifier()), RATE),
                exported=file.probabilities, onnx=as_opened)


def wave(seconds=1., value=0., rate=RATE):
    x = torch.randn(2, round(seconds * rate), generator=torch.Generator().manual_seed(0)) / 10
    if value: x[1, 7] = value
    return x


NAN, INFINITY = float('nan'), float('inf')
WAVES = {
    'one NaN': wave(value=NAN), 'infinity': wave(value=INFINITY), 'minus infinity': wave(value=-INFINITY),
    '1e29': wave(value=1e29), 'largest float': wave(value=3.4e38), 'scale of int16': wave() * 32768,
    'scale of uint8': wave().abs() * 256 + 128, 'all NaN': wave() * NAN, 'double 1e300': wave().double() * 1e300,
    'no samples': torch.zeros(2, 0), 'no clips': torch.zeros(0, RATE),
    'one axis': wave()[0], 'three axes': wave()[None],
    'four axes': wave()[None, None], 'int16': (wave() * 32767).short(), 'uint8': (wave() * 99).byte(),
    'int64': wave().long(), 'bool': wave() > 0, 'complex': wave() + 0j, 'list': [0., 1.], 'None': None, 'text': 'a.wav',
}
KINDS = ['float', 'wise', 'quantised', 'module', 'classifier', 'published', 'adapter', 'hearing', 'exported', 'onnx']


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', WAVES)
def test_wave_is_refused(name, kind, models, damage):
    damage('wave into a model', lambda: models[kind](WAVES[name]), ['wave'])


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'module'])
@pytest.mark.parametrize('samples', [1, 100, 255])
def test_short_wave_is_refused(samples, kind, models, damage):
    damage('too short a wave', lambda: models[kind](wave(samples / RATE)), ['wave'])


NAMES = ['A', 'S1', 's1 ', 's7', 'phone', 'Unknown', '', 'nonsense', '-1', '0', 'ä']


@pytest.fixture(scope='module')
def tone(tmp_path_factory):
    path = tmp_path_factory.mktemp('sounds')/'tone.wav'
    sf.write(path, wave(1.5)[0].numpy(), RATE)
    return path


DOORS = {
    'call': lambda models, tone, name: models['wise'](wave(), name),
    'predict': lambda models, tone, name: predict(models['wise'], tone, device=name),
    'float': lambda models, tone, name: predict(models['float'], tone, device=name),
    'embeddings': lambda models, tone, name: embeddings(models['wise'], tone, device=name),
    'stream': lambda models, tone, name: list(predict_stream(models['wise'], [wave()[0].numpy()], RATE, device=name)),
    'published': lambda models, tone, name: models['published'].predict([tone], devices=name),
    'published list': lambda models, tone, name: models['published'].predict([tone], devices=[name]),
    'exported': lambda models, tone, name: exported().predict([tone], devices=name),
}


@pytest.mark.parametrize('door', DOORS)
@pytest.mark.parametrize('name', NAMES)
def test_device_is_refused(name, door, models, tone, damage):
    damage('name of a device', lambda: DOORS[door](models, tone, name), [f'device={name!r}', 'unknown'])


@pytest.mark.parametrize('number', [[0], [0, 3], [0, -2], [.5, .5], [0, 1, 2], 1, [[0, 1]]], ids=str)
def test_device_number_is_refused(number, models, damage):
    damage('number of a device', lambda: models['wise'](wave(), number), ['device'])


def test_unknown_is_the_general_network(models, tone):
    wise, answer = models['wise'], models['float'](wave())
    for device in (None, 'unknown', [-1, -1], 'a'): assert torch.equal(wise(wave(), device), answer)
    assert (wise(wave(), 'b') - answer).abs().max() > 1e-3
    assert predict(wise, tone).equals(predict(wise, tone, device='unknown'))
    assert predict(wise, tone).equals(predict(models['float'], tone))


# ---- how long a network hears

LEAST = {'cp_resnet': 5, 'tf_sepnet_64': 29, 'tf_sepnet_64_d16': 13, 'tf_sepnet_40': 29, 'tf_sepnet_dragon_60': 7,
         'tf_sepnet_dragon_80': 7, 'bc_resnet_40': 7, 'cnn3': 50, 'cnn6_60k': 16, 'beats': 16, 'passt_s': 16,
         'cnn_gru': 6, 'cnn_gru_2': 6}


@pytest.fixture(scope='module')
def networks():
    "name -> network, made when first asked for"
    made = {}

    def network(name):
        if name not in made: made[name] = create_backbone(name, **SMALL.get(name, {})).eval().requires_grad_(False)
        return made[name]
    return network


def spectrogram(name, frames):
    bands = dict(cnn3=40, cnn6_60k=256, cnn_gru=256, cnn_gru_2=256, passt_s=128, beats=32).get(name, 64)
    return torch.zeros(1, 1, bands, frames)


@pytest.mark.parametrize('name', LEAST)
@pytest.mark.parametrize('share', [0, .5, 1])
def test_too_few_frames(name, share, networks, damage):
    need(name)
    frames = max(1, round(share * (LEAST[name] - 1)))
    damage('too few frames', lambda: networks(name)(spectrogram(name, frames)), [f'{frames} frames', LEAST[name]])


@pytest.mark.parametrize('name', list_backbones())
def test_fewest_frames_are_heard(name, networks):
    need(name)
    least = getattr(networks(name), 'frame_range', (1, None))[0]
    assert least == LEAST.get(name, 1)
    assert networks(name)(spectrogram(name, least)).isfinite().all()


@pytest.mark.parametrize('frames', [1006, 1010, 2000])
def test_nothing_is_cut(frames, networks, damage):
    need('passt_s')
    damage('too many frames', lambda: networks('passt_s')(spectrogram('passt_s', frames)), [frames, 1005])


@pytest.fixture(scope='module')
def passt():
    pytest.importorskip('timm')
    words = dict(pipeline='none', rate=32000, scenes=SCENES, augment=False, backbone_args=SMALL['passt_s'])
    return opened(create_classifier('passt_s', 'passt', **words).eval())


@pytest.mark.parametrize('window', [20, 10.06, 60, .1, .0101])
@pytest.mark.parametrize('door', [
    lambda model, tone, window: predict(model, tone, window=window),
    lambda model, tone, window: embeddings(model, tone, window=window),
    lambda model, tone, window: list(predict_stream(model, [wave(30)[0].numpy()], RATE, window=window)),
    lambda model, tone, window: probabilities_over_time(model, wave(30)[:1], RATE, window=window),
], ids=['predict', 'embeddings', 'stream', 'demo'])
def test_window_is_refused(window, door, passt, tone, damage):
    damage('window', lambda: door(passt, tone, window), [f'window={window:g}', 's'])


@pytest.mark.parametrize('window', [float('nan'), -1, .001])
def test_window_is_no_window(window, models, tone, damage):
    damage('window', lambda: predict(models['float'], tone, window=window), ['window'])


def test_ten_seconds_are_heard_to_the_end(passt):
    "The issue's: the last half of a window changes the answer, 20 s are refused by the model itself"
    assert passt.longest == pytest.approx(10.05, abs=1e-3)
    x = torch.randn(1, 320000) / 10
    other = torch.cat([x[:, :300000], x[:, 300000:] * 5], 1)
    assert not torch.allclose(passt(x), passt(other), atol=1e-6)
    with pytest.raises(InputError, match='20 s are too long, the model hears at most 10.05 s'):
        passt(torch.cat([x, x], 1))


@pytest.mark.parametrize('name', list_frontends())
def test_samples_for_frames(name):
    frontend = create_frontend(name).eval()
    for frames in (2, 17):
        least = samples_for(frontend, frames)
        if least > frontend.shortest: assert frontend(torch.zeros(1, least - 1)).shape[-1] == frames - 1
        assert frontend(torch.zeros(1, least)).shape[-1] >= frames


# ---- lists of another rate, other classes, other devices

class Stand:
    "A store of noise"
    key, clip_len, folder = 'noise', None, SimpleNamespace(name='noise')

    def __init__(self, rate=RATE, n=6):
        self.rate, self.clip_len = rate, rate
        self.pcm = (np.random.default_rng(0).standard_normal((n, rate)) * 3000).astype('int16')

    def __len__(self): return len(self.pcm)
    def batch(self, rows): return self.pcm[rows]
    def index(self, names): return np.array([int(name[:-4]) for name in names])


def clips(rate=RATE, scenes=SCENES, devices=DEVICES, **options):
    names = [f'{i}.wav' for i in range(6)]
    rows = pd.DataFrame(dict(filename=names, scene=SCENES * 2, device=['a', 'b'] * 3, city='x'))
    return ClipData(Stand(rate), rows, scenes, devices, **options)


def learner(model, data): return create_learner(make_dls(data, data, bs=3, device='cpu'), model)


REFUSED = {
    'training at another rate': (lambda: learner(classifier(), clips(16000)), ['training', '16000 Hz', '8000 Hz']),
    'training in another order': (lambda: learner(classifier(), clips(scenes=SCENES[::-1])), ['training', 'order']),
    'training of other classes': (lambda: learner(classifier(), clips(scenes=['a', 'b', 'c'])), ['training', 'bus']),
    'training of fewer classes': (lambda: learner(classifier(), clips(scenes=SCENES[:2])), ['training', 'tram']),
    'training of a published one': (lambda: learner(published(), clips(44100)), ['training', '44100 Hz']),
    'cache at another rate': (lambda: MelCache(Stand(16000), classifier().pipeline), ['MelCache', '16000 Hz']),
    'calibration at another rate': (
        lambda: calibration_batches(classifier(), clips(16000)), ['calibration', '16000 Hz']),
    'calibration of a published one': (lambda: calibration_batches(published(), clips()), ['calibration']),
    'predictions of other classes': (lambda: predictions(classifier(), clips(scenes=['x', 'y', 'z'])), ['bus', 'x']),
    'predictions of more classes': (lambda: predictions(classifier(), clips(scenes=[*SCENES, 'z'])), ['z']),
    'predictions of a path': (lambda: predictions('runs/a', clips()), ['model']),
    'masks of a published one': (lambda: tta_predictions(published(), clips(), 2), ['freq_mask']),
    'masks of a module': (lambda: tta_predictions(Own(), clips()), ['test-time augmentation']),
    'embeddings of other classes': (lambda: embeddings(classifier(), clips(scenes=['x', 'y', 'z'])), ['bus']),
}


@pytest.mark.parametrize('name', REFUSED)
def test_list_is_refused(name, damage):
    call, names = REFUSED[name]
    damage('list of another kind', call, names)


RIGHT = {
    'predictions': predictions,
    'opened': lambda model, data: predictions(opened(model), data),
    'hearing': lambda model, data: predictions(Hearing(opened(model), data.store.rate, data.devices), data),
}


@pytest.mark.parametrize('rate', [RATE, 16000, 11025])
@pytest.mark.parametrize('order', [1, -1])
@pytest.mark.parametrize('door', RIGHT)
@pytest.mark.parametrize('make', [classifier, published, device_wise, quantised])
def test_list_is_brought_to_the_model(make, door, order, rate, damage):
    "Rate, order of the classes and numbers of the devices: the answers are those of the opened model for each wave"
    model, data = make(), clips(rate, SCENES[::order], DEVICES[::order])
    waves, _, _ = data.batch(range(6))
    one = opened(model)
    with torch.no_grad(): expected = torch.cat([
        one(Adapter(Own(), rate).resample(waves[i:i + 1]), device) for i, device in enumerate(data.rows.device)])
    damage('list of another kind', lambda: RIGHT[door](model, data),
           right=lambda table: np.abs(table[SCENES].to_numpy() - expected.numpy()).max() < 2e-3)


# ---- answers that are none

def broken(value=float('nan')):
    "A classifier whose answers are no numbers"
    model = deepcopy(classifier())
    model.backbone.feed_forward[1].bias.data[0] = value
    return model


def broken_system():
    return PublishedClassifier('cp_mobile_24', LogMel(**FRONTEND), broken().backbone, SCENES).eval()


ANSWERS = {
    'call': (lambda tone: opened(broken())(wave()), ['wave 0']),
    'logits': (lambda tone: opened(broken()).logits(wave()), ['wave 0']),
    'inf': (lambda tone: opened(broken(float('inf'))).logits(wave()), ['wave 0']),
    'hearing': (lambda tone: Hearing(opened(broken()), RATE)(wave()), ['wave 0']),
    'predict_logits': (lambda tone: predict_logits(broken(), clips()), ['0.wav']),
    'predictions': (lambda tone: predictions(broken(), clips()), ['0.wav']),
    'masked': (lambda tone: tta_predictions(broken(), clips(), 2), ['0.wav']),
    'predict': (lambda tone: predict(broken(), tone), [tone_name := 'tone.wav']),
    'listed': (lambda tone: predict(broken(), tone, unreadable='list'), [tone_name]),
    'stream': (lambda tone: list(predict_stream(broken(), [wave()[0].numpy()], RATE)), ['the stream at 1.00 s']),
    'demo': (lambda tone: probabilities_over_time(broken(), wave()[:1], RATE), ['wave 0']),
    'published': (lambda tone: broken_system().predict([tone]), [tone_name]),
}


@pytest.mark.parametrize('name', ANSWERS)
def test_answer_is_refused(name, tone, damage):
    call, names = ANSWERS[name]
    damage('answer that is none', lambda: call(tone), names)


class Sensitive(Own):
    "A module whose answer to loud sounds is no number"
    def forward(self, wave): return super().forward(wave) + torch.where(wave.amax(1) > .9, float('nan'), 0)[:, None]


def test_one_window_without_an_answer_costs_its_file(tmp_path, tone):
    "It does not vanish in the mean, and the other files keep their answers"
    x = wave(3)[0].numpy()
    x[2 * RATE] = .95
    sf.write(tmp_path/'a.wav', x, RATE, subtype='FLOAT')
    sf.write(tmp_path/'b.wav', wave(3)[0].numpy(), RATE)
    table = predict(Sensitive(), tmp_path, unreadable='list')
    assert [path.endswith('b.wav') for path in table.file] == [True]
    assert 'NaN' in table.attrs['unreadable'][str(tmp_path/'a.wav')]
    with pytest.raises(InputError, match='a.wav: gets an answer that holds NaN'): predict(Sensitive(), tmp_path)


# ---- the C source

@pytest.fixture(scope='module')
def program(tmp_path_factory):
    if which('cc') is None: pytest.skip('no C compiler')
    folder = tmp_path_factory.mktemp('c')
    export_c(quantised(), folder/'small.c')
    subprocess.run(['cc', '-O1', '-std=c99', '-Wall', '-Wextra', '-Werror', '-DASC_MAIN', folder/'small.c', '-o',
                    folder/'small'], check=True)
    return folder/'small'


def run_program(program, logmel):
    return subprocess.run([program], input=logmel, capture_output=True)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf'), 1e30, -1e30, 60., -13.])
@pytest.mark.parametrize('place', [0, 100, 32 * 21 - 1])
def test_c_refuses_a_number(value, place, program, damage):
    x = np.zeros(32 * 21, 'float32')
    x[place] = value

    def call():
        done = run_program(program, x.tobytes())
        if done.returncode != 1: return done.stdout
        assert not done.stdout
        raise InputError(done.stderr.decode() + ' give another')
    damage('log-mel into the C program', call, ['log-mel 0', 'NaN or out of range'])


@pytest.mark.parametrize('cut', [1, 4, 4 * 32 * 21 - 1])
def test_c_refuses_half_a_log_mel(cut, program, damage):
    content = np.zeros(2 * 32 * 21, 'float32').tobytes()[:-cut]

    def call():
        done = run_program(program, content)
        assert done.returncode == 1 and len(done.stdout.splitlines()) == 1
        raise InputError(done.stderr.decode() + ' give all of it')
    damage('log-mel into the C program', call, ['log-mel 1', 'cut off'])


def test_c_answers_silence_and_full_scale(program):
    frontend = LogMel(**FRONTEND).eval()
    square = torch.sign(torch.sin(torch.arange(RATE) / 5))
    for sound in (torch.zeros(RATE), torch.ones(RATE), square, square * 15):
        done = run_program(program, frontend(sound[None]).numpy().tobytes())
        assert done.returncode == 0 and np.isfinite([float(v) for v in done.stdout.split()]).all()


# ---- the start of a training

OTHERS = ['airplane', 'dog', 'rain', 'sea', 'wind', 'fire', 'clock', 'saw', 'helicopter', 'rooster']


def test_a_head_for_other_classes_starts_anew(tmp_path):
    "The issue's: ten classes of another corpus are not the ten scenes of a published checkpoint; the start is recorded"
    seed_everything(0)
    network = create_backbone('cp_mobile_24')
    torch.save(network.state_dict(), tmp_path/'published.ckpt')
    head = network.feed_forward[0].weight.clone()
    for scenes, kept in ((OTHERS, False), (SCENES_OF_TAU, True), (SCENES_OF_TAU[::-1], False)):
        model = create_classifier(rate=44100, scenes=scenes)
        facts = start_from(model, open_start(tmp_path/'published.ckpt'), 'published.ckpt')
        assert torch.equal(model.backbone.feed_forward[0].weight, head) == kept
        assert ('starts anew' in facts['remark']) != kept
        assert (facts['classes'], facts['rate']) == (list(SCENES_OF_TAU), 32000)
        assert facts['frontend'].startswith('LogMel(') and facts['fingerprint'] == weights_fingerprint(network)
    with pytest.raises(InputError, match='was trained on other spectrograms'):
        start_from(create_classifier(frontend='cp'), open_start(tmp_path/'published.ckpt'), 'published.ckpt')


def test_published_checkpoint_hears_a_corpus_at_another_rate(shared):
    "The issue's: predictions of a loaded checkpoint are those of the opened one and of the checkpoint over the files"
    path = shared/'data'/'weights'/'cpjku23_c0a7nzin.ckpt'
    sounds = sorted((shared/'data'/'tau-samples').glob('*.wav'))
    system = load_published(path)
    rows = pd.DataFrame(dict(filename=[f'{i}.wav' for i in range(len(sounds))], scene='bus', device='a', city='x'))
    store = Stand(44100)
    store.pcm = np.stack([to_int16(sf.read(sound)[0]) for sound in sounds])
    table = predictions(system, ClipData(store, rows, SCENES_OF_TAU[::-1], ['a']))
    files = system.predict(sounds)
    columns = list(SCENES_OF_TAU)
    assert np.abs(table[columns].to_numpy() - files[columns].to_numpy()).max() < 1e-4
    assert table[columns].idxmax(axis=1).tolist() == files.scene.tolist()
