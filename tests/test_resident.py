"""The sound of a list on a device: the same batches to the last bit for every crop; moved only where there is room."""
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import asc.train.learner
from asc.train.options import TrainingOptions
from asc.core import seed_everything
from asc.data.join import join_snippets, join_store
from asc.data.reading import read_int16
from asc.data.splits import read_split, read_test
from asc.data.store import pack
from asc.experiment.recipe import TrainingData, create_training
from asc.model.classifier import create_classifier
from asc.teach.teacher import Teacher
from asc.train.ddp import SharedClips
from asc.train.clips import ClipData, make_resident
from asc.train.learner import make_dls, predict_logits
from asc.train.melcache import MelCache
from asc.train.resident import Resident
from noise import RATE, noise_corpus

DEVICES = [
    'cpu',
    pytest.param(
        'cuda',
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU'),
    ),
]
pytestmark = pytest.mark.usefixtures('one_thread')


def taught(corpus, rows, kind):
    "A teacher of clips, of windows or none, whose logits are noise"
    def noise(n):
        return torch.randn(n, len(corpus.scenes), generator=torch.Generator().manual_seed(0))
    if kind == 'clips':
        return SimpleNamespace(
            starts=None, rows=Teacher(rows.filename, noise(len(rows)), corpus.scenes).rows
        )
    windows = [(r, s / 2) for r in rows.recording.unique() for s in range(19)]
    return (
        kind
        and Teacher(
            [r for r, _ in windows], noise(len(windows)), corpus.scenes, dict(hop=.5), [s for _, s in windows]
        )
    )


def both(packed, rows, device, teacher='', store=None, **kw):
    "The list read from the store, and kept on the device"
    corpus = packed[0]
    def make():
        return ClipData(
        store or packed[1],
        rows,
        corpus.scenes,
        corpus.devices,
        teacher=taught(corpus, rows, teacher) or None,
        **kw,
    )
    return make(), make().to(device)


def same(a, b, device):
    "Two batches are equal to the last bit, the second one on the device"
    assert all(t.device.type == device for t in b)
    return (
        len(a) == len(b)
        and all(x.dtype == y.dtype and torch.equal(x, y.cpu()) for x, y in zip(a, b))
    )


def scattered(packed, n=40):
    "Clips of several recordings out of order, some recordings with a gap in the list"
    return read_split(packed[0], 100).sample(n, random_state=0)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(
    'crop, teacher',
    [('clips', ''), ('clips', 'clips'), ('windows', ''), ('windows', 'windows'), ('shifted', '')],
)
def test_batches_are_equal(packed, crop, teacher, device):
    far, near = both(packed, scattered(packed), device, teacher, crop=crop)
    for idx in ([3, 0, 39, 3], range(40), np.arange(7), [5]):
        torch.manual_seed(1)
        a = far.batch(idx)
        torch.manual_seed(1)
        assert same(a, near.batch(idx), device)
    assert near.resident.samples.dtype == torch.int16
    whole = packed[1].clip_len * (40 if crop == 'clips' else 10 * near.rows.recording.nunique())
    # the clips alone, or every recording once
    assert len(near.resident.samples) == whole


@pytest.mark.parametrize('crop', ['clips', 'windows', 'shifted'])
def test_loaders_draw_alike(packed, crop):
    "Two epochs, shuffled: the same order, the same cuts, the same last smaller batch"
    seen = []
    for data in both(packed, scattered(packed, 20), 'cpu', crop=crop):
        seed_everything(2)
        dls = make_dls(data, data, 8, device='cpu')
        seen.append([b for _ in range(2) for b in dls.train])
    assert len(seen[0]) == 6 and len(seen[0][-1][0]) == 4
    assert all(same(a, b, 'cpu') for a, b in zip(*seen))


@pytest.mark.parametrize(
    'crop, teacher',
    [('clips', ''), ('clips', 'clips'), ('windows', 'windows'), ('shifted', '')],
)
def test_read_ahead_is_the_same(packed, monkeypatch, crop, teacher):
    "Two epochs of steps that draw: the batches of a store that is read when they are due, each read once"
    far, ahead = both(packed, scattered(packed, 20), 'cpu', teacher, crop=crop)
    ahead.resident = None
    ahead.stream('cpu')
    read, threads = [], []
    parts = ClipData._parts
    def noted(self, idx, start=None):
        read.append(len(idx))
        threads.append(threading.current_thread() is threading.main_thread())
        return parts(self, idx, start)
    monkeypatch.setattr(ClipData, '_parts', noted)
    seen = []
    for data in (far, ahead):
        seed_everything(2)
        loader = make_dls(data, data, 8, device='cpu').train
        for _ in range(2):
            for batch in loader:
                seen.append((*batch, torch.rand(2)))       # what a step draws
                loader.read_ahead()
    assert all(same(a, b, 'cpu') for a, b in zip(seen[:6], seen[6:], strict=True))
    assert read == [8, 8, 4] * 4
    assert threads[6:] == [True, False, False] * 2


def test_wrong_guess_is_read_anew(packed):
    "Where something draws after the guess, the window is the one that would have been cut without it"
    far, ahead = both(packed, scattered(packed, 20), 'cpu', crop='windows')
    ahead.resident = None
    ahead.stream('cpu')
    seen = []
    for data in (far, ahead):
        torch.manual_seed(0)
        if data.ahead: data.read_ahead([1, 2])
        torch.rand(1)
        seen.append(data.batch([1, 2]))
    assert same(*seen, 'cpu')


