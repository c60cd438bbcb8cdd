"Backbones: the contract over the whole registry, published names and shapes of tensors, configurations, loading"
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from asc.backbone.beats import BEATS_CFG, BEATs, beats_state, buckets, load_beats
from asc.backbone.blocks import AdaResNorm, ConvNorm, ResNorm, SubSpectralNorm
from asc.backbone.branches import deployed_form
from asc.backbone.cnn6 import Cnn6, fold_cnn6
from asc.backbone.cp_mobile import CPMobile
from asc.backbone.cp_resnet import CPResNet, block_kernels
from asc.backbone.passt import PaSST, load_passt
from asc.backbone.weights import load_weights, read_weights, state_of
from asc.backbone.contract import check_backbone, contract
from asc.backbone.images import Resized
from asc.backbone.zoo import backbones, create_backbone, list_backbones
from asc.core import InputError
from networks import BIAS_TABLE, SHAPES, SMALL, SMALL_BEATS, beats_file, need

pytestmark = pytest.mark.usefixtures('one_thread')


def keys(net):
    "Names of the weights"
    return set(net.state_dict())


@pytest.mark.parametrize('check', contract)
@pytest.mark.parametrize('name', list_backbones())
def test_contract(name, check):
    need(name)
    check_backbone(name, SHAPES.get(name), [check], **SMALL.get(name, {}))


@pytest.mark.parametrize('name', list_backbones())
def test_published_parameters(name):
    need(name)
    with torch.device('meta'): net = deployed_form(create_backbone(name))
    assert sum(p.numel() for p in net.parameters()) == backbones[name].params


@pytest.mark.parametrize(
    'name, n, some',
    [
        (
            'cp_mobile_24',
            126,
            [
                'in_c.1.1.running_var', 'stages.s1.b3.block.2.0.weight',
                'stages.s2.b5.block.1.1.bias', 'stages.s3.b6.block.0.0.weight',
                'feed_forward.0.weight', 'feed_forward.1.num_batches_tracked',
            ],
        ),
        (
            'cp_mobile_23',
            138,
            ['stages.s1.b1.after_block_norm.gamma', 'stages.s3.b6.after_block_norm.beta'],
        ),
        (
            'cp_resnet',
            None,
            [
                'in_c.0.weight', 'in_c.1.bias', 'stage1.block2.conv2.weight',
                'stage2.block1.shortcut.conv.weight', 'stage3.block1.shortcut.bn.weight',
                'stage3.block1.bn1.running_mean', 'feed_forward.0.weight',
                'feed_forward.1.weight',
            ],
        ),
        (
            'passt_s',
            159,
            [
                'cls_token', 'dist_token', 'new_pos_embed', 'freq_new_pos_embed',
                'time_new_pos_embed', 'patch_embed.proj.bias', 'blocks.11.attn.qkv.bias',
                'blocks.0.mlp.fc2.weight', 'norm.weight', 'head.0.bias', 'head.1.weight',
                'head_dist.weight',
            ],
        ),
        (
            'tf_sepnet_64',
            254,
            [
                'conv_layers.1._conv.weight',
                'conv_layers.0._bn.running_mean',
                'middle_layers.1.trans_conv._bn.bias',
                'middle_layers.15.temp_pw_conv._conv.weight',
                'middle_layers.2.freq_dw_conv._bn.weight',
                'classifier.conv.bias',
            ],
        ),
        ('tf_sepnet_64_d16', 254, ['middle_layers.12.trans_conv._conv.weight']),
        (
            'tf_sepnet_dragon_60',
            148,
            [
                'feature.0.weight',
                'feature.1.rho',
                'feature.16.gamma',
                'feature.2.trans_conv.conv.weight',
                'feature.3.freq_dw_conv.conv.weight',
                'feature.14.temp_pw_conv.bn.running_var',
                'classifier.bias',
            ],
        ),
        (
            'bc_resnet_40',
            144,
            [
                'conv_layers.weight',
                'middle_layers.1.trans_conv._conv.weight',
                'middle_layers.1.freq_dw_conv.weight',
                'middle_layers.2.ssn._bn.weight',
                'middle_layers.2.temp_dw_conv._bn.bias',
                'middle_layers.2.pw_conv.weight',
                'classifier.conv.weight',
            ],
        ),
        (
            'cnn3',
            None,
            ['conv3._conv.bias', 'conv1._bn.running_var', 'linear1.weight', 'linear2.bias'],
        ),
        (
            'cnn6_60k',
            41,
            [
                'bn0.running_mean', 'conv1.ch_conv1.weight', 'conv4.sp_conv1.weight',
                'conv2.sp_conv2.weight', 'conv3.bn.weight', 'fc1.bias', 'fc2.weight',
            ],
        ),
        (
            'beats',
            None,
            [
                'encoder.post_extract_proj.weight',
                'encoder.patch_embedding.weight',
                'encoder.layer_norm.bias',
                'encoder.encoder.pos_conv.0.weight_g',
                'encoder.encoder.layer_norm.weight',
                'encoder.encoder.layers.11.self_attn.q_proj.bias',
                'encoder.encoder.layers.5.self_attn.grep_a',
                'encoder.encoder.layers.0.self_attn.relative_attention_bias.weight',
                'encoder.encoder.layers.3.self_attn_layer_norm.weight',
                'encoder.encoder.layers.3.fc2.bias',
                'classifier.linear.weight',
            ],
        ),
    ],
)
def test_published_names(name, n, some):
    need(name)
    with torch.device('meta'): net = create_backbone(name)
    assert set(some) <= keys(net)
    if n: assert len(keys(net)) == n


