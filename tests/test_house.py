"""The house rules: notebooks are the source, imports flow one way, runs are well formed, nothing is foreign."""
import ast
import atexit
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbdev.config import get_config
from nbdev.test import test_nb as run_nb

from air import is_exported, measure, notebooks, sources
from conftest import ROOT
from rooms import ROOMS

NBS = notebooks(ROOT/'nbs')
RUNS = [p for p in NBS if p.parent.name == 'nbs' and not p.name[0].isdigit() and p.stem != 'index']


def name_of(path):
    return str(path.relative_to(ROOT/'nbs').with_suffix(''))


def module_of(path):
    "The module a numbered notebook exports"
    for source in sources(path):
        if match := re.search(r'^#\|\s*default_exp\s+(\S+)', source, re.M):
            return match[1]


def place_of(path):
    "Where a notebook stands in the order of imports"
    return ROOMS.index(module_of(path).split('.')[0]), path.name


def imported_modules(source):
    "Modules of asc that a cell imports, also inside a string that another process runs"
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names += re.findall(r'(?:from|import) (asc\.[\w.]+)', node.value)
    return [name.removeprefix('asc.') for name in names if name.startswith('asc.')]


@pytest.fixture
def passing_shell():
    "IPython keeps every shell until the process ends, and clears it then, one by one; here it may go after its test"
    yield
    atexit.unregister(InteractiveShell._instance.atexit_operations)


@pytest.mark.usefixtures('passing_shell')
@pytest.mark.parametrize('path', [p for p in NBS if p not in RUNS], ids=name_of)
def test_notebook_runs(path, monkeypatch, capfd):
    "Every notebook runs from top to bottom, as nbdev_test does it; papermill runs the run notebooks in test_run.py"
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv('ASC_TRUST', os.environ['ASC_TRUST'])    # restored afterwards
    ok, _ = run_nb(path, skip_flags=get_config().tst_flags.split(), basepath=ROOT)
    assert ok, capfd.readouterr().err[-3000:]


def test_imports_flow_one_way():
    "An exported cell imports only from rooms above its own and from earlier notebooks of its room"
    places = {module_of(p): place_of(p) for p in NBS if module_of(p)}
    wrong = []
    for path in NBS:
        for source in filter(is_exported, sources(path)):
            for module in imported_modules(source):
                if places.get(module, (len(ROOMS), '')) >= place_of(path):
                    wrong.append(f'{name_of(path)} imports {module}')
    assert not wrong


def test_rooms_agree():
    "A notebook lies in the folder whose name its module begins with; the root of the package shows at most 20 names"
    for path in NBS:
        if module := module_of(path):
            assert path.parent.name == (module.rpartition('.')[0] or 'nbs'), name_of(path)
    names = {p.name for p in (ROOT/'asc').iterdir()} - {'__pycache__'}
    assert len(names) <= 20, sorted(names)


@pytest.mark.parametrize('path', [p for p in NBS if module_of(p)], ids=name_of)
def test_blurb_is_one_line(path):
    "The line after the title begins with > and becomes the docstring of the module"
    first = ''.join(json.loads(path.read_text(encoding='utf-8'))['cells'][0]['source'])
    assert len([line for line in first.splitlines() if line.startswith('> ')]) == 1


def test_package_holds_nothing_stale():
    "Every module of the package is what a notebook exports"
    modules = {m.replace('.', '/') for p in NBS if (m := module_of(p))}
    files = {str(p.relative_to(ROOT/'asc').with_suffix('')) for p in (ROOT/'asc').rglob('*.py')}
    files = {f for f in files if not f.endswith('/__init__')} - {'_modidx'}
    assert files == modules


def test_public_names_are_unique():
    "No two modules share a public name"
    homes = {}
    for path in (ROOT/'asc').rglob('*.py'):
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__':
                for name in ast.literal_eval(node.value):
                    homes.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert not {name: files for name, files in homes.items() if len(files) > 1}


@pytest.mark.parametrize('path', RUNS, ids=name_of)
def test_run_notebook_is_well_formed(path):
    "One tagged parameters cell, the first code cell, annotated; a kernelspec; no outputs"
    nb = json.loads(path.read_text(encoding='utf-8'))
    assert nb['metadata']['kernelspec']['name'] == 'python3'
    tagged = [c for c in nb['cells'] if 'parameters' in c['metadata'].get('tags', [])]
    first = next(c for c in nb['cells'] if c['cell_type'] == 'code')
    assert tagged == [first]
    body = ast.parse(''.join(first['source'])).body
    values = ast.Constant, ast.List, ast.Dict, ast.UnaryOp
    assert body and all(isinstance(n, ast.AnnAssign) and isinstance(n.value, values) for n in body)
    assert not any(c.get('outputs') for c in nb['cells'])


