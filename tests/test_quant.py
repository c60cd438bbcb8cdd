"""Folding, eight bits, pruning and quantised training across the zoo, and on the published checkpoints."""
from copy import deepcopy

import pytest
import torch
from torch import nn

from asc.backbone.tensors import TensorFile
from asc.backbone.zoo import backbones, create_backbone
from asc.core import InputError
from asc.model.classifier import create_classifier
from asc.model.saved import read_saved, write_saved
from asc.size.fold import compare_networks, fold, half_weights, norms
from asc.size.dataflow import dataflow
from asc.size.ptq import mixed_precision, ptq, sensitivity
from asc.size.qat import load_quantised, save_quantised, with_augmentation
from asc.size.places import WEIGHTED_LAYERS
from asc.size.qdq import calibrate, calibration_batches, emitting, prepare
from asc.size.qdq import quant_bytes, quantised_classifier, quantisers

SMALL = {
    'cp_mobile_24': (64, 33), 'cp_mobile_23': (64, 33), 'cp_resnet': (64, 33),
    'tf_sepnet_40': (128, 33), 'tf_sepnet_dragon_60': (64, 44), 'bc_resnet_40': (64, 33),
    'cnn3': (40, 51), 'cnn6_60k': (256, 20),
}

BEATS = dict(
    encoder_layers=1, encoder_embed_dim=32, encoder_ffn_embed_dim=32,
    encoder_attention_heads=2, embed_dim=16,
)


def trained(make, seed=0):
    "A network in eval mode whose norms are not those of the first minute"
    torch.manual_seed(seed)
    net = make().eval()
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            for t, low in (
                (m.running_mean, -.3), (m.running_var, .5), (m.weight, .8), (m.bias, -.3)
            ):
                nn.init.uniform_(t, low, low + .6)
        elif isinstance(m, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_uniform_(m.weight)
    return net


def named(name, **kw):
    "A trained network by its name, and a batch for it"
    net = trained(lambda: create_backbone(name, **kw))
    return net, torch.randn(8, 1, *SMALL[name])


def relative(a, b, x):
    "Largest difference against the spread"
    return compare_networks(a, b, x)['max_logit'] / a(x).abs().max().item()


@pytest.mark.parametrize('name', SMALL)
def test_fold(name):
    "Every norm folds, the logits stay, the original is untouched, and the second time nothing is left to fold"
    net, x = named(name)
    before = deepcopy(net.state_dict())
    small = fold(net, x)
    assert relative(net, small, x) < 1e-5
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not [m for m in small.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert relative(small, fold(small, x), x) == 0
    assert relative(small, half_weights(small), x) < .01
    assert not any(m.training for m in small.modules())


@pytest.mark.parametrize(
    'make, shape',
    [
        (lambda: create_backbone('passt_s', dim=24, depth=1, heads=2), (128, 60)),
        (lambda: create_backbone('torchvision:resnet18'), (64, 33)),
        (lambda: create_backbone('beats', cfg=BEATS), (128, 40)),
        (lambda: create_backbone('torchvision:densenet121'), (64, 33)),
    ],
    ids=['passt', 'resnet18', 'beats', 'densenet'],
)
def test_fold_others(make, shape):
    "Networks without norms, with shared activations, with norms before the convolution"
    net, x = trained(make), torch.randn(2, 1, *shape)
    small = fold(net, x)
    assert relative(net, small, x) < 1e-4
    plan = norms(net, x)
    left = [m for m in small.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(left) == (plan.why != '').sum() < max(len(plan), 1)


def test_a_norm_with_company_stays():
    "A convolution whose output is read outside its norm is not folded"
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.bn = nn.BatchNorm2d(4)
            self.unused = nn.BatchNorm2d(4)
        def forward(self, x):
            return (self.bn(y := self.conv(x)) + y).mean((2, 3))
    net, x = trained(Net), torch.randn(2, 1, 8, 8)
    assert norms(net, x).why.tolist() == ['conv has other readers', 'it never ran']
    assert relative(net, fold(net, x), x) == 0
    with pytest.raises(
        InputError, match='bn could not be folded.*put the layer before it into skip'
    ):
        prepare(net, x, skip=())


def test_dataflow_knows_views():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2)).eval()
    calls, readers = dataflow(net, torch.zeros(1, 1, 3, 3))
    assert [c.name for c in calls] == ['0', '1', '2']
    assert calls[1].ins == (calls[0].out,)
    assert readers[calls[0].out] == 1


@pytest.mark.parametrize('name', SMALL)
def test_quantised(name):
    "Weights take 255 values a channel, tensors 256, the logits stay near, and an exporter sees the same numbers"
    net, x = named(name)
    q = ptq(net, x.split(4))
    stem = q.quantised['skip']
    for n, m in q.named_modules():
        if not isinstance(m, WEIGHTED_LAYERS): continue
        if n in stem:
            assert torch.equal(m.weight, fold(net, x).get_submodule(n).weight)
            continue
        p = m.parametrizations.weight[0]
        assert torch.equal(
            m.weight,
            p.quantise(m.weight).float() * p.scale.reshape(-1, *[1] * (m.weight.ndim - 1)),
        )
    seen = {}
    for n, k in quantisers(q).items():
        if k.axis is None:
            k.register_forward_hook(lambda m, i, o, n=n: seen.update({n: (m, o)}))
    d = compare_networks(net, q, x)
    assert 0 < d['mean_logit'] < .1 * net(x).abs().max()
    assert seen
    assert all(
        torch.equal(m.quantise(o).float(), (o / m.scale).round() + m.zero_point)
        for m, o in seen.values()
    )
    def emit(v, scale, zero, axis):
        wide = lambda t: t.float() if axis is None else t.float().reshape(-1, *[1] * (v.ndim - 1))
        codes = v.float() if axis == 0 else ((v / scale).round() + zero).clamp(0, 255)
        assert axis is None or v.dtype == torch.int8
        return (codes - wide(zero)) * wide(scale)
    with torch.no_grad(), emitting(q, emit): logits = q(x)
    assert (logits - q(x)).abs().max() < 1e-4 * q(x).abs().max()
    assert not any('codes' in k for k in q.state_dict())
    b = quant_bytes(q)
    assert b['int8'] + (b['float'] + b['biases']) // 4 == sum(
        p.numel() for p in fold(net, x).parameters()
    )


