"Descriptions and tables of corpora that are damaged or hostile: right, or refused in a sentence"
import struct

import numpy as np
import pytest
import soundfile as sf

from asc.data.check import scan_audio
from asc.data.corpus import load_corpus
from asc.data.store import pack


@pytest.fixture
def folder(tmp_path):
    "Two sounds, and a table of them"
    for k, name in enumerate('ab'):
        sf.write(tmp_path/f'{name}.wav', np.random.default_rng(k).normal(0, .1, 1600), 800)
    (tmp_path/'t.csv').write_text('file,label,from,to\na.wav,rain,0,1\nb.wav,wind,0,1\n', encoding='utf-8')
    return tmp_path


def described(folder, text):
    (folder/'corpus.yaml').write_text(text, encoding='utf-8')
    return folder/'corpus.yaml'


TABLE = 'reader: table\ntable: t.csv\ncolumns: {filename: file, scene: label}\n'

DESCRIPTIONS = {
    'nothing': '', 'a list': '- reader', 'a word': 'tables', 'no YAML': 'reader: [',
    'twice': 'reader: tau\nreader: tut',
    'no reader': 'title: x', 'reader unknown': 'reader: wav', 'reader in two': 'reader: [tau, tut]',
    'field unknown': TABLE + 'sounds: {length: 1}', 'kind unknown': TABLE + 'kind: test',
    'title a number': TABLE + 'title: 3',
    'column unknown': TABLE.replace('scene:', 'scenes:'), 'column a number': TABLE.replace('scene: label', 'scene: 3'),
    'no columns': 'reader: table\ntable: t.csv', 'no table': 'reader: table\ncolumns: {filename: file}',
    'no such table': TABLE.replace('t.csv', 'u.csv'), 'table a folder': TABLE.replace('t.csv', '.'),
    'no such column': TABLE.replace('label', 'labels'), 'no such place': TABLE.replace('label', "'{label}-{day}'"),
    'end and length': TABLE.replace('scene: label', 'end: to, length: from'),
    'start no number': TABLE.replace('scene: label', 'start: label'),
    'no pattern': TABLE + 'pattern: "(["', 'pattern without names': TABLE + 'pattern: ".*"',
    'pattern tells what columns tell': TABLE + 'pattern: "(?P<scene>.)"',
    'pattern of unknown words': TABLE + 'pattern: "(?P<weather>.)"',
    'pattern that fits nothing': TABLE + 'pattern: "(?P<city>[0-9])"',
    'length 0': TABLE + 'sound: {length: 0}', 'length a text': TABLE + 'sound: {length: ten}',
    'length true': TABLE + 'sound: {length: true}', 'length NaN': TABLE + 'sound: {length: .nan}',
    'length of 1e9 s': TABLE + 'sound: {length: 1e9}', 'hop negative': TABLE + 'sound: {length: 1, hop: -1}',
    'hop alone': TABLE + 'sound: {hop: 1}', 'least above length': TABLE + 'sound: {length: 1, least: 2}',
    'least alone': TABLE + 'sound: {least: 1}', 'mix unknown': TABLE + 'sound: {mix: left}',
    'mix true': TABLE + 'sound: {mix: true}', 'mix -1': TABLE + 'sound: {mix: -1}',
    'rate 3': TABLE + 'sound: {rate: 3}', 'rate 44.1': TABLE + 'sound: {rate: 44.1}',
    'sound a word': TABLE + 'sound: mean',
    'lists unknown': TABLE + 'lists: fold', 'lists by weather': TABLE + 'lists: {by: weather}',
    'lists of all': TABLE + 'lists: {test: 1.0}', 'seed -1': TABLE + 'lists: {seed: -1}',
    'class unknown': TABLE + 'classes: {Rain: wet, wind: dry}', 'class true': TABLE + 'classes: {true: wet}',
    'outside': TABLE + 'audio: ../..', 'reference': 'reader: &a table\ntable: *a',
    'clips of 1 ms': TABLE.replace('}', ', end: to}').replace('t.csv', 'long.csv') + 'sound: {length: 0.001}',
}


@pytest.mark.parametrize('kind', DESCRIPTIONS)
def test_descriptions(kind, folder, damage):
    text = 'file,label,to\na.wav,rain,86400\nb.wav,wind,86400\n'
    (folder/'long.csv').write_text(text, encoding='utf-8')
    path = described(folder, DESCRIPTIONS[kind])
    named = folder/('u.csv' if kind == 'no such table' else '')
    damage('description', lambda: load_corpus(path.parent), [named if kind != 'outside' else ''])


TABLES = {
    'no rows': 'file,label\n', 'empty': '', 'a short row': 'file,label\na.wav\n',
    'a long row': 'file,label\na.wav,x,y\n',
    'no file': 'file,label\n,rain\n', 'twice': 'file,label\na.wav,rain\na.wav,wind\n',
    'two columns of one name': 'file,label,label\na.wav,rain,wind\n', 'outside': 'file,label\n../a.wav,rain\n',
    'absolute': 'file,label\n/a.wav,rain\n', 'a control character': 'file,label\na\x07.wav,rain\n',
    'a quote left open': 'file,label\n"a.wav,rain\n'}


@pytest.mark.parametrize('kind', TABLES)
def test_tables(kind, folder, damage):
    (folder/'t.csv').write_text(TABLES[kind], encoding='utf-8')
    described(folder, TABLE)
    damage('table', lambda: load_corpus(folder), [folder/'t.csv' if kind not in (
        'twice', 'outside', 'absolute', 'a control character') else 'corpus.yaml'])


