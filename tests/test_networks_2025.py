"""Golden values of the networks since 2024, with weights that follow from shapes and names alone."""
import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import torch

import asc
from asc.backbone.blocks import ConvNorm
from asc.backbone.branches import RepConv, deployed_form, fuse_branches
from asc.backbone.cp_mobile import CPBlock
from asc.backbone.mobilenet import InvertedResidual, Row
from asc.backbone.rep_ctfa import RepBlock
from asc.backbone.zoo import backbones, create_backbone
from asc.core import InputError
from asc.entry.compact import open_compact
from asc.experiment.start import open_start
from asc.export.onnx import session
from asc.export.onnx_graph import network_graph
from asc.export.plan import read_steps
from asc.frontend.logmel import create_frontend
from asc.model.classifier import create_classifier, save_model
from asc.model.published import recognise
from asc.size.fold import compare_networks, fold
from asc.size.qat import QuantisedTraining, load_quantised, save_quantised
from asc.size.qdq import calibrate, prepare, quantised_classifier, quantisers
from asc.train.finetune import start_from

PUBLISHED = Path(os.environ.get('ASC_SHARED', ''))/'data'/'weights'/'sntl_ntu_2025_v1_fp16.pt'


def spread(n):
    "n numbers from −1 to 1 that any language can compute"
    i = np.arange(1, n + 1, dtype=np.float64)
    return 2*((i*i*0.6180339887498949) % 1) - 1


def filled(name, tensor):
    "The weights of a tensor, by its name and shape"
    u, own = spread(tensor.numel()), name.rsplit('.', 1)[-1]
    if own == 'running_mean': return .1*u
    if own in ('running_var', 'gamma'): return 1 + .5*u
    if tensor.ndim >= 2: return math.sqrt(6/(tensor.numel()/len(tensor)))*u
    if tensor.ndim == 0: return np.array([.4])
    return 1 + .5*u if own == 'weight' else .2*u


def with_weights(net):
    "A network with the weights of the rule, in eval mode"
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if name.endswith('num_batches_tracked'): continue
        values = filled(name, tensor).astype(np.float32)
        tensor.data.copy_(torch.from_numpy(values).reshape(tensor.shape))
    return net.eval()


def zeros(bands, frames): return torch.zeros(1, 1, bands, frames)


def grid(bands, frames):
    f, t = torch.arange(bands)[:, None], torch.arange(frames)
    return (torch.sin(.05*f)*torch.cos(.11*t))[None, None]


def ramp(bands, frames): return torch.linspace(-11, 5, bands*frames).reshape(1, 1, bands, frames)


GOLDEN = {
    ('cnn_gru', zeros, 256, 33): '0.085144 0.009429 −0.029353 0.199812 −0.033465 '
                                 '−0.127988 −0.052024 0.007647 −0.206228 0.177284',
    ('cnn_gru', grid, 256, 33): '0.362177 −0.093132 −0.039522 0.414443 0.139475 '
                                '−0.595578 −0.005595 −0.239791 0.267340 0.582727',
    ('cnn_gru', ramp, 256, 33): '2.517943 −2.131035 5.179433 −0.730903 2.062888 '
                                '−7.053279 −0.511177 −6.076207 6.558885 5.789197',
    ('cnn_gru_2', grid, 256, 33): '0.152587 −0.062847 0.312636 0.179901 −0.294063 '
                                  '−0.660312 −0.212547 −0.309995 0.065409 0.302923',
    ('cnn_gru_2', ramp, 256, 33): '−0.263688 −4.280970 10.825408 0.530259 0.093203 '
                                  '−10.876989 −5.396558 −9.223367 13.391962 3.935583',
    ('rep_ctfa', grid, 256, 65): '−153.055 −283.703 108.706 −72.419 93.561 255.446 52.779 10.269 304.989 129.567',
    ('mn04', grid, 128, 100): '−9.40265 4.05504 −7.37245 −1.52984 −9.04446 5.18785 5.43319 4.97292 0.11468 −9.14598',
    ('mn04', zeros, 128, 100): '1.13772 0.57356 −0.45421 0.21333 −0.71239 0.57849 0.27049 0.67164 0.30554 −0.69575',
    ('mn10', grid, 128, 100): '−31.04397 −91.86753 48.29354 −77.08506 −175.02408 '
                              '−89.04883 −79.62499 −154.82364 30.70182 69.79088',
}


