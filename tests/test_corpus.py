"Names, tables and recordings of a corpus; what check_corpus finds; downloads from a server that misbehaves."
import hashlib
import io
import json
import os
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from asc.core import InputError, fingerprint, project_root
from asc.data.corpus import counts
from asc.data.layouts import META
from asc.data.names import ClipName
from asc.data.official import FINGERPRINTS, OFFICIAL
from asc.data.checking import check_corpus
from asc.data.corpus import load_corpus, recordings
from asc.data.lists import read_list
from asc.data.fetch import fetch
from asc.data.get import download_corpus
from asc.data.splits import expand_2020
from asc.data.unpack import unpack

TAU = Path(os.environ.get('ASC_SHARED', project_root()/'..'/'shared'))/'data'/'tau-lists'
needs_tau = pytest.mark.skipif(not TAU.is_dir(), reason='the official lists are not here')


def make(
    folder, scenes=('rain', 'wind'), places=2, devices=('a', 'b'), snippets=3, test_place=1,
    audio=True,
):
    "A corpus of noise in the DCASE layout, 1-s clips at 800 Hz; the last place of each scene is the test"
    folder = Path(folder)
    (folder/'audio').mkdir(parents=True)
    rows = []
    lists = dict(split100=[], test=[])
    x = np.random.default_rng(0).uniform(-.1, .1, 800)
    for i, scene in enumerate(scenes):
        for p in range(places):
            for d in devices:
                for k in range(snippets):
                    c = ClipName(scene, 'oulu', 10*i + p, 100*i + p, k, d)
                    if audio: sf.write(folder/str(c), x, 800, 'PCM_16')
                    rows.append((str(c), scene, f'oulu-{c.location}', d))
                    lists['test' if p == test_place else 'split100'].append((str(c), scene))
    write(folder/'meta.csv', META, rows)
    for name, r in lists.items(): write(folder/f'{name}.csv', META[:2], r)
    return folder


def write(path, head, rows, sep='\t', end='\n'):
    "A table in the file"
    path.write_bytes(end.join(sep.join(r) for r in [head, *rows]).encode() + end.encode())


def table(path):
    "Rows of a table, the header first"
    return [tuple(line.split('\t')) for line in path.read_text().splitlines()]


# ---------------------------------------------------------------- the official lists

@needs_tau
@pytest.mark.parametrize(
    'name', ['split5', 'split10', 'split25', 'split50', 'test', 'split100', 'all']
)
def test_official_lists(name):
    "Counts per scene, device and city, and the fingerprint of the set; split100 and all by expansion of the 2020 lists"
    file = dict(split100='tau2020_train', all='tau2020_total').get(name)
    df = read_list(TAU/f'{file or name}.csv')
    if file: df = expand_2020(df)
    assert fingerprint(df.filename) == FINGERPRINTS['2022'][name]
    part = df.filename.str.extract(r'^audio/([^-]+)-([^-]+)-(\d+)-(\d+)-(\d)-([^-]+)\.wav$')
    part.columns = ['scene', 'city', 'location', 'segment', 'snippet', 'device']
    assert (part.scene == df.scene_label).all()
    assert part.notna().all().all()
    totals = pd.concat([part[c].value_counts() for c in ('scene', 'device', 'city')])
    totals = totals.reindex(OFFICIAL.index, fill_value=0)
    assert totals.to_dict() == OFFICIAL[name].to_dict()
    assert not part.duplicated(['segment', 'snippet', 'device']).any()
    # a location: one scene, one city
    assert (part.groupby('location')[['scene', 'city']].nunique() == 1).all().all()
    locations = dict(
        split5=332, split10=352, split25=364, split50=365, split100=365, test=146, all=514
    )
    assert part.location.nunique() == locations[name]
    order = part.groupby(['segment', 'device'], sort=False).snippet.agg(''.join)
    # whole recordings, in the order of time
    assert set(order) == {'0123456789'}


