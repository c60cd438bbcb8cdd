"""Damaged parameters: names, values, tables and folders, at every door of a run notebook, before anything starts."""
import base64
import json
import os
import socket
import time

import pytest

from asc.backbone.images import _is_out_of_reach
from asc.backbone.zoo import create_backbone
from asc.cli import read_settings
from asc.core import InputError
from asc.data.trained_on import corpus_of
from asc.entry.files import check_meta
from asc.experiment.cells import sweep_cells
from asc.experiment.checks import check_device_numbers, check_training
from asc.experiment.space import read_space
from asc.experiment.sweeps import run_sweep, Sweep
from asc.run.command import strict_argv
from asc.run.folder import check_free, check_unfinished, usable_folder
from asc.run.worker import make_folder
from asc.run.parameters import check_given, find_notebook, full_parameters, read_recipe
from asc.run.process import job_state
from asc.run.trust import trust
from asc.train.options import TrainingOptions
from test_damaged_text import REFUSED_YAML

TRAIN = str(find_notebook('train'))


def in_base64(text): return base64.b64encode(text.encode()).decode()


# the doors of papermill's command line: a name and a value -> words
DOORS = {
    '-p': lambda name, value: ['-p', name, value],
    '-r': lambda name, value: ['-r', name, value],
    '-y': lambda name, value: ['-y', json.dumps({name: value})],
    '-b': lambda name, value: ['-b', in_base64(json.dumps({name: value}))],
    '--parameters': lambda name, value: ['--parameters', name, value],
}
NAMES = [
    '_x', '_', '__name__', '__builtins__', 'In', 'Out', 'exit', 'get_ipython', 'run', 'a b', 'lr.high', '1x', '',
    'x=1;y',
    'import os', 'class', 'None', 'lr\nimport os', 'ﬁ', 'epoch', 'LR', 'bs ',
]


@pytest.mark.parametrize('door', DOORS)
@pytest.mark.parametrize('name', NAMES)
def test_no_name_of_a_parameter(door, name, damage):
    damage('name of a parameter', lambda: strict_argv([TRAIN, *DOORS[door](name, '1')]), ['parameter'])


@pytest.mark.parametrize('name', NAMES)
def test_no_name_in_a_script(name, damage):
    damage('name of a parameter', lambda: check_given(TRAIN, {name: 1}), ['parameter'])


def write(path, text):
    path.write_text(text, encoding='utf-8')
    return str(path)


# the doors for a table of parameters: a folder and a text -> what reads it
TABLES = {
    '-y': lambda folder, text: strict_argv([TRAIN, '-y', text]),
    '-f': lambda folder, text: strict_argv([TRAIN, '-f', write(folder/'me.yaml', text)]),
    '-b': lambda folder, text: strict_argv([TRAIN, '-b', in_base64(text)]),
    'recipe': lambda folder, text: read_recipe(write(folder/'me.yaml', text)),
    'meta file': lambda folder, text: refuse(check_meta(write(folder/'me.yaml', text))),
}


def refuse(complaints):
    "What a check of an entry complains about, as a refusal"
    raise InputError(f'{complaints[0]}; mend it')


@pytest.mark.parametrize('door', TABLES)
@pytest.mark.parametrize('text', REFUSED_YAML)
def test_no_table(door, text, damage, tmp_path):
    names = ['me.yaml' if door in ('-f', 'recipe', 'meta file') else door]
    damage('table of parameters', lambda: TABLES[door](tmp_path, REFUSED_YAML[text]), names)


RIGHT = {
    'lr: 1e-5': dict(lr=1e-5), 'lr: 3': dict(lr=3.), 'data_dir: 2026-01-01': dict(data_dir='2026-01-01'),
    "data_dir: '010'": dict(data_dir='010'), 'data_dir: café': dict(data_dir='café'), 'lr: .5': dict(lr=.5),
    'distill: {hard_weight: 1e-2}': dict(distill=dict(hard_weight=.01)), 'freeze: "1:30"': dict(freeze='1:30'),
}