def numbers(text): return torch.tensor([float(word.replace('−', '-')) for word in text.split()])


def assert_close(logits, expected): assert (logits - expected).abs().max() <= 1e-4*expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize('name, make, bands, frames', GOLDEN, ids=lambda v: getattr(v, '__name__', v))
def test_golden_logits(name, make, bands, frames):
    net = with_weights(create_backbone(name))
    assert_close(net(make(bands, frames))[0], numbers(GOLDEN[name, make, bands, frames]))


@torch.no_grad()
def test_fused_branches_answer_alike():
    net, x = with_weights(create_backbone('rep_ctfa')), grid(256, 65)
    expected = net(x)
    assert (fuse_branches(net)(x) - expected).abs().max() <= 1e-5*expected.abs().max()
    assert not any('conv1x1' in name for name in net.state_dict())


@torch.no_grad()
@pytest.mark.parametrize('name, kw', [('rep_ctfa', {}), ('cp_mobile_li', dict(branches=['3x3', '1x1', '1x3', '3x1']))])
def test_fused_branches_on_real_clips(name, kw, shared):
    "What an entry hands in answers to real recordings as the network with branches does: rounding is all that differs"
    files = sorted((shared/'data/ambience/source').glob('*.flac'))[::80]
    waves = torch.stack([torch.from_numpy(sf.read(path, 16000, dtype='float32')[0]) for path in files])
    model = create_classifier(name, backbones[name].frontend, rate=16000, backbone_args=kw, augment=False)
    with_weights(model.backbone)
    expected = model.eval()(waves)
    assert len(files) >= 5 and expected.std(0).min() > 0
    assert (deployed_form(model)(waves) - expected).abs().max() <= 1e-5*expected.abs().max()


@torch.no_grad()
def test_one_convolution_of_four():
    f, t = torch.arange(6.)[:, None], torch.arange(7.)
    x = torch.stack([torch.sin(.5*f*(c + 1))*torch.cos(.3*t) for c in range(4)])[None]
    unit = with_weights(RepConv(4, (2, 1)))
    row = numbers('−0.040057 −0.083006 −0.063799 −0.035313 0.001312 0.043791 0.016299')
    assert torch.allclose(unit(x)[0, 0, 0], row, atol=1e-6)
    unit.fuse()
    kernel = numbers('0.146136 0.238681 0.077140 0.730157 0.236258 −0.178986 −0.267840 0.211275 −0.543823')
    assert torch.allclose(unit.fused_conv[0].weight[0].flatten(), kernel, atol=1e-6)
    assert torch.allclose(unit.fused_conv[0].bias, numbers('0.064180 −0.016299 0.034838 0.184151'), atol=1e-6)
    assert torch.allclose(unit(x)[0, 0, 0], row, atol=1e-6)


def chirp():
    "A second at 44.1 kHz: a rising tone and a steady one"
    t = np.arange(44100)/44100
    x = .2*np.sin(2*np.pi*(50*t + 3975*t*t)) + .05*np.sin(2*np.pi*440*t)
    return torch.from_numpy(x.astype(np.float32))[None]


@pytest.mark.parametrize('kw, expected', [
    ({}, '−7.54425 6.72450 11.41029 8.27721 3.09311 −1.82168'),
    (dict(n_fft=8912, fmin=1.), '−7.52416 6.75851 11.50176 8.38249 3.29533 −1.73783'),
], ids=['as published', 'as trained'])
def test_frontend(kw, expected):
    mel = create_frontend('sntl', **kw).eval()(chirp())[0, 0]
    found = torch.stack([mel.mean(), mel.std(), mel.max(), mel[0, 0], mel[128, 16], mel[-1, -1]])
    assert torch.allclose(found, numbers(expected), atol=2e-4)


@torch.no_grad()
@pytest.mark.skipif(not PUBLISHED.is_file(), reason='the published weights are not here')
def test_published_weights():
    network = asc.open_model(PUBLISHED).network
    assert_close(network(chirp())[0], numbers('−3.03361 −4.10345 −6.89613 −7.76580 14.77491 '
                                              '−2.69169 −11.07481 −5.28770 −2.63425 −5.52182'))
    assert_close(network.backbone(grid(256, 33))[0], numbers('−0.81168 −1.02849 −0.76618 −0.97202 −5.51593 '
                                                             '−4.68491 −6.08589 −4.28169 0.06160 −1.06702'))


