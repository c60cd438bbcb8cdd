"published checkpoints: golden logits, genuine clips, the frontends' tables, and files that are something else"
import http.server
import threading

import numpy as np
import pytest
import soundfile as sf
import torch

from asc.backbone import weights
from asc.backbone.cnn6 import fold_cnn6
from asc.backbone.weights import read_weights, weights_file
from asc.backbone.zoo import backbones, create_backbone, list_backbones
from asc.core import SCENES, InputError
from asc.frontend.logmel import create_frontend
from asc.frontend.mel import Resample
from asc.model.body import DeviceWise
from asc.model.golden import chirp, golden_logits, reference_logits
from asc.model.published import load_published, recognise

FILES = {
    'cpjku23_c0a7nzin.ckpt': 'cp_mobile_23',
    'sp4asc_128_2_16_2_mixup_2.pth': 'cnn6_60k',
    'sp4asc_128_2_32_2.pth': 'cnn6_60k',
    'sp4asc_128_2_32_2_focal_loss.pth': 'cnn6_60k',
    'dcase2025_karasin_jku_sys4.ckpt': 'cp_mobile_24',
}
CP, MIX, CE, FOCAL = list(FILES)[:4]
# logits of the 2023 checkpoint on the genuine clips, to two decimals (start of the clip's name -> logits)
CLIPS = {
    'airport': '4.47 -1.62 -1.85 -.94 -.11 1.24 -1.26 3.40 -3.21 -.20',
    'bus': '-1.31 4.24 .73 -.38 -2.87 -1.04 -1.00 -.64 -2.65 5.07',
    'metro': '-2.42 1.73 5.39 .63 -3.37 -2.37 -.09 -1.71 -3.04 3.44',
    'park-lyon': '-1.28 -.17 .51 .25 6.79 -.90 -1.74 -1.40 2.56 -.47',
    'park-paris': '-1.82 -2.29 -1.29 -1.36 4.43 1.27 -2.71 -1.03 3.31 -.73',
    'shopping_mall': '1.56 -3.28 -2.04 .57 -2.64 .35 6.37 .32 -3.05 -2.13',
    'street_traffic': '-1.77 -1.54 -.63 .98 -.69 -.13 -1.75 -1.19 7.66 -.56',
}


def numbers(text):
    "The numbers in a text"
    return torch.tensor([float(v) for v in text.split()])


@pytest.fixture(scope='module')
def published(shared):
    "The five checkpoints as classifiers"
    return {f: load_published(shared/'data'/'weights'/f) for f in FILES}


@pytest.fixture(scope='module')
def clips(shared):
    "The genuine clips"
    return sorted((shared/'data'/'tau-samples').glob('*.wav'))


@pytest.mark.parametrize('file, signal', [(f, g) for f in FILES for g in golden_logits(f)])
def test_golden_logits(published, file, signal):
    "Appendix A; sp4asc's own spectrogram is a DFT by convolution: fed with it, the largest difference is 8e-6"
    difference = reference_logits(published[file], signal) - golden_logits(file)[signal]
    worst = difference.abs().max().item()
    print(f'{file} on {signal}: largest difference {worst:.1e}')
    assert worst < (2e-2 if file != CP and signal == 'chirp' else 1e-4)


def test_every_published_file_but_the_last_has_golden_logits():
    assert [len(golden_logits(f)) for f in FILES] == [3, 2, 2, 2, 0]


def test_recognised(published):
    for f, name in FILES.items():
        assert (published[f].name, published[f].classes) == (name, list(SCENES))
    assert [published[f].sample_rate for f in FILES] == [32000, 44100, 44100, 44100, 32000]


