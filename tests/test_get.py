"""Corpora by name, fetched from a mirror that behaves and one that does not: whole, or never taken for whole."""
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from asc.cli import main
from asc.core import InputError, fingerprint
from asc.data.archives import Arriving
from asc.data.choose import find_corpus
from asc.data.corpus import load_corpus
from asc.data.get import download_corpus
from asc.data.official import FINGERPRINTS
from asc.data.ranges import NoRanges
from asc.data.splits import read_split, read_test
from asc.data.store import pack
from asc.data.tally import check_fetched, leave_note, tally
from asc.data.unpack import unpack
from asc.data.volumes import open_zip
from asc.experiment.recipe import create_training, read_training_data
from asc.score.tables import result_tables
from asc.train.learner import predictions
from asc.train.options import TrainingOptions
from miniatures import NAMES, in_volumes, zipped
from mirror import mirror, publish


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    "All miniatures on one server, their originals, and the settings"
    folder = tmp_path_factory.mktemp('served')
    with mirror() as web: yield web, folder, publish(web, NAMES, folder, .05)


@pytest.fixture
def web(served, monkeypatch):
    "The server, well behaved, and its settings"
    web, folder, settings = served
    for name, value in settings.items(): monkeypatch.setenv(name, value)
    web.original, kept = folder/'original', dict(web.files)
    web.ranges, web.busy, web.lie, web.drop, web.times = True, 0, 0, None, 1
    web.log, web.drops, web.halves = [], {}, set()
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    yield web
    web.files.clear()
    web.files.update(kept)


def contents(folder):
    "What is in a folder, without what `get` adds"
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob('*') if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name not in ('corpus.yaml', '.fetched.json')}


def is_whole(web, folder):
    return tally(folder).state == 'whole' and contents(folder) == contents(web.original/folder.name)


def asc(capsys, *words):
    "What a command printed, and its exit code"
    try: main(list(map(str, words)))
    except SystemExit as e: return ''.join(capsys.readouterr()), e.code
    return ''.join(capsys.readouterr()), 0


@pytest.mark.parametrize('name', NAMES)
def test_each_name_by_command(name, web, tmp_path, capsys):
    "What it is, licence and size are told; what arrives is what was published; the second time nothing is fetched"
    text, code = asc(capsys, 'data', 'get', name, '--out', tmp_path)
    folder, = (path for path in tmp_path.iterdir() if path.name != 'archives')
    assert code == 0 and 'licence: ' in text and f'{folder}: whole' in text
    assert is_whole(web, folder)
    before = len(web.log)
    assert asc(capsys, 'data', 'get', name, '--out', tmp_path)[1] == 0
    assert len(web.log) == before + (name != 'esc50')      # what is published, to see whether it is still the same
    assert load_corpus(folder).about['title'] in text


DEVELOPMENT = [name for name in NAMES if not name.endswith('-evaluation')]


@pytest.fixture(scope='module')
def seconds_served(tmp_path_factory):
    "Miniatures with sounds of a second on a server of their own, and its settings"
    with mirror() as web: yield publish(web, DEVELOPMENT, tmp_path_factory.mktemp('seconds'), 1)


@pytest.mark.usefixtures('one_thread')
@pytest.mark.parametrize('name', DEVELOPMENT)
def test_each_name_from_the_archive_to_the_table(name, seconds_served, tmp_path, monkeypatch, capsys):
    "Fetched, checked, trained for an epoch, and a row of the table for each scene that was tested"
    for setting, value in seconds_served.items(): monkeypatch.setenv(setting, value)
    assert asc(capsys, 'data', 'get', name, '--out', tmp_path)[1] == 0
    folder, = (path for path in tmp_path.iterdir() if path.name != 'archives')
    text, code = asc(capsys, 'data', 'check', folder)
    assert code == 0, text
    options = TrainingOptions(data_dir=str(folder), backbone='cnn3', frontend='cnn3', pipeline='none', epochs=1, bs=64,
                              device='cpu')
    data = read_training_data(options)
    learn, train = create_training(data, options)
    train()
    preds = predictions(learn.model, data.clips(data.test), 8)
    tables = result_tables(preds, data.names, data.groups)
    assert len(preds) == len(data.test) and preds[data.names].sum(axis=1).sub(1).abs().max() < 1e-4
    assert set(data.test.scene) <= set(tables['class_wise'].index)
    assert ('device_wise' in tables) == bool(data.devices) and ('city_wise' in tables) == bool(data.corpus.cities)


