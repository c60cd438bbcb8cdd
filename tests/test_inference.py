"""Half precision against the real one, test-time augmentation by its definition, joined snippets as recordings."""
import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch

from asc.train.options import TrainingOptions
from asc.core import SCENES, InputError, seed_everything
from asc.data.corpus import load_corpus
from asc.data.join import join_snippets, join_store
from asc.data.splits import carve_valid, read_split, read_test
from asc.data.store import pack
from asc.experiment.recipe import TrainingData, create_training
from asc.model.classifier import create_classifier
from asc.train.clips import ClipData
from asc.train.learner import predictions
from asc.train.tta import half_model, half_predictions, masking, tta_predictions


def settled(name, frontend, pipeline):
    "A network whose norms have seen something"
    seed_everything(0)
    model = create_classifier(name, frontend, pipeline)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(8, 44100) * .1, torch.zeros(8, dtype=torch.long))
    return model.eval()


@pytest.mark.parametrize(
    'name, frontend, pipeline',
    [
        ('cp_mobile_24', 'dcase24', 'dcase24'),
        ('cp_mobile_23', 'cp', 'none'),
        ('tf_sepnet_40', 'cp512', 'none'),
        ('cnn6_60k', 'sp4asc', 'sp4asc'),
    ],
)
def test_rounding_is_half_precision(packed, name, frontend, pipeline):
    "Rounded layers answer as half precision does: nearer to it than it is to certainty, and neither is float32"
    corpus, store = packed
    model = settled(name, frontend, pipeline)
    data = ClipData(store, read_test(corpus)[::300], SCENES, corpus.devices)
    full, rounded = (
        f(model, data)[list(SCENES)].to_numpy() for f in (predictions, half_predictions)
    )
    half = predictions(half_model(model, rounded=False), data)[list(SCENES)].to_numpy()
    for a in (rounded, half): assert 0 < abs(a - full).max() < .02
    assert abs(rounded - half).max() < .02
    assert (rounded.argmax(1) == half.argmax(1)).all()


def test_overflow_is_no_number(packed):
    "A network whose numbers leave half precision gives NaN, not a wrong answer"
    corpus, store = packed
    model = settled('cp_mobile_24', 'dcase24', 'none')
    data = ClipData(store, read_test(corpus)[:4], SCENES, corpus.devices)
    with torch.no_grad():
        model.backbone.in_c[0][0].weight.mul_(1e7)
        model.backbone.in_c[0][1].running_var.mul_(1e14)
    assert predictions(model, data)[list(SCENES)].notna().all(axis=None)
    assert half_predictions(model, data)[list(SCENES)].isna().all(axis=None)


def test_tta_is_the_mean_of_masked_looks(packed):
    "Against the definition: only masks act, softmax each, mean"
    corpus, store = packed
    model = settled('cp_mobile_24', 'dcase24', 'dcase24')
    data = ClipData(store, read_test(corpus)[::100], SCENES, corpus.devices)
    got = tta_predictions(model, data, 5, seed=3)[list(SCENES)].to_numpy()
    wave, device, _ = data.batch(range(len(data)))
    torch.manual_seed(3)
    looks = []
    with torch.no_grad():
        for _ in range(5):
            model.eval()
            model.pipeline.ops['3_freq_mask'].train()
            looks.append(model(wave, device).double().softmax(1).numpy())
    assert got == pytest.approx(np.mean(looks, 0), abs=1e-6)
    assert np.std(looks, 0).max() > 1e-4


def test_tta_does_not_see_the_neighbours(packed):
    "sp4asc's masks are filled with the training list's means: what else is in the test batch changes nothing"
    corpus, store = packed
    model, test = settled('cnn6_60k', 'sp4asc', 'sp4asc'), read_test(corpus)
    train = ClipData(store, read_split(corpus, 100), SCENES, corpus.devices)
    first = [
        tta_predictions(
            model, ClipData(store, test.iloc[[0, i, i + 1]], SCENES, corpus.devices), 3, train
        )[list(SCENES)].iloc[0].tolist()
        for i in (1, 700)
    ]
    assert first[0] == pytest.approx(first[1], abs=1e-6)
    with masking(model, train) as masks:
        spec = torch.cat(
            [model.pipeline(train.batch(range(k, k + 50))[0]) for k in range(0, 200, 50)]
        )
        assert torch.allclose(masks[1].fill, spec.mean((0, 1, 3))[:, None], atol=1e-3)


