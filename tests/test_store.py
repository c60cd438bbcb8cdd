"What is packed is what was recorded; nothing half-made passes for a store; damage is seen."
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
import torchaudio

import asc.data.packing
import asc.data.pcm
import asc.data.proof
import asc.data.store
from asc.core import InputError, project_root
from asc.data.checking import check_corpus
from asc.data.corpus import load_corpus
from asc.data.layouts import META
from asc.data.names import ClipName
from asc.data.packing import chunks, store_layout
from asc.data.reading import read_int16
from asc.data.samples import to_int16
from asc.data.sound import scan_wavs
from asc.data.store import pack, Store
from noise import RATE, noise_corpus

SAMPLES = Path(os.environ.get('ASC_SHARED', project_root()/'..'/'shared'))/'data'/'tau-samples'


@pytest.fixture
def corpus(tmp_path):
    "Six recordings of four clips of noise"
    return noise_corpus(tmp_path/'c')


@pytest.fixture
def store(corpus, tmp_path):
    "The store of the corpus of noise"
    return pack(corpus, tmp_path/'s', progress=False)


def small_chunks(monkeypatch, clips=4):
    "Pack a few clips at a time"
    monkeypatch.setattr(asc.data.packing, 'CHUNK', clips*RATE)


# ---------------------------------------------------------------- samples

@pytest.mark.parametrize('subtype', ['PCM_16', 'PCM_24', 'PCM_32', 'PCM_U8', 'FLOAT', 'DOUBLE'])
def test_every_sample_is_there(subtype, tmp_path):
    "int16 as it is, anything finer to the nearest, for clips in any order"
    c = noise_corpus(tmp_path/'c', subtype=subtype)
    s = pack(c, tmp_path/'s', progress=False)
    names = c.meta.filename.sample(frac=1, random_state=0)
    x = s.batch(s.index(names))
    assert x.dtype == np.int16 and x.shape == (24, RATE)
    for name, y in zip(names, x):
        exact = sf.read(c.dir/name, dtype='float64')[0]*32768
        assert np.abs(y - exact).max() <= (0 if subtype in ('PCM_16', 'PCM_U8') else .5 + 1e-3)


def test_rounding_and_saturation():
    x = np.arange(-2**23, 2**23, 97, dtype=np.int64)
    want = np.minimum(np.floor(x/256 + .5), 32767)
    assert (to_int16((x*256).astype(np.int32)) == want).all()
    assert (to_int16(x/2**23) == want).all()
    assert (to_int16((x/2**23).astype(np.float32)) == want).all()
    assert to_int16(np.array([2., -2.])).tolist() == [32767, -32768]


def test_genuine_tau_snippets(tmp_path):
    "24-bit files as published, against their raw bytes"
    if not SAMPLES.is_dir(): pytest.skip('no TAU snippets here')
    (tmp_path/'c').mkdir()
    (tmp_path/'c'/'audio').symlink_to(SAMPLES.resolve())
    names = [ClipName.parse(p.name) for p in sorted(SAMPLES.glob('*.wav'))]
    (tmp_path/'c'/'meta.csv').write_text(
        '\r\n'.join(
            ['\t'.join(META)]
            + [f'{c}\t{c.scene}\t{c.city}-{c.location}\t{c.device}' for c in names]
        )
    )
    s = pack(load_corpus(tmp_path/'c'), tmp_path/'s', progress=False)
    assert (s.rate, s.clip_len, len(s)) == (44100, 44100, 7)
    for c, y in zip(names, s.batch(s.index(map(str, names)))):
        data = (tmp_path/'c'/str(c)).read_bytes()[-132300:]
        raw = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.int64)
        x = raw[:, 0] | raw[:, 1] << 8 | raw[:, 2].astype(np.int8).astype(np.int64) << 16
        assert (y == np.minimum((x + 128) >> 8, 32767)).all()


def test_a_decoder_that_returns_less_is_noticed(tmp_path):
    for subtype in ('PCM_16', 'PCM_24', 'FLOAT'):
        sf.write(tmp_path/'x.wav', np.zeros(RATE), RATE, subtype)
        (tmp_path/'x.wav').write_bytes((tmp_path/'x.wav').read_bytes()[:1000])
        with pytest.raises(ValueError, match=r'truncated \(\d+ of 800'):
            read_int16(tmp_path/'x.wav', RATE)


