"""What comes from the net or out of an archive is where it belongs, whole and what it says, or it is refused."""
import hashlib
import io
import json
import os
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from asc.backbone import weights
from asc.core import InputError
from asc.data.fetch import fetch
from asc.data.get import download_corpus
from asc.data.unpack import unpack


@pytest.fixture(scope='module')
def web():
    "A server of `files`: path -> body; `endless` ones are followed by more and more, none has a length if `lengthless`"
    class Handler(BaseHTTPRequestHandler):
        files, endless, lengthless, log = {}, set(), False, []

        def do_GET(self):
            self.log.append(self.path)
            body = self.files.get(self.path)
            if body is None: return self.send_error(404)
            self.send_response(200)
            if not self.lengthless and self.path not in self.endless: self.send_header('Content-Length', len(body))
            self.end_headers()
            try:
                self.wfile.write(body)
                while self.path in self.endless: self.wfile.write(bytes(1 << 20))
            except OSError: pass

        def log_message(self, *_): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, args=(.01,), daemon=True).start()
    Handler.url = f'http://127.0.0.1:{server.server_port}'
    yield Handler
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def blank(web):
    web.files, web.endless, web.lengthless, web.log = {}, set(), False, []


def zipped(**members):
    "Bytes of an archive; a member is a text, or what ZipInfo and content say"
    held = io.BytesIO()
    with zipfile.ZipFile(held, 'w') as archive:
        for name, text in members.items(): archive.writestr(name, text)
    return held.getvalue()


BODY = zipped(**{'oulu/meta.csv': 'filename', 'oulu/audio/a.wav': 'RIFF'})


def entry(web, key='oulu.zip', body=BODY, **changes):
    "A file of a record, served"
    web.files[f'/{len(web.files)}'] = body
    address = f'{web.url}/{len(web.files) - 1}'
    return dict(key=key, size=len(body), checksum='md5:' + hashlib.md5(body).hexdigest(),
                links=dict(self=address)) | changes


def download(web, tmp_path, *files, text=None):
    "The record 7 of these files, downloaded into tmp_path/a/b"
    web.files['/7'] = (json.dumps(dict(files=files)) if text is None else text).encode()
    return download_corpus(7, tmp_path/'a'/'b', base_url=web.url, progress=False)


NAMES = ['../../evil.zip', '..', '.', '', ' ', '/evil.zip', 'a/b.zip', 'a\\b.zip', 'C:evil.zip', 'C:\\evil.zip',
         '~/x.zip/..', 'nul', 'CON.zip', 'com1.zip', 'a\0.zip', 'a\n.zip', 'x' * 300 + '.zip', '.hidden.zip',
         'a.zip ', 'a.zip.', '.checked.json', None, 3, ['a.zip'], {'a': 1}]


@pytest.mark.parametrize('name', NAMES, ids=lambda name: repr(name)[:20])
def test_name_in_a_record(name, web, tmp_path, damage):
    damage('name in a record', lambda: download(web, tmp_path, entry(web, name)), [f'{web.url}/7', repr(name)[:30]])
    assert not list(tmp_path.rglob('*'))


ENTRIES = {
    'no sum': dict(checksum=None), 'another sum': dict(checksum='sha1:' + '0' * 40),
    'half a sum': dict(checksum='md5:0'),
    'no size': dict(size=None), 'size of 0': dict(size=0), 'negative': dict(size=-1), 'a fraction': dict(size=1.5),
    'true': dict(size=True), 'text': dict(size='1'), 'no links': dict(links=None), 'no link': dict(links={}),
    'a file of this machine': dict(links=dict(self='file:///etc/passwd')), 'number': dict(links=dict(self=3)),
}


@pytest.mark.parametrize('name', ENTRIES)
def test_entry_of_a_record(name, web, tmp_path, damage):
    damage('entry of a record', lambda: download(web, tmp_path, entry(web, **ENTRIES[name])), ['oulu.zip'])
    assert not list(tmp_path.rglob('*'))