# ---------------------------------------------------------------- ten seconds
def ten_second_copy(corpus, folder):
    "The same recordings as TAU 2020 has them: one file each, lists without snippets"
    def cut(f):
        return f.str.replace(r'-\d(-[^-]+\.wav)$', r'\1', regex=True)
    (folder/'audio').mkdir(parents=True)
    for name, files in corpus.meta.groupby(cut(corpus.meta.filename)).filename:
        sf.write(
            folder/name,
            np.concatenate([sf.read(corpus.dir/f, dtype='int32')[0] for f in sorted(files)]),
            44100,
            'PCM_24',
        )
    for path in ('meta.csv', 'test.csv', 'split100.csv'):
        rows = pd.read_csv(corpus.dir/path, sep='\t')
        rows.assign(filename=cut(rows.filename)).drop_duplicates('filename').to_csv(
            folder/path, sep='\t', index=False
        )
    return load_corpus(folder)


@pytest.fixture(scope='module')
def ten(packed, tmp_path_factory):
    "The corpus of whole recordings"
    return ten_second_copy(packed[0], tmp_path_factory.mktemp('ten')/'tau2020-like-synthetic')


def test_joined_snippets_are_the_ten_second_files(packed, ten, tmp_path):
    "Same lists, same samples; and a corpus of whole recordings needs no joining"
    corpus, store = packed
    whole = join_store(store, 10)
    filed = pack(ten, tmp_path, progress=False)
    assert join_store(filed, 10) is filed
    assert filed.clip_len == whole.clip_len == 441000
    for read in (read_test, lambda c: read_split(c, 100)):
        rows, want = join_snippets(read(corpus), 10, 10), read(ten)
        assert rows.filename.tolist() == want.filename.tolist()
        assert rows.filename.tolist() == join_snippets(want, 10, 1).filename.tolist()
        joined = whole.batch(whole.index(rows.filename))
        assert (joined == filed.batch(filed.index(want.filename))).all()


def test_training_on_ten_seconds(packed, ten, tmp_path):
    "sp4asc's network learns from ten-second files and from joined snippets to the same last digit"
    out = []
    for corpus, store in (
        (packed[0], join_store(packed[1], 10)), (ten, pack(ten, tmp_path, progress=False))
    ):
        train, valid = carve_valid(join_snippets(read_split(corpus, 100), 10, 10), .1)
        data = TrainingData(store, train[:8], valid[:2], SCENES, corpus.devices)
        learn, fit = create_training(data, TrainingOptions(
            frontend='sp4asc', backbone='cnn6_60k', pipeline='sp4asc', epochs=1, bs=4, lr=.001,
            backbone_args=dict(widths=(4, 8, 8, 8)),
        ))
        with learn.no_bar(): fit()
        test = ClipData(store, join_snippets(read_test(corpus), 10, 10)[:6], SCENES, corpus.devices)
        out.append(tta_predictions(learn.model, test, 2, learn.dls.train_ds))
    assert out[0].equals(out[1]) and len(out[0]) == 6


def test_windows_of_joined_clips(packed):
    "Random three-second windows of the recording, and rows that are gone where a snippet is missing"
    corpus, store = packed
    three = join_store(store, 3)
    train = join_snippets(read_split(corpus, 100), 3, 10)
    for crop in ('windows', 'shifted'):
        wave, _, _ = ClipData(three, train, SCENES, corpus.devices, crop=crop).batch(range(6))
        assert wave.shape == (6, 3 * 44100) and wave.abs().amax(1).min() > 0
    assert len(train) == 60 and set(train.snippet) == {0, 1, 2}
    with pytest.raises(InputError, match='no recording has 3 snippets'):
        join_snippets(read_split(corpus, 100).query('snippet < 2'), 3, 10)
    with pytest.raises(IndexError): three.batch([len(three)])
