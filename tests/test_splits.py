"Lists found, matched and fetched; validation cut out by location; nothing leaks."
import os
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import asc.data.splits
from asc.core import InputError, fingerprint, project_root
from asc.data.corpus import load_corpus
from asc.data.layouts import META
from asc.data.lists import read_list
from asc.data.names import ClipName
from asc.data.official import FINGERPRINTS
from asc.data.shares import hold_out, tied_groups
from asc.data.splits import carve_valid, check_disjoint, describe, expand_2020, fetch_split
from asc.data.splits import read_split, read_test, subsets_of

TAU = Path(os.environ.get('ASC_SHARED', project_root()/'..'/'shared'))/'data'/'tau-lists'
needs_tau = pytest.mark.skipif(not TAU.is_dir(), reason='the official lists are not here')


def write(path, df):
    "A list in the file"
    path.parent.mkdir(parents=True, exist_ok=True)
    df.to_csv(path, sep='\t', index=False)


def plan(scenes=3, places=8, segments=2, devices=('a', 'b'), snippets=3, seed=0):
    "Names of a corpus: meta.csv as a DataFrame"
    rng, rows = np.random.default_rng(seed), []
    for i in range(scenes):
        for p in range(places):
            for s in range(rng.integers(1, segments + 1)):
                for d in devices:
                    for k in range(snippets):
                        c = ClipName(
                            f'scene{i}', 'oulu', 100*i + p, 10*p + s,
                            k if snippets > 1 else None, d,
                        )
                        rows.append((str(c), c.scene, f'oulu-{c.location}', d))
    return pd.DataFrame(rows, columns=META)


@pytest.fixture
def corpus(tmp_path):
    "Six places for training, two for the test; split50 has half of the former"
    df = plan()
    place = df.identifier.str.split('-').str[1].astype(int) % 100
    for name, rows in dict(split50=place < 3, split100=place < 6, test=place > 5).items():
        write(tmp_path/'c'/f'{name}.csv', df[rows].iloc[:, :2])
    write(tmp_path/'c'/'meta.csv', df)
    return load_corpus(tmp_path/'c')


@pytest.fixture
def lists(tmp_path):
    "A folder of lists on a server of its own; requests are counted"
    folder = tmp_path/'release'
    folder.mkdir()
    class Handler(SimpleHTTPRequestHandler):
        requests = []
        def __init__(self, *a, **k):
            super().__init__(*a, directory=str(folder), **k)
        def do_GET(self):
            self.requests.append(self.path)
            super().do_GET()
        def log_message(self, *_): pass
    srv = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=srv.serve_forever, args=(.01,), daemon=True).start()
    yield type(
        'lists',
        (),
        dict(folder=folder, url=f'http://127.0.0.1:{srv.server_port}', requests=Handler.requests),
    )
    srv.shutdown()
    srv.server_close()


@pytest.fixture
def edition(corpus, monkeypatch):
    "The small corpus passes for an official one: its names and lists have fingerprints"
    known = {
        n: fingerprint(read_list(corpus.dir/f'{n}.csv').filename)
        for n in ('split50', 'split100', 'test')
    }
    monkeypatch.setitem(FINGERPRINTS, '2022', known | {'all': fingerprint(corpus.meta.filename)})
    monkeypatch.setattr(asc.data.splits, 'project_root', lambda: corpus.dir.parent/'project')
    assert load_corpus(corpus.dir).edition == '2022'
    return load_corpus(corpus.dir)


# ---------------------------------------------------------------- lists on disk

def test_reading_keeps_the_order_of_the_list(corpus):
    path = corpus.dir/'split50.csv'
    df = read_list(path).sample(frac=1, random_state=1)
    write(path, df)
    rows = read_split(corpus, 50)
    assert rows.filename.tolist() == df.filename.tolist()
    assert rows.scene.tolist() == df.scene_label.tolist()
    assert list(rows.columns) == list(corpus.meta.columns)
    assert rows.index.tolist() == list(range(len(rows)))
    assert subsets_of(corpus) == [50, 100]


@pytest.mark.parametrize('place', ['.', 'evaluation_setup', 'split_setup'])
def test_where_lists_lie(corpus, place):
    rows = read_split(corpus, 100)
    (corpus.dir/place).mkdir(exist_ok=True)
    (corpus.dir/'split100.csv').rename(corpus.dir/place/'fold1_train.csv')
    (corpus.dir/'test.csv').rename(corpus.dir/place/'fold1_evaluate.csv')
    assert read_split(corpus, 100).equals(rows)
    assert len(read_test(corpus))
    assert subsets_of(corpus) == [50, 100]


