"""The tables of papers: their files, which runs fill a cell with which verdict, and the commands of what is missing."""
import shlex

import numpy as np
import pytest

import launch
from asc.core import DEVICES, SCENES, InputError, write_json
from asc.data.official import FINGERPRINTS, OFFICIAL
from asc.experiment.cells import plan_cell, refuse_twins
from asc.experiment.chain import ChainPlan, chain_targets, read_chain
from asc.experiment.missing import missing_commands, missing_runs, missing_words
from asc.run.command import read_options, split_argv
from asc.run.parameters import declared_parameters, find_notebook, full_parameters
from asc.score.printed import not_counted, paper_summary, paper_table, verdict_table
from asc.score.published import paper_files, read_paper
from asc.score.reproduction import answers, judge_figures, reproduce, row_parameters
from asc.score.runs import find_runs, usable_runs
from conftest import ROOT

PAPERS = sorted(paper_files())
ROWS = [(name, row) for name in PAPERS for table in read_paper(name).tables for row in table.rows]


def rows_of(name):
    "Every row of a paper"
    return [row for paper, row in ROWS if paper == name]


def test_the_systems_are_there():
    "The five systems and the two of 2025; the report lists them, and no other place has their figures"
    assert PAPERS == ['cpjku-2023', 'dcase24-baseline', 'dragonsearch', 'easy-2024', 'li_ntu-2025', 'sntl_ntu-2025',
                      'sp4asc']
    source = (ROOT/'nbs/report.ipynb').read_text(encoding='utf-8')
    line = next(line for line in source.splitlines() if 'paper: str' in line)
    assert all(name in line for name in PAPERS)
    elsewhere = [path.name for path in ROOT.glob('nbs/*/*.ipynb') if '45.73' in path.read_text(encoding='utf-8')]
    assert not elsewhere


@pytest.mark.parametrize('name', PAPERS)
def test_every_row_can_be_run(name):
    "What answers a row exists and takes its parameters; a figure has a source"
    declared = declared_parameters(find_notebook('train'))
    for row in rows_of(name):
        if row.why: continue
        parameters = row_parameters(row)
        assert set(parameters) == set(declared) and set(row.set) <= set(declared)
        assert parameters['epochs'] > 20
    assert all(table.source and table.rows for table in read_paper(name).tables)


@pytest.mark.parametrize('name', PAPERS)
def test_printed_tables_agree_with_themselves(name):
    "The macro average is the mean over scenes, and nearly the mean over devices"
    means = {}
    for table in read_paper(name).tables:
        for row in table.rows:
            found = means.setdefault((row.name, row.subset, table.score), {})
            found |= {column: figure.mean for column, figure in row.figures.items() if figure and not row.why}
    for (_, _, score), figures in means.items():
        macro = figures.get(f"macro {score.replace('_', ' ')}")
        for parts, close in ((SCENES, .011), (DEVICES, .1)):
            values = [figures[part] for part in parts if part in figures]
            assert not values or macro is None or abs(np.mean(values) - macro) < close


# made-up runs on the official list

def a_run(folder, row, seed, share, shift=0., test='2022', recipe=None, synthetic=False, **changed):
    "A run folder as train.ipynb leaves it, with figures around the published ones"
    rng = np.random.default_rng([seed, share])
    luck = rng.normal(0, .006)
    printed = {column: figure.mean / 100 for column, figure in row.figures.items() if column in SCENES}
    scenes = {name: value + shift + luck + rng.normal(0, .004) for name, value in printed.items()}
    lists = dict(train=dict(clips=int(OFFICIAL[f'split{share}'].loc[list(SCENES)].sum()), fingerprint='as listed'),
                 test=dict(clips=29680, fingerprint=FINGERPRINTS.get(test, {}).get('test', test)))
    parameters = row_parameters(row) | dict(seed=seed, subset=share, out=str(folder)) | changed
    write_json(folder/'params.json', dict(
        notebook='train', parameters=parameters, recipe=dict(name=recipe or row.recipe, changed={}), seconds=720.,
        device='cuda:0', started=f'2026-01-{seed + 1:02d}',
        data=dict(corpus='TAU 2022', synthetic=synthetic, scenes=list(SCENES), lists=lists)))
    write_json(folder/'metrics.json', dict(macro_accuracy=float(np.mean(list(scenes.values()))), class_accuracy=scenes))
    return folder


@pytest.fixture
def baseline():
    "The paper of the baseline"
    return read_paper('dcase24-baseline')


@pytest.fixture
def row(baseline):
    "Its row of 5 %"
    return baseline.tables[0].rows[0]


def records_below(folder):
    "The records of a folder"
    records, remarks = usable_runs(find_runs(folder))
    assert not remarks
    return records


