"""Exported files: equal to PyTorch, small, without a trace of where they were made; and what is refused."""
import json
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import soundfile as sf
import torch
from torch import nn

from asc.backbone.zoo import backbones, create_backbone
from asc.backbone.contract import shaken
from asc.core import SCENES, InputError
from asc.data.samples import to_int16
from asc.export.card import card_text, model_card, parity, sizes
from asc.frontend.logmel import create_frontend
from asc.frontend.matmul import GraphLogMel, GraphResample
from asc.frontend.mel import Resample
from asc.model.classifier import create_classifier, save_model
from asc.model.published import PublishedClassifier, load_published
from asc.size.cost import complexity
from asc.size.fold import fold
from asc.size.qdq import calibrate, prepare, quantised_classifier
from asc.use.devices import read_start
from asc.use.microphones import decide, probabilities_over_time
from asc.use.predict import predict
import launch
from networks import SMALL_BEATS

onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
from asc.export import onnx_graph  # noqa: E402
from asc.export.onnx_graph import network_graph, pools_as_convolutions  # noqa: E402
from asc.export.digest import ZEROS, seal_bytes  # noqa: E402
from asc.export.onnx import executed_ops, export_model, load_exported  # noqa: E402
from asc.export.onnx import session, stored_tensors  # noqa: E402

SMALL = {
    'cp_resnet': dict(base=8, narrow=12),
    'tf_sepnet_40': dict(base=16),
    'bc_resnet_40': dict(base=8),
    'cnn6_60k': {},
    'passt_s': dict(dim=48, depth=1, heads=4),
    'beats': dict(cfg=dict(SMALL_BEATS, encoder_layers=1)),
}
TINY = dict(base=16, blocks=(1, 1, 1), strides=dict(b1=(2, 2), b2=(2, 1)), grn=True)


@pytest.fixture(scope='module')
def model():
    "A small CP-Mobile with response normalisation behind dcase24 and its resampler"
    torch.manual_seed(0)
    m = create_classifier('cp_mobile_24', 'dcase24', 'none', backbone_args=TINY, augment=False)
    with torch.no_grad():
        for p in m.backbone.parameters(): p += .05*torch.randn_like(p)
        m.train()
        for _ in range(8):
            # norms with statistics of their own
            m.backbone(m.pipeline(noises(8)))
    return m.eval()


def noises(n, seed=0, samples=44100):
    "Sounds that differ: noise of different colours and levels"
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, samples + 8, generator=g)
    level = torch.rand(n, 1, generator=g)
    slope = torch.rand(n, 1, generator=g)*2 - 1
    return (x[:, 8:] + slope*x[:, :-8])*10**(-3*level)/4


@pytest.fixture(scope='module')
def quantised(model):
    "The same network with calibrated quantisers"
    q = quantised_classifier(model)
    with torch.no_grad():
        calibrate(q.backbone, model.pipeline(noises(32, 1)).split(8))
    return q


@pytest.fixture(scope='module')
def files(model, quantised, tmp_path_factory):
    "precision -> a file with the frontend inside"
    d = tmp_path_factory.mktemp('export')
    return {
        k: export_model(
            quantised if k == 'int8' else model, d/f'{k}.onnx', k, network=d/f'{k}-network.onnx'
        )
        for k in ('float32', 'fp16', 'int8')
    }


@pytest.mark.parametrize('name', list(SMALL))
def test_networks_export(name):
    "Logits of an exported network, batch sizes other than the example's included"
    if name == 'passt_s': pytest.importorskip('timm')
    net = shaken(lambda: create_backbone(name, 4, **SMALL[name]))
    shape = (256, 44) if name == 'cnn6_60k' else backbones[name].shape
    x = torch.randn(3, 1, *shape, generator=torch.Generator().manual_seed(0))
    m = network_graph(net, x[:1])
    y = session(m.SerializeToString()).run(None, {'logmel': x.numpy()})[0]
    with torch.no_grad():
        assert np.abs(y - net(x).numpy()).max() < 1e-4*(1 + np.abs(y).max())
    assert b'.py' not in m.SerializeToString()
    assert b'asc/' not in m.SerializeToString()


