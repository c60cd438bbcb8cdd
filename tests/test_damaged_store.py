"""A damaged chunk of a large store is found before one of its samples is used, whoever reads; so is a damaged mel."""
import multiprocessing
import os
import shutil

import numpy as np
import pytest
import torch

import asc.data.packing
import asc.data.proof
from asc.augment.pipeline import create_pipeline
from asc.core import InputError
from asc.data.store import pack, Store
from asc.train.clips import ClipData
from asc.train.loader import ClipLoader
from asc.train.melcache import MelCache
from asc.train.resident import Resident
from noise import RATE, noise_corpus

CLIPS = 2                   # of a chunk
BYTES = 2 * CLIPS * RATE    # of a chunk


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    "A corpus and a store that counts as large: of its 24 chunks the opening looks at eight"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asc.data.packing, 'CHUNK', CLIPS * RATE)
        patch.setattr(asc.data.proof, 'SMALL_STORE', 0)
        folder = tmp_path_factory.mktemp('large')
        corpus = noise_corpus(folder/'c', recs=24, snippets=CLIPS)
        yield corpus, pack(corpus, folder/'s', progress=False).folder


def zero(chunks): chunks[:] = 0


def swap(chunks): chunks[:] = chunks[::-1].copy()


def flip(place):
    "A damage of one bit"
    def flip(chunks): chunks[0, place] ^= 1
    return flip


DAMAGE = {'zeroed': zero, 'swapped': swap, 'first bit': flip(0), 'last bit': flip(-1), 'a bit inside': flip(BYTES//3)}


def damaged(folder, to, number, kind):
    "A copy of a store with a damaged chunk"
    copy = shutil.copytree(folder, to/folder.name)
    path = copy/'audio.i16'
    chunks = np.frombuffer(bytearray(path.read_bytes()), np.uint8).reshape(-1, BYTES)
    rows = [number, number + 1] if kind == 'swapped' else [number]
    chosen = chunks[rows]
    DAMAGE[kind](chosen)
    chunks[rows] = chosen
    path.write_bytes(chunks.tobytes())
    return copy


def clips_of(store, corpus): return ClipData(store, corpus.meta, corpus.scenes, corpus.devices)


def epoch(store, corpus):
    "Every batch of a loader"
    for _ in ClipLoader(clips_of(store, corpus), bs=8, shuffle=True, num_workers=0): pass


def thread(store, corpus):
    "The thread that goes through all chunks, then a batch of sound chunks"
    store.samples.prove_all().join()
    store.batch([0])


def mels(store, corpus):
    "The mels of all clips"
    pipeline = create_pipeline(['resample', 'mel', 'log'], RATE, 'dcase24')
    MelCache(store, pipeline, store.folder.parent).batch(np.arange(len(store)))


DOORS = {
    'an epoch': epoch,
    'batches': lambda store, corpus: [store.batch([i]) for i in range(len(store))],
    'windows': lambda store, corpus: [store.windows([i], [RATE//2], RATE) for i in range(len(store.recordings))],
    'turned': lambda store, corpus: store.samples.turned(
        store.recordings.offset.to_numpy(), store.recordings.frames.to_numpy(), np.full(24, 900), RATE),
    'on a device': lambda store, corpus: Resident(store.samples, store.rows.offset, store.rows.frames, 'cpu'),
    'everything': lambda store, corpus: store.flat, 'cached mels': mels, 'the thread': thread,
}


@pytest.mark.parametrize('number', [1, 10, 20])
@pytest.mark.parametrize('kind', DAMAGE)
@pytest.mark.parametrize('door', DOORS)
def test_damaged_chunk(door, kind, number, damage, large, tmp_path):
    "Opening does not see it; whoever reads does"
    corpus, folder = large
    store = Store.open(damaged(folder, tmp_path, number, kind))
    damage('chunk of a store', lambda: DOORS[door](store, corpus), [store.folder/'audio.i16', 'pack again'])
    store.close()


def in_a_fork(call):
    "What a process that is forked from this one makes of a call: 0, or 1 where it was refused"
    def report():
        try: call()
        except InputError: os._exit(1)
        os._exit(0)
    process = multiprocessing.get_context('fork').Process(target=report)
    process.start()
    process.join()
    return process.exitcode


def test_a_worker_checks_for_all(large, tmp_path):
    "A process forked from this one, such as the worker of a loader, refuses a damaged chunk, and what it checks is so"
    corpus, folder = large
    store = Store.open(damaged(folder, tmp_path, 10, 'zeroed'))
    assert in_a_fork(lambda: store.batch(range(48))) == 1
    assert store.samples.proven.flags.sum() == 10          # those before the damaged one
    assert in_a_fork(lambda: store.batch(range(20))) == 0
    store.samples.sums = [()] * 24                         # nobody looks there again
    assert len(store.batch(range(20))) == 20


def test_a_sound_store_is_read_as_it_is(large):
    "With and without checksums the samples are the same"
    corpus, folder = large
    store, plain = Store.open(folder), Store.open(folder)
    plain.samples.sums = []
    assert (store.batch(range(48)) == plain.batch(range(48))).all()


@pytest.mark.parametrize('kind', DAMAGE)
@pytest.mark.parametrize('again', [False, True], ids=['same object', 'opened again'])
def test_damaged_mels(kind, again, damage, large, tmp_path, capsys):
    "Mels that are not what was written are computed again, and a sentence says so"
    corpus, folder = large
    pipeline = create_pipeline(['resample', 'mel', 'log'], RATE, 'dcase24', dict(n_mels=8))
    cache = MelCache(Store.open(folder), pipeline, tmp_path)
    right = cache.batch(np.arange(48))
    mels = np.fromfile(cache.folder/'mel.f32', np.uint8).reshape(48, -1)
    rows = [7, 9] if kind == 'swapped' else [7]
    chosen = mels[rows]
    if kind == 'a bit inside': chosen[0, 50] ^= 1
    else: DAMAGE[kind](chosen)
    mels[rows] = chosen
    with open(cache.folder/'mel.f32', 'r+b') as file: file.write(mels.tobytes())
    if again: cache = MelCache(Store.open(folder), pipeline, tmp_path)
    def is_right(found): return torch.allclose(found, right, rtol=1e-4)
    damage('cached mel', lambda: cache.batch(np.arange(48)), right=is_right)
    assert f'{cache.folder}: {len(rows)} damaged mels are computed again' in capsys.readouterr().out