def test_runs_fill_the_right_cells_with_the_right_verdict(tmp_path, baseline):
    "5 %: as good, five seeds; 10 %: four points worse; 25 %: one seed; all else is empty"
    rows = {row.subset: row for row in baseline.tables[0].rows}
    for seed in range(5): a_run(tmp_path/f'5-{seed}', rows[5], seed, 5)
    for seed in range(5): a_run(tmp_path/f'10-{seed}', rows[10], seed, 10, shift=-.04)
    a_run(tmp_path/'25-0', rows[25], 0, 25)
    cells = reproduce(baseline, records_below(tmp_path))
    words = {cell.share: cell.verdict.word for cell in cells if cell.column == 'macro accuracy'}
    assert words == {5: 'within', 10: 'outside', 25: 'too few seeds', 50: '–', 100: '–'}
    filled = [cell for cell in cells if len(cell.values)]
    assert {(cell.table, cell.share) for cell in filled} == {(0, 5), (0, 10), (0, 25)} and len(filled) == 33
    assert paper_summary(cells).startswith('33 of 100 cells are filled: ')
    table = paper_table(baseline, 0, cells)
    assert table.loc[('dcase24-baseline, 10 %', 'measured'), 'macro accuracy'].endswith('✗')
    assert table.loc[('dcase24-baseline, 50 %', 'measured')].eq('–').all()
    verdicts = verdict_table(baseline, cells)
    assert verdicts.loc['dcase24-baseline, 5 %: macro accuracy', 'judged by'] == 'the published spread of 5 seeds'
    assert 'no spread was published' in verdicts.loc['dcase24-baseline, 5 %: tram', 'judged by']
    assert len(verdicts) == 33


@pytest.mark.parametrize('change', [
    dict(test='another'), dict(test='2020'), dict(synthetic=True), dict(epochs=1), dict(valid=.1), dict(lr=.001),
    dict(target='device'), dict(teacher='runs/teacher'), dict(extra=['esc50']), dict(train_list='mine.csv'),
], ids=str)
def test_nothing_else_fills_a_cell(change, tmp_path, baseline, row):
    "Another list, synthetic sounds, another length, another rate …"
    a_run(tmp_path/'0', row, 0, 5, **change)
    cells = reproduce(baseline, records_below(tmp_path))
    assert not any(len(cell.values) for cell in cells)


def test_a_share_that_is_not_the_official_one(tmp_path, baseline, row):
    "A run that learnt from fewer clips than the list has fills nothing; one that held some of them out does"
    a_run(tmp_path/'0', row, 0, 5)
    record, = records_below(tmp_path)
    record['data']['lists']['train']['clips'] = 6000
    assert not answers(baseline, row, 5, [record])
    record['data']['lists']['valid'] = dict(clips=980, fingerprint='held out')
    assert list(answers(baseline, row, 5, [record])) == [0]


def test_what_is_nearly_an_answer_is_named(tmp_path, baseline, row):
    a_run(tmp_path/'short', row, 0, 5, epochs=3)
    a_run(tmp_path/'far', row, 1, 5, test='another')
    said = not_counted(baseline, records_below(tmp_path))
    assert said[0].endswith('short is not counted: epochs 3 instead of 150.') and '1 on TAU 2022' in said[1]


def test_the_student_of_a_chain_answers(tmp_path):
    "Taught it fills the row, untaught it does not"
    paper = read_paper('li_ntu-2025')
    row = next(row for row in paper.tables[0].rows if row.chain)
    a_run(tmp_path/'alone', row, 0, 25, recipe='li_ntu-student', distill={})
    a_run(tmp_path/'untaught', row, 1, 25, recipe='li_ntu-student')
    a_run(tmp_path/'taught', row, 2, 25, recipe='li_ntu-student', teacher='runs/average')
    assert list(answers(paper, row, 25, records_below(tmp_path))) == [2]


def test_masked_versions_fill_their_own_row(tmp_path):
    "The line of an evaluation is read from the record where the predictions are not there"
    paper = read_paper('sp4asc')
    table = paper.tables[0]
    a_run(tmp_path/'0', paper.tables[1].rows[0], 0, 100, test='2020', recipe='sp4asc-focal')
    record, = records_below(tmp_path)
    record['parameters'] |= row_parameters(table.rows[0]) | dict(seed=0, subset=100)
    record['data']['lists']['train']['clips'] = 13962
    record['metrics'] |= dict(macro_log_loss=.95, lines={'30 masked versions': dict(macro_accuracy=.671, log_loss=.9)})
    cells = {(c.row.name, c.column): c.values for c in reproduce(paper, [record]) if c.table == 0}
    assert cells['sp4asc-focal, 30 masked versions', 'macro accuracy'] == pytest.approx([67.1])
    assert not len(cells['sp4asc-focal, 30 masked versions', 'macro log loss'])
    assert cells['sp4asc-focal', 'macro log loss'] == pytest.approx([.95])