def test_float_file_is_the_model(model, files):
    "Waveform in, probabilities out, within 1e-3 of PyTorch; any number of clips"
    waves = torch.cat([noises(9), torch.zeros(1, 44100)])
    r = parity(files['float32'], model, waves, bs=4)
    assert r['max_logmel'] < 5e-4
    assert r['max_logits'] < 1e-3
    assert r['max_probabilities'] < 1e-3
    assert r['decisions'] == 1
    e = load_exported(files['float32'])
    one_by_one = np.concatenate([e.probabilities(wave[None]) for wave in waves])
    assert np.abs(e.probabilities(waves) - one_by_one).max() < 1e-5


def test_half_stored(model, files):
    r = parity(files['fp16'], model, noises(10))
    assert r['max_logmel'] < 5e-4 and 0 < r['max_probabilities'] < .02
    t = stored_tensors(files['fp16']).loc['network']
    assert ('weight', 'float16') in t.index and ('weight', 'float32') not in t.index
    assert files['fp16'].stat().st_size < files['float32'].stat().st_size


def test_int8_file_is_the_quantised_model(model, quantised, files):
    "The decisions of the PyTorch reference, integer kernels, and all weights but the first layer's in a byte"
    r = parity(files['int8'], quantised, noises(200, 2), model)
    assert r['decisions'] >= .99 and 0 < r['decisions_of_float'] <= 1
    t = stored_tensors(files['int8']).loc['network', 'elements']
    folded = fold(model.backbone)
    convs = [m.weight.numel() for m in folded.modules() if isinstance(m, nn.Conv2d)]
    assert t['weight', 'int8'] == sum(convs[1:])
    assert t['weight', 'float32'] == convs[0]
    ops = executed_ops(files['int8'])
    # the first is float, the last gives float logits; and a pool
    assert ops['QLinearConv'] == len(convs) - 2 + 1
    assert not any('AveragePool' in o for o in ops)


def test_pools_as_convolutions(quantised, monkeypatch, tmp_path):
    "The same codes as with ONNX Runtime's own integer pool"
    answers = []
    for k in (25, 0):
        monkeypatch.setattr(
            onnx_graph, 'pools_as_convolutions', partial(pools_as_convolutions, most=k)
        )
        export_model(quantised, None, 'int8', network=tmp_path/f'{k}.onnx')
        run = session(tmp_path/f'{k}.onnx')
        shape = run.get_inputs()[0].shape[1:]
        answers.append(
            run.run(
                None,
                {'logmel': np.random.default_rng(0).normal(size=(20, *shape)).astype(np.float32)},
            )[0]
        )
        assert ('QLinearAveragePool' in executed_ops(tmp_path/f'{k}.onnx')) == (k == 0)
    assert np.array_equal(*answers)


def test_a_changed_weight_is_noticed(model, files):
    "The parity report is no formality"
    other = deepcopy(model)
    with torch.no_grad(): other.backbone.feed_forward[0].weight[0] += 1
    assert parity(files['float32'], other, noises(4))['max_logits'] > .01


def test_metadata(model, files):
    e = load_exported(files['float32'])
    assert (e.classes, e.rate, e.samples, e.precision) == (list(SCENES), 44100, 44100, 'float32')
    assert e.facts['logmel'] == list(model.input_shape()[2:])
    assert e.facts['frontend']['sample_rate'] == 32000
    assert len(e.facts['fingerprint']) == 16
    for p in files.values():
        raw = p.read_bytes()
        assert not any(
            s in raw for s in (b'.py', b'site-packages', str(p.parent).encode(), b'pytest')
        )


