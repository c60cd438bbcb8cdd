"""Store, cache, pipeline and learner together: crops are slices of the right recording, a cache changes no training."""
from pathlib import Path

import numpy as np
import pytest
import torch

from asc.core import InputError, seed_everything
from asc.data.splits import read_split, read_test
from asc.model.classifier import create_classifier
from asc.train.clips import ClipData
from asc.train.learner import create_learner, fit, make_dls, predictions
from asc.train.melcache import MelCache

STEPS = [
    'resample',
    'mel',
    {'freq_mask': {'size': 48}},
    'log',
    {'freq_mixstyle': {'p': 0.4, 'alpha': 0.3}},
]


def data(packed, rows, **kw):
    "Clips of these rows"
    corpus, store = packed
    return ClipData(store, rows, corpus.scenes, corpus.devices, **kw)


def test_windows_lie_inside_their_recording(packed):
    "A random window is a slice of the ten seconds its clip came from, anywhere in them"
    corpus, store = packed
    rows = read_split(corpus, 100).iloc[[3] * 200]
    torch.manual_seed(0)
    waves = data(packed, rows, crop='windows').read(np.arange(200))[0].numpy()
    rec = store.recordings.iloc[store.rows.stretch[store.index(rows.filename)[0]]]
    sound = store.flat[rec.offset:rec.offset + rec.frames]
    assert len(sound) == 441000
    starts = [
        next(s for s in np.flatnonzero(sound == w[0]) if (sound[s:s + 44100] == w).all())
        for w in waves
    ]
    assert min(starts) < 40000
    assert max(starts) > 350000
    assert len(set(starts)) > 190
    assert any(s % 44100 for s in starts)


def test_shifted_crops_are_a_turned_recording(packed):
    "All ten pieces of a recording, shifted alike, are the recording turned and cut again"
    corpus, store = packed
    rows = read_split(corpus, 100)
    rows = rows[rows.recording == rows.recording.iloc[0]]
    positions = store.index(rows.filename)
    rec = store.recordings.iloc[store.rows.stretch[positions[0]]]
    sound = store.flat[rec.offset:rec.offset + rec.frames]
    torch.manual_seed(1)
    for w, k in zip(
        data(packed, rows, crop='shifted').read(np.arange(len(rows)))[0].numpy(), rows.snippet
    ):
        pieces = [np.roll(sound, round(s * 4410))[k * 44100:(k + 1) * 44100] for s in range(1, 10)]
        assert any((w == p).all() for p in pieces)


def test_training_on_cached_mels_equals_training_on_waves(packed, tmp_path):
    "Same seed, same steps: the same probabilities"
    corpus, store = packed
    train, test = read_split(corpus, 100), read_test(corpus).iloc[::9]
    probs = []
    for cached in (False, True):
        seed_everything(3)
        model = create_classifier(pipeline=STEPS, rate=store.rate, scenes=corpus.scenes)
        cache = MelCache(store, model.pipeline, tmp_path) if cached else None
        learn = create_learner(
            make_dls(data(packed, train, cache=cache), data(packed, train[:0], cache=cache), 32),
            model,
        )
        with learn.no_bar(): fit(learn, 1, 1e-3)
        probs.append(predictions(model, data(packed, test)).iloc[:, 4:].to_numpy())
    assert np.abs(probs[0] - probs[1]).max() < 1e-3
    assert cache.done[store.index(train.filename)].all()
    assert not cache.done[store.index(test.filename)].any()


def test_cache_refuses_random_waves(packed, tmp_path):
    corpus, store = packed
    with pytest.raises(InputError, match='the step roll'):
        MelCache(store, create_classifier(rate=store.rate).pipeline, tmp_path)
    with pytest.raises(InputError, match="crop='windows'"):
        ClipData(
            store, read_test(corpus), corpus.scenes, corpus.devices, crop='windows',
            cache=object(),
        )


def test_lr_find_works(packed):
    "fastai's lr_find runs on the Learner and leaves the weights as they were"
    corpus, store = packed
    rows = read_split(corpus, 100)
    seed_everything(0)
    learn = create_learner(
        make_dls(data(packed, rows), data(packed, rows[:20]), 16),
        create_classifier(rate=store.rate, scenes=corpus.scenes),
    )
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with learn.no_bar(), learn.no_logging():
        rates = learn.lr_find(num_it=12, show_plot=False)
    assert 1e-8 < rates.valley < 10
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full')
def test_a_full_disk_is_no_mel(packed, tmp_path):
    "A mel that could not be written is not taken for one"
    store = packed[1]
    cache = MelCache(store, create_classifier(pipeline='none', rate=store.rate).pipeline, tmp_path)
    good = cache.batch([0])
    cache.file = open('/dev/full', 'r+b', buffering=0)
    with pytest.raises(InputError, match='could not write mels'): cache.batch([1])
    cache = MelCache(store, create_classifier(pipeline='none', rate=store.rate).pipeline, tmp_path)
    assert cache.done[:3].tolist() == [1, 0, 0]
    assert torch.equal(cache.batch([0]), good)


def test_a_mel_of_another_process(packed, tmp_path):
    "What another one computes after a mel beside it was read is seen; both are opened at once on an empty folder"
    store = packed[1]
    caches = [
        MelCache(
            store,
            create_classifier(
                pipeline='none', rate=store.rate, frontend_args=dict(n_mels=8)
            ).pipeline,
            tmp_path,
        )
        for _ in range(2)
    ]
    # smaller than a buffer would be
    assert 4 * np.prod(caches[0].shape) < 4096
    caches[0].batch([0])
    caches[1].batch([1])
    assert caches[0].done[:3].tolist() == [1, 1, 0]
    assert torch.equal(caches[0].batch([1, 0]), caches[1].batch([1, 0]))
    assert caches[0].batch([1]).std() > 0
