"""Teachers: shuffled files are refused, whatever the shuffle; predict.ipynb as a user starts it; real data if there."""
import json
import os

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from asc.load import open_model
from asc.core import SCENES, InputError
from asc.data.choose import data_facts
from asc.data.corpus import load_corpus
from asc.data.splits import carve_valid, read_split, read_test
from asc.model.classifier import create_classifier, save_model
from asc.teach.ensemble import ensemble, score_table
from asc.teach.teacher import Teacher
from asc.teach.published import read_published_logits
from asc.teach.logits import read_teacher, save_teacher
from asc.use.answers import predict_teacher, training_clips
import launch


def listed(recordings=48, snippets=3):
    "Rows of a small list: recordings of ten scenes, four a place, in no order, the snippets of each together"
    rows = []
    for r in np.random.default_rng(9).permutation(recordings):
        scene = SCENES[r % 10]
        location = f'oslo-{r % 10 + 10 * (r // 40)}'
        name = f'{scene}-{location}-{r}'
        where = dict(scene=scene, device='a', city='oslo', location=location)
        for k in range(snippets):
            rows.append(dict(where, recording=f'{name}-a', filename=f'audio/{name}-{k}-a.wav'))
    return pd.DataFrame(rows)


def weak(rows, seed=0, skill=2.3):
    "Logits right on 40 to 50 % of the clips, whose mistakes are shared within recordings, and a little within places"
    rng = np.random.default_rng(seed)

    def shared(column):
        "Noise that is the same for all rows of a recording, or of a place"
        noise = rng.normal(size=(rows[column].nunique(), 10))
        return noise[pd.factorize(rows[column])[0]]
    return shared('filename') + shared(
        'recording'
    ) + .5 * shared('location') + skill * np.eye(10)[pd.Categorical(rows.scene, SCENES).codes]


def within_scenes(rows, rng):
    "An order with the rows of each scene shuffled"
    order = np.arange(len(rows))
    for s in set(rows.scene):
        order[rows.scene == s] = rng.permutation(order[rows.scene == s])
    return order