def test_genuine_clips_of_the_2023_winner(published, clips):
    "Six of seven, the bus taken for a tram, and the logits known from the original code behind the same resampler"
    c = published[CP]
    result = c.predict(clips)
    assert [s == p.name.split('-')[0] for s, p in zip(result.scene, clips)] == [
        True, False, True, True, True, True, True
    ]
    assert result.scene[1] == 'tram'
    assert list(result.columns) == ['file', 'scene', *SCENES]
    for p in clips:
        wave, rate = sf.read(p, dtype='float32')
        with torch.no_grad():
            y = c(Resample(rate, 32000)(torch.tensor(wave)[None]))[0]
        want = numbers(next(v for k, v in CLIPS.items() if p.name.startswith(k)))
        assert (y - want).abs().max() < .011


def test_every_published_file_hears_the_clips(published, clips):
    "How many of the seven each gets right; sp4asc was made for ten seconds, not for one"
    for (f, c), least in zip(published.items(), (6, 4, 3, 3, 5)):
        result = c.predict(clips, devices=[p.stem.rsplit('-', 1)[1] for p in clips])
        right = sum(s == p.name.split('-')[0] for s, p in zip(result.scene, clips))
        print(f, right, 'of', len(clips), list(result.scene))
        assert np.allclose(result[list(SCENES)].sum(axis=1), 1, atol=1e-5)
        assert right >= least


def test_device_wise(published, clips):
    "Seven networks of the 2024 shape in half precision; that of s2 is the base model; the frontend in the file is ours"
    c = published['dcase2025_karasin_jku_sys4.ckpt']
    assert isinstance(c.network, DeviceWise)
    assert list(c.network.device_models) == ['a', 'b', 'c', 's1', 's2', 's3']
    assert {p.dtype for p in c.network.parameters()} == {torch.float16}
    p = {
        d: c.predict(clips[:2], devices=d)[list(SCENES)].values
        for d in (None, 'a', 's2', 's4', 'unknown')
    }
    for same in ('s2', 's4', 'unknown'): assert (p[same] == p[None]).all()
    with pytest.raises(InputError, match="device='a phone': is not among"): c.predict(clips[:2], devices='a phone')
    assert abs(p['a'] - p[None]).max() > .01
    mixed = c.predict(clips[:2], devices=['a', 's6'])[list(SCENES)].values
    assert (mixed[0] == p['a'][0]).all() and (mixed[1] == p[None][1]).all()
    wave = torch.randn(3, 32000)/10
    with torch.no_grad():
        half = c(wave, torch.tensor([0, 1, -1]))
        c.network.float()
        full = c(wave, torch.tensor([0, 1, -1]))
        c.network.half()
    assert half.dtype == torch.float32 and (half - full).abs().max() < .1


def test_the_frontend_in_the_2025_file_is_ours(shared):
    "The tables in the file, of the resampler, the window and the mel bank, are those of dcase24"
    state = read_weights(shared/'data'/'weights'/'dcase2025_karasin_jku_sys4.ckpt')['state_dict']
    fe = create_frontend('dcase24')
    bank = fe.bank(torch.eye(2049))
    assert (bank.T - state['mel.1.mel_scale.fb']).abs().max() < 1e-4
    assert torch.allclose(fe.taper[512:-512], state['mel.1.spectrogram.window'], atol=1e-6)
    x = torch.randn(1, 44100)
    k = state['mel.0.kernel']
    padded = torch.nn.functional.pad(x, (9, 9 + 441))[:, None]
    y = torch.conv1d(padded, k, stride=441)[0].T.reshape(-1)[:32000]
    assert (Resample(44100, 32000)(x)[0] - y).abs().max() < 1e-5


def test_sp4asc_folds(published):
    "With eps nothing changes; without it one published file moves by up to 6, the others by hundredths"
    wave = chirp(44100, 10)
    for f, moved in ((MIX, .04), (CE, 6.07), (FOCAL, .04)):
        c = published[f]
        x = c.frontend(wave)
        with torch.no_grad():
            y = c.network(x)
            good = fold_cnn6(c.network)(x)
            bad = fold_cnn6(c.network, eps=False)(x)
        assert (good - y).abs().max() < 2e-4
        assert moved/3 < (bad - y).abs().max() < moved*1.1
        assert sum(v.numel() for v in fold_cnn6(c.network).state_dict().values()) == 62_474


