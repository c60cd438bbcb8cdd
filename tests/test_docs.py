"""The site builds offline and whole, and every command of the tutorials runs as it is printed."""
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from asc.core import InputError
from asc.run.papermill import read_argv
from asc.site import build_site
from conftest import ROOT

PAGES = sorted((ROOT/'nbs/tutorials').glob('*.md'))
BLOCK = re.compile(r'^```(\w+)\n(.*?)^```$', re.S | re.M)
CONTAINER = 'test_docs.py::test_container_installs_as_the_readme_does'
# what cannot run here, and the test of its code: it needs a network or podman, or ends only with Ctrl-C
ELSEWHERE = {"""python -c "import asc; asc.download_corpus('tau2022')\"""": 'test_corpus.py::test_download_corpus',
             'asc demo runs/first runs/small/qat.onnx': 'test_demo.py::test_page',
             'podman build -t asc -f nbs/tutorials/Containerfile .': CONTAINER,
             'podman run --rm -v ./data:/asc/data -v ./runs:/asc/runs asc make train ARGS="-p epochs 20"': CONTAINER}
TAU = 'data/TAU-urban-acoustic-scenes-2022-mobile-development'
VALUES = dict(
    TAU=TAU, RECIPE='small', EPOCHS='1', QAT_EPOCHS='1', SPLITS='5', SEEDS='0',
    MINE='my-corpus', SOUNDS='recordings', TEACHERS='[runs/own]',
)
# this one has to learn something: it is the teacher of the next page
MORE = {'3': dict(EPOCHS='30')}
SMALL = dict(
    backbone='cp_mobile_24',
    frontend='dcase24',
    pipeline='none',
    bs=32,
    backbone_args=dict(base=8, blocks=[1, 1, 1], strides=dict(b1=[2, 2], b2=[2, 1])),
)
# pages whose runs a page takes; the others that of the first
NEEDS = {'1': '', '4': '13', '8': ''}
LEFT = {
    '1': ['runs/first/model.safetensors', 'runs/baseline', 'runs/baseline-report/metrics.json'],
    '2': ['my-corpus/test.csv', 'runs/mine/metrics.json'],
    '3': ['runs/own/model.safetensors'],
    '4': [
        'runs/teacher/metrics.json',
        'runs/taught/metrics.json',
        'runs/taught-report/metrics.json',
    ],
    '5': ['runs/small/qat.onnx', 'runs/small/qat.md'],
    '6': ['runs/entry/Curie_UP_task1_1', 'runs/entry-2025/metrics.json'],
    '7': ['windows.csv', 'runs/explored/metrics.json'],
    '8': ['runs/speed/ratios.csv', 'runs/shared-teacher/metrics.json'],
}


def blocks(page, *kinds):
    "Bodies of the code blocks of these kinds"
    return [body for kind, body in BLOCK.findall(page.read_text(encoding='utf-8')) if kind in kinds]


# the tutorials

def test_a_forked_kernel_answers_and_dies_with_its_client(kernels, monkeypatch):
    from jupyter_client.manager import start_new_kernel
    monkeypatch.setenv('JUPYTER_PATH', str(kernels))
    manager, client = start_new_kernel()
    output = []
    client.execute_interactive(
        'import os, sys; print(os.getpid(), "torch" in sys.modules, "fastai" in sys.modules)',
        output_hook=lambda m: output.append(m['content'].get('text', '')),
    )
    pid, torch, fastai = ''.join(output).split()
    # forked, and what asks for a notebook is not loaded
    assert (torch, fastai) == ('True', 'False')
    client.stop_channels()
    os.kill(manager.provisioner.pid, 9)
    for _ in range(100):
        if not Path(f'/proc/{pid}').exists(): break
        time.sleep(.1)
    else:
        raise AssertionError('the kernel lives on')
    manager.cleanup_resources()


@pytest.fixture(scope='module')
def desk(synthetic, short_test, tmp_path_factory):
    "Where a reader types: a copy of the project, a thinned synthetic corpus in place of TAU, recordings of one's own"
    desk = tmp_path_factory.mktemp('desk')
    for name in ('asc', 'nbs'):
        shutil.copytree(
            ROOT/name,
            desk/name,
            ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'),
        )
    shutil.copy(ROOT/'settings.ini', desk)
    (desk/'nbs/recipes/small.yaml').write_text(yaml.safe_dump(SMALL))
    shutil.copytree(short_test, desk/TAU, symlinks=True)
    for folder, clips in {
        'my-corpus/audio': r'(?:bus|park|tram)-.*-[0-3]-[ab]\.wav',
        'recordings': r'tram-.*-[01]-s1\.wav',
    }.items():
        (desk/folder).mkdir(parents=True)
        for p in (synthetic/'audio').iterdir():
            if re.fullmatch(clips, p.name): shutil.copy(p, desk/folder)
    return desk


