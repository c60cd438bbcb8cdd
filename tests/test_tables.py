"A corpus is a table: descriptions, readers, and clips of files of any rate, length and number of channels"
import json

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from torchaudio.transforms import Resample

from asc.core import InputError
from asc.data.checking import check_corpus
from asc.data.choose import data_facts, find_corpus
from asc.data.corpus import load_corpus, recordings
from asc.data.join import join_snippets, join_store
from asc.data.layouts import META
from asc.data.reading import SoundFile
from asc.data.samples import to_int16
from asc.data.store import Store, pack
from miniatures import NAMES, miniature

pytest.importorskip('pyarrow')


def described(folder, text):
    "A corpus with a description in its folder"
    (folder/'corpus.yaml').write_text(text, encoding='utf-8')
    return load_corpus(folder)


def noise(seconds, rate=8000, channels=1, seed=0):
    return np.random.default_rng(seed).normal(0, .1, (round(seconds*rate), channels))


@pytest.fixture
def tides(tmp_path):
    "Two scenes in folders, three files of other lengths, rates and channels"
    folder = tmp_path/'tides'
    for name, seconds, rate, channels in (('ebb/a', 2.6, 8000, 1), ('ebb/b', 2, 16000, 2), ('flow/c', .3, 8000, 1)):
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        sf.write(folder/f'{name}.wav', noise(seconds, rate, channels), rate, 'PCM_24')
    return folder


# ---------------------------------------------------------------- known by name

CLIPS = {  # clips, scenes, locations, lists
    'cas2023': (50, 10, 5, None), 'cas2023-evaluation': (12, 0, 2, None), 'cochlscene': (36, 3, 6, 'test train valid'),
    'esc50': (30, 3, 15, '1 2 3 4 5'), 'urbansound8k': (60, 3, 30, '1 10 2 3 4 5 6 7 8 9'),
    'tut2016': (24, 3, 12, '1 2 3 4'), 'tut2017': (24, 3, 12, '1 2 3 4'), 'tut2016-evaluation': (12, 3, 6, None),
    'tut2017-evaluation': (12, 3, 6, None), 'tut2018-mobile': (27, 3, 12, 'test train'),
    'tau2019': (15, 3, 12, None), 'tau2020': (28, 3, 12, None), 'tau2022': (280, 3, 12, None),
    'tau2022-mini': (28, 3, 12, 'test train')}


@pytest.mark.parametrize('name', NAMES)
def test_known_corpora_are_tables(name, tmp_path, monkeypatch):
    "The description of every corpus known by name reads a miniature of it"
    monkeypatch.setattr('asc.data.corpus.project_root', lambda: tmp_path)
    monkeypatch.setattr('asc.data.cutting.project_root', lambda: tmp_path)
    miniature(name, tmp_path/'data', .05)
    meta = find_corpus(name).meta
    clips, scenes, places, lists = CLIPS.get(name, (12, 0, 0, None))
    assert (len(meta), meta.scene.nunique(), meta.location.nunique()) == (clips, scenes, places)
    assert ' '.join(sorted(meta.list.dropna().unique())) == (lists or '')
    assert meta.filename.is_unique and meta.recording.notna().all()
    assert not meta.groupby('recording').location.nunique().gt(1).any()


def test_unlabelled_clips_stay(tmp_path, monkeypatch):
    "CAS 2023: no label is no label; a city and a day are one group; an apostrophe is a letter"
    monkeypatch.setattr('asc.data.corpus.project_root', lambda: tmp_path)
    miniature('cas2023', tmp_path/'data', .01)
    corpus = find_corpus('cas2023')
    assert corpus.meta.scene.isna().sum() == 10 and 'shopping_mall' in corpus.scenes
    assert "Xi'an, 2023-04-21" in set(corpus.meta.location)


def test_sounds_in_tables(tmp_path):
    "Parquet: packed, checked and listed in place, alike with what soundfile reads of the bytes"
    pq = pytest.importorskip('pyarrow.parquet')
    folder = miniature('tau2022-mini', tmp_path, .05)
    corpus = described(folder, 'reader: parquet\ncolumns: {scene: scene_label}\npattern: tau')
    store = pack(corpus, tmp_path/'store', progress=False)
    row = pq.read_table(folder/'data/train-00000-of-00001.parquet').to_pylist()[7]['audio']
    (tmp_path/'x.wav').write_bytes(row['bytes'])
    want = to_int16(sf.read(tmp_path/'x.wav')[0])
    assert np.array_equal(store.batch(store.index([row['path']]))[0], want)
    assert check_corpus(folder, progress=False).severity.tolist().count('error') == 0
    again = pack(corpus, tmp_path/'store', progress=False)
    assert again.folder == store.folder and set(corpus.devices) >= {'a', 'b', 's1'}
    with SoundFile(folder/corpus.meta.file[0]) as f: assert f.samplerate == 44100