def test_published_shapes():
    "Shapes that only the published files decide"
    with torch.device('meta'):
        nets = {
            k: create_backbone(k).state_dict()
            for k in ('cp_mobile_23', 'cnn6_60k', 'tf_sepnet_dragon_60', 'beats')
        }
    def shape(name, key):
        return tuple(nets[name][key].shape)
    assert shape('cp_mobile_23', 'stages.s1.b1.block.0.0.weight') == (96, 32, 1, 1)
    assert shape('cp_mobile_23', 'stages.s1.b1.block.1.0.weight') == (96, 1, 3, 3)
    assert shape('cp_mobile_23', 'feed_forward.0.weight') == (10, 168, 1, 1)
    assert shape('cnn6_60k', 'conv2.sp_conv1.weight') == (128, 1, 3, 1)
    assert shape('cnn6_60k', 'conv2.sp_conv2.weight') == (128, 1, 1, 3)
    assert shape('tf_sepnet_dragon_60', 'feature.1.rho') == (1, 120, 1, 1)
    assert shape('beats', 'encoder.encoder.pos_conv.0.weight_v') == (768, 48, 128)
    assert shape('beats', 'encoder.encoder.pos_conv.0.weight_g') == (1, 1, 128)
    table = 'encoder.encoder.layers.0.self_attn.relative_attention_bias.weight'
    assert shape('beats', table) == (320, 12)


def test_cp_widths():
    def expansions(net):
        return [b.block[0][0].out_channels for s in net.stages for b in s]
    def widths(net):
        return [s[-1].block[2][0].out_channels for s in net.stages]
    assert (widths(CPMobile()), expansions(CPMobile())) == (
        [32, 56, 104], [64, 64, 64, 64, 120, 120]
    )
    old = create_backbone('cp_mobile_23')
    assert (widths(old), expansions(old)) == ([32, 72, 168], [96, 96, 96, 96, 216, 216])
    # the original's own defaults, not its published options
    defaults = CPMobile(mult=2.3, expansion=3.0)
    assert sum(p.numel() for p in defaults.parameters()) == 126_940


def test_cp_mobile_without_residual_where_widths_change():
    assert [b.add is not None for s in CPMobile().stages for b in s] == [
        True, True, True, False, True, False
    ]


def test_cp_resnet_kernels_and_ranges():
    assert [block_kernels(8, i) for i in (0, 1, 2, 4)] == [(3, 1), (3, 3), (3, 3), (3, 1)]
    assert [block_kernels(0, i) for i in (0, 1, 2, 4)] == [(3, 1), (1, 1), (1, 1), (1, 1)]
    for rho in (-1, 13, 8.5):
        with pytest.raises(InputError, match='choose 0 to 12'): CPResNet(rho=rho)