@needs_tau
def test_official_lists_nest_and_do_not_leak():
    lists = {
        n: read_list(TAU/f'{n}.csv').filename.tolist()
        for n in ('split5', 'split10', 'split25', 'split50', 'test')
    }
    lists['split100'] = expand_2020(read_list(TAU/'tau2020_train.csv')).filename.tolist()
    for small, big in zip(['split5', 'split10', 'split25'], ['split10', 'split25', 'split50']):
        assert lists[big][:len(lists[small])] == lists[small]
    assert set(lists['split50']) < set(lists['split100'])
    train, test = ([ClipName.parse(f) for f in lists[n][::10]] for n in ('split100', 'test'))
    for part in ('location', 'segment', 'recording'):
        assert not {getattr(c, part) for c in train} & {getattr(c, part) for c in test}
    stem = {re.sub(r'-\d(-\w+\.wav)$', r'\1', f) for f in lists['test']}
    assert fingerprint(stem) == FINGERPRINTS['2020']['test']


@needs_tau
@pytest.mark.parametrize('year', ['2020', '2022'])
def test_tau_is_known_by_its_names(year, tmp_path):
    df = read_list(TAU/'tau2020_total.csv', META)
    (expand_2020(df) if year == '2022' else df).to_csv(
        tmp_path/'meta.csv', sep='\t', index=False, lineterminator='\r\n'
    )
    c = load_corpus(tmp_path)
    assert c.edition == year
    assert len(c.scenes) == 10
    assert len(c.devices) == 9
    assert len(c.cities) == 10
    assert c.meta.recording.nunique() == 23035
    assert c.meta.snippet.isna().all() == (year == '2020')
    if year == '2022':
        recs = recordings(c.meta)
        assert recs.complete.all() and recs.snippets.map(len).eq(10).all()
    assert counts(c.meta).to_numpy().sum() == len(c.meta)


@needs_tau
def test_every_tau_name_is_a_value():
    for f in read_list(TAU/'tau2020_total.csv').filename:
        assert str(ClipName.parse(f)) == f
    for f in read_list(TAU/'test.csv').filename[::7]:
        assert str(ClipName.parse(f)) == f


# ---------------------------------------------------------------- names and tables

@pytest.mark.parametrize(
    'bad',
    [
        'audio/rain-oulu-1-2.wav', 'audio/rain-oulu-01-2-a.wav',
        'audio/rain-oulu-1-2-3-4-a.wav', 'rain.wav', '12.wav', 'audio/rain-oulu-1-2-a.flac',
        'audio/-oulu-1-2-a.wav', 'audio/rain-oulu-1-2-.wav', 'audio/rain/oulu-1-2-a.wav', '',
        'audio/rain-oulu-1-2-a.wav\n', 'audio/rain-oulu-1-٢-a.wav',
    ],
)
def test_strict_grammar(bad):
    with pytest.raises(InputError, match='is not a name of the form'):
        ClipName.parse(bad)


BROKEN_TABLES = {
    'no such folder': (lambda d: d.rename(d.parent/'gone'), 'no folder'),
    'no meta.csv': (lambda d: (d/'meta.csv').unlink(), r'has no meta\.csv'),
    'empty': (lambda d: (d/'meta.csv').write_text(''), r'meta\.csv is empty'),
    'only blank lines': (lambda d: (d/'meta.csv').write_text('\r\n\r\n'), r'meta\.csv is empty'),
    'header only': (lambda d: write(d/'meta.csv', META, []), 'has a header but no rows'),
    'no header': (
        lambda d: write(d/'meta.csv', table(d/'meta.csv')[1], table(d/'meta.csv')[2:]),
        'has no column filename',
    ),
    'a column lacks': (
        lambda d: write(d/'meta.csv', META[:3], [r[:3] for r in table(d/'meta.csv')[1:]]),
        'has no column source_label',
    ),
    'bars': (
        lambda d: write(d/'meta.csv', META, table(d/'meta.csv')[1:], sep='|'),
        'has no column filename',
    ),
    'repeated row': (
        lambda d: write(d/'meta.csv', META, [*table(d/'meta.csv')[1:], table(d/'meta.csv')[3]]),
        'twice',
    ),
    'short row': (
        lambda d: write(d/'meta.csv', META, [table(d/'meta.csv')[1][:3], *table(d/'meta.csv')[2:]]),
        'row 1 after the header',
    ),
    'long row': (
        lambda d: write(d/'meta.csv', META, [*table(d/'meta.csv')[1:], ('x',)*5]),
        '4 filled fields expected',
    ),
    'blank place': (
        lambda d: write(d/'meta.csv', META, [('audio/x.wav', 'bus', ' ', 'a')]),
        '4 filled fields expected',
    ),
    'UTF-16': (
        lambda d: (d/'meta.csv').write_text((d/'meta.csv').read_text(), encoding='utf-16'),
        'is not UTF-8 from byte',
    ),
    'Latin-1': (
        lambda d: (d/'meta.csv').write_bytes('filename\tscene_label\nå\tb\n'.encode('latin-1')),
        'is not UTF-8 from byte',
    ),
    'outside': (
        lambda d: write(d/'meta.csv', META, [('../../etc/x.wav', 'rain', 'oulu-1', 'a')]),
        'outside the corpus',
    ),
    'absolute': (
        lambda d: write(d/'meta.csv', META, [('/x.wav', 'rain', 'oulu-1', 'a')]),
        'outside the corpus',
    ),
}


