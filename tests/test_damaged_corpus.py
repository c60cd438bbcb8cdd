"""Damaged corpora: tables, names, rates, impulse responses, sound files and stores end right or refused by name."""
import json
import os
import shutil
import struct
import zipfile
from functools import partial

import numpy as np
import pytest
import soundfile as sf

from asc.augment.impulse import DIR, load_bank
from asc.data.checking import check_corpus
from asc.data.corpus import load_corpus
from asc.data.layouts import META
from asc.data.names import check_grammar
from asc.data.unpack import unpack
from asc.data.findings import corpus_remarks
from asc.data.join import join_snippets, join_store
from asc.data.lists import read_list
from asc.data.packing import sha256_of
from asc.data.rates import check_rate
from asc.data.splits import carve_valid, check_disjoint, read_split, read_test
from asc.data.store import pack, Store
from asc.data.synthetic import make_synthetic
from asc.score.doubts import interval_remark
from asc.score.stats import bootstrap
from asc.train.melcache import MelCache
from nodes import NODES
from noise import RATE, noise_corpus

# ---------------------------------------------------------------- tables

ROWS = [('audio/park-oulu-1-1-0-a.wav', 'park', 'oulu-1', 'a'), ('audio/bus-oulu-2-2-0-b.wav', 'bus', 'oulu-2', 'b')]


def text(rows=ROWS, head=META, sep='\t', end='\n'):
    "A table as text"
    return end.join(sep.join(row) for row in [head, *rows]) + end


def quoted(rows):
    "Rows with quotes around each cell"
    return [[f'"{cell}"' for cell in row] for row in rows]


RIGHT_TABLES = {
    'as it should be': text(), 'commas': text(sep=','), 'semicolons': text(sep=';'), 'Windows ends': text(end='\r\n'),
    'old Macintosh ends': text(end='\r'), 'byte order mark': '\ufeff' + text(),
    'blank lines': '\n\n' + text() + '\n \n\t\n',
    'quotes': text(quoted(ROWS), quoted([META])[0]), 'quotes and commas': text(quoted(ROWS), quoted([META])[0], ','),
    'blanks behind': text([[f'{cell}  ' for cell in row] for row in ROWS], [f'{c} ' for c in META]),
    'empty columns behind': text([[*row, '', ''] for row in ROWS]), 'rows of commas': text(sep=',') + ',,,\n',
    'backslashes': text([[row[0].replace('/', '\\'), *row[1:]] for row in ROWS]),
    'a dot in front': text([[f'./{row[0]}', *row[1:]] for row in ROWS]),
    'two slashes': text([[row[0].replace('/', '//'), *row[1:]] for row in ROWS]),
    'a dot inside': text([[row[0].replace('/', '/./'), *row[1:]] for row in ROWS]),
    'other order': text([row[::-1] for row in ROWS], META[::-1]), 'no end of line': text()[:-1],
    'one more column': text([[*row, 'x'] for row in ROWS], [*META, 'note']),
}


@pytest.mark.parametrize('name', RIGHT_TABLES)
def test_table_is_read_right(name, damage, tmp_path):
    path = tmp_path/'meta.csv'
    path.write_bytes(RIGHT_TABLES[name].encode())
    damage('table', lambda: read_list(path, META),
           right=lambda df: df.to_numpy().tolist() == [list(row) for row in ROWS])


def renamed(name): return text([(name, *ROWS[0][1:]), ROWS[1]])


REFUSED_TABLES = {
    'empty': '', 'blank': ' \n\t\n', 'header only': '\t'.join(META), 'bars': text(sep='|'),
    'blanks for tabs': text(sep=' '),
    'no header': text(head=ROWS[0]), 'column lacks': text([row[:3] for row in ROWS], META[:3]),
    'column twice': text([[*row, 'x'] for row in ROWS], [*META, 'device'][:-1] + ['scene_label']),
    'row short': text([ROWS[0][:3], ROWS[1]]), 'row long': text([[*ROWS[0], 'x'], ROWS[1]]),
    'cell empty': text([(*ROWS[0][:3], ' '), ROWS[1]]), 'row twice': text([*ROWS, ROWS[0]]),
    'row twice with another slash': text([*ROWS, (ROWS[0][0].replace('/', '\\'), *ROWS[0][1:])]),
    'row twice with a dot': text([*ROWS, ('./' + ROWS[0][0], *ROWS[0][1:])]), 'tabs then commas': text() + 'a,b,c,d\n',
    'open quote': text([('"' + ROWS[0][0], *ROWS[0][1:]), ROWS[1]]), 'open quote at the end': text() + 'x\ty\tz\t"a\n',
    'quote and more': text([('"a"b', *ROWS[0][1:]), ROWS[1]]), 'capitals': text(head=[c.upper() for c in META]),
    'outside': renamed('../x.wav'), 'outside by Windows': renamed(r'..\x.wav'), 'absolute': renamed('/x.wav'),
    'drive': renamed(r'C:\x.wav'), 'home': renamed('~/x.wav'), 'inside out': renamed('audio/../../x.wav'),
    'zero byte': renamed('audio/a\0.wav'), 'bell': renamed('audio/\a.wav'),
    'JSON': json.dumps([dict(zip(META, ROWS[0]))]),
    'page': '<html><body>404 Not Found</body></html>', 'a cell of a megabyte': text() + 'x'*1_000_000 + '\ty\tz\ta\n',
}


