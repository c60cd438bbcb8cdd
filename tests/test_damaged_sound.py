"""Damaged and hostile sounds at every door: files from broken disks and writers, arrays of other scales."""
import io
import os
import struct
from functools import partial

import numpy as np
import pytest
import soundfile as sf
import torch

from asc.core import InputError
from asc.data.reading import Sound, read_int16, whole_sound
from asc.data.sound import scan_wavs
from asc.frontend.windows import SoundWindows
from asc.load import OpenModel
from asc.use.devices import read_start
from asc.use.predict import predict, predict_stream
from nodes import NODES, folder, nothing

RATE = 8000
NOISE = np.random.default_rng(0).uniform(-.5, .5, RATE)
TRUE = float(np.square(NOISE).mean())


def levels(wave, devices):
    "The mean square of a window against a half, as if they were logits"
    level = wave.square().mean(1).log()
    return torch.stack([level, torch.full_like(level, .5).log()], 1)


MODEL = OpenModel('levels', 'module', ['noise', 'half'], RATE, [], levels)


def level_of(table):
    "The mean square that the model has heard"
    p = table.noise.item()
    return .5*p/(1 - p)


def is_noise(table): return abs(level_of(table) - TRUE) < .02*TRUE


def is_nearly(table): return abs(level_of(table) - TRUE) < .3*TRUE


def wav(subtype='PCM_16', format='WAV', sound=NOISE, rate=RATE, endian=None):
    "The bytes of a sound file"
    file = io.BytesIO()
    sf.write(file, sound, rate, subtype, endian, format)
    return file.getvalue()


def put(data, at, new):
    "Bytes with others from a place on"
    return data[:at] + new + data[at + len(new):]


def chunk(tag, data): return tag + struct.pack('<I', len(data)) + data + b'\0'*(len(data) % 2)


def flac_of(total):
    "A FLAC whose header announces so many samples"
    data = wav('PCM_16', 'FLAC')
    rest = int.from_bytes(data[18:26], 'big') >> 36 << 36
    return put(data, 18, (rest | total).to_bytes(8, 'big'))


def with_size(size): return put(wav(), 40, struct.pack('<I', size))