# ---------------------------------------------------------------- sound

def test_stereo_at_48_khz(tmp_path):
    "Ten seconds of stereo in 24 bits: what soundfile, the mean and torchaudio make of it, to one step"
    folder = tmp_path/'stereo'
    for k, scene in enumerate(('ebb', 'flow')):
        (folder/scene).mkdir(parents=True)
        sf.write(folder/f'{scene}/{k}.wav', noise(10, 48000, 2, k), 48000, 'PCM_24')
    store = pack(described(folder, 'reader: folders\nsound: {mix: mean}'), tmp_path/'store', 32000, progress=False)
    for clip, name in zip(store.batch(range(2)), store.rows.filename):
        x = sf.read(folder/name, dtype='float32')[0].mean(1)
        want = to_int16(Resample(48000, 32000)(torch.from_numpy(x)).numpy()).astype(int)
        assert np.abs(clip - want).max() <= 1 and (clip != want).mean() < .01
    done = store.manifest['sound']
    assert (done['mixed'], done['resampled'], done['cut'], done['padded']) == (2, 2, 0, 0)


def test_cut_mixed_and_resampled(tides, tmp_path):
    "Each clip is what the whole file gives, cut; what was done stands in the manifest and in the facts of a run"
    corpus = described(tides, 'reader: folders\nsound: {length: 1, least: .25, mix: mean, rate: 8000}')
    assert corpus.meta.filename.tolist() == [
        'ebb/a.wav#t=0', 'ebb/a.wav#t=1', 'ebb/a.wav#t=2', 'ebb/b.wav#t=0', 'ebb/b.wav#t=1', 'flow/c.wav']
    store = pack(corpus, tmp_path/'store', progress=False)
    a = np.append(to_int16(sf.read(tides/'ebb/a.wav')[0]), np.zeros(3200, np.int16))
    assert np.array_equal(store.batch([0, 1, 2]).reshape(-1), a)
    b = torch.from_numpy(sf.read(tides/'ebb/b.wav', dtype='float32')[0].mean(1))
    want = to_int16(Resample(16000, 8000)(b).numpy())
    assert np.abs(store.batch([3, 4]).reshape(-1) - want.astype(int)).max() <= 1
    done = dict(store.manifest['sound'])
    assert done.pop('rules') == corpus.rules
    assert done == dict(files=3, clips=6, mixed=1, resampled=1, cut=2, padded=2)
    assert data_facts(corpus, store)['cut'] == store.manifest['sound']
    assert np.array_equal(store.windows([0], [4000], 8000)[0], a[4000:12000])


@pytest.mark.parametrize('rule, names', [
    ('length: 1', ['ebb/a.wav#t=0', 'ebb/a.wav#t=1', 'ebb/a.wav#t=2']),
    ('length: 1, least: .7', ['ebb/a.wav#t=0', 'ebb/a.wav#t=1']),
    ('length: 1, hop: .5', ['ebb/a.wav#t=0', 'ebb/a.wav#t=0.5', 'ebb/a.wav#t=1', 'ebb/a.wav#t=1.5', 'ebb/a.wav#t=2']),
    ('length: 1, hop: 2', ['ebb/a.wav#t=0', 'ebb/a.wav#t=2']),
    ('length: 3', ['ebb/a.wav'])])
def test_rules_of_cutting(tides, rule, names):
    meta = described(tides, f'reader: folders\nsound: {{{rule}, mix: first, rate: 8000}}').meta
    assert meta.filename[meta.file == 'ebb/a.wav'].tolist() == names


@pytest.mark.parametrize('rules, words', [
    ('', ['write sound: {mix: mean} into', 'write sound: {rate: 8000} into']),
    ('sound: {length: 1}', ['add mix: mean to sound in', 'add rate: 8000 to sound in'])])