def test_cp_resnet_fixup_does_not_count_on():
    "T11: the scale of the first convolution depends on the blocks of this network, not on those built before"
    stds = []
    for _ in range(3):
        torch.manual_seed(0)
        stds.append(CPResNet().stage1.block1.conv1.weight.std().item())
    assert stds[0] == stds[1] == stds[2] == pytest.approx(4**-.5*(2/(9*32))**.5, rel=.05)


@pytest.mark.parametrize(
    'make, says',
    [
        (lambda: create_backbone('tf_sepnet_64', base=63), 'multiple of 4'),
        (lambda: create_backbone('tf_sepnet_64', depth=15), '16, 17'),
        (lambda: create_backbone('tf_sepnet_dragon_60', base=50), 'multiple of 20'),
        (lambda: create_backbone('cp_mobile_24', base=20), 'multiple of 8'),
        (lambda: create_backbone('bc_resnet_40', base=0), 'at least 1'),
        (lambda: create_backbone('cp_resnet', groups=(1, 3, 1)), 'divide'),
        (lambda: create_backbone('cp_resnet', blocks=(3, 1, 1)), 'each 1 or 2'),
        (lambda: create_backbone('beats', mode='sl'), 'ssl, ssl'),
        (lambda: create_backbone('beats', cfg=dict(layer_norm_first=True)), 'only False'),
        (lambda: create_backbone('no_such'), 'choose one of cp_mobile_24'),
        (lambda: create_backbone('cnn3', n_classes=0), 'n_classes=0'),
        (lambda: create_backbone('cnn3', depth=3), 'its options are dropout'),
        (lambda: create_backbone('torchvision:resnet81'), 'resnet18'),
        (lambda: create_backbone('torchvision:mobilenet_v3_small', foo=1), 'foo'),
        (lambda: create_backbone('torchvision:resnet18', foo=1), 'foo'),
        (lambda: create_backbone('passt_s', patchout=-1), '0 or more'),
        (lambda: create_backbone('passt_s', patchout_t=-1), '0 or more'),
        (lambda: create_backbone('cp_mobile_24', expansion=0), 'above 0'),
        (lambda: create_backbone('cp_mobile_24', mult=-1), 'above 0'),
        (lambda: create_backbone('cp_mobile_24', strides=dict(b2=2)), 'pair'),
        (lambda: create_backbone('tf_sepnet_64', k=4), 'odd'),
        (lambda: create_backbone('tf_sepnet_64', base=64.), 'a whole number'),
        (lambda: create_backbone('bc_resnet_40', k=2), 'odd'),
        (lambda: create_backbone('bc_resnet_40', base=40.5), 'a whole number'),
        (lambda: create_backbone('cp_resnet', groups=(1, 2)), 'three'),
        (lambda: create_backbone('cnn6_60k', widths=(64, 128)), 'four'),
        (lambda: create_backbone('cnn3', n_classes=True), 'n_classes=True'),
        (lambda: create_backbone('beats', weights='BEATs_iter3_plus_AS2M'), 'by hand'),
        (lambda: state_of({1: torch.ones(1)}), 'no tensor name'),
        (
            lambda: load_weights(
                nn.Linear(1, 1),
                dict(weight=torch.full((1, 1), float('nan')), bias=torch.zeros(1)),
            ),
            'NaN',
        ),
        (lambda: create_backbone('cp_mobile_24', weights='nowhere.pt'), 'no such file'),
    ],
)
def test_bad_configuration_says_what_is_allowed(make, says):
    with pytest.raises(InputError, match=says): make()


@pytest.mark.parametrize(
    'name',
    ['cp_mobile_23', 'tf_sepnet_40', 'bc_resnet_40', 'cp_resnet', 'cnn3', 'tf_sepnet_dragon_60'],
)
def test_a_peers_training_run(name, tmp_path):
    "Lightning, plain and half-precision files, with and without wrapper, of every network"
    net = create_backbone(name)
    for prefix, holder, cast in (
        ('', None, torch.Tensor.half),
        ('model.', 'state_dict', torch.Tensor.clone),
        ('backbone.', 'model_state_dict', torch.Tensor.clone),
    ):
        state = {
            prefix + k: cast(v) if v.is_floating_point() else v
            for k, v in net.state_dict().items()
        }
        if prefix == 'model.': state['mel.1.mel_scale.fb'] = torch.ones(3)
        torch.save({'epoch': 1, holder: state} if holder else state, tmp_path/'peer.ckpt')
        other = create_backbone(name, weights=tmp_path/'peer.ckpt')
        for k, v in other.state_dict().items():
            assert torch.allclose(v.double(), net.state_dict()[k].double(), rtol=1e-3, atol=1e-6)
    del state['backbone.' + next(iter(net.state_dict()))]
    torch.save(state, tmp_path/'peer.ckpt')
    with pytest.raises(InputError, match='1 missing: ' + next(iter(net.state_dict()))):
        create_backbone(name, weights=tmp_path/'peer.ckpt')


