"complexity: the official count against torchinfo and the published figures, the honest count against hand counts"
import copy
from importlib.util import find_spec

import pytest
import torch
import torchinfo
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.fusion import fuse_conv_bn_eval

from asc.backbone.zoo import backbones, create_backbone
from asc.core import InputError
from asc.frontend.logmel import create_frontend
from asc.size.cost import complexity, judge_devices
from asc.size.layers import layer_table
from asc.size.ops import trace

ROWS_24 = '''in_c.0 1×256×65 88 304144
in_c.1 8×128×33 2368 2506816
b1.0 32×64×17 2176 2228352
b1.1 64×64×17 704 626816
b1.2 64×64×17 2112 2228288
b2.0 32×64×17 2176 2228352
b2.1 64×64×17 704 626816
b2.2 64×64×17 2112 2228288
b3.0 32×64×17 2176 2228352
b3.1 64×64×17 704 331904
b3.2 64×64×9 2112 1179712
b4.0 32×64×9 2176 1179776
b4.1 64×64×9 704 166016
b4.2 64×32×9 3696 1032304
b5.0 56×32×9 6960 1935600
b5.1 120×32×9 1320 311280
b5.2 120×32×9 6832 1935472
b6.0 56×32×9 6960 1935600
b6.1 120×32×9 1320 311280
b6.2 120×32×9 12688 3594448
head 104×32×9 1040 299520
head 10×32×9 20 20'''

ROWS_23 = '''in_c.0 1×256×64 88 294928
in_c.1 8×128×32 2368 2359360
b1.0 32×64×16 3264 3145920
b1.1 96×64×16 1056 884928
b1.2 96×64×16 3136 3145792
b2.0 32×64×16 3264 3145920
b2.1 96×64×16 1056 221376
b2.2 96×32×8 3136 786496
b3.0 32×32×8 3264 786624
b3.1 96×32×8 1056 221376
b3.2 96×32×8 3136 786496
b4.0 32×32×8 3264 786624
b4.1 96×32×8 1056 110784
b4.2 96×16×8 7056 884880
b5.0 72×16×8 15984 1991088
b5.1 216×16×8 2376 249264
b5.2 216×16×8 15696 1990800
b6.0 72×16×8 15984 1991088
b6.1 216×16×8 2376 249264
b6.2 216×16×8 36624 4645200
head 168×16×8 1680 215040
head 10×16×8 20 20'''


@pytest.mark.parametrize(
    'name, frames, table', [('cp_mobile_24', 65, ROWS_24), ('cp_mobile_23', 64, ROWS_23)]
)
def test_layer_tables_are_the_published_ones(name, frames, table):
    "every row: input, parameters and MACs"
    r = complexity(create_backbone(name), (1, 256, frames)).rows
    r = r[~r.index.str.contains('after_block_norm')]
    want = [line.split()[1:] for line in table.splitlines()]
    assert [[i, str(p), str(m)] for i, p, m in zip(r.input, r.params, r.macs)] == want


NETS = [n for n in backbones if n != 'passt_s' or find_spec('timm')]


@pytest.mark.parametrize('name', NETS)
def test_published_totals(name):
    "The published counts; for the teachers the honest one, since theirs was made with a FLOP counter"
    b = backbones[name]
    c = complexity(create_backbone(name), (1, *backbones[name].shape))
    assert c.params == c.honest['params'] == b.params
    if b.macs < 1e9:
        assert c.macs == b.macs
    else:
        assert c.honest['macs'] == pytest.approx(b.macs, rel=1e-3) and c.loopholes


@pytest.mark.parametrize('name', NETS)
def test_equals_torchinfo(name):
    b, net = backbones[name], create_backbone(name)
    info = torchinfo.summary(net, input_size=(1, 1, *b.shape), verbose=0)
    c = layer_table(net, (1, *b.shape), deployed=False)
    assert c.macs.sum() == info.total_mult_adds
    assert c.params.sum() == sum(p.numel() for p in net.parameters())


