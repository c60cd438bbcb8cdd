"""Damaged runs, predictions and lists: named and left out of a report, or refused; never a KeyError, never believed."""
import json
import shutil
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest

from asc.core import CITIES, DEVICES, SCENES, InputError, fingerprint, write_json
from asc.data.corpus import load_corpus
from asc.data.own_lists import own_list
from asc.score.differences import pair_table
from asc.score.metrics import metrics, read_predictions
from asc.score.paper import runs_table
from asc.score.runs import comparable, find_runs, newest_runs, read_run, usable_runs
from asc.score.tables import evaluate_lines
from nodes import NODES, folder, nothing


def answers(seed=0):
    "Predictions of no system: a clip of each scene on each device at two places"
    rng = np.random.default_rng(seed)
    rows = [(f'audio/{scene}-{CITIES[place]}-{10 * i + place}-0-0-{device}.wav', scene, device, CITIES[place])
            for i, scene in enumerate(SCENES) for place in range(2) for device in DEVICES]
    p = rng.dirichlet(np.ones(10), len(rows))
    labels = pd.DataFrame(rows, columns=['filename', 'scene_label', 'device', 'city'])
    return pd.concat([labels, pd.DataFrame(p, columns=list(SCENES))], axis=1)


def params(seed=0):
    "What params.json of a run holds"
    lists = dict(train=dict(clips=10, fingerprint='t'),
                 test=dict(clips=180, fingerprint=fingerprint(answers().filename)))
    data = dict(corpus='mine', synthetic=False, scenes=list(SCENES), devices=list(DEVICES), lists=lists, rate=44100)
    return dict(notebook='train', parameters=dict(seed=seed, subset=5, backbone='net', target='scene'), data=data,
                started=f'2026-01-0{seed + 1}T00:00:00', versions=dict(torch='2.11.0'), git=dict(commit='0a', diff=''),
                recipe=dict(name='easy-cnn3', changed={}), groups=None)


@pytest.fixture(scope='session')
def a_run(tmp_path_factory):
    "A run folder with seed 0, whole and consistent"
    folder = tmp_path_factory.mktemp('runs')/'whole'
    preds = answers()
    lines = evaluate_lines(dict(clips=preds))
    write_json(folder/'params.json', params())
    write_json(folder/'metrics.json', dict(metrics(preds), lines=lines, params=1000, macs=2000, seed=0))
    preds.to_csv(folder/'predictions.csv', index=False)
    return folder


@pytest.fixture
def copied(a_run, tmp_path):
    "A copy of it, to be damaged"
    return shutil.copytree(a_run, tmp_path/'damaged')


def put(table, path, value):
    "A copy of a table in which one entry, named with dots, is another or (None of this module) gone"
    table = deepcopy(table)
    *parents, last = path.split('.')
    inside = table
    for name in parents: inside = inside[name]
    if value is GONE: del inside[last]
    else: inside[last] = value
    return table


GONE = object()
NOT_A_SHARE = {'seven': 7, 'negative': -.1, 'text': 'good', 'list': [.5], 'true': True, 'just above': 1.0001}
METRICS = {f'{name} is {word}': (name, value) for name in ('macro_accuracy', 'accuracy', 'ece', 'recording_accuracy')
           for word, value in NOT_A_SHARE.items()}
METRICS |= {f'{name} is {word}': (name, value) for name in ('class_accuracy.bus', 'device_accuracy.s4',
            'group_accuracy.unseen', 'city_accuracy.barcelona', 'lines.clips.macro_accuracy')
            for word, value in NOT_A_SHARE.items() if word in ('seven', 'negative', 'text', 'true')}
METRICS |= {f'{name} is {value!r}': (name, value) for name in ('log_loss', 'macro_log_loss', 'class_log_loss.bus')
            for value in (-1, 99, 'low', True, [1.])}
