"""The C path: decisions of the compiled file equal to PyTorch, memory as planned and kept to, and what is refused."""
import re
from shutil import which

import numpy as np
import pytest
import torch
from torch import nn

from asc.backbone.blocks import Add, ConvNorm
from asc.core import SCENES, InputError
from asc.data.soundscape import draw_location, play
from asc.export.kernels import KERNELS
from asc.export.c99 import export_c, run_c, write_frontend_header
from asc.export.plan import kernel, place, read_steps
from asc.frontend.logmel import create_frontend
from asc.model.classifier import create_classifier
from asc.model.published import PublishedClassifier
from asc.size.cost import complexity
from asc.size.qdq import calibrate, prepare, quantised_classifier

SMALL = dict(base=16, blocks=(2, 1, 1), strides=dict(b2=(1, 2), b3=(2, 1)))
needs_cc = pytest.mark.skipif(which('cc') is None, reason='no C compiler')


@pytest.fixture(scope='module')
def clips():
    "100 synthetic clips of a second, ten of each scene"
    rng = np.random.default_rng(0)
    recordings = [play(rng, draw_location(rng, scene)) for scene in SCENES]
    return torch.from_numpy(np.concatenate([r.reshape(10, -1) for r in recordings])).float()


@pytest.fixture(scope='module')
def small(clips):
    "float and quantised classifier, log-mels"
    torch.manual_seed(0)
    m = create_classifier('cp_mobile_24', 'dcase24', 'none', backbone_args=SMALL, augment=False)
    for n in m.backbone.modules(): n.momentum = None
    with torch.no_grad():
        x = torch.cat([m.pipeline(w) for w in clips.split(20)])
        # norms with the statistics of the clips
        m.train().backbone(x)
        q = quantised_classifier(m.eval())
        calibrate(q.backbone, x[::4].split(5))
    return m, q, x


@needs_cc
def test_decisions_are_those_of_pytorch(small, tmp_path):
    m, q, x = small
    facts = export_c(q, tmp_path/'scene.c')
    c = run_c(tmp_path/'scene.c', x)
    with torch.no_grad(): want = torch.cat([q.backbone(b) for b in x.split(20)])
    far = (c - want).abs().max().item()
    peak = complexity(m.backbone, (1, 256, 65), bits=8).honest['ram']
    print(f'largest difference of a logit {far:.2g} (standard deviation {want.std():.2g})')
    print(f"constants {facts['constants']:,} bytes")
    print(f"arena {facts['arena']:,} + {facts['scratch']:,} bytes, peak of asc.size.cost {peak:,}")
    assert len(set(want.argmax(1).tolist())) >= 4
    assert c.argmax(1).tolist() == want.argmax(1).tolist()
    assert far < .05 * want.std()
    assert facts['arena'] + facts['scratch'] < peak


class Mixed(nn.Module):
    "What CP-Mobile lacks: odd sizes, oblong kernels, groups, a convolution and an average of codes with a zero point"
    def __init__(self):
        super().__init__()
        self.stem = ConvNorm(1, 6, (3, 5), (2, 1), padding=(0, 2), norm=None, bias=True)
        self.linear = ConvNorm(6, 6, 1, act=None, norm=None, bias=True)
        self.pool = nn.AvgPool2d((3, 2), (1, 1), (1, 0))
        self.grouped = ConvNorm(6, 12, (1, 3), (1, 2), groups=3, norm=None)
        self.deep = ConvNorm(12, 12, 5, 1, groups=12, norm=None, act=None, bias=True)
        self.twice = ConvNorm(12, 24, 3, 1, groups=12, norm=None, padding=1)
        self.back = ConvNorm(24, 12, 1, norm=None, act=None)
        self.add = Add()
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(12, 4, 1)
        self.mean = nn.AdaptiveAvgPool2d(1)
    def forward(self, x):
        x = self.grouped(self.pool(self.linear(self.stem(x))))
        x = self.add(x, self.back(self.twice(self.deep(x))))
        return self.mean(self.head(self.act(x))).flatten(1)


def published(network, x, **options):
    "A quantised network behind a frontend"
    q = prepare(network.eval(), x, **options)
    calibrate(q, x)
    return PublishedClassifier(
        'mixed */ å', create_frontend('dcase24').eval(), q, ['a', 'b', 'c', 'd']
    )


@needs_cc
@pytest.mark.parametrize(
    'options', [{}, dict(skip=()), dict(logits=True), dict(skip=['stem.0', 'linear.0'])], ids=str
)
def test_every_kernel_within_its_memory(options, tmp_path):
    "The sanitisers of the compiler watch every access; small differences only"
    torch.manual_seed(1)
    x = torch.randn(6, 1, 23, 19)
    if 'linear.0' in options.get('skip', ()):
        with pytest.raises(InputError, match='average of float'):
            export_c(published(Mixed(), x, **options), tmp_path/'m.c')
        return
    m = published(Mixed(), x, **options)
    steps = read_steps(m.network)
    assert {kernel(s, steps) for s in steps} >= {
        'pointwise', 'depthwise', 'conv_u8', 'average', 'add'
    }
    assert {kernel(s, steps) for s in steps} >= (
        {'quantise'} if options == dict(skip=()) else {'conv_f32'}
    )
    export_c(m, tmp_path/'m.c')
    c = run_c(
        tmp_path/'m.c',
        x,
        options=('-O1', '-std=c99', '-fsanitize=address,undefined', '-fno-sanitize-recover=all'),
    )
    with torch.no_grad(): want = m.network(x)
    assert (c - want).abs().max() < .02 * want.std() + (
        m.network.head.out_quant.scale.item() if 'logits' in options else 0
    )