RECORDS = ['{}', '[]', 'null', '3', '{"files": null}', '{"files": []}', '{"files": [3]}', '{"files": {"a": 1}}',
           '<html>', '', '{"files": [], "files": []}', '{"files": NaN}', '[' * 100000]


@pytest.mark.parametrize('text', RECORDS, ids=lambda text: text[:25])
def test_record_of_another_shape(text, web, tmp_path, damage):
    damage('record', lambda: download(web, tmp_path, text=text), [f'{web.url}/7'])


@pytest.mark.parametrize('names', [('oulu.zip', 'oulu.zip'), ('oulu.zip', 'OULU.zip'), ('oulu.pdf',)], ids=str)
def test_files_of_a_record(names, web, tmp_path, damage):
    "Two files of one name, and none that could be unpacked"
    damage('record', lambda: download(web, tmp_path, *(entry(web, name) for name in names)), [f'{web.url}/7'])


def test_a_record_without_end(web, tmp_path):
    web.endless = {'/7'}
    with pytest.raises(InputError, match='sends more than 16,777,216 bytes; check the number'): download(web, tmp_path)


@pytest.mark.parametrize('lengthless', [False, True])
@pytest.mark.parametrize('size', [10, len(BODY) - 1])
def test_more_than_declared(size, lengthless, web, tmp_path, damage):
    "The download ends there, and nothing is kept"
    web.lengthless = lengthless
    damage('download', lambda: download(web, tmp_path, entry(web, size=size)), [f'more than the {size} bytes declared'])
    assert [path.name for path in (tmp_path/'a/b/archives').iterdir()] == ['.lock']


@pytest.mark.parametrize('size', [None, 1000])
def test_an_answer_without_end(size, web, tmp_path, monkeypatch):
    "With and without a declared size"
    monkeypatch.setattr('asc.data.fetch.Resume.__init__.__defaults__', (None, True, 3, None, 1 << 22))
    web.files['/x'], web.endless = b'', {'/x'}
    with pytest.raises(InputError, match='sends more than the .* nothing was kept'):
        fetch(f'{web.url}/x', tmp_path/'x', size=size, progress=False)
    assert not list(tmp_path.iterdir())


def test_less_than_declared(web, tmp_path):
    "A line that breaks, without a length to tell it by"
    web.lengthless = True
    with pytest.raises(InputError, match='could not fetch oulu.zip'):
        download(web, tmp_path, entry(web, size=len(BODY) + 1))


def test_a_right_record(web, tmp_path):
    "The folders are those in the archives, whatever those are called; what is checked is not read again"
    files = [entry(web, 'tampere.zip'), entry(web, 'readme.md', b'hello')]
    assert download(web, tmp_path, *files) == [tmp_path/'a/b/oulu']
    before = len(web.log)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('asc.data.archives.unpack', None)       # nobody asks
        patch.setattr('asc.data.archives.fetch', None)
        assert download(web, tmp_path, *files) == [tmp_path/'a/b/oulu']
    assert web.log[before:] == ['/7']


@pytest.mark.parametrize('place', ['oulu/audio/a.wav', 'archives/oulu.zip'])
def test_a_kept_file_of_the_same_size(place, web, tmp_path):
    "It is found by its sum, also where its time was set back"
    files = [entry(web)]
    download(web, tmp_path, *files)
    path = tmp_path/'a/b'/place
    right, before = path.read_bytes(), path.stat()
    path.write_bytes(right[:-1] + b'X')
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    download(web, tmp_path, *files)
    assert path.read_bytes() == right


@pytest.mark.parametrize('text', ['{}', 'null', '{"oulu.zip": 3}', '{"oulu.zip": {"files": [3], "md5": "x"}}', '\xff'])
def test_what_is_known_is_damaged(text, web, tmp_path):
    "Everything is looked at again"
    files = [entry(web)]
    download(web, tmp_path, *files)
    (tmp_path/'a/b/archives/.checked.json').write_text(text, encoding='latin-1')
    assert download(web, tmp_path, *files) == [tmp_path/'a/b/oulu']