@pytest.mark.parametrize('kind', BROKEN_TABLES)
def test_broken_table(kind, tmp_path):
    d = make(tmp_path/'c', audio=False)
    harm, message = BROKEN_TABLES[kind]
    harm(d)
    with pytest.raises(InputError, match=message) as e: load_corpus(d)
    assert str(tmp_path) in str(e.value)  # names the file
    # the same sentence as a finding
    findings = check_corpus(d, progress=False)
    assert findings.severity.tolist() == ['error']
    assert re.search(message, findings.what[0])


def test_generous_tables(tmp_path):
    "Windows line ends, a byte-order mark, more columns, another order, blank lines at the end: all read the same"
    d = make(tmp_path/'c', audio=False)
    plain, rows = load_corpus(d).meta, table(d/'meta.csv')[1:]
    (d/'meta.csv').write_bytes(
        b'\xef\xbb\xbf'
        + b'\r\n'.join(
            '\t'.join(r).encode() for r in [('note', *META[::-1]), *(('n', *r[::-1]) for r in rows)]
        )
        + b'\r\n\r\n'
    )
    pd.testing.assert_frame_equal(load_corpus(d).meta, plain)


def test_nested_and_inner_folder(tmp_path):
    d = make(tmp_path/'c'/'development', audio=False)
    with pytest.raises(InputError, match=re.escape(f'did you mean {d}?')):
        load_corpus(tmp_path/'c')
    with pytest.raises(InputError, match=re.escape(f'did you mean {d}?')):
        load_corpus(d/'audio')


def test_names_outside_the_grammar(tmp_path):
    "meta.csv rules; a name of its own is a recording of its own"
    write(
        tmp_path/'meta.csv',
        META,
        [
            ('audio/take one.wav', 'rain', 'new-york-7', 'mic 2'),
            ('audio/b.wav', 'wind', 'rome-1', 'mic 2'),
        ],
    )
    c = load_corpus(tmp_path)
    assert c.meta.iloc[0][['scene', 'device', 'city', 'location', 'recording']].tolist() == [
        'rain', 'mic 2', 'new-york', 'new-york-7', 'take one'
    ]
    assert c.meta.segment.isna().all()
    assert (c.scenes, c.devices) == (['rain', 'wind'], ['mic 2'])


def test_vocabulary_is_taus_when_it_covers(tmp_path):
    c = load_corpus(make(tmp_path/'c', scenes=('bus', 'tram'), devices=('a', 's6'), audio=False))
    assert len(c.scenes) == 10
    assert c.scenes.index('tram') == 9
    assert c.devices.index('s6') == 8
    assert c.cities == ['oulu']


