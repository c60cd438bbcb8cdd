"closed-form costs against the measured ones, on random candidates of every family"
import time

import numpy as np
import pytest

from asc.backbone.zoo import create_backbone
from asc.core import InputError
from asc.size.budget import COSTS, enumerate_costs, frames_of
from asc.size.formulas import bc_resnet_cost, cp_mobile_cost
from asc.size.budget import pareto, search
from asc.size.formulas import round_channel_array, tf_sepnet_cost
from asc.size.cost import complexity
from asc.size.formulas import bc_resnet_cost, cp_mobile_cost, round_channel_array, tf_sepnet_cost


def measured(net, mels, frames):
    "Cost of a real network, as the table counts it"
    c = complexity(net, (1, mels, frames), bits=8)
    return [c.params, c.macs, c.honest['ram']]


@pytest.mark.parametrize('seed', range(24))
def test_cp_mobile_is_what_is_measured(seed):
    r = np.random.default_rng(seed)
    kw = dict(
        base=int(r.choice([8, 16, 24, 32, 40, 48])),
        mult=float(r.uniform(1, 3)),
        expansion=float(r.uniform(1, 4.5)),
        grn=bool(r.integers(2)),
    )
    strides = {
        f'b{i}': tuple(int(v) for v in r.integers(1, 3, 2))
        for i in r.choice(6, 3, replace=False) + 1
    }
    mels, frames = int(r.integers(16, 300)), int(r.integers(16, 90))
    got = cp_mobile_cost(mels, frames, **kw, **strides)
    assert [int(v) for v in got] == measured(
        create_backbone('cp_mobile_24', **kw, strides=strides), mels, frames
    )


@pytest.mark.parametrize('kw, strides', [
    # the worst moment is the GRN of the widest block
    (dict(base=8, mult=3., expansion=1., grn=True), {}),
    (dict(base=32, mult=1., expansion=.25), dict(b1=(1, 2), b2=(1, 2)))])  # … the pooled shortcut
def test_rare_worst_moments(kw, strides):
    net = create_backbone('cp_mobile_24', **kw, strides=strides)
    assert [int(v) for v in cp_mobile_cost(64, 40, **kw, **strides)] == measured(net, 64, 40)


@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize(
    'name, cost, step',
    [
        ('tf_sepnet_64', tf_sepnet_cost, 4),
        ('tf_sepnet_64_d16', COSTS['tf_sepnet_16'], 4),
        ('bc_resnet_40', bc_resnet_cost, 1),
    ],
)
def test_layout_families_are_what_is_measured(name, cost, step, seed):
    r = np.random.default_rng(seed)
    base = int(r.integers(2, 20)) * step
    mels = int(r.integers(64, 520))
    frames = int(r.integers(40, 130))
    assert [int(v) for v in cost(mels, frames, base=base)] == measured(
        create_backbone(name, base=base), mels, frames
    )


def test_arrays_are_the_same_as_numbers():
    d = enumerate_costs(
        dict(
            mels=[64, 128], frames=[40, 65], base=[16, 32], expansion=[2., 3.],
            b3=[(1, 1), (1, 2)],
        )
    )
    assert len(d) == 32
    for r in d.sample(10, random_state=0).itertuples():
        assert [r.params, r.macs, r.elements] == [
            int(v)
            for v in cp_mobile_cost(r.mels, r.frames, base=r.base, expansion=r.expansion, b3=r.b3)
        ]


def test_the_frame_count_of_the_2023_winner():
    kw = dict(mult=2.3, expansion=3., grn=True, b2=(2, 2), b4=(2, 1))
    assert int(cp_mobile_cost(256, 64, **kw)[1]) == 28_893_268
    assert int(cp_mobile_cost(256, 65, **kw)[1]) == 31_684_180
    assert frames_of(500) == 65
    assert frames_of(500, 31_999) == 64
    assert frames_of(750, 31_999) == 43