WORST = dict(drop=100_000, times=2, busy=3)


@pytest.mark.parametrize('ranges', [True, False])
@pytest.mark.parametrize('name', ['tut2017', 'cochlscene', 'urbansound8k', 'esc50', 'tau2022-mini'])
def test_broken_lines(name, ranges, web, tmp_path):
    "Every file breaks off, the server is busy, and may not know how to go on"
    for key, value in dict(WORST, ranges=ranges).items(): setattr(web, key, value)
    if ranges and name != 'esc50': web.times = 9           # what is new each time is no failure
    folder, = download_corpus(name, tmp_path, progress=False)
    assert is_whole(web, folder)
    assert any(asked for _, asked in web.log) or name == 'cochlscene'      # its volumes are too small here to break off


@pytest.mark.parametrize('name', ['tut2017', 'cochlscene', 'urbansound8k', 'esc50', 'tau2022-mini'])
def test_half_an_archive(name, web, tmp_path, capsys, damage):
    "It is never taken for whole, and the same command completes it"
    web.ranges, web.halves = False, {max(web_paths(web, name), key=lambda path: len(web.files[path]))}
    damage('half an archive', lambda: download_corpus(name, tmp_path, progress=False))
    assert 'whole' not in asc(capsys, 'data', 'get', name, '--out', tmp_path)[0]
    folder, = (path for path in tmp_path.iterdir() if path.name != 'archives')
    assert tally(folder).state in ('nothing', 'parts')
    web.halves = set()
    download_corpus(name, tmp_path, progress=False)
    assert is_whole(web, folder)


def web_paths(web, name):
    "Addresses of the archives of a corpus"
    words = {'esc50': '/archive/', 'tau2022-mini': '/resolve/', 'tut2017': '/400515/files', 'tau2022': '/6337421/files',
             'cochlscene': '/7080122/files', 'urbansound8k': '/1203745/files'}
    return [path for path in web.files if words[name] in path]


def test_killed_while_unpacking(web, tmp_path, monkeypatch, capsys):
    "Parts are told apart from all, and the same command goes on: no archive is fetched again"
    count = []

    def killed(source, target, size):
        count.append(1)
        if len(count) > 20: raise KeyboardInterrupt
        target.write(source.read())
    with monkeypatch.context() as patch:
        patch.setattr(shutil, 'copyfileobj', killed)
        assert asc(capsys, 'data', 'get', 'tut2017', '--out', tmp_path)[1] == 130
    folder = tmp_path/'TUT-acoustic-scenes-2017-development'
    assert tally(folder).state == 'parts'
    before = len(web.log)
    download_corpus('tut2017', tmp_path, progress=False)
    assert is_whole(web, folder)
    assert not [path for path, _ in web.log[before:] if 'audio.1' in path]


def changed_record(web, record, **changes):
    "Publish a record with its first file changed"
    path = f'/api/records/{record}'
    said = json.loads(web.files[path])
    said['files'][0].update(changes)
    web.files[path] = json.dumps(said).encode()


VERSIONS = {
    'another sum': (dict(checksum='md5:' + '0'*32), '0'*32), 'another size': (dict(size=77), '77 '),
    'another name': (dict(key='TUT-2017.zip'), 'has no TUT-acoustic-scenes-2017-development.doc.zip'),
}


@pytest.mark.parametrize('name', VERSIONS)
def test_another_version(name, web, tmp_path, damage):
    "Both versions are named, nothing is fetched"
    changes, says = VERSIONS[name]
    changed_record(web, 400515, **changes)
    damage('version', lambda: download_corpus('tut2017', tmp_path, progress=False), ['400515', says.strip()])
    assert len(web.log) == 1 and not list(tmp_path.iterdir())