METRICS |= {f'{name} is {value!r}': (name, value)
            for name in ('n', 'class_count.bus', 'device_count.a', 'params', 'macs')
            for value in (-1, 'many', True)}
METRICS |= {f'{name} is {value!r}': (name, value)
            for name in ('class_accuracy', 'device_accuracy', 'group_accuracy', 'city_log_loss', 'lines', 'lines.clips')
            for value in (.5, [1], 'text', None)}
METRICS |= {
    'no macro accuracy': ('macro_accuracy', GONE), 'macro accuracy null': ('macro_accuracy', None),
    'another macro accuracy': ('macro_accuracy', .5), 'another accuracy': ('accuracy', .5),
    'another log loss': ('log_loss', 1.), 'another class': ('class_accuracy.bus', .987),
    'another device': ('device_accuracy.a', .987), 'one clip more': ('n', 181),
    'more of a class': ('class_count.bus', 19),
    'a class less': ('class_accuracy.bus', GONE), 'a class more': ('class_accuracy.moon', .5),
    'figures of other classes': ('class_accuracy', {'rain': .5, 'wind': .5}),
}


@pytest.mark.parametrize('case', METRICS)
def test_damaged_metrics_are_left_out(case, copied, damage):
    "One broken figure costs this run, is said, and leaves the others alone"
    name, value = METRICS[case]
    write_json(copied/'metrics.json', put(json.loads((copied/'metrics.json').read_text()), name, value))
    damage('metrics.json', lambda: left_out(copied), ['damaged/metrics.json'])


def left_out(damaged):
    "Raise what a report says of a run it leaves out"
    records, remarks = usable_runs([damaged])
    if not records: raise InputError(remarks[0])
    return records


def test_the_others_are_kept(copied, a_run):
    "A broken run among others is named once, and the others stay"
    (copied/'metrics.json').write_text('[1]')
    records, remarks = usable_runs([a_run, copied])
    assert [record['dir'] for record in records] == [str(a_run)]
    assert len(remarks) == 1 and str(copied) in remarks[0]


PARAMS = {f'{name} is {value!r}': (name, value)
          for name in ('parameters', 'data', 'data.lists', 'data.lists.test', 'versions')
          for value in (3, [1], 'text', None)}
PARAMS |= {f'{name} is {value!r}': (name, value) for name in ('notebook', 'data.corpus', 'data.lists.test.fingerprint',
           'started') for value in (3, [1], None)}
PARAMS |= {f'{name} is {value!r}': (name, value)
           for name in ('parameters.seed', 'parameters.subset', 'data.lists.test.clips', 'data.rate')
           for value in ('0', 1.5, True, None, [0])}
PARAMS |= {f'{name} is {value!r}': (name, value) for name in ('data.scenes', 'data.devices')
           for value in ('abc', 3, ['bus', 'bus'], [1, 2], {'bus': 1})}
PARAMS |= {
    'no parameters': ('parameters', GONE), 'no notebook': ('notebook', GONE), 'no data': ('data', GONE),
    'no seed': ('parameters.seed', GONE), 'no split': ('parameters.subset', GONE),
    'no lists': ('data.lists', GONE), 'no test list': ('data.lists.test', GONE),
    'no fingerprint': ('data.lists.test.fingerprint', GONE), 'other clips': ('data.lists.test.fingerprint', 'f00'),
    'classes swapped for others': ('data.scenes', ['rain', 'wind']), 'git a text': ('git', 'clean'),
    'groups a list': ('groups', ['a']), 'a group a text': ('groups', {'real': 'a'}),
    'recipe a text': ('recipe', 'mine'),
    'recipe without a name': ('recipe', {'changed': {}}), 'recipe of numbers': ('recipe', {'name': 3, 'changed': {}}),
    'fewer than no clips': ('data.lists.test.clips', -1),
}


