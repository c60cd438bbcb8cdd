"""The search as a user has it: it reads no test list, survives kill -9, takes more trials, and ends in a recipe."""
import json
import multiprocessing as mp
import os
import shutil
import signal
from contextlib import redirect_stdout

import pandas as pd
import pytest
import yaml
from matplotlib import pyplot as plt

pytest.importorskip('optuna')

from asc.core import InputError
from asc.data.splits import carve_valid, read_split
from asc.experiment.recipe import TrainingData, create_training
from asc.experiment.search import best_recipe, open_study, Prune, run_trial
from asc.experiment.space import read_space, suggest
from asc.experiment.search import run_trials, settled_trials, study_drawers, trials_table, write_recipe
from asc.run.parameters import full_parameters
import launch

pytestmark = pytest.mark.usefixtures('one_thread')
FIXED = dict(frontend='cnn3', backbone='cnn3', pipeline='easy_cnn3', epochs=2, valid=.3)
SPACE = {
    'lr': dict(low=1e-4, high=1e-1, log=True),
    'bs': [16, 32],
    'loss.focal.gamma': dict(low=0., high=2.),
}
PRUNER = {'median': dict(n_startup_trials=2)}


@pytest.fixture(scope='module')
def parts(packed):
    "What a trial trains with: a store and a few clips"
    corpus, store = packed
    train, valid = carve_valid(read_split(corpus, 100), .3)
    return store, train[::12], valid[::6], corpus.scenes, corpus.devices


def study_of(path, space=SPACE):
    "The study in this file"
    return open_study(path, dict(space=space), pruner=PRUNER)


class PruneAndCall(Prune):
    "Pruning, and a call after each epoch with the numbers of the trial and of the epoch"
    def __init__(self, trial, call):
        super().__init__(trial)
        self.call = call

    def after_epoch(self):
        super().after_epoch()
        self.call(self.trial.number, self.epoch)


def search(parts, path, n=4, run='a', space=SPACE, after_epoch=None, **fixed):
    "Trials up to the number of `n`; `after_epoch` is called after each epoch"
    params = full_parameters('train', dict(FIXED, **fixed))
    study = study_of(path, space)
    values = read_space(space, params)

    def objective(trial):
        "Train with the parameters of this trial, and no progress bar"
        def make(options, cbs):
            if after_epoch: cbs = [PruneAndCall(trial, after_epoch)]
            learn, train = create_training(TrainingData(*parts), options, cbs=cbs)
            return learn, lambda: quiet(learn, train)
        return run_trial(trial, make, values, params, run=run)
    with open(os.devnull, 'w') as nowhere, redirect_stdout(nowhere):
        run_trials(study, objective, n, run=run)
    return study


def quiet(learn, train):
    "Train without a progress bar"
    with learn.no_bar(): train()


def kill_in_third_trial(trial, epoch):
    "The process is killed after the first epoch of its third trial"
    if trial == 2: os.kill(os.getpid(), signal.SIGKILL)


def search_until_killed(parts, path):
    "A search that is killed, as the kernel or a person does it"
    search(parts, path, after_epoch=kill_in_third_trial)


def test_killed_search_ends_as_one_left_alone(parts, tmp_path):
    "kill -9 in a trial, then the same call: the same trials to the last digit, and the killed one is named"
    whole = trials_table(search(parts, tmp_path/'whole.db'))
    path = tmp_path/'killed.db'
    process = mp.get_context('fork').Process(target=search_until_killed, args=(parts, path))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = trials_table(study_of(path))
    assert list(left.state)[2:] == ['running']
    assert left.epochs[2] == 1
    again = trials_table(search(parts, path))
    assert again.state[2] == 'killed'
    assert list(again.state).count('killed') == 1
    assert len(again) == 5
    assert {'pruned', 'complete'} <= set(whole.state)
    others = again[again.state != 'killed'].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, whole.reset_index(drop=True), check_exact=True)


def test_more_trials_and_trials_that_fail(parts, tmp_path):
    "A second run adds trials; why a combination cannot be trained stands in its row, and another one follows"
    space = {'frontend': ['cnn3', 'dcase24'], 'lr': dict(low=1e-4, high=1e-2)}
    study = search(parts, tmp_path/'s.db', 2, space=space, epochs=1)
    study = search(parts, tmp_path/'s.db', 3, run='b', space=space, epochs=1)
    table = trials_table(study)
    assert len(table) == 5
    assert len(settled_trials(study, 'a')) == 2
    assert len(settled_trials(study, 'b')) == 3
    failed = table[table.frontend == 'dcase24']
    trained = table[table.frontend == 'cnn3']
    assert len(failed)
    assert set(failed.state) == {'fail'}
    assert failed.why.str.len().min() > 10
    assert set(trained.state) == {'complete'}
    study = search(parts, tmp_path/'none.db', 1, space={'frontend': ['dcase24']}, epochs=1)
    with pytest.raises(InputError, match='no trial was finished: '):
        best_recipe(study, full_parameters('train', FIXED))