# ---------------------------------------------------------------- archives

MEMBERS = ['../evil', '/evil', 'a/../../evil', 'C:/evil', 'a\\..\\evil', 'a//b', 'a/./b', 'nul', 'a/CON.wav', 'a\n.wav',
           'x' * 300]


@pytest.mark.parametrize('name', MEMBERS, ids=lambda name: repr(name)[:20])
def test_name_in_an_archive(name, tmp_path, damage):
    (tmp_path/'a.zip').write_bytes(zipped(**{'good.txt': 'x', name: 'x'}))
    damage('name in an archive', lambda: unpack(tmp_path/'a.zip', tmp_path/'out/in', progress=False), ['a.zip'])
    assert [path.name for path in tmp_path.rglob('*')] == ['a.zip']


def linked(path):
    "An archive with a link out of the folder"
    link = zipfile.ZipInfo('etc')
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, 'w') as archive: archive.writestr(link, '/etc')


def bomb(path):
    "Zeros, a thousandth of their size"
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for i in range(40): archive.writestr(f'{i}', bytes(1 << 21))


def doubled(path):
    "One name twice"
    with zipfile.ZipFile(path, 'w') as archive, pytest.warns(UserWarning, match='Duplicate'):
        for text in 'ab': archive.writestr('a', text)


def boastful(path):
    "A member that says it is larger than any disk"
    body = bytearray(zipped(a='x' * 99))
    for at in (body.rfind(b'PK\1\2') + 24, 22): body[at:at + 4] = b'\xff\xff\xff\x7f'
    path.write_bytes(body)


@pytest.mark.parametrize('make', [linked, bomb, doubled, boastful], ids=lambda make: make.__name__)
def test_content_of_an_archive(make, tmp_path, damage):
    make(tmp_path/'a.zip')
    damage('archive', lambda: unpack(tmp_path/'a.zip', tmp_path/'out', progress=False), ['a.zip'])


def test_a_file_where_a_folder_belongs(tmp_path, damage):
    (tmp_path/'oulu').write_text('')
    (tmp_path/'a.zip').write_bytes(BODY)
    damage('archive', lambda: unpack(tmp_path/'a.zip', tmp_path, progress=False), ['a.zip'])


def test_a_link_that_leads_out(tmp_path, damage):
    (tmp_path/'out').mkdir()
    (tmp_path/'out/oulu').symlink_to(tmp_path)
    (tmp_path/'a.zip').write_bytes(BODY)
    damage('archive', lambda: unpack(tmp_path/'a.zip', tmp_path/'out', progress=False), ['is a link'])


# ---------------------------------------------------------------- weights

def saved(value):
    "What torch.save makes of it"
    held = io.BytesIO()
    torch.save(value, held)
    return held.getvalue()


PAGES = {
    'a page': b'<!DOCTYPE html><title>Log in to the network</title>', 'blanks before': b'\n\n  <html>', 'nothing': b'',
    'text': b'not found', 'half': saved({'a': torch.ones(9)})[:300], 'a tensor': saved(torch.ones(3)),
    'a list': saved([1, 2]), 'no tensors': saved({'a': 1}), 'a zip file': BODY, 'pickle': b'\x80\x04N.',
    'a pointer': b'version https://git-lfs.github.com/spec/v1\n',
}


@pytest.mark.parametrize('name', PAGES)
def test_what_is_given_for_weights(name, web, tmp_path, damage, monkeypatch):
    "It is refused and does not stay"
    monkeypatch.setattr(weights, 'project_root', lambda: tmp_path)
    monkeypatch.setitem(weights.PUBLISHED_WEIGHTS, 'cpr_128k_fms_1', f'{web.url}/x.pt')
    web.files['/x.pt'] = PAGES[name]
    damage('published weights', lambda: weights.weights_file('cpr_128k_fms_1'), [f'{web.url}/x.pt'])
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]
    web.files['/x.pt'] = saved({'a': torch.ones(9)})
    assert weights.weights_file('cpr_128k_fms_1').is_file()