@pytest.mark.parametrize('case', PARAMS)
def test_damaged_params_are_left_out(case, copied, damage):
    name, value = PARAMS[case]
    write_json(copied/'params.json', put(json.loads((copied/'params.json').read_text()), name, value))
    named = 'predictions.csv' if case == 'other clips' else 'metrics.json' if 'swapped' in case else 'params.json'
    damage('params.json', lambda: left_out(copied), [f'damaged/{named}'])


TEXTS = {'empty': b'', 'cut': b'{"macro_accuracy": 0.5', 'list': b'[1, 2]', 'number': b'3',
         'NaN': b'{"macro_accuracy": NaN}',
         'key twice': b'{"macro_accuracy": 0.1, "macro_accuracy": 0.9}', 'zeros': bytes(500),
         'utf-16': '{}'.encode('utf-16'),
         'levels': b'[' * 100_000, 'infinity': b'{"macro_accuracy": Infinity}', 'page': b'<html>404</html>'}


@pytest.mark.parametrize('name', ['params.json', 'metrics.json'])
@pytest.mark.parametrize('case', TEXTS)
def test_damaged_files_are_left_out(case, name, copied, damage):
    (copied/name).write_bytes(TEXTS[case])
    damage('record', lambda: left_out(copied), [f'damaged/{name}'])


@pytest.mark.parametrize('name', ['params.json', 'metrics.json'])
@pytest.mark.parametrize('make', [nothing, *NODES])
def test_no_file_is_waited_for(make, name, copied, damage):
    (copied/name).unlink()
    make(copied/name)
    damage('record', lambda: left_out(copied), [name, 'damaged'])


def cells(change):
    "predictions.csv with one change to its rows"
    def write(folder):
        rows = pd.read_csv(folder/'predictions.csv', dtype=str)
        change(rows).to_csv(folder/'predictions.csv', index=False)
    return write


def set_cell(row, column, value):
    def change(rows):
        rows.loc[row, column] = value
        return rows
    return cells(change)


PREDICTIONS = {
    'a row less': cells(lambda d: d.iloc[1:]), 'no rows': cells(lambda d: d.iloc[:0]),
    'a row twice': cells(lambda d: pd.concat([d, d.iloc[:1]])), 'columns swapped': cells(
        lambda d: d.rename(columns=dict(bus='tram', tram='bus'))),
    'labels shifted': cells(lambda d: d.assign(scene_label=np.roll(d.scene_label, 1))),
    'answers shifted': cells(lambda d: d.assign(**{s: np.roll(d[s], 1) for s in SCENES})),
    'names of others': cells(lambda d: d.assign(filename=[f'audio/{i}.wav' for i in range(len(d))])),
    'a class less': cells(lambda d: d.drop(columns='bus')), 'a class more': cells(lambda d: d.assign(moon='0')),
    'no device': cells(lambda d: d.drop(columns='device')), 'no name': cells(lambda d: d.drop(columns='filename')),
    'NaN': set_cell(3, 'bus', 'nan'), 'infinite': set_cell(3, 'bus', 'inf'), 'negative': set_cell(3, 'bus', '-0.1'),
    'above one': set_cell(3, 'bus', '1.5'), 'empty cell': set_cell(3, 'bus', ''), 'text': set_cell(3, 'bus', 'x'),
    'unknown scene': set_cell(3, 'scene_label', 'moon'), 'empty scene': set_cell(3, 'scene_label', ''),
    'German comma': set_cell(3, 'bus', '0,5'), 'logits': cells(
        lambda d: d.assign(**{s: np.log(d[s].astype(float)) for s in SCENES})),
}


@pytest.mark.parametrize('case', PREDICTIONS)
def test_predictions_that_contradict(case, copied, damage):
    PREDICTIONS[case](copied)
    damage('predictions.csv', lambda: left_out(copied), ['damaged/predictions.csv'])