def test_files_that_are_something_else(tmp_path):
    f = tmp_path/'x.pt'
    for content, says in (
        (b'', 'an empty file'),
        (b'<html>', 'a web page'),
        (b'version https://git-lfs', 'Git LFS pointer'),
        (b'RIFF....WAVEfmt ', 'a wav file'),
        (b'PK\x03\x04 not really', 'damaged'),
        (b'\x93NUMPY\x01\x00', 'begins with'),
        (b'\x10\0\0\0\0\0\0\0{"a": 3}', 'cut short'),
    ):
        f.write_bytes(content)
        with pytest.raises(InputError, match=says): read_weights(f)
    torch.save([1, 2], f)
    with pytest.raises(InputError, match='holds a list'): read_weights(f)
    torch.save(nn.Linear(1, 1), f)
    with pytest.raises(InputError, match='not unpickled'): read_weights(f)
    with pytest.raises(InputError, match='no network tensors'):
        state_of({'epoch': 3})


@pytest.mark.parametrize('norm', [ResNorm(), AdaResNorm(12)])
def test_norms_in_half_precision(norm):
    "No float32 constant in the way, no overflow, the dtype stays"
    x = 30*torch.randn(2, 12, 16, 30)
    y = norm.float()(x)
    h = norm.half()(x.half())
    assert h.dtype == torch.float16 and torch.allclose(h.float(), y, atol=.05)
    assert set(norm.state_dict()) <= {'rho', 'gamma', 'beta'}


def test_sub_spectral_norm_is_batch_norm_per_band():
    x, ssn = torch.randn(4, 3, 8, 5), SubSpectralNorm(3, 2)
    ssn._bn.weight.data.uniform_(.5, 2)
    want = [
        nn.functional.batch_norm(
            x[:, :, 4*i:4*i + 4], None, None, ssn._bn.weight.view(3, 2)[:, i], None, True
        )
        for i in range(2)
    ]
    assert torch.allclose(ssn(x), torch.cat(want, 2), atol=1e-5)


def test_units_keep_their_places():
    for name in list_backbones():
        if name in ('passt_s', 'beats'): continue
        for m in create_backbone(name).modules():
            if isinstance(m, ConvNorm):
                assert isinstance(m[0], nn.Conv2d)
                assert all(isinstance(n, nn.BatchNorm2d) for n in list(m)[1:2])


def test_cnn6_folds_with_and_without_eps():
    torch.manual_seed(0)
    net = Cnn6().eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_var.uniform_(1e-6, 1e-4)
            m.running_mean.normal_()
    x = torch.randn(1, 1, 256, 50)
    with torch.no_grad():
        y = net(x)
        good = fold_cnn6(net)(x)
        bad = fold_cnn6(net, eps=False)(x)
    assert torch.allclose(good, y, atol=1e-3*y.abs().max())
    assert not torch.allclose(bad, y, rtol=.02)
    names = keys(fold_cnn6(net))
    assert {'bn0.weight', 'bn0.bias', 'conv1.sp_conv2.bias'} <= names
    assert not any('.bn.' in k or 'running' in k for k in names)


