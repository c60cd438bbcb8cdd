"""The timing pieces and the benchmark's rivals: their logic, never a time."""
import os
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from asc.backbone.zoo import create_backbone
from asc.bench.rivals import make_prediction, frontend_settings, torchaudio_frontend
from asc.bench.timing import against, FreshProcess, time_in_turn
from asc.bench.floor import forward_needs, kept_bytes, Machine, training_needs
from asc.core import InputError
from asc.frontend.logmel import create_frontend
from asc.train.memory import keep_memory


def test_turns_are_fair():
    "Every rival once a round, the first one last in every other round, and one call of each that is not counted"
    calls = []
    turns = time_in_turn(
        dict(a=lambda: calls.append('a'), b=lambda: calls.append('b'), c=lambda: calls.append('c')),
        3,
    )
    assert ''.join(calls) == 'abc' + 'abc' + 'cba' + 'abc'
    assert turns.groupby('name').size().tolist() == [3, 3, 3]
    assert against(turns).against.tolist() == ['b', 'c']


def test_ratios_are_formed_within_a_round():
    "A machine that slows down tenfold in the middle changes no ratio, and the quartiles tell the spread"
    slow = np.array([1, 10, 1, 10, 1.])
    rows = [
        (k, n, t * s, 2 * t * s)
        for k, s in enumerate(slow)
        for n, t in (('us', 1.), ('them', 2. + k))
    ]
    d = against(pd.DataFrame(rows, columns=['round', 'name', 'cpu', 'wall']), 10).iloc[0]
    assert (d.cpu_low, d.cpu_ratio, d.cpu_high) == pytest.approx((3, 4, 5))
    assert d.wall_ratio == pytest.approx(4)
    assert d.cpu_ms == pytest.approx(100)


def test_the_other_process():
    "It is another process, survives an error, uses as many threads as are asked for, and its end becomes one sentence"
    with FreshProcess() as e:
        with pytest.raises(RuntimeError, match='FileNotFoundError'):
            e.make(os.listdir, 'no such folder')
        with pytest.raises(RuntimeError, match='unknown backbone'):
            e.make(make_prediction, [], 32000, 'no such network')
        assert len(e.make(partial, os.getpid).clock()) == 2
        assert e.process.pid != os.getpid()
        with pytest.raises(InputError, match='smaller batch'):
            e.make(partial, os._exit, 9).clock()
    assert e.process.exitcode == 9


@pytest.mark.parametrize('name', ['dcase24', 'dragonsearch', 'logmel'])
def test_the_rival_computes_the_same(name):
    "torchaudio's transform with our constants gives our linear mel"
    x = torch.randn(2, 32000) * .1
    ours = (create_frontend(name).eval().mel(x) + 1e-5).log()
    assert (torchaudio_frontend(name)(x) - ours).abs().max() < 1e-4


def test_settings_are_those_of_the_frontend():
    "Read off without building it"
    for name in ('cp', 'cnn3', 'beats'):
        assert frontend_settings(name) | dict(fmax=None) == create_frontend(name).kw | dict(fmax=None)


def test_kept_maps_grow_with_the_batch():
    "Twice the clips, twice the bytes; nothing is kept without gradients; training triples the multiplications"
    net = create_backbone('cp_mobile_24').train()
    x = torch.randn(4, 1, 64, 32)
    assert kept_bytes(net, x) == pytest.approx(2 * kept_bytes(net, x[:2]), rel=.05)
    moved, macs = forward_needs(net.eval(), x[:1])
    more, thrice = training_needs(net, x[:1])
    assert more > moved and thrice == 3 * macs
    assert moved > sum(p.nbytes for p in net.parameters())
    m = Machine(1e9, 1e9)
    assert m.floor(0, macs) == pytest.approx(macs / 1e6)
    assert m.floor(2e6, 1) == pytest.approx(2)


def _filling(most, times):
    "A function that makes and drops 40 MB `times` times, and raises when the last one caused more page faults"
    import resource
    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    def call():
        for _ in range(times):
            before = faults()
            torch.ones(10_000_000)
        assert faults() - before <= most
    return call


def test_keeping_memory_is_ours_alone():
    "`keep_memory` acts on the allocator of this process alone: in the other one a large tensor faults at every call"
    if not keep_memory(): pytest.skip('no glibc')
    _filling(10, 4)()
    with FreshProcess() as e:
        with pytest.raises(RuntimeError, match='AssertionError'):
            e.make(_filling, 10, 2).clock()
