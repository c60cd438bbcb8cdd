"""Miniatures of the corpora known by name, faithful to the byte: folders, names, columns, line ends and traps are those
of the real ones (reference: their own publications), rate, depth and channels too. The sounds are made and short.

    out = miniature('esc50', folder)   # the unpacked corpus: folder/'ESC-50-master'
    packed('esc50', out)               # its archives: name of the file -> bytes

A server of them is in mirror.py.
"""
import hashlib
import io
import re
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import soundfile as sf

SCENES = 'airport', 'bus', 'tram'
CITIES = 'lisbon', 'lyon', 'vienna'
FOLDERS = {f'tau{year}-evaluation': f'TAU-urban-acoustic-scenes-{year}-mobile-evaluation' for year in range(2020, 2026)}
FOLDERS |= {
    'tau2022': 'TAU-urban-acoustic-scenes-2022-mobile-development',
    'tau2020': 'TAU-urban-acoustic-scenes-2020-mobile-development',
    'tau2019': 'TAU-urban-acoustic-scenes-2019-development',
    'tau2019-evaluation': 'TAU-urban-acoustic-scenes-2019-evaluation',
    'tut2018-mobile': 'TUT-urban-acoustic-scenes-2018-mobile-development',
    'tut2018-mobile-evaluation': 'TUT-urban-acoustic-scenes-2018-mobile-evaluation',
    'tut2017': 'TUT-acoustic-scenes-2017-development',
    'tut2017-evaluation': 'TUT-acoustic-scenes-2017-evaluation',
    'tut2016': 'TUT-acoustic-scenes-2016-development',
    'tut2016-evaluation': 'TUT-acoustic-scenes-2016-evaluation',
    'cochlscene': 'CochlScene',
    'cas2023': 'ICME2024_GC_ASC_dev',
    'cas2023-evaluation': 'ICME2024_GC_ASC_eval',
    'esc50': 'ESC-50-master',
    'urbansound8k': 'UrbanSound8K',
    'tau2022-mini': 'tau-acoustic-scenes-2022-mobile-mini',
}
NAMES = sorted(FOLDERS)


def miniature(name, folder, seconds=None):
    "Write the unpacked miniature below a folder; returns the folder of the corpus"
    out = Path(folder)/FOLDERS[name]
    out.mkdir(parents=True)
    make = {'esc50': esc50, 'urbansound8k': urbansound8k, 'cochlscene': cochlscene, 'tau2022-mini': tau2022_mini}
    if name in make: make[name](out, seconds or 1)
    elif name.startswith('cas2023'): cas2023(out, seconds or 1, labelled=name == 'cas2023')
    elif re.fullmatch('tut201[67]', name): tut(out, seconds or 1, name[-4:])
    elif re.fullmatch('tut201[67]-evaluation', name): tut_evaluation(out, seconds or 1)
    elif name.endswith('-evaluation'): tau_evaluation(out, seconds or 1, name)
    else: tau(out, seconds or 1, name)
    return out


def sound(path, seconds, rate=44100, channels=1, subtype='PCM_16', frames=None, format=None):
    "Write noise with a hum: both depend on the name; the hum on the part of it that tells the class"
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int(hashlib.md5(path.name.encode()).hexdigest()[:8], 16)
    hum = int(hashlib.md5(re.split(r'[-_\d]', path.name)[0].encode()).hexdigest()[:4], 16) % 3000 + 100
    n = round(seconds*rate) if frames is None else frames
    x = np.random.default_rng(seed).normal(0, .02, (n, channels)) + .1*np.sin(np.arange(n)*hum*6.28/rate)[:, None]
    sf.write(path, x, rate, subtype, format=format)


def table(path, rows, sep='\t', end='\n', bom=False):
    "Write rows of text"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ''.join(sep.join(map(str, row)) + end for row in rows)
    path.write_bytes(text.encode('utf-8-sig' if bom else 'utf-8'))


# ---------------------------------------------------------------- TAU: lists with a header, one folder of sounds