def test_passt_against_plain_arithmetic():
    "One block of a tiny PaSST, written out"
    pytest.importorskip('timm')
    torch.manual_seed(0)
    net = PaSST(3, dim=8, depth=1, heads=2).eval()
    for p in net.parameters(): p.data.normal_(0, .3)
    x, F = torch.randn(1, 1, 128, 100), nn.functional
    p = F.conv2d(
        x, net.patch_embed.proj.weight, net.patch_embed.proj.bias, 10
    ) + net.time_new_pos_embed[..., :9] + net.freq_new_pos_embed
    z = torch.cat(
        [
            net.cls_token + net.new_pos_embed[:, :1],
            net.dist_token + net.new_pos_embed[:, 1:],
            p.flatten(2).transpose(1, 2),
        ],
        1,
    )
    b = net.blocks[0]
    def ln(z, m):
        return F.layer_norm(z, (8,), m.weight, m.bias, m.eps)
    qkv = ln(z, b.norm1) @ b.attn.qkv.weight.T + b.attn.qkv.bias
    q, k, v = qkv.view(1, -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
    heads = (q @ k.transpose(2, 3)/2).softmax(-1) @ v
    attention = heads.transpose(1, 2).reshape(1, -1, 8)
    z = z + attention @ b.attn.proj.weight.T + b.attn.proj.bias
    z = z + b.mlp.fc2(F.gelu(b.mlp.fc1(ln(z, b.norm2))))
    z = ln(z, net.norm)[:, :2].mean(1)
    with torch.no_grad():
        assert torch.allclose(net(x), net.head[1](ln(z, net.head[0])), atol=1e-5)
    assert (b.norm1.eps, net.norm.eps, net.head[0].eps) == (1e-6, 1e-6, 1e-5)


def test_passt_time_offset_only_in_training():
    "Evaluation starts at the first position; training at any"
    pytest.importorskip('timm')
    net = PaSST(dim=8, depth=1, heads=2)
    x = torch.zeros(1, 1, 128, 100)
    net.freq_new_pos_embed.data.zero_()
    net.time_new_pos_embed.data.copy_(torch.arange(99.).expand(1, 8, 1, 99))
    def start():
        return round((net.patches(x) - net.patch_embed(x))[0, 0, 0, 0].item())
    assert len({start() for _ in range(20)}) > 5
    assert max(start() for _ in range(20)) <= 90
    net.eval()
    assert start() == 0


def test_audioset_passt_brings_no_classifier():
    pytest.importorskip('timm')
    with torch.device('meta'):
        shapes = {k: v.shape for k, v in create_backbone('passt_s', 527).state_dict().items()}
    assert len(shapes) == 159 and shapes['head.1.weight'] == (527, 768)
    big = PaSST(527, dim=8, depth=1, heads=2)
    own = PaSST(10, dim=8, depth=1, heads=2)
    head = own.head[1].weight.clone()
    load_passt(own, big.state_dict())
    assert torch.equal(own.head[1].weight, head)
    assert torch.equal(own.head[0].weight, big.head[0].weight)
    with pytest.raises(InputError, match='1 missing: norm.weight'):
        load_passt(own, {k: v for k, v in big.state_dict().items() if k != 'norm.weight'})
    teacher = PaSST(10, dim=8, depth=1, heads=2)
    load_passt(own, teacher.state_dict())
    assert torch.equal(own.head[1].weight, teacher.head[1].weight)


@pytest.mark.parametrize(
    'mode, tuned, trained',
    [
        ('ssl*', False, {'classifier'}),
        ('ssl', False, {'classifier', 'encoder'}),
        ('ssl+sl', True, {'classifier', 'encoder'}),
    ],
)
def test_beats_modes(mode, tuned, trained, tmp_path):
    torch.save(beats_file(tuned), tmp_path/'BEATs.pt')
    net = create_backbone('beats', n_classes=4, weights=tmp_path/'BEATs.pt', mode=mode).train()
    net(torch.randn(3, 1, 128, 98)).sum().backward()
    assert {k.split('.')[0] for k, p in net.named_parameters() if p.grad is not None} == trained
    assert net.encoder.training == (mode != 'ssl*')
    wrong = 'ssl' if tuned else 'ssl+sl'
    with pytest.raises(InputError, match='choose mode'):
        create_backbone('beats', weights=tmp_path/'BEATs.pt', mode=wrong)


def test_beats_configuration_comes_from_the_file(tmp_path):
    file = beats_file()
    torch.save(file, tmp_path/'BEATs.pt')
    net = create_backbone('beats', weights=tmp_path/'BEATs.pt')
    assert net.encoder.encoder.cfg == {k: file['cfg'][k] for k in BEATS_CFG}
    assert len(net.encoder.encoder.layers) == 2
    del file['model']['layer_norm.weight']
    with pytest.raises(InputError, match='1 missing: layer_norm.weight'):
        load_beats(file)
    # trained by easy-dcase: the whole network
    peer = {f'backbone.{k}': v for k, v in net.state_dict().items()}
    for i in range(2):
        peer['backbone.encoder.' + BIAS_TABLE.format(i)] = torch.ones(320, 4)
    torch.save({'state_dict': peer}, tmp_path/'peer.ckpt')
    other = create_backbone('beats', weights=tmp_path/'peer.ckpt', cfg=SMALL_BEATS)
    assert other.encoder.state_dict()[BIAS_TABLE.format(0)].eq(1).all()


def test_beats_attention_against_plain_arithmetic():
    "The gate, the buckets and the deep-norm sums of one layer, written out as the published code computes them"
    torch.manual_seed(0)
    net = BEATs(cfg=SMALL_BEATS).eval()
    layer = net.encoder.encoder.layers[1]
    L = 7
    F = nn.functional
    for p in layer.parameters(): p.data += .2*torch.randn_like(p)
    x, table = torch.randn(2, L, 48), torch.randn(320, 4)
    bias = table[buckets(L)].permute(2, 0, 1)
    a = layer.self_attn
    def heads(p):
        return p(x).view(2, L, 4, 12).transpose(1, 2)
    q = heads(a.q_proj)
    k = heads(a.k_proj)
    v = heads(a.v_proj)
    logits = (q*12**-.5/32) @ k.transpose(2, 3)
    logits = (logits - logits.amax(-1, keepdim=True))*32
    g = torch.sigmoid(a.grep_linear(q).view(2, 4, L, 2, 4).sum(-1))
    logits = logits + (g[..., :1]*(g[..., 1:]*a.grep_a - 1) + 2)*bias
    y = a.out_proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(2, L, 48))
    h = F.layer_norm(
        x*(2*2)**.25 + y, (48,), layer.self_attn_layer_norm.weight,
        layer.self_attn_layer_norm.bias,
    )
    h = F.layer_norm(
        h*(2*2)**.25 + layer.fc2(F.gelu(layer.fc1(h))),
        (48,),
        layer.final_layer_norm.weight,
        layer.final_layer_norm.bias,
    )
    with torch.no_grad(): assert torch.allclose(layer(x, bias), h, atol=1e-5)


