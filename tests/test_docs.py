"""Every command of the tutorials runs as it is printed."""
import json
import os
import re
import shlex
import shutil
import time
from pathlib import Path

import pytest
import yaml

import launch
from asc.run.papermill import read_argv
from conftest import ROOT

PAGES = sorted((ROOT/'nbs/tutorials').glob('*.md'))
BLOCK = re.compile(r'^```(\w+)\n(.*?)^```$', re.S | re.M)
CONTAINER = 'test_docs.py::test_container_installs_as_the_readme_does'
# what cannot run here, and the test of its code: it needs a network or podman, or ends only with Ctrl-C
DOWNLOAD = """python -c "import asc; asc.download_corpus('tau2022')\""""
PODMAN = 'podman run --rm -v ./data:/asc/data -v ./runs:/asc/runs asc make train ARGS="-p epochs 20"'
ELSEWHERE = {
    DOWNLOAD: 'test_corpus.py::test_download_corpus',
    'asc demo runs/first runs/small/qat.onnx': 'test_demo.py::test_page',
    'podman build -t asc -f nbs/tutorials/Containerfile .': CONTAINER,
    PODMAN: CONTAINER,
}
TAU = 'data/TAU-urban-acoustic-scenes-2022-mobile-development'
# what is the reader's to set, and what the test sets instead
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
# what a page leaves
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
    text = page.read_text(encoding='utf-8')
    return [body for kind, body in BLOCK.findall(text) if kind in kinds]


# the tutorials

def test_a_forked_kernel_answers_and_dies_with_its_client(kernels, monkeypatch):
    "Libraries are loaded before the fork, except those that ask for a notebook; kill -9 on the client ends the kernel"
    from jupyter_client.manager import start_new_kernel
    monkeypatch.setenv('JUPYTER_PATH', str(kernels))
    manager, client = start_new_kernel()
    output = []
    client.execute_interactive(
        'import os, sys; print(os.getpid(), "torch" in sys.modules, "fastai" in sys.modules)',
        output_hook=lambda m: output.append(m['content'].get('text', '')),
    )
    pid, torch, fastai = ''.join(output).split()
    assert (torch, fastai) == ('True', 'False')
    client.stop_channels()
    os.kill(manager.provisioner.pid, 9)
    for _ in range(100):
        if not Path(f'/proc/{pid}').exists(): break
        time.sleep(.1)
    else:
        raise AssertionError('the kernel lives on')
    manager.cleanup_resources()


UNWANTED = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
# folders of recordings of one's own, and the clips of the synthetic corpus in them
RECORDINGS = {
    'my-corpus/audio': r'(?:bus|park|tram)-.*-[0-3]-[ab]\.wav',
    'recordings': r'tram-.*-[01]-s1\.wav',
}


@pytest.fixture(scope='module')
def desk(synthetic, short_test, tmp_path_factory):
    "Where a reader types: a copy of the project, a small synthetic corpus in place of TAU, and own recordings"
    desk = tmp_path_factory.mktemp('desk')
    for name in ('asc', 'nbs'):
        shutil.copytree(ROOT/name, desk/name, ignore=UNWANTED)
    shutil.copy(ROOT/'settings.ini', desk)
    (desk/'nbs/recipes/small.yaml').write_text(yaml.safe_dump(SMALL))
    shutil.copytree(short_test, desk/TAU, symlinks=True)
    for folder, clips in RECORDINGS.items():
        (desk/folder).mkdir(parents=True)
        for path in (synthetic/'audio').iterdir():
            if re.fullmatch(clips, path.name): shutil.copy(path, desk/folder)
    return desk


def script(page):
    "The commands of a page, with other values for what is the reader's to set"
    lines = ''.join(blocks(page, 'sh')).splitlines(keepends=True)
    text = ''.join(line for line in lines if line.rstrip() not in ELSEWHERE)
    values = VALUES | MORE.get(page.stem[0], {})
    assignment = re.compile(r'^([A-Z_]+)=(?!\$).*$', re.M)
    return assignment.sub(lambda match: f"{match[1]}='{values[match[1]]}'", text)


def write_files(page, desk):
    "The files that a page tells the reader to write; the first line of each is its name"
    for body in blocks(page, 'python', 'yaml'):
        name = re.match(r'# (\S+)', body)[1]
        (desk/name).write_text(body, encoding='utf-8')