def test_remedies_name_the_description(tides, tmp_path, rules, words):
    "Where two channels or rates are, the rule that takes them belongs into it; there is no meta.csv"
    sf.write(tides/'flow/d.wav', noise(1, 16000), 16000)
    corpus = described(tides, 'reader: folders\n' + rules)
    with pytest.raises(InputError) as refused: pack(corpus, tmp_path/'store', progress=False)
    told = '\n'.join(check_corpus(tides, progress=False).remedy)
    for text in str(refused.value), told:
        assert all(word in text.replace('Write', 'write').replace('Add', 'add') for word in words), text
        assert str(tides/'corpus.yaml') in text and 'meta.csv' not in text and 'archive' not in text


def test_remedies_of_a_bare_folder(tmp_path):
    "A description may take two channels there too"
    head = 'filename\tscene_label\tidentifier\tsource_label\n'
    names = [f'audio/{scene}-lyon-{k}-{k}-0-a.wav' for k, scene in enumerate(('bus', 'park'))]
    (tmp_path/'audio').mkdir()
    for name in names: sf.write(tmp_path/name, noise(1, channels=2), 8000)
    rows = (f'{name}\t{name[6:].split("-")[0]}\tlyon-{k}\ta\n' for k, name in enumerate(names))
    (tmp_path/'meta.csv').write_text(head + ''.join(rows), encoding='utf-8')
    remedy = check_corpus(tmp_path, progress=False).remedy[0]
    assert 'sound: {mix: mean}' in remedy and f'asc data import {tmp_path}' in remedy


@pytest.mark.parametrize('text, words', [
    ('file,label\nebb/a,x\nebb/a,y\n', ['ebb/a.wav has several rows', '--start']),
    ('file,label\ngalaxy,x\ngalaxy,y\n', ['galaxy.wav is no sound that is here', 'column file'])])
def test_several_rows_of_a_file(tides, text, words):
    "Without start and end nothing says which part each is; a column of other words names no sound"
    (tides/'t.csv').write_text(text, encoding='utf-8')
    with pytest.raises(InputError) as refused:
        described(tides, 'reader: table\ntable: t.csv\nsuffix: .wav\ncolumns: {filename: file, scene: label}')
    assert all(word in str(refused.value) for word in words)


@pytest.mark.parametrize('kind', ['development', 'evaluation'])
def test_a_folder_that_is_no_corpus_can_be_imported(tides, kind):
    with pytest.raises(InputError, match=f'asc data import {tides}'): load_corpus(tides, kind)


def test_rules_make_other_stores(tides, tmp_path):
    "A store of other rules is another store; a store is found again; one without its sounds, too"
    text = 'reader: folders\nsound: {length: 1, mix: mean, rate: 8000}'
    first = pack(described(tides, text), tmp_path/'store', progress=False)
    other = pack(described(tides, text.replace('mean', 'first')), tmp_path/'store', progress=False)
    assert first.folder != other.folder and first.content != other.content
    corpus = described(tides, text)
    assert pack(corpus, tmp_path/'store', progress=False).folder == first.folder
    for path in tides.rglob('*.wav'): path.unlink()
    with pytest.raises(InputError, match='has no sound files'): load_corpus(tides)
    assert pack(corpus, tmp_path/'store', progress=False).folder == first.folder


def test_tables_of_deleted_sounds(tides, tmp_path, monkeypatch):
    "How long files were is remembered, so that the store of deleted sounds is found"
    monkeypatch.setattr('asc.data.cutting.project_root', lambda: tmp_path)
    pd.DataFrame(dict(name=['ebb/a', 'ebb/b'], label=['x', 'y'])).to_csv(tides/'t.csv', index=False)
    text = ('reader: table\ntable: t.csv\nsuffix: .wav\ncolumns: {filename: name, scene: label}\n'
            'sound: {length: 1, mix: mean, rate: 8000}')
    corpus = described(tides, text)
    store = pack(corpus, tmp_path/'store', progress=False)
    for path in tides.rglob('*.wav'): path.unlink()
    again = load_corpus(tides)
    assert again.meta.equals(corpus.meta)
    assert pack(again, tmp_path/'store', progress=False).folder == store.folder