def recordings(devices):
    "(part, scene, city, location, segment, device) of a little world; the last place of a scene is in the test"
    for s, scene in enumerate(SCENES):
        for place in range(4):
            location, city = 10*s + place, CITIES[(s + place) % 3]
            part = 'test' if place == 3 else 'train'
            # a few recordings of the real sets are in neither list
            yield 'unused' if place == 2 else part, scene, city, location, 100*s + 40 + place, 'a'
            if place == 2: yield part, scene, city, location, 100*s + 50, 'a'
            for device in devices if place in (0, 3) else ():
                yield part, scene, city, location, 100*s + 40 + place, device
    for device in devices and ('s4', ):
        yield 'test', SCENES[0], CITIES[0], 3, 43, device


def tau(out, seconds, name):
    "2019, 2020 and 2022 with tables of four columns; 2018 with lists without a header, as .txt"
    devices = () if name == 'tau2019' else ('b', 'c') if name.startswith('tut2018') else ('b', 's1')
    stereo = dict(rate=48000, channels=2) if name == 'tau2019' else {}
    snippets = [f'-{k}' for k in range(10)] if name == 'tau2022' else ['']
    rows = []
    for part, scene, city, location, segment, device in recordings(devices):
        if name.startswith('tut2018') and device == 's4': continue
        for snippet in snippets:
            clip = f'audio/{scene}-{city}-{location}-{segment}{snippet}-{device}.wav'
            sound(out/clip, seconds, subtype='PCM_24', **stereo)
            rows.append((part, clip, scene, f'{city}-{location}', device))
    order = 'train', 'test', 'unused'
    rows.sort(key=lambda row: order.index(row[0]))
    end = '\r\n' if name == 'tau2022' else '\n'
    table(out/'meta.csv', [('filename', 'scene_label', 'identifier', 'source_label'), *(r[1:] for r in rows)], end=end)
    headless = name.startswith('tut2018')
    lists = dict(train=('train', 2), evaluate=('test', 2), test=('test', 1))
    for kind, (part, width) in lists.items():
        header = [] if headless else [('filename', 'scene_label')[:width]]
        path = out/f"evaluation_setup/fold1_{kind}.{'txt' if headless else 'csv'}"
        table(path, header + [row[1:1 + width] for row in rows if row[0] == part], end=end)
    (out/'README.md').write_text(f'# {out.name}\n', encoding='utf-8')


def tau_evaluation(out, seconds, name):
    "Names are numbers, nothing is labelled; 2025 says the device of most clips"
    names = [f'audio/{n}.wav' for n in range(12)]
    stereo = dict(rate=48000, channels=2) if name == 'tau2019-evaluation' else {}
    for clip in names: sound(out/clip, seconds, subtype='PCM_24', **stereo)
    path = out/'evaluation_setup/fold1_test.csv'
    devices = ['a', 'b', 'c', 's1', 's2', 's3', *['unknown']*6]
    if name.startswith('tau2025'): table(path, [('filename', 'device_id'), *zip(names, devices)], end='\r\n')
    elif name.startswith('tut2018'): table(path.with_suffix('.txt'), [(clip, ) for clip in names])
    else: table(path, [('filename', ), *((clip, ) for clip in names)])
    if name.startswith(('tau2023', 'tau2024')): table(out/'meta.csv', [('filename', ), *((clip, ) for clip in names)])
    (out/'README.md').write_text(f'# {out.name}\n', encoding='utf-8')


# ---------------------------------------------------------------- TUT 2016 and 2017: four folds, a slash in a label

LABELS = 'beach', 'cafe/restaurant', 'tram'