@pytest.fixture(scope='module')
def run(model, tmp_path_factory):
    "The model as a run folder"
    folder = tmp_path_factory.mktemp('run')
    save_model(model, folder)
    return folder


@pytest.mark.parametrize('seconds, windows', [(2.5, 3), (1, 1), (.3, 1), (1.01, 2), (3, 3)])
@pytest.mark.parametrize('rate', [44100, 48000])
def test_every_door_says_the_same(run, files, tmp_path, seconds, windows, rate):
    "asc.predict, its table of windows, the exported file at two doors, samples at hand, and the demo"
    path, x = tmp_path/'x.wav', noises(1, 1, round(rate*seconds))[0].numpy()
    sf.write(path, to_int16(x), rate)
    rows = predict(run, path, windows=True)
    scenes = list(rows.columns[3:])
    assert len(rows) == windows and rows.start.iloc[-1] == pytest.approx(max(0, seconds - 1))
    want, file = rows[scenes].mean().to_numpy(), load_exported(files['float32'])
    doors = dict(voted=predict(run, path), pair=predict(run, (x, rate)), exported=predict(files['float32'], path),
                 file=file.predict(path), pieces=file.predict([(x, rate)]))
    for name, table in doors.items(): assert table[scenes].to_numpy()[0] == pytest.approx(want, abs=1e-4), name
    wave, hz, *_ = read_start(path)
    assert decide(probabilities_over_time(run, wave, hz, hop=1)).votes.to_numpy() == pytest.approx(want, abs=1e-4)
    said = {str(path): ['0.3 s were repeated to fill 1 s']} if seconds < 1 else {}
    assert doors['voted'].attrs['remarks'] == doors['file'].attrs['remarks'] == said


def test_too_short_at_every_door(run, files, tmp_path):
    "78 samples are no sound to answer for"
    path = tmp_path/'x.wav'
    sf.write(path, noises(1)[0, :78].numpy(), 44100)
    wave, hz, *_ = read_start(path)
    for door in (lambda: predict(run, path), lambda: predict(files['float32'], path),
                 lambda: load_exported(files['float32']).predict(path), lambda: probabilities_over_time(run, wave, hz)):
        with pytest.raises(InputError, match='0.00177 s are too short, the model hears 1 s; give 0.1 s or more'): door()


def test_predict_like_a_published_classifier(model, files, tmp_path):
    x = noises(1)[0].numpy()
    sf.write(tmp_path/'a.wav', x, 44100, 'FLOAT')
    e = load_exported(files['float32'])
    p = PublishedClassifier('x', model.pipeline.frontend, model.backbone, model.scenes).eval()
    a = e.predict([tmp_path/'a.wav', (np.stack([x, x], 1), 44100)])
    b = p.predict([tmp_path/'a.wav'])
    assert list(a.columns) == list(b.columns)
    assert a.file[0] == b.file[0]
    assert a.scene[0] == b.scene[0]
    assert np.abs(a[e.classes].to_numpy() - b[e.classes].to_numpy()).max() < 1e-4
    assert e.predict(tmp_path/'a.wav').equals(a[:1])
    with pytest.raises(InputError, match='44100 Hz; resample'):
        e.probabilities(noises(1), 32000)
    for wave in (noises(1)[:, :-1], noises(1)[0], noises(1).short()):
        with pytest.raises(InputError, match='takes floats|give'): e.probabilities(wave)


def test_network_alone(quantised, files):
    "The same probabilities behind our own frontend"
    for precision, path in files.items():
        e = load_exported(path.with_name(f'{precision}-network.onnx'))
        assert e.facts['kind'] == 'network'
        assert e.path.stat().st_size < path.stat().st_size - 100_000
        whole = load_exported(path).probabilities(noises(3))
        assert np.abs(e.probabilities(noises(3)) - whole).max() < 2e-2
    assert parity(e.path, quantised, noises(20))['max_logmel'] == 0