def test_value_is_that_of_the_epoch_kept(parts, tmp_path):
    "keep: best gives the best epoch, keep: last the last; the best trial is a recipe that gives its parameters again"
    space = {'lr': [1e-2]}
    params = full_parameters('train', dict(FIXED, epochs=3, keep='best'))
    study = search(parts, tmp_path/'s.db', 1, space=space, epochs=3, keep='best')
    values = study.trials[0].intermediate_values
    assert len(values) == 3
    assert study.best_value == min(values.values())
    assert search(parts, tmp_path/'last.db', 1, space=space, epochs=3).best_value == values[3]
    recipe = best_recipe(study, params)
    write_recipe(recipe, tmp_path/'best.yaml', 'one line', 'another')
    assert yaml.safe_load((tmp_path/'best.yaml').read_text()) == recipe
    assert full_parameters('train', tmp_path/'best.yaml') == params | dict(lr=1e-2)


@pytest.mark.parametrize('content', [b'no database', b''], ids=['text', 'folder'])
def test_storage_that_is_none(content, tmp_path):
    if content:
        (tmp_path/'s.db').write_bytes(content)
    else:
        (tmp_path/'s.db').mkdir()
    with pytest.raises(InputError, match='cannot be used as the storage of a study'):
        study_of(tmp_path/'s.db')


def test_the_notebook_reads_no_test_list(papermill, short_test, tmp_path):
    "On a corpus whose test list is gone: trials, plots and a recipe, and nothing that was scored on test clips"
    corpus = tmp_path/'no-test-synthetic'
    shutil.copytree(short_test, corpus, symlinks=True)
    for name in ('test.csv', 'evaluation_setup/fold1_evaluate.csv', 'evaluation_setup/fold1_test.csv'):
        (corpus/name).unlink()
    out = tmp_path/'search'
    fixed = {name: value for name, value in FIXED.items() if name != 'epochs'}
    options = dict(fixed=fixed, space=dict(SPACE, bs=[32]), pruner=PRUNER, epochs=1, trials=2)
    launch.check(papermill('search', data_dir=corpus, out=out, **options))
    assert {p.name for p in out.iterdir()} >= {
        'best.yaml', 'study.db', 'trials.csv', 'history.png', 'curves.png', 'slices.png',
        'parallel.png', 'importance.png', 'metrics.json',
    }
    metrics = json.loads((out/'metrics.json').read_text())
    assert metrics['trials'] == 2
    assert not {'macro_accuracy', 'accuracy', 'log_loss'} & set(metrics)
    assert not (out/'predictions.csv').exists()
    record = json.loads((out/'params.json').read_text())
    assert set(record['data']['lists']) == {'train', 'valid'}
    assert full_parameters('train', out/'best.yaml')['lr'] == metrics['best']['lr']


SPACES = {
    'one rate': {'lr': dict(low=1e-4, high=1e-1, log=True)},
    'one number': {'bs': dict(low=8, high=64)},
    'one category': {'optimizer': ['adamw', 'adam']},
    'one table': {'loss': ['ce', {'focal': {'gamma': 2.}}]},
    'one value': {'lr': [.01]},
    'many': {**SPACE, 'optimizer': ['adamw', 'adam'], 'wd': dict(low=0., high=.1)},
}


def study_with(path, space, states):
    "A study whose trials have ended in these states, with random proposals and values, and nothing trained"
    import optuna
    params = full_parameters('train', FIXED)
    values = read_space(space, params)
    study = open_study(path, dict(space=values), pruner='none')
    for number, state in enumerate(states):
        trial = study.ask()
        suggest(trial, values)
        if state == 'fail':
            trial.set_user_attr('why', 'too large')
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        trial.report(2. - .1 * number, 1)
        study.tell(trial, 2. - .1 * number)
    return study, params


@pytest.mark.parametrize('space, states', [
    *((space, 'complete complete') for space in SPACES), ('one rate', 'complete'), ('many', 'complete fail fail'),
])
def test_every_study_has_its_pictures_and_its_recipe(space, states, tmp_path):
    "One parameter or many, on a log scale, of names or of tables; one trial or several, some failed"
    study, params = study_with(tmp_path/'s.db', SPACES[space], states.split())
    recipe = best_recipe(study, params)
    assert set(recipe) >= {name.split('.')[0] for name in SPACES[space]}
    drawers = study_drawers(study)
    assert {'history', 'curves', 'slices'} <= set(drawers)
    for name, draw in drawers.items(): draw().savefig(tmp_path/f'{name}.png')
    plt.close('all')


def test_a_study_without_a_finished_trial(tmp_path):
    "All trials failed: no pictures, a table, and why"
    study, params = study_with(tmp_path/'s.db', SPACES['one rate'], ['fail', 'fail'])
    assert study_drawers(study) == {}
    assert trials_table(study).state.tolist() == ['fail', 'fail']
    with pytest.raises(InputError, match='no trial was finished: too large'): best_recipe(study, params)