def test_longer_recordings_are_cut(tmp_path):
    "10-s files may be up to one per cent too long, clips with a snippet number may not"
    c = noise_corpus(tmp_path/'c', snippets=1)
    long = c.dir/c.meta.filename[2]
    sf.write(long, np.append(sf.read(long)[0], [.5]*8), RATE)
    s = pack(c, tmp_path/'s', progress=False)
    assert s.clip_len == RATE and (s.batch([2])[0] == read_int16(long, RATE)).all()
    sf.write(long, np.zeros(RATE + 9), RATE)
    with pytest.raises(InputError, match='wrong length .809 samples'):
        pack(c, tmp_path/'s', progress=False)


def test_resampled_over_the_seams(tmp_path):
    "A stretch is resampled whole, from what the store at the corpus' rate holds"
    c = noise_corpus(tmp_path/'c', skip=[(0, 1)])
    s, half = (pack(c, tmp_path/'s', rate=r, progress=False) for r in (None, 500))
    assert half.clip_len == 500
    assert half.rate == 500
    assert s.folder != half.folder
    for (_, a), (_, b) in zip(s.recordings.iterrows(), half.recordings.iterrows()):
        x = torch.from_numpy(s.flat[a.offset:a.offset + a.frames]/np.float32(32768))
        y = half.flat[b.offset:b.offset + b.frames]
        assert (y == to_int16(torchaudio.transforms.Resample(RATE, 500)(x).numpy())).all()
        # its kernel is of single precision
        other = to_int16(torchaudio.functional.resample(x, RATE, 500).numpy()).astype(int)
        assert np.abs(y - other).max() <= 1
    alone = to_int16(
        torchaudio.functional.resample(
            torch.from_numpy(s.batch([5])[0]/np.float32(32768)), RATE, 500
        ).numpy()
    )
    assert np.abs(half.batch([5])[0][10:-10].astype(int) - alone[10:-10]).max() <= 1


def test_a_rate_that_does_not_fit(tmp_path):
    with pytest.raises(InputError, match='a clip of 799 samples at 800 Hz is no whole number'):
        pack(noise_corpus(tmp_path/'c', n=799), tmp_path/'s', rate=500, progress=False)
    assert not list((tmp_path/'s').glob('c-*'))


# ---------------------------------------------------------------- order and windows