class Odd(nn.Module):
    "things torchinfo has rules for: a shared layer, an LSTM, bare parameters, a part that never runs"
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, bias=True)
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.shared = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.token = nn.Parameter(torch.zeros(1, 1, 6))
        self.idle = nn.Linear(3, 3)
    def forward(self, x):
        y = self.lstm(self.conv(x).mean(2).transpose(1, 2))[0] + self.token
        return self.norm(self.shared(self.shared(y)))


def test_odd_modules_as_torchinfo():
    net = Odd()
    info = torchinfo.summary(net, input_size=(1, 1, 12, 20), verbose=0)
    c = layer_table(net, (1, 12, 20))
    assert (c.params.sum(), c.macs.sum()) == (info.total_params, info.total_mult_adds)
    assert c.query('name == "shared"').params.tolist() == [42, 0]
    assert c.query('name == "idle"').macs.item() == 0


def test_pruned_as_torchinfo():
    net = create_backbone('cp_mobile_24')
    for m in net.modules():
        if isinstance(m, nn.Conv2d): prune.random_unstructured(m, 'weight', .5)
    info = torchinfo.summary(net, input_size=(1, 1, 256, 65), verbose=0)
    c = complexity(net, (1, 256, 65))
    assert (c.params, c.macs) == (info.total_params, info.total_mult_adds)
    assert c.params < 33_000 and c.honest['params'] == 61_148
    assert any('mask' in s for s in c.loopholes)


def test_folded_batch_norm_raises_the_official_count():
    "The published tables: 28,893,268 -> 29,561,088 MACs, 126,952 -> 124,862 parameters; int8 is over 128 kB"
    net = create_backbone('cp_mobile_23').eval()
    for m in net.modules():
        kids = list(m.named_children())
        for (a, conv), (b, bn) in zip(kids, kids[1:]):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                setattr(m, a, fuse_conv_bn_eval(conv, bn))
                setattr(m, b, nn.Identity())
    c = complexity(net, (1, 256, 64), bits=8)
    assert (c.params, c.macs) == (124_862, 29_561_088)
    assert c.honest['bytes'] == 122_760 + 4 * (2_090 + 12)
    assert c.verdict('2023').passed and c.honest['bytes'] > 128_000
    assert c.honest['macs'] == 28_889_088  # bias or not: the same multiplications


@pytest.mark.parametrize('training', [True, False])
def test_model_comes_back_untouched(training):
    net = create_backbone('cp_mobile_24').train(training)
    net.in_c.train(not training)
    modes = [m.training for m in net.modules()]
    before = copy.deepcopy(net.state_dict())
    rng = torch.get_rng_state()
    complexity(net, (1, 256, 65))
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_untouched_after_a_failure():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(5)).train()
    with pytest.raises(RuntimeError): complexity(net, (1, 16, 16))
    assert net.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_precision_changes_no_count(dtype):
    a, b = (
        complexity(create_backbone('cp_mobile_24').to(d), (1, 256, 65)).to_dict()
        for d in (torch.float32, dtype)
    )
    for c in (a, b):
        # the smallest weights are zero in half precision
        c['honest'].pop('nonzero')
    assert a == b


def test_honest_macs_of_attention_and_rnn():
    D, T = 12, 20
    layer = nn.TransformerEncoderLayer(D, 3, 24, batch_first=True)
    net = nn.Sequential(nn.Flatten(0, 1), layer)
    c = complexity(net, (1, T, D))
    assert c.honest['macs'] == T * (4 * D * D + 2 * 24 * D) + 2 * T * T * D
    assert any('scaled_dot_product' in s or 'bmm' in s for s in c.loopholes)
    rnn = nn.Sequential(nn.Flatten(0, 1), nn.LSTM(D, 7, batch_first=True))
    assert complexity(rnn, (1, T, D)).honest['macs'] == T * 4 * 7 * (D + 7)
    gru = nn.Sequential(nn.Flatten(0, 1), nn.GRU(D, 7, batch_first=True))
    # the first hidden state is a constant
    assert complexity(gru, (1, T, D)).honest['macs'] == T * 3 * 7 * (D + 7) - 3 * 7 * 7


