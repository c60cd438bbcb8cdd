"""Every command of the README and the tutorials runs as it is printed."""
import inspect
import json
import os
import re
import shlex
import shutil
import time
from pathlib import Path

import pytest
import soundfile as sf

import launch
import left
from asc.data.choose import WORLD
from asc.data.synthetic import make_synthetic
from asc.run.command import read_options, split_argv
from conftest import ROOT
from miniatures import miniature

TUTORIALS = sorted((ROOT/'nbs/tutorials').glob('*.md'))
PAGES = [ROOT/'README.md', *TUTORIALS]
BLOCK = re.compile(r'^```(\w+)\n(.*?)^```$', re.S | re.M)
CONTAINER = 'test_docs.py::test_container_installs_as_the_readme_does'
# what cannot run here, why, and what is run instead: a test elsewhere, or a command that reads the line
PODMAN = 'podman run --rm -v ./data:/asc/data -v ./runs:/asc/runs asc make train ARGS="-p epochs 20"'
LEFT_OUT = {
    'make train': ('installs from the network', 'make --dry-run train'),
    'make test': ('installs from the network, and would run this test', 'make --dry-run test'),
    'make gpu-check': ('needs an accelerator', 'on_device/test_gpu_check.py::test_it_says_where_it_was'),
    'make docs': ('installs from the network', 'test_site.py::test_make_docs'),
    'jupyter lab': ('serves until Ctrl-C', 'jupyter lab --version'),
    'asc demo runs/a runs/q/ptq.onnx': ('serves until Ctrl-C', 'test_demo.py::test_page'),
    'asc demo runs/first runs/small/qat.onnx': ('serves until Ctrl-C', 'test_demo.py::test_page'),
    'asc data get tau2022': ('needs a network', 'test_get.py::test_each_name_by_command'),
    'asc data get esc50': ('needs a network', 'test_get.py::test_each_name_from_the_archive_to_the_table'),
    'asc data get tau2022 --subset 5': ('needs a network', 'test_get.py::test_share'),
    'podman build -t asc -f nbs/tutorials/Containerfile .': ('needs podman', CONTAINER),
    PODMAN: ('needs podman', CONTAINER),
}
TAU = 'TAU-urban-acoustic-scenes-2022-mobile-development'
# what a page leaves
LEFT = {
    'README': [
        'runs/a/metrics.json', 'runs/b/model.safetensors', 'runs/mine/metrics.json', 'runs/sweep', 'runs/distill',
        'runs/q/ptq.onnx', 'runs/entry/Curie_UP_task1_1',
        'runs/esc50/metrics.json', 'my-corpus.yaml',
    ],
    '1': ['runs/first/model.safetensors', 'runs/baseline', 'runs/baseline-report/metrics.json'],
    '2': ['my-corpus/test.csv', 'runs/field/metrics.json', 'runs/own-corpus/metrics.json', 'runs/two/metrics.json'],
    '3': ['runs/own/model.safetensors'],
    '4': ['runs/teacher/metrics.json', 'runs/taught/metrics.json', 'runs/taught-report/metrics.json'],
    '5': ['runs/small/qat.onnx', 'runs/small/qat.md'],
    '6': ['runs/curie/Curie_UP_task1_1', 'runs/curie-2025/metrics.json'],
    '7': ['windows.csv', 'runs/explored/metrics.json'],
    '8': ['runs/speed/ratios.csv', 'runs/shared-teacher/metrics.json'],
}


def blocks(page, *kinds):
    "(kind, body) of the code blocks of these kinds, in their order"
    text = page.read_text(encoding='utf-8')
    return [(kind, body) for kind, body in BLOCK.findall(text) if kind in kinds]


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
# recordings of one's own: clips of the synthetic corpus
RECORDINGS = {
    'my-corpus/audio': r'(?:bus|park|tram)-.*-[0-3]-[ab]\.wav',
    'recordings': r'tram-.*-[01]-s1\.wav',
}