ALL_FOUR = ['3x3', '1x1', '1x3', '3x1']
COUNTS = { # network, bands and frames -> parameters, MACs by the official count
    ('cnn_gru', 256, 33): (58_171, 10_902_300),
    ('cnn_gru_2', 256, 33): (58_605, 10_902_300),
    ('rep_ctfa', 256, 65): (62_554, 18_758_084),
    ('rep_ctfa', 400, 65): (62_554, 29_302_844),
    ('cp_mobile_li', 256, 64): (61_160, 17_050_260),
    ('cp_mobile_li', 256, 65): (61_160, 18_576_020),
    ('mn01', 128, 100): (57_090, 1_941_546),
    ('mn04', 128, 100): (718_378, 12_495_874),
    ('mn10', 128, 100): (4_214_554, 62_366_962),
}


@pytest.mark.parametrize('name, bands, frames', COUNTS)
def test_counts(name, bands, frames):
    "Expected beside counted"
    cost = asc.complexity(create_backbone(name), (1, bands, frames))
    assert (cost.params, cost.macs) == COUNTS[name, bands, frames]


@pytest.mark.parametrize('bands, macs', [(256, 19_663_684), (400, 30_715_612)])
def test_what_is_deployed_is_judged(bands, macs):
    "30.7 million MACs in training, 29.3 million without the branches: it may take part, and is told what it was"
    cost = asc.complexity(create_backbone('rep_ctfa'), (1, bands, 65))
    assert cost.training == (69_522, macs) and f'in training 69,522 parameters and {macs:,} MACs' in repr(cost)
    verdict = cost.verdict('2024')
    assert verdict.passed and '69,522' in verdict.reason
    assert cost.to_dict()['training'] == [69_522, macs]
    assert 'training' not in asc.complexity(create_backbone('cp_mobile_24'), (1, 256, 65)).to_dict()


@torch.no_grad()
@pytest.mark.parametrize('name', ['rep_ctfa', 'cp_mobile_24', 'cp_mobile_23', 'cp_mobile_li'])
def test_branches_fold(name):
    "Nothing of the branches is left; what is left of CP-Mobile is CP-Mobile without branches; the error is rounding"
    kw, x = ({} if name == 'rep_ctfa' else dict(branches=ALL_FOUR)), grid(256, 65)
    net = with_weights(create_backbone(name, **kw))
    small, expected = fold(net, x), net(x)
    assert (small(x) - expected).abs().max() <= 1e-5*expected.abs().max()
    assert not any('conv1x1' in key or 'alpha' in key for key in small.state_dict())
    assert any('conv1x1' in key for key in net.state_dict())
    if kw: assert shapes(small) == shapes(fold(create_backbone(name).eval(), x))


def shapes(net): return {key: value.shape for key, value in net.state_dict().items()}


def test_wrong_branches():
    "A sentence for what is no list of kernels"
    for wrong, sentence in [(['7x7'], "unknown branch '7x7'"), ('3x3', 'give a list'), ([], 'give a list'),
                            (['3x3', '3x3'], 'names a kernel twice')]:
        with pytest.raises(InputError, match=sentence): create_backbone('cp_mobile_24', branches=wrong)


@torch.no_grad()
def test_some_branches_without_the_square_one():
    "Any of the kernels, also without the 3×3, and a stride"
    unit = with_weights(RepConv(4, (1, 2), ['1x3', '3x1'], torch.nn.ReLU))
    x = torch.randn(2, 4, 8, 9)
    expected = unit(x)
    unit.fuse()
    assert torch.allclose(unit(x), expected, atol=1e-5) and 'fused_conv.0.bias' in unit.state_dict()


@pytest.mark.parametrize('name', ['cnn_gru', 'cnn_gru_2', 'rep_ctfa', 'cp_mobile_li', 'mn01', 'mn04'])
def test_recognised_with_other_classes(name):
    with torch.device('meta'): state = create_backbone(name, 3).state_dict()
    assert recognise(state) == (name, 3)


@torch.no_grad()
def test_fused_weights_are_recognised(tmp_path):
    "What an entry hands in of rep_ctfa opens as rep_ctfa, and answers like the network with branches"
    net, x = with_weights(create_backbone('rep_ctfa')), grid(256, 65)
    small = deployed_form(net)
    torch.save(small.state_dict(), tmp_path/'fused.pt')
    opened = asc.open_model(tmp_path/'fused.pt').network.backbone
    assert recognise(small.state_dict()) == ('rep_ctfa', 10) and shapes(opened) == shapes(small)
    again = create_backbone('rep_ctfa', weights=tmp_path/'fused.pt').eval()
    for found in (opened, again): assert (found(x) - net(x)).abs().max() <= 1e-5*net(x).abs().max()