def test_transposed_and_grouped_convolutions():
    x = torch.zeros(1, 6, 10, 8)
    assert trace(nn.Conv2d(6, 12, 3, groups=3, padding=1), x).macs.sum() == 12 * 2 * 9 * 80
    assert trace(nn.ConvTranspose2d(6, 12, 2, stride=2), x).macs.sum() == 6 * 80 * 12 * 4


@pytest.mark.filterwarnings('ignore')
def test_quantised_weights_are_seen():
    "torch.ao modules hold their weights packed: no parameters and no MACs for torchinfo"
    nnq = torch.ao.nn.quantized
    c = complexity(nn.Sequential(nn.Flatten(), nnq.dynamic.Linear(16, 10)), (1, 4, 4), bits=8)
    assert (c.params, c.macs) == (0, 0)
    assert (c.honest['params'], c.honest['macs']) == (170, 160)
    assert any('packed' in s for s in c.loopholes)
    assert any('multiplies 160 times' in s for s in c.loopholes)
    c = complexity(
        nn.Sequential(nnq.Quantize(.1, 0, torch.quint8), nnq.Conv2d(1, 4, 3), nnq.DeQuantize()),
        (1, 8, 8),
        bits=8,
    )
    assert (c.honest['params'], c.honest['macs']) == (40, 4 * 9 * 36)


class Chain(nn.Module):
    def __init__(self, *fs):
        super().__init__()
        self.fs = fs
    def forward(self, x):
        for f in self.fs: x = f(x)
        return x


@pytest.mark.parametrize('peak, fs', [
    # element-wise: written over
    (100, [F.relu]), (100, [torch.sin, torch.cos, F.relu_]),
    # views are free
    (100, [lambda x: x.reshape(1, -1).t(), torch.neg]),
    # input and output; the kernel is a constant
    (400, [lambda x: F.conv2d(x, torch.ones(3, 1, 1, 1))]),
    # the sum goes over the convolution's output
    (200, [lambda x: x + F.conv2d(x, torch.ones(1, 1, 1, 1))]),
    (300, [lambda x: torch.cat([x, x], 1)]), (101, [lambda x: x.mean((2, 3))]),
    (200, [lambda x: x * 2 + x]), (200, [lambda x: x * 2 + x, lambda x: x * 2 + x]),
    (300, [lambda x: (x.sin(), x.cos(), x), lambda t: t[0] * t[1] + t[2]])])
def test_peak_memory_by_hand(peak, fs):
    "elements alive at the worst operation, for an input of 100"
    assert trace(Chain(*fs), torch.zeros(1, 1, 10, 10)).alive.max() == peak


def test_verdict_needs_a_known_year():
    c = complexity(create_backbone('cp_mobile_24'), (1, 256, 65))
    assert c.verdict(2024)
    assert c.verdict('2025')
    assert not c.verdict('2024', bits=32)
    assert not c.verdict('2022')
    # zero-initialised shifts are not counted
    assert c.verdict('2021', bits=16).checks.loc['bytes', 'found'] < 2 * c.params
    with pytest.raises(InputError): c.verdict('2019')


def test_frontend_is_counted_and_must_fit():
    class Mel(nn.Module):
        sample_rate = 1000
        def __init__(self):
            super().__init__()
            self.register_buffer('bank', torch.ones(16, 33), persistent=False)
        def forward(self, x):
            s = torch.stft(x, 64, 50, window=torch.ones(64), return_complex=True).abs()
            return (self.bank @ s)[:, None]
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1))
    h = complexity(net, (1, 16, 21), frontend=Mel()).honest
    assert h['frontend_macs'] == 16 * 33 * 21 + 21 * 64 * 6
    assert h['frontend_buffer_bytes'] == 16 * 33 * 4
    with pytest.raises(InputError, match='makes \\(1, 16, 21\\)'):
        complexity(net, (1, 16, 20), frontend=Mel())