BYTES = {'empty': b'', 'zeros': bytes(1000), 'cut': None, 'utf-16': 'filename,bus\n'.encode('utf-16'),
         'latin-1': 'filename,café\n'.encode('latin-1'),
         'semicolons': b'filename;scene_label;device;city;bus\na;bus;a;x;1\n',
         'header only': b'filename,scene_label,device,city,bus\n',
         'column twice': b'filename,scene_label,device,city,bus,bus\n',
         'ragged': b'filename,scene_label,device,city,bus\na,bus,a,x,1,2\n', 'short row': b'filename,scene_label\na\n',
         'open quote': b'filename,scene_label,device,city,bus\n"a,bus,a,x,1\n', 'page': b'<html>404</html>'}


@pytest.mark.parametrize('case', BYTES)
def test_no_table_of_predictions(case, a_run, tmp_path, damage):
    path = tmp_path/'predictions.csv'
    path.write_bytes((a_run/'predictions.csv').read_bytes()[:5000] if BYTES[case] is None else BYTES[case])
    damage('predictions.csv', lambda: read_predictions(path), [path])


@pytest.mark.parametrize('make', [nothing, *NODES])
def test_predictions_that_are_no_file(make, tmp_path, damage):
    make(tmp_path/'predictions.csv')
    damage('predictions.csv', lambda: read_predictions(tmp_path/'predictions.csv'), ['predictions.csv'])


@pytest.fixture(scope='session')
def corpus(synthetic):
    return load_corpus(synthetic)


LISTS = {
    'empty': '', 'no column': 'name\n{0}', 'two columns': 'filename,filename\n{0},{0}', 'header only': 'filename\n',
    'unknown': 'filename\nnowhere.wav', 'twice': 'filename\n{0}\n{0}', 'with and without folder': 'filename\n{0}\n{1}',
    'ragged': 'filename,why\n{0}', 'too many cells': 'filename\n{0},{0}',
    'another scene': 'filename,scene_label\n{0},moon',
    'path upwards': 'filename\n../{0}', 'absolute': 'filename\n/{0}', 'capitals': 'filename\n{2}',
    'page': '<html>404</html>',
    'zero byte': 'filename\n{0}\0', 'spaces for a name': 'filename,why\n   ,x',
}


@pytest.mark.parametrize('case', LISTS)
def test_damaged_lists(case, corpus, tmp_path, damage):
    name = corpus.meta.filename[0]
    text = LISTS[case].replace('{0}', name).replace('{1}', name.split('/')[1]).replace('{2}', name.upper())
    (tmp_path/'mine.csv').write_text(text, encoding='utf-8')
    damage('list of clips', lambda: own_list(corpus, tmp_path/'mine.csv', 'test_list'), ['mine.csv', 'test_list'])


@pytest.mark.parametrize('make', [nothing, *NODES])
def test_lists_that_are_no_file(make, corpus, tmp_path, damage):
    make(tmp_path/'mine.csv')
    damage('list of clips', lambda: own_list(corpus, tmp_path/'mine.csv', 'train_list'), ['mine.csv', 'train_list'])


@pytest.mark.parametrize('text', [
    'filename\n{0}', 'filename\r\n{0}\r\n\r\n', '\ufefffilename,why\n{0},x', 'why;filename\nx;{0}',
    'filename\tscene_label\n{0}\t{1}', ' filename , why \n {0} , x '])
def test_lists_that_are_right(text, corpus, tmp_path, damage):
    row = corpus.meta.iloc[5]
    for name in (row.filename, row.filename.split('/')[1]):
        (tmp_path/'mine.csv').write_bytes(text.replace('{0}', name).replace('{1}', row.scene).encode())
        rows = own_list(corpus, tmp_path/'mine.csv', 'test_list')
        assert rows.filename.tolist() == [row.filename]
    damage('list of clips', lambda: rows, right=lambda found: found.scene.tolist() == [row.scene])