def blocks(rows, rng, share):
    "An order with two blocks of rows exchanged, each a share of all"
    n, w = len(rows), int(share * len(rows))
    order = np.arange(n)
    a = rng.integers(0, n // 2 - w + 1)
    b = rng.integers(n // 2, n - w + 1)
    order[a:a + w], order[b:b + w] = np.arange(b, b + w), np.arange(a, a + w)
    return order


SHUFFLES = dict(
    all=lambda rows, rng: rng.permutation(len(rows)),
    rotated_by_one=lambda rows, rng: np.roll(np.arange(len(rows)), rng.choice([-1, 1])),
    rotated=lambda rows, rng: np.roll(np.arange(len(rows)), rng.integers(2, len(rows) - 1)),
    reversed=lambda rows, rng: np.arange(len(rows))[::-1],
    halves=lambda rows, rng: np.roll(np.arange(len(rows)), len(rows) // 2),
    within_scenes=within_scenes,
)


def test_the_example_is_realistic():
    rows = listed(47)
    assert len(rows) == 141
    right = [np.mean(np.array(SCENES)[weak(rows, s).argmax(1)] == rows.scene) for s in range(20)]
    assert .38 < np.mean(right) < .52


def test_shuffled_files_are_refused_100_of_100(tmp_path):
    "Written under the right names with a valid digest: only the labels can tell"
    rows, rng = listed(47), np.random.default_rng(0)
    for i in range(100):
        teacher = Teacher(rows.filename, weak(rows, i)[rng.permutation(len(rows))], SCENES)
        if i % 10 == 0:
            teacher = read_teacher(teacher.save(tmp_path/'t.safetensors'))
        with pytest.raises(InputError, match='those of other clips'):
            teacher.check(rows)


@pytest.mark.parametrize('clips', [47, 160])
def test_honest_files_pass(clips):
    rows = listed(clips)
    for i in range(8):
        marks = Teacher(rows.filename, weak(rows, i), SCENES).check(rows)
        assert marks['agreement'] > 8
        assert marks['likeness'] > 4
        assert marks['accuracy'] > 2 * marks['chance']


@pytest.mark.parametrize('kind', SHUFFLES)
def test_every_kind_of_shuffle_is_refused(kind):
    rows, rng = listed(47), np.random.default_rng(1)
    for i in range(15):
        moved = Teacher(rows.filename, weak(rows, i)[SHUFFLES[kind](rows, rng)], SCENES)
        with pytest.raises(InputError): moved.check(rows)


@pytest.mark.parametrize('share', [.1, .25])
def test_swapped_blocks_of_a_longer_list(share):
    rows, rng = listed(480), np.random.default_rng(2)
    for i in range(5):
        with pytest.raises(InputError, match='this part belongs to other clips'):
            Teacher(rows.filename, weak(rows, i)[blocks(rows, rng, share)], SCENES).check(rows)


def test_any_change_to_a_written_file_is_refused(tmp_path):
    "What labels cannot tell, the digest does: two rows exchanged, a partial shuffle, classes renamed, names moved"
    rows, path = listed(47), tmp_path/'t.safetensors'
    save_teacher(path, rows.filename, weak(rows), SCENES, seen=np.zeros(len(rows)))
    with safe_open(path, 'pt') as f: about = f.metadata()
    tensors = load_file(path)
    two, part = torch.arange(len(rows)), torch.arange(len(rows))
    two[[0, 1]], part[::10] = two[[1, 0]], part[::10].flip(0)
    renamed = dict(about, asc=about['asc'].replace('airport', 'harbour'))
    for t, m in (
        (dict(tensors, logits=tensors['logits'][two]), about),
        (dict(tensors, logits=tensors['logits'][part]), about),
        (tensors, renamed),
        (dict(tensors, names=tensors['names'].roll(30)), about),
        (dict(tensors, seen=tensors['seen'] + 1), about),
    ):
        save_file({k: v.contiguous() for k, v in t.items()}, path, m)
        with pytest.raises(InputError, match='was changed after it was written'):
            read_teacher(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match='no teacher file, or damaged'):
        read_teacher(path)


def test_short_and_foreign_files_are_refused(tmp_path):
    rows = listed(47)
    short = Teacher(rows.filename[3:], weak(rows)[3:], SCENES, dict(model='short'))
    with pytest.raises(InputError, match=r'no logits for 3 of 141 clips, such as audio/'):
        short.rows(rows.filename)
    with pytest.raises(InputError, match='no logits for 3'): short.check(rows)
    foreign = Teacher(rows.filename, weak(rows), [*SCENES[:9], 'ship'])
    with pytest.raises(InputError, match='does not know tram'):
        foreign.rows(rows.filename, SCENES)
    with pytest.raises(InputError, match='does not know tram'): foreign.check(rows)
    for place, value in ((5, float('nan')), (7, float('inf')), (9, 7e4)):
        z = weak(rows)
        z[place, 2] = value
        with pytest.raises(InputError, match=f'such as {rows.filename[place]}'):
            save_teacher(tmp_path/'t.safetensors', rows.filename, z, SCENES)
    assert not list(tmp_path.iterdir())


def test_published_orders(tmp_path):
    "meta order and list order hold the same clips; read with the wrong one, either is refused"
    meta = listed(160)
    split = pd.concat([meta.iloc[a::5] for a in range(5)], ignore_index=True)
    z = dict(zip(meta.filename, weak(meta)))
    for right, wrong in ((meta, split), (split, meta)):
        torch.save(torch.tensor(np.stack([z[f] for f in right.filename])), tmp_path/'logits.pt')
        teacher = read_published_logits(tmp_path/'logits.pt', right)
        expected = torch.tensor(np.stack([z[f] for f in meta.filename[:2]])).half().float()
        assert teacher.rows(meta.filename[:2]).tolist() == expected.tolist()
        with pytest.raises(InputError, match='those of other clips'):
            read_published_logits(tmp_path/'logits.pt', wrong)
        with pytest.raises(InputError, match='480 rows and the list 470'):
            read_published_logits(tmp_path/'logits.pt', right[:470])

    class Evil:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path}/ran',)
    torch.save(Evil(), tmp_path/'logits.pt')
    with pytest.raises(InputError, match='needs unpickling'):
        read_published_logits(tmp_path/'logits.pt', meta)
    assert not (tmp_path/'ran').exists()


@pytest.fixture(scope='module')
def runs(tmp_path_factory, synthetic):
    "Two run folders as a training leaves them (weights as they were drawn)"
    folder = tmp_path_factory.mktemp('teachers')
    corpus = load_corpus(synthetic)
    train = carve_valid(read_split(corpus, 100), .2)[0]
    for i, name in enumerate(('one', 'two')):
        torch.manual_seed(i)
        save_model(create_classifier('cnn3', 'cnn3', 'none', 44100, corpus.scenes), folder/name)
        (folder/name/'params.json').write_text(
            json.dumps(
                dict(parameters=dict(subset=100, valid=.2), data=data_facts(corpus, train=train))
            )
        )
    return folder


def test_predict_notebook(papermill, runs, synthetic, tmp_path):
    "Two runs and their ensemble over the training list: the files, what is known about them, the tables"
    options = dict(models=[runs/'one', runs/'two'], valid=.2, weights='calibrated')
    launch.check(papermill('logits', data_dir=synthetic, out=tmp_path/'run', **options))
    corpus = load_corpus(synthetic)
    rows = read_split(corpus, 100)
    train, valid = carve_valid(read_split(corpus, 100), .2)
    one, two, both = (
        read_teacher(tmp_path/'run'/f'{n}.safetensors') for n in ('one', 'two', 'ensemble')
    )
    for t in (one, two, both):
        assert len(t) == len(rows)
        assert t.facts['test_clips'] == 0
        assert t.scenes == corpus.scenes
        assert t.seen.sum() == len(train)
        assert (t.seen[torch.from_numpy(t.find(valid.filename))] == 0).all()
    assert one.facts['fingerprint'] != two.facts['fingerprint']
    assert one.facts['trained_on']['clips'] == len(train)
    assert [m['model'] for m in both.facts['members']] == ['one', 'two']
    T = both.facts['weights']['all']['temperatures']
    mean = (one.rows(rows.filename) / T[0] + two.rows(rows.filename) / T[1]) / 2
    assert torch.allclose(both.rows(rows.filename), mean, atol=.02)
    assert list(pd.read_csv(tmp_path/'run'/'scores.csv').iloc[:, 0]) == ['one', 'two', 'ensemble']
    assert set(pd.read_csv(tmp_path/'run'/'scores_unseen.csv').clips) == {len(valid)}
    # neither network was trained
    remarks = pd.read_csv(tmp_path/'run'/'alignment.csv').remark
    assert remarks.str.contains('knows next to nothing').sum() >= 2


def test_predict_notebook_keeps_off_the_test_list(papermill, runs, synthetic, tmp_path):
    "Logits of the test list are refused: a student would learn from it"
    options = dict(models=[runs/'one'], clips='test', out=tmp_path/'run')
    result = papermill('logits', data_dir=synthetic, **options)
    assert result.returncode != 0
    assert 'nothing may be learnt from it' in result.stderr
    assert not (tmp_path/'run'/'one.safetensors').exists()


def test_windows_marks_and_what_was_seen(runs, packed):
    corpus, store = packed
    test = read_test(corpus)
    model = open_model(runs/'one')
    some = test.head(20)
    clips = predict_teacher(model, store, some, corpus.scenes, corpus.devices, test=test.filename)
    windows = predict_teacher(
        model, store, some, corpus.scenes, corpus.devices, hop=.5, test=test.filename
    )
    assert clips.facts['test_clips'] == windows.facts['test_clips'] == 20
    assert torch.allclose(
        windows.at(some.recording, some.snippet), clips.rows(some.filename), atol=.02
    )
    assert len(training_clips(runs/'one', corpus)) == len(
        carve_valid(read_split(corpus, 100), .2)[0]
    )


def test_published_checkpoint_needs_the_same_classes(shared, packed):
    "cpjku23's student resamples 44.1 kHz to its 32 kHz and teaches the ten scenes; other classes are refused"
    corpus, store = packed
    rows = read_split(corpus, 5).head(8)
    model = open_model(shared/'data/weights/cpjku23_c0a7nzin.ckpt')
    teacher = predict_teacher(model, store, rows, corpus.scenes, corpus.devices)
    assert teacher.logits.shape == (8, 10)
    assert 'sample_rate=32000' in teacher.facts['frontend']
    assert (teacher.seen == -1).all()
    with pytest.raises(InputError, match='does not know rain; not asked for are tram'):
        predict_teacher(model, store, rows, [*corpus.scenes[:9], 'rain'], corpus.devices)


def of_quality(qualities, places=20, seed=0):
    "Made-up members whose logits know the truth so well, and the rows they were asked about"
    rng = np.random.default_rng(seed)
    scenes = SCENES[:3]
    rows = pd.DataFrame([dict(scene=scenes[k % 3], device='a', city='x', location=f'l{k % places}', recording=f'r{k}',
                              filename=f'{k}.wav') for k in range(120)])
    truth = np.eye(3)[pd.Categorical(rows.scene, scenes).codes]
    noise = rng.normal(size=(120, 3))
    logits = [quality * truth + noise for quality in qualities]
    return [Teacher(rows.filename, z, scenes, dict(model=f'm{i}')) for i, z in enumerate(logits)], rows


@pytest.mark.parametrize('how', ['logits', 'probabilities', 'log_probabilities'])
@pytest.mark.parametrize('weights', ['likelihood', 'stacking'])
def test_weights_by_evidence(weights, how):
    "A dominated member fades as places are added; equals are equal; order and places of honour do not matter"
    def fitted(qualities, places=20):
        members, rows = of_quality(qualities, places)
        together = ensemble(members, how, weights, rows)
        worst = score_table(members, rows)['log loss'].max()
        assert score_table([together], rows)['log loss'].iloc[0] <= worst + 1e-4
        return np.array(together.facts['weights']['all']['weights'])
    poor = [fitted([2., 0.], places)[1] for places in (1, 10, 60)]
    assert poor[0] > poor[1] > poor[2] and poor[2] < .1
    np.testing.assert_allclose(fitted([1., 1., 1.]), 1/3, atol=1e-3)
    a, b = fitted([2., 1., .2]), fitted([.2, 2., 1.])
    np.testing.assert_allclose(a, b[[1, 2, 0]], atol=1e-3)


@pytest.mark.parametrize('weights', ['likelihood', 'stacking'])
def test_weights_by_evidence_are_refused_as_fitted_ones(weights):
    members, rows = of_quality([2., 0.])
    with pytest.raises(InputError, match='give its rows'): ensemble(members, weights=weights)
    members[0].seen = torch.ones(120, dtype=int)
    with pytest.raises(InputError, match='was trained on 120 of the 120'):
        ensemble(members, weights=weights, valid=rows)