def test_evaluation_set(tmp_path):
    write(tmp_path/'meta.csv', ['filename'], [(f'audio/{i}.wav',) for i in range(3)], end='\r\n')
    c = load_corpus(tmp_path, kind='evaluation')
    assert c.meta[['scene', 'device', 'city', 'location']].isna().all().all()
    assert c.meta.recording.tolist() == ['0', '1', '2']
    with pytest.raises(InputError, match='has no column scene_label, identifier, source_label'):
        load_corpus(tmp_path)
    (tmp_path/'evaluation_setup').mkdir()
    write(tmp_path/'evaluation_setup'/'fold1_test.csv', ['filename'], [('audio/7.wav',)])
    assert load_corpus(tmp_path, kind='evaluation').meta.filename.tolist() == ['audio/7.wav']
    with pytest.raises(InputError, match='unknown kind of corpus'):
        load_corpus(tmp_path, kind='test')


def test_synthetic_is_in_the_name(tmp_path):
    d = make(tmp_path/'c', audio=False)
    assert load_corpus(d).name == 'c'
    (d/'SYNTHETIC').write_text('')
    assert load_corpus(d).name == 'c-synthetic' and load_corpus(d).synthetic


# ---------------------------------------------------------------- what is wrong with a download

def first(d):
    "The first sound file"
    return d/table(d/'meta.csv')[1][0]


def relist(d, name, change):
    "Change the rows of a list"
    head, *rows = table(d/f'{name}.csv')
    write(d/f'{name}.csv', head, change(rows))


def lie(path):
    "A header that promises twice the samples"
    b = path.read_bytes()
    path.write_bytes(b[:40] + (3200).to_bytes(4, 'little') + b[44:])

BROKEN = {
    'missing file': (lambda d: first(d).unlink(), 'sound files missing'),
    'no audio folder': (lambda d: (d/'audio').rename(d/'sound'), 'sound files missing'),
    'file not listed': (
        lambda d: sf.write(d/'audio/rain-oulu-9-9-0-a.wav', np.zeros(800), 800),
        'sound files not in meta.csv',
    ),
    'empty file': (lambda d: first(d).write_bytes(b''), 'sound files: empty'),
    'header without samples': (
        lambda d: sf.write(first(d), np.zeros(0), 800), 'sound files: empty'
    ),
    'text in a wav': (
        lambda d: first(d).write_text('<html>404</html>'*9), 'sound files: unreadable'
    ),
    'half a header': (
        lambda d: first(d).write_bytes(first(d).read_bytes()[:30]), 'sound files: unreadable'
    ),
    'truncated': (
        lambda d: first(d).write_bytes(first(d).read_bytes()[:900]), 'sound files: truncated'
    ),
    'lying header': (lambda d: lie(first(d)), 'sound files: truncated'),
    'stereo': (lambda d: sf.write(first(d), np.zeros((800, 2)), 800), 'sound files: not mono'),
    'wrong rate': (lambda d: sf.write(first(d), np.zeros(800), 1000), 'sound files: wrong rate'),
    'too short': (lambda d: sf.write(first(d), np.zeros(799), 800), 'sound files: wrong length'),
    'too long': (lambda d: sf.write(first(d), np.zeros(801), 800), 'sound files: wrong length'),
    'not readable': (
        lambda d: (first(d).unlink(), first(d).mkdir()), 'sound files: is a folder, not a sound'
    ),
    'scene differs from name': (
        lambda d: relist(d, 'meta', lambda r: [(r[0][0], 'wind', *r[0][2:]), *r[1:]]),
        'scene in meta.csv differs',
    ),
    'device differs from name': (
        lambda d: relist(d, 'meta', lambda r: [(*r[0][:3], 'b'), *r[1:]]),
        'device in meta.csv differs',
    ),
    'place differs from name': (
        lambda d: relist(d, 'meta', lambda r: [(*r[0][:2], 'oulu-7', r[0][3]), *r[1:]]),
        'identifier in meta.csv differs',
    ),
    'snippet lacks': (
        lambda d: (relist(d, 'meta', lambda r: r[1:]), relist(d, 'split100', lambda r: r[1:])),
        'recordings lack snippets',
    ),
    'list names a stranger': (
        lambda d: relist(d, 'test', lambda r: [*r, ('audio/x.wav', 'rain')]),
        'test.csv names clips that are not in meta.csv',
    ),
    'list disagrees': (
        lambda d: relist(d, 'test', lambda r: [(r[0][0], 'wind'), *r[1:]]),
        'test.csv and meta.csv disagree',
    ),
    'empty list': (lambda d: (d/'test.csv').write_text(''), 'test.csv is empty'),
    'clip in both': (
        lambda d: relist(d, 'split100', lambda r: [*r, table(d/'test.csv')[1]]), 'share clips'
    ),
    'recording in both': (
        lambda d: (
            lambda t: (relist(d, 'test', lambda r: r[1:]), relist(d, 'split100', lambda r: [*r, t]))
        )(table(d/'test.csv')[1]),
        'share recordings',
    ),
    'parallel device in both': (
        lambda d: (
            lambda t: (
                relist(d, 'test', lambda r: r[3:]), relist(d, 'split100', lambda r: [*r, *t])
            )
        )(table(d/'test.csv')[1:4]),
        'share segments',
    ),
    'location in both': (
        lambda d: (
            relist(
                d,
                'meta',
                lambda r: [*r, ('audio/rain-oulu-1-77-0-a.wav', 'rain', 'oulu-1', 'a')],
            ),
            sf.write(d/'audio/rain-oulu-1-77-0-a.wav', np.zeros(800), 800),
            relist(d, 'split100', lambda r: [*r, ('audio/rain-oulu-1-77-0-a.wav', 'rain')]),
        ),
        'share locations',
    ),
}