def test_another_version_by_number(web, tmp_path):
    "Whoever gives the number takes what is there"
    path, = (path for path in web.files if 'TUT-acoustic-scenes-2017-development.doc' in path)
    web.files[path] = zipped({'TUT-acoustic-scenes-2017-development/README.md': b'new'})
    md5 = hashlib.md5(web.files[path]).hexdigest()
    changed_record(web, 400515, size=len(web.files[path]), checksum=f'md5:{md5}')
    folder, = download_corpus(400515, tmp_path, progress=False)
    assert (folder/'README.md').read_text() == 'new'


def test_github_makes_another_archive(web, tmp_path, damage):
    "Its sum may change, what it holds may not"
    path, = web_paths(web, 'esc50')
    files = contents(web.original/'ESC-50-master')
    web.files[path] = zipped({f'ESC-50-master/{name}': body for name, body in reversed(files.items())})
    assert is_whole(web, download_corpus('esc50', tmp_path/'a', progress=False)[0])
    web.files[path] = zipped({f'ESC-50-master/{name}': body for name, body in list(files.items())[4:]})
    damage('version', lambda: download_corpus('esc50', tmp_path/'b', progress=False), ['ESC-50-master', '30'])
    assert tally(tmp_path/'b/ESC-50-master').state == 'parts'


def test_what_came_to_nothing_is_not_here(web, tmp_path, monkeypatch):
    "A fetching that left no more than its note"
    monkeypatch.setattr('asc.data.corpus.project_root', lambda: tmp_path)
    folder = tmp_path/'data'/'ESC-50-master'
    folder.mkdir(parents=True)
    leave_note(folder, 'esc50', 0)
    with pytest.raises(InputError, match='`asc data get esc50` fetches it'): find_corpus('esc50')


def test_corpus_not_here(web):
    "What it is, how large, and the command"
    words = 'UrbanSound8K, sounds of the street .60 clips, .* kB; licence: .* is not here.*`asc data get urbansound8k`'
    with pytest.raises(InputError, match=words): find_corpus('urbansound8k')


@pytest.mark.parametrize('name', ['cochlscene', 'tau2022-mini', 'esc50'])
def test_parts_are_not_trained_on(name, web, tmp_path):
    "Also where the table of the corpus is what lies in its folder, and misses nothing"
    folder, = download_corpus(name, tmp_path, progress=False)
    next(path for path in folder.rglob('*') if path.suffix in ('.wav', '.parquet')).unlink()
    leave_note(folder, name, tally(folder).of)
    with pytest.raises(InputError, match=f'asc data get {name} --out {tmp_path}. fetches the rest'):
        read_training_data(TrainingOptions(data_dir=str(folder)))
    with pytest.raises(InputError, match='fetches the rest'):
        pack(load_corpus(folder), tmp_path/'store', progress=False).index(['1-101000-A-0.wav'])


def test_two_at_once(web, tmp_path):
    with Arriving(tmp_path).alone(), pytest.raises(InputError, match='another process fetches into'):
        download_corpus('esc50', tmp_path, progress=False)


def test_archives_may_be_deleted(web, tmp_path):
    "Nothing is fetched again; what is lost from the corpus alone is"
    folder, = download_corpus('tut2016', tmp_path, progress=False)
    for path in (tmp_path/'archives').glob('*.zip'): path.unlink()
    before = len(web.log)
    download_corpus('tut2016', tmp_path, progress=False)
    assert len(web.log) == before + 1
    (folder/'audio/a000_0_30.wav').unlink()
    assert tally(folder).state == 'parts'
    download_corpus('tut2016', tmp_path, progress=False)
    assert is_whole(web, folder)
    assert {path.split('/')[-2][-11:] for path, _ in web.log[before + 2:]} == {'audio.1.zip'}