@pytest.mark.parametrize(
    'rate, channels, seconds', [(44100, 2, 1), (48000, 1, 10), (8000, 2, .5), (22050, 1, 3.3)]
)
def test_any_sound(published, tmp_path, rate, channels, seconds):
    x = np.random.default_rng(0).normal(0, .1, (int(rate*seconds), channels))
    sf.write(tmp_path/'x.flac', x, rate)
    for f in (CP, MIX):
        result = published[f].predict([tmp_path/'x.flac', (x, rate), (torch.tensor(x).float(), rate)])
        assert np.allclose(result[list(SCENES)].values, result[list(SCENES)].values[:1], atol=.02)


def test_bad_sounds(published, tmp_path):
    (tmp_path/'no.wav').write_bytes(b'nothing')
    c = published[CP]
    for sound, says in (
        (tmp_path/'no.wav', 'no.wav: unreadable'),
        (tmp_path/'gone.wav', 'gone.wav'),
        ((np.full(9000, np.nan), 8000), 'NaN'),
        ((np.zeros(20), 8000), 'too short'),
        ((np.zeros((2, 9000)), 8000), r'shape \(2, 9000\)'),
        (3, 'found int'),
    ):
        with pytest.raises(InputError, match=says): c.predict([sound])
    with pytest.raises(InputError, match='sound 0: 0.10 s are too short'):
        published[MIX].predict([(np.zeros(4410), 44100)])
    loud = np.zeros(8000)
    loud[7:9] = 1.5, -2
    said = c.predict([(loud, 8000)]).attrs['remarks']
    assert said == {'sound 0': ['2 samples beyond full scale were cut to it']}


@pytest.mark.parametrize('name', list_backbones())
def test_every_network_is_recognised(name):
    if name == 'passt_s': pytest.importorskip('timm')
    with torch.device('meta'): state = create_backbone(name, 7).state_dict()
    assert recognise(state) == (name, 7)


@pytest.mark.parametrize('name', list_backbones())
def test_the_frontend_makes_the_input(name):
    "The frontend a network is registered with gives the registered shape for one second (ten for Cnn6)"
    b = backbones[name]
    fe = create_frontend(b.frontend, **b.frontend_args).eval()
    assert tuple(fe(torch.zeros(1, fe.sample_rate*(10 if name == 'cnn6_60k' else 1))).shape) == (
        1, 1, *b.shape
    )


def test_an_export_of_the_2024_baseline(tmp_path):
    "Half-precision state dict without prefix, and a Lightning checkpoint with the frontend's tables in it"
    net = create_backbone('cp_mobile_24')
    torch.save(net.half().state_dict(), tmp_path/'model_state_dict.pt')
    a = load_published(tmp_path/'model_state_dict.pt')
    state = {
        f'model.{k}': v for k, v in net.state_dict().items()
    } | {'mel.0.kernel': torch.zeros(2)}
    torch.save({'epoch': 149, 'state_dict': state}, tmp_path/'last.ckpt')
    b = load_published(tmp_path/'last.ckpt')
    sound = [(chirp(44100)[0].numpy(), 44100)]
    assert a.name == 'cp_mobile_24' and a.predict(sound).equals(b.predict(sound))


def test_not_a_classifier(tmp_path):
    torch.save({'cfg': {}, 'model': {'a': torch.ones(1)}}, tmp_path/'BEATs.pt')
    with pytest.raises(InputError, match='BEATs knows no scenes'):
        load_published(tmp_path/'BEATs.pt')
    state = create_backbone('cnn3').state_dict()
    torch.save({**state, 'extra': torch.ones(1)}, tmp_path/'more.pt')
    with pytest.raises(InputError, match='looks like cnn3 but does not fit.*1 unexpected: extra'):
        load_published(tmp_path/'more.pt')
    torch.save({k: v for k, v in state.items() if k != 'conv2._conv.weight'}, tmp_path/'less.pt')
    with pytest.raises(InputError, match='1 missing: conv2._conv.weight'):
        load_published(tmp_path/'less.pt')
    torch.save({'layer.weight': torch.ones(3, 3)}, tmp_path/'foreign.pt')
    with pytest.raises(InputError, match='no published configuration'):
        load_published(tmp_path/'foreign.pt')
    torch.save(
        {'base_model.x': torch.ones(1), 'device_models.phone.x': torch.ones(1)},
        tmp_path/'odd.pt',
    )
    with pytest.raises(InputError, match='unknown devices phone'):
        load_published(tmp_path/'odd.pt')


