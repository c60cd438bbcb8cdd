"""The search as a user has it: no test list is read, a killed search ends as one left alone, more trials can follow, the best trial is a recipe."""
import json
import multiprocessing as mp
import os
import shutil
import signal
from contextlib import redirect_stdout

import pandas as pd
import pytest
import yaml

pytest.importorskip('optuna')

from asc.experiment.recipe import create_training
from asc.core import InputError
from asc.data.corpus import load_corpus
from asc.run.parameters import full_parameters
from asc.experiment.search import Prune, best_recipe, open_study, read_space, run_trial, run_trials, settled, trials_table, write_recipe
from asc.data.splits import carve_valid, read_split
from asc.data.store import pack
from test_run import PAPERMILL, papermill

pytestmark = pytest.mark.usefixtures('one_thread')
FIXED = dict(frontend='cnn3', backbone='cnn3', pipeline='easy_cnn3', epochs=2, valid=.3)
SPACE = {'lr': dict(low=1e-4, high=1e-1, log=True), 'bs': [16, 32], 'loss.focal.gamma': dict(low=0., high=2.)}
PRUNER = {'median': dict(n_startup_trials=2)}


@pytest.fixture(scope='module')
def parts(synthetic, tmp_path_factory):
    "What a trial trains with: a store and a few clips"
    corpus = load_corpus(synthetic)
    train, held = carve_valid(read_split(corpus, 100), .3)
    return pack(corpus, tmp_path_factory.mktemp('store'), progress=False), train[::12], held[::6], corpus.scenes, corpus.devices


def study_of(path, space=SPACE): return open_study(path, dict(space=space), pruner=PRUNER)


def search(parts, path, n=4, run='a', space=SPACE, tell=None, **fixed):
    "Trials up to the number of `n`; `tell` is called after each epoch"
    params, study = full_parameters('train', dict(FIXED, **fixed)), study_of(path, space)
    space = read_space(space, params)
    def make(cbs, **options):
        learn, train = create_training(*parts, cbs=cbs, **options)
        return learn, lambda: quiet(learn, train)
    class Told(Prune):
        def after_epoch(self):
            super().after_epoch()
            if tell: tell(self.trial.number, self.epoch)
    def objective(trial): return run_trial(trial, lambda cbs, **o: make([Told(trial)], **o) if tell else make(cbs, **o), space, params, run=run)
    with open(os.devnull, 'w') as f, redirect_stdout(f): run_trials(study, objective, n, run=run)
    return study


def quiet(learn, train):
    with learn.no_bar(): train()


def fatal(parts, path):
    "The third trial is killed after its first epoch, as the kernel or a person does it"
    search(parts, path, tell=lambda trial, epoch: trial == 2 and os.kill(os.getpid(), signal.SIGKILL))


def test_killed_search_ends_as_one_left_alone(parts, tmp_path):
    "kill -9 in the middle of a trial, then the same call: the same trials with the same values to the last digit, and the killed one is told"
    whole = trials_table(search(parts, tmp_path/'whole.db'))
    p = mp.get_context('fork').Process(target=fatal, args=(parts, tmp_path/'killed.db'))
    p.start()
    p.join()
    assert p.exitcode == -signal.SIGKILL
    left = trials_table(study_of(tmp_path/'killed.db'))
    assert list(left.state)[2:] == ['running'] and left.epochs[2] == 1
    again = trials_table(search(parts, tmp_path/'killed.db'))
    assert again.state[2] == 'killed' and list(again.state).count('killed') == 1 and len(again) == 5
    assert 'pruned' in set(whole.state) and 'complete' in set(whole.state)
    pd.testing.assert_frame_equal(again[again.state != 'killed'].reset_index(drop=True), whole.reset_index(drop=True), check_exact=True)