@pytest.fixture(scope='module')
def desk(synthetic, short_test, tmp_path_factory):
    "Where a reader types: a copy of the project, small corpora in place of TAU and of the default, and own recordings"
    desk = tmp_path_factory.mktemp('desk')
    for name in ('asc', 'nbs'):
        shutil.copytree(ROOT/name, desk/name, ignore=UNWANTED)
    for name in ('settings.ini', 'setup.py', 'pyproject.toml', 'Makefile'): shutil.copy(ROOT/name, desk)
    copy_corpus(short_test, desk/'data'/TAU, snippets='0123', seconds=.5)
    (desk/TAU).symlink_to(desk/'data'/TAU)
    make_default_corpus(short_test, desk/'data')
    miniature('esc50', desk/'data')
    for folder, clips in RECORDINGS.items():
        (desk/folder).mkdir(parents=True)
        for path in (synthetic/'audio').iterdir():
            if re.fullmatch(clips, path.name): shutil.copy(path, desk/folder)
    copy_lists(synthetic, desk/'my-corpus', RECORDINGS['my-corpus/audio'])
    copy_by_scene(synthetic/'audio', desk/'field-recordings')
    return desk


def copy_by_scene(audio, folder):
    "A folder for each scene, names that tell the place; two snippets of recordings that `my-corpus` does not have"
    calls = dict(metro='bus', airport='park', metro_station='tram')
    for path in audio.iterdir():
        name = re.fullmatch(r'(metro|airport|metro_station)-(\w+)-(\d+)-(\d+)-([01])-([ab])\.wav', path.name)
        if not name: continue
        scene, city, location, *rest = name.groups()
        (folder/calls[scene]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder/calls[scene]/f"{city}{location}_{''.join(rest)}.wav")


def copy_lists(corpus, folder, clips):
    "The lists of a corpus, with the lines of these clips only; the training lists are the whole one, but for a quarter"
    for name in ('meta.csv', 'test.csv', 'split100.csv'):
        head, *rows = (corpus/name).read_text(encoding='utf-8').splitlines()
        kept = [row for row in rows if re.fullmatch(rf'audio/{clips}\t.*', row)]
        (folder/name).write_text('\n'.join([head, *kept]) + '\n', encoding='utf-8')
    for name in ('split5', 'split10', 'split50'):
        shutil.copy(folder/'split100.csv', folder/f'{name}.csv')
    head, *rows = (folder/'split100.csv').read_text(encoding='utf-8').splitlines()
    (folder/'split25.csv').write_text('\n'.join([head, *rows[::4]]) + '\n', encoding='utf-8')


def copy_corpus(corpus, folder, snippets, seconds):
    "A smaller corpus: some snippets of each recording, and so many seconds of each"
    (folder/'audio').mkdir(parents=True)
    copy_lists(corpus, folder, rf'.*-[{snippets}]-\w+\.wav')
    for row in (folder/'meta.csv').read_text(encoding='utf-8').splitlines()[1:]:
        name = row.split('\t')[0]
        wave, rate = sf.read(corpus/name, dtype='int32')
        sf.write(folder/name, wave[:round(seconds*rate)], rate, 'PCM_24')


def make_default_corpus(corpus, data):
    "The small corpus in the place of the one that a run makes when it is given none"
    default = {name: p.default for name, p in inspect.signature(make_synthetic).parameters.items()} | WORLD
    folder = data/'synthetic-{train}x{test}-seed{seed}'.format(**default)
    copy_corpus(corpus, folder, snippets='0123456789', seconds=1)
    note = json.loads((corpus/'SYNTHETIC').read_text(encoding='utf-8'))
    note['made'].update({name: default[name] for name in ('train', 'test', 'seed')})
    (folder/'SYNTHETIC').write_text(json.dumps(note), encoding='utf-8')


END = '\nEND_OF_BOX\n'