def tut(out, seconds, year):
    "Names tell the recording and where in it a clip lies; no table has a header"
    length = 30 if year == '2016' else 10
    rows = []
    for s, scene in enumerate(LABELS):
        for place in range(4):
            recording = f'{"abc"[s]}{10*place + s:03}'
            for start in (0, length):
                clip = f'audio/{recording}_{start}_{start + length}.wav'
                sound(out/clip, seconds, channels=2, subtype='PCM_24')
                rows.append((clip, scene, recording, place))
    table(out/'meta.txt', [row[:2] if year == '2016' else row[:3] for row in rows])
    for fold in range(4):
        folder, test = out/'evaluation_setup', [row for row in rows if row[3] == fold]
        table(folder/f'fold{fold + 1}_train.txt', [row[:2] for row in rows if row[3] != fold])
        table(folder/f'fold{fold + 1}_evaluate.txt', [row[:2] for row in test])
        table(folder/f'fold{fold + 1}_test.txt', [row[:1] for row in test])
    table(out/'error.txt', [(rows[0][0], 1.5, 2.25, 'radio interference')])
    (out/'README.md').write_text(f'# {out.name}\n', encoding='utf-8')


def tut_evaluation(out, seconds):
    "Numbered names; the list that tells the scenes tells the original names, too"
    rows = []
    for n in range(12):
        clip, scene = f'audio/{n + 1}.wav', LABELS[n % 3]
        sound(out/clip, seconds, channels=2, subtype='PCM_24')
        rows.append((clip, scene, f'audio/{"abc"[n % 3]}{n//6:03}_{30*(n//3)}_{30*(n//3) + 30}.wav'))
    table(out/'evaluation_setup/evaluate.txt', rows)
    table(out/'evaluation_setup/test.txt', [row[:1] for row in rows])


# ---------------------------------------------------------------- others

def cochlscene(out, seconds):
    "Three folders of class folders; a user is in one of them; lengths differ by a few samples"
    for part, users in dict(Train=(10, 11, 12), Val=(20, ), Test=(30, 31)).items():
        for scene in ('Bus', 'CrowdedIndoor', 'SubwayStation'):
            for user in users:
                for take in (0, 21):
                    path = out/part/scene/f'{scene}_user{user:04}_{14000000 + 77*user + len(scene):08}_{take:03}.wav'
                    sound(path, seconds, frames=round(44100*seconds) + user - 11)


CAS = ('Bus', 'Airport', 'Metro', 'Restaurant', 'Shopping mall', 'Public square', 'Urban park', 'Traffic street',
       'Construction site', 'Bar')


def cas2023(out, seconds, labelled=True):
    "Names without meaning, many clips without a label; the table lies elsewhere and begins with a byte order mark"
    cities = ["Xi'an", 'Luoyang', 'Shanghai'] if labelled else ['Shenyang', 'Tianjin']
    rows = [('filename', 'location', 'record_time', 'scene_label')]
    for n in range(50 if labelled else 12):
        visit = n // 10                                     # to a city, on a day
        stem = f"{hashlib.md5(f'{out.name}{n}'.encode()).hexdigest()}{n + 1}_{n % 2 + 1}"
        sound(out/f'{stem}.wav', seconds)
        known = labelled and visit < 4
        time = f'2023-0{4 + visit}-21 09:{n % 10:02}:07'
        rows.append((stem, cities[visit % len(cities)], time, CAS[n % 10] if known else ''))
    part = 'dev' if labelled else 'eval'
    table(out/f'APSIPA2025_GC_ASC_{part}_metadata.csv', rows, ',', bom=True)


def esc50(out, seconds):
    "Five folds, clips of one source in one fold"
    rows = [('filename', 'fold', 'target', 'category', 'esc10', 'src_file', 'take')]
    for fold in range(1, 6):
        for target, category in ((0, 'dog'), (11, 'sea_waves'), (49, 'hand_saw')):
            for take in 'AB':
                source = 100000 + 1000*fold + target
                name = f'{fold}-{source}-{take}-{target}.wav'
                sound(out/'audio'/name, seconds)
                rows.append((name, fold, target, category, target < 20, source, take))
    table(out/'meta/esc50.csv', rows, ',')
    for name in ('README.md', 'LICENSE'): (out/name).write_text('ESC-50\n', encoding='utf-8')


