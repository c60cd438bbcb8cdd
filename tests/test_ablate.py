"""An ablation: what it plans, what it refuses, and its table from runs that were measured before."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from asc.core import InputError, project_root, read_json, resolve
from asc.data.choose import find_corpus
from asc.data.own_lists import own_list
from asc.data.rest import rest_of_training
from asc.data.splits import read_test
from asc.experiment.ablation import AblationPlan, check_ablation, read_ablation
from asc.experiment.cells import TRIAL
from asc.experiment.measured import MEASURED, read_measured, run_identities, same_identity, write_measured
from asc.run.process import run_notebook
from asc.use.ablation_plan import plan_ablation
from effects import false_alarms

FILES = sorted(path.stem for path in (project_root()/'nbs/ablations').glob('*.yaml'))
TAUGHT = dict(base=TRIAL, teachers=dict(pair=[dict(TRIAL, lr=2e-3, seeds=[0, 1])]),
              changes=dict(taught=dict(teachers='pair', distill=dict(temperature=1.)), slow=dict(lr=1e-3)))


def has_its_responses(change):
    "Whether the folders of device responses that a change names are here"
    folders = [step['dir'].get('folder') for step in change.get('steps', []) if 'dir' in step]
    return all(folder is None or resolve(folder).is_dir() for folder in folders)


@pytest.mark.parametrize('name', FILES)
def test_files_can_be_run(name, tmp_path):
    "Every change of every file is planned, and no machine is asked for what it cannot do"
    table = read_ablation(name)
    table['changes'] = {kind: change for kind, change in table['changes'].items() if has_its_responses(change)}
    cells = AblationPlan(table, tmp_path/'runs')({'': dict(data='synthetic', fold=1)}, [5], [0, 1])
    check_ablation(table, cells)
    kinds = {cell.swept['kind'] for cell in cells}
    assert {'base', *table['changes']} <= kinds
    assert all(len([c for c in cells if c.swept['kind'] == kind]) == 2 for kind in table['changes'])


def test_teachers_come_before_their_student(tmp_path):
    plan = AblationPlan(read_ablation(TAUGHT), tmp_path/'runs')
    cells = {cell.name: cell for cell in plan({'': dict(data='synthetic', fold=1)}, [25], [0, 1])}
    for seed in (0, 1):
        logits, = cells[f'taught-split25-seed{seed}'].after
        assert [cells[name].swept['seed'] for name in cells[logits].after] == [0, 1]
        assert cells[f'taught-split25-seed{seed}'].parameters['teacher'] == [str(tmp_path/'runs'/logits)]
    assert sum(cell.notebook.stem == 'logits' for cell in cells.values()) == 1   # one group teaches all seeds
    assert cells['slow-split25-seed0'].after == ()


def test_live_teachers(tmp_path):
    "Teachers that answer every batch are the runs themselves; nobody writes their logits"
    changes = dict(live=dict(teachers='pair', live=True, distill=dict(temperature=1.)))
    cells = AblationPlan(read_ablation(dict(TAUGHT, changes=changes)), tmp_path/'runs')(
        {'': dict(data='synthetic', fold=1)}, [25], [0])
    student = next(cell for cell in cells if cell.swept['kind'] == 'live')
    assert [Path(path).name for path in student.parameters['teacher']] == list(student.after)
    assert len(student.after) == 2 and not any(cell.notebook.stem == 'logits' for cell in cells)


def test_judged_by_the_rest(tmp_path):
    "The same runs as for the test list, each asked about clips of the training list at other places"
    def planned(judge):
        found = plan_ablation(TAUGHT, subsets=[5], judge=judge, folder=str(tmp_path/'runs'), only=['slow'])
        found.write_rests()
        return found
    rest, runs = planned('rest'), planned('test').cells
    assert [cell for cell in rest.cells if cell.notebook.stem == 'train'] == [
        replace(cell, swept={key: value for key, value in cell.swept.items() if key != 'change'}) for cell in runs]
    judge = next(cell for cell in rest.cells if cell.name == 'slow-split5-seed0-rest')
    corpus = find_corpus('synthetic')
    asked = own_list(corpus, judge.parameters['test_list'], 'test_list')
    assert asked.filename.tolist() == rest_of_training(corpus, 5).filename.tolist()
    identities = run_identities(rest.cells, rest.folder)
    assert identities[judge.name]['needs'] == [run_identities(runs, rest.folder)['slow-split5-seed0']]
    assert identities[judge.name]['parameters']['model'] == 'run 0'


def test_choosing_looks_at_other_clips(tmp_path):
    "An ablation judged by the rest goes on from the runs of one judged by the test list, and tells other scores"
    def run(judge, **given):
        run_notebook(tmp_path/judge, 'ablate', dict(judge=judge, subsets=[5], folder=str(tmp_path/'runs'), **given))
        return read_measured(tmp_path/judge/'measured.csv.xz')
    tested = run('test')
    written = {path: path.stat().st_mtime_ns for path in (tmp_path/'runs').glob('*-seed0/*')}
    chosen = run('rest', measured=[str(tmp_path/'test/measured.csv.xz')])   # which measured others
    assert written and all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert not set(chosen.location) & set(tested.location)
    assert set(chosen.commit) == set(tested.commit) and set(chosen.minutes) == set(tested.minutes)


def test_a_run_is_what_it_needs(tmp_path):
    "Another learning rate of the teacher makes another student; another folder does not"
    def planned(folder, **changed):
        teachers = dict(pair=[dict(TRIAL, seeds=[0, 1], **dict(lr=2e-3) | changed)])
        cells = AblationPlan(read_ablation(dict(TAUGHT, teachers=teachers)), folder)(
            {'': dict(data='synthetic', fold=1)}, [25], [0])
        return run_identities(cells, folder)
    first, other = planned(tmp_path/'a'), planned(tmp_path/'a', lr=1e-4)
    assert first == planned(tmp_path/'b')
    assert not same_identity(first['taught-split25-seed0'], other['taught-split25-seed0'])
    assert same_identity(first['slow-split25-seed0'], other['slow-split25-seed0'])


@pytest.mark.parametrize('change,words', [
    (dict(changes=dict(slow=dict(lrr=1))), 'lrr'),
    (dict(changes=dict(slow=dict(teachers='nobody'))), "unknown slow: teachers 'nobody'"),
    (dict(changes=dict(taught=dict(crop='windows'))), 'taught'),
    (dict(subsets=[7]), 'subset'),
    (dict(seeds=[0, 0]), 'seeds: 0 is given twice'),
    (dict(only=['fast']), "unknown change 'fast'"),
])
def test_refused_before_anything_runs(change, words, tmp_path):
    with pytest.raises(InputError, match=words): plan_ablation(TAUGHT, folder=str(tmp_path/'runs'), **change)
    assert not (tmp_path/'runs').exists()


def measured_before(folder, gain, seeds):
    "A file of imaginary runs of the trial: a change that is worth `gain`"
    planned = plan_ablation(dict(base=TRIAL, changes=dict(slower=dict(lr=1e-3))), seeds=seeds,
                            folder=str(folder/'runs'))
    identities, rng, tables = run_identities(planned.cells, planned.folder), np.random.default_rng(0), []
    test = read_test(find_corpus('synthetic'))
    clips = test.groupby(['scene', 'location', 'device', 'city']).size().rename('clips').reset_index()
    for cell in planned.cells:
        share = np.clip(.5 + gain * (cell.swept['kind'] == 'slower') + rng.normal(0, .02, len(clips)), 0, 1)
        correct = rng.binomial(clips.clips, share).astype(float)
        tables.append(clips.rename(columns=dict(scene='scene_label')).assign(
            run=cell.name, identity=json.dumps(identities[cell.name]), commit='', minutes=1., unit='location',
            correct=correct, loss=clips.clips * 1.))
    write_measured(folder/'measured.csv.xz', pd.concat(tables)[MEASURED])
    return str(folder/'measured.csv.xz')


def test_table_from_measured_runs(tmp_path):
    "Nothing is trained where everything was measured, and a large effect is seen"
    seeds = [0, 1, 2]
    file = measured_before(tmp_path, .3, seeds)
    run_notebook(tmp_path/'out', 'ablate', dict(seeds=seeds, measured=[file], folder=str(tmp_path/'runs')))
    metrics = read_json(tmp_path/'out/metrics.json')
    assert metrics['verdicts'] == {'split25': {'slower': 'gain'}} and metrics['measured'] == 6
    assert not list((tmp_path/'runs').glob('*'))
    assert '3 on 1 folds' in (tmp_path/'out/effects-split25.md').read_text()
    left, given = (read_measured(path/'measured.csv.xz') for path in (tmp_path/'out', tmp_path))
    pd.testing.assert_frame_equal(left.drop(columns='identity'), given.drop(columns='identity'))


def test_false_alarms():
    "Four changes that do nothing on average: in about one ablation of twenty any of them is called an effect"
    assert false_alarms(25, fold_luck=2) <= .16