def test_beats_gradients_decay_downwards():
    def norms(ratio):
        torch.manual_seed(0)
        net = BEATs(
            cfg={
                **SMALL_BEATS,
                'encoder_layers': 3,
                'layer_wise_gradient_decay_ratio': ratio,
                'predictor_dropout': 0.,
            }
        ).train()
        net(torch.ones(1, 1, 128, 98)).square().sum().backward()
        return torch.tensor([layer.fc1.weight.grad.norm() for layer in net.encoder.encoder.layers])
    assert torch.allclose(norms(.6)/norms(1.), torch.tensor([.36, .6, 1.]), rtol=1e-4)


@pytest.mark.parametrize(
    'name',
    ['resnet18', 'efficientnet_b0', 'convnext_tiny', 'squeezenet1_1', 'googlenet', 'densenet121'],
)
def test_torchvision(name):
    net = create_backbone(f'torchvision:{name}', n_classes=7).eval()
    with torch.no_grad(): assert net(torch.randn(1, 1, 128, 101)).shape == (1, 7)


def test_timm():
    pytest.importorskip('timm')
    assert create_backbone(
        'timm:resnet10t', n_classes=7
    )(torch.randn(2, 1, 128, 101)).shape == (2, 7)
    with pytest.raises(InputError, match='resnet10t'):
        create_backbone('timm:resnet11t')


def test_without_timm(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'timm', None)
    for name in ('passt_s', 'timm:resnet10t'):
        with pytest.raises(InputError, match='pip install'): create_backbone(name)