def test_card(model, files):
    cost = complexity(model.backbone, model.input_shape())
    c = model_card(
        files['int8'],
        cost,
        dict(device_accuracy=dict(a=.5, s6=None), log_loss=1.),
        dict(corpus='x', lists={}),
        dict(clips=3, decisions=1.),
        'MIT',
    )
    b = c['bytes']
    assert b['challenge'] == cost.params
    assert b['file'] == files['int8'].stat().st_size
    assert {'scale float32', 'zero point uint8', 'bias float32'} <= set(b['stored'])
    assert b['network'] == sum(v['bytes'] for v in b['stored'].values()) > b['challenge']
    assert not c['rules']['2022']['passed']
    assert c['rules']['2024']['passed']
    assert 'stored in float32' in c['rules']['2024']['reason']
    assert json.loads(json.dumps(c))
    assert 'device a | 50.0 %' in card_text(c)
    assert 's6' not in card_text(c)
    assert sizes(files['float32'], cost)['challenge'] == 4*cost.params


def test_refused_models(model, tmp_path):
    net = deepcopy(model)
    with pytest.raises(InputError, match='training mode'):
        export_model(net.train(), tmp_path/'a.onnx')
    net.eval().backbone.in_c.train()
    with pytest.raises(InputError, match='training mode'):
        export_model(net, tmp_path/'a.onnx')
    with pytest.raises(InputError, match=r'norms are not folded \(in_c.0.1'):
        export_model(model, tmp_path/'a.onnx', 'int8')
    with pytest.raises(InputError, match="unknown precision 'int4'"):
        export_model(model, tmp_path/'a.onnx', 'int4')
    with pytest.raises(InputError, match='say where the file goes'):
        export_model(model)
    with pytest.raises(InputError, match='found Sequential'):
        export_model(nn.Sequential(), tmp_path/'a.onnx')
    with pytest.raises(InputError, match='not float32'):
        export_model(with_net(model, deepcopy(model.backbone).half()), tmp_path/'a.onnx')
    with pytest.raises(InputError, match='rate'):
        export_model(model, tmp_path/'a.onnx', rate=0)
    with pytest.raises(InputError, match='at least 0.065 s'):
        export_model(model, tmp_path/'a.onnx', seconds=.05)
    with pytest.raises(InputError, match='not calibrated'):
        export_model(with_net(model, prepare(model.backbone)), tmp_path/'a.onnx', 'int8')
    assert not list(tmp_path.iterdir())


def with_net(model, net):
    "The model with another network"
    m = deepcopy(model)
    m.backbone = net
    return m.eval()


def test_quantised_is_int8_only(quantised, tmp_path):
    with pytest.raises(InputError, match="say precision='int8'"):
        export_model(quantised, tmp_path/'a.onnx')


def test_calibration_of_another_shape(model):
    "Clips of another rate or frontend make spectrograms of another shape"
    q = prepare(model.backbone, torch.zeros(model.input_shape()))
    with pytest.raises(InputError, match='prepared for'):
        calibrate(q, [torch.randn(4, 1, 256, 44)])