def test_a_parametrised_convolution_is_free_officially_and_flagged():
    "what a quantisation-aware network looks like: torchinfo sees no leaf that multiplies"
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False))
    nn.utils.parametrize.register_parametrization(net[0], 'weight', nn.Identity())
    info = torchinfo.summary(net, input_size=(1, 1, 12, 12), verbose=0)
    c = complexity(net, (1, 12, 12))
    assert c.macs == info.total_mult_adds == 0
    assert c.params == info.total_params == 36
    assert c.honest['macs'] == 36 * 100
    assert any('counted 0' in s for s in c.loopholes)


def test_each_device_of_2025_passes_by_itself():
    small = create_backbone('cp_mobile_24')
    large = create_backbone('cp_mobile_24', mult=2.3)
    t = judge_devices(dict(a=small, b=small, unknown=large), (1, 256, 65))
    assert t.passed.tolist() == [True, True, False] and t.params.sum() > 128_000


def test_to_dict_is_json():
    import json
    d = complexity(create_backbone('cp_mobile_24'), (1, 256, 65)).to_dict()
    assert json.loads(json.dumps(d)) == d and d['macs'] == 29_419_156


def test_pictures_of_small_and_deep_networks(tmp_path):
    for name in ('cp_mobile_24', 'beats'):
        cost = complexity(create_backbone(name), (1, *backbones[name].shape))
        cost.plot().savefig(tmp_path/'c.png')


def test_the_frontend_of_the_baseline():
    "65 transforms of length 4096, and two mel bands for nearly every bin"
    net = create_backbone('cp_mobile_24')
    h = complexity(net, (1, 256, 65), frontend=create_frontend('dcase24')).honest
    fft = 65 * 4096 * 12
    assert fft < h['frontend_macs'] < fft + 65 * 2 * 2049
    with pytest.raises(InputError, match='makes \\(1, 256, 64\\)'):
        complexity(create_backbone('cp_mobile_24'), (1, 256, 65), frontend=create_frontend('cp'))


def test_masks_and_devices():
    "A pruning mask counts as the zeros it makes; the 2025 rules look at the network of each device"
    net = create_backbone('cp_mobile_24')
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    for m in convs: prune.l1_unstructured(m, 'weight', .9)
    masked = complexity(net, (1, 256, 65)).honest
    for m in convs: prune.remove(m, 'weight')
    pruned = complexity(net, (1, 256, 65)).honest
    assert masked['nonzero'] == pruned['nonzero'] < masked['params'] / 4
    both = nn.Module()
    both.base_model = create_backbone('cp_mobile_24')
    both.device_models = nn.ModuleDict({'a': create_backbone('cp_mobile_24')})
    t = judge_devices(both, (1, 256, 65))
    assert list(t.index) == ['a', 'unknown']
    assert t.passed.all()
    assert set(t.params) == {61148}


def test_pruning_has_the_same_non_zeros_before_and_after_remove():
    net = create_backbone('cp_mobile_24', base=64)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    plain = complexity(net, (1, 64, 64)).honest['buffers']
    for m in convs: prune.random_unstructured(m, 'weight', .9)
    masked = complexity(net, (1, 64, 64))
    for m in convs: prune.remove(m, 'weight')
    removed = complexity(net, (1, 64, 64))
    assert masked.honest['nonzero'] == removed.honest['nonzero']
    assert masked.honest['buffers'] == plain
    a, b = (c.verdict('2024') for c in (masked, removed))
    assert a.checks.loc['bytes', 'found'] == b.checks.loc['bytes', 'found']
    assert not a
    assert 'pruned by a mask' in f'{a.reason} {masked.loopholes}'
    assert 'parameters are stored' in a.reason and 'stored' not in b.reason


