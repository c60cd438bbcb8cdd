"""The site builds offline and whole, and every command of the tutorials runs as it is printed."""
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
import yaml
from filelock import FileLock

from asc.run.papermill import read_argv
from conftest import ROOT

PAGES = sorted((ROOT/'nbs/tutorials').glob('*.md'))
BLOCK = re.compile(r'^```(\w+)\n(.*?)^```$', re.S | re.M)
CONTAINER = 'test_docs.py::test_container_installs_as_the_readme_does'
ELSEWHERE = {"""python -c "import asc; asc.download_corpus('tau2022')\"""": 'test_corpus.py::test_download_corpus',    # what needs a network, and the test of its code
             'asc demo runs/first runs/small/qat.onnx': 'test_demo.py::test_page',                                           # ends only with Ctrl-C
             'podman build -t asc -f nbs/tutorials/Containerfile .': CONTAINER,
             'podman run --rm -v ./data:/asc/data -v ./runs:/asc/runs asc make train ARGS="-p epochs 20"': CONTAINER}
TAU = 'data/TAU-urban-acoustic-scenes-2022-mobile-development'
VALUES = dict(TAU=TAU, RECIPE='small', EPOCHS='1', QAT_EPOCHS='1', SPLITS='5', SEEDS='0', MINE='my-corpus', SOUNDS='recordings', TEACHERS='[runs/own]')
MORE = {'3': dict(EPOCHS='30')}                     # this one is to know something: it is the teacher of the next page
SMALL = dict(backbone='cp_mobile_24', frontend='dcase24', pipeline='none', bs=32, backbone_args=dict(base=8, blocks=[1, 1, 1], strides=dict(b1=[2, 2], b2=[2, 1])))
NEEDS = {'1': '', '4': '13', '8': ''}                        # pages whose runs a page takes; the others that of the first
LEFT = {'1': ['runs/first/model.safetensors', 'runs/baseline', 'runs/baseline-report/metrics.json'], '2': ['my-corpus/test.csv', 'runs/mine/metrics.json'],
        '3': ['runs/own/model.safetensors'], '4': ['runs/teacher/metrics.json', 'runs/taught/metrics.json', 'runs/taught-report/metrics.json'],
        '5': ['runs/small/qat.onnx', 'runs/small/qat.md'], '6': ['runs/entry/Curie_UP_task1_1', 'runs/entry-2025/metrics.json'],
        '7': ['windows.csv', 'runs/explored/metrics.json'], '8': ['runs/speed/ratios.csv', 'runs/shared-teacher/metrics.json']}


def blocks(page, *kinds): return [body for kind, body in BLOCK.findall(page.read_text(encoding='utf-8')) if kind in kinds]


# the tutorials