@pytest.mark.parametrize('name', REFUSED_TABLES)
def test_table_is_refused(name, damage, tmp_path):
    path = tmp_path/'meta.csv'
    path.write_bytes(REFUSED_TABLES[name].encode())
    damage('table', lambda: read_list(path, META), [path])


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-32', 'latin-1', 'cp1252', 'shift-jis'])
def test_table_in_another_encoding(encoding, damage, tmp_path):
    path = tmp_path/'meta.csv'
    path.write_bytes(text([(*ROWS[0][:3], 'テープ' if encoding == 'shift-jis' else 'café')]).encode(encoding))
    damage('encoding', lambda: read_list(path, META), [path])


@pytest.mark.parametrize('node', NODES)
@pytest.mark.parametrize('name', ['meta.csv', 'split100.csv', 'test.csv'])
def test_no_regular_list(name, node, damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus = tmp_path/'c'
    corpus.mkdir()
    for part in ('meta', 'split100', 'test'): (corpus/f'{part}.csv').write_text(text())
    (corpus/name).unlink()
    node(corpus/name)
    read = {'meta.csv': lambda c: c, 'split100.csv': lambda c: read_split(c, 100), 'test.csv': read_test}[name]
    damage('no regular file', lambda: read(load_corpus(corpus)), [name.removesuffix('.csv')])


# ---------------------------------------------------------------- names

KNOWN = ['audio/park-oulu-1-1-{}-a.wav', 'audio/park-oulu-1-1-{}-a.WAV', 'audio/park-oulu-1-1-{}-a.Wav',
         'park-oulu-1-1-{}-a.wav', './audio/park-oulu-1-1-{}-a.wav', 'audio\\park-oulu-1-1-{}-a.wav',
         'audio/city/park-oulu-1-1-{}-a.wav', 'wav/park-oulu-1-1-{}-a.wav', 'audio//park-oulu-1-1-{}-a.wav']
OUTSIDE = ['audio/take {}.wav', 'audio/{}.wav', 'audio/park_oulu_1_1_{}_a.wav', 'audio/park-oulu-1-1-{}-a.flac',
           'audio/park-oulu-1-01-{}-a.wav', 'audio/park-oulu-x1-1-{}-a.wav', 'audio/park-oulu-1-1-{}-a-b.wav',
           'audio/park-oulu-1-1-{}-a', 'audio/park--oulu-1-1-{}-a.wav', 'audio/park-oulu-1-1-x{}-a.wav',
           'audio/park-oulu-1-1-{}-.wav', 'audio/park.oulu.1.1.{}.a.wav', 'audio/park-oulu-1-1-{}-a.wave']


def table_of(tmp_path, pattern, n=4):
    "A corpus of names only: `n` snippets"
    rows = [(pattern.format(k), 'park', 'oulu-1', 'a') for k in range(n)]
    (tmp_path/'meta.csv').write_text(text([*rows, ROWS[1]]), encoding='utf-8')
    return load_corpus(tmp_path)


@pytest.mark.parametrize('pattern', KNOWN)
def test_name_is_known(pattern, damage, tmp_path):
    meta = table_of(tmp_path, pattern).meta
    joined = damage('name', lambda: join_snippets(meta[:4], 4, 4), right=lambda rows: len(rows) == 1)
    assert joined is None and meta.recording.nunique() == 2 and meta.snippet[:4].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize('pattern', OUTSIDE)
def test_name_outside_is_told(pattern, damage, tmp_path):
    corpus = table_of(tmp_path, pattern)
    damage('name', lambda: corpus_remarks(corpus),
           right=lambda said: 'names that do not tell the recording (4' in said[0])


@pytest.mark.parametrize('pattern', OUTSIDE)
def test_nothing_is_joined_by_such_names(pattern, damage, tmp_path):
    rows = table_of(tmp_path, pattern).meta
    damage('name', lambda: join_snippets(rows, 2, 2), ['join=2', rows.filename[0]])


@pytest.mark.parametrize('pattern', OUTSIDE[:4])
def test_no_windows_by_such_names(pattern, damage, tmp_path):
    rows = table_of(tmp_path, pattern).meta
    damage('name', lambda: check_grammar(rows.filename, "crop='windows'"), ["crop='windows'", rows.filename[0]])


@pytest.mark.parametrize('pattern', OUTSIDE[:4])
def test_no_interval_by_such_names(pattern, damage):
    import pandas as pd
    names = [pattern.format(k) for k in range(40)]
    preds = pd.DataFrame(dict(filename=names, scene_label=['park', 'bus']*20, device='a', city='oulu', park=.6, bus=.4))
    damage('name', lambda: bootstrap(preds), right=lambda table: table.low.isna().all())
    assert interval_remark(preds).startswith('No intervals: 40 file names')


SPELLINGS = {'case': ('Park', 'park'), 'Unicode': ('caf\u00e9', 'CAFE\u0301'),
             'blank': ('metro station', 'metro_station'),
             'wide': ('ｐark', 'park'), 'no-break': ('metro\u00a0station', 'metro station')}


@pytest.mark.parametrize('column', [1, 2, 3])
@pytest.mark.parametrize('name', SPELLINGS)
def test_spelling_is_told(name, column, damage, tmp_path):
    rows = [[f'audio/{i}.wav', 'park', 'oulu-1', 'a'] for i in range(2)]
    for row, label in zip(rows, SPELLINGS[name]): row[column] = label + ('-1' if column == 2 else '')
    (tmp_path/'meta.csv').write_text(text(rows), encoding='utf-8')
    corpus = load_corpus(tmp_path)
    damage('spelling', lambda: corpus_remarks(corpus),
           right=lambda said: any('differ in spelling only' in s for s in said))


def test_composed_labels_are_one(damage, tmp_path):
    rows = [('audio/a.wav', 'caf\u00e9', 'oulu-1', 'a'), ('audio/b.wav', 'cafe\u0301', 'oulu-1', 'a')]
    (tmp_path/'meta.csv').write_text(text(rows), encoding='utf-8')
    damage('spelling', lambda: load_corpus(tmp_path).scenes, right=lambda scenes: scenes == ['caf\u00e9'])


FOUND = {
    'scene against the name': [('audio/park-oulu-1-1-0-a.wav', 'bus', 'oulu-1', 'a')],
    'place against the name': [('audio/park-oulu-1-1-0-a.wav', 'park', 'oulu-2', 'a')],
    'device against the name': [('audio/park-oulu-1-1-0-a.wav', 'park', 'oulu-1', 'b')],
    'recording of two scenes': [('audio/park-oulu-1-1-0-a.wav', 'park', 'oulu-1', 'a'),
                                ('audio/park-oulu-1-1-1-a.wav', 'bus', 'oulu-1', 'a')],
    'two files for a piece': [('audio/park-oulu-1-1-0-a.wav', 'park', 'oulu-1', 'a'),
                              ('audio/park-oulu-1-1-0-a.WAV', 'park', 'oulu-1', 'a')],
    'one scene': [('audio/bus-oulu-1-1-0-a.wav', 'bus', 'oulu-1', 'a')],
    'a place for each clip': [(f'audio/{i}.wav', 'park', f'oulu-{i}', 'a') for i in range(20)],
}
WORDS = ('scene in meta.csv differs', 'identifier in meta.csv differs', 'device in meta.csv differs',
         'two labels in scene', 'two files for the same piece', 'one scene only', 'a location of its own')


@pytest.mark.parametrize('name,words', zip(FOUND, WORDS))
def test_table_says_it_before_training(name, words, damage, tmp_path):
    (tmp_path/'meta.csv').write_text(text([*FOUND[name], ROWS[1]]), encoding='utf-8')
    corpus = load_corpus(tmp_path)
    damage('finding', lambda: corpus_remarks(corpus), right=lambda said: any(words in s for s in said))


def test_leak_by_another_spelling_is_refused(damage, tmp_path):
    "A recording that is listed with `.WAV` here and `.wav` there, or in another folder, is one recording"
    clips = ['audio/park-oulu-1-1-0-a.wav', 'audio/park-oulu-1-1-1-a.WAV']
    (tmp_path/'meta.csv').write_text(text([(clip, *ROWS[0][1:]) for clip in clips]))
    meta = load_corpus(tmp_path).meta
    damage('leak', lambda: check_disjoint(train=meta[:1], test=meta[1:]), ['train and test share recordings'])


# ---------------------------------------------------------------- what a training says and refuses

def own_names(folder, pattern='audio/{}.wav'):
    "A corpus whose names tell nothing, with lists"
    (folder/'audio').mkdir(parents=True)
    rows = [(pattern.format(i), ('bus', 'park')[i % 2], f'oulu-{i//4}', 'a') for i in range(24)]
    for name, *_ in rows: sf.write(folder/name, np.zeros(RATE) + .1, RATE)
    (folder/'meta.csv').write_text(text(rows))
    for name, part in (('split100', rows[:16]), ('test', rows[16:])):
        (folder/f'{name}.csv').write_text(text([row[:2] for row in part], META[:2]))


@pytest.mark.parametrize('options,names',
                         [(dict(crop='windows'), ["crop='windows'", 'audio/']), (dict(join=2), ['join=2'])])
def test_training_by_such_names(options, names, damage, tmp_path, capsys):
    "What cannot work is refused where it is asked for, after the reason was said"
    from asc.experiment.recipe import read_training_data
    from asc.train.options import TrainingOptions
    own_names(tmp_path/'c')
    damage('name', lambda: read_training_data(TrainingOptions(data_dir=str(tmp_path/'c'), **options)), names)
    said = capsys.readouterr().out
    assert said.startswith('c: names that do not tell the recording (24, such as audio/0.wav); rename them to <scene>-')


@pytest.mark.parametrize('k', [2, 10])
def test_store_by_such_names(k, damage, tmp_path):
    own_names(tmp_path/'c')
    store = pack(load_corpus(tmp_path/'c'), tmp_path/'s', progress=False)
    damage('name', lambda: join_store(store, k), [f'join={k}', 'audio/0.wav'])


def test_validation_goes_by_the_table(damage, tmp_path):
    "Places stand in meta.csv, so a validation list can be cut out by location whatever the names are"
    own_names(tmp_path/'c')
    corpus = load_corpus(tmp_path/'c')
    train, valid = carve_valid(read_split(corpus, 100), .25)
    damage('name', lambda: set(train.location) & set(valid.location), right=lambda both: not both and len(valid) == 4)


# ---------------------------------------------------------------- rates

WRONG_RATES = [0, 1, 3, -16000, 16000.5, True, False, '16000', float('nan'), float('inf'), 1e9, 99, [16000], (16000,),
               2**63,
               b'16000', 16000j]


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "A corpus of six recordings of noise, and a folder for its stores"
    home = tmp_path_factory.mktemp('small')
    return noise_corpus(home/'c'), home/'s'


@pytest.fixture(scope='module')
def packed(small):
    "The store of the corpus of noise"
    corpus, home = small
    return pack(corpus, home, progress=False)


@pytest.mark.parametrize('rate', WRONG_RATES, ids=repr)
def test_store_at_no_rate(rate, damage, small):
    corpus, home = small
    damage('rate', lambda: pack(corpus, home, rate, progress=False), [f'rate={rate!r}'])


@pytest.mark.parametrize('rate', WRONG_RATES, ids=repr)
def test_bank_at_no_rate(rate, damage, tmp_path):
    sf.write(tmp_path/'x.wav', np.ones(9)/9, 16000)
    damage('rate', lambda: load_bank(tmp_path, rate), [f'rate={rate!r}'])


@pytest.mark.parametrize('rate', [16000., np.int64(16000), np.float32(16000)], ids=repr)
def test_whole_rate(rate, damage): damage('rate', lambda: check_rate(rate), right=lambda found: found == 16000)


@pytest.mark.parametrize('source,target',
                         [(44100, 44101), (44100, 44099), (44056, 44100), (11127, 44508), (8000, 7999)])
def test_rates_without_a_small_ratio(source, target, damage, tmp_path):
    "A tone keeps its pitch, and nothing asks for gigabytes"
    (tmp_path/'c/audio').mkdir(parents=True)
    tone = np.sin(2*np.pi*440*np.arange(source)/source)/2
    sf.write(tmp_path/'c'/ROWS[0][0], tone, source)
    (tmp_path/'c/meta.csv').write_text(text(ROWS[:1]))

    def is_the_tone(store):
        "Whether 440 Hz are still 440 Hz, and a second is a second"
        spectrum = np.abs(np.fft.rfft(store.batch([0])[0].astype(float)))
        return store.clip_len == target and spectrum.argmax() == 440
    damage('rate', lambda: pack(load_corpus(tmp_path/'c'), tmp_path/'s', target, progress=False), right=is_the_tone)


@pytest.mark.parametrize('rate', [96001, 44056, 11127, 22051])
def test_response_at_an_odd_rate(rate, damage, tmp_path):
    sf.write(tmp_path/'x.wav', np.eye(1, 100, 50)[0]/2, rate)
    place = round(50*32000/rate)
    damage('rate', lambda: load_bank(tmp_path, 32000)[0], right=lambda bank: abs(int(bank[0].argmax()) - place) <= 1)


# ---------------------------------------------------------------- impulse responses

def ring(n=400): return .5*np.sin(np.arange(n)/3)*np.exp(-np.arange(n)/90)


def with_sample(value):
    x = ring()
    x[7] = value
    return x


BAD_RESPONSES = {'not a number': with_sample(np.nan), 'infinite': with_sample(np.inf),
                 'minus infinite': with_sample(-np.inf),
                 'huge': with_sample(1e29), 'too loud': ring()*1e5, 'silent': np.zeros(400),
                 'nearly silent': ring()*1e-9,
                 'empty': np.zeros(0), 'eleven seconds': np.tile(ring(), 440),
                 'two silent channels': np.zeros((400, 2)),
                 'channels that cancel': np.stack([ring(), -ring()], 1),
                 'twenty channels': np.stack([ring()]*20, 1)}


@pytest.mark.parametrize('suffix', ['wav', 'WAV'])
@pytest.mark.parametrize('name', BAD_RESPONSES)
def test_response_is_refused(name, suffix, damage, tmp_path):
    sf.write(tmp_path/'good.wav', ring(), 16000)
    sf.write(tmp_path/f'bad.{suffix}', BAD_RESPONSES[name], 16000, 'FLOAT', format='WAV')
    damage('impulse response', lambda: load_bank(tmp_path, 16000), [f'bad.{suffix}'])


BYTES = {'no bytes': b'', 'text': b'<html>'*99, 'riff only': b'RIFF', 'zeros': bytes(999), 'one byte': b'R'}


@pytest.mark.parametrize('name', BYTES)
def test_no_sound_in_a_bank(name, damage, tmp_path):
    (tmp_path/'bad.wav').write_bytes(BYTES[name])
    damage('impulse response', lambda: DIR(folder=str(tmp_path), rate=16000), ['bad.wav'])


@pytest.mark.parametrize('node', NODES)
def test_no_regular_response(node, damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    node(tmp_path/'bad.wav')
    damage('no regular file', lambda: load_bank(tmp_path, 16000), ['bad.wav'])


def test_two_responses_of_one_name(damage, tmp_path):
    for suffix in ('wav', 'WAV'): sf.write(tmp_path/f'x.{suffix}', ring(), 16000, format='WAV')
    damage('impulse response', lambda: load_bank(tmp_path, 16000), ['x.'])


def test_excluded_response_is_not_read(damage, tmp_path):
    (tmp_path/'bad.wav').write_bytes(b'')
    sf.write(tmp_path/'Good.WAV', ring(), 16000, format='WAV')
    damage('impulse response', lambda: load_bank(tmp_path, 16000, ['bad']),
           right=lambda bank: bank[0].shape == (1, 400))


# ---------------------------------------------------------------- stores

def flip(path, place):
    "Change a bit of a file; `place` is a share of its size"
    data = bytearray(path.read_bytes())
    data[int(place*(len(data) - 1))] ^= 1
    path.write_bytes(data)


def edited(key, value, forge=False):
    "Write another value into the manifest, with a new digest of it or without"
    def edit(folder):
        manifest = json.loads((folder/'manifest.json').read_text())
        if value is None: del manifest[key]
        else: manifest[key] = value
        if forge: manifest['digest'] = sha256_of(json.dumps({k: v for k, v in manifest.items() if k != 'digest'},
                                                            sort_keys=True))
        (folder/'manifest.json').write_text(json.dumps(manifest))
    return edit


def cut(name, size): return lambda folder: os.truncate(folder/name, size)


def lost(name): return lambda folder: (folder/name).unlink()


def filled(name, data): return lambda folder: (folder/name).write_bytes(data)


def one_row_less(folder):
    lines = (folder/'rows.csv').read_text().splitlines(keepends=True)
    (folder/'rows.csv').write_text(''.join(lines[:-1]))


def swapped_rows(folder):
    lines = (folder/'rows.csv').read_text().splitlines(keepends=True)
    (folder/'rows.csv').write_text(''.join([lines[0], lines[2], lines[1], *lines[3:]]))


STORE_DAMAGE = {
    **{f'sample bit at {place}': partial(lambda place, folder: flip(folder/'audio.i16', place), place)
       for place in (0, .1, .25, .5, .77, 1)},
    **{f'bit of rows at {place}': partial(lambda place, folder: flip(folder/'rows.csv', place),
                                          place) for place in (0, .3, .9)},
    **{f'bit of the manifest at {place}': partial(lambda place, folder: flip(folder/'manifest.json', place), place)
       for place in (.05, .3, .6, .95)},
    **{f'samples cut to {size}': cut('audio.i16', size) for size in (0, 1, 1000, 38399)},
    'samples longer': cut('audio.i16', 38402), 'manifest empty': cut('manifest.json', 0),
    'manifest torn': cut('manifest.json', 99),
    'rows empty': cut('rows.csv', 0), 'rows torn': cut('rows.csv', 99), 'no samples': lost('audio.i16'),
    'no rows': lost('rows.csv'),
    'one row less': one_row_less, 'rows swapped': swapped_rows, 'manifest a list': filled('manifest.json', b'[]'),
    'manifest null': filled('manifest.json', b'null'),
    'manifest in UTF-16': filled('manifest.json', '{}'.encode('utf-16')),
    'rate edited': edited('rate', 900), 'clips edited': edited('clips', 23), 'key edited': edited('key', '0'*16),
    'digest lost': edited('digest', None), 'chunks lost': edited('chunks', None),
    'of a later version': edited('format', 2, True),
    'of another store': edited('key', '0'*16, True), 'no sums': edited('chunks', [], True),
    'sums of half': edited('chunks', [[0, 12, 0]], True), 'negative length': edited('clip_len', -800, True),
    'clips as text': edited('clips', '24', True), 'rows of another': edited('rows', '0'*64, True),
}


@pytest.mark.parametrize('name', STORE_DAMAGE)
def test_damaged_store(name, damage, small, packed, tmp_path):
    corpus, _ = small
    copy = shutil.copytree(packed.folder, tmp_path/packed.folder.name)
    STORE_DAMAGE[name](copy)
    damage('store', lambda: pack(corpus, tmp_path, progress=False), [copy])


@pytest.mark.parametrize('node', NODES)
def test_no_regular_samples(node, damage, small, packed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(packed.folder, tmp_path/packed.folder.name)
    (copy/'audio.i16').unlink()
    node(copy/'audio.i16')
    damage('no regular file', lambda: Store.open(copy), [copy])


@pytest.mark.parametrize('left', [('audio.i16',), ('rows.csv',), ('audio.i16', 'rows.csv'), ('manifest.json',), ()])
def test_half_a_store(left, damage, packed, tmp_path):
    copy = shutil.copytree(packed.folder, tmp_path/packed.folder.name)
    for path in copy.iterdir():
        if path.name not in left: path.unlink()
    damage('store', lambda: Store.open(copy), [copy])


def test_whole_store_of_another_corpus(damage, small, packed, tmp_path):
    corpus, _ = small
    other = pack(noise_corpus(tmp_path/'d', seed=1), tmp_path, progress=False)
    shutil.copytree(other.folder, tmp_path/packed.folder.name)
    damage('store', lambda: pack(corpus, tmp_path, progress=False), [packed.folder.name])


CUTS = [0, 2, 801*2, 1600*2 + 1, 38398]
READS = {'a batch': lambda s: s.batch(range(24)), 'windows': lambda s: s.windows([len(s.recordings) - 1], [2300], 900),
         'everything': lambda s: s.flat,
         'a turned recording': lambda s: s.samples.turned(*np.array([[35200], [3200], [2900]]), 800)}


@pytest.mark.parametrize('size', CUTS)
@pytest.mark.parametrize('read', READS)
def test_store_is_cut_while_it_is_open(read, size, damage, packed, tmp_path):
    "The process lives, and says which file was cut"
    store = Store.open(shutil.copytree(packed.folder, tmp_path/'copy'))
    os.truncate(store.folder/'audio.i16', size)
    damage('cut while open', lambda: READS[read](store), [store.folder/'audio.i16'])


@pytest.mark.parametrize('name', ['mel.f32', 'sums.u32'])
@pytest.mark.parametrize('size', [0, 3])
def test_cache_is_cut_while_it_is_open(name, size, damage, packed, tmp_path):
    from asc.augment.pipeline import create_pipeline
    pipeline = create_pipeline(['resample', 'mel', 'log'], RATE, 'dcase24')
    cache = MelCache(packed, pipeline, tmp_path)
    cache.batch([0, 23])
    os.truncate(cache.folder/name, size)
    damage('cut while open', lambda: cache.batch([0, 23]), [cache.folder/name])


# ---------------------------------------------------------------- sources

def rewrite(path, x, **keywords):
    "Other sound in a file of the same size and time"
    before = os.stat(path)
    sf.write(path, x, RATE, 'PCM_16', **keywords)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize('rate', [None, 400])
@pytest.mark.parametrize('places', [[0], [23], [3, 4, 11]])
def test_sound_changed_behind_the_stores_back(places, rate, damage, tmp_path, capsys):
    "Same name, size and time, other sound: the store is made anew"
    corpus = noise_corpus(tmp_path/'c')
    before = pack(corpus, tmp_path/'s', rate, progress=False).content
    for i in places: rewrite(corpus.dir/corpus.meta.filename[i], np.full(RATE, .25))

    def is_new(store):
        "Whether the new sound is there"
        x = store.batch(store.index(corpus.meta.filename[places]))
        return store.content != before and (np.abs(x[:, 50:-50] - 8192) < 50).all()
    damage('changed source', lambda: pack(corpus, tmp_path/'s', rate, progress=False), right=is_new)
    assert 'packing again' in capsys.readouterr().out
    assert pack(corpus, tmp_path/'s', rate, progress=False).content != before
    assert 'packing again' not in capsys.readouterr().out


def test_sound_broken_behind_the_stores_back(damage, tmp_path):
    corpus = noise_corpus(tmp_path/'c')
    store = pack(corpus, tmp_path/'s', progress=False)
    path = corpus.dir/corpus.meta.filename[5]
    before = os.stat(path)
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2): damage('changed source', lambda: pack(corpus, tmp_path/'s', progress=False), [path.name])
    assert (store.folder/'manifest.json').is_file()


@pytest.mark.parametrize('rate', [None, 400])
def test_touched_sound_is_the_same(rate, damage, tmp_path, capsys):
    "A copied corpus is compared once, and not packed again"
    corpus = noise_corpus(tmp_path/'c')
    store = pack(corpus, tmp_path/'s', rate, progress=False)
    for name in corpus.meta.filename: os.chmod(corpus.dir/name, 0o600)
    damage('changed source', lambda: pack(corpus, tmp_path/'s', rate, progress=False),
           right=lambda s: s.content == store.content)
    assert not capsys.readouterr().out


def test_corpus_without_sound_and_a_packed_ones_names(damage, small, packed, tmp_path):
    corpus, home = small
    (tmp_path/'c').mkdir()
    shutil.copy(corpus.dir/'meta.csv', tmp_path/'c')
    damage('changed source', lambda: pack(load_corpus(tmp_path/'c'), home, progress=False), [tmp_path/'c', '24 of 24'])


def test_sound_that_was_deleted(damage, tmp_path, capsys):
    corpus = noise_corpus(tmp_path/'c')
    store = pack(corpus, tmp_path/'s', progress=False)
    shutil.rmtree(corpus.dir/'audio')
    damage('changed source', lambda: pack(corpus, tmp_path/'s', progress=False),
           right=lambda s: s.folder == store.folder)
    assert 'has no sound files any more' in capsys.readouterr().out


@pytest.mark.parametrize('node', NODES)
def test_no_regular_sound(node, damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus = noise_corpus(tmp_path/'c')
    path = corpus.dir/corpus.meta.filename[3]
    path.unlink()
    node(path)
    damage('no regular file', lambda: pack(corpus, tmp_path/'s', progress=False), ['1 of 24', path.name])


# ---------------------------------------------------------------- sounds that are sound

def riff(chunks):
    "A wav file of some chunks"
    body = b'WAVE' + b''.join(tag + struct.pack('<I', len(data)) + data + b'\0'*(len(data) % 2) for tag, data in chunks)
    return b'RIFF' + struct.pack('<I', len(body)) + body


def plain_chunks(x):
    "The chunks of a mono wav file of 16 bits"
    pcm = (x*32768).astype('<i2').tobytes()
    return [(b'fmt ', struct.pack('<HHIIHH', 1, 1, RATE, 2*RATE, 2, 16)), (b'data', pcm)]


def written(**keywords):
    "A way to write a sound by libsndfile, whatever its name says"
    def write(path, x):
        with open(path, 'wb') as f: sf.write(f, x, RATE, **keywords)
    return write


def chunked(before=(), behind=()):
    "A way to write a wav with more chunks"
    def write(path, x):
        fmt, data = plain_chunks(x)
        path.write_bytes(riff([*before, fmt, data, *behind]))
    return write


def piped(size):
    "A way to write a wav whose writer did not know how long it would be"
    def write(path, x):
        data = bytearray(riff(plain_chunks(x)))
        data[4:8] = data[40:44] = struct.pack('<I', size)
        path.write_bytes(data)
    return write


WAYS = {
    'LIST behind': chunked(behind=[(b'LIST', b'INFOISFT\6\0\0\0Lavf58')]),
    'odd chunk before': chunked([(b'junk', b'abc')]),
    'many chunks': chunked([(b'bext', bytes(602)), (b'JUNK', bytes(28))], [(b'LIST', bytes(40)), (b'id3 ', bytes(99))]),
    'zeros behind': lambda path, x: path.write_bytes(riff(plain_chunks(x)) + bytes(64)),
    'extensible': written(format='WAVEX', subtype='PCM_16'), 'RF64': written(format='RF64', subtype='PCM_16'),
    'FLAC': written(format='FLAC', subtype='PCM_16'), 'W64': written(format='W64', subtype='PCM_16'),
    'AIFF': written(format='AIFF', subtype='PCM_16'), 'AU': written(format='AU', subtype='PCM_16'),
    'size unknown': piped(2**32 - 1), 'size of a pipe': piped(0x7ffff000),
    'float': written(format='WAV', subtype='FLOAT'),
    'double': written(format='WAV', subtype='DOUBLE'), '24 bits': written(format='WAV', subtype='PCM_24'),
    '32 bits': written(format='WAV', subtype='PCM_32'),
}


def sound_corpus(folder, write, x):
    "A corpus of four clips of one sound"
    (folder/'audio').mkdir(parents=True)
    names = [f'audio/{scene}-oulu-{i}-{i}-0-a.wav' for i, scene in enumerate(('bus', 'bus', 'park', 'park'))]
    for name in names: write(folder/name, x)
    rows = [(name, name[6:].split('-')[0], f'oulu-{i}', 'a') for i, name in enumerate(names)]
    (folder/'meta.csv').write_text(text(rows))
    return load_corpus(folder)


@pytest.mark.parametrize('way', WAYS)
def test_sound_of_any_make_is_packed(way, damage, tmp_path, capsys):
    "Every sample is there, and nothing is said against it but that all clips are one sound"
    x = np.random.default_rng(0).integers(-9999, 9999, RATE)/32768
    corpus = sound_corpus(tmp_path/'c', WAYS[way], x)
    damage('sound of any make', lambda: pack(corpus, tmp_path/'s', progress=False),
           right=lambda s: (s.batch(range(4)) == x*32768).all())
    assert check_corpus(corpus.dir, deep=True, progress=False).what.tolist() == ['one sound under two labels']
    assert check_corpus(corpus.dir, progress=False).empty
    assert f'nothing is wrong with {corpus.dir}: 4 clips of 2 scenes' in capsys.readouterr().out


@pytest.mark.parametrize('subtype', ['IMA_ADPCM', 'MS_ADPCM', 'ULAW', 'ALAW', 'GSM610'])
def test_compressed_sound_is_packed(subtype, damage, tmp_path):
    x = np.sin(np.arange(4*RATE)/9)/3
    corpus = sound_corpus(tmp_path/'c', written(format='WAV', subtype=subtype), x)
    heard = sf.read(corpus.dir/corpus.meta.filename[0], dtype='int16')[0]
    damage('sound of any make', lambda: pack(corpus, tmp_path/'s', progress=False),
           right=lambda s: (s.batch([2])[0] == heard).all())
    assert check_corpus(corpus.dir, progress=False).empty


@pytest.mark.parametrize('deep', [False, True])
@pytest.mark.parametrize('subtype', ['FLOAT', 'DOUBLE'])
def test_sound_beyond_full_scale(subtype, deep, damage, tmp_path):
    "It is cut, as everywhere, and check_corpus says so"
    x = np.sin(np.arange(RATE)/9)*1.7
    corpus = sound_corpus(tmp_path/'c', written(format='WAV', subtype=subtype), x)
    rule = np.clip(np.floor(x.astype(np.float32)*np.float64(32768) + .5), -32768, 32767)
    damage('beyond full scale', lambda: pack(corpus, tmp_path/'s', progress=False),
           right=lambda s: (np.abs(s.batch([0])[0] - rule) <= 1).all())
    findings = check_corpus(corpus.dir, deep=deep, progress=False)
    assert findings.what.tolist() == ['clips beyond full scale', 'one sound under two labels'][:1 + deep]
    assert findings['count'][0] == 4
    assert f'{(np.abs(x) > 1).sum()} samples' in findings.example[0]


@pytest.mark.parametrize('peak', [1e29, 1000., np.nan, np.inf])
def test_numbers_that_are_no_sound(peak, damage, tmp_path):
    x = np.sin(np.arange(RATE)/9)/2
    x[7] = peak
    corpus = sound_corpus(tmp_path/'c', written(format='WAV', subtype='FLOAT'), x)
    damage('beyond full scale', lambda: pack(corpus, tmp_path/'s', progress=False), [corpus.meta.filename[0], '4 of 4'])


def test_clips_cut_by_their_recorder(damage, tmp_path):
    x = np.clip(np.sin(np.arange(RATE)/9)*1.7, -1, 32767/32768)
    corpus = sound_corpus(tmp_path/'c', written(format='WAV', subtype='PCM_16'), x)
    damage('beyond full scale', lambda: check_corpus(corpus.dir, progress=False),
           right=lambda df: df.what.tolist() == ['clips cut at full scale by their recorder (of 4 heard)'])


@pytest.mark.parametrize('on_disk', ['audio/bus-oulu-0-0-0-a.WAV', 'audio/Bus-oulu-0-0-0-a.wav'])
def test_name_that_only_looks_the_same(on_disk, damage, tmp_path):
    corpus = sound_corpus(tmp_path/'c', written(format='WAV'), np.zeros(RATE))
    (corpus.dir/corpus.meta.filename[0]).rename(corpus.dir/on_disk)
    damage('sound file', lambda: check_corpus(corpus.dir, progress=False),
           right=lambda df: df.what[0] == 'sound files missing' and on_disk[6:] in df.remedy[0])


BAD_SOUNDS = {'nothing': b'', 'text': b'<html>404</html>'*99, 'a header': riff(plain_chunks(np.zeros(0))),
              'half a header': riff(plain_chunks(np.zeros(9)))[:30], 'no fmt': riff(plain_chunks(np.zeros(9))[1:]),
              'no data': riff(plain_chunks(np.zeros(9))[:1]), 'cut': riff(plain_chunks(np.zeros(RATE)))[:900],
              'rate 0': riff(plain_chunks(np.zeros(RATE))).replace(struct.pack('<II', RATE, 2*RATE), bytes(8)),
              'rate 1': riff(plain_chunks(np.zeros(RATE))).replace(struct.pack('<II', RATE, 2*RATE),
                                                                   b'\1\0\0\0\2\0\0\0'),
              'twice the samples': riff(plain_chunks(np.zeros(RATE)))[:40] + struct.pack('<I', 3200) + bytes(1600)}


@pytest.mark.parametrize('name', BAD_SOUNDS)
def test_broken_sound_costs_itself_only(name, damage, tmp_path):
    corpus = sound_corpus(tmp_path/'c', written(format='WAV', subtype='PCM_16'), np.zeros(RATE))
    (corpus.dir/corpus.meta.filename[1]).write_bytes(BAD_SOUNDS[name])
    damage('sound file', lambda: pack(corpus, tmp_path/'s', progress=False), ['1 of 4', corpus.meta.filename[1]])
    assert check_corpus(corpus.dir, progress=False)['count'].tolist() == [1]


def test_header_that_promises_all_memory(damage, tmp_path):
    "A FLAC file of four thousand samples whose header says 2³⁶"
    corpus = sound_corpus(tmp_path/'c', written(format='FLAC', subtype='PCM_16'), np.zeros(RATE))
    for name in corpus.meta.filename:
        data = bytearray((corpus.dir/name).read_bytes())
        data[21] |= 0x0f
        data[22:26] = b'\xff'*4
        (corpus.dir/name).write_bytes(data)
    damage('sound file', lambda: pack(corpus, tmp_path/'s', progress=False), ['4 of 4', 'truncated'])


# ---------------------------------------------------------------- markers, archives

@pytest.mark.parametrize('note', ['', '{', '[]', '{}', '{"made": 3}', '{"made": {"train": 2}}'])
def test_damaged_marker(note, damage, tmp_path):
    (tmp_path/'c').mkdir()
    (tmp_path/'c/SYNTHETIC').write_text(note)
    damage('marker', lambda: make_synthetic(tmp_path/'c', train=2, progress=False), [tmp_path/'c'])


def zipped(path, name='c/a.txt'):
    "An archive of one text"
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr(name, 'text '*999)
    return path


ARCHIVES = {
    'empty': lambda path: path.write_bytes(b''), 'text': lambda path: path.write_text('no zip'),
    'cut': lambda path: os.truncate(zipped(path), 60), 'bit in the middle': lambda path: flip(zipped(path), .3),
    'outside': lambda path: zipped(path, '../../a.txt'), 'absolute': lambda path: zipped(path, '/a.txt'),
    'another method': lambda path: path.write_bytes(zipped(path).read_bytes().replace(b'\x08\0', b'\x63\0')),
    'a cipher': lambda path: path.write_bytes(zipped(path).read_bytes().replace(b'\0\0\x08\0', b'\1\0\x08\0')),
}


@pytest.mark.parametrize('name', ARCHIVES)
def test_damaged_archive(name, damage, tmp_path):
    path = tmp_path/'a.zip'
    ARCHIVES[name](path)
    damage('archive', lambda: unpack(path, tmp_path/'out', progress=False), ['a.zip'])


@pytest.mark.parametrize('node', NODES)
def test_no_regular_archive(node, damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    node(tmp_path/'a.zip')
    damage('no regular file', lambda: unpack(tmp_path/'a.zip', tmp_path/'out', progress=False), ['a.zip'])