def test_fetched_by_name(tmp_path, monkeypatch):
    "A public name is fetched once into data/weights"
    torch.save({'state_dict': create_backbone('cp_resnet').state_dict()}, tmp_path/'served.pt')
    def handler(*a):
        return http.server.SimpleHTTPRequestHandler(*a, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setitem(
            weights.PUBLISHED_WEIGHTS,
            'cpr_128k_fms_1',
            f'http://127.0.0.1:{server.server_port}/served.pt',
        )
        monkeypatch.setattr(weights, 'project_root', lambda: tmp_path)
        assert load_published('cpr_128k_fms_1').name == 'cp_resnet'
        assert (tmp_path/'data'/'weights'/'cpr_128k_fms_1.pt').is_file()
    finally:
        server.shutdown()
    assert weights_file('cpr_128k_fms_1') == tmp_path/'data'/'weights'/'cpr_128k_fms_1.pt'


@pytest.mark.parametrize('prefix', ['', 'model.'])
def test_guilty_keys_are_listed(tmp_path, prefix):
    state = {prefix + k: v for k, v in create_backbone('cp_mobile_24').state_dict().items()}
    first = next(iter(state))
    for bad, says in (
        (dict(list(state.items())[1:]), first.removeprefix(prefix)),
        ({**state, 'stray': torch.ones(1)}, 'stray'),
    ):
        torch.save(bad, tmp_path/'a.pt')
        with pytest.raises(InputError, match=says): load_published(tmp_path/'a.pt')


def test_folded_cnn6_is_recognised(tmp_path):
    torch.save(fold_cnn6(create_backbone('cnn6_60k')).state_dict(), tmp_path/'a.pt')
    assert load_published(tmp_path/'a.pt').name == 'cnn6_60k'


def merged(net):
    "cpjku23's layout after BN folding: convolution, bias and activation in one module"
    out, state = {}, net.state_dict()
    for k, v in state.items():
        unit, _, leaf = k.rpartition('.')
        if unit.endswith('.1') and f'{unit[:-1]}0.weight' in state: continue
        inside = '' if unit.endswith('block.2.0') or unit == 'feed_forward.0' else '.0'
        out[f'{unit}{inside}.{leaf}' if leaf == 'weight' else k] = v
        if leaf == 'weight': out[f'{unit}{inside}.bias'] = torch.zeros(len(v))
    return out


def test_a_merged_layout_is_refused_with_the_remedy(tmp_path):
    "The published figures: 54 tensors after folding, 122 after conversion to int8"
    state = merged(create_backbone('cp_mobile_23'))
    assert len(state) == 54
    names = 'in_c.0.0.0.bias', 'stages.s1.b1.block.0.0.0.weight', 'stages.s3.b6.block.2.0.bias'
    assert set(names) <= set(state)
    for more, says in (({}, 'merged into the convolutions: give the checkpoint from before'),
                       ({'in_c.0.0.zero_point': torch.tensor(0)}, 'converted to int8')):
        torch.save(state | more, tmp_path/'a.pt')
        with pytest.raises(InputError, match=f'looks like cp_mobile_23, but.*{says}'):
            load_published(tmp_path/'a.pt')
        with pytest.raises(InputError, match=f'missing: in_c.0.0.weight.*{says}'):
            create_backbone('cp_mobile_23', weights=tmp_path/'a.pt')