KINDS = [  # rate, channels, depth, seconds
    (44100, 2, 'PCM_16', 1), (48000, 2, 'PCM_24', 1), (96000, 1, 'PCM_24', .9), (8000, 1, 'PCM_U8', 1),
    (11025, 1, 'PCM_U8', .5), (22050, 1, 'MS_ADPCM', 1), (192000, 2, 'FLOAT', .2), (44100, 1, 'PCM_16', .005),
    (16000, 1, 'PCM_16', 1), (44100, 1, 'FLOAT', 1)]


def urbansound8k(out, seconds):
    "Ten folds; every file keeps the rate, depth and channels of whoever recorded it"
    rows = [('slice_file_name', 'fsID', 'start', 'end', 'salience', 'fold', 'classID', 'class')]
    for fold in range(1, 11):
        for number, scene in ((1, 'car_horn'), (3, 'dog_bark'), (8, 'siren')):
            rate, channels, subtype, length = KINDS[(fold + number) % len(KINDS)]
            source = 1000*fold + number
            for part in range(2):
                name = f'{source}-{number}-0-{part}.wav'
                sound(out/f'audio/fold{fold}'/name, seconds*length, rate, channels, subtype)
                rows.append((name, source, 1.5*part, 1.5*part + length, 1, fold, number, scene))
    table(out/'metadata/UrbanSound8K.csv', rows, ',')
    for name in ('UrbanSound8K_README.txt', 'FREESOUNDCREDITS.txt'):
        (out/name).write_text('UrbanSound8K\n', encoding='utf-8')


def tau2022_mini(out, seconds, columns=('audio', 'scene_label')):
    "A Hugging Face dataset: wav files inside two parquet files; `columns` may name identifier, source_label, audio_id"
    import pyarrow as pa
    import pyarrow.parquet as pq
    (out/'data').mkdir()
    for part in ('train', 'test'):
        rows = []
        for n, (_, scene, city, location, segment, device) in enumerate(recordings(('b', 's1'))):
            if (location % 10 == 3) != (part == 'test'): continue
            name, held = f'{scene}-{city}-{location}-{segment}-{n % 10}-{device}.wav', io.BytesIO()
            noise = np.random.default_rng(n).normal(0, .02, round(44100*seconds))
            sf.write(held, noise + .1*np.sin(np.arange(len(noise))*.01*(1 + SCENES.index(scene))), 44100, 'PCM_24',
                     format='WAV')
            rows.append(dict(audio=dict(bytes=held.getvalue(), path=name), scene_label=scene, audio_id=n,
                             identifier=f'{city}-{location}', source_label=device))
        held = pa.Table.from_pylist(rows).select(list(columns))
        pq.write_table(held, out/f'data/{part}-00000-of-00001.parquet', row_group_size=5)
    (out/'README.md').write_text('---\ntags: [audio]\n---\n', encoding='utf-8')


# ---------------------------------------------------------------- as they are published

def packed(name, out):
    "The archives of an unpacked miniature: name of the file -> bytes"
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob('*')) if path.is_file()}
    files = {file: body for file, body in files.items() if not file.startswith('APSIPA')}
    inside = {f'{out.name}/{file}': body for file, body in files.items()}
    if name == 'esc50': return {'ESC-50-master.zip': zipped(inside, folders=True, comment=b'33c8ce9eb2cf0b1c2f8bcf')}
    if name == 'urbansound8k': return {'UrbanSound8K.tar.gz': tarred(inside)}
    if name == 'cochlscene': return in_volumes('CochlScene', inside, sum(map(len, inside.values()))//6)
    if name == 'tau2022-mini': return files
    if name.startswith('cas2023'): return {f'{out.name}.zip': zipped(inside | {f'__MACOSX/{out.name}/._a.wav': b'Mac'})}
    return parts_of(out.name, inside)


def parts_of(corpus, files):
    "TAU's archives: documents, tables, errors, and the sounds in two parts, in the order of their names"
    def part(wanted): return zipped({name: files[name] for name in sorted(files) if wanted(name)})
    sounds = sorted(name for name in files if name.endswith('.wav'))
    half = len(sounds)//2
    archives = {
        'doc': part(lambda name: name.endswith('README.md')),
        'meta': part(lambda name: 'meta.' in name or 'evaluation_setup' in name),
        'error': part(lambda name: name.endswith('error.txt')),
        'audio.1': part(lambda name: name in sounds[:half]),
        'audio.2': part(lambda name: name in sounds[half:])}
    return {f'{corpus}.{kind}.zip': body for kind, body in archives.items() if len(body) > 22}


def zipped(files, folders=False, comment=b''):
    "Bytes of a zip file; GitHub's have entries for folders, and the commit as comment"
    held = io.BytesIO()
    with zipfile.ZipFile(held, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.comment = comment
        for folder in sorted({f'{Path(name).parent.as_posix()}/' for name in files}) if folders else ():
            archive.writestr(zipfile.ZipInfo(folder), b'')
        for name, body in files.items(): archive.writestr(zipfile.ZipInfo(name), body, zipfile.ZIP_DEFLATED)
    return held.getvalue()


def tarred(files):
    "Bytes of a tar.gz, with the folders and the litter of a Mac"
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode='w:gz') as archive:
        top = next(iter(files)).partition('/')[0]
        folder = tarfile.TarInfo(top)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, body in {**files, f'{top}/.DS_Store': b'Mac', f'{top}/audio/fold1/._1.wav': b'Mac'}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body))
    return held.getvalue()