LIST = chunk(b'LIST', b'INFO' + chunk(b'ICMT', b'made in a garden'))
SOUND = {
    'plain.wav': wav(), '24 bits.wav': wav('PCM_24'), '32 bits.wav': wav('PCM_32'), 'float.wav': wav('FLOAT'),
    'double.wav': wav('DOUBLE'), 'A-law.wav': wav('ALAW'), 'u-law.wav': wav('ULAW'), '8 bits.wav': wav('PCM_U8'),
    'IMA ADPCM.wav': wav('IMA_ADPCM'), 'MS ADPCM.wav': wav('MS_ADPCM'), 'RF64.wav': wav(format='RF64'),
    'extensible.wav': wav(format='WAVEX'), 'FLAC by content.wav': wav(format='FLAC'), 'wav by content.flac': wav(),
    'OGG by content.wav': wav('VORBIS', 'OGG'), 'no suffix': wav(), 'upper.WAV': wav(),
    'big endian.wav': wav(endian='BIG'),
    'LIST behind.wav': wav() + LIST, 'LIST before.wav': wav()[:12] + LIST + wav()[12:],
    'odd chunk.wav': wav()[:12] + chunk(b'junk', b'abc') + wav()[12:], 'odd tail.wav': wav() + chunk(b'junk', b'abc'),
    'half a sample.wav': wav() + b'\x07', 'RIFF size 0.wav': put(wav(), 4, bytes(4)),
    'trash behind.wav': wav() + b'\xff'*99,
    'RIFF size 2**32.wav': put(wav(), 4, b'\xff'*4), 'size 2**32.wav': with_size(2**32 - 1),
    'size 2**31.wav': with_size(2**31 - 1), 'sox pipe.wav': with_size(0x7ffff000),
    'bytes a second.wav': put(wav(), 28, bytes(4)),
    'aiff.aiff': wav(format='AIFF'), 'au.au': wav(format='AU'), 'caf.caf': wav(format='CAF'),
    'w64.w64': wav(format='W64'),
    'flac.flac': wav(format='FLAC'), '24 bits.flac': wav('PCM_24', 'FLAC'), 'unknown length.flac': flac_of(0),
    'name with % and ü.wav': wav(), 'sound.m4a': wav(), 'a.b.c.wav': wav(),
}
BROKEN = {
    'nothing.wav': b'', 'zeros.wav': bytes(5000), 'text.wav': b'hello '*500, 'text.au': b'hello '*500,
    'text.gsm': b'hello '*500, 'text.vox': b'hello '*500, 'text.raw': b'hello '*500, 'html.wav': b'<html>404</html>',
    'header.wav': wav()[:44], 'half a header.wav': wav()[:30], '78 samples.wav': wav()[:200], 'half.wav': wav()[:9000],
    'one sample less.wav': wav()[:-2], 'half.aiff': wav(format='AIFF')[:9000], 'half.au': wav(format='AU')[:9000],
    'half.flac': wav(format='FLAC')[:5000], 'two to the 36.flac': flac_of(2**36 - 1),
    'ten more.flac': flac_of(RATE + 10),
    'hole.flac': put(wav(format='FLAC'), 5000, b'\x55'*400), 'no channels.wav': put(wav(), 22, bytes(2)),
    '65535 channels.wav': put(wav(), 22, b'\xff\xff'), 'rate 0.wav': put(wav(), 24, bytes(4)),
    'rate 1.wav': put(wav(), 24, struct.pack('<I', 1)), 'rate 3.wav': put(wav(), 24, struct.pack('<I', 3)),
    'rate 99.wav': put(wav(), 24, struct.pack('<I', 99)), 'rate 2**31.wav': put(wav(), 24, struct.pack('<I', 2**31)),
    'rate 2**31 - 1.wav': put(wav(), 24, struct.pack('<I', 2**31 - 1)),
    'rate 10**6.wav': put(wav(), 24, struct.pack('<I', 10**6)),
    'no fmt.wav': put(wav(), 12, b'junk'), 'unknown codec.wav': put(wav(), 20, b'\x99\x99'), 'size 0.wav': with_size(0),
    'size 10.wav': with_size(10), 'no data.wav': put(wav(), 36, b'dada'), 'NaN.wav': wav('FLOAT', sound=NOISE*np.nan),
    'one NaN.wav': wav('FLOAT', sound=np.append(NOISE, np.nan)), 'infinity.wav': wav('FLOAT', sound=NOISE*np.inf),
    'one 1e29.wav': wav('FLOAT', sound=np.append(NOISE, 1e29)), '1e300.wav': wav('DOUBLE', sound=NOISE*1e300),
    'int16 scale.wav': wav('FLOAT', sound=np.round(NOISE*32768)),
    'quiet int16 scale.wav': wav('FLOAT', sound=np.round(NOISE*9)),
    'times 100.wav': wav('DOUBLE', sound=NOISE*100), 'voice memo.m4a': b'\0\0\0\x20ftypM4A ' + bytes(999),
    'old.wma': b'\x30\x26\xb2\x75' + bytes(999), 'empty.flac': wav(format='FLAC', sound=NOISE[:0]),
    'empty.aiff': wav(format='AIFF', sound=NOISE[:0]), 'half.ogg': wav('VORBIS', 'OGG')[:3000],
    'no head.mp3': b'ID3' + bytes(3000), 'zip.wav': b'PK\3\4' + bytes(999), 'short.wav': wav(sound=NOISE[:78]),
    'upside down.wav': wav(sound=np.stack([NOISE, -NOISE], 1)),
    'just too short.wav': wav(sound=NOISE[:RATE//10 - 1]),
    '100 channels.wav': wav(sound=np.tile(NOISE[:200, None], 100)),
}


@pytest.fixture(params=SOUND)
def sound_file(request, tmp_path):
    path = tmp_path/request.param
    path.write_bytes(SOUND[request.param])
    return path


@pytest.fixture(params=BROKEN)
def broken_file(request, tmp_path):
    path = tmp_path/request.param
    path.write_bytes(BROKEN[request.param])
    return path


def test_unusual_files_are_heard(sound_file, damage):
    damage('sound file, predict', lambda: predict(MODEL, sound_file), [sound_file],
           is_nearly if 'MS' in sound_file.name or 'OGG' in sound_file.name else is_noise)


def test_unusual_files_are_sound_to_the_scan(sound_file, damage):
    "A wav that libsndfile decodes whole has no fault, and the store takes the same samples as prediction"
    frames = len(whole_sound(sound_file)[0])

    def scan():
        table = scan_wavs(sound_file.parent, [sound_file.name], deep=True, progress=False)
        return table.fault[0], table.rate[0], table.channels[0], table.held[0]
    damage('sound file, scan', scan, right=lambda found: found == ('', RATE, 1, frames))
    assert (read_int16(sound_file, frames)/np.float32(32768) == whole_sound(sound_file)[0]).all()


def test_broken_files_are_refused(broken_file, damage):
    damage('broken sound file, predict', lambda: predict(MODEL, broken_file), [broken_file])


def test_broken_files_are_found_by_the_scan(broken_file, damage):
    "Among sound files; what a file holds that is not decoded shows when it is read"
    for i in range(3): (broken_file.parent/f'{i}.wav').write_bytes(SOUND['plain.wav'])
    names = ['0.wav', '1.wav', '2.wav', broken_file.name]

    def scan():
        fault = scan_wavs(broken_file.parent, names, deep=True, progress=False).fault[3]
        if fault: raise InputError(f'{broken_file}: {fault}; mend it')
    damage('broken sound file, scan', scan, [broken_file])


def test_a_broken_file_costs_only_itself(broken_file, damage):
    for name in ('a.wav', 'z.wav'): (broken_file.parent/name).write_bytes(SOUND['plain.wav'])
    table = predict(MODEL, broken_file.parent, unreadable='list')
    left = table.attrs['unreadable']
    seen = broken_file.suffix not in ('.gsm', '.vox', '.raw')           # these are no sounds by their name
    assert [os.path.basename(file) for file in table.file] == ['a.wav', 'z.wav']
    assert list(left) == [str(broken_file)]*seen
    if seen: damage('broken sound file, folder', lambda: predict(MODEL, broken_file.parent), [broken_file])


# ---------------------------------------------------------------- no regular files
@pytest.mark.parametrize('node', [nothing, *NODES])
@pytest.mark.parametrize('door', ['predict', 'scan', 'demo', 'store'])
def test_no_regular_file(node, door, damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path/'x.wav'
    node(path)

    def scan():
        fault = scan_wavs(tmp_path, ['x.wav'], progress=False).fault[0]
        if fault: raise InputError(f'{path}: {fault}; mend it')
    doors = dict(predict=partial(predict, MODEL, path), scan=scan, demo=partial(read_start, path),
                 store=partial(read_int16, path, 10))
    if door == 'store':
        with pytest.raises((ValueError, OSError)): read_int16(path, 10)
    else: damage('no regular file, sound', doors[door], ['x.wav'])


@pytest.mark.parametrize('node', [node for node in NODES if node is not folder])
def test_no_regular_file_in_a_folder(node, tmp_path, monkeypatch, damage):
    "It is named, and the others are answered"
    monkeypatch.chdir(tmp_path)
    (tmp_path/'a.wav').write_bytes(SOUND['plain.wav'])
    node(tmp_path/'x.wav')
    table = predict(MODEL, tmp_path, unreadable='list')
    assert is_noise(table) and list(table.attrs['unreadable']) == [str(tmp_path/'x.wav')]
    damage('no regular file, sound', lambda: predict(MODEL, [tmp_path/'a.wav', tmp_path/'x.wav']), ['x.wav'])


def test_folders(tmp_path, damage):
    "Behind links, in a circle, empty, hidden, of another case"
    (tmp_path/'far').mkdir()
    (tmp_path/'near').mkdir()
    (tmp_path/'far/a.WAV').write_bytes(SOUND['plain.wav'])
    (tmp_path/'near/.hidden.wav').write_bytes(b'')
    damage('folder of sounds', lambda: predict(MODEL, tmp_path/'near'), ['near'])
    (tmp_path/'near/link').symlink_to(tmp_path/'far')
    (tmp_path/'far/back').symlink_to(tmp_path/'near')
    damage('folder of sounds', lambda: predict(MODEL, tmp_path/'near'), right=is_noise)
    damage('folder of sounds', lambda: predict(MODEL, [tmp_path/'near', tmp_path/'near/link/a.WAV']), right=is_noise)


# ---------------------------------------------------------------- arrays
BYTES = np.round(NOISE*100 + 128)
ARRAYS = {
    'uint8': BYTES.astype('uint8'), 'int8': (NOISE*100).astype('int8'), 'uint16': (NOISE*9999 + 2**15).astype('uint16'),
    'uint32': (NOISE*9999 + 2**31).astype('uint32'), 'int64': (NOISE*32768).astype('int64'),
    'uint64': BYTES.astype('uint64'),
    'bool': NOISE > 0, 'complex': NOISE + 0j, 'complex64': (NOISE + 0j).astype('complex64'),
    'object': NOISE.astype(object),
    'half': NOISE.astype('float16'), 'long double': NOISE.astype('longdouble'), 'text': np.array(['a', 'b']),
    'bytes': b'0123', 'dates': np.array(['2026-01-01'], 'datetime64[s]'), 'records': np.zeros(9, [('a', 'f4')]),
    'int16 scale': NOISE*32768, 'int16 scale in float32': (NOISE*32768).astype('float32'), 'int32 scale': NOISE*2.**31,
    '8-bit scale': np.round(NOISE*100), 'quiet whole numbers': np.round(NOISE*9), '1e29': np.append(NOISE, 1e29),
    'NaN': np.append(NOISE, np.nan), 'infinity': np.append(NOISE, -np.inf),
    '16 bits in int32': (NOISE*32768).astype('int32'),
    '24 bits in int32': (NOISE*2**23).astype('int32'), 'channels first': np.stack([NOISE, NOISE]),
    'one row': NOISE[None],
    '3-D': NOISE.reshape(2, 2, -1), '0-D': np.array(.5), 'empty': NOISE[:0], 'no channel': NOISE[:, None][:, :0],
    '100 channels': np.tile(NOISE[:, None], 100), 'list of integers': [1, 2, 3], 'ragged': [[.1], [.2, .3]],
    'None': None,
    'dict': {}, 'generator': (x for x in NOISE), 'upside down': np.stack([NOISE, -NOISE], 1),
    'masked': np.ma.masked_greater(NOISE, .4), 'empty list': [],
    'tensor of bytes': torch.tensor(BYTES).byte(), 'tensor of long': torch.tensor(BYTES).long(),
    'tensor of bool': torch.ones(9) > 0,
    'bfloat16': torch.ones(RATE).bfloat16(), 'tensor of half': torch.ones(RATE).half(),
    'tensor, channels first': torch.ones(2, RATE),
    'tensor in int16 scale': torch.tensor(NOISE*32768), 'complex tensor': torch.ones(RATE) + 0j, 'short': NOISE[:78],
}
RIGHT_ARRAYS = {
    'float64': NOISE, 'float32': NOISE.astype('float32'), 'int16': (NOISE*32768).astype('int16'),
    'list': NOISE.tolist(),
    'int32': (NOISE*2**31).astype('int32'), '24 bits on top': (NOISE*2**23).astype('int32')*256,
    'tensor': torch.tensor(NOISE),
    'float32 tensor': torch.tensor(NOISE).float(), 'int16 tensor': torch.tensor(NOISE*32768).short(),
    'gradient': torch.tensor(NOISE, requires_grad=True), 'stereo': np.stack([NOISE, NOISE], 1),
    'column': NOISE[:, None],
    'other bytes': NOISE.astype('>f4'), 'other bytes, int16': (NOISE*32768).astype('>i2'),
    'strided': np.repeat(NOISE, 2)[::2],
    'reversed': NOISE[::-1], 'read-only': np.frombuffer(NOISE.tobytes()),
    'Fortran': np.asfortranarray(np.stack([NOISE]*2, 1)),
}


@pytest.mark.parametrize('kind', ARRAYS)
def test_arrays_without_one_meaning_are_refused(kind, damage):
    damage('array', lambda: predict(MODEL, (ARRAYS[kind], RATE)), ['sound 0'])


@pytest.mark.parametrize('kind', RIGHT_ARRAYS)
def test_arrays_are_heard(kind, damage):
    damage('array', lambda: predict(MODEL, (RIGHT_ARRAYS[kind], RATE)), right=is_noise)


WRONG_RATES = [0, -1, 1, 99, 768_001, 1e9, 8000.5, True, None, '8000', np.nan, np.inf, [8000], 8000j]
RIGHT_RATES = [4000, 8000., np.int64(8000), np.float32(8000), 8001, 11_127, 44_056, 44_101, 96_001, 767_999]


@pytest.mark.parametrize('rate', WRONG_RATES)
def test_rates_are_refused(rate, damage):
    damage('rate', lambda: predict(MODEL, [(NOISE, rate)]), ['sound 0', 'rate'])


@pytest.mark.parametrize('rate', RIGHT_RATES)
def test_rates_are_heard(rate, damage):
    "A tone of the same level as the noise"
    time = np.arange(int(rate))/int(rate)
    tone = np.sqrt(2*TRUE)*np.sin(2*np.pi*440*time)
    damage('rate', lambda: predict(MODEL, (tone, rate)), right=is_noise)


PAIRS = {
    'turned': (RATE, NOISE), 'turned in a list': [(RATE, NOISE)], 'samples alone': NOISE, 'tensor alone': torch.ones(9),
    'samples in a list': [NOISE], 'three': [(NOISE, RATE, 1)], 'one': [(NOISE,)], 'number': 3, 'nothing': None,
    'empty': [],
    'empty text': '', 'dict': [{'samples': NOISE}], 'number in a list': [3], 'two numbers': (1, 2), 'bytes': b'a.wav',
}


@pytest.mark.parametrize('kind', PAIRS)
def test_what_is_no_sound_is_refused(kind, damage):
    damage('no sound', lambda: predict(MODEL, PAIRS[kind]), ['sound'])


LEFT_OUT = ('upside down', 'generator', 'None', 'dict', 'empty', 'no channel', 'empty list', '0-D', 'bytes',
            '16 bits in int32', '24 bits in int32')                 # no blocks, empty ones, and quiet ones
STREAMS = [kind for kind in ARRAYS if kind not in LEFT_OUT]


@pytest.mark.parametrize('kind', STREAMS)
def test_streams(kind, damage):
    damage('stream', lambda: list(predict_stream(MODEL, [ARRAYS[kind]], RATE)), ['stream'])


def test_any_error_in_a_decoder_costs_one_file(tmp_path, monkeypatch):
    "Also one that nobody has thought of"
    for name in ('a.wav', 'b.wav', 'c.wav'): (tmp_path/name).write_bytes(SOUND['plain.wav'])
    real = Sound._blocks

    def fails(sound):
        if sound.name.endswith('b.wav'): raise MemoryError('no room')
        return real(sound)
    monkeypatch.setattr(Sound, '_blocks', fails)
    table = predict(MODEL, tmp_path, unreadable='list')
    assert len(table) == 2
    assert 'no room' in table.attrs['unreadable'][str(tmp_path/'b.wav')]
    with pytest.raises(InputError, match='b.wav: unreadable'): list(SoundWindows(tmp_path/'b.wav', RATE))


def test_silence_is_said(tmp_path):
    sf.write(tmp_path/'x.wav', np.zeros(RATE), RATE)
    table = predict(OpenModel('loud', 'module', ['a', 'b'], RATE, [], lambda wave, _: wave[:, :2]), tmp_path/'x.wav')
    assert table.attrs['remarks'] == {str(tmp_path/'x.wav'): ['nothing but silence was heard']}