@pytest.fixture(scope='module')
def kernels(tmp_path_factory):
    "A Jupyter path whose kernels start from a process that has the large libraries loaded"
    folder = tmp_path_factory.mktemp('kernels')
    server = subprocess.Popen([sys.executable, ROOT/'tests/kernels.py', folder], stdout=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert server.stdout.readline() == 'ready\n'
    yield folder
    server.kill(), server.wait(), server.stdout.close()


def test_a_forked_kernel_answers_and_dies_with_its_client(kernels, monkeypatch):
    from jupyter_client.manager import start_new_kernel
    monkeypatch.setenv('JUPYTER_PATH', str(kernels))
    manager, client = start_new_kernel()
    said = []
    client.execute_interactive('import os, sys; print(os.getpid(), "torch" in sys.modules, "fastai" in sys.modules)', output_hook=lambda m: said.append(m['content'].get('text', '')))
    pid, torch, fastai = ''.join(said).split()
    assert (torch, fastai) == ('True', 'False')                                                  # forked, and what asks for a notebook is not loaded
    client.stop_channels()
    os.kill(manager.provisioner.pid, 9)
    for _ in range(100):
        if not Path(f'/proc/{pid}').exists(): break
        time.sleep(.1)
    else: raise AssertionError('the kernel lives on')
    manager.cleanup_resources()


@pytest.fixture(scope='module')
def desk(synthetic, tmp_path_factory):
    "Where a reader types: a copy of the project, a thinned synthetic corpus in place of TAU, recordings of one's own"
    desk = tmp_path_factory.mktemp('desk')
    for name in ('asc', 'nbs'): shutil.copytree(ROOT/name, desk/name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    shutil.copy(ROOT/'settings.ini', desk)
    (desk/'nbs/recipes/small.yaml').write_text(yaml.safe_dump(SMALL))
    shutil.copytree(synthetic, desk/TAU)
    for path in [desk/TAU/'test.csv', *(desk/TAU/'evaluation_setup').glob('*.csv')]:             # a snippet a recording is enough of a test
        rows = pd.read_csv(path, sep='\t')
        rows[~rows.filename.str.contains(r'-[1-9]-\w+\.wav$')].to_csv(path, sep='\t', index=False)
    for folder, clips in {'my-corpus/audio': r'(?:bus|park|tram)-.*-[0-3]-[ab]\.wav', 'recordings': r'tram-.*-[01]-s1\.wav'}.items():
        (desk/folder).mkdir(parents=True)
        for p in (synthetic/'audio').iterdir():
            if re.fullmatch(clips, p.name): shutil.copy(p, desk/folder)
    return desk


@pytest.fixture(scope='module')
def walk(desk, kernels):
    "Type a page as it stands, with other values for what is the reader's to set; once"
    done = {}
    env = dict(os.environ, OMP_NUM_THREADS='1', JUPYTER_PATH=str(kernels), PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    def type_page(page):
        if page in done: return done[page]
        for need in NEEDS.get(page.stem[0], '1'): type_page(PAGES[int(need) - 1])
        for body in blocks(page, 'python', 'yaml'): (desk/re.match(r'# (\S+)', body)[1]).write_text(body, encoding='utf-8')
        text = ''.join(blocks(page, 'sh'))
        text = ''.join(l for l in text.splitlines(True) if l.rstrip() not in ELSEWHERE)
        text = re.sub(r'^([A-Z_]+)=(?!\$).*$', lambda m: f"{m[1]}='{(VALUES | MORE.get(page.stem[0], {}))[m[1]]}'", text, flags=re.M)
        done[page] = subprocess.run(['bash', '-euxo', 'pipefail', '-c', text], cwd=desk, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900)
        return done[page]
    return type_page


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_tutorial(page, walk, desk):
    "Every box of the page, one after the other in one shell, leaves what the page speaks of"
    r = walk(page)
    assert r.returncode == 0, r.stderr[-3000:]
    assert not [p for p in LEFT[page.stem[0]] if not (desk/p).exists()]
    for folder in re.findall(r'-p out (\S+)', ''.join(blocks(page, 'sh'))): assert (desk/folder/'metrics.json').exists()
    if page.stem[0] == '6': assert r.stdout.strip().endswith('nothing to object to')


def test_what_a_tutorial_leaves_elsewhere_is_tested_there():
    text = ''.join(p.read_text(encoding='utf-8') for p in PAGES)
    for line, test in ELSEWHERE.items():
        file, name = test.split('::')
        assert line in text and f'def {name}(' in (ROOT/'tests'/file).read_text(encoding='utf-8')


def parameters(notebook):
    "Names in the parameters cell of a notebook"
    cells = json.loads((ROOT/'nbs'/notebook).read_text(encoding='utf-8'))['cells']
    return re.findall(r'^(\w+): ', next(''.join(c['source']) for c in cells if 'parameters' in c['metadata'].get('tags', [])), re.M)


def commands():
    "(file, words) of every papermill command in the notebooks' text and the tutorials"
    for path in [*sorted((ROOT/'nbs').glob('*.ipynb')), *PAGES]:
        text = path.read_text(encoding='utf-8').replace('\\\n', ' ')
        if path.suffix == '.ipynb': text = '\n'.join(''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type'] == 'markdown')
        found = [l.split('  #')[0] for body in re.findall(r'^```(?:sh|bash)\n(.*?)^```', text, re.S | re.M) for l in body.splitlines()] + re.findall(r'`([^`\n]+)`', text)
        yield from ((path.name, c) for c in found if re.match(r'papermill +nbs/\w+\.ipynb', c))


@pytest.mark.parametrize('where, command', [pytest.param(*c, id=f'{c[0]}-{i}') for i, c in enumerate(commands())])
def test_papermill_commands_name_what_exists(where, command):
    words, given = read_argv(shlex.split(command)[1:])
    assert (ROOT/words[0]).is_file()
    assert set(given) <= set(parameters(Path(words[0]).name)), f'{where}: {command}'
    for recipe in re.findall(r'nbs/recipes/([\w-]+)\.yaml', command): assert recipe in ('NAME', '$RECIPE') or (ROOT/f'nbs/recipes/{recipe}.yaml').is_file()


def test_container_installs_as_the_readme_does():
    "The recipe cannot be built here; what it runs is what `make` runs, on a supported Python, and its files are there"
    lines = (ROOT/'nbs/tutorials/Containerfile').read_text(encoding='utf-8').splitlines()
    made = [l.split()[-1] for l in lines if l.startswith('RUN make')]
    stamp = re.search(r'^STAMP +:= \$\(VENV\)/(\S+)', (ROOT/'Makefile').read_text(), re.M)[1]
    assert made == [f'.venv/{stamp}'] and set(re.findall(r'podman \w+.*', '\n'.join(lines))) <= set(ELSEWHERE)
    assert re.match(r'FROM python:3\.1[0-3]\b', next(l for l in lines if l.startswith('FROM')))
    assert json.loads(next(l for l in lines if l.startswith('CMD'))[4:]) == ['make', 'train']
    assert 'git' in next(l for l in lines if 'apt-get install' in l).split() and re.search(r'^train:', (ROOT/'Makefile').read_text(), re.M)


# the site

class Reader(HTMLParser):
    "Links, anchors and loaded resources of a page"

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.loads = [], [], []
        self.feed(path.read_text(encoding='utf-8'))
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = {key: value or '' for key, value in attrs}
        if tag == 'a' and 'href' in attrs:
            self.links.append(attrs['href'])
        if 'id' in attrs:
            self.anchors.append(attrs['id'])
        if tag in ('link', 'use', 'image'):
            self.loads.append(attrs.get('href', ''))
        self.loads += [attrs[key] for key in ('src', 'srcset', 'poster', 'data', 'action') if attrs.get(key)]
        self.loads += re.findall(r'url\(([^)]+)\)', attrs.get('style', ''))


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "The site and what Sphinx said, made once for all workers of pytest-xdist"
    folder = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        folder = folder.parent
    site, warnings = folder/'docs', folder/'docs-warnings.txt'
    with FileLock(folder/'docs.lock'):
        if not (site/'index.html').is_file():
            command = [sys.executable, '-m', 'sphinx', '-q', '-w', warnings, '-c', 'nbs/site', 'nbs', site]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
    return site, warnings.read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def pages(built):
    "Every page by its address below the site"
    site, _ = built
    return {str(path.relative_to(site)): Reader(path) for path in site.rglob('*.html')}


def page_of(path):
    "The address of a source; Sphinx has a page `search` of its own"
    name = str(path.relative_to(ROOT/'nbs').with_suffix('.html'))
    return 'search-run.html' if name == 'search.html' else name


def target_of(name, link):
    "Address and anchor that a link of a page leads to"
    file, _, anchor = unquote(link).partition('#')
    return (os.path.normpath(Path(name).parent/file) if file else name), anchor


def test_the_site_builds_without_warnings(built):
    _, warnings = built
    assert not warnings


def test_every_notebook_and_tutorial_has_a_page_in_the_sidebar(pages):
    sources = [*(ROOT/'nbs').rglob('[!.]*.ipynb'), *PAGES, *(ROOT/'nbs').glob('*/README.md')]
    wanted = {page_of(path) for path in sources if '.ipynb_checkpoints' not in path.parts}
    assert wanted == set(pages) - {'genindex.html', 'search.html'}
    linked = {target_of('index.html', link)[0] for link in pages['index.html'].links}
    assert wanted <= linked


def test_links_of_the_site_lead_somewhere(pages):
    anchors = {name: {unquote(anchor) for anchor in page.anchors} for name, page in pages.items()}
    broken = []
    for name, page in pages.items():
        for link in page.links:
            if re.match(r'https?://|mailto:', link):
                continue
            file, anchor = target_of(name, link)
            if file not in pages or (anchor and anchor not in anchors[file]):
                broken.append(f'{name}: {link}')
    assert not broken


def test_nothing_is_loaded_from_elsewhere(built, pages):
    site, _ = built
    for name, page in pages.items():
        for load in page.loads:
            file = load.partition('?')[0]
            local = load.startswith(('data:', '#')) or (site/name).parent.joinpath(file).exists()
            assert local, f'{name}: {load}'
    for path in [*site.rglob('*.css'), *site.rglob('*.js')]:
        text = re.sub(r'/\*.*?\*/', '', path.read_text(encoding='utf-8'), flags=re.S)
        loads = re.findall(r'(?:@import|url\(|src=|fetch\()\s*["\']?(?:https?:)?//\S{1,60}', text)
        assert not loads, f'{path.name}: {loads}'


def test_the_sidebar_has_the_rooms_in_order(built):
    "The rooms of test_house.py, each with what it is for; a room without a README would be missing"
    from test_house import ROOMS
    site, _ = built
    settings = runpy.run_path(str(ROOT/'nbs/site/conf.py'))
    assert settings['rooms'] == ROOMS
    index = (site/'index.html').read_text(encoding='utf-8')
    sidebar = index[index.index('class="sidebar-tree"'):index.index('class="main"')]
    shown = re.findall(r'toctree-l1[^>]*><a [^>]*href="(\w+)/README.html">(\w+): \w', sidebar)
    folders = {path.parent.name for path in (ROOT/'nbs').glob('*/[0-9]*.ipynb')}
    assert shown == [(room, room) for room in ROOMS if room in folders]


def test_the_readme_maps_every_room():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    rooms = {path.parent.name for path in (ROOT/'nbs').glob('*/[0-9]*.ipynb')}
    assert not [room for room in rooms if f'| [nbs/{room}/](nbs/{room}/) | `asc.{room}` |' not in text]


def test_definitions_are_documented(built):
    "A signature, a table of its parameters and folded source; no directive of nbdev; formulas as MathML"
    site, _ = built
    splits = (site/'data/20_splits.html').read_text(encoding='utf-8')
    carved = splits[splits.index('id="asc.data.splits.carve_valid"'):]
    assert re.search(r'<table class="parameters.*?<code[^>]*><span class="pre">frac</span>', carved, re.S)
    assert 'Source of carve_valid' in carved
    assert not re.search(r'#\|', splits)
    losses = (site/'train/25_losses.html').read_text(encoding='utf-8')
    assert '<math' in losses and '\\gamma' not in losses and 'MathJax' not in losses
    lesson = (site/'tutorials/1-train-on-tau.html').read_text(encoding='utf-8')
    assert re.search(r'href="../data/15_corpus.html#asc.data.corpus.check_corpus"', lesson)


def test_the_parameters_of_a_run_are_a_table(built):
    site, _ = built
    text = re.sub(r'<[^>]+>', '', (site/'train.html').read_text(encoding='utf-8'))
    assert re.search(r'epochs\s+int\s+8\s+passes over', text)
    assert set(parameters('train.ipynb')) <= set(re.findall(r'^\w+$', text, re.M))


def test_the_recipes_are_listed(built, pages):
    site, _ = built
    text = (site/'recipes/README.html').read_text(encoding='utf-8')
    for path in (ROOT/'nbs/recipes').glob('*.yaml'):
        assert f'href="#{path.stem.replace("_", "-")}"' in text or f'href="#{path.stem}"' in text, path.stem


def test_search_finds_names_and_words(built):
    "The index is a script, so that it loads from a folder as well"
    site, _ = built
    index = (site/'searchindex.js').read_text(encoding='utf-8')
    assert index.startswith('Search.setIndex(')
    assert '"carve_valid"' in index and 'kitchen' in index


def test_make_docs():
    "`make docs` builds the same, where git does not look"
    text = (ROOT/'Makefile').read_text()
    assert re.search(r'^docs: .*\n(\t.*\n)*\t.*sphinx-build .*-c nbs/site nbs _docs$', text, re.M)
    assert '_docs/' in (ROOT/'.gitignore').read_text().split()