@pytest.mark.parametrize('path', NBS, ids=name_of)
def test_notebook_is_small(path):
    "One concept a notebook: at most 300 code lines, cells of at most 40 lines, no line over 120 columns, 300 kB"
    code = sources(path)
    lines = [line for source in code for line in source.splitlines() if line.strip() and not line.startswith('#|')]
    assert len(lines) <= 300
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    parameters = [''.join(cell['source']) for cell in cells if 'parameters' in cell['metadata'].get('tags', [])]
    logic = [source for source in code if source not in parameters]    # a parameter takes a line
    assert max((len(source.splitlines()) for source in logic), default=0) <= 40
    assert path.stat().st_size <= 300 * 1024
    text = [line for cell in cells for line in ''.join(cell['source']).splitlines()]
    assert not [line for line in text if len(line) > 120 and not cannot_be_wrapped(line)]


def cannot_be_wrapped(line):
    "Rows of a Markdown table and lines that are one long word, such as an address"
    return line.lstrip().startswith('|') or max(map(len, line.split())) > 100


def test_there_is_air():
    "Definitions are short and have a cell of their own (nbdev's own figures: 292 and 980 characters, 29 %)"
    air = measure(ROOT/'nbs')
    assert air['median characters'] <= 350
    assert air['p90 characters'] <= 980
    assert air['share a cell %'] <= 30


def test_lines_are_short():
    "No line of a test, a tutorial, a recipe or the page over 120 columns"
    folders = 'tests/*.py', 'nbs/tutorials/*.md', 'nbs/recipes/*.yaml', 'nbs/site/*.py', '*.md', '*.py'
    files = [path for folder in folders for path in ROOT.glob(folder)]
    for path in files:
        lines = path.read_text(encoding='utf-8').splitlines()
        long = [line for line in lines if len(line) > 120 and not cannot_be_wrapped(line)]
        assert not long, f'{path.name}: {long[0]}'


def test_links_lead_somewhere():
    "Every link from a notebook, a tutorial or the README to a file of the project finds it"
    broken = []
    for path in [*NBS, *ROOT.glob('nbs/tutorials/*.md'), ROOT/'README.md']:
        folder = ROOT if path.stem == 'index' else path.parent      # README.md is made of it
        for target in re.findall(r'\]\(([^)\s"\\:]+\.(?:ipynb|md|yaml))', path.read_text(encoding='utf-8')):
            if '{' not in target and not (folder/target).exists():
                broken.append(f'{path.relative_to(ROOT)}: {target}')
    assert not broken


def test_nothing_foreign_is_committed():
    "No path of a machine, no registry host, no recording that is not ours"
    listed = subprocess.run(['git', '-C', str(ROOT), 'ls-files'], capture_output=True, text=True).stdout.split()
    if not listed:
        pytest.skip('not a git checkout')
    assert not [f for f in listed if f.endswith(('.wav', '.flac', '.ckpt', '.pth', '.pt'))]
    machine = re.compile(r'(?<![\w.])/(work|root|home|tmp/w)/\w+')
    host = re.compile('py' + r'pi\.org|file' + r's\.python' + r'hosted')
    for name in listed:
        if Path(name).suffix not in ('.ipynb', '.py', '.md', '.ini', '.toml', '.yaml', '') or not (ROOT/name).exists():
            continue
        text = (ROOT/name).read_text(encoding='utf-8')
        found = machine.search(text) or host.search(text)
        assert not found, f'{name}: {found[0]}'


def test_readme_is_the_index():
    "README.md is what `make readme` makes of nbs/index.ipynb"
    from nbconvert import MarkdownExporter
    text, _ = MarkdownExporter().from_filename(str(ROOT/'nbs/index.ipynb'))
    assert text.strip() == (ROOT/'README.md').read_text(encoding='utf-8').strip(), 'run make readme'


@pytest.mark.parametrize('path', sorted((ROOT/'asc').rglob('*.py')), ids=lambda path: path.stem)
def test_module_is_tidy(path):
    "A name is defined and imported once, what is imported is used, and text is opened as UTF-8"
    tree = ast.parse(path.read_text(encoding='utf-8'))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    plain = [node.name for node in functions if not any('patch' in ast.unparse(mark) for mark in node.decorator_list)]
    assert len(plain) == len(set(plain)), sorted(plain)
    nodes = list(ast.walk(tree))
    imported = [alias.asname or alias.name.partition('.')[0] for node in tree.body
                if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names]
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    unused = [name for name in imported if name not in used | SIDE_EFFECTS]
    assert len(imported) == len(set(imported)) and not unused, unused
    assert not [ast.unparse(node) for node in nodes if isinstance(node, ast.Call) and opens_text_by_locale(node)]


# `module_summary` brings `learn.summary`, by being imported.
SIDE_EFFECTS = {'module_summary', 'annotations'}


def opens_text_by_locale(call):
    "Whether a call opens a text without saying its encoding"
    function = call.func
    name = getattr(function, 'attr', getattr(function, 'id', ''))
    if any(word.arg == 'encoding' for word in call.keywords): return False
    if name == 'read_text': return not call.args and isinstance(function, ast.Attribute)
    if name == 'write_text': return isinstance(function, ast.Attribute)
    modes = [getattr(part, 'value', 'b') for part in call.args[1:2]] or ['r']
    return isinstance(function, ast.Name) and name == 'open' and 'b' not in str(modes[0])
