"""A loopback server of published corpora, and how it may misbehave.

    with mirror() as web:
        settings = publish(web, ['esc50', 'tau2022'], folder)     # ASC_CORPORA, ASC_ZENODO and HF_ENDPOINT
        web.drop, web.ranges = 100_000, False                     # the line breaks once a file; whole files only
"""
import csv
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

from miniatures import miniature, packed

ROOT = Path(__file__).resolve().parents[1]


class Web(BaseHTTPRequestHandler):
    "What is served, and how; a subclass is one server"
    protocol_version = 'HTTP/1.0'

    def do_GET(self):
        self.log.append((self.path, self.headers.get('Range')))
        if self.busy:
            type(self).busy -= 1
            return self.head(429, [('Retry-After', '0')])
        body = self.files.get(self.path)
        if body is None: return self.send_error(404)
        asked = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range') or '') if self.ranges else None
        start = int(asked[1]) if asked else 0
        if asked and start >= len(body): return self.head(416, [('Content-Range', f'bytes */{len(body)}')])
        end = min(int(asked[2] or len(body) - 1) + 1, len(body)) if asked else len(body)
        of = len(body) + self.lie if asked else 0
        chunked = self.path in self.chunked
        length = ('Transfer-Encoding', 'chunked') if chunked else ('Content-Length', end - start)
        place = [('Content-Range', f'bytes {start}-{end - 1}/{of}')] if asked else []
        self.head(206 if asked else 200, [length, *place])
        cut = self.cut()
        sent = body[start:end][:cut]
        if chunked: sent = b'%x\r\n' % len(sent) + sent + (b'\r\n0\r\n\r\n' if cut is None else b'')
        self.wfile.write(sent)

    def cut(self):
        "How many bytes are sent: all, half of them every time, or fewer the first times"
        if self.path in self.halves: return len(self.files[self.path])//2
        self.drops[self.path] = self.drops.get(self.path, 0) + 1
        return self.drop if self.drops[self.path] <= self.times else None

    def head(self, status, headers):
        self.send_response(status)
        for name, value in headers: self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, *_): pass


@contextmanager
def mirror():
    "A running server"
    class Here(Web):
        files, log, drops, halves, chunked = {}, [], {}, set(), set()
        ranges, busy, lie = True, 0, 0       # ranges are taken; so many requests are put off; what it adds to sizes
        drop, times = None, 1                # bytes after which the line breaks, and how often for each file
    server = ThreadingHTTPServer(('127.0.0.1', 0), Here)
    server.handle_error = lambda *_: None   # whoever asked went away
    threading.Thread(target=server.serve_forever, args=(.01,), daemon=True).start()
    Here.url = f'http://127.0.0.1:{server.server_port}'
    try: yield Here
    finally:
        server.shutdown()
        server.server_close()


def publish(web, names, folder, seconds=1):
    "Serve miniatures of corpora, of clips of some seconds; returns the settings under which `asc` finds them"
    corpora, rows = folder/'corpora', []
    corpora.mkdir(parents=True, exist_ok=True)
    for name in names:
        about = yaml.safe_load((ROOT/f'nbs/corpora/{name}.yaml').read_text(encoding='utf-8'))
        out = miniature(name, folder/'original', seconds)
        rows += serve(web, name, about, packed(name, out), out)
        about['holds'] = dict(about['holds'], clips=len([*out.rglob('*.wav')]))
        about['holds'].pop('gigabytes', None)
        if 'length' in about.get('sound', {}): about['sound']['length'] = seconds
        text = yaml.safe_dump(about, sort_keys=False, allow_unicode=True)
        (corpora/f'{name}.yaml').write_text(text, encoding='utf-8')
    with open(corpora/'archives.csv', 'w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows([('record', 'file', 'bytes', 'md5'), *rows])
    return dict(ASC_CORPORA=str(corpora), ASC_ZENODO=f'{web.url}/api/records', HF_ENDPOINT=web.url)


def serve(web, name, about, archives, out):
    "Put the archives of a corpus on a server and their addresses into its description; returns rows of archives.csv"
    tables = [Path(url).name for url in about.get('files', [])]
    about['files'] = [put(web, f'/raw/{table}', (out/table).read_bytes()) for table in tables]
    where = about['archives']
    if 'url' in where:
        where['url'] = put(web, '/archive/master.zip', archives[where['name']])
        web.chunked.add('/archive/master.zip')
        return []
    if 'hub' in where: return hub(web, where, archives)
    record, files = where['record'], []
    for file, body in archives.items():
        url = put(web, f'/api/records/{record}/files/{file}/content', body)
        md5 = hashlib.md5(body).hexdigest()
        files.append(dict(key=file, size=len(body), checksum=f'md5:{md5}', links=dict(self=url)))
    put(web, f'/api/records/{record}', json.dumps(dict(files=files)).encode())
    return [(record, file['key'], file['size'], file['checksum'][4:]) for file in files]


def hub(web, where, files):
    "Serve files as a data set of the Hugging Face hub: large ones have a sum"
    repository, revision, siblings = where['hub'], where['revision'], []
    for name, body in {**files, '.gitattributes': b'*.parquet filter=lfs\n'}.items():
        put(web, f'/datasets/{repository}/resolve/{revision}/{name}', body)
        sha = hashlib.sha256(body).hexdigest()
        lfs = dict(lfs=dict(sha256=sha, size=len(body), pointerSize=130)) if name.endswith('.parquet') else {}
        siblings.append(dict(rfilename=name, size=len(body), **lfs))
    answer = json.dumps(dict(id=repository, sha=revision, siblings=siblings)).encode()
    put(web, f'/api/datasets/{repository}/revision/{revision}?blobs=true', answer)
    return []


def put(web, path, body):
    "Serve some bytes; returns their address"
    web.files[path] = body
    return web.url + path
