"""Devices that are not here, and recording devices given for them: each refused through every door."""
import json

import pytest
import torch

import asc.cli
from asc.cli import Refusal, main
from asc.core import InputError
from asc.experiment.cells import check_devices_of, sweep_cells
from asc.experiment.checks import check_training
from asc.experiment.engines import _Workers
from asc.load import open_model
from asc.run.accelerator import find_device
from asc.run.folder import Run, check_same
from asc.run.process import same_run
from asc.score.runs import run_labels
from asc.train.learner import make_dls
from asc.train.options import TrainingOptions

ABSENT = ['cuda:99', 'xpu:99', 'mps:99', 'gpu', 'GPU', 'CPU', 'cpu:1', 'cuda:-1', 'cuda:300', 'cuda:', 'meta', 'hip',
          ' cpu', 'cpu\0', 'a', 'unknown', '0', '\ud800']
NO_TEXT = [3, True, None, ['cpu'], {'cpu': 0}, 1., b'cpu']
NAMED = ['parameter device']


def command(*words):
    "What a command says when it refuses"
    try: main(words)
    except Refusal as end: raise InputError(str(end)) from None


def start(folder, device):
    "The first cell of a run notebook, and what it leaves behind"
    ns = {}
    exec(f"device: str = ''\nout: str = ''\ndevice = {device!r}\nout = {str(folder)!r}", ns)
    try: Run.start(ns, 'train')
    finally: assert not folder.exists()


@pytest.mark.parametrize('name', ABSENT + NO_TEXT, ids=repr)
def test_no_device(damage, name):
    damage('device', lambda: find_device(name), NAMED)


DOORS = {
    'learner': lambda name, folder: make_dls([0], [0], 1, name),
    'training': lambda name, folder: check_training(TrainingOptions(device=name)),
    'run notebook': lambda name, folder: start(folder/'run', name),
    'open model': lambda name, folder: open_model(dict(backbone='cnn3', frontend='cnn3')).to(name),
    'sweep': lambda name, folder: check_devices_of(sweep_cells([''], parameters=dict(device=name))),
    'predict': lambda name, folder: command('predict', 'runs/a', 'x.wav', '--device', name),
    'check': lambda name, folder: command('check', str(folder), '--device', name),
    'sweep command': lambda name, folder: command('sweep', 'easy-cnn3', '--device', name),
}


@pytest.mark.parametrize('name', ['cuda:99', 'gpu', 'a'])
@pytest.mark.parametrize('door', DOORS)
def test_doors(damage, tmp_path, door, name):
    damage('device', lambda: DOORS[door](name, tmp_path), [*NAMED, name])


@pytest.mark.parametrize('name', ['a', 'unknown', 's1'])
def test_recording_devices_have_an_option_of_their_own(damage, name):
    damage('recording device for a device', lambda: command('predict', 'runs/a', 'x.wav', '--device', name),
           [f"device='{name}'", '--recorder'])


def test_device_is_given_once(damage):
    words = 'sweep', 'easy-cnn3', '--device', 'cpu', '--set', 'device=cuda'
    damage('device', lambda: command(*words), ['--set device=cuda'])


def test_device_is_no_part_of_a_run(tmp_path):
    "Another device makes no other run: not for a resume, a sweep, its names, or the label in a table"
    then, now = (dict(epochs=3, device=device) for device in ('cpu', 'cuda:1'))
    (tmp_path/'params.json').write_text(json.dumps(dict(notebook='train', parameters=then)))
    check_same(tmp_path, now)
    assert same_run(dict(notebook='train', parameters=then), 'train', now) == []
    records = [dict(parameters=dict(subset=5, backbone='cnn3', **run)) for run in (then, now)]
    assert len(set(run_labels(records))) == 1
    cell, = sweep_cells(cells=[dict(recipe='easy-cnn3', device='cpu')])
    assert cell.name == 'easy-cnn3' and 'device' not in cell.swept and cell.parameters['device'] == 'cpu'
    with pytest.raises(InputError, match='same run'):
        sweep_cells(cells=[dict(name=f'cell{i}', device=device) for i, device in enumerate(('cpu', ''))])
    check_devices_of(sweep_cells([''], parameters=dict(device='cpu')))


def test_gpus_are_shared_out_among_runs_that_name_none(monkeypatch):
    "A run that names its device sees them all"
    monkeypatch.setattr(asc.experiment.engines, 'visible_gpus', lambda: ['4', '7'])
    workers = _Workers(2, 1)

    def seen(device):
        task = dict(recipe=dict(device=device))
        return workers.environment(1, task).get('CUDA_VISIBLE_DEVICES')
    assert [seen(device) for device in ('', 'cuda', 'cuda:1', 'cpu')] == ['7', '7', None, None]
    stack = dict(runs=[dict(recipe=dict(device='cuda:1'))])
    assert 'CUDA_VISIBLE_DEVICES' not in workers.environment(0, stack)
    assert workers.environment(1, stack)['ASC_DEVICE_NUMBER'] == '1'
    assert asc.cli.rank_environment('cpu') == {}


@pytest.mark.parametrize('name', ['LOCAL_RANK', 'ASC_DEVICE_NUMBER'])
def test_process_takes_the_device_of_its_number(monkeypatch, name):
    "Ranks and workers, where a machine has several of a kind, and nobody has hidden the others"
    monkeypatch.setenv(name, '3')
    monkeypatch.setattr(asc.run.accelerator, '_count', dict(cuda=2, cpu=1).get)
    monkeypatch.setattr(asc.run.accelerator, '_kinds', lambda: ['cuda', 'cpu'])
    assert find_device('') == find_device('cuda') == torch.device('cuda:1')
    assert find_device('cuda:0') == torch.device('cuda:0')