@pytest.fixture(scope='module')
def walk(desk, kernels):
    "Type a page as it stands, with other values for what is the reader's to set; once"
    done = {}
    env = dict(
        os.environ,
        OMP_NUM_THREADS='1',
        JUPYTER_PATH=str(kernels),
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    )

    def type_page(page):
        if page in done: return done[page]
        for need in NEEDS.get(page.stem[0], '1'): type_page(PAGES[int(need) - 1])
        for body in blocks(page, 'python', 'yaml'):
            (desk/re.match(r'# (\S+)', body)[1]).write_text(body, encoding='utf-8')
        text = ''.join(blocks(page, 'sh'))
        text = ''.join(l for l in text.splitlines(True) if l.rstrip() not in ELSEWHERE)
        text = re.sub(
            r'^([A-Z_]+)=(?!\$).*$',
            lambda m: f"{m[1]}='{(VALUES | MORE.get(page.stem[0], {}))[m[1]]}'",
            text,
            flags=re.M,
        )
        done[page] = subprocess.run(
            ['bash', '-euxo', 'pipefail', '-c', text],
            cwd=desk,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
        )
        return done[page]
    return type_page


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_tutorial(page, walk, desk):
    "Every box of the page, one after the other in one shell, leaves what the page speaks of"
    r = walk(page)
    assert r.returncode == 0, r.stderr[-3000:]
    assert not [p for p in LEFT[page.stem[0]] if not (desk/p).exists()]
    for folder in re.findall(r'-p out (\S+)', ''.join(blocks(page, 'sh'))):
        assert (desk/folder/'metrics.json').exists()
    if page.stem[0] == '6': assert r.stdout.strip().endswith('nothing to object to')


def test_what_a_tutorial_leaves_elsewhere_is_tested_there():
    text = ''.join(p.read_text(encoding='utf-8') for p in PAGES)
    for line, test in ELSEWHERE.items():
        file, name = test.split('::')
        assert line in text
        assert f'def {name}(' in (ROOT/'tests'/file).read_text(encoding='utf-8')


def parameters(notebook):
    "Names in the parameters cell of a notebook"
    cells = json.loads((ROOT/'nbs'/notebook).read_text(encoding='utf-8'))['cells']
    return re.findall(
        r'^(\w+): ',
        next(''.join(c['source']) for c in cells if 'parameters' in c['metadata'].get('tags', [])),
        re.M,
    )


def commands():
    "(file, words) of every papermill command in the notebooks' text and the tutorials"
    for path in [*sorted((ROOT/'nbs').glob('*.ipynb')), *PAGES]:
        text = path.read_text(encoding='utf-8')
        if path.suffix == '.ipynb':
            text = '\n'.join(
                ''.join(c['source'])
                for c in json.loads(text)['cells']
                if c['cell_type'] == 'markdown'
            )
        lines = [
            l.split('  #')[0]
            for body in re.findall(r'^```(?:sh|bash)\n(.*?)^```', text, re.S | re.M)
            for l in body.splitlines()
        ] + re.findall(r'`([^`\n]+)`', text)
        yield from ((path.name, c) for c in lines if re.match(r'papermill +nbs/\w+\.ipynb', c))


@pytest.mark.parametrize(
    'where, command', [pytest.param(*c, id=f'{c[0]}-{i}') for i, c in enumerate(commands())]
)
def test_papermill_commands_name_what_exists(where, command):
    words, options = read_argv(shlex.split(command)[1:])
    assert (ROOT/words[0]).is_file()
    assert set(options) <= set(parameters(Path(words[0]).name)), f'{where}: {command}'
    for recipe in re.findall(r'nbs/recipes/([\w-]+)\.yaml', command):
        assert recipe in ('NAME', '$RECIPE') or (ROOT/f'nbs/recipes/{recipe}.yaml').is_file()


def test_container_installs_as_the_readme_does():
    "The recipe cannot be built here; what it runs is what `make` runs, on a supported Python, and its files are there"
    lines = (ROOT/'nbs/tutorials/Containerfile').read_text(encoding='utf-8').splitlines()
    stamps = [l.split()[-1] for l in lines if l.startswith('RUN make')]
    stamp = re.search(r'^STAMP +:= \$\(VENV\)/(\S+)', (ROOT/'Makefile').read_text(), re.M)[1]
    assert stamps == [f'.venv/{stamp}']
    assert set(re.findall(r'podman \w+.*', '\n'.join(lines))) <= set(ELSEWHERE)
    assert re.match(r'FROM python:3\.1[0-3]\b', next(l for l in lines if l.startswith('FROM')))
    assert json.loads(next(l for l in lines if l.startswith('CMD'))[4:]) == ['make', 'train']
    assert 'git' in next(l for l in lines if 'apt-get install' in l).split()
    assert re.search(r'^train:', (ROOT/'Makefile').read_text(), re.M)


