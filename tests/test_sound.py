"""Every door hears one sound alike: one rule for samples, one for windows, files read onwards, any rate."""
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch

import launch
from asc.core import InputError
from asc.cli import main
from asc.data.corpus import load_corpus
from asc.data.reading import Sound, whole_sound
from asc.data.samples import to_int16
from asc.data.reading import read_int16
from asc.data.sound import scan_wavs
from asc.data.store import pack
from asc.frontend.mel import Resample
from asc.frontend.windows import SoundWindows, cut
from asc.model.classifier import create_classifier, save_model
from asc.train.clips import ClipData
from asc.train.learner import predictions
from asc.use.demo import _Ear
from asc.use.devices import read_start
from asc.use.predict import predict, predict_stream

RATE = 44100
ASC = launch.BIN/'asc'


def noise(seconds, rate=RATE, channels=1, seed=0):
    "Coloured noise (N, channels)"
    x = np.random.default_rng(seed).normal(0, 1, (round(seconds*rate), channels))
    x = np.apply_along_axis(np.convolve, 0, x, np.hanning(9), 'same')
    return .5*x/np.abs(x).max()


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "A run folder and its network, which hears differences"
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('models')
    (folder/'run').mkdir()
    model = create_classifier('cnn3', 'cnn3', 'none', RATE).eval()
    with torch.no_grad():
        for p in model.backbone.parameters(): p += .05*torch.randn_like(p)
    save_model(model, folder/'run')
    return folder/'run', model