@pytest.mark.parametrize('harm', ['none', 'a file is missing', 'a file is another'])
def test_unpacked_by_hand(harm, web, tmp_path):
    "What is there is looked at and kept"
    folder = shutil.copytree(web.original/'TUT-acoustic-scenes-2016-development',
                             tmp_path/'TUT-acoustic-scenes-2016-development')
    if harm != 'none': (folder/'audio/a000_0_30.wav').write_bytes(b'RIFF')
    if harm == 'a file is missing': (folder/'audio/a000_0_30.wav').unlink()
    download_corpus('tut2016', tmp_path, progress=False)
    assert is_whole(web, folder) and not list((tmp_path/'archives').glob('*.zip'))


def test_ranges_are_not_taken_any_more(web, shares, tmp_path, monkeypatch):
    "After the directories were read: whole archives come instead"
    def stop(self, *args):
        web.ranges = False
        raise NoRanges
    monkeypatch.setattr('asc.data.ranges.Remote._fetch_stretch', stop)
    folder, = download_corpus('tau2022', tmp_path, progress=False, subset=5, lists_url=shares)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob('*.wav')} == web.few


def test_share_of_what_is_whole(web, shares, tmp_path):
    "It stays whole"
    folder, = download_corpus('tau2022', tmp_path, progress=False)
    before = len(web.log)
    download_corpus('tau2022', tmp_path, progress=False, subset=5, lists_url=shares)
    assert is_whole(web, folder) and len(web.log) == before + 1


def test_a_full_disk(web, tmp_path, monkeypatch):
    "What is there already needs no room; what comes, does"
    download_corpus('tut2016', tmp_path, progress=False)
    next(tmp_path.rglob('*.wav')).unlink()
    monkeypatch.setattr('shutil.disk_usage', lambda _: type('u', (), dict(free=20_000)))
    download_corpus('tut2016', tmp_path, progress=False)
    with pytest.raises(InputError, match='has 0 GB free; tut2017 needs about'):
        download_corpus('tut2017', tmp_path, progress=False)


# ---------------------------------------------------------------- what a list needs

@pytest.fixture
def shares(web, monkeypatch):
    "The miniature of TAU 2022 is official: its lists, and the server that has those of shares"
    folder = web.original/'TAU-urban-acoustic-scenes-2022-mobile-development'
    meta, lists = load_corpus(folder).meta, folder/'evaluation_setup'
    train, test = (pd.read_csv(lists/f'fold1_{name}.csv', sep='\t') for name in ('train', 'evaluate'))
    few = train[train.filename.str.contains('-a.wav')][::4]
    known = {'all': meta, 'split5': few, 'split100': train, 'test': test}
    monkeypatch.setitem(FINGERPRINTS, '2022', {name: fingerprint(rows.filename) for name, rows in known.items()})
    monkeypatch.setattr('asc.data.get.SMALL', 20_000)
    for name in ('split5', 'split100', 'test'):
        web.files[f'/lists/{name}.csv'] = known[name].to_csv(sep='\t', index=False).encode()
    web.few = {*few.filename, *test.filename}
    return f'{web.url}/lists'


@pytest.mark.parametrize('ranges', [True, False])
def test_share(ranges, web, shares, tmp_path, capsys):
    "Its clips and those of the test; training needs no more, other lists are refused, and the rest comes without those"
    web.ranges = ranges
    folder, = download_corpus('tau2022', tmp_path, progress=False, subset=5, lists_url=shares)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob('*.wav')} == web.few
    found = tally(folder)
    assert (found.state, found.have, found.of, found.shares) == ('parts', len(web.few), 280, (5, ))

    corpus = load_corpus(folder)
    few, test = read_split(corpus, 5), read_test(corpus)
    check_fetched(corpus, train=few, test=test)
    store = pack(corpus, tmp_path/'store', progress=False)
    assert len(store) == len(web.few) and len(store.index([*few.filename, *test.filename]))
    with pytest.raises(InputError, match='train clips are not here.*asc data get tau2022 --out'):
        read_training_data(TrainingOptions(data_dir=str(folder), subset=100))
    with pytest.raises(InputError, match='only parts of this corpus were fetched; `asc data get tau2022'):
        store.index(read_split(corpus, 100).filename)

    before = len(web.log)
    download_corpus('tau2022', tmp_path, progress=False)
    shutil.rmtree(folder/'split_setup')
    assert is_whole(web, folder)
    fetched = [asked for path, asked in web.log[before:] if '.audio.' in path]
    assert bool(fetched) == ranges and all(fetched)        # with ranges the rest, else nothing: the archives are here