@pytest.mark.filterwarnings('ignore')
def test_packed_weights_do_not_pass_silently():
    net = nn.Sequential(nn.Flatten(), torch.ao.nn.quantized.dynamic.Linear(256, 600))
    v = complexity(net, (1, 16, 16), bits=8).verdict('2024')
    assert not v
    assert v.checks.loc['bytes', 'found'] == 256 * 600 + 600
    assert 'are stored' in v.reason
    assert 'loophole' in v.reason


def test_a_module_with_a_network_per_device():
    class PerDevice(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_model = create_backbone('cp_mobile_24')
            self.device_models = nn.ModuleDict(
                dict(a=create_backbone('cp_mobile_24'), b=create_backbone('cp_mobile_24', mult=2.3))
            )
        def forward(self, x): return self.base_model(x)
    net = PerDevice()
    assert judge_devices(net, (1, 256, 65)).passed.to_dict() == dict(a=True, b=False, unknown=True)
    c = complexity(net, (1, 256, 65))
    assert any('judge_devices' in s for s in c.loopholes) and not c.verdict('2024')
    with pytest.raises(InputError, match='judge_devices'): c.verdict(2025)
    with pytest.raises(InputError, match='device -> network'):
        judge_devices(net.base_model, (1, 256, 65))


def test_the_row_of_the_peak_is_kept():
    c = complexity(create_backbone('tf_sepnet_64'), (1, *backbones['tf_sepnet_64'].shape))
    assert c.rows.ram.max() == c.honest['ram']


@pytest.mark.parametrize(
    'macs, f',
    [
        (3 * 5 * 4 * 6, lambda x: F.bilinear(x, torch.ones(3, 6), torch.ones(5, 4, 6))),
        (7 * 3 * 4, lambda x: torch.cdist(x, torch.ones(7, 4))),
        (3 * 4 * 2, lambda x: torch.addbmm(torch.zeros(3, 2), x[None], torch.ones(1, 4, 2))),
        (12, lambda x: torch.vdot(x.flatten(), torch.ones(12))),
    ],
)
def test_rare_contractions_are_counted(macs, f):
    assert trace(Chain(f), torch.ones(3, 4)).macs.sum() == macs


@pytest.mark.filterwarnings('ignore')
def test_script_modules_are_refused():
    net = torch.jit.script(nn.Sequential(nn.Conv2d(1, 4, 3)))
    for m in (net, nn.Sequential(net)):
        with pytest.raises(InputError, match='TorchScript'):
            complexity(m, (1, 8, 8))
        with pytest.raises(InputError, match='TorchScript'):
            trace(m, torch.zeros(1, 1, 8, 8))


class TwoInputs(nn.Module):
    def forward(self, x, device): return x


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(10))
    def forward(self, x): return self.logits


@pytest.mark.parametrize(
    'model, says',
    [
        (TwoInputs(), "forward\\(x, device\\) of TwoInputs.*'device'"),
        (nn.ModuleList(), 'no network with a forward'),
        (nn.Module, 'type is no network'),
        (nn.Bilinear(1, 1, 1), "'input2'"),
    ],
)
def test_what_takes_no_spectrogram_is_refused(model, says):
    for count in (complexity, layer_table):
        with pytest.raises(InputError, match=says): count(model, (1, 8, 8))


@pytest.mark.parametrize(
    'model, params',
    [(nn.Identity(), 0), (nn.Sequential(), 0), (nn.Flatten(), 0), (Constant(), 10)],
)
def test_a_network_that_computes_nothing(model, params):
    c = complexity(model, (1, 8, 8), bits=8)
    assert (c.params, c.macs, c.honest['macs'], c.honest['ram']) == (params, 0, 0, 64)
    assert 'the input' in repr(c)
    assert c.verdict('2024')
    c.plot()


@pytest.mark.parametrize('kw', [dict(bits='8'), dict(bits=0), dict(input_shape=5)])
def test_bad_arguments(kw):
    with pytest.raises(InputError, match=next(iter(kw))):
        complexity(nn.Identity(), **dict(dict(input_shape=(1, 8, 8)), **kw))