def in_volumes(stem, files, size=1 << 16, wide=False):
    "A zip file in volumes of at most `size` bytes, as `zip -s` makes them; `wide`: with 64-bit numbers throughout"
    whole = zipped(files)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive: members, begin = archive.infolist(), archive.start_dir
    volumes, entries = [bytearray(b'PK\7\x08')], []
    ends = [member.header_offset for member in members[1:]] + [begin]
    for member, end in zip(members, ends):
        header = 30 + len(member.filename.encode())
        if len(volumes[-1]) + header > size: volumes.append(bytearray())
        entries.append(entry(member, len(volumes) - 1, len(volumes[-1]), wide))
        body = whole[member.header_offset:end]
        while body:
            if len(volumes[-1]) == size: volumes.append(bytearray())
            room = size - len(volumes[-1])
            volumes[-1] += body[:room]
            body = body[room:]
    directory = len(volumes) - 1, len(volumes[-1])
    for line in entries:
        if len(volumes[-1]) + len(line) > size: volumes.append(bytearray())
        volumes[-1] += line
    if len(volumes[-1]) + 98 > size: volumes.append(bytearray())
    volumes[-1] += last_words(len(volumes) - 1, len(volumes[-1]), directory, entries, wide)
    names = [f'{stem}.z{number:02}' for number in range(1, len(volumes))] + [f'{stem}.zip']
    return dict(zip(names, map(bytes, volumes)))


def entry(member, volume, offset, wide):
    "An entry in the directory of a zip file in volumes"
    name, full = member.filename.encode(), 2**32 - 1
    numbers = member.compress_size, member.file_size
    extra = struct.pack('<2H3QL', 1, 28, *reversed(numbers), offset, volume) if wide else b''
    if wide: numbers, volume, offset = (full, full), 2**16 - 1, full
    lengths = len(name), len(extra), 0
    return struct.pack('<4s6H3L5H2L', b'PK\1\2', 45, 45, 0, member.compress_type, 0, 33, member.CRC, *numbers, *lengths,
                       volume, 0, 0, offset) + name + extra


def last_words(volume, at, directory, entries, wide):
    "The end of a zip file in volumes"
    first, offset = directory
    count, size = len(entries), sum(map(len, entries))
    if not wide: return struct.pack('<4s4H2LH', b'PK\5\6', volume, first, count, count, size, offset, 0)
    end = struct.pack('<4sQ2H2L4Q', b'PK\6\6', 44, 45, 45, volume, first, count, count, size, offset)
    locator = struct.pack('<4sLQL', b'PK\6\7', volume, at, volume + 1)
    return end + locator + struct.pack('<4s4H2LH', b'PK\5\6', volume, first, *(2**16 - 1,)*2, *(2**32 - 1,)*2, 0)