HEADS_OF = {'cnn_gru': {'conv1d_5_2'}, 'cnn_gru_2': {'conv1d_5_2'}, 'rep_ctfa': {'feed_forward.0', 'feed_forward.1'},
            'cp_mobile_li': {'feed_forward.0', 'feed_forward.1'}, 'mn01': {'classifier.5'}, 'mn04': {'classifier.5'}}


@pytest.mark.parametrize('name', HEADS_OF)
def test_ten_classes_begin_with_thirty_three(name, tmp_path):
    "A run of 33 classes fills all but the layer that has a row for each of them"
    frontend, others = backbones[name].frontend, [f'sound {i}' for i in range(33)]
    theirs = create_classifier(name, frontend, scenes=others, augment=False)
    with_weights(theirs.backbone)
    save_model(theirs, tmp_path)
    ours = create_classifier(name, frontend, augment=False)
    found = start_from(ours, open_start(tmp_path), tmp_path)
    assert {key.rpartition('.')[0] for key in found['new']} == HEADS_OF[name]
    body, was = ours.backbone.state_dict(), theirs.backbone.state_dict()
    assert all(torch.equal(body[key], was[key]) for key in body if key not in found['new'])
    x = torch.zeros(1, 1, *backbones[name].shape)
    assert ours.eval().backbone(x).shape == (1, 10)
    assert 'Its head was for 33 classes' in found['remark'] and 'anew for 10 classes' in found['remark']


def test_a_fused_network_is_no_start_for_branches(tmp_path):
    theirs = create_classifier('rep_ctfa', augment=False).eval()
    save_model(deployed_form(theirs), tmp_path)
    with pytest.raises(InputError, match='its branches are fused, and this run trains them; give the run it was made'):
        start_from(create_classifier('rep_ctfa', augment=False), open_start(tmp_path), tmp_path)


@torch.no_grad()
def test_gru_in_eight_bits():
    "Two weights with a scale a row, six tensors with one; the loop is the GRU, rounding moves the logits by per cents"
    net, x = with_weights(create_backbone('cnn_gru')), torch.cat([grid(256, 33), ramp(256, 33)])
    small = prepare(net, x)
    assert compare_networks(net, small, x)['max_logit'] <= 1e-5*net(x).abs().max()
    calibrate(small, x)
    own = {name.removeprefix('bgru2d_4_1.'): q for name, q in quantisers(small).items() if 'bgru' in name}
    weights = {name: q.scale.shape for name, q in own.items() if q.axis == 0}
    assert set(weights.values()) == {(192,)} and len(weights) == 2
    inside = {name for name, q in own.items() if q.axis is None}
    assert inside >= {'read.out_quant', 'state.in_quant0', 'state.out_quant', 'gate.out_quant', 'candidate.out_quant'}
    assert 0 < compare_networks(net, small, x)['max_logit'] < .05*net(x).abs().max()
    states = small.bgru2d_4_1.gate(torch.linspace(-4, 4, 1000))
    assert len(states.unique()) <= 256


@torch.no_grad()
def test_quantised_training_drops_nothing():
    "Ranges learn from what is seen in use: two looks at a clip are one, also in a network with dropout"
    net = Narrow(torch.nn.Sequential(ConvNorm(8, 16), torch.nn.Dropout2d(.5))).eval()
    x = torch.randn(2, 1, 4, 16)
    small = calibrate(prepare(net, x), x).train()
    assert not torch.equal(small(x), small(x))
    training = QuantisedTraining(frozen=0)
    training.learn = SimpleNamespace(model=small, epoch=0, n_epoch=1)
    training.before_fit()
    training.before_train()
    assert torch.equal(small(x), small(x)) and small.training