def test_share_with_broken_lines(web, shares, tmp_path):
    for key, value in dict(WORST, drop=40_000, times=9).items(): setattr(web, key, value)
    folder, = download_corpus('tau2022', tmp_path, progress=False, subset=5, lists_url=shares)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob('*.wav')} == web.few
    assert not list((tmp_path/'archives').glob('*stretch*'))


def test_share_of_a_lying_server(web, shares, tmp_path, damage):
    "It sends stretches of a file of another size, or none at all"
    web.lie = 5
    damage('range', lambda: download_corpus('tau2022', tmp_path, progress=False, subset=5, lists_url=shares),
           ['.audio.1.zip'])
    web.lie, web.drop, web.times = 0, 0, 999
    damage('range', lambda: download_corpus('tau2022', tmp_path, progress=False, subset=5, lists_url=shares),
           [web.url])


def test_share_of_another_archive(web, shares, tmp_path, damage):
    "A member is not what its checksum says"
    path, = (path for path in web_paths(web, 'tau2022') if '.audio.2' in path)
    with zipfile.ZipFile(io.BytesIO(web.files[path])) as archive:
        places = {member.filename.partition('/')[2]: member.header_offset for member in archive.infolist()}
    body = bytearray(web.files[path])
    at = next(places[name] for name in places if name in web.few) + 300
    body[at:at + 20] = bytes(20)
    web.files[path] = bytes(body)
    damage('range', lambda: download_corpus('tau2022', tmp_path, progress=False, subset=5, lists_url=shares),
           ['cannot be unpacked'])
    assert tally(tmp_path/'TAU-urban-acoustic-scenes-2022-mobile-development').state == 'parts'


@pytest.mark.parametrize('name, subset, says', [
    ('esc50', 5, 'esc50 has no lists of shares'), ('tau2022', 7, 'choose one of 5, 10, 25, 50, 100'),
    ('tau2021-evaluation', 5, 'has no lists of shares'), (6337421, 5, 'has no lists of shares')])
def test_no_such_share(name, subset, says, web, tmp_path):
    with pytest.raises(InputError, match=says): download_corpus(name, tmp_path, progress=False, subset=subset)
    assert not web.log


# ---------------------------------------------------------------- volumes

FILES = {f'CochlScene/{i}.wav': hashlib.sha256(bytes([i])).digest()*300*i for i in range(12)}


def written(folder, volumes):
    "The volumes in a folder; returns the path of the last"
    for name, body in volumes.items(): (folder/name).write_bytes(body)
    return folder/'a.zip'


@pytest.mark.parametrize('wide', [False, True])
@pytest.mark.parametrize('size', [200, 1000, 1 << 16])
def test_volumes(size, wide, tmp_path):
    "Members and the directory lie across volumes; with 64-bit numbers and without"
    path = written(tmp_path, in_volumes('a', FILES, size, wide))
    with open_zip(path) as archive: assert {name: archive.read(name) for name in archive.namelist()} == FILES
    assert unpack(path, tmp_path/'out', progress=False) == list(FILES)
    assert contents(tmp_path/'out') == FILES


def test_volumes_of_the_command(tmp_path):
    "As the program `zip` writes them"
    if not shutil.which('zip'): pytest.skip('no program zip')
    for i in range(3): (tmp_path/f'{i}.bin').write_bytes(hashlib.sha512(bytes([i])).digest()*900)
    subprocess.run(['zip', '-q', '-0', '-s', '64k', 'a.zip', '0.bin', '1.bin', '2.bin'], cwd=tmp_path, check=True)
    assert (tmp_path/'a.z02').exists()
    unpack(tmp_path/'a.zip', tmp_path/'out', progress=False)
    assert contents(tmp_path/'out') == {f'{i}.bin': (tmp_path/f'{i}.bin').read_bytes() for i in range(3)}