def test_foreign_files(files, tmp_path):
    raw = files['float32'].read_bytes()
    for name, content in (('cut.onnx', raw[:len(raw)//2]), ('text.onnx', b'hello'), ('empty.onnx', b'')):
        (tmp_path/name).write_bytes(content)
        with pytest.raises(InputError, match='not a whole file'): load_exported(tmp_path/name)
    m = onnx.load(files['float32'])
    for drop, says in (('digest', 'no digest'), ('format', 'not one of asc'), ('rate', 'lack rate')):
        facts = {p.key: p.value for p in m.metadata_props if p.key != drop}
        if drop != 'digest': facts['digest'] = ZEROS
        other = onnx.ModelProto()
        other.CopyFrom(m)
        onnx.helper.set_model_props(other, facts)
        content = other.SerializeToString()
        (tmp_path/'foreign.onnx').write_bytes(content if drop == 'digest' else seal_bytes(content))
        with pytest.raises(InputError, match=says): load_exported(tmp_path/'foreign.onnx')
    with pytest.raises(InputError, match='no such exported file'):
        load_exported(tmp_path/'gone.onnx')


@pytest.mark.parametrize(
    'orig, new, samples',
    [(44100, 32000, 44100), (44100, 32000, 50001), (8000, 44100, 8000), (22050, 16000, 11025)],
)
def test_graph_resampler(orig, new, samples):
    x = torch.randn(2, samples)
    assert (GraphResample(orig, new, samples)(x) - Resample(orig, new)(x)).abs().max() < 1e-5


@pytest.mark.parametrize(
    'name, samples',
    [('cp', 320_000), ('beats', 16_001), ('sp4asc', 3000), ('dragonsearch', 31_999)],
)
def test_graph_frontend_lengths(name, samples):
    fe = create_frontend(name).eval()
    x = torch.randn(2, samples)/10
    y, g = fe(x), GraphLogMel(fe, samples)(x)
    assert y.shape == g.shape and (y - g).abs().max() < 1e-4*max(1, y.abs().max())


def test_genuine_clips(shared, tmp_path):
    "The 2023 checkpoint on the seven clips, at their own rate: probabilities within 1e-3, and the same answers"
    m = load_published(shared/'data'/'weights'/'cpjku23_c0a7nzin.ckpt')
    clips = sorted((shared/'data'/'tau-samples').glob('*.wav'))
    e = load_exported(export_model(m, tmp_path/'cp.onnx', rate=44100))
    a, b = e.predict(clips), m.predict(clips)
    assert (a.scene == b.scene).all()
    assert np.abs(a[e.classes].to_numpy() - b[e.classes].to_numpy()).max() < 1e-3


def test_quantize_from_nothing(papermill, short_test, tmp_path):
    "Without a source, a small network is trained first, and lies beside its files"
    options = dict(data_dir=short_test, calibration=8, parity_clips=8, runs_timed=5, qat_epochs=0, out=tmp_path/'out')
    launch.check(papermill('quantize', executed=tmp_path/'executed.ipynb', **options))
    assert list(json.loads((tmp_path/'out/metrics.json').read_text())['rows']) == ['float', 'folded', 'fp16', 'PTQ']
    assert {path.name for path in (tmp_path/'out').iterdir()} >= {'model.safetensors', 'ptq.onnx'}


def test_quantize_refuses(papermill, tmp_path):
    "Before any work: the sentence is the last line of the error"
    options = dict(source='nowhere.ckpt', out=tmp_path/'out')
    result = papermill('quantize', executed=tmp_path/'executed.ipynb', **options)
    assert result.returncode
    assert 'nowhere.ckpt: no such file' in result.stderr


def test_an_index_that_is_also_a_shape_stays_64_bits():
    "Only what nothing but Gather reads is stored in 32 bits"
    h, kind = onnx.helper, onnx.TensorProto
    names = dict(both=[1, 2], only=[0, 1])
    m = h.make_model(
        h.make_graph(
            [
                h.make_node('Gather', ['x', 'both'], ['a']),
                h.make_node('Gather', ['a', 'only'], ['b']),
                h.make_node('Reshape', ['b', 'both'], ['y']),
            ],
            'g',
            [h.make_tensor_value_info('x', kind.FLOAT, [4])],
            [h.make_tensor_value_info('y', kind.FLOAT, [1, 2])],
            [h.make_tensor(k, kind.INT64, [2], v) for k, v in names.items()],
        )
    )
    onnx.checker.check_model(onnx_graph.shorten(m, 'n/'), full_check=True)
    assert {t.name: t.data_type for t in m.graph.initializer} == {
        'n/both': kind.INT64, 'n/only': kind.INT32
    }