def test_equal_seeds_and_no_figure_are_no_verdict():
    figure = read_paper('dcase24-baseline').tables[0].rows[0].figures['tram']
    assert judge_figures(figure, 5, [35.2, 35.2, 35.2]).word == 'too few seeds'
    assert judge_figures(None, 5, [35.2, 35.3, 35.2]).word == '–' and judge_figures(figure, 5, []).word == '–'


# what is missing

def check_sweep(words, options):
    "The cells of `asc sweep` can be planned"
    settings = dict(word.split('=', 1) for word in options['--set'])
    cells = [plan_cell('train', recipe, settings, dict(subset=share, seed=seed)) for recipe in words
             for share in map_int(options['--subsets']) for seed in map_int(options['--seeds'])]
    refuse_twins(cells)
    return len(cells)


def check_chain(words, options, folder):
    "The runs of `asc chain` can be planned"
    links = read_chain(words[0], options.get('--leave_out', []))
    plan = ChainPlan(links, folder, compare='--alone' not in options)
    names = [cell.name for cell in plan(chain_targets(data='tau2022'), map_int(options['--subsets']),
                                        map_int(options['--seeds']))]
    assert not any(name.startswith(('alone', 'int8')) for name in names)
    return sum(name.startswith('student') for name in names)


def map_int(words): return [int(word) for word in words]


def read_line(line):
    "The words of a command and its options"
    words, options, name = [], {}, None
    for word in shlex.split(line)[2:]:
        if word.startswith('--'): options[name := word] = []
        elif name: options[name].append(word)
        else: words.append(word)
    return words, options


@pytest.mark.parametrize('name', PAPERS)
def test_the_commands_train_what_is_missing(name, tmp_path):
    "Every command can be planned, trains as many seeds as are missing, and no two share a folder"
    paper = read_paper(name)
    missing = missing_runs(paper, [], 'runs')
    assert missing.cells.sum() == sum(len(row.figures) for row in rows_of(name) if not row.why)
    assert (missing['GPU-hours'] > 0).all() and 'an estimate was not measured' in missing_words(missing)
    folders, trained = [], 0
    lines = [line for line in missing_commands(missing).splitlines() if line.startswith(('asc ', 'papermill '))]
    for line in lines:
        if line.startswith('papermill'):
            words, found = split_argv(shlex.split(line)[1:])
            given = read_options([(option, values) for option, values in found if option != '-f'])
            full_parameters(words[0], None, {key: value for key, value in given.items()})
            continue
        words, options = read_line(line)
        folders += options['--folder']
        if line.startswith('asc sweep'): trained += check_sweep(words, options)
        else: trained += check_chain(words, options, tmp_path)
    assert len(set(folders)) == len(folders)
    assert trained == sum(len(seeds.split()) for seeds in missing.seeds)


def test_hours_of_seeds_that_are_there(tmp_path, baseline, row):
    "What is left takes as long as what is there took"
    for seed in (0, 1, 3): a_run(tmp_path/str(seed), row, seed, 5)
    missing = missing_runs(baseline, records_below(tmp_path)).set_index('share %')
    assert missing.seeds[5] == '2 4' and missing['GPU-hours'][5] == pytest.approx(.4)
    assert missing['rests on'][5] == '3 of its runs here, on cuda:0' and missing['rests on'][10] == 'estimate'
    assert '--seeds 2 4 ' in missing.command[5]


def test_nothing_is_missing(tmp_path, baseline):
    for row in baseline.tables[0].rows:
        for seed in range(5): a_run(tmp_path/f'{row.subset}-{seed}', row, seed, row.subset)
    for record in (records := records_below(tmp_path)): record['device'] = 'cpu'
    assert set(missing_runs(baseline, records[:-1])['rests on']) == {'estimate'}
    missing = missing_runs(baseline, records)
    assert missing_words(missing) == 'No run is missing.' and missing_commands(missing) == ''


# where they are read

def test_unknown_papers_are_refused():
    with pytest.raises(InputError, match='did you mean sp4asc'): read_paper('sp4as')
    with pytest.raises(InputError, match='choose one of cpjku-2023'): read_paper('nobody')


def test_report(tmp_path, kernels, baseline, row):
    "One run of the baseline: the report lays the paper out, and refuses an unknown one before it begins"
    a_run(tmp_path/'runs/0', row, 0, 5)
    out = tmp_path/'report'
    launch.check(launch.papermill('report', folder=tmp_path/'runs', paper='dcase24-baseline', out=out, kernels=kernels))
    table = (out/'dcase24-baseline-1.md').read_text(encoding='utf-8')
    assert '42.40 ± 0.42' in table and '?' in table
    assert (out/'dcase24-baseline-verdicts.csv').is_file()
    assert '1 2 3 4' in (out/'dcase24-baseline-missing.csv').read_text(encoding='utf-8')
    result = launch.papermill('report', folder=tmp_path/'runs', paper='dcase24', out=tmp_path/'none', kernels=kernels)
    assert result.returncode and 'did you mean dcase24-baseline' in result.stderr
    assert not (tmp_path/'none/metrics.json').exists()