# ---------------------------------------------------------------- what is found and kept
def test_runs_behind_links_are_found_once(a_run, tmp_path):
    "A folder of runs that is a link, a run that is one, a loop, and a second way to the same place"
    shutil.copytree(a_run, tmp_path/'elsewhere/b')
    runs = tmp_path/'runs'
    runs.mkdir()
    (runs/'a').symlink_to(a_run)
    (runs/'more').symlink_to(tmp_path/'elsewhere')
    (runs/'again').symlink_to(tmp_path/'elsewhere/b')
    (runs/'loop').symlink_to(runs)
    (tmp_path/'elsewhere/up').symlink_to(runs)
    (runs/'broken').symlink_to(tmp_path/'nowhere')
    (tmp_path/'way').symlink_to(runs)
    for root in (runs, tmp_path/'way'):
        assert sorted(str(path.resolve()) for path in find_runs(root)) == sorted(
            [str(a_run.resolve()), str((tmp_path/'elsewhere/b').resolve())])


def test_the_newest_of_two_runs_counts(a_run, tmp_path):
    "The default trained twice: one row, one run, both named; other seeds, splits and recipes are other runs"
    for name, changes in dict(old={}, new=dict(started='2026-02-01T00:00:00')).items():
        shutil.copytree(a_run, tmp_path/name)
        write_json(tmp_path/name/'params.json', params() | changes)
    for name, seed in (('one', 1), ('two', 2)):
        shutil.copytree(a_run, tmp_path/name)
        write_json(tmp_path/name/'params.json', params(seed))
    records, _ = usable_runs(find_runs(tmp_path))
    kept, remarks = newest_runs(records)
    assert sorted(record['dir'].rsplit('/', 1)[1] for record in kept) == ['new', 'one', 'two']
    assert len(remarks) == 1 and str(tmp_path/'old') in remarks[0] and str(tmp_path/'new') in remarks[0]
    assert runs_table(kept, published=None).runs.tolist() == [3]
    table, _ = pair_table([tmp_path/'old', tmp_path/'new'], a_run)
    assert (table.difference.dropna() == 0).all()


def test_rows_are_called_by_recipes(a_run):
    "By the recipe; where runs of one recipe differ, by what differs; tables have ± for classes, devices and groups"
    def record(seed, recipe='', **changed):
        found = read_run(a_run)
        found['parameters'] |= dict(seed=seed, **changed)
        return dict(found, recipe=dict(name=recipe, changed=changed))
    runs = [record(seed, name, lr=lr, bs=bs) for name, lr, bs in (('easy-cnn3', .1, 32), ('dcase24-baseline', .2, 64))
            for seed in range(2)]
    assert list(runs_table(runs, published=None).mean.index) == ['split 5, dcase24-baseline', 'split 5, easy-cnn3']
    more = [*runs, *(record(seed, 'easy-cnn3', lr=.1, bs=32, ema=.9) for seed in range(2))]
    assert list(runs_table(more, published=None).mean.index) == [
        'split 5, dcase24-baseline', 'split 5, easy-cnn3, ema 0.9', 'split 5, easy-cnn3, no ema']
    for kind in ('class', 'device', 'group'):
        table = runs_table(runs, kind, published=None).to_frame()
        assert table.map(lambda cell: '±' in cell).iloc[:, 1:].any(axis=None)
    assert comparable(runs[0], runs[1]) == []


@pytest.mark.parametrize('make', [node for node in [nothing, *NODES] if node is not folder])
@pytest.mark.parametrize('door', [find_runs, read_run, lambda path: pair_table(path, path)],
                         ids=['report', 'run', 'pair'])
def test_folders_that_are_none(door, make, tmp_path, damage):
    make(tmp_path/'runs')
    damage('folder of runs', lambda: door(tmp_path/'runs'), ['runs'])


@pytest.mark.parametrize('path', ['runs/' + 'a' * 5000, 'a\0b'])
@pytest.mark.parametrize('door', [find_runs, read_run], ids=['report', 'run'])
def test_paths_that_cannot_be(door, path, damage):
    damage('folder of runs', lambda: door(path))