@pytest.mark.parametrize('text', RIGHT)
@pytest.mark.parametrize('door', ['-y', '-f', '-b'])
def test_what_papermill_is_handed_is_right(door, text, damage, tmp_path):
    from papermill.iorw import NoDatesSafeLoader
    import yaml
    damage('table of parameters', lambda: yaml.load(TABLES[door](tmp_path, text)[0][-1], NoDatesSafeLoader),
           right=lambda found: found == RIGHT[text])


WORDS = {
    ('lr', '1e-3'): .001, ('lr', '5'): 5., ('data_dir', '2024'): '2024', ('data_dir', '010'): '010',
    ('cache', 'True'): True,
    ('steps', '[mel, log]'): ['mel', 'log'], ('valid', '.2'): .2, ('seed', '-0'): 0,
}


@pytest.mark.parametrize('name, text', WORDS)
def test_words_are_right(name, text, damage):
    damage('word behind -p', lambda: strict_argv([TRAIN, '-p', name, text])[2],
           right=lambda found: found == {name: WORDS[name, text]} and type(found[name]) is type(WORDS[name, text]))


REFUSED_WORDS = [
    ('epochs', '010'), ('epochs', '1_0'), ('epochs', '٣'), ('epochs', '1e3'), ('epochs', '3.0'), ('epochs', 'True'),
    ('epochs', '9' * 5000), ('epochs', '9' * 30), ('epochs', 'ten'), ('epochs', ''), ('lr', 'nan'), ('lr', 'inf'),
    ('lr', '-inf'), ('lr', '1e999'), ('lr', '1,5'), ('lr', '0x1'), ('cache', 'yes'), ('cache', '1'),
    ('steps', '[mel'),
    ('steps', '[.nan]'), ('distill', '{a: 1, a: 2}'), ('distill', '{no: 1}'), ('data_dir', 'a\udcff'), ('bs', '1:30'),
]


@pytest.mark.parametrize('name, text', REFUSED_WORDS, ids=lambda value: ascii(value)[:20])
def test_words_are_refused(name, text, damage):
    damage('word behind -p', lambda: strict_argv([TRAIN, '-p', name, text]), [name])


@pytest.mark.parametrize('words', [
    ['-p', 'lr', '1', '-p', 'lr', '2'], ['-r', 'data', 'a', '-r', 'data', 'b'], ['-b', '%%%'], ['-b', '/w=='],
    ['-f', 'no/such.yaml'], ['-f', '/dev/zero'], ['-f', '.'], ['-y', '- 1'], ['-y', 'lr'],
    ['--parameters_yaml=lr: 010'],
    ['-ylr: {a: 1'], ['--parameters_file=nowhere.yaml'], ['-r', 'epochs', '5'],
], ids=' '.join)
def test_command_lines_are_refused(words, damage):
    damage('command line', lambda: strict_argv([TRAIN, *words]))


@pytest.mark.parametrize('words', [
    ['epochs'], ['=3'], ['a b=3'], ['epochs=010'], ['lr=1', 'lr=2'], ['lr={a: 1, a: 2}'], ['bs=1:30'], ['lr=[1'],
], ids=' '.join)
def test_settings_are_refused(words, damage):
    damage('asc --set', lambda: read_settings(words, '--set'), ['--set'])