def test_gradient_is_that_of_learned_steps():
    "The hand-written backward pass is what autograd makes of rounding with a straight-through gradient"
    from asc.size.quantiser import Quantiser
    torch.manual_seed(0)
    for channels in (0, 5):
        q, x = Quantiser(channels), torch.randn(5, 7, requires_grad=True)
        q.set(torch.rand(channels or ()) / 50 + .01, 0 if channels else 100)
        q.stretch.requires_grad_()
        g = torch.randn(5, 7)
        got = torch.autograd.grad(q(x), (x, q.stretch), g)
        s, z = q._wide(q.scale, x), q._wide(q.zero_point, x)
        v = x / s
        y = ((v + (v.round() - v).detach() + z).clamp(q.low, q.high) - z) * s
        for a, b in zip(got, torch.autograd.grad(y, (x, q.stretch), g)):
            assert torch.allclose(a, b, atol=1e-5)


def test_float_layers_read_float():
    "A layer left in float reads what nobody has rounded"
    net, x = named('cp_mobile_24')
    middle = 'stages.s2.b4.block.1.0'
    q = calibrate(prepare(net, x, [middle]), x)
    assert middle not in {l for k in quantisers(q).values() for l in k.layers}
    assert 'in_c.0.0.in_quant0' in quantisers(q)
    assert 'stages.s2.b4.block.0.2.out_quant' not in quantisers(q)


def test_sensitivity_leaves_the_network_alone():
    net, x = named('cp_mobile_24')
    q = calibrate(prepare(net, x, ()), x)
    y = q(x)
    table = sensitivity(q, x)
    assert torch.equal(q(x), y)
    assert table.mean_logit.is_monotonic_decreasing
    assert 'in_c.0.0' in table.index
    small, steps = mixed_precision(net, x.split(4), [x], target=1., most=1, rounding=False)
    assert len(steps) <= 2 and small.quantised['skip'][0] == 'in_c.0.0'


def test_refusals():
    net, x = named('cp_mobile_24')
    with pytest.raises(InputError, match=r'training mode \(it and more\)'):
        prepare(deepcopy(net).train(), x)
    with pytest.raises(InputError, match='no batch'): ptq(net, [])
    q = prepare(net, x)
    with pytest.raises(InputError, match='not calibrated'), emitting(q, None): pass
    with pytest.raises(InputError, match='NaN'): calibrate(q, x * float('nan'))
    with pytest.raises(InputError, match='unknown observer'):
        calibrate(q, x, 'median')
    with pytest.raises(InputError, match='training mode'), emitting(calibrate(q, x).train(), None):
        pass


@pytest.fixture(scope='module')
def classifier():
    "A small classifier, untrained"
    torch.manual_seed(0)
    return create_classifier('cp_mobile_24', rate=8000, backbone_args=dict(base=8)).eval()