@pytest.mark.parametrize('kind', BROKEN)
def test_check_corpus_finds(kind, tmp_path):
    d = make(tmp_path/'c')
    assert check_corpus(d, progress=False).empty
    harm, what = BROKEN[kind]
    harm(d)
    findings = check_corpus(d, progress=False)
    hit = findings[findings.what.str.contains(what, regex=False)]
    assert len(hit) == 1, findings.to_string()
    assert hit['count'].iloc[0] >= 1
    assert hit.remedy.iloc[0]
    assert list(findings.columns) == ['severity', 'what', 'count', 'example', 'remedy', 'accept']


def test_check_corpus_deep(tmp_path):
    "Damage only decoding shows"
    d = make(tmp_path/'c')
    whole = first(d).read_bytes()
    sf.write(first(d), np.random.default_rng(0).uniform(-.5, .5, 800), 800, format='FLAC')
    flac = first(d).read_bytes()
    first(d).write_bytes(flac[:-900] + b'\x55'*200 + flac[-700:])
    assert check_corpus(d, progress=False).empty
    assert check_corpus(d, deep=True, progress=False).what[0] == 'sound files: unreadable'
    sf.write(first(d), np.where(np.arange(800) == 9, np.nan, 0), 800, 'FLOAT')
    assert 'NaN' in check_corpus(d, progress=False).what[0]  # floats are always decoded
    b = bytearray(whole)
    b[20:22] = (0x55).to_bytes(2, 'little')
    first(d).write_bytes(b)  # says it is MP3
    assert check_corpus(d, deep=True, progress=False).what[0] == 'sound files: unreadable'


def test_many_faults_are_counted_by_kind(tmp_path):
    d = make(tmp_path/'c', places=8, snippets=5)
    names = [r[0] for r in table(d/'meta.csv')[1:]]
    for n in names[:7]: (d/n).unlink()
    for n in names[7:12]: (d/n).write_bytes(b'')
    findings = check_corpus(d, progress=False)
    assert dict(zip(findings.what, findings['count'])) == {
        'sound files missing': 7, 'sound files: empty': 5
    }


@needs_tau
def test_counts_of_a_partial_tau(tmp_path):
    d = tmp_path/'TAU-urban-acoustic-scenes-2020-mobile-development'
    d.mkdir()
    read_list(TAU/'tau2020_total.csv', META).query("source_label != 's6'").to_csv(
        d/'meta.csv', sep='\t', index=False
    )
    findings = check_corpus(d, progress=False).set_index('what')
    assert findings.loc['meta.csv is not the official one', 'count'] == 1080
    assert 's6 0 for 1080' in findings.loc['meta.csv is not the official one', 'example']