@pytest.fixture(scope='module')
def walk(desk, kernels):
    "walk(page): type a page as it stands, after the pages whose runs it takes; each page once"
    results = {}
    path = os.pathsep.join([str(launch.BIN), os.environ['PATH']])

    def walk(page):
        if page not in results:
            for number in NEEDS.get(page.stem[0], '1'): walk(PAGES[int(number) - 1])
            write_files(page, desk)
            words = ['bash', '-euxo', 'pipefail', '-c', script(page)]
            results[page] = launch.run(*words, cwd=desk, timeout=900, kernels=kernels, PATH=path)
        return results[page]
    return walk


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_tutorial(page, walk, desk):
    "Every box of the page, one after the other in one shell, leaves what the page speaks of"
    result = launch.check(walk(page))
    assert not [path for path in LEFT[page.stem[0]] if not (desk/path).exists()]
    for folder in re.findall(r'-p out (\S+)', ''.join(blocks(page, 'sh'))):
        assert (desk/folder/'metrics.json').exists()
    if page.stem[0] == '6':
        assert result.stdout.strip().endswith('nothing to object to')


def test_what_a_tutorial_leaves_elsewhere_is_tested_there():
    "Lines that a test leaves out are on a page, and the tests named for them exist"
    text = ''.join(p.read_text(encoding='utf-8') for p in PAGES)
    for line, test in ELSEWHERE.items():
        file, name = test.split('::')
        assert line in text
        assert f'def {name}(' in (ROOT/'tests'/file).read_text(encoding='utf-8')


def read_cells(path):
    "The cells of a notebook"
    return json.loads(path.read_text(encoding='utf-8'))['cells']


def parameters(path):
    "Names in the parameters cell of a notebook"
    tagged = [c for c in read_cells(path) if 'parameters' in c['metadata'].get('tags', [])]
    return re.findall(r'^(\w+): ', ''.join(tagged[0]['source']), re.M)


def read_prose(path):
    "A tutorial, or the Markdown of a notebook"
    if path.suffix == '.md': return path.read_text(encoding='utf-8')
    cells = [c for c in read_cells(path) if c['cell_type'] == 'markdown']
    return '\n'.join(''.join(c['source']) for c in cells)


def commands():
    "(file, command) of every papermill command in the notebooks' text and the tutorials"
    pairs = []
    for path in [*sorted((ROOT/'nbs').glob('*.ipynb')), *PAGES]:
        text = read_prose(path).replace('\\\n', ' ')
        shell = re.findall(r'^```(?:sh|bash)\n(.*?)^```', text, re.S | re.M)
        lines = [line.split('  #')[0] for body in shell for line in body.splitlines()]
        for line in lines + re.findall(r'`([^`\n]+)`', text):
            if re.match(r'papermill +nbs/\w+\.ipynb', line): pairs.append((path.name, line))
    return pairs


COMMANDS = [pytest.param(*pair, id=f'{pair[0]}-{i}') for i, pair in enumerate(commands())]


@pytest.mark.parametrize('where, command', COMMANDS)
def test_papermill_commands_name_what_exists(where, command):
    "The notebook, its parameters and the recipe of a command exist"
    words, options = read_argv(shlex.split(command)[1:])
    assert (ROOT/words[0]).is_file()
    assert set(options) <= set(parameters(ROOT/words[0])), f'{where}: {command}'
    for recipe in re.findall(r'nbs/recipes/([\w-]+)\.yaml', command):
        if recipe in ('NAME', '$RECIPE'): continue
        assert (ROOT/f'nbs/recipes/{recipe}.yaml').is_file()


def test_container_installs_as_the_readme_does():
    "The container cannot be built here; what it runs is what `make` runs, on a supported Python"
    lines = (ROOT/'nbs/tutorials/Containerfile').read_text(encoding='utf-8').splitlines()
    makefile = (ROOT/'Makefile').read_text()
    targets = [line.split()[-1] for line in lines if line.startswith('RUN make')]
    stamp = re.search(r'^STAMP +:= \$\(VENV\)/(\S+)', makefile, re.M)[1]
    assert targets == [f'.venv/{stamp}']
    assert set(re.findall(r'podman \w+.*', '\n'.join(lines))) <= set(ELSEWHERE)
    base = next(line for line in lines if line.startswith('FROM'))
    assert re.match(r'FROM python:3\.1[0-3]\b', base)
    words = next(line for line in lines if line.startswith('CMD')).removeprefix('CMD')
    assert json.loads(words) == ['make', 'train']
    assert re.search(r'^train:', makefile, re.M)
    installed = next(line for line in lines if 'apt-get install' in line).split()
    assert 'git' in installed