ENCODE = r'''
void use(void *y) { put(y, 0, 0, (struct out){1.f, 0, 0}); }

int main(void) {
    float v;
    while (fread(&v, sizeof v, 1, stdin) == 1) printf("%d\n", encode(v, .5f, 7));
    return 0;
}
'''


@needs_cc
def test_rounding_is_half_to_even(tmp_path):
    "The C function against torch, at the halves and far outside"
    (tmp_path/'e.c').write_text(f'#include <stdint.h>\n#include <stdio.h>\n{KERNELS}\n{ENCODE}')
    v = torch.cat(
        [torch.arange(-20, 300) / 4, torch.tensor([-1e30, 1e30, float('inf'), -float('inf')])]
    )
    want = ((v / .5).round() + 7).clamp(0, 255).tolist()
    assert run_c(tmp_path/'e.c', v).flatten().tolist() == want


def test_arena_holds_what_is_read_later(small):
    steps = read_steps(small[1].backbone)
    offsets, arena = place(steps)
    for i, s in enumerate(steps[:-1]):
        assert offsets[i] % 4 == 0 and offsets[i] + s.bytes <= arena
        for j in range(i):
            if any(j in t.ins for t in steps[i + 1:]):
                assert (
                    offsets[j] + steps[j].bytes <= offsets[i]
                    or offsets[i] + s.bytes <= offsets[j]
                )
        # over its own input, or beside it
        for j in s.ins:
            if j >= 0:
                assert (
                    offsets[i] == offsets[j]
                    or offsets[j] + steps[j].bytes <= offsets[i]
                    or offsets[i] + s.bytes <= offsets[j]
                )


def test_source_is_self_contained(small, tmp_path):
    export_c(small[1], tmp_path/'scene.c')
    text = (tmp_path/'scene.c').read_text()
    head = (tmp_path/'scene.h').read_text()
    assert re.findall(r'#include (\S+)', text) == ['<stdint.h>', '"scene.h"', '<stdio.h>']
    assert text.index('<stdio.h>') > text.index('#ifdef ASC_MAIN')
    assert 'malloc' not in text and str(tmp_path) not in text + head
    assert head.isascii() and text.isascii()


class Head(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.kind = kind
        self.fc = nn.Linear(4, 4) if kind == 'linear' else nn.Identity()
        self.next = nn.Conv2d(4, 4, 3, dilation=2 if kind == 'dilated' else 1)
    def forward(self, x):
        x = self.conv(x)
        if self.kind == 'max': x = nn.functional.max_pool2d(x, 2)
        if self.kind == 'sigmoid': x = x.sigmoid()
        x = self.next(x)
        return self.fc(x.mean((2, 3)) if self.kind != 'band' else x.mean(2).flatten(1))


@pytest.mark.parametrize(
    'kind,named',
    [
        ('max', 'max_pool2d'), ('sigmoid', 'sigmoid'), ('dilated', 'dilated'),
        ('linear', 'addmm'), ('band', 'a mean'),
    ],
)
def test_operation_without_a_kernel_is_named(kind, named, tmp_path):
    m = published(Head(kind), torch.randn(2, 1, 12, 12))
    with pytest.raises(InputError, match=f'micro: .*{named}.*asc.export_model'):
        export_c(m, tmp_path/'m.c')
    assert not list(tmp_path.iterdir())


def test_response_normalisation_and_float_models_are_refused(small, tmp_path):
    m = create_classifier(
        'cp_mobile_24', 'dcase24', 'none', backbone_args=dict(SMALL, grn=True), augment=False
    ).eval()
    q = quantised_classifier(m)
    calibrate(q.backbone, small[2][:4])
    with pytest.raises(InputError, match='GRN stages.s1.b1.after_block_norm'):
        export_c(q, tmp_path/'m.c')
    with pytest.raises(InputError, match='not calibrated'):
        export_c(small[0], tmp_path/'m.c')
    with pytest.raises(InputError, match='.c file'):
        export_c(small[1], tmp_path/'m.h')
    with pytest.raises(InputError, match='compiler'):
        run_c(tmp_path/'m.c', small[2], 'no-such-compiler')


def test_frontend_tables_give_the_log_mel(small, tmp_path):
    "Read back from the C text, with numpy's FFT, by the recipe of the header"
    m = small[0]
    size = write_frontend_header(m, tmp_path/'frontend.h')
    text, k = (tmp_path/'frontend.h').read_text(), m.pipeline.frontend.kw
    tables = {n: np.array([float(v.rstrip('f')) for v in a.replace('\n', '').split(',')])
              for n, a in re.findall(r'asc_(\w+)\[\d+\] = {(.*?)}', text, re.S)}
    assert size == 4*len(tables['window']) + 4*k['n_mels'] + 4*len(tables['mel_weight'])
    wave = torch.randn(1, 32000, generator=torch.Generator().manual_seed(0))/8
    x, n = np.pad(wave[0].numpy(), k['n_fft']//2, 'reflect'), k['n_fft']
    taper = np.pad(tables['window'], (n - k['win'])//2)
    power = np.abs(
        np.fft.rfft(np.stack([x[i:i + n]*taper for i in range(0, len(x) - n + 1, k['hop'])]))
    )**2
    first = tables['mel_first'].astype(int)
    count = tables['mel_count'].astype(int)
    offsets = np.cumsum(count) - count
    mel = np.stack(
        [power[:, f:f + c] @ tables['mel_weight'][a:a + c] for f, c, a in zip(first, count, offsets)]
    )
    assert np.abs(np.log(mel + k['eps']) - m.pipeline.frontend(wave)[0, 0].numpy()).max() < 1e-3