@needs_tau
def test_split_that_is_not_the_official_one(tmp_path):
    d = tmp_path/'any name'
    d.mkdir()
    rows = expand_2020(read_list(TAU/'tau2020_total.csv', META))
    rows.to_csv(d/'meta.csv', sep='\t', index=False)
    read_list(TAU/'split5.csv').iloc[:-10].to_csv(d/'split5.csv', sep='\t', index=False)
    findings = check_corpus(d, progress=False).set_index('what')
    assert findings.loc['split5.csv is not the official one', 'count'] == 10
    assert findings.loc['sound files missing', 'count'] == 230350


@pytest.mark.parametrize('name', ['ambience', 'ambience-small'])
def test_the_real_corpora_are_well(name):
    d = project_root()/'data'/name
    if not d.is_dir(): pytest.skip('not built here')
    assert check_corpus(d, progress=False).empty


# ---------------------------------------------------------------- downloads

@pytest.fixture
def server():
    "Serves `files`; `break_at` bytes of a body are sent before the line breaks, once per path; `ranges` can be refused"
    class Handler(BaseHTTPRequestHandler):
        files = {}
        break_at = None
        ranges = True
        log = []
        broken = set()
        def do_GET(self):
            body, requested = self.files.get(self.path), self.headers.get('Range')
            self.log.append((self.path, requested))
            if body is None:
                self.send_error(404)
                return
            start = int(requested[6:-1]) if requested and self.ranges else 0
            if start >= len(body):
                self.send_response(416)
                self.send_header('Content-Range', f'bytes */{len(body)}')
                self.end_headers()
                return
            self.send_response(206 if requested and self.ranges else 200)
            self.send_header('Content-Length', str(len(body) - start))
            self.end_headers()
            cut = self.break_at if self.break_at and self.path not in self.broken else None
            self.broken.add(self.path)
            self.wfile.write(body[start:][:cut])
        def log_message(self, *_): pass
    srv = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=srv.serve_forever, args=(.01,), daemon=True).start()
    Handler.url = f'http://127.0.0.1:{srv.server_port}'
    yield Handler
    srv.shutdown()
    srv.server_close()


def zipped(files):
    "Bytes of a zip archive of these files"
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z:
        for name, data in files.items(): z.writestr(name, data)
    return out.getvalue()


def record(server, tmp_path, name='oulu-2024'):
    "A Zenodo-like record of two archives of a corpus"
    d = make(tmp_path/'source'/name)
    audio = {f'{name}/audio/{p.name}': p.read_bytes() for p in sorted((d/'audio').iterdir())}
    noise = {f'{name}/noise.bin': np.random.default_rng(0).bytes(400_000)}
    archives = {
        f'{name}.audio.zip': zipped(audio | noise),
        f'{name}.meta.zip': zipped({f'{name}/{p.name}': p.read_bytes() for p in d.glob('*.csv')}),
    }
    files = [
        dict(
            key=k,
            size=len(v),
            checksum=f'md5:{hashlib.md5(v).hexdigest()}',
            links=dict(self=f'{server.url}/api/records/7/files/{k}/content'),
        )
        for k, v in archives.items()
    ]
    server.files = {
        '/api/records/7': json.dumps(dict(files=files)).encode(),
        **{f['links']['self'][len(server.url):]: archives[f['key']] for f in files},
    }
    return archives


def test_download_corpus(server, tmp_path):
    record(server, tmp_path)
    # the line breaks once for each archive
    server.break_at = 200_000
    got = download_corpus(7, tmp_path/'out', base_url=f'{server.url}/api/records', progress=False)
    assert got == [tmp_path/'out'/'oulu-2024']
    assert check_corpus(got[0], progress=False).empty
    assert any(requested for _, requested in server.log), 'nothing was resumed'
    assert not list((tmp_path/'out').rglob('*.part'))
    n = len(server.log)
    (got[0]/'meta.csv').unlink()
    download_corpus('7', tmp_path/'out', base_url=f'{server.url}/api/records', progress=False)
    # unpacked again, not fetched
    assert (got[0]/'meta.csv').is_file()
    assert [p for p, _ in server.log[n:]] == ['/api/records/7']