# the site

class Reader(HTMLParser):
    "Links, anchors and loaded resources of a page, and whether its elements close"
    VOID = {'meta', 'link', 'input', 'img', 'br', 'hr', 'source', 'col', 'wbr', 'path', 'use'}

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.loads, self.text, self.stack = [], [], [], [], []
        self.feed(path.read_text(encoding='utf-8'))
        self.close()

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag == 'a' and 'href' in a: self.links.append(a['href'])
        if 'id' in a: self.anchors.append(a['id'])
        self.loads += [a[k] for k in ('src', 'srcset', 'poster', 'data', 'action') if a.get(k)] + ([a['href']] if tag in ('link', 'use', 'image') else [])
        self.loads += re.findall(r'url\(([^)]+)\)', a.get('style') or '')
        if tag == 'pre' or self.stack: self.stack.append(tag)

    def handle_data(self, data): self.text.append(data)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    index = build_site(tmp_path_factory.mktemp('docs')/'site', ROOT)
    return {p.name: Reader(p) for p in index.parent.glob('*.html')}, index.parent


def test_every_notebook_and_tutorial_has_its_page(site):
    pages, _ = site
    assert set(pages) == {f'{p.stem}.html' for p in [*(ROOT/'nbs').glob('*.ipynb'), *PAGES]} | {'recipes.html'}
    for name in pages: assert f'{name}' in pages['index.html'].links or name == 'index.html', f'{name} is in no sidebar'


def test_links_lead_somewhere(site):
    pages, folder = site
    broken = []
    for name, page in pages.items():
        for link in page.links:
            if re.match(r'https?://|mailto:', link): continue
            file, _, anchor = unquote(link).partition('#')
            target = file or name
            if target not in pages or (anchor and anchor not in map(unquote, pages[target].anchors)): broken.append(f'{name}: {link}')
    assert not broken
    names = json.loads((folder/'names.js').read_text(encoding='utf-8').removeprefix('const NAMES = ').rstrip(';\n'))
    for _, url, _ in names:
        file, _, anchor = url.partition('#')
        assert file in pages and (not anchor or unquote(anchor) in map(unquote, pages[file].anchors)), url


def test_nothing_is_loaded_from_elsewhere(site):
    pages, folder = site
    for name, page in pages.items():
        assert not [l for l in page.loads if not (l.startswith('data:') or (folder/l).is_file())], name
        assert len(page.anchors) == len(set(page.anchors)), f'{name}: an anchor twice'
    for p in [*folder.glob('*.css'), *folder.glob('*.js')]: assert not re.search(r'@import|url\(|fetch\(|XMLHttp|https?://', re.sub(r'const NAMES = .*', '', p.read_text(encoding='utf-8')))


def test_definitions_formulas_and_names(site):
    _, folder = site
    read = lambda name: (folder/name).read_text(encoding='utf-8')
    splits = read('11_splits.html')
    assert re.search(r'id="carve_valid"><h3><b>carve_valid</b>\(.*?\)</h3><p>.*?<table>', splits, re.S) and '<a href="#carve_valid"><code>' not in re.findall(r'<h3.*?</h3>', splits)
    assert '<math' in read('54_losses.html') and '\\gamma' not in read('54_losses.html')
    assert re.search(r'<a href="10_corpus.html#check_corpus"><code>check_corpus</code></a>', read('1-train-on-tau.html'))
    train = read('train.html')
    assert re.search(r'<td><code>epochs</code></td><td><code>int</code></td><td><code>8</code></td><td>passes over', train)
    assert 'MathJax' not in splits and 'require.js' not in splits


def test_a_site_replaces_only_a_site(tmp_path):
    (tmp_path/'thesis.tex').write_text('mine')
    with pytest.raises(InputError, match='something else'): build_site(tmp_path, ROOT)
    assert (tmp_path/'thesis.tex').read_text() == 'mine'


def test_make_docs():
    "`make docs` is build_site, where git does not look"
    text = (ROOT/'Makefile').read_text()
    assert re.search(r'^docs: .*\n\t.*build_site\(', text, re.M)
    assert '_docs/' in (ROOT/'.gitignore').read_text().split()