def test_shared_tensors_are_saved_once(tmp_path):
    "safetensors refuses tensors that share memory: no state dict here has any"
    from safetensors.torch import save_file
    for name in list_backbones():
        need_it = name == 'passt_s'
        if need_it: pytest.importorskip('timm')
        save_file(
            create_backbone(name, **SMALL.get(name, {})).state_dict(), tmp_path/'x.safetensors'
        )
        assert load_weights(
            create_backbone(name, **SMALL.get(name, {})), read_weights(tmp_path/'x.safetensors')
        )


def test_beats_state_leaves_other_names_alone():
    assert beats_state({'a': torch.ones(1)}).keys() == {'a'}


@pytest.mark.parametrize(
    'name',
    [
        'torchvision:inception_v3', 'torchvision:maxvit_t', 'torchvision:vit_b_16',
        'timm:vit_tiny_patch16_224',
    ],
)
def test_image_networks_of_fixed_size(name):
    if name.startswith('timm'): need('passt_s')
    with torch.no_grad():
        assert create_backbone(name, 3).eval()(torch.randn(1, 1, 256, 65)).shape == (1, 3)


def test_folded_cnn6_loads(tmp_path):
    net = fold_cnn6(Cnn6(3))
    torch.save(net.state_dict(), tmp_path/'a.pt')
    x = torch.randn(1, 1, 256, 65)
    assert torch.equal(create_backbone('cnn6_60k', 3, weights=tmp_path/'a.pt').eval()(x), net(x))


@pytest.mark.parametrize(
    'name, kw',
    [
        ('torchvision:googlenet', dict(aux_logits=True)),
        ('torchvision:mnasnet0_5', {}),
        ('timm:mobilenetv4_conv_small', {}),
        ('timm:efficientformer_l1', {}),
    ],
)
def test_image_networks_train_and_come_back(name, kw, tmp_path):
    "Odd sizes, logits alone in training too, a gradient everywhere, a state dict that loads"
    if name.startswith('timm'): need('passt_s')
    net = create_backbone(name, 3, **kw).train()
    net(torch.randn(2, 1, 64, 101)).square().sum().backward()
    assert [k for k, p in net.named_parameters() if p.grad is None] == []
    torch.save(net.state_dict(), tmp_path/'a.pt')
    other = create_backbone(name, 3, weights=tmp_path/'a.pt', **kw).eval()
    x = torch.randn(1, 1, 128, 65)
    with torch.no_grad(): assert torch.equal(other(x), net.eval()(x))
    with pytest.raises(InputError, match='foo'): create_backbone(name, foo=1)


def test_too_small_an_input_is_resized():
    "A network that refuses small pictures stands behind a resize; one that takes any size does not"
    need('passt_s')
    net = create_backbone('timm:inception_v3', 3).eval()
    assert isinstance(net, Resized)
    assert tuple(net.size) == (299, 299)
    assert not isinstance(create_backbone('timm:resnet10t'), Resized)
    with torch.no_grad(): assert net(torch.randn(1, 1, 40, 51)).shape == (1, 3)


# gradients

@pytest.mark.parametrize('last', [False, True], ids=['default', 'channels_last'])
@pytest.mark.parametrize('name', list_backbones())
def test_gradients_of_the_norms(name, last, monkeypatch):
    "PyTorch's own batch norm learns what the definition says (on a CPU it can be wrong for maps of one row)"
    need(name)
    torch.manual_seed(0)
    net = create_backbone(name, **SMALL.get(name, {})).double().train()
    x = torch.randn(2, 1, *SHAPES.get(name, backbones[name].shape), dtype=torch.double)
    if last:
        net = net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    def gradients():
        torch.manual_seed(1)
        net.zero_grad()
        F.cross_entropy(net(x), torch.tensor([3, 4])).backward()
        return [p.grad.clone() for p in net.parameters() if p.grad is not None]
    def by_definition(x, mean, var, weight, bias, training, momentum, eps):
        assert training
        dims, shape = [0, *range(2, x.ndim)], (1, -1, *[1]*(x.ndim - 2))
        mu = x.mean(dims).view(shape)
        y = (x - mu)/((x - mu).square().mean(dims).view(shape) + eps).sqrt()
        return y if weight is None else y*weight.view(shape) + bias.view(shape)
    own = gradients()
    monkeypatch.setattr(F, 'batch_norm', by_definition)
    for a, b in zip(own, gradients()):
        assert torch.allclose(a, b, atol=1e-8, rtol=1e-6)
