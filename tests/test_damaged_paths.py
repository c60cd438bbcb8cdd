"""Paths that cannot be: too long, where this user may not look, a folder for a file; one sentence at every door."""
import builtins
import io
import os

import pytest

from asc.augment.pipeline import create_pipeline
from asc.backbone.weights import read_weights
from asc.backbone.zoo import create_backbone
from asc.cli import main
from asc.core import InputError, read_json, read_yaml
from asc.data.corpus import load_corpus
from asc.data.lists import read_list
from asc.data.reading import Sound
from asc.data.store import Store
from asc.data.unpack import unpack
from asc.export.card import check_card
from asc.load import open_model
from asc.model.published import load_published
from asc.run.folder import check_free, check_unfinished
from asc.run.parameters import find_notebook, read_recipe
from asc.run.process import job_state
from asc.score.metrics import read_predictions
from asc.score.runs import read_run
from asc.train.resume import read_checkpoint
from asc.use.seal import seal


def command(*words):
    "The command `asc`, its refusal as an InputError"
    try: main([str(word) for word in words])
    except SystemExit as end:
        if end.code: raise InputError(str(end)) from None


FILES = {
    'list': read_list, 'sound': Sound, 'archive': lambda path: unpack(path, path, progress=False), 'JSON': read_json,
    'YAML': read_yaml, 'weights': read_weights, 'published': load_published, 'card': check_card,
    'recipe': lambda path: read_recipe(f'{path}.yaml'), 'predictions': read_predictions, 'checkpoint': read_checkpoint,
    'network': lambda path: create_backbone(f'{path}.py:Net'), 'notebook': lambda path: find_notebook(f'{path}.ipynb'),
    'step': lambda path: create_pipeline([f'{path}.py:Step', 'mel', 'log'], 44100),
}
FOLDERS = {
    'corpus': load_corpus, 'store': Store.open, 'model': open_model, 'run': read_run, 'seal': seal,
    'predict': lambda path: command('predict', path, path), 'check': lambda path: command('check', path),
    'resumed': check_unfinished,
}
OUT = {'out': check_free, 'job': lambda path: job_state(path, 'train', {})}
LONG = {'name': 'y' * 300, 'path': '/'.join(['z' * 200] * 30)}


@pytest.mark.parametrize('kind', LONG)
@pytest.mark.parametrize('door', {**FILES, **FOLDERS, 'out': check_free})
def test_too_long(door, kind, damage, tmp_path):
    call = {**FILES, **FOLDERS, **OUT}[door]
    damage('too long a path', lambda: call(tmp_path/LONG[kind]))


@pytest.fixture
def denied(tmp_path, monkeypatch):
    "A folder in which this user may not look at anything, as root too"
    folder = tmp_path/'denied'
    folder.mkdir()

    def refusing(function):
        "A function of paths that are refused in that folder"
        def call(path, *args, **keywords):
            text = '' if isinstance(path, int) else os.fspath(path)
            if str(folder) + '/' in str(text): raise PermissionError(13, 'Permission denied', text)
            return function(path, *args, **keywords)
        return call
    for name in ('stat', 'lstat', 'open', 'scandir', 'listdir'):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    monkeypatch.setattr(io, 'open', refusing(io.open))
    monkeypatch.setattr(builtins, 'open', refusing(builtins.open))
    return folder


@pytest.mark.parametrize('door', FILES)
def test_file_where_nobody_may_look(door, damage, denied):
    damage('permission denied', lambda: FILES[door](denied/'x'))


@pytest.mark.parametrize('name', ['', 'x'], ids=['itself', 'inside'])
@pytest.mark.parametrize('door', FOLDERS)
def test_folder_where_nobody_may_look(door, name, damage, denied):
    damage('permission denied', lambda: FOLDERS[door](denied/name))


@pytest.mark.parametrize('door', FILES)
def test_file_that_nobody_may_open(door, damage, tmp_path, monkeypatch):
    "It is there, and opening it is refused"
    for name in ('x', 'x.yaml', 'x.py', 'x.json', 'x.ipynb'): (tmp_path/name).write_bytes(b'x')
    opened = os.open

    def refuse(path, *args, **keywords):
        is_here = isinstance(path, (str, os.PathLike)) and str(tmp_path) in os.fspath(path)
        if is_here: raise PermissionError(13, 'Permission denied')
        return opened(path, *args, **keywords)
    monkeypatch.setattr(os, 'open', refuse)
    if door == 'notebook': return                          # it is found, and papermill opens it
    damage('permission denied', lambda: FILES[door](tmp_path/'x'), ['Permission denied'])