def test_clips_of_files_are_joined(tides, tmp_path):
    corpus = described(tides, 'reader: folders\nsound: {length: 0.5, mix: mean, rate: 8000}')
    store = pack(corpus, tmp_path/'store', progress=False)
    longest = int(corpus.meta.snippet.max()) + 1
    joined, rows = join_store(store, 2), join_snippets(corpus.meta, 2, longest)
    names = ['ebb/a.wav#t=0', 'ebb/a.wav#t=1', 'ebb/b.wav#t=0', 'ebb/b.wav#t=1']
    assert rows.filename.tolist() == joined.rows.filename.tolist() == names
    a, _ = sf.read(tides/'ebb/a.wav')
    assert np.array_equal(joined.batch([1])[0], to_int16(a[8000:16000]))
    assert recordings(corpus.meta).complete.all()
    apart = described(tides, 'reader: folders\nsound: {length: 0.5, hop: 1, mix: mean, rate: 8000}')
    with pytest.raises(InputError, match='no recording has 2 snippets'): join_snippets(apart.meta, 2, 3)


def test_parts_of_files(tmp_path):
    "A table may name parts of files"
    sf.write(tmp_path/'long.wav', noise(4), 8000)
    (tmp_path/'t.csv').write_text('f;from;to;what\nlong.wav;0.5;1.5;rain\nlong.wav;2;3;wind\n', encoding='utf-8')
    text = 'reader: table\ntable: t.csv\ncolumns: {filename: f, start: from, end: to, scene: what}'
    corpus = described(tmp_path, text)
    store = pack(corpus, tmp_path/'store', progress=False)
    x = to_int16(sf.read(tmp_path/'long.wav')[0])
    assert np.array_equal(store.batch([0, 1]), [x[4000:12000], x[16000:24000]])
    (tmp_path/'t.csv').write_text('f;from;to;what\nlong.wav;0;1;rain\nlong.wav;2;4;wind\n', encoding='utf-8')
    with pytest.raises(InputError, match='clips of 1 and of 2 s'):
        pack(load_corpus(tmp_path), tmp_path/'s', progress=False)
    assert len(described(tmp_path, text + '\nsound: {length: 1}').meta) == 3


FORMATS = [('PCM_U8', 'wav'), ('PCM_32', 'wav'), ('FLOAT', 'wav'), ('DOUBLE', 'w64'), ('MS_ADPCM', 'wav'),
           ('PCM_24', 'flac'), ('VORBIS', 'ogg'), ('MPEG_LAYER_III', 'mp3'), ('ALAW', 'au'), ('PCM_16', 'aiff')]


@pytest.mark.parametrize('subtype, ending', FORMATS)
def test_formats(subtype, ending, tmp_path):
    "Whatever libsndfile reads, at another rate and in stereo, is what soundfile, the mean and torchaudio make of it"
    for scene in 'ab':
        (tmp_path/scene).mkdir()
        sf.write(tmp_path/f'{scene}/x.{ending}', noise(.5, 16000, 2), 16000, subtype)
    corpus = described(tmp_path, 'reader: folders\nsound: {length: 0.5, mix: mean, rate: 8000}')
    clip = pack(corpus, tmp_path/'store', progress=False).batch([0])[0]
    x = torch.from_numpy(sf.read(tmp_path/f'a/x.{ending}', dtype='float32')[0].mean(1))
    want = to_int16(Resample(16000, 8000)(x).numpy())[:4000].astype(int)
    assert np.abs(clip[:len(want)] - want).max() <= 1


def test_old_stores_stay(tmp_path):
    "A bare folder in TAU's layout has the key and the bytes it had before there were descriptions"
    (tmp_path/'audio').mkdir()
    rows = ['\t'.join(META)]
    for k in range(3):
        name = f'audio/tram-lyon-3-9-{k}-a.wav'
        sf.write(tmp_path/name, noise(.1, 8000, 1, k), 8000, 'PCM_24')
        rows.append(f'{name}\ttram\tlyon-3\ta')
    (tmp_path/'meta.csv').write_text('\n'.join(rows), encoding='utf-8')
    from asc.data.store import listing, store_key
    files = listing(load_corpus(tmp_path)).assign(size=2444, mtime=7)
    assert store_key(files, 4000) == 'c8b3d547b05aa00a'
    store = pack(load_corpus(tmp_path), tmp_path/'store', 4000, progress=False)
    assert 'sound' not in store.manifest and 'file' not in store.rows
    x = np.concatenate([to_int16(sf.read(tmp_path/f'audio/tram-lyon-3-9-{k}-a.wav')[0]) for k in range(3)])
    want = to_int16(Resample(8000, 4000)(torch.from_numpy(x/np.float32(32768))).numpy())
    assert np.array_equal(store.flat, want)