def relist(corpus, name, change):
    "Change the rows of a list"
    write(corpus.dir/f'{name}.csv', change(read_list(corpus.dir/f'{name}.csv')))

BROKEN = {
    'unknown subset': (lambda c: None, 30, 'unknown subset 30: choose one of 5, 10, 25, 50, 100'),
    'a word for a subset': (lambda c: None, 'all', "unknown subset 'all'"),
    'list not there': (
        lambda c: None, 5, r'has no split5.csv: its training lists are split50, split100'
    ),
    'no lists': (
        lambda c: [p.unlink() for p in c.dir.glob('split*')], 100, 'its training lists are none'
    ),
    'empty': (lambda c: (c.dir/'split50.csv').write_text(''), 50, 'split50.csv is empty'),
    'no rows': (lambda c: relist(c, 'split50', lambda df: df[:0]), 50, 'has a header but no rows'),
    'strangers': (
        lambda c: relist(
            c,
            'split50',
            lambda df: pd.concat(
                [df, pd.DataFrame([('audio/x.wav', 'scene0')], columns=df.columns)]
            ),
        ),
        50,
        r'split50.csv names 1 of \d+ clips that are not in meta.csv, such as audio/x.wav',
    ),
    'scene disagrees': (
        lambda c: relist(c, 'split50', lambda df: df.assign(scene_label='scene1')),
        50,
        'disagree on the scene of .* scene1 against scene0',
    ),
    'repeated': (
        lambda c: relist(c, 'split50', lambda df: pd.concat([df, df[:1]])),
        50,
        r'twice \(1 repeated',
    ),
    'no label column': (
        lambda c: relist(c, 'split50', lambda df: df[['filename']]),
        50,
        'has no column scene_label',
    ),
}


@pytest.mark.parametrize('kind', BROKEN)
def test_broken_list(corpus, kind):
    harm, subset, message = BROKEN[kind]
    harm(corpus)
    with pytest.raises(InputError, match=message): read_split(corpus, subset)


def test_no_test_list(corpus):
    (corpus.dir/'test.csv').unlink()
    with pytest.raises(
        InputError, match='has no test.csv and no evaluation_setup/fold1_evaluate.csv'
    ):
        read_test(corpus)


# ---------------------------------------------------------------- the official lists

def test_fetch_when_absent(edition, lists):
    (edition.dir/'split50.csv').rename(lists.folder/'split50.csv')
    rows = read_split(edition, 50, base_url=lists.url)
    assert fingerprint(rows.filename) == FINGERPRINTS['2022']['split50']
    assert lists.requests == ['/split50.csv']
    assert [p.name for p in (edition.dir/'split_setup').iterdir()] == ['split50.csv']
    read_split(edition, 50, base_url=lists.url)
    assert len(lists.requests) == 1  # kept


def test_fetch_into_the_project_when_the_corpus_is_read_only(edition, lists, monkeypatch):
    (edition.dir/'test.csv').rename(lists.folder/'test.csv')
    monkeypatch.setattr(asc.data.splits.os, 'access', lambda *_: False)
    read_test(edition, base_url=lists.url)
    assert (edition.dir.parent/'project'/'data'/'split_setup'/'test.csv').is_file()
    assert not (edition.dir/'split_setup').exists()
    # found there again
    read_test(edition, base_url='http://127.0.0.1:9')


@pytest.mark.parametrize('content', ['html', 'short', 'empty'])
def test_fetched_list_is_checked(edition, lists, content):
    good = read_list(edition.dir/'split50.csv')
    (edition.dir/'split50.csv').unlink()
    write(lists.folder/'split50.csv', good.iloc[:-1])
    if content != 'short':
        (lists.folder/'split50.csv').write_text(dict(html='<html>sorry</html>', empty='')[content])
    with pytest.raises(InputError, match='did not give the official split50.csv.*nothing was kept'):
        read_split(edition, 50, base_url=lists.url)
    assert not list(edition.dir.rglob('split50*'))


def test_fetch_without_network(edition):
    (edition.dir/'split50.csv').unlink()
    with pytest.raises(
        InputError, match='could not fetch split50.csv .* no connection.*split50.csv by hand'
    ):
        read_split(edition, 50, base_url='http://127.0.0.1:9')