# parameters of a training: one of them, or a keyword inside one, damaged
NUMBERS = {
    'epochs': [0, -1, 10**9, 1.5, True], 'bs': [0, -8, 10**9], 'lr': [0., -1e-3, 1e30, float('nan'), float('inf')],
    'wd': [-1., 2., float('nan')], 'clip': [-1., float('inf'), float('nan'), 1e300],
    'ema': [1., -.5, 2., float('nan')],
    'swa': [-.1, 1.1], 'valid': [-.1, .9, float('nan')], 'freeze_epochs': [-1, 10**12],
    'lr_decay': [0., 2., float('nan')],
    'patience': [-1], 'seed': [-1, 10**30], 'join': [0, 10**9],
}
TABLES_OF_TRAINING = {
    'backbone_args': [
        dict(grn='yes'), dict(grn=1), dict(base='32'), dict(base=32.5), dict(base=True), dict(mult=float('nan')),
        dict(mult='2'),
        dict(strides=[1]), dict(strides=dict(b1='x')), dict(blocks=3), dict(base=None), dict(width=3), {'': 1},
        dict(name='x'), dict(n_classes=3),
        dict(base=10**9), dict(blocks=[]), dict(strides=dict(b1=[0, 0])),
    ],
    'frontend_args': [
        dict(per_frame='x'), dict(n_mels='256'), dict(n_mels=0), dict(hop=1.5), dict(fmax='high'),
        dict(eps=float('nan')),
        dict(log=3), dict(pad=True), dict(norm='area'), dict(gain='loud'), dict(window=1), dict(mels=3),
        dict(power='two'),
    ],
    'steps': [
        ['resample', {'dir': {'devices': ['a']}}, 'mel', 'log'], ['resample', {'dir': {'devices': 3}}, 'mel', 'log'],
        ['resample', {'dir': {'devices': [-1]}}, 'mel', 'log'],
        ['resample', {'dir': {'keep_level': 'no'}}, 'mel', 'log'],
        [{'roll': {'seconds': 'long'}}, 'mel', 'log'], [{'roll': {'p': 2}}, 'mel', 'log'],
        ['mel', {'freq_mask': {'n': '2'}}, 'log'],
        ['mel', {'freq_mask': {'size': True}}, 'log'], ['mel', 'log', {'mixup': {'alpha': 'a'}}],
        [{'gain': {'low': 'x'}}, 'mel', 'log'],
        ['mel', 'log', {'freq_mixstyle': {'cross': 'yes'}}], [3, 'mel', 'log'],
        [{'choice': {'weights': 'x', 'steps': []}}, 'mel', 'log'],
        [{'choice': {'weights': ['x'], 'steps': [None]}}, 'mel', 'log'],
        [{'roll': {'seconds': float('inf')}}, 'mel', 'log'],
    ],
    'schedule': [
        'steps', {'cosine': {'last': 'x'}}, {'cosine': {'last': float('nan')}}, {'constant': {'factor': 0.}},
        {'constant': {'factor': -1.}}, {'linear': {'first': 1., 'last': -1.}}, {'chain': {'pieces': [[1, 'x']]}},
        {'chain': {'pieces': [['1', 'cosine']]}}, {'ramp': {'of': True}}, {'cosine': 3}, '{"cosine": 1',
    ],
    'loss': ['mse', {'focal': {'gamma': 'two'}}, {'focal': {'gamma': -1}}, {'ce': {'label_smoothing': 2}},
    {'ce': {'label_smoothing': True}}],
    'distill': [dict(temperature=2.), dict(temprature=2.)],
}
LABELLED = {
    'self': [
        dict(temperature='2'), dict(temperature=0.), dict(temperature=-1.), dict(hard_weight=2.),
        dict(hard_weight=float('nan')),
        dict(decay=2.), dict(reduction='max'), dict(features=3), dict(temprature=1.),
    ],
}


def train_with(name, value): check_training(TrainingOptions(**{name: value}))


@pytest.mark.parametrize('name, value', [(name, value) for name in NUMBERS for value in NUMBERS[name]])
def test_numbers_are_refused(name, value, damage):
    damage('number', lambda: train_with(name, value), [name])


@pytest.mark.parametrize('name, value', [(n, v) for n in TABLES_OF_TRAINING for v in TABLES_OF_TRAINING[n]], ids=str)
def test_tables_are_refused(name, value, damage):
    damage('keywords of a part', lambda: train_with(name, value))


@pytest.mark.parametrize('table', LABELLED['self'], ids=str)
def test_ways_of_teaching_are_refused(table, damage):
    damage('keywords of a part', lambda: check_training(TrainingOptions(teacher='self', distill=table)))


OWN = '''
from torch import nn
class Net(nn.Module):
    def __init__(self, n_classes=10, width=8, deep=False, drop=.1, name: str = 'net', size: int | float = 1):
        super().__init__()
        if width == 7: raise RuntimeError('seven')
class NoNetwork: pass
'''


