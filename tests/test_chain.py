"""A chain before its first run: what is planned, what is refused, and runs whose need has failed."""
from types import SimpleNamespace

import pytest

from asc.core import InputError, project_root, write_json
from asc.experiment.chain import ChainPlan, chain_targets, check_targets, read_chain
from asc.experiment.chain_checks import check_chain, check_pretrained
from asc.experiment.chain_table import link_gains
from asc.experiment.distillation import Distillation
from asc.experiment.sweeps import _free, _give_up_followers
from asc.run.process import same_run

TAUGHT = dict(teachers=[dict(recipe='cpjku23-cp_resnet', seeds=[0, 1])], student=dict(recipe='asc-best-kd'))


def planned(links, folder, **common):
    "The cells of a chain on one share of the synthetic corpus"
    links = read_chain(links)
    cells = ChainPlan(links, folder, common)(chain_targets(), [25], [0])
    check_chain(links, cells)
    return {cell.name: cell for cell in cells}


@pytest.mark.parametrize('name', sorted(path.stem for path in (project_root()/'nbs/chains').glob('*.yaml')))
def test_every_recipe_is_a_chain(name, tmp_path):
    "The recipes of the project are planned, and their links fit, as far as no weights are needed that are not here"
    links = read_chain(name)
    cells = ChainPlan(links, tmp_path/'runs')(chain_targets(), [5], [0])
    here = [cell for cell in cells if cell.parameters.get('backbone') not in ('beats', 'passt_s')]
    check_chain(links, here)


def test_the_links_of_our_own_chain(tmp_path):
    "Each run knows the runs that it needs"
    cells = {cell.name: cell for cell in ChainPlan(read_chain('asc-chain'), tmp_path/'runs')(chain_targets(), [5], [0])}
    student = cells['student-split5-seed0']
    assert student.after == ('pretrain-seed0', 'logits-split5')
    assert student.parameters['teacher'] == [str(tmp_path/'runs/logits-split5')]
    assert cells['logits-split5'].after == ('teacher1-split5-seed0', 'teacher1-split5-seed1')
    assert not cells['alone-split5-seed0'].parameters['init_from'] and not cells['alone-split5-seed0'].after
    assert not cells['start-split5-seed0'].parameters['teacher']
    assert cells['devices-split5-seed0'].after == ('student-split5-seed0',)
    assert cells['int8-split5-seed0'].parameters['source'] == str(tmp_path/'runs/devices-split5-seed0')


def test_a_teacher_with_a_share_of_its_own_is_trained_once(tmp_path):
    "And teaches on every share"
    links = read_chain(dict(TAUGHT, teachers=[dict(recipe='cpjku23-cp_resnet', subset=25)]))
    cells = {cell.name: cell for cell in ChainPlan(links, tmp_path/'runs')(chain_targets(), [5, 10, 25], [0])}
    assert [name for name in cells if name.startswith('teacher')] == ['teacher1-split25-seed0']
    for subset in (5, 10, 25): assert cells[f'logits-split{subset}'].after == ('teacher1-split25-seed0',)


def test_a_soup_of_students(tmp_path):
    "Its members differ in the seed only, and what comes next is made of the soup"
    links = read_chain(dict(TAUGHT, pretrain={'recipe': 'dcase24-baseline'}, soup=dict(members=3, kind='uniform'),
                            quantize=dict(teacher='average')))
    cells = {cell.name: cell for cell in ChainPlan(links, tmp_path/'runs')(chain_targets(), [5], [7])}
    names = ['student-split5-seed7', 'member2-split5-seed7', 'member3-split5-seed7']
    trained = [dict(cells[name].parameters) for name in names]
    assert [own.pop('seed') for own in trained] == [7, 1007, 2007]
    assert trained[0] == trained[1] == trained[2] and trained[0]['init_from'] and trained[0]['teacher']
    assert cells['soup-split5-seed7'].parameters['runs'] == [str(tmp_path/'runs'/name) for name in names]
    assert cells['soup-split5-seed7'].after == tuple(names)
    quantized = cells['int8-split5-seed7']
    assert quantized.parameters['source'] == str(tmp_path/'runs/soup-split5-seed7')
    assert quantized.parameters['teacher'] == str(tmp_path/'runs/logits-split5')
    assert quantized.after == ('soup-split5-seed7', 'logits-split5')