SPELLINGS = {
    'a byte order mark': '\ufefffile,label\na.wav,rain\nb.wav,wind\n',
    'semicolons': 'file;label\na.wav;rain\nb.wav;wind\n',
    'Windows': 'file\tlabel\r\na.wav\train\r\nb.wav\twind\r\n', 'quotes': 'file,label\n"a.wav","rain"\nb.wav,"wind"\n',
    'dots': 'file,label\n./a.wav,rain\n.\\b.wav,wind\n', 'blank rows': 'file,label\n\na.wav,rain\n,\nb.wav,wind\n',
    'an index': ',file,label\n0,a.wav,rain\n1,b.wav,wind\n',
    'other columns': 'x,file,y,label\n,a.wav,,rain\n1,b.wav,,wind\n'}


@pytest.mark.parametrize('kind', SPELLINGS)
def test_spellings_of_tables(kind, folder, damage):
    (folder/'t.csv').write_text(SPELLINGS[kind], encoding='utf-8')
    described(folder, TABLE)
    damage('table', lambda: load_corpus(folder).meta[['filename', 'scene']].to_numpy().tolist(),
           right=[['a.wav', 'rain'], ['b.wav', 'wind']].__eq__)


def flac_that_promises(path, samples):
    "A FLAC whose header announces so many samples"
    sf.write(path, np.zeros(800), 8000, format='FLAC')
    data = bytearray(path.read_bytes())
    at = 8 + 10
    word = int.from_bytes(data[at:at + 8], 'big') >> 36 << 36 | samples
    data[at:at + 8] = word.to_bytes(8, 'big')
    path.write_bytes(data)


SOUNDS = {
    'missing': lambda path: path.unlink(), 'nothing': lambda path: path.write_bytes(b''),
    'text': lambda path: path.write_text('no sound', encoding='utf-8'),
    'cut': lambda path: path.write_bytes(path.read_bytes()[:1000]),
    'FLAC of days': lambda path: flac_that_promises(path, 2**36 - 1),
    'a header alone': lambda path: sf.write(path, np.zeros(0), 800),
    'NaN': lambda path: sf.write(path, np.full(1600, np.nan), 800, 'FLOAT'),
    'rate 1': lambda path: path.write_bytes(path.read_bytes()[:24] + struct.pack('<I', 1) + path.read_bytes()[28:]),
    'a folder': lambda path: (path.unlink(), path.mkdir()),
    'channels that cancel': lambda path: sf.write(path, np.outer(np.sin(np.arange(1600)), [1, -1]), 800)}


@pytest.mark.parametrize('kind', SOUNDS)
def test_sounds_with_rules(kind, folder, damage):
    "A broken file among sounds that are cut, mixed and resampled is named, and costs only itself"
    SOUNDS[kind](folder/'a.wav')
    described(folder, TABLE + 'sound: {length: 1, mix: mean, rate: 800}')
    damage('sound file', lambda: pack(load_corpus(folder), folder/'store', 400, progress=False), ['a.wav', '1 of 2'])
    found = scan_audio(load_corpus(folder), deep=True, progress=False)
    assert found.fault[found.filename == 'a.wav'].item() or kind == 'channels that cancel'


PARQUETS = {
    'nothing': lambda path: path.write_bytes(b''), 'text': lambda path: path.write_bytes(b'PAR1'*9),
    'cut': lambda path: path.write_bytes(path.read_bytes()[:-99]),
    'a folder': lambda path: (path.unlink(), path.mkdir()),
    'no sounds': lambda path: table_at(path, dict(label=['rain', 'wind'])),
    'two columns of sounds': lambda path: table_at(path, dict(label=['x', 'y'], a=SOUND, b=SOUND)),
    'no label': lambda path: table_at(path, dict(audio=SOUND))}
SOUND = [dict(bytes=b'RIFF', path='a.wav'), dict(bytes=b'RIFF', path='b.wav')]


def table_at(path, columns):
    pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize('kind', PARQUETS)
def test_parquet_tables(kind, tmp_path, damage):
    table_at(tmp_path/'train.parquet', dict(label=['rain', 'wind'], audio=SOUND))
    PARQUETS[kind](tmp_path/'train.parquet')
    described(tmp_path, 'reader: parquet\ncolumns: {scene: label}')
    damage('parquet', lambda: load_corpus(tmp_path), ['train.parquet' if kind != 'a folder' else tmp_path])


@pytest.mark.parametrize('rows', [[None, SOUND[1]], [dict(bytes=None, path='a.wav'), SOUND[1]],
                                  [dict(bytes=b'', path=None), SOUND[1]], SOUND])
def test_rows_without_sound(rows, tmp_path, damage):
    table_at(tmp_path/'train.parquet', dict(label=['rain', 'wind'], audio=rows))
    described(tmp_path, 'reader: parquet\ncolumns: {scene: label}')
    damage('parquet', lambda: pack(load_corpus(tmp_path), tmp_path/'store', progress=False), ['train.parquet#row=0'])


def test_without_pyarrow(tmp_path, damage, monkeypatch):
    "A sentence names the extra"
    table_at(tmp_path/'train.parquet', dict(label=['rain', 'wind'], audio=SOUND))
    described(tmp_path, 'reader: parquet\ncolumns: {scene: label}')
    monkeypatch.setitem(__import__('sys').modules, 'pyarrow.parquet', None)
    damage('parquet', lambda: load_corpus(tmp_path), ['train.parquet', 'asc[hf]'])