@torch.no_grad()
def test_gru_saved_as_integers(tmp_path):
    "An int8 run folder of the CNN-GRU opens again, equal to the last bit, and as an entry that keeps its codes"
    model = create_classifier('cnn_gru', 'sntl').eval()
    with_weights(model.backbone)
    small, x = quantised_classifier(model), grid(256, 33)
    calibrate(small.backbone, x)
    save_quantised(small, tmp_path)
    again = load_quantised(tmp_path)
    assert torch.equal(again.backbone(x), small.backbone(x))
    compact = open_compact(tmp_path).model
    assert torch.allclose(compact(x), small.backbone(x), rtol=1e-4)
    assert compact.network.bgru2d_4_1.state.weight.dtype == torch.int8


@torch.no_grad()
def test_branches_reach_c():
    "CP-Mobile with branches is written in C step for step as without"
    small = dict(base=8, blocks=(1, 1, 1), strides={})
    steps = []
    for kw in ({}, dict(branches=ALL_FOUR)):
        net, x = with_weights(create_backbone('cp_mobile_24', **small, **kw)), grid(64, 33)
        found = read_steps(calibrate(prepare(net, x), x))
        steps.append([(s.op, s.ins, s.shape, s.window) for s in found])
    assert steps[0] == steps[1]


@torch.no_grad()
@pytest.mark.parametrize('name, operation', [('cnn_gru', 'transpose'), ('rep_ctfa', 'silu'), ('mn01', 'hardswish'),
                                             ('cp_mobile_li', 'linalg_vector_norm')])
def test_c_refuses_by_name(name, operation):
    x = grid(*backbones[name].shape)
    net = calibrate(prepare(with_weights(create_backbone(name)), x), x)
    with pytest.raises(InputError, match=f'needs {operation}, for which there is no C kernel'): read_steps(net)


PARTS = {'cnn_gru': lambda: Read(), 'rep_ctfa': lambda: Narrow(RepBlock(8, 16, 2., (2, 1))),
         'cp_mobile_li': lambda: Narrow(CPBlock(8, 8, 2., grn=True), 8),
         'mn01': lambda: Narrow(InvertedResidual(8, Row(5, 24, 16, True, torch.nn.Hardswish, 2), 1.))}


def sums_are_cut():
    "Whether ONNX Runtime cuts sums of products of bytes on this processor, as it does where there is no VNNI"
    from onnx import TensorProto, helper
    value = helper.make_tensor_value_info
    node = helper.make_node('MatMulInteger', ['x', 'w'], ['y'])
    weights = helper.make_tensor('w', TensorProto.INT8, [64, 16], np.full(64 * 16, 127))
    graph = helper.make_graph([node], 'sum', [value('x', TensorProto.UINT8, [1, 64])],
                              [value('y', TensorProto.INT32, [1, 16])], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 20)], ir_version=9)
    found = session(model.SerializeToString()).run(['y'], {'x': np.full((1, 64), 255, np.uint8)})[0]
    return found[0, 0] != 64 * 255 * 127


@torch.no_grad()
@pytest.mark.parametrize('name', PARTS)
def test_parts_in_onnx(name):
    "What each network is made of, in float and in eight bits, answers in ONNX Runtime as here, for any batch"
    pytest.importorskip('onnxruntime')
    if name in ('cnn_gru', 'rep_ctfa') and sums_are_cut():
        pytest.skip('ONNX Runtime cuts sums of products of bytes on this processor, which has no VNNI')
    net = with_weights(PARTS[name]())
    x = torch.randn(5, 1, 4, 16, generator=torch.Generator().manual_seed(0))
    for form, precision in ((net, 'float32'), (calibrate(prepare(net, x, skip=()), x), 'int8')):
        file = network_graph(form, x[:1], precision).SerializeToString()
        found = session(file).run(['logits'], {'logmel': x.numpy()})[0]
        assert np.abs(found - form(x).numpy()).max() < 1e-2*net(x).abs().max()
        assert (precision == 'int8') == (b'QuantizeLinear' in file)


class Read(torch.nn.Module):
    "A GRU and a classifier of its last state"
    def __init__(self):
        super().__init__()
        self.gru, self.out = torch.nn.GRU(16, 8, batch_first=True), torch.nn.Linear(8, 3)

    def forward(self, x): return self.out(self.gru(x[:, 0])[0][:, -1])


class Narrow(torch.nn.Module):
    "A block of 8 channels between a convolution and a classifier"
    def __init__(self, block, channels=16):
        super().__init__()
        self.stem, self.block, self.out = ConvNorm(1, 8), block, torch.nn.Linear(channels, 3)

    def forward(self, x): return self.out(self.block(self.stem(x)).mean((2, 3)))