def write_box(kind, body):
    "The lines of the shell that do what a box says: run it, or write the file whose name is its first line"
    if kind == 'sh':
        lines = [instead(line) for line in body.splitlines()]
        return '\n'.join(lines)
    name = re.match(r'# (\S+\.\w+)$', body, re.M)
    return f"cat > {name[1]} <<'END_OF_BOX'\n{body}{END}" if name else f"python - <<'END_OF_BOX'\n{body}{END}"


def instead(line):
    "A line as printed, or the command that stands for it"
    if line.rstrip() not in LEFT_OUT: return line
    other = LEFT_OUT[line.rstrip()][1]
    return '' if '::' in other else other


def test_every_box_runs_as_printed(desk, kernels):
    "The README and the tutorials, one after the other in one folder; a page is typed into one shell"
    path = os.pathsep.join([str(launch.BIN), os.environ['PATH']])
    common = dict(cwd=desk, kernels=kernels, timeout=3600, PATH=path, HOME=str(desk), PYTHONPATH=str(desk))
    for page in PAGES:
        script = '\n'.join(write_box(*box) for box in blocks(page, 'sh', 'python', 'yaml'))
        result = launch.run('bash', '-euxo', 'pipefail', '-c', script, **common)
        assert result.returncode == 0, f'{page.name}: {result.stderr[-3000:]}'
        missing = [path for path in LEFT[page.stem.split('-')[0]] if not (desk/path).exists()]
        assert not missing, page.name
        for folder in outputs(page): assert list((desk/folder).rglob('metrics.json')), folder
        for look in left.LOOKS.get(page.stem.split('-')[0], []): look(desk)
    assert len(list((desk/'data').glob('synthetic-*'))) == 1           # no run made another default corpus
    assert len(list((desk/'runs/slurm').glob('*/metrics.json'))) == 1
    assert len(list((desk/'runs/dask').glob('*/metrics.json'))) == 1


def outputs(page):
    "Folders that the commands of a page are told to write"
    text = ''.join(body for _, body in blocks(page, 'sh'))
    return re.findall(r'(?:-p out|--folder|asc rank) (\S+)', text)


def test_no_command_takes_the_folder_of_another():
    "Followed literally, no run finds the folder of another; what the README takes for granted has been made above"
    folders = [folder for page in PAGES for folder in outputs(page)]
    assert len(folders) == len(set(folders))
    text = ''.join(body for _, body in blocks(ROOT/'README.md', 'sh'))
    made, taken = outputs(ROOT/'README.md'), re.findall(r'runs/\w+', text)
    assert set(taken) <= set(made)


def test_what_a_page_leaves_elsewhere_is_tested_there():
    "Lines that a test leaves out are on a page, and the tests named for them exist"
    text = ''.join(p.read_text(encoding='utf-8') for p in PAGES)
    for line, (reason, other) in LEFT_OUT.items():
        assert line in text and reason
        if '::' not in other: continue
        file, name = other.split('::')
        assert f'def {name}(' in (ROOT/'tests'/file).read_text(encoding='utf-8')


def test_the_readme_uses_the_file_that_a_tutorial_shows():
    "me.yaml of the README is the box of tutorial 6"
    (kind, body), = blocks(TUTORIALS[5], 'yaml')
    assert body == (ROOT/'nbs/tutorials/me.yaml').read_text(encoding='utf-8')


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
    for path in [*sorted((ROOT/'nbs').glob('*.ipynb')), *TUTORIALS]:
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
    words, options = split_argv(shlex.split(command)[1:])
    options = read_options([(option, values) for option, values in options if option != '-f'])
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
    assert set(re.findall(r'podman \w+.*', '\n'.join(lines))) <= set(LEFT_OUT)
    base = next(line for line in lines if line.startswith('FROM'))
    assert re.match(r'FROM python:3\.1[0-3]\b', base)
    words = next(line for line in lines if line.startswith('CMD')).removeprefix('CMD')
    assert json.loads(words) == ['make', 'train']
    assert re.search(r'^train:', makefile, re.M)
    installed = next(line for line in lines if 'apt-get install' in line).split()
    assert 'git' in installed