@pytest.mark.parametrize('crop', ['clips', 'windows', 'shifted'])
def test_joined_snippets(packed, crop):
    "Clips of three snippets"
    corpus, store = packed
    rows = join_snippets(read_split(corpus, 100), 3, 10).iloc[:9]
    far, near = both(packed, rows, 'cpu', store=join_store(store, 3), crop=crop)
    torch.manual_seed(0)
    a = far.batch(range(9))
    torch.manual_seed(0)
    assert a[0].shape == (9, 3 * store.clip_len)
    assert same(a, near.batch(range(9)), 'cpu')


def test_windows_of_joined_snippets_know_their_second(tmp_path):
    "In a recording with a gap, too, a window is where the teacher is asked about it"
    corpus = noise_corpus(tmp_path/'c', recs=2, skip=[(0, 1)])
    store, requests = pack(corpus, tmp_path/'s', progress=False), []
    class Windows:
        starts = ()
        def at(self, recordings, seconds, scenes):
            requests.extend(zip(recordings, seconds))
            return torch.zeros(len(seconds), 1)
    data = ClipData(
        join_store(store, 2), join_snippets(corpus.meta, 2, 4), ['rain'], ['a', 'b'],
        crop='windows', teacher=Windows(),
    )
    waves = (data.batch(range(3))[0] * 32768).numpy()
    assert data.rows.snippet.tolist() == [1, 0, 1]
    for x, (recording, second) in zip(waves, requests):
        names = corpus.meta[corpus.meta.recording == recording].set_index('snippet').filename
        a = round(second * RATE)
        sound = np.concatenate(
            [
                read_int16(corpus.dir/names[k], RATE)
                for k in range(a // RATE, (a + 2 * RATE - 1) // RATE + 1)
            ]
        )
        assert (x == sound[a % RATE:][:2 * RATE]).all()


def test_cached_mels_stay(packed, tmp_path):
    corpus, store = packed
    mels = MelCache(store, create_classifier(pipeline='none', rate=store.rate).pipeline, tmp_path)
    far, near = both(packed, scattered(packed, 6), 'cpu', 'clips', cache=mels)
    assert near.resident is None and same(far.batch([4, 1]), near.batch([4, 1]), 'cpu')


def test_shares_of_ranks(packed):
    far, near = both(packed, scattered(packed, 10), 'cpu', crop='windows')
    for rank in range(3):
        torch.manual_seed(rank)
        a = SharedClips(far, rank, 3).batch([9, 2, 5, 7])
        torch.manual_seed(rank)
        assert same(a, SharedClips(near, rank, 3).batch([9, 2, 5, 7]), 'cpu')


@pytest.mark.parametrize('device', DEVICES)
def test_predictions_and_empty_lists(packed, device):
    corpus, store = packed
    model = create_classifier(
        rate=store.rate, scenes=corpus.scenes, backbone_args=dict(base=8)
    ).to(device)
    far, near = both(packed, read_test(corpus).iloc[:10], device)
    assert torch.equal(predict_logits(model, far, 4), predict_logits(model, near, 4))
    assert len(both(packed, read_test(corpus).iloc[:0], device)[1].resident.samples) == 0


def test_every_part_is_copied(packed):
    "Ranges that follow each other, that do not, and that occur twice, in parts of any size"
    store, rng = packed[1], np.random.default_rng(0)
    for part in (999, 44100, 10**6):
        first = 1000 * rng.permutation(300)[:50]
        first = np.append(first, first[:5])
        resident = Resident(store.samples, first, np.full(55, 1000), 'cpu', part)
        assert torch.equal(
            resident.take(torch.from_numpy(resident.begin), 1000),
            torch.from_numpy(store.samples.take(first, 1000)),
        )
        assert len(resident.samples) == 50_000


@pytest.mark.parametrize('free, idle, moves', [(2., 0, True), (1.9, 0, False), (1., 1., True)])
def test_moved_where_there_is_room(packed, monkeypatch, capsys, free, idle, moves):
    "Twice the size of the two lists must be free; what torch holds and does not use is free too"
    corpus, store = packed
    lists = [
        ClipData(store, rows, corpus.scenes, corpus.devices)
        for rows in (read_split(corpus, 100)[:15], read_test(corpus)[:5])
    ]
    size, moved = 20 * store.clip_len * 2, []
    says = dict(
        mem_get_info=lambda d: (free * size, 10 * size),
        memory_reserved=lambda d: (3 + idle) * size,
        memory_allocated=lambda d: 3 * size,
    )
    for name, answer in says.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(ClipData, 'to', lambda self, device: moved.append(self))
    monkeypatch.setattr(ClipData, 'stream', lambda self, device: None)
    assert make_resident(lists, torch.device('cuda')) is moves
    assert moved == (lists if moves else [])
    assert ('read from the store' in capsys.readouterr().out) is not moves
    assert not make_resident(lists, torch.device('cpu'))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
@pytest.mark.parametrize('crop', ['clips', 'windows', 'shifted'])
def test_a_batch_on_a_gpu_waits_for_nothing(packed, crop):
    "A training made for a GPU has its clips there, and batches do not make the host wait"
    corpus, store = packed
    rows = scattered(packed)
    data = TrainingData(store, rows[:30], rows[30:], corpus.scenes, corpus.devices)
    learn, _ = create_training(data, TrainingOptions(crop=crop, bs=8))
    assert learn.dls.train_ds.resident.samples.is_cuda and learn.dls.valid_ds.y.is_cuda
    learn.dls.train_ds.batch([0, 1])
    torch.cuda.set_sync_debug_mode('error')
    try:
        waves, device, y = learn.dls.train_ds.batch([3, 4, 5])
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert waves.shape == (3, store.clip_len)
    assert waves.is_cuda
    assert waves.abs().max() <= 1