@pytest.mark.parametrize('links, common, sentence', [
    (dict(TAUGHT, student=dict(recipe='asc-best-kd', crop='windows')), {}, "crop='windows' cuts clips"),
    (dict(TAUGHT, student=dict(distill=dict(temprature=2.))), {}, 'did you mean temperature'),
    (dict(TAUGHT, student=dict(backbone='cnn3')), dict(lr=-1.), 'lr'),
    (dict(TAUGHT, pretrain=dict(backbone='cnn3')), {}, "with which it begins, 'cnn3'"),
    (dict(TAUGHT, teachers=[dict(seeds=[0, 0])]), {}, 'teachers: seeds: 0 is given twice'),
    (dict(TAUGHT, teachers=[dict(pretrain=dict(backbone='cp_resnet'))]), {}, "with which it begins, 'cp_resnet'"),
    (dict(TAUGHT, teachers=[dict(pretrain=dict(epoch=8))]), {}, 'epoch'),
    (dict(TAUGHT, soup={}), {}, 'add the link pretrain'),
    (dict(TAUGHT, pretrain={}, soup=dict(members=1)), {}, 'soup: members'),
    (dict(TAUGHT, teachers=[{}, dict(valid=.2)]), {}, 'valid is 0.1 and 0.2'),
    (dict(TAUGHT, average=dict(valid=.2)), {}, 'valid is 0.1 and 0.2'),
    (dict(student={}, quantize=dict(teacher='average')), {}, 'the chain averages no logits'),
    (dict(TAUGHT, soups={}), {}, "unknown link of the chain 'soups'"),
    (TAUGHT, dict(data_dir='x'), 'data_dir is set by the chain'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_what_does_not_fit_is_refused(tmp_path, links, common, sentence):
    "One sentence, before anything runs"
    with pytest.raises(InputError, match=sentence): planned(links, tmp_path/'runs', **common)
    assert not (tmp_path/'runs').exists()


def test_pretraining_on_the_tested_corpus_is_refused():
    "The corpus that a chain is measured on is not the one to be trained on first"
    corpora = check_targets(chain_targets())
    with pytest.raises(InputError, match='is a corpus that is tested on'):
        check_pretrained(dict(pretrain=dict(data='synthetic')), corpora)
    with pytest.raises(InputError, match='is a corpus that is tested on'):
        check_pretrained(dict(teachers=['runs/a', dict(pretrain=dict(data='synthetic'))]), corpora)


def sweep_of(after, states):
    "What the loop of a sweep asks of one: names -> what they need, names -> state"
    cells = {name: SimpleNamespace(after=needs) for name, needs in after.items()}
    return SimpleNamespace(cells=cells, errors={}, state=states.get, out=lambda name: name)


def test_runs_wait_for_what_they_need(monkeypatch):
    "A run is free when all it needs is finished, and given up when that has failed, however far down"
    monkeypatch.setattr('asc.experiment.sweeps.is_held', lambda out: False)
    sweep = sweep_of(dict(a=(), b=(), c=('a', 'b'), d=('c',)), dict(a='finished'))
    tries = dict.fromkeys(sweep.cells, 3)
    assert _free(sweep, tries, {}) == ['b']
    sweep.errors['b'] = 'failed'
    del tries['b']
    _give_up_followers(sweep, tries)
    assert not tries and sweep.errors['c'] == 'it needs b, which has not finished'
    assert sweep.errors['d'] == 'it needs c, which has not finished'


def test_a_run_that_filled_in_a_parameter_is_found_again():
    "What was asked is compared, not what came of it"
    record = dict(notebook='soup', parameters=dict(kind='greedy', data_dir='corpora/a'))
    asked = dict(kind='greedy', data_dir='')
    assert same_run(record, 'soup', asked)
    assert not same_run(dict(record, asked=dict(data_dir='')), 'soup', asked)
    assert same_run(dict(record, asked=dict(data_dir='')), 'soup', dict(asked, data_dir='corpora/b'))


def test_a_stage_after_a_missing_one_has_no_gain(monkeypatch):
    "A gain is over the row before, or there is none"
    from asc.experiment import chain_table
    import pandas as pd
    empty = pd.DataFrame(dict(gain=[1.], **{'from': [0.]}, to=[2.], p=[.1]), ['macro accuracy'])
    monkeypatch.setattr(chain_table, 'gain_table', lambda *sides: empty.copy())
    answers = dict(alone=['x'], start=None, student=['y'], int8=['z'])
    def scores(kind, subset): return answers[kind]
    scores.scenes = []
    gains = link_gains(scores, dict.fromkeys(answers, ''), 5)
    known = {kind: table is not None and table.gain.notna().all() for kind, table in gains.items()}
    assert known == dict(alone=False, start=False, student=False, int8=True)


def test_unfinished_logits_teach_nobody(tmp_path):
    "The folder of a run of logits.ipynb stands for its file, once there is one"
    write_json(tmp_path/'params.json', dict(notebook='logits'))
    for metrics in (None, dict(files=[])):
        if metrics: write_json(tmp_path/'metrics.json', metrics)
        with pytest.raises(InputError, match='its logits are not finished'): Distillation(str(tmp_path))


@pytest.mark.parametrize('left', [['predictions-ptq.csv'], ['predictions-ptq.csv', 'predictions-qat.csv']])
def test_eight_bits_are_judged_as_they_were_made(tmp_path, left):
    "The form trained in eight bits where there is one, else the one quantised after training; never the float network"
    from asc.experiment.chain_table import predictions_file
    for name in (*left, 'predictions-float.csv'): (tmp_path/name).touch()
    assert predictions_file(tmp_path).name == left[-1]