@pytest.mark.parametrize('args', [
    dict(width='8'), dict(width=8.5), dict(deep='no'), dict(deep=1), dict(drop='x'), dict(drop=float('nan')),
    dict(name=3),
    dict(size='large'), dict(depth=3), dict(width=7),
], ids=str)
def test_keywords_of_an_own_class_are_refused(args, damage, tmp_path):
    trust(name := write(tmp_path/'mine.py', OWN))
    name += ':Net'
    damage('own class', lambda: check_training(TrainingOptions(backbone=name, backbone_args=args)), [*args])


@pytest.mark.parametrize('args', [{}, dict(width=16, deep=True, drop=1, name='x', size=1.5)], ids=str)
def test_an_own_class_is_taken(args, damage, tmp_path):
    trust(name := write(tmp_path/'mine.py', OWN))
    name += ':Net'
    damage('own class', lambda: check_training(TrainingOptions(backbone=name, backbone_args=args)),
        right=lambda found: True)


@pytest.mark.parametrize('name',
    ['gone.py:Net', 'mine.py:NoNetwork', 'mine.py:Nothing', 'mine.py:', '/dev/zero.py:Net'])
def test_no_own_class(name, damage, tmp_path):
    trust(write(tmp_path/'mine.py', OWN))
    damage('own class', lambda: check_training(TrainingOptions(backbone=str(tmp_path/name))))


@pytest.mark.parametrize('numbers', [[99], [2], [-1], [0, 5]], ids=str)
def test_no_device_of_the_corpus(numbers, damage):
    steps = ['mel', {'choice': {'weights': [1.], 'steps': [{'dir': {'devices': numbers}}]}}, 'log']
    damage('keywords of a part', lambda: check_device_numbers(steps, ['a', 'b']), ['dir'])


# places for a run
def a_file(path): return path.touch() or path


def below_a_file(path): return a_file(path)/'run'


def pipe(path): return os.mkfifo(path) or path


def loop(path): return path.symlink_to(path.name) or path


def below_a_loop(path): return loop(path)/'run'


def long_name(path): return path/('x' * 300)


def long_path(path): return path/'/'.join(['x' * 100] * 60)


def blank(path): return ' '


def blank_inside(path): return f'{path}/ /run'


def zero_byte(path): return f'{path}\0'


def unknown_home(path): return '~nobody-of-this-name/run'


PLACES = [a_file, below_a_file, pipe, loop, below_a_loop, long_name, long_path, blank, blank_inside, zero_byte,
          unknown_home]


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('door', [check_free, check_unfinished, usable_folder,
                                  lambda out: Sweep([], out)], ids=['out', 'resume', 'any', 'sweep'])
def test_no_place_for_a_run(door, place, damage, tmp_path):
    damage('no place for a run', lambda: door(place(tmp_path/'out')))
    assert not list(tmp_path.rglob('run'))


def test_a_read_only_place(damage):
    damage('no place for a run', lambda: make_folder(usable_folder('/proc/run')), ['/proc/run'])


@pytest.mark.parametrize('record',
    ['[]', '3', '{"notebook": "train", "parameters": 3}', '{"notebook": 1}', '{', '', 'null'])
def test_the_record_of_another(record, damage, tmp_path):
    "A folder of a sweep whose .job.json somebody has replaced"
    write(tmp_path/'.job.json', record)
    damage('record of a run', lambda: job_state(tmp_path, 'train', dict(lr=1.)), [tmp_path])


@pytest.mark.parametrize('options',
    [dict(workers=-1), dict(workers=10**9), dict(threads=10**9), dict(tries=0), dict(tries=10**9)])
def test_workers_are_refused(options, damage, tmp_path):
    sweep = Sweep(sweep_cells(['easy-cnn3']), tmp_path/'runs')
    damage('number', lambda: run_sweep(sweep, **options), list(options))
    assert not (tmp_path/'runs').exists()


@pytest.mark.parametrize('cells', [3, 'x', [[]]], ids=str)
def test_cells_are_refused(cells, damage):
    damage('sweep', lambda: sweep_cells(cells=cells if isinstance(cells, list) else [cells]), ['cells'])