def test_channel_rounding():
    want = {57.6: 56, 103.68: 104, 67.2: 64, 117.6: 120, 73.6: 72, 169.28: 168, 3.: 8, 12: 16}
    assert round_channel_array(np.array(list(want))).tolist() == list(want.values())


def test_search_keeps_the_limits():
    axes = dict(
        mels=[128, 256], hop=[400, 500, 640], base=[16, 32], mult=[1.8, 2.3],
        expansion=[2., 3.], b4=[(2, 1), (2, 2)],
    )
    d = search(axes, bits=8, max_ram=200_000)
    every = enumerate_costs(axes)
    assert len(every) == 96 and 0 < len(d) < 96
    assert (d.bytes <= 128_000).all()
    assert (d.macs <= 30e6).all()
    assert (d.ram <= 200_000).all()
    assert d.params.is_monotonic_decreasing
    small = (every.params <= 128_000) & (every.macs <= 30e6) & (every.elements <= 200_000)
    assert len(d) == small.sum()
    assert len(search(axes, bits=8, max_ram=100)) == 0


def test_bad_axes():
    for bad in (
        dict(frames=[65]), dict(mels=[256], frames=[65], hop=[500]), dict(mels=[], frames=[65])
    ):
        with pytest.raises(InputError, match='axes'): enumerate_costs(bad)
    with pytest.raises(InputError, match='unknown family'):
        enumerate_costs(dict(mels=[256], frames=[65]), 'vgg')


def test_nothing_left_after_pooling_is_left_out():
    costs = enumerate_costs(dict(mels=[16, 512], frames=[8, 64]), 'tf_sepnet_17')
    assert costs.mels.tolist() == [512]


def test_pareto_against_the_definition():
    d = search(
        dict(
            mels=[64, 128], frames=range(20, 60, 10), base=[8, 16, 24],
            expansion=[1.5, 2., 3.], b3=[(1, 1), (1, 2)],
        ),
        bits=8,
    )
    v = np.column_stack([-d.params, -d.macs, d.ram])
    beaten = [((w <= x).all(1) & (w < x).any(1)).any() for w, x in ((v, row) for row in v)]
    assert pareto(d).tolist() == [not b for b in beaten]


def test_speed():
    t = time.perf_counter()
    d = enumerate_costs(
        dict(
            mels=[64, 128, 256], frames=range(30, 70), base=[16, 24, 32],
            mult=np.arange(1.2, 2.4, .1), expansion=np.arange(1.5, 3.5, .25),
        )
    )
    assert len(d) / (time.perf_counter() - t) > 5_000 and len(d) == 34_560


@pytest.mark.parametrize(
    'axes, family, sentence',
    [
        (dict(bases=[32]), 'cp_mobile', "'bases'.*base"),
        (dict(b7=[(1, 1)]), 'cp_mobile', "'b7'.*b6"),
        (dict(b3=[2]), 'cp_mobile', 'pairs'),
        (dict(base=[32, 30]), 'cp_mobile', 'base 30'),
        (dict(base=[-8]), 'cp_mobile', 'base -8'),
        (dict(base=[0]), 'bc_resnet', 'base 0'),
        (dict(base=[63]), 'tf_sepnet_17', 'base 63'),
        (dict(base=[2]), 'tf_sepnet_16', 'base 2'),
        (dict(mult=[2.]), 'tf_sepnet_17', "'mult'"),
        (dict(depth=[16, 17]), 'tf_sepnet_17', "'depth'"),
    ],
)
def test_what_no_constructor_takes_is_refused(axes, family, sentence):
    with pytest.raises(InputError, match=sentence):
        enumerate_costs(dict(mels=[256], frames=[64]) | axes, family)


def test_the_cost_functions_refuse_as_well():
    with pytest.raises(InputError, match='depth'):
        tf_sepnet_cost(256, 64, depth=[16, 17])
    with pytest.raises(InputError, match="'b9'.*b6"):
        cp_mobile_cost(256, 64, b9=(1, 2))
    with pytest.raises(InputError, match='base 12'):
        cp_mobile_cost(256, 64, base=12)