# ---------------------------------------------------------------- one rule for windows
def test_stream_is_heard_to_its_end(models):
    "Blocks of any size and type; the last answer is for the end of the stream"
    x = to_int16(noise(2.2))[:, 0]
    heard = predict(models[0], (x, RATE), windows=True, hop=.5)
    for blocks in (np.array_split(x, 13), np.array_split(x/32768, 500), [x[:, None], x[:0]]):
        answers = list(predict_stream(models[0], blocks, RATE, hop=.5))
        assert [second for second, _ in answers] == pytest.approx([1, 1.5, 2, 2.2])
        got = [list(p.values()) for _, p in answers]
        assert np.allclose(got, heard.iloc[:, 3:], atol=1e-5)
    with pytest.raises(InputError, match='the stream ended after 0.5 s, and the model hears 1 s'):
        list(predict_stream(models[0], [x[:RATE//2]], RATE))


@pytest.mark.parametrize('seed', range(5))
def test_cut_is_what_it_says(seed):
    "Any blocks, windows and hops, against slices of the whole"
    rng = np.random.default_rng(seed)
    for _ in range(100):
        frames, n, step = rng.integers(1, 60), rng.integers(1, 25), rng.integers(1, 40)
        x = np.arange(frames)
        blocks = np.split(x, np.sort(rng.integers(0, frames + 1, rng.integers(0, 9))))
        starts = list(range(0, frames - n + 1, step)) or [0]
        if starts[-1] + n < frames: starts.append(frames - n)
        found = list(cut(blocks, n, step))
        assert [start for start, _ in found] == starts
        assert all((window == x[start:start + n]).all() for start, window in found)


# ---------------------------------------------------------------- files are read onwards
KINDS = {'mp3': ('MP3', None), 'ogg': ('OGG', 'VORBIS'), 'opus': ('OGG', 'OPUS'), 'flac': ('FLAC', 'PCM_24'),
         'wav': ('WAV', 'PCM_24'), 'ima.wav': ('WAV', 'IMA_ADPCM'), 'ms.wav': ('WAV', 'MS_ADPCM')}


@pytest.mark.parametrize('channels', [1, 2])
@pytest.mark.parametrize('kind', KINDS)
def test_windows_are_those_of_the_whole(tmp_path, kind, channels):
    "Overlapping windows of a file, sample for sample those of the file decoded at once, the last one too"
    format, subtype = KINDS[kind]
    path, rate = tmp_path/f'x.{kind}', 48000
    sf.write(path, noise(2.7, rate, channels), rate, subtype, format=format)
    with sf.SoundFile(path) as f:
        decoded = f.read(dtype='float32', always_2d=True)
    want = to_int16(decoded).mean(1, dtype='float32')/32768
    starts, waves = zip(*SoundWindows(path, rate, .5, .17))
    starts = np.round(np.concatenate(starts)*rate).astype(int)
    assert len(starts) == (len(want) - 24000)//8160 + 2 and starts[-1] == len(want) - 24000
    for start, wave in zip(starts, torch.cat(waves).numpy()): assert (wave == want[start:start + 24000]).all()


def test_lying_and_endless_files_take_no_memory(tmp_path, monkeypatch):
    "Headers of 2**63, 2**36 and 2**31 samples, and 4 GB of nothing, in 600 MB more than Python and torch take"
    x = to_int16(noise(1, 8000))
    sf.write(tmp_path/'a.flac', x, 8000)
    data = (tmp_path/'a.flac').read_bytes()
    rest = int.from_bytes(data[18:26], 'big') >> 36 << 36
    for name, total in (('unknown', 0), ('huge', 2**36 - 1)):
        (tmp_path/f'{name}.flac').write_bytes(data[:18] + (rest | total).to_bytes(8, 'big') + data[26:])
    sf.write(tmp_path/'sparse.wav', x, 8000)
    with open(tmp_path/'sparse.wav', 'r+b') as f:
        f.seek(40)
        f.write(struct.pack('<I', 2**32 - 100))
        f.truncate(2**32)
    code = f'''
import itertools, resource, sys
from asc.core import InputError
from asc.data.sound import scan_wavs
from asc.frontend.windows import SoundWindows
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
folder = {str(tmp_path)!r}
table = scan_wavs(folder, ['a.flac', 'unknown.flac', 'huge.flac', 'sparse.wav'], progress=False)
print(table.held.tolist(), table.fault.str[:9].tolist())
print(sum(len(starts) for starts, _ in SoundWindows(folder + '/unknown.flac', 8000)))
print(sum(len(starts) for starts, _ in itertools.islice(SoundWindows(folder + '/sparse.wav', 44100), 30)))
try: list(SoundWindows(folder + '/huge.flac', 8000))
except InputError as e: print(e)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=launch.environment())
    lines = done.stdout.splitlines()
    assert lines[0] == f"[8000, 8000, 8000, {(2**32 - 100)//2}] ['', '', 'truncated', 'wrong len']", done.stderr
    assert lines[1:3] == ['1', str(30*64)], done.stderr
    assert 'huge.flac: truncated (the header promises 68719476735 samples, 8000 are there)' in lines[3]
    assert lines[4] == 'True', lines
    assert read_start(tmp_path/'sparse.wav')[0].shape == (1, 60*8000)
    monkeypatch.setattr('asc.data.reading.LONGEST', 2**20)
    with pytest.raises(InputError, match='too long to be heard as a whole'): whole_sound(tmp_path/'sparse.wav')


@pytest.mark.parametrize('rate', [44_056, 11_127, 44_101, 96_001, 4001, 767_999])
@pytest.mark.parametrize('new', [44_100, 32_000])
def test_awkward_rates(rate, new):
    "A tone comes out as the same tone at the other rate, and no filter is large"
    resample = Resample(rate, new)
    t, u = (np.arange(hz)/hz for hz in (rate, new))
    y = resample(torch.tensor(np.sin(2*np.pi*440*t), dtype=torch.float32)[None])[0].numpy()
    assert len(y) == new
    inside = slice(new//20, -new//20)
    assert np.abs(y - np.sin(2*np.pi*440*u))[inside].max() < 2*np.pi*440*1e-5
    assert len(resample.rows.col) < 1_000_000


# ---------------------------------------------------------------- one rule for samples
@pytest.fixture(scope='module')
def loud(synthetic, tmp_path_factory):
    "60 clips of the synthetic corpus as floats, many of them far beyond full scale"
    folder = tmp_path_factory.mktemp('loud')/'loud'
    (folder/'audio').mkdir(parents=True)
    meta = pd.read_csv(synthetic/'meta.csv', sep='\t').iloc[::30][:60]
    meta.to_csv(folder/'meta.csv', sep='\t', index=False)
    for i, name in enumerate(meta.filename):
        x, rate = sf.read(synthetic/name)
        sf.write(folder/name, x/np.abs(x).max()*(.9 + i % 4), rate, 'FLOAT')
    return folder


def test_prediction_hears_what_training_hears(loud, models, tmp_path):
    "60 of 60 decisions, and the same probabilities, from the store and from the files"
    corpus = load_corpus(loud)
    store = pack(corpus, tmp_path, progress=False)
    trained = predictions(models[1], ClipData(store, corpus.meta, models[1].scenes, corpus.devices))
    table = predict(models[0], [loud/name for name in corpus.meta.filename])
    scenes = models[1].scenes
    assert np.abs(table[scenes].to_numpy() - trained[scenes].to_numpy()).max() < 1e-5
    wave = store.batch(store.index(corpus.meta.filename[3:4]))[0]
    assert (whole_sound(loud/corpus.meta.filename[3])[0]*32768 == wave).all()


def test_samples_beyond_full_scale_are_counted(loud, models):
    "By the table of predictions, and by the scan that the check of a corpus begins with, which needs no deep look"
    names = load_corpus(loud).meta.filename
    want = {str(loud/name): int((np.abs(sf.read(loud/name)[0]) > 1).sum()) for name in names}
    table = predict(models[0], list(want))
    said = {name: f'{count:,} samples beyond full scale were cut to it' for name, count in want.items() if count}
    assert len(said) > 20 and {name: words for name, (words,) in table.attrs['remarks'].items()} == said
    assert scan_wavs(loud, names, progress=False).clipped.tolist() == list(want.values())
    note = _Ear({'run': models[0]}, '', 60.).note(1, 7, [])
    assert note == '7 samples beyond full scale were cut to it.'


def test_genuine_clips(shared):
    "24-bit clips of TAU: prediction and the store take the same samples, and no file is at fault"
    clips = sorted((shared/'data/tau-samples').glob('*.wav'))
    for path in clips:
        samples, rate = whole_sound(path)
        assert (samples*32768 == read_int16(path, rate)).all()
    assert (scan_wavs(clips[0].parent, [p.name for p in clips], deep=True, progress=False).fault == '').all()


def test_all_real_files_are_sound(shared):
    "Impulse responses and recordings of two corpora, as others wrote them"
    for folder in ('micirp', 'ambience/source', 'other/source'):
        files = sorted((shared/'data'/folder).rglob('*.*'))[:40]
        for path in files:
            if path.suffix.lower() not in ('.wav', '.flac'): continue
            with sf.SoundFile(path) as f: whole = f.read(dtype='float32', always_2d=True)
            sound = Sound(path)
            assert sum(map(len, sound)) == len(whole) and sound.clipped == (np.abs(whole) > 1).sum(), path


# ---------------------------------------------------------------- the command
@pytest.fixture(scope='module')
def sounds(tmp_path_factory):
    "A folder of wavs, and what lies beside wavs"
    folder = tmp_path_factory.mktemp('sounds')
    for name in ('a.wav', 'b.WAV', 'z.flac'):
        sf.write(folder/name, to_int16(noise(1)), RATE, format='FLAC' if name.endswith('flac') else 'WAV')
    sf.write(folder/'loud.wav', noise(1)*3, RATE, 'FLOAT')
    sf.write(folder/'third.wav', noise(.3), RATE)
    (folder/'memo.m4a').write_bytes(b'\0\0\0\x20ftypM4A ' + bytes(999))
    (folder/'broken.flac').write_bytes((folder/'z.flac').read_bytes()[:5000])
    (folder/'notes.txt').write_text('no sound')
    os.mkfifo(folder/'pipe.wav')
    return folder


def command(capsys, *words):
    "What `asc` prints, what it says on the standard error, and its exit code"
    try: main([str(word) for word in words])
    except SystemExit as e: return *capsys.readouterr(), e.code
    return *capsys.readouterr(), 0


def test_command_names_what_it_leaves_out(models, sounds, capsys):
    "Five answers, three names, and a code that scripts can trust"
    printed, said, code = command(capsys, 'predict', models[0], sounds, '--format', 'json')
    assert code == 1
    answered = [os.path.basename(row['file']) for row in json.loads(printed)]
    assert answered == ['a.wav', 'b.WAV', 'loud.wav', 'third.wav', 'z.flac']
    assert '3 of 8 sounds could not be read:' in said
    for words in ('memo.m4a: unreadable (Format not recognised); mend it, convert it to wav', 'broken.flac: ',
                  'pipe.wav: is a named pipe', 'third.wav: 0.3 s were repeated to fill 1 s',
                  'samples beyond full scale were cut to it', '2 of 8 sounds were not heard as they are:'):
        assert words in said
    assert 'notes' not in said


def test_exit_codes(models, sounds, tmp_path, capsys):
    assert command(capsys, 'predict', models[0], sounds/'a.wav', sounds/'b.WAV')[2] == 0
    _, said, code = command(capsys, 'predict', models[0], sounds/'memo.m4a', tmp_path/'nowhere.wav')
    assert code == 2
    assert 'memo.m4a: unreadable' in said and 'and 1 more of 2 sounds' in said


def test_names_that_are_no_utf8(models, tmp_path, capsys):
    "A byte that no encoding of the terminal knows does not cost the answers"
    path = os.fsencode(tmp_path) + b'/caf\xe9.wav'
    sf.write(tmp_path/'x.wav', noise(1), RATE)
    os.rename(tmp_path/'x.wav', path)
    printed, _, code = command(capsys, 'predict', models[0], tmp_path)
    assert code == 0 and 'caf\\udce9.wav' in printed
    assert command(capsys, 'predict', models[0], tmp_path, '--out', tmp_path/'x.csv')[2] == 0
    assert 'caf\\udce9.wav' in (tmp_path/'x.csv').read_text(encoding='utf-8')


@pytest.mark.parametrize('words', ['predict {run} {sounds} --windows --hop .01 --format csv', 'predict --help'])
def test_a_closed_pipe_ends_quietly(models, sounds, words, monkeypatch):
    "Nobody reads on: the command ends with the code of a broken pipe, and nothing is left to be written"
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, 'w') as out:
        monkeypatch.setattr(sys, 'stdout', out)
        with pytest.raises(SystemExit) as end: main(words.format(run=models[0], sounds=sounds/'a.wav').split())
    assert end.value.code == 141


def test_head():
    "`asc … | head -1` says nothing on the standard error"
    done = subprocess.run(f'{ASC} --help | head -1', shell=True, capture_output=True, text=True,
                          env=launch.environment())
    assert len(done.stdout.splitlines()) == 1 and done.stderr == ''