@pytest.mark.parametrize('space', [
    {}, {'lr': 3}, {'lr': 'x'}, {'lr': dict(low=float('nan'), high=1.)}, {'lr': dict(low=0., high=float('inf'))},
    {'_x': [1]},
    {'lr': []}, {'lr': dict(low=1)}, {'ema': [.5, 1.]}, {'backbone_args.grn': ['yes']}, {'clip': [0., float('inf')]},
], ids=str)
def test_spaces_are_refused(space, damage):
    damage('search', lambda: read_space(space, full_parameters('train')))


RECORDS = {
    'two corpora': [dict(data=dict(dir='/a')), dict(data=dict(dir='/b'))],
    'gone': [dict(data=dict(dir='/nowhere/corpus'))],
}


@pytest.mark.parametrize('name', RECORDS)
def test_the_corpus_of_runs(name, damage, tmp_path):
    "Runs of two corpora, and one whose corpus has gone: nobody is asked about synthetic sounds"
    runs = [tmp_path/str(i) for i in range(len(RECORDS[name]))]
    for run, record in zip(runs, RECORDS[name]):
        run.mkdir()
        write(run/'params.json', json.dumps(record))
    damage('corpus of a run', lambda: corpus_of('', '', list(map(str, runs))), ['models', 'data_dir'])


OTHER_SHAPES = [dict(data=[]), dict(data='x'), dict(data=dict(dir=3)), dict(data=dict(dir=['/a']))]


@pytest.mark.parametrize('record', OTHER_SHAPES, ids=str)
def test_records_of_another_shape(record, damage, tmp_path):
    "Nobody is asked about synthetic sounds because a record cannot be read"
    write(tmp_path/'params.json', json.dumps(record))
    damage('corpus of a run', lambda: corpus_of('', '', [str(tmp_path)]), ['params.json'])


LISTS = [
    ('sweep', 'seeds', [0, 'a']), ('sweep', 'seeds', [1.5]), ('sweep', 'seeds', 3), ('sweep', 'subsets', ['all']),
    ('sweep', 'recipes', [3]),
    ('sweep', 'recipes', [{}]), ('report', 'runs', [3]), ('report', 'pair', [None, 'a']),
    ('submit', 'runs', 'runs/a'), ('submit', 'runs', [[]]),
    ('devices', 'parts', [1]), ('distill', 'teacher', [3]), ('distill', 'seeds', [True]),
    ('logits', 'weights', ['x']), ('quantize', 'skip', [0]),
    ('benchmark', 'threads', ['all']), ('train', 'teacher', [3]), ('logits', 'weights', [float('nan')]),
]


@pytest.mark.parametrize('notebook, name, value', LISTS)
def test_lists_are_refused(notebook, name, value, damage):
    damage('list', lambda: full_parameters(notebook, None, {name: value}), [name])


@pytest.mark.parametrize('library', ['torchvision', 'timm'])
@pytest.mark.parametrize('error', [OSError('no route'), RuntimeError('retries exceeded'), KeyError('hf_hub_id')],
    ids=repr)
def test_pretrained_without_a_network(library, error, damage, monkeypatch):
    "The weights of a library are not at hand: one sentence, whatever the library says"
    def offline(name, n_classes, pretrained, keywords):
        if pretrained: raise error
    monkeypatch.setattr(f'asc.backbone.images._{library}_network', offline)
    damage('network', lambda: create_backbone(f'{library}:any', pretrained=True), [f'{library}:any', 'pretrained'])


def test_weights_of_a_server_out_of_reach(damage, monkeypatch, tmp_path):
    "timm's server is asked once where there is no way to it, and as often as it likes where there may be one"
    for name in ('http_proxy', 'https_proxy', 'all_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(('localhost', 0)) as server:
        address = f'http://localhost:{server.getsockname()[1]}'
        assert not _is_out_of_reach(address)
    assert _is_out_of_reach(address)
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', address)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    begun = time.monotonic()
    damage('network', lambda: create_backbone('timm:resnet10t', pretrained=True), ['timm:resnet10t', 'pretrained'])
    assert time.monotonic() - begun < 10
    monkeypatch.setenv('https_proxy', 'http://localhost:1')
    assert not _is_out_of_reach(address)