def test_resume_after_the_process_died(server, tmp_path):
    data = np.random.default_rng(0).bytes(300_000)
    server.files = {'/x.bin': data}
    (tmp_path/'x.bin.part').write_bytes(data[:123_456])
    fetch(
        f'{server.url}/x.bin', tmp_path/'x.bin', md5=hashlib.md5(data).hexdigest(),
        progress=False,
    )
    assert server.log == [('/x.bin', 'bytes=123456-')]
    assert (tmp_path/'x.bin').read_bytes() == data


@pytest.mark.parametrize('part', [400_000, 300_000, 10])
def test_resume_where_it_cannot(server, tmp_path, part):
    "A longer or finished .part, and a server without ranges"
    data = np.random.default_rng(0).bytes(300_000)
    server.files, server.ranges = {'/x.bin': data}, part != 10
    (tmp_path/'x.bin.part').write_bytes((data*2)[:part])
    fetch(
        f'{server.url}/x.bin', tmp_path/'x.bin', md5=hashlib.md5(data).hexdigest(),
        progress=False,
    )
    assert (tmp_path/'x.bin').read_bytes() == data
    assert len(server.log) == (2 if part == 400_000 else 1)


def test_wrong_sum_leaves_nothing(server, tmp_path):
    "A .part of another file: the sum shows it, the next attempt starts from the beginning"
    data = np.random.default_rng(0).bytes(300_000)
    server.files = {'/x.bin': data}
    (tmp_path/'x.bin.part').write_bytes(bytes(1000))
    md5 = hashlib.md5(data).hexdigest()
    with pytest.raises(InputError, match='its MD5 is not'):
        fetch(f'{server.url}/x.bin', tmp_path/'x.bin', md5=md5, progress=False)
    assert not list(tmp_path.iterdir())
    fetch(f'{server.url}/x.bin', tmp_path/'x.bin', md5=md5, progress=False)


def test_download_words(server, tmp_path, monkeypatch):
    record(server, tmp_path)
    api = f'{server.url}/api/records'
    with pytest.raises(InputError, match='unknown corpus .tau1999.: .* did you mean tau2019'):
        download_corpus('tau1999', tmp_path)
    with pytest.raises(InputError, match='could not ask'):
        download_corpus(8, tmp_path, base_url=api)
    server.files['/api/records/9'] = b'{"message": "gone"}'
    with pytest.raises(InputError, match='is not a record with files'):
        download_corpus(9, tmp_path, base_url=api)
    del server.files['/api/records/7/files/oulu-2024.meta.zip/content']
    with pytest.raises(
        InputError, match='could not fetch oulu-2024.meta.zip from .* the server answered 404'
    ):
        download_corpus(7, tmp_path/'out', base_url=api, progress=False)
    monkeypatch.setattr(
        'asc.data.get.shutil.disk_usage', lambda _: type('u', (), dict(free=1000))
    )
    with pytest.raises(InputError, match='has 0 GB free'):
        download_corpus(7, tmp_path/'out2', base_url=api, progress=False)


def test_no_network(tmp_path):
    with pytest.raises(InputError, match='no connection to the server.*by hand'):
        fetch('http://127.0.0.1:9/x', tmp_path/'x', progress=False)
    with pytest.raises(InputError, match='could not ask http://127.0.0.1:9/3819968'):
        download_corpus('tau2020', tmp_path, base_url='http://127.0.0.1:9')


def test_unpack_goes_on_and_refuses(tmp_path):
    z = tmp_path/'a.zip'
    z.write_bytes(zipped({'c/a': 'A'*1000, 'c/b': 'B'*1000}))
    (tmp_path/'c').mkdir()
    (tmp_path/'c'/'a').write_text('short')
    unpack(z, tmp_path, progress=False)
    assert (tmp_path/'c'/'a').read_text() == 'A'*1000
    b = bytearray(z.read_bytes())
    b[100] ^= 255
    z.write_bytes(b)
    (tmp_path/'c'/'a').unlink()
    with pytest.raises(InputError, match='c/a of .* cannot be unpacked'):
        unpack(z, tmp_path, progress=False)
    assert sorted(p.name for p in (tmp_path/'c').iterdir()) == ['b']
    z.write_bytes(b'PK')
    with pytest.raises(InputError, match='cannot be unpacked'): unpack(z, tmp_path)