def without_second(folder): (folder/'a.z02').unlink()
def swapped(folder): (folder/'a.z02').write_bytes((folder/'a.z03').read_bytes())
def shorter(folder): (folder/'a.z01').write_bytes((folder/'a.z01').read_bytes()[:-7])
def a_folder(folder):
    (folder/'a.z02').unlink()
    (folder/'a.z02').mkdir()


def no_directory(folder): (folder/'a.zip').write_bytes((folder/'a.zip').read_bytes()[-22:])
def lying(folder): (folder/'a.zip').write_bytes((folder/'a.zip').read_bytes()[:-18] + b'\xf0\xff\xf0\xff' + bytes(14))


@pytest.mark.parametrize('harm', [without_second, swapped, shorter, a_folder, no_directory, lying])
def test_damaged_volumes(harm, tmp_path, damage):
    path = written(tmp_path, in_volumes('a', FILES, 1000))
    harm(tmp_path)
    damage('volumes', lambda: unpack(path, tmp_path/'out', progress=False), ['a.z'])
    if harm is not without_second: return
    with pytest.raises(InputError, match='a.z02 is not beside it'): open_zip(path)


def test_a_volume_is_not_published(web, tmp_path):
    said = json.loads(web.files['/api/records/7080122'])
    said['files'] = [file for file in said['files'] if not file['key'].endswith('z02')]
    web.files['/api/records/7'] = json.dumps(said).encode()
    with pytest.raises(InputError, match='has no CochlScene.z02, a volume of CochlScene.zip'):
        download_corpus(7, tmp_path, progress=False)
    assert len(web.log) == 1


# ---------------------------------------------------------------- tar files

def tarred(path, *entries, mode='w:gz'):
    "A tar file of (name, bytes or target of a link, type)"
    with tarfile.open(path, mode) as archive:
        for name, body, kind in entries:
            entry = tarfile.TarInfo(name)
            entry.type = kind
            if isinstance(body, str): entry.linkname = body
            else: entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body) if isinstance(body, bytes) else None)


TARS = {
    'out of the folder': [('../evil', b'x', tarfile.REGTYPE)], 'from the root': [('/evil', b'x', tarfile.REGTYPE)],
    'link': [('a', '/etc', tarfile.SYMTYPE)], 'hard link': [('a', 'b', tarfile.LNKTYPE)],
    'pipe': [('a', '', tarfile.FIFOTYPE)], 'twice': [('a', b'x', tarfile.REGTYPE), ('a', b'y', tarfile.REGTYPE)],
    'device': [('nul', b'x', tarfile.REGTYPE)], 'zeros': [('a', bytes(1 << 27), tarfile.REGTYPE)],
}


@pytest.mark.parametrize('name', TARS)
def test_content_of_a_tar(name, tmp_path, damage):
    tarred(tmp_path/'a.tar.gz', ('good', b'x', tarfile.REGTYPE), *TARS[name])
    damage('tar', lambda: unpack(tmp_path/'a.tar.gz', tmp_path/'out/in', progress=False), ['a.tar.gz'])
    assert [path.name for path in tmp_path.rglob('*')] == ['a.tar.gz']


@pytest.mark.parametrize('cut', [0, 20, 999])
@pytest.mark.parametrize('name', ['a.tar.gz', 'a.tar'])
def test_half_a_tar(name, cut, tmp_path, damage):
    tarred(tmp_path/name, *((f'{i}', hashlib.shake_256(bytes([i])).digest(7000), tarfile.REGTYPE) for i in range(5)),
           mode='w' if name == 'a.tar' else 'w:gz')
    body = (tmp_path/name).read_bytes()
    (tmp_path/name).write_bytes(body[:cut])
    damage('tar', lambda: unpack(tmp_path/name, tmp_path/'out', progress=False), [name])


