"""Results are written first, and no picture, sound or page can lose them: in every run notebook."""
import ast
import json
import re

import matplotlib.figure
import pytest

from air import sources
from asc.core import read_json
from asc.run.folder import Run
from conftest import ROOT
import launch

NOTEBOOKS = {path.stem: path for path in sorted((ROOT/'nbs').glob('*.ipynb'))
             if not path.stem[0].isdigit() and path.stem != 'index'}
DECORATES = re.compile(r'^(plot\w*|figure|players|Audio|savefig|imshow|subplots|style_comparison|explain)$')


def called_name(node):
    "The last word of what a call calls"
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, 'id', '')


def guarded(tree):
    "The lines inside `with run.decoration(…)`"
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.With) and any('run.decoration' in ast.unparse(item) for item in node.items):
            lines |= set(range(node.lineno, node.end_lineno + 1))
    return lines


def code_of(path):
    "The code of a notebook as one module, its magics taken out"
    return ast.parse('\n'.join(re.sub(r'^%.*$', '', source, flags=re.M) for source in sources(path)))


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_every_picture_goes_through_the_helper(name):
    "Whatever draws or plays is called inside `with run.decoration(…)`, or is a lambda that is called there"
    tree = code_of(NOTEBOOKS[name])
    safe = guarded(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda): safe |= set(range(node.lineno, node.end_lineno + 1))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and DECORATES.match(called_name(node))]
    assert not [ast.unparse(node) for node in calls if node.lineno not in safe]


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_every_notebook_says_its_result(name):
    "The run is finished once, with a sentence for the terminal, and nothing that counts is written afterwards"
    calls = [node for node in ast.walk(code_of(NOTEBOOKS[name])) if isinstance(node, ast.Call)]
    finish = [node for node in calls if called_name(node) == 'finish' and ast.unparse(node.func) == 'run.finish']
    assert len(finish) == 1
    assert len(finish[0].args) > 1
    written = ('csv', 'table', 'note', 'write_json', 'write_recipe', 'save_model', 'show_table', 'show_results')
    assert not [ast.unparse(node) for node in calls if called_name(node) in written
                and node.lineno > finish[0].end_lineno]


@pytest.mark.parametrize('error', [ZeroDivisionError('division by zero'), MemoryError(), OSError(28, 'No space left'),
                                   ValueError('image of 900000 × 3 pixels\nis too large')], ids=type)
def test_a_failed_picture_is_a_sentence(error, tmp_path, capsys, monkeypatch):
    "The sentence is on the terminal, in the record and with the result; nothing half-drawn is left"
    def fail(*args, **kwargs): raise error
    monkeypatch.setattr(matplotlib.figure.Figure, 'savefig', fail)
    run = Run(tmp_path, 'train', {})
    with run.decoration('the curves'): run.figure(matplotlib.figure.Figure(), 'curves')
    run.finish(dict(accuracy=.5), 'Accuracy 50 %.')
    assert [path.name for path in sorted(tmp_path.iterdir())] == ['metrics.json', 'params.json']
    sentence = read_json(tmp_path/'params.json')['left_out'][0]
    assert sentence.startswith('Left out: the curves (')
    assert '\n' not in sentence
    assert capsys.readouterr().out.strip() == sentence


def test_the_user_still_ends_a_run(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with Run(tmp_path, 'train', {}).decoration('the curves'): raise KeyboardInterrupt


BROKEN_PICTURES = '''
import sys


class Broken:
    "Breaks every picture as soon as matplotlib is there"
    def find_spec(self, name, path=None, target=None):
        figure = sys.modules.get('matplotlib.figure')
        if figure is not None and not getattr(figure, 'is_broken', False) and hasattr(figure, 'Figure'):
            figure.is_broken = True
            def savefig(*args, **kwargs): raise ZeroDivisionError('no room for axes')
            figure.Figure.savefig = savefig


sys.meta_path.insert(0, Broken())
'''


@pytest.fixture
def broken_pictures(tmp_path, monkeypatch):
    "Processes in which no figure can be saved"
    (tmp_path/'sitecustomize.py').write_text(BROKEN_PICTURES)
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:{ROOT}')


def test_a_training_without_pictures(broken_pictures, short_test, tmp_path):
    "train.ipynb ends well where every figure raises, and says which pictures are missing"
    out = tmp_path/'run'
    options = dict(data_dir=short_test, epochs=1, bs=32, backbone='cnn3', frontend='cnn3', pipeline='none', out=out)
    launch.check(launch.papermill('train', **options))
    record = read_json(out/'params.json')
    assert len(record['left_out']) == 6
    assert all('ZeroDivisionError' in sentence for sentence in record['left_out'])
    assert {'metrics.json', 'predictions.csv', 'class_wise.md', 'confusion.csv', 'model.safetensors'} <= {
        path.name for path in out.iterdir()}
    assert not list(out.glob('*.png'))


def test_a_search_without_pictures(broken_pictures, short_test, tmp_path):
    "The search of one parameter leaves its best recipe, and can take further trials, where every figure raises"
    pytest.importorskip('optuna')
    out = tmp_path/'search'
    fixed = dict(frontend='cnn3', backbone='cnn3', pipeline='none', valid=.3, bs=32)
    options = dict(data_dir=short_test, fixed=fixed, space={'lr': [.01]}, epochs=1, trials=1)
    result = launch.check(launch.papermill('search', out=out, **options))
    assert (out/'best.yaml').is_file() and (out/'metrics.json').is_file()
    assert 'To train and test the best: papermill nbs/train.ipynb -f' in result.stderr
    assert 'ZeroDivisionError' in read_json(out/'params.json')['left_out'][0]


def test_last_lines_and_first_cell(papermill, short_test, tmp_path):
    "The scores are the last lines of the terminal and the top of the notebook, whose code is folded"
    out = tmp_path/'run'
    recipe = tmp_path/'mine.yaml'
    recipe.write_text('{backbone: cnn3, frontend: cnn3, pipeline: none, bs: 32, epochs: 3}')
    result = launch.check(papermill('train', '-f', recipe, data_dir=short_test, epochs=1, out=out))
    lines = result.stderr.strip().splitlines()
    assert re.match(r'Macro accuracy \d+\.\d\d % .*, log loss \d\.\d{3}, 90 clips\.', lines[-6])
    assert lines[-5].startswith('Accuracy by device group: ')
    assert lines[-3] == 'Lists that lie with the corpus: split100 and test.'
    assert lines[-2:] == [f'Everything is in {out}.', f'Open {out}/train.ipynb to read it.']
    assert 'IPKernelApp' not in result.stderr
    nb = json.loads((out/'train.ipynb').read_text(encoding='utf-8'))
    text = ''.join(nb['cells'][1]['source'])
    assert text.startswith('## Result') and lines[-6] in text and '| clips |' in text
    code = [cell for cell in nb['cells'] if cell['cell_type'] == 'code']
    assert all(cell['metadata']['jupyter']['source_hidden'] for cell in code)
    record = read_json(out/'params.json')
    assert record['recipe']['name'] == 'mine'
    assert record['recipe']['changed'] == dict(data_dir=str(short_test), epochs=1)
    assert (record['device'], record['threads']) == ('cpu', 1)
    assert record['augmentation'] == ['resample', {'mel': {'jitter': False}}, 'log']
