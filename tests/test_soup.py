"""Soups of runs: what is averaged, what comes out, and which runs are refused before sound or weights are read."""
import json
import shutil

import pytest
import torch

from asc.core import InputError
from asc.data.splits import read_test
from asc.experiment.recipe import train_and_save
from asc.experiment.soups import loss_line, member_states, read_members, soup_learner
from asc.load import open_model
from asc.model.classifier import save_model
from asc.run.folder import Run
from asc.score.metrics import metrics
from asc.train.learner import predictions
from asc.train.options import TrainingOptions
from asc.train.soup import Mixer, choose_members, mean_state, validation_figures

SMALL = dict(backbone='cnn3', frontend='cnn3', pipeline='none', epochs=1, bs=64, valid=.2)


@pytest.fixture(scope='module')
def members(packed, tmp_path_factory):
    "Two runs of one seed that learn at different rates, with all that a finished run has"
    folder = tmp_path_factory.mktemp('members')
    read_test(packed[0]).iloc[::9][['filename']].to_csv(folder/'test.csv', index=False)
    for name, lr in dict(a=2e-3, b=1e-3).items():
        options = TrainingOptions(data_dir=str(packed[0].dir), test_list=str(folder/'test.csv'), lr=lr, **SMALL)
        model, data = train_and_save(folder/name, options)
        finish(folder/name, options, data, predictions(model, data.clips(data.test)))
    return folder


def finish(folder, options, data, preds):
    "What train.ipynb writes at its end"
    run = Run(folder, 'train', options.as_dict())
    run.note(data=data.facts, groups=data.groups)
    run.csv(preds, 'predictions')
    run.finish(metrics(preds, data.names, data.groups))


@pytest.fixture
def pair(members, tmp_path):
    "A copy of the two folders, to be changed"
    shutil.copytree(members, tmp_path/'pair')
    return [tmp_path/'pair/a', tmp_path/'pair/b']


def test_a_soup_of_runs_is_an_ordinary_model(members, tmp_path):
    read = read_members([members/'a', members/'b'])
    learn, data = soup_learner(read[0])
    mixer = Mixer(learn, learn.model.backbone, member_states(read))
    alone = [mixer.figures([k])['valid_loss'] for k in (0, 1)]
    soup = mixer.figures([0, 1])
    weights = {k: v.clone() for k, v in learn.model.backbone.state_dict().items()}
    mean = mean_state(mixer.states)
    for name, _ in learn.model.backbone.named_parameters(): assert torch.equal(weights[name], mean[name])
    assert not torch.equal(*(s[[k for k in s if k.endswith('running_mean')][0]] for s in (weights, mean)))
    save_model(learn.model, tmp_path/'soup')
    opened = open_model(tmp_path/'soup').network
    learn.model.load_state_dict(opened.state_dict())
    assert validation_figures(learn) == soup
    line = loss_line(mixer, 0, 1, 3)
    assert line.valid_loss.iloc[[0, 2]].tolist() == alone
    assert line.valid_loss[1] == pytest.approx(soup['valid_loss'], abs=.02)
    kept = choose_members('greedy', 2, lambda ks: -mixer.figures(ks)['valid_loss'])
    assert kept == ([0, 1] if soup['valid_loss'] <= alone[0] else [0])


def change(folder, file, *keys, value):
    "Another value in a JSON file of a run"
    record = json.loads((folder/file).read_text())
    table = record
    for key in keys[:-1]: table = table[key]
    table[keys[-1]] = value
    (folder/file).write_text(json.dumps(record))


DIFFERENT = {
    'network': (('model.json', 'backbone', 'cnn6_60k'), 'its network is cnn6_60k, there it is cnn3'),
    'arguments': (('model.json', 'backbone_args', {'base': 8}), 'arguments of the network'),
    'frontend': (('model.json', 'frontend', 'cp'), 'its frontend is cp'),
    'rate': (('model.json', 'rate', 32000), 'its sample rate is 32000'),
    'classes': (('model.json', 'scenes', ['x', 'y']), 'its classes'),
    'pruned': (('model.json', 'pruned', True), 'b is pruned'),
    'corpus': (('params.json', 'data', 'corpus', 'other'), 'its corpus is other'),
    'validation': (('params.json', 'data', 'lists', 'valid', 'fingerprint', 'x'), 'its validation list'),
    'training': (('params.json', 'data', 'lists', 'train', 'fingerprint', 'x'), 'its training list'),
    'notebook': (('params.json', 'notebook', 'devices'), 'left by devices.ipynb'),
    'seed': (('params.json', 'parameters', 'seed', 1), 'began with seed 0 and .*b with seed 1'),
}


@pytest.mark.parametrize('case', DIFFERENT)
def test_runs_that_make_no_soup(pair, case):
    "Named with what differs, before weights are read"
    (file, *keys, value), words = DIFFERENT[case]
    change(pair[1], file, *keys, value=value)
    for folder in pair: (folder/'model.safetensors').unlink()
    with pytest.raises(InputError, match=words): read_members(pair)
    if case == 'seed': assert len(read_members(pair, unrelated=True)) == 2


def test_a_quantised_member_is_named(pair):
    description = json.loads((pair[1]/'model.json').read_text())
    description |= dict(format='asc-quantised-1', quantised=dict(skip=[], logits=True))
    (pair[1]/'model.json').write_text(json.dumps(description))
    with pytest.raises(InputError, match='b is quantised, and a soup is made of float networks'): read_members(pair)


def test_a_run_and_what_began_with_it(pair):
    "A training further, and its start; two that were trained further from one, whatever their seeds"
    change(pair[1], 'params.json', 'start', value=dict(source=str(pair[0]), fingerprint='ab'))
    change(pair[1], 'params.json', 'parameters', 'seed', value=3)
    assert len(read_members(pair)) == 2
    change(pair[0], 'params.json', 'start', value=dict(source='elsewhere', fingerprint='cd'))
    change(pair[1], 'params.json', 'start', value=dict(source='elsewhere', fingerprint='ef'))
    with pytest.raises(InputError, match='elsewhere .cd. and .* elsewhere .ef.'): read_members(pair)


def test_soup_of_one_and_of_none(pair):
    with pytest.raises(InputError, match='1 given, and a soup needs two'): read_members(pair[:1])
    with pytest.raises(InputError, match='given twice'): read_members([pair[0], str(pair[0])+'/'])
    change(pair[0], 'params.json', 'data', 'lists', 'valid', 'clips', value=0)
    with pytest.raises(InputError, match='no validation list'): read_members(pair)