# ---------------------------------------------------------------- the hub

REVISION = 'd0da0ed80d22944c7a5690c4b570683d45c4dfaf'
HUB = f'/api/datasets/mteb/tau-acoustic-scenes-2022-mobile-mini/revision/{REVISION}?blobs=true'


def told(web, change):
    "The hub's answer, changed"
    said = json.loads(web.files[HUB])
    change(said, said['siblings'])
    web.files[HUB] = json.dumps(said).encode()


HUBS = {
    'another revision': lambda said, files: said.update(sha='0'*40),
    'a name that leads out': lambda said, files: files[0].update(rfilename='../../evil'),
    'larger': lambda said, files: files[1].update(size=10**9),
    'smaller': lambda said, files: files[1].update(size=10),
    'no size': lambda said, files: files[1].update(size=None),
    'another sum': lambda said, files: files[1]['lfs'].update(sha256='0'*64),
}


@pytest.mark.parametrize('name', HUBS)
def test_what_the_hub_says(name, web, tmp_path, damage):
    told(web, HUBS[name])
    assert 'lfs' in json.loads(web.files[HUB])['siblings'][1]
    damage('hub', lambda: download_corpus('tau2022-mini', tmp_path, progress=False), [])
    folder = tmp_path/'tau-acoustic-scenes-2022-mobile-mini'
    assert tally(folder).state in ('nothing', 'parts') and not (tmp_path.parent/'evil').exists()


def test_hub_without_an_answer(web, tmp_path):
    del web.files[HUB]
    with pytest.raises(InputError, match='could not ask the hub for mteb/tau'):
        download_corpus('tau2022-mini', tmp_path, progress=False)


# ---------------------------------------------------------------- what is here

def test_list(web, tmp_path, monkeypatch, capsys):
    "Nothing, parts, all; by the note, or by the number of clips where there is none"
    monkeypatch.setattr('asc.data.known.project_root', lambda: tmp_path)
    download_corpus('esc50', tmp_path/'data', progress=False)
    shutil.copytree(web.original/'UrbanSound8K', tmp_path/'data/UrbanSound8K')
    shutil.copytree(web.original/'CochlScene', tmp_path/'data/CochlScene')
    next((tmp_path/'data/CochlScene').rglob('*.wav')).unlink()
    text, code = asc(capsys, 'data', 'list')
    lines = {line.split()[0]: line for line in text.splitlines() if line[0] != ' '}
    assert code == 0 and sorted(lines) == NAMES
    assert lines['esc50'].endswith('whole') and lines['urbansound8k'].endswith('whole')
    assert lines['cochlscene'].endswith('parts, 35 of 36 sounds') and lines['tau2022'].endswith('nothing')
    assert asc(capsys, 'data', 'list', 'esc5')[1] == 2


def test_list_of_ones_own(web, tmp_path, monkeypatch, capsys):
    "What one has described oneself is among them; a description that is damaged costs only itself"
    for module in ('known', 'description'): monkeypatch.setattr(f'asc.data.{module}.project_root', lambda: tmp_path)
    shutil.copytree(web.original/'CochlScene', tmp_path/'data/seoul')
    (tmp_path/'data/seoul.yaml').write_text('title: Seoul\nreader: folders\n', encoding='utf-8')
    (tmp_path/'data/busan.yaml').write_text('reader: 5', encoding='utf-8')
    (tmp_path/'data/jeju.yaml').write_text('reader: folders', encoding='utf-8')
    text, code = asc(capsys, 'data', 'list')
    lines = text.splitlines()
    seoul = next(k for k, line in enumerate(lines) if line.startswith('seoul'))
    assert code == 0 and lines[seoul].endswith(' here') and 'Seoul; your own' in lines[seoul + 1]
    assert 'busan.yaml: ' in text and len(lines) == 2*(len(NAMES) + 3)
    assert text.count('busan.yaml') == 1 and text.count('cannot be read') == text.count('its folder is not there') == 1