def test_more_trials_and_trials_that_fail(parts, tmp_path):
    "A second run adds trials to the study; a combination that cannot be trained is told in its row, and another follows"
    space = {'frontend': ['cnn3', 'dcase24'], 'lr': dict(low=1e-4, high=1e-2)}
    study = search(parts, tmp_path/'s.db', 2, space=space, epochs=1)
    study = search(parts, tmp_path/'s.db', 3, run='b', space=space, epochs=1)
    table = trials_table(study)
    assert len(table) == 5 and len(settled(study, 'a')) == 2 and len(settled(study, 'b')) == 3
    failed, trained = table[table.frontend == 'dcase24'], table[table.frontend == 'cnn3']
    assert len(failed) and set(failed.state) == {'fail'} and failed.why.str.len().min() > 10 and set(trained.state) == {'complete'}
    study = search(parts, tmp_path/'none.db', 1, space={'frontend': ['dcase24']}, epochs=1)
    with pytest.raises(InputError, match='no trial was finished: '): best_recipe(study, full_parameters('train', FIXED))


def test_value_is_that_of_the_epoch_kept(parts, tmp_path):
    "keep: best gives the best epoch, keep: last the last; and what was found is a recipe that says the same parameters again"
    space, params = {'lr': [1e-2]}, full_parameters('train', dict(FIXED, epochs=3, keep='best'))
    study = search(parts, tmp_path/'s.db', 1, space=space, epochs=3, keep='best')
    seen = study.trials[0].intermediate_values
    assert len(seen) == 3 and study.best_value == min(seen.values())
    assert search(parts, tmp_path/'last.db', 1, space=space, epochs=3).best_value == seen[3]
    recipe = best_recipe(study, params)
    write_recipe(recipe, tmp_path/'best.yaml', 'one line', 'another')
    assert yaml.safe_load((tmp_path/'best.yaml').read_text()) == recipe and full_parameters('train', tmp_path/'best.yaml') == params | dict(lr=1e-2)


@pytest.mark.parametrize('content', [b'no database', b''], ids=['text', 'folder'])
def test_storage_that_is_none(content, tmp_path):
    (tmp_path/'s.db').write_bytes(content) if content else (tmp_path/'s.db').mkdir()
    with pytest.raises(InputError, match='cannot be used as the storage of a study'): study_of(tmp_path/'s.db')


def test_the_notebook_reads_no_test_list(synthetic, tmp_path):
    "From a terminal, on a corpus whose test list is gone: trials, plots and a recipe, and nothing that was scored on test clips"
    corpus = tmp_path/'no-test-synthetic'
    shutil.copytree(synthetic, corpus)
    for f in [*corpus.rglob('test.csv'), *corpus.rglob('fold1_evaluate.csv'), *corpus.rglob('fold1_test.csv')]: f.unlink()
    wanted = json.dumps(dict(fixed={k: v for k, v in FIXED.items() if k != 'epochs'}, space=dict(SPACE, bs=[32]), pruner=PRUNER))
    r = papermill('-p', 'data_dir', corpus, '-y', wanted, '-p', 'epochs', 1, '-p', 'trials', 2, '-p', 'out', tmp_path/'found',
                  argv=[PAPERMILL[0], 'nbs/search.ipynb'])
    assert r.returncode == 0, r.stderr[-3000:]
    assert {'best.yaml', 'study.db', 'trials.csv', 'history.png', 'curves.png', 'slices.png', 'parallel.png', 'importance.png',
            'metrics.json'} <= {p.name for p in (tmp_path/'found').iterdir()}
    metrics = json.loads((tmp_path/'found/metrics.json').read_text())
    assert metrics['trials'] == 2 and not {'macro_accuracy', 'accuracy', 'log_loss'} & set(metrics)
    assert not (tmp_path/'found/predictions.csv').exists()
    assert set(json.loads((tmp_path/'found/params.json').read_text())['data']['lists']) == {'train', 'valid'}
    assert full_parameters('train', tmp_path/'found/best.yaml')['lr'] == metrics['best']['lr']