def test_layout_and_windows(tmp_path):
    "Recordings lie together in the order of time; a missing snippet ends a stretch; windows are slices"
    # snippet 10 sorts after 9
    c = noise_corpus(tmp_path/'c', recs=14, snippets=12, skip=[(0, 1), (3, 0), (4, 11)])
    c.meta = c.meta.sample(frac=1, random_state=0).reset_index(drop=True)
    s, rng = pack(c, tmp_path/'s', progress=False), np.random.default_rng(0)
    assert (s.rows.groupby('stretch').snippet.agg(lambda k: (k.diff().dropna() == 1).all())).all()
    assert sorted(s.recordings.frames//RATE) == [1, 10, 11, 11] + [12]*11
    assert s.recordings.frames.sum() == len(s)*RATE
    assert (s.rows.offset.diff().dropna() == RATE).all()
    assert (s.rows.frames == RATE).all()
    whole = {}
    for name, r in zip(s.rows.filename, s.rows.stretch):
        whole.setdefault(r, []).append(read_int16(c.dir/name, RATE))
    whole = {r: np.concatenate(x) for r, x in whole.items()}
    rec = rng.integers(0, len(s.recordings), 200)
    start = [rng.integers(0, len(whole[r]) - RATE + 1) for r in rec]
    for r, a, x in zip(rec, start, s.windows(rec, start, RATE)):
        assert (x == whole[r][a:a + RATE]).all()
    for r, a, n in [(0, -1, 5), (0, 1, RATE), (len(s.recordings) - 1, 12*RATE - 4, 5)]:
        with pytest.raises(InputError, match='leaves'): s.windows([r], [a], n)


def test_chunks_cover_and_keep_stretches_whole():
    rng = np.random.default_rng(0)
    for _ in range(50):
        stretch = np.repeat(np.arange(30), rng.integers(1, 12, 30))
        got = chunks(stretch, asc.data.packing.CHUNK//rng.integers(1, 30))
        assert [a for a, _ in got] == [0, *(b for _, b in got[:-1])]
        assert got[-1][1] == len(stretch)
        assert all(stretch[b - 1] != stretch[b] for _, b in got[:-1])


def test_reading(store, corpus):
    names = corpus.meta.filename.tolist()
    positions = store.index(names)
    assert (store.batch(torch.from_numpy(positions[:3])) == store.flat.reshape(-1, RATE)[positions[:3]]).all()
    assert store.batch(np.empty(0, int)).shape == (0, RATE)
    x = store.batch(positions[:1])
    x[:] = 0  # a copy: the store stays
    assert store.batch(positions[:1]).any()
    with pytest.raises(ValueError): store.flat[0] = 1
    for bad in ([-1], [24], [0, 99]):
        with pytest.raises(IndexError): store.batch(bad)
    with pytest.raises(InputError, match='2 of 3 clips are not in c-.*, such as audio/x.wav'):
        store.index([names[0], 'audio/x.wav', 'y'])
    store.close()


def test_reading_leaves_no_memory_behind(tmp_path):
    "The pages a batch is read from are not counted as this process's"
    status = Path('/proc/self/status')
    if not status.is_file() or not hasattr(os, 'preadv'):
        pytest.skip('Linux counts these pages')
    def mapped():
        return int(re.search(r'RssFile:\s+(\d+)', status.read_text())[1])*1024
    x = np.random.default_rng(0).integers(-2**15, 2**15, 1 << 24, '<i2')  # 34 MB
    x.tofile(tmp_path/'x.i16')
    s, before = asc.data.pcm.Samples(tmp_path/'x.i16'), mapped()
    got = np.concatenate(
        [s.take(np.arange(k, len(x), 1 << 19), 1 << 16) for k in range(0, 1 << 19, 1 << 16)]
    )
    assert mapped() - before < 4e6
    assert got.sum(dtype=np.int64) == x.sum(dtype=np.int64) == s.flat.sum(dtype=np.int64)


def test_a_file_cut_while_open(store):
    os.truncate(store.folder/'audio.i16', 5*RATE*2)
    with pytest.raises(InputError, match='ends before sample .* it was cut short'): store.batch([5])


# ---------------------------------------------------------------- faults

def harm(c, i, fault):
    "Damage the i-th sound file of a corpus"
    p = c.dir/c.meta.filename[i]
    if fault == 'missing':
        p.unlink()
    elif fault == 'empty':
        p.write_bytes(b'')
    elif fault == 'unreadable':
        p.write_bytes(b'no wav at all'*99)
    elif fault == 'truncated':
        p.write_bytes(p.read_bytes()[:1000])
    elif fault == 'not mono':
        sf.write(p, np.zeros((RATE, 2)), RATE)
    elif fault == 'wrong rate':
        sf.write(p, np.zeros(RATE), 2*RATE)
    elif fault == 'wrong length': sf.write(p, np.zeros(RATE - 1), RATE)


def test_all_faults_at_once(corpus, tmp_path):
    kinds = [
        'missing', 'empty', 'unreadable', 'truncated', 'not mono', 'wrong rate', 'wrong length'
    ]
    for i, fault in enumerate(kinds*2): harm(corpus, i, fault)
    with pytest.raises(InputError) as e: pack(corpus, tmp_path/'s', progress=False)
    text = str(e.value)
    assert text.startswith('14 of 24 sound files of')
    assert '… and 4 more' in text
    assert text.count('audio/') == 10
    listed = (tmp_path/'s'/'c-broken.txt').read_text().splitlines()
    assert len(listed) == 14
    assert [line.split('\t')[1].split(' (')[0] for line in listed] == kinds*2
    assert str(tmp_path/'s'/'c-broken.txt') in text
    assert not list((tmp_path/'s').glob('c-*/'))


@pytest.mark.parametrize(
    'fault,words', [('nan', 'holds NaN or infinite samples'), ('codec', 'unreadable')]
)
def test_faults_that_only_decoding_shows(corpus, tmp_path, fault, words):
    for i in (3, 20):
        p = corpus.dir/corpus.meta.filename[i]
        if fault == 'nan':
            sf.write(p, np.where(np.arange(RATE) == 5, np.nan, 0), RATE, 'FLOAT')
        else:
            b = bytearray(p.read_bytes())
            b[20:22] = b'\x55\x00'
            p.write_bytes(b)  # says it is MP3
    with pytest.raises(InputError, match='(?s)2 of 24 sound files.*' + words):
        pack(corpus, tmp_path/'s', progress=False)
    assert not list((tmp_path/'s').glob('c-*/'))


def test_mended_corpus_packs(corpus, tmp_path):
    good = (corpus.dir/corpus.meta.filename[0]).read_bytes()
    harm(corpus, 0, 'truncated')
    with pytest.raises(InputError, match='1 of 24'):
        pack(corpus, tmp_path/'s', progress=False)
    (corpus.dir/corpus.meta.filename[0]).write_bytes(good)
    assert len(pack(corpus, tmp_path/'s', progress=False)) == 24
    assert not (tmp_path/'s'/'c-broken.txt').exists()


def test_scan_is_by_majority(tmp_path):
    for i in range(5):
        sf.write(tmp_path/f'{i}.wav', np.zeros(100 if i < 3 else 50), 8000)
    scan = scan_wavs(tmp_path, [f'{i}.wav' for i in range(5)], progress=False)
    assert (scan.fault != '').tolist() == [False]*3 + [True]*2


# ---------------------------------------------------------------- never wrong

def tree(folder):
    "Name -> content of every file"
    return {p.name: p.read_bytes() for p in folder.iterdir()}

SCRIPT = '''
    import sys, time
    import asc.data.packing, asc.data.store
    from asc.data.corpus import load_corpus
    asc.data.packing.CHUNK = 4*800
    read = asc.data.packing.read_int16
    def slow(*a): time.sleep(.008); return read(*a)
    asc.data.packing.read_int16 = slow
    corpus = load_corpus(sys.argv[1])
    print('go', flush=True)
    print(asc.data.store.pack(corpus, sys.argv[2], progress=False).folder)
'''


def script(tmp_path, text, *args, **kw):
    "A plain script, without a __main__ guard, in a process of its own"
    (tmp_path/'script.py').write_text(textwrap.dedent(text))
    env = dict(os.environ, PYTHONPATH=str(project_root()), OMP_NUM_THREADS='1')
    return subprocess.Popen(
        [sys.executable, tmp_path/'script.py', *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        **kw,
    )


def noted(folder):
    "Whether an attempt has come so far that something of it is kept"
    return any(f.read_text() for f in folder.glob('c-*/progress')) or list(folder.glob('c-*/manifest.json'))


def test_kill_9_at_any_moment(tmp_path):
    "Killed again and again, at random; what is there is never a store, and the end is the same to the byte"
    c = noise_corpus(tmp_path/'c', recs=60, snippets=5)
    good = tree(pack(c, tmp_path/'good', progress=False).folder)
    rng = random.Random(0)
    kills = 0
    for attempt in range(4):
        p = script(tmp_path, SCRIPT, c.dir, tmp_path/'s')
        assert p.stdout.readline() == 'go\n'
        time.sleep(rng.uniform(.02, .25))
        while attempt == 3 and not noted(tmp_path/'s') and p.poll() is None: time.sleep(.005)
        p.send_signal(signal.SIGKILL)
        kills += p.wait() == -signal.SIGKILL
        p.communicate()
        for f in (tmp_path/'s').glob('c-*'):
            if not (f/'manifest.json').exists():
                with pytest.raises(InputError, match='is not a finished store'):
                    Store.open(f)
    assert kills >= 2
    assert noted(tmp_path/'s'), 'every attempt began anew'
    s = pack(c, tmp_path/'s', progress=False)
    mine = tree(s.folder)
    for f in ('audio.i16', 'rows.csv'): assert mine[f] == good[f]
    Store.open(s.folder, verify='full')


@pytest.mark.parametrize(
    'fault',
    ['torn line', 'lost bytes', 'no part', 'only file renamed', 'nonsense', 'rows written'],
)
def test_resume_from_any_state(fault, corpus, tmp_path, monkeypatch):
    "What a power cut may leave: progress says more or less than the file holds"
    small_chunks(monkeypatch)
    good = tree(pack(corpus, tmp_path/'good', progress=False).folder)
    def die(*_): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(asc.data.packing.Packing, 'finish', die)
        with pytest.raises(KeyboardInterrupt):
            pack(corpus, tmp_path/'s', progress=False)
    f = next((tmp_path/'s').glob('c-*'))
    log = f/'progress'
    assert len(log.read_text().splitlines()) == 6
    if fault == 'torn line': log.write_text(log.read_text()[:-5])
    if fault == 'lost bytes':
        with open(f/'audio.part', 'r+b') as p:
            p.seek(10_000)
            p.write(bytes(3000))
    if fault == 'no part': (f/'audio.part').unlink()
    if fault == 'only file renamed': (f/'audio.part').rename(f/'audio.i16')
    if fault == 'nonsense': log.write_text('0 4 17\n99 120 5\n' + log.read_text())
    if fault == 'rows written':
        (f/'audio.part').rename(f/'audio.i16')
        (f/'rows.csv').write_text('half')
    decoded = []
    read = asc.data.packing.read_int16
    monkeypatch.setattr(
        asc.data.packing, 'read_int16', lambda p, *a: (decoded.append(p), read(p, *a))[1]
    )
    assert tree(pack(corpus, tmp_path/'s', progress=False).folder) == good
    # only what was lost is done again
    assert len(decoded) == {'torn line': 4, 'lost bytes': 8, 'no part': 24}.get(fault, 0)


def test_two_at_once(tmp_path):
    "Two processes pack one corpus: one does, the other waits and opens"
    c = noise_corpus(tmp_path/'c', recs=60, snippets=5)
    ps = [script(tmp_path, SCRIPT, c.dir, tmp_path/'s') for _ in range(2)]
    out = [p.communicate(timeout=60) for p in ps]
    assert [p.returncode for p in ps] == [0, 0], out
    assert len({o.split('\n')[-2] for o, _ in out}) == 1
    assert sum('another process is packing' in o for o, _ in out) <= 1
    assert len(list((tmp_path/'s').glob('c-*'))) == 1


def test_disk_full(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(
        asc.data.store.shutil, 'disk_usage', lambda _: type('u', (), dict(free=1000))
    )
    with pytest.raises(InputError, match=r'could not pack into .*0.00 GB are free.*store_dir'):
        pack(corpus, tmp_path/'s', progress=False)
    assert not list((tmp_path/'s').glob('c-*/*'))


def test_disk_full_on_the_way(tmp_path):
    "The system refuses to write past 20 kB: words, no store; with room again it goes on"
    c = noise_corpus(tmp_path/'c')
    limit = '    import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n'
    p = script(tmp_path, limit + SCRIPT, c.dir, tmp_path/'s')
    err = p.communicate(timeout=60)[1]
    assert p.returncode == 1
    assert 'InputError: could not pack into' in err
    assert 'File too large' in err
    assert not list((tmp_path/'s').glob('c-*/manifest.json'))
    assert len(pack(c, tmp_path/'s', progress=False)) == 24


def test_read_only_place(corpus, tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(InputError, match='could not pack into'):
        pack(corpus, tmp_path/'file', progress=False)


DAMAGE = {
    'flipped byte': (
        lambda f: flip(f/'audio.i16', 20_000), 'audio.i16 is damaged between clips 12 and 16'
    ),
    'short file': (
        lambda f: os.truncate(f/'audio.i16', 1000),
        'audio.i16 has 1000 bytes, the manifest says 38400',
    ),
    'long file': (lambda f: os.truncate(f/'audio.i16', 50_000), 'audio.i16 has 50000 bytes'),
    'no file': (lambda f: (f/'audio.i16').unlink(), 'audio.i16 has 0 bytes'),
    'no manifest': (
        lambda f: (f/'manifest.json').unlink(),
        r'is not a finished store \(manifest.json is missing\)',
    ),
    'no rows': (
        lambda f: (f/'rows.csv').unlink(), r'is not a finished store \(rows.csv is missing\)'
    ),
    'rows changed': (
        lambda f: (f/'rows.csv').write_text(
            (f/'rows.csv').read_text().replace('-0-a.wav', '-9-a.wav')
        ),
        'rows.csv belongs to another corpus',
    ),
    'manifest edited': (
        lambda f: (f/'manifest.json').write_text(
            (f/'manifest.json').read_text().replace('"rate": 800', '"rate": 900')
        ),
        'manifest.json was changed',
    ),
    'manifest torn': (
        lambda f: (f/'manifest.json').write_text((f/'manifest.json').read_text()[:90]),
        'manifest.json is damaged',
    ),
    'not a folder': (lambda f: shutil.rmtree(f), 'no store at'),
}


def flip(path, offset):
    "Change a byte of a file"
    with open(path, 'r+b') as f:
        f.seek(offset)
        b = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([b ^ 1]))


@pytest.mark.parametrize('kind', DAMAGE)
def test_damage_is_seen(kind, corpus, tmp_path, monkeypatch):
    small_chunks(monkeypatch)
    f = pack(corpus, tmp_path/'s', progress=False).folder
    Store.open(f, verify='full')
    do, words = DAMAGE[kind]
    do(f)
    with pytest.raises(InputError, match=words): Store.open(f, verify='full')
    with pytest.raises(InputError, match=words):
        Store.open(f)  # six chunks: the fast look sees them all


def test_another_corpus_manifest(corpus, store, tmp_path):
    other = pack(noise_corpus(tmp_path/'d', seed=1), tmp_path/'s', progress=False)
    shutil.copy(other.folder/'manifest.json', store.folder)
    with pytest.raises(InputError, match='is damaged|belongs to another corpus'):
        Store.open(store.folder)
    shutil.copy(other.folder/'rows.csv', store.folder)
    with pytest.raises(InputError, match='is damaged'):
        pack(corpus, tmp_path/'s', progress=False)
    with pytest.raises(InputError, match="verify='slow'"):
        Store.open(other.folder, verify='slow')


def test_fast_looks_at_samples_full_at_all(tmp_path, monkeypatch):
    small_chunks(monkeypatch, 1)
    monkeypatch.setattr(asc.data.proof, 'SMALL_STORE', 1000)
    f = pack(noise_corpus(tmp_path/'c', recs=64, snippets=1), tmp_path/'s', progress=False).folder
    flip(f/'audio.i16', RATE*2*5)
    Store.open(f)
    with pytest.raises(InputError, match='between clips 5 and 6'):
        Store.open(f, verify='full')


def test_a_changed_corpus_is_another_store(corpus, store, tmp_path):
    stat = os.stat(corpus.dir/corpus.meta.filename[0])
    os.utime(corpus.dir/corpus.meta.filename[0], ns=(0, stat.st_mtime_ns + 1000))
    again = pack(corpus, tmp_path/'s', progress=False)
    assert again.folder != store.folder and (again.flat == store.flat).all()
    os.utime(corpus.dir/corpus.meta.filename[0], ns=(0, stat.st_mtime_ns))
    # the old one is still there
    assert pack(corpus, tmp_path/'s', progress=False).folder == store.folder
    # the own rate by its number
    assert pack(corpus, tmp_path/'s', rate=800, progress=False).folder == store.folder


def test_sound_files_may_go_afterwards(corpus, store, tmp_path):
    shutil.rmtree(corpus.dir/'audio')
    assert pack(corpus, tmp_path/'s', progress=False).folder == store.folder
    with pytest.raises(InputError, match='24 of 24 sound files'):
        pack(corpus, tmp_path/'s', rate=400, progress=False)


def test_manifest_says_what_was_done(store):
    m = json.loads((store.folder/'manifest.json').read_text())
    assert (m['corpus'], m['rate'], m['source_rate'], m['clips'], m['resampling']) == (
        'c', 800, 800, 24, 'none'
    )
    assert store.folder.name == f"c-{m['key']}"
    assert store.key == m['key']
    assert 'halves up' in m['rounding']
    assert {'filename', 'recording', 'offset', 'frames', 'size', 'mtime'} <= set(store.rows)


def test_evaluation_set(tmp_path):
    "Names without a grammar, no labels; a file may be one per cent too long"
    (tmp_path/'c'/'audio').mkdir(parents=True)
    for i in range(12):
        sf.write(tmp_path/'c'/'audio'/f'{i}.wav', np.full(RATE + (i == 3), i/100), RATE)
    (tmp_path/'c'/'meta.csv').write_text(
        'filename\r\n' + '\r\n'.join(f'audio/{i}.wav' for i in range(12))
    )
    c = load_corpus(tmp_path/'c', kind='evaluation')
    s = pack(c, tmp_path/'s', progress=False)
    assert s.batch(s.index(c.meta.filename))[:, 0].tolist() == [
        sf.read(c.dir/n, dtype='int16')[0][0] for n in c.meta.filename
    ]
    assert len(s.recordings) == 12
    assert check_corpus(tmp_path/'c', kind='evaluation', progress=False).empty


def test_default_place(tmp_path, monkeypatch):
    monkeypatch.setattr(asc.data.store, 'project_root', lambda: tmp_path)
    c = noise_corpus(tmp_path/'c')
    assert pack(c, progress=False).folder.parent == tmp_path/'data'/'store'


def test_real_corpus(tmp_path):
    d = project_root()/'data'/'ambience-small'
    if not d.is_dir(): pytest.skip('not built here')
    c = load_corpus(d)
    s = pack(c, tmp_path/'s', progress=False)
    names = c.meta.filename.sample(50, random_state=0)
    for name, x in zip(names, s.batch(s.index(names))):
        assert (x == sf.read(d/name, dtype='int16')[0]).all()
    assert len(store_layout(c.meta, 44100)) == len(s) == 1663
    assert len(s.recordings) > c.meta.recording.nunique()