def test_saved_and_loaded(classifier, tmp_path):
    "To the last bit, with learned scales; other files are refused"
    q = quantised_classifier(classifier)
    x = torch.randn(4, *q.input_shape()[1:])
    calibrate(q.backbone, x)
    for k in quantisers(q).values(): k.stretch.data.uniform_(-.1, .1)
    save_quantised(q, tmp_path, note='untrained')
    again = load_quantised(tmp_path)
    assert torch.equal(again.backbone(x), q.backbone(x))
    assert again.scenes == q.scenes
    size = (tmp_path/'model.safetensors').stat().st_size
    assert size < 1.6 * quant_bytes(q.backbone)['total'] + 20_000
    assert with_augmentation(again).pipeline.plan != again.pipeline.plan
    _, spec, files = read_saved(tmp_path)
    other = tmp_path/'other'
    for change, says in (
        (dict(backbone='cnn3', backbone_args={}), 'CNN3: 256 mel bands'),
        (dict(format='asc-classifier-1'), 'expected asc-quantised-1'),
        (dict(quantised=dict(skip=['nothing'], logits=False)), 'unknown layer'),
    ):
        write_saved(other, {**spec, **change}, files)
        with pytest.raises(InputError, match=says): load_quantised(other)
    tensors = files['model.safetensors'].tensors
    without = {k: v for k, v in tensors.items() if k != 'in_c.1.0.weight_scale'}
    for wrong in (without, {**tensors, 'in_c.1.0.weight': tensors['in_c.1.0.weight'].float()}):
        write_saved(other, spec, {'model.safetensors': TensorFile(wrong)})
        with pytest.raises(InputError, match='does not fit cp_mobile_24'):
            load_quantised(other)


def test_calibration_clips(packed):
    "Spread over scenes and devices; another rate is refused"
    from asc.train.clips import ClipData
    from asc.data.splits import read_split
    corpus, store = packed
    data = ClipData(store, read_split(corpus, 100), corpus.scenes, corpus.devices)
    model = create_classifier('cp_mobile_24', rate=store.rate, backbone_args=dict(base=8)).eval()
    a, b = (calibration_batches(model, data, 20, 8) for _ in range(2))
    assert [len(x) for x in a] == [8, 8, 4] and all(map(torch.equal, a, b))
    wrong = create_classifier('cp_mobile_24', rate=48000, backbone_args=dict(base=8)).eval()
    with pytest.raises(InputError, match=f'the clips have {store.rate} Hz'):
        calibration_batches(wrong, data)


def test_pruned_then_quantised(classifier, tmp_path):
    "A pruned network quantises, saves and loads"
    pytest.importorskip('torch_pruning')
    from asc.size.prune import prune
    model = deepcopy(classifier)
    x = torch.randn(4, *classifier.input_shape()[1:])
    calls = []
    model.backbone, steps = prune(
        model.backbone,
        x,
        max_macs=1_000_000,
        steps=2,
        round_to=4,
        retrain=lambda net, step: calls.append(step),
    )
    assert calls == [1, 2] and steps.macs.iloc[-1] <= 1_000_000 < steps.macs.iloc[0]
    q = quantised_classifier(model.eval())
    calibrate(q.backbone, x)
    save_quantised(q, tmp_path)
    assert torch.equal(load_quantised(tmp_path).backbone(x), q.backbone(x))


@pytest.mark.parametrize('name', ['cp_resnet', 'bc_resnet_40', 'cnn6_60k'])
def test_prune_others(name):
    pytest.importorskip('torch_pruning')
    from asc.size.prune import prune
    net, x = named(name)
    small, steps = prune(net, x, max_bytes=int(.7 * backbones[name].params), steps=2)
    assert steps.bytes.iloc[-1] <= .7 * backbones[name].params
    assert small(x).shape == (8, 10)


def test_published_merge_without_eps(shared):
    "Folding without eps, a quirk of sp4asc, moves the logits of its first checkpoint by up to 6.07"
    from asc.model.published import load_published
    model = load_published(shared/'data/weights/sp4asc_128_2_32_2.pth')
    t = torch.arange(441_000) / 44_100
    wave = .5 * torch.sin(2 * torch.pi * (50 * t + 1000 * t**2))[None]
    with torch.no_grad():
        y, right, quirk = (m(wave) for m in (model, fold(model), fold(model, eps=False)))
    assert (right - y).abs().max() < 1e-3 and (quirk - y).abs().max() > 1


def test_published_checkpoint_in_eight_bits(shared):
    "cpjku23 on genuine clips: better rounding halves the error of calibration, and fp16 storage changes no decision"
    from asc.model.published import as_wave, load_published
    from asc.frontend.mel import Resample
    model = load_published(shared/'data/weights/cpjku23_c0a7nzin.ckpt')
    torch.manual_seed(0)
    waves = torch.cat(
        [
            Resample(r, 32000)(w)[:, :32000]
            for w, r in map(as_wave, sorted((shared/'data/tau-samples').glob('*.wav')))
        ]
    )
    with torch.no_grad():
        x = model.frontend(
            torch.cat([waves, waves.roll(9000, 1) + .02 * waves.std() * torch.randn_like(waves)])
        )
    clips = x[:7]
    plain = calibrate(prepare(model.network, x), x[7:])
    better = ptq(model.network, [x[7:]])
    a, b = (compare_networks(model.network, n, clips) for n in (plain, better))
    assert b['agreement'] == 1
    assert b['mean_logit'] < .75 * a['mean_logit'] < .3
    half = half_weights(fold(model.network))
    assert compare_networks(model.network, half, clips)['agreement'] == 1
