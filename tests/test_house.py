"""The house rules, checked: notebooks are the source, imports flow one way, run notebooks are well formed, nothing foreign is committed."""
import ast
import json
import re
import subprocess

import pytest
from nbdev.config import get_config
from nbdev.test import test_nb as run_nb

from conftest import ROOT

NBS = sorted((ROOT/'nbs').glob('*.ipynb'))
RUNS = [p for p in NBS if not p.name[0].isdigit() and p.stem != 'index']


def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']
def code(path): return [''.join(c['source']) for c in cells(path) if c['cell_type'] == 'code']


def module_of(path):
    "The module a numbered notebook exports"
    return next((m[1] for s in code(path) if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', s, re.M))), None)


@pytest.mark.parametrize('path', NBS, ids=lambda p: p.stem)
def test_notebook_runs(path, monkeypatch, capfd, tmp_path):
    "Every notebook runs from top to bottom, as nbdev_test does it"
    if path in RUNS: pytest.skip('run notebooks are run by papermill in test_run.py')
    monkeypatch.chdir(ROOT/'nbs')
    ok, _ = run_nb(path, skip_flags=get_config().tst_flags.split(), basepath=ROOT)
    assert ok, capfd.readouterr().err[-3000:]


def test_imports_flow_one_way():
    "An exported cell imports only modules of notebooks with a smaller number"
    number = {module_of(p): p.name.split('_')[0] for p in NBS if module_of(p)}
    wrong = []
    for p in NBS:
        for s in code(p):
            if not re.search(r'^#\|\s*export', s, re.M): continue
            for node in ast.walk(ast.parse(s)):
                if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('asc.'):
                    target = node.module.removeprefix('asc.')
                    if number.get(target, '99') >= p.name.split('_')[0]: wrong.append(f'{p.name} imports {node.module}')
    assert not wrong


@pytest.mark.parametrize('path', RUNS, ids=lambda p: p.stem)
def test_run_notebook_is_well_formed(path):
    "One tagged parameters cell, the first code cell, annotated; a kernelspec; no outputs"
    nb = json.loads(path.read_text(encoding='utf-8'))
    assert nb['metadata']['kernelspec']['name'] == 'python3'
    tagged = [c for c in nb['cells'] if 'parameters' in c['metadata'].get('tags', [])]
    first = next(c for c in nb['cells'] if c['cell_type'] == 'code')
    assert tagged == [first]
    body = ast.parse(''.join(first['source'])).body
    assert body and all(isinstance(n, ast.AnnAssign) and isinstance(n.value, (ast.Constant, ast.List, ast.Dict, ast.UnaryOp)) for n in body)
    assert not any(c.get('outputs') for c in nb['cells'])


@pytest.mark.parametrize('path', [p for p in NBS if p not in RUNS], ids=lambda p: p.stem)
def test_notebook_is_small(path):
    "One concept a notebook: at most 300 code lines, exported cells of at most 60 lines, 300 kB"
    lines = sum(len([l for l in s.splitlines() if l.strip() and not l.startswith('#|')]) for s in code(path))
    assert lines <= 300
    assert max((len(s.splitlines()) for s in code(path) if re.search(r'^#\|\s*export', s, re.M)), default=0) <= 60
    assert path.stat().st_size <= 300 * 1024


def test_nothing_foreign_is_committed():
    "No path of a machine, no registry host, no recording that is not ours"
    files = subprocess.run(['git', '-C', str(ROOT), 'ls-files'], capture_output=True, text=True).stdout.split()
    if not files: pytest.skip('not a git checkout')
    assert not [f for f in files if f.endswith(('.wav', '.flac', '.ckpt', '.pth', '.pt'))]
    for f in files:
        if (ROOT/f).suffix not in ('.ipynb', '.py', '.md', '.ini', '.toml', '.yaml', ''): continue
        text = (ROOT/f).read_text(encoding='utf-8')
        bad = re.search(r'(?<![\w.])/(work|root|home|tmp/w)/\w+', text) or re.search('py' + r'pi\.org|file' + r's\.python' + r'hosted', text)
        assert not bad, f'{f}: {bad[0]}'


def test_readme_is_the_index():
    "README.md is what `make readme` makes of nbs/index.ipynb"
    from nbconvert import MarkdownExporter
    text, _ = MarkdownExporter().from_filename(str(ROOT/'nbs/index.ipynb'))
    assert text.strip() == (ROOT/'README.md').read_text(encoding='utf-8').strip(), 'run make readme'
