"""The site builds offline and whole: every page, link and definition, and nothing from elsewhere."""
import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from filelock import FileLock

from asc.run.parameters import declared_parameters, find_notebook
from conftest import ROOT
from rooms import ROOMS

PAGES = sorted((ROOT/'nbs/tutorials').glob('*.md'))


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
    "The rooms, each with what it is for; a room without a README would be missing"
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
    assert re.search(r'href="../data/23_checking.html#asc.data.checking.check_corpus"', lesson)


def test_the_parameters_of_a_run_are_a_table(built):
    site, _ = built
    text = re.sub(r'<[^>]+>', '', (site/'train.html').read_text(encoding='utf-8'))
    assert re.search(r'epochs\s+int\s+8\s+passes over', text)
    assert set(declared_parameters(find_notebook('train'))) <= set(re.findall(r'^\w+$', text, re.M))


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