def test_nothing_is_fetched_for_another_corpus(corpus, lists):
    (corpus.dir/'test.csv').rename(lists.folder/'test.csv')
    with pytest.raises(InputError, match='has no test.csv'):
        read_test(corpus, base_url=lists.url)
    assert not lists.requests


def test_a_changed_official_list_is_refused(edition):
    relist(edition, 'split50', lambda df: df.iloc[:-1])
    with pytest.raises(InputError, match='is not the official list of TAU 2022'):
        read_split(edition, 50)


def test_lists_of_the_other_edition(edition):
    "A list of whole recordings means their snippets, and the other way round"
    rows = read_split(edition, 100)
    parts = rows.filename.str.rsplit('-', n=2)
    whole = pd.DataFrame(
        dict(filename=parts.str[0] + '-' + parts.str[2], scene_label=rows.scene)
    ).drop_duplicates('filename')
    long = expand_2020(whole)
    assert len(long) == 10*len(whole)
    assert long.filename.str.extract(r'-(\d)-\w+\.wav')[0].tolist() == list('0123456789')*len(whole)
    assert (long.scene_label.values == whole.scene_label.repeat(10).values).all()
    meta = plan(snippets=1)
    write(edition.dir.parent/'d'/'meta.csv', meta)
    write(edition.dir.parent/'d'/'split100.csv', read_list(edition.dir/'split100.csv'))
    rows = read_split(load_corpus(edition.dir.parent/'d'), 100)
    assert rows.filename.tolist() == whole.filename.tolist()


@pytest.fixture(scope='module')
def tau(tmp_path_factory):
    "meta.csv of both editions: the folders of 2022 and 2020 side by side"
    d = tmp_path_factory.mktemp('tau')
    whole = read_list(TAU/'tau2020_total.csv', META)
    names = {y: d/f'TAU-urban-acoustic-scenes-{y}-mobile-development' for y in ('2022', '2020')}
    write(names['2022']/'meta.csv', expand_2020(whole))
    write(names['2020']/'meta.csv', whole)
    (names['2020']/'evaluation_setup').mkdir()
    for ours, theirs in [('fold1_train', 'train'), ('fold1_evaluate', 'test')]:
        link = names['2020']/'evaluation_setup'/f'{ours}.csv'
        link.symlink_to((TAU/f'tau2020_{theirs}.csv').resolve())
    for y in names: (names[y]/'split5.csv').symlink_to((TAU/'split5.csv').resolve())
    return {y: load_corpus(p) for y, p in names.items()}


@needs_tau
@pytest.mark.parametrize(
    'year,subset,n',
    [('2022', 5, 6980), ('2022', 100, 139620), ('2020', 5, 698), ('2020', 100, 13962)],
)
def test_official_splits_on_both_editions(year, subset, n, tau):
    "split5 is the 1-s list, split100 the 10-s list of 2020: each serves both editions"
    c = tau[year]
    rows, test = read_split(c, subset), read_test(c)
    assert c.edition == year
    assert len(rows) == n
    assert len(test) == (29680 if year == '2022' else 2968)
    assert fingerprint(rows.filename) == FINGERPRINTS[year][f'split{subset}']
    train, valid = carve_valid(rows)
    check_disjoint(train=train, valid=valid, test=test)
    share = valid.scene.value_counts()/rows.scene.value_counts()
    assert share.between(.085, .125).all()
    assert set(train.scene) == set(valid.scene)
    assert valid.device.nunique() == 6


def test_unknown_list(tmp_path):
    with pytest.raises(InputError, match='unknown split list'):
        fetch_split('split20', tmp_path)


# ---------------------------------------------------------------- validation

def meta_of(df, tmp_path):
    "What a corpus reads from this table"
    write(tmp_path/'meta.csv', df)
    return load_corpus(tmp_path).meta


@pytest.mark.parametrize('frac', [.05, .1, .3, .5])
@pytest.mark.parametrize('seed', range(4))
def test_carved_by_location(frac, seed, tmp_path):
    rows = meta_of(plan(scenes=4, places=12, segments=4, seed=seed), tmp_path)
    train, valid = carve_valid(rows, frac, seed)
    check_disjoint(train=train, valid=valid)
    assert sorted([*train.filename, *valid.filename]) == sorted(rows.filename)
    # every scene on both sides
    assert set(train.scene) == set(valid.scene) == set(rows.scene)
    for part in (train, valid):
        assert part.filename.tolist() == [f for f in rows.filename if f in set(part.filename)]
    per = rows.groupby('scene').location.value_counts()
    off = (valid.scene.value_counts() - frac*rows.scene.value_counts()).abs()
    # within one location of the share asked for
    assert (off.sort_index() <= per.groupby('scene').max().sort_index()).all()
    shuffled = rows.sample(frac=1, random_state=seed)
    # the order of the list does not matter
    assert set(carve_valid(shuffled, frac, seed)[1].filename) == set(valid.filename)
    # the seed does
    assert set(carve_valid(rows, frac, seed + 100)[1].filename) != set(valid.filename)


def test_carve_edges(tmp_path):
    rows = meta_of(plan(), tmp_path)
    assert carve_valid(rows, 0)[0].equals(rows) and carve_valid(rows, 0)[1].empty
    for frac in (-.1, .6, 1):
        with pytest.raises(InputError, match='choose 0 to 0.5'):
            carve_valid(rows, frac)
    # one place of scene0 only
    few = rows[(rows.scene != 'scene0') | (rows.location == rows.location[0])]
    train, valid = carve_valid(few, .5)
    assert 'scene0' in set(train.scene)
    assert 'scene0' not in set(valid.scene)
    assert set(valid.scene) == {'scene1', 'scene2'}
    # six places: one is the least that can be held out
    two = meta_of(plan(places=2, segments=1), tmp_path)
    assert carve_valid(two, .05)[1].location.nunique() == 1
    # one of two of each scene
    assert carve_valid(two, .5)[1].location.nunique() == 3
    one = rows[rows.location == rows.location[0]]
    assert carve_valid(one)[1].empty


def test_a_location_of_several_scenes_stays_whole(tmp_path):
    df = plan(scenes=2, places=6)
    # both scenes at the same six places
    df['identifier'] = ['oulu-' + f.split('-')[2][-1] for f in df.filename]
    rows = meta_of(df, tmp_path)
    train, valid = carve_valid(rows, .3)
    assert not set(train.location) & set(valid.location)
    assert set(train.scene) == set(valid.scene) == {'scene0', 'scene1'}


def test_one_recording_at_several_places_is_on_one_side(tmp_path):
    "A walk told piece by piece: places that share a recording are cut together; where none does, nothing changes"
    df = plan(scenes=2, places=8)
    rows = meta_of(df, tmp_path)
    place = rows.location.str.split('-').str[-1].astype(int)
    walk = rows.assign(recording=[f'walk {k // 2}' for k in place], segment=None)
    train, valid = carve_valid(walk, .3)
    assert len(valid)
    check_disjoint(train=train, valid=valid)
    assert carve_valid(walk.assign(recording='all one'), .3)[1].empty
    alone = hold_out(rows, .3, by=rows.location)
    assert tied_groups(rows.location, rows.recording).equals(rows.location)
    assert all(a.equals(b) for a, b in zip(alone, carve_valid(rows, .3)))


@pytest.mark.parametrize('what', ['clips', 'recordings', 'segments', 'locations'])
def test_check_disjoint(corpus, what):
    train = read_split(corpus, 50)
    valid = read_split(corpus, 100).iloc[-12:]
    test = read_test(corpus)
    check_disjoint(train=train, valid=valid, test=test)
    leak = train.iloc[[0]].copy()
    if what != 'clips': leak['filename'] = 'audio/other.wav'
    if what in ('segments', 'locations'): leak['recording'] = 'other'
    if what == 'locations': leak['segment'] = 77
    with pytest.raises(InputError, match=f'train and test share {what}.*: 1 of them'):
        check_disjoint(train=train, valid=valid, test=pd.concat([test, leak]))


def test_describe(corpus):
    train, valid = carve_valid(read_split(corpus, 100))
    by_scene, by_device = describe(train, valid, read_test(corpus))
    assert by_scene.sum().tolist() == by_device.sum().tolist() == [
        len(train), len(valid), len(read_test(corpus))
    ]
    assert list(by_device.index) == ['a', 'b']
    assert list(by_scene.columns) == ['train', 'valid', 'test']


@pytest.mark.parametrize('name', ['ambience', 'ambience-small'])
@pytest.mark.parametrize('subset', [5, 100])
def test_real_corpora(name, subset):
    d = project_root()/'data'/name
    if not d.is_dir(): pytest.skip('not built here')
    c = load_corpus(d)
    train, valid = carve_valid(read_split(c, subset))
    check_disjoint(train=train, valid=valid, test=read_test(c))
    assert set(train.scene) == set(c.scenes)
    assert .05 < len(valid)/(len(train) + len(valid)) < .15
