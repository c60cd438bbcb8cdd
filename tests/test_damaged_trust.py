"""A stranger's files: planted code leaves no mark, and a name is never code.

The planted file would leave a mark wherever it runs. It is tried in every place, in every format, at every door."""
import ast
import base64
import importlib.util
import inspect
import json
import marshal
import os
import pickle
import shutil
from copy import deepcopy
from pathlib import Path

import papermill
import pytest
import soundfile as sf
import torch
import yaml

import asc
from asc.augment.pipeline import create_pipeline
from asc.cli import main, read_settings
from asc.core import InputError, read_json, write_json
from asc.entry.package import open_system, write_bundle
from asc.entry.weights import load_entrant
from asc.experiment.cells import sweep_cells
from asc.experiment.checks import check_training
from asc.experiment.distillation import Distillation
from asc.experiment.recipe import open_start
from asc.experiment.seeds import run_config
from asc.experiment.space import read_space
from asc.experiment.stacked import check_stacked
from asc.load import open_model
from asc.model.classifier import create_classifier, load_model, save_model
from asc.model.per_device import DeviceAware, load_devices, save_devices
from asc.model.saved import read_saved, write_saved
from asc.run.papermill import default_output
from asc.run.parameters import find_notebook, full_parameters
from asc.run.plugin import own_code
from asc.run.trust import digest_of, forget, trust, trust_file, trusted
from asc.size.qat import load_quantised, save_quantised, with_augmentation
from asc.size.qdq import calibrate, quantised_classifier
from asc.train.losses import create_loss
from asc.train.options import TrainingOptions
from asc.train.optimizers import create_optimizer
from asc.train.schedules import create_schedule

CODE = '''
import os
from os import system
import torch
from torch import nn

open(os.environ['MARK'], 'a').write('ran')

class Net(nn.Sequential):
    def __init__(self, n_classes=10, width=4):
        super().__init__(nn.Conv2d(1, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, n_classes))

class Bands(nn.Module):
    sample_rate = 8000
    def mel(self, wave): return wave.unfold(1, 400, 400).abs().unflatten(2, (20, 20)).mean(3).mT
    def log(self, x): return (x + 1e-5).log()[:, None]

class Louder(nn.Module):
    stage = 'wave'
    def forward(self, x, device=None): return 2 * x

class Loss(nn.CrossEntropyLoss): pass

class Step(torch.optim.SGD): pass
'''
KINDS = dict(zip(('float', 'quantised', 'device-wise'), (load_model, load_quantised, load_devices)))


@pytest.fixture(autouse=True)
def mark(tmp_path, monkeypatch):
    "The file that planted code would leave; and a list of consent that is empty at first"
    monkeypatch.setenv('MARK', str(tmp_path/'mark'))
    monkeypatch.setenv('ASC_TRUST', str(tmp_path/'consent/trusted.json'))
    return tmp_path/'mark'


@pytest.fixture(scope='session')
def theirs(tmp_path_factory):
    "A stranger's models, made where his code may run: folder/KIND, and folder/net.py"
    folder = tmp_path_factory.mktemp('theirs')
    (folder/'net.py').write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MARK', str(folder/'mark'))
        patch.setenv('ASC_TRUST', str(folder/'trusted.json'))
        trust(folder/'net.py')
        save_each(folder, f"{folder/'net.py'}:")
    return folder


def save_each(folder, name):
    "The same own network and frontend in every format"
    steps = [name + 'Louder', 'mel', 'log']
    model = create_classifier(name + 'Net', name + 'Bands', steps, 8000)
    with torch.no_grad(): model(torch.randn(4, 8000))
    save_model(model.eval(), folder/'float')
    save_devices(DeviceAware(model, {'b': deepcopy(model.backbone)}, ['a', 'b']), folder/'device-wise')
    integer = quantised_classifier(model)
    calibrate(integer.backbone, [model.pipeline(torch.randn(4, 8000))])
    save_quantised(integer, folder/'quantised')


PLACES = {                                # where the code lies, and what a description calls it
    'inside': lambda run: (run/'net.py', run/'net.py'),
    'below': lambda run: (run/'code/net.py', run/'code/net.py'),
    'above': lambda run: (run.parent/'net.py', run.parent/'net.py'),
    'beside': lambda run: (run.parent/'other/net.py', run.parent/'other/net.py'),
    'through the parent': lambda run: (run.parent/'net.py', run/'../net.py'),
    'a hidden file': lambda run: (run/'.net.py', run/'.net.py'),
    'by a link': lambda run: (run.parent/'real.py', run/'net.py'),
    'from where one stands': lambda run: (run.parent/'net.py', Path('net.py')),
}


@pytest.fixture
def plant(theirs, tmp_path, monkeypatch):
    "plant(kind, place): a run folder of a stranger, sealed, which names his code"
    def plant(kind='float', place='inside'):
        run = tmp_path/'strange'/'run'
        shutil.copytree(theirs/kind, run)
        monkeypatch.chdir(run.parent)
        path, named = PLACES[place](run)
        path.parent.mkdir(exist_ok=True)
        path.write_text(CODE)
        if place == 'by a link': named.symlink_to(path)
        forge(run, f'{named}:')
        return run
    return plant


def forge(run, name, **changes):
    "Let a description name other code, with its fingerprint, and seal it, as a stranger can"
    saved = read_saved(run)
    changes = dict(backbone=name + 'Net', frontend=name + 'Bands', pipeline=[name + 'Louder', 'mel', 'log'], **changes)
    changes['own'] = own_code([name + 'Net', name + 'Bands'])
    write_saved(run, saved.description | changes, saved.weights)


def is_whole(model):
    "Whether a model answers"
    return open_model(model)(torch.randn(1, 8000)).shape == (1, 10)


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('kind', KINDS)
def test_planted_code(kind, place, plant, mark, damage):
    "Refused wherever it lies, in every format, by every opener; with consent it runs, and another byte ends that"
    run = plant(kind, place)
    path, _ = PLACES[place](run)
    for door in (open_model, KINDS[kind]):
        damage('planted code', lambda: door(run), [run, path.name, f'run: asc trust {path}'])
    assert not mark.exists()
    trust(path)
    damage('planted code', lambda: open_model(run), right=is_whole)
    assert mark.exists()
    mark.unlink()
    path.write_text(CODE + '#')
    damage('planted code', lambda: open_model(run), [path.name, 'asc trust'])
    trust(path)                                              # it may run now, and is another version
    damage('planted code', lambda: open_model(run), [path.name, 'another version'])
    assert not mark.exists()


def predicted(run):
    sf.write(run.parent/'x.wav', torch.randn(8000).numpy() / 9, 8000)
    main(['predict', str(run), str(run.parent/'x.wav')])


DOORS = {
    'predict': predicted,
    'seal': lambda run: (write_json(run/'model.json', read_json(run/'model.json') | dict(note='x')),
                         main(['seal', str(run)])),
    'teacher': lambda run: Distillation(str(run)),
    'start': lambda run: open_start(str(run)),
    'entry': load_entrant,
    'package': open_system,
    'live teacher of a recipe': lambda run: check_training(TrainingOptions(teacher=str(run))),
    'teacher of a sweep': lambda run: sweep_cells(cells=[dict(name='x', teacher=str(run))]),
}


@pytest.mark.parametrize('door', DOORS)
def test_planted_code_at_other_doors(door, plant, mark, capsys):
    run = plant()
    with pytest.raises((InputError, SystemExit)) as refusal: DOORS[door](run)
    said = str(refusal.value) + capsys.readouterr().err
    assert f'asc trust {run}/net.py' in said and getattr(refusal.value, 'code', 2) == 2
    assert not mark.exists()


def test_planted_code_in_a_package(tmp_path, mark, monkeypatch):
    "The library inside an inference package has the same rule"
    save_model(create_classifier('cnn3', pipeline='easy_cnn3', rate=44100), tmp_path/'plain')
    folder = write_bundle([tmp_path/'plain'], tmp_path, 'Planck_UP_task1')
    planted = next(folder.rglob('model.json')).parent
    write(planted/'net.py', CODE)
    forge(planted, f"{planted/'net.py'}:")
    monkeypatch.syspath_prepend(folder)
    api = importlib.import_module('Planck_UP_task1.Planck_UP_task1_1')
    with pytest.raises(ValueError, match=f"asc trust {planted/'net.py'}"): api.load_model()
    assert not mark.exists()


FIELDS = {
    'backbone': lambda name: dict(backbone=name + 'Net'),
    'frontend': lambda name: dict(frontend=name + 'Bands'),
    'step': lambda name: dict(steps=[{name + 'Louder': {}}, 'mel', 'log']),
    'step of a choice': lambda name: dict(
        steps=[{'choice': {'weights': [1.], 'steps': [name + 'Louder']}}, 'mel', 'log']),
    'loss': lambda name: dict(loss={name + 'Loss': {}}),
    'loss as text': lambda name: dict(loss=json.dumps({name + 'Loss': {}})),
    'optimizer': lambda name: dict(optimizer=name + 'Step'),
    'optimizer as text': lambda name: dict(optimizer=json.dumps({name + 'Step': {'momentum': .9}})),
}


def recipe_of(fields, folder):
    path = folder/'recipe.yaml'
    path.write_text(yaml.safe_dump(fields))
    return str(path)


def searched(fields):
    "The fields as the choices of a search"
    name, value = next(iter(fields.items()))
    if name == 'steps': pytest.skip('steps are searched one by one')
    return read_space({name: [value]}, full_parameters('train'))


RECIPES = {
    'training': lambda fields, folder: check_training(TrainingOptions(**fields)),
    'sweep of a recipe': lambda fields, folder: sweep_cells([recipe_of(fields, folder)]),
    'sweep of cells': lambda fields, folder: sweep_cells(cells=[dict(fields, name='x')]),
    'asc sweep': lambda fields, folder: main(['sweep', recipe_of(fields, folder), '--out', str(folder/'out')]),
    'search': lambda fields, folder: searched(fields),
}


@pytest.mark.parametrize('field', FIELDS)
@pytest.mark.parametrize('door', RECIPES)
def test_planted_code_of_a_recipe(door, field, tmp_path, mark, capsys):
    (tmp_path/'net.py').write_text(CODE)
    fields = FIELDS[field](f"{tmp_path/'net.py'}:")
    with pytest.raises((InputError, SystemExit)) as refusal: RECIPES[door](fields, tmp_path)
    assert f"asc trust {tmp_path/'net.py'}" in str(refusal.value) + capsys.readouterr().err
    assert not mark.exists() and not trusted()


@pytest.mark.parametrize('field', FIELDS)
def test_own_parts_with_consent(field, tmp_path, mark):
    trust(tmp_path_code := write(tmp_path/'net.py', CODE))
    check_training(TrainingOptions(**FIELDS[field](f'{tmp_path_code}:')))
    assert mark.exists()


def write(path, text):
    path.write_text(text)
    return path


def test_what_trains_asks_too(tmp_path, plant, mark):
    "A quantised training builds the pipeline anew; a schedule is no class of one's own"
    run = plant()
    trust(run/'net.py')
    model = load_model(run)
    forge(run, f"{run/'net.py'}:")
    forget(run/'net.py')
    mark.unlink()
    for door in (with_augmentation, lambda model: create_pipeline(model.spec['pipeline'], 8000)):
        with pytest.raises(InputError, match='asc trust'): door(model)
    with pytest.raises(InputError): create_schedule(f"{run/'net.py'}:Net", 1., 1)
    for make, name in ((create_loss, 'Loss'), (create_optimizer, 'Step')):
        with pytest.raises(InputError, match='asc trust'): make(f"{run/'net.py'}:{name}")
    parameters = full_parameters('train', None, dict(optimizer=f"{run/'net.py'}:Step"))
    with pytest.raises(InputError): check_stacked(**parameters)
    assert not mark.exists()


# the list, and what it is of

def test_compiled_code_beside_the_text_does_not_run(plant, mark):
    "A pyc that claims to be of the trusted text"
    run = plant()
    path = write(run/'net.py', CODE.replace("open(os.environ['MARK'], 'a').write('ran')", ''))
    forge(run, f'{path}:')
    trust(path)
    pyc = Path(importlib.util.cache_from_source(str(path)))
    pyc.parent.mkdir()
    times = int(path.stat().st_mtime).to_bytes(4, 'little') + path.stat().st_size.to_bytes(4, 'little')
    pyc.write_bytes(importlib.util.MAGIC_NUMBER + bytes(4) + times + marshal.dumps(compile(CODE, str(path), 'exec')))
    assert is_whole(run) and not mark.exists()


def test_consent_is_given_to_a_text(plant, tmp_path, mark):
    "A copy of a trusted file is trusted; that is said in nbs/run/04_trust.ipynb"
    run = plant()
    trust(write(tmp_path/'mine.py', CODE))
    assert is_whole(run)
    forget(tmp_path/'mine.py')
    with pytest.raises(InputError, match='asc trust'): open_model(run)


def test_a_file_that_changes_while_it_is_read(plant, mark, monkeypatch):
    "What was compared is what runs"
    run = plant()
    path = write(run/'net.py', CODE.replace("open(os.environ['MARK'], 'a').write('ran')", ''))
    forge(run, f'{path}:')
    trust(path)
    read = Path.read_bytes

    def read_once(self):
        text = read(self)
        if self == path: path.write_text(CODE)
        return text
    monkeypatch.setattr(Path, 'read_bytes', read_once)
    with pytest.raises(InputError, match='asc trust'): open_model(run)
    assert not mark.exists()


@pytest.mark.parametrize('name', ['system', 'os', 'torch', 'nn', '__builtins__', '__file__', 'open'])
def test_only_what_a_file_defines_can_be_named(name, tmp_path, damage):
    "A trusted file imports much that a stranger could name, with keywords of his"
    trust(write(tmp_path/'mine.py', CODE))
    loss = {f"{tmp_path/'mine.py'}:{name}": {'command': f"touch {tmp_path/'by_name'}"}}
    damage('planted code', lambda: create_loss(loss), ['mine.py', 'name one'])
    assert not (tmp_path/'by_name').exists()


def test_own_classes_are_whole(tmp_path, mark):
    "Their source is found, they are pickled, and they may be dataclasses"
    text = 'from __future__ import annotations\nfrom dataclasses import dataclass\n' + CODE + '''
@dataclass
class Options:
    width: int = 4
'''
    trust(path := write(tmp_path/'net.py', text))
    net = create_classifier(f'{path}:Net', pipeline='none', rate=32000).backbone
    assert 'nn.AdaptiveAvgPool2d(1)' in inspect.getsource(type(net))
    assert type(pickle.loads(pickle.dumps(net))) is type(net)


LISTS = {
    'a list': '[]', 'null': 'null', 'no format': '{}', 'another format': '{"format": "x", "files": {}}',
    'files a list': '{"format": "asc-trusted-1", "files": []}', 'cut': '{"format": "asc-tr', 'empty': '',
    'short digest': '{"format": "asc-trusted-1", "files": {"ab12": {"path": "x", "date": "y"}}}',
    'digest in capitals': '{"format": "asc-trusted-1", "files": {"%s": {"path": "x", "date": "y"}}}' % ('AB' * 32),
    'entry null': '{"format": "asc-trusted-1", "files": {"%s": null}}' % ('ab' * 32),
    'entry of numbers': '{"format": "asc-trusted-1", "files": {"%s": {"path": 1, "date": 2}}}' % ('ab' * 32),
    'entry with more': '{"format": "asc-trusted-1", "files": {"%s": {"path": "", "date": "", "x": ""}}}' % ('ab' * 32),
    'key twice': '{"format": "asc-trusted-1", "format": "asc-trusted-1", "files": {}}',
}


@pytest.mark.parametrize('name', LISTS)
def test_damaged_list(name, damage):
    trust_file().parent.mkdir()
    trust_file().write_text(LISTS[name])
    trust_file().chmod(0o600)
    damage('list of consent', trusted, [trust_file()])


def test_a_list_of_others(plant, monkeypatch, tmp_path, damage):
    "One that others may write, that lies wherever one stands, or is no file"
    run = plant()
    trust(run/'net.py')
    assert trust_file().stat().st_mode & 0o777 == 0o600
    trust_file().chmod(0o622)
    damage('list of consent', lambda: open_model(run), ['chmod 600'])
    monkeypatch.setenv('ASC_TRUST', 'trusted.json')
    damage('list of consent', lambda: open_model(run), ['ASC_TRUST'])
    os.mkfifo(tmp_path/'pipe')
    monkeypatch.setenv('ASC_TRUST', str(tmp_path/'pipe'))
    damage('list of consent', lambda: open_model(run), ['pipe'])
    monkeypatch.delenv('ASC_TRUST')
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path/'config'))
    assert trust_file() == tmp_path/'config/asc/trusted.json'
    monkeypatch.setenv('XDG_CONFIG_HOME', 'here')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert trust_file() == tmp_path/'.config/asc/trusted.json'


@pytest.mark.parametrize('name', ['gone.py', 'pipe.py', 'folder.py', 'zero.py', '.'])
def test_no_file_to_trust(name, tmp_path, damage):
    os.mkfifo(tmp_path/'pipe.py')
    (tmp_path/'folder.py').mkdir()
    (tmp_path/'zero.py').symlink_to('/dev/zero')
    damage('list of consent', lambda: trust(tmp_path/name), [tmp_path/name if name != 'zero.py' else '/dev/zero'])


def test_the_command(tmp_path, capsys):
    path = write(tmp_path/'my net.py', 'class Net: pass\n')
    digest = digest_of(path.read_bytes())
    main(['trust', str(path)])
    assert f'{path}: 1 lines, SHA-256 {digest}: may run' in capsys.readouterr().out
    main(['trust'])
    assert f'{digest}  ' in capsys.readouterr().out
    main(['trust', '--forget', digest[:12]])
    assert not trusted()
    for words in (['--forget'], ['--forget', str(path)], ['gone.py']):
        with pytest.raises(SystemExit) as refusal: main(['trust', *words])
        assert refusal.value.code == 2


# what is typed is consent, what a file says is not

TYPED = {
    '-p': lambda name, folder: ['-p', 'backbone', name],
    '--parameters': lambda name, folder: ['--parameters', 'backbone', name],
    '-r': lambda name, folder: ['-r', 'optimizer', name.replace('Net', 'Step')],
    '-y': lambda name, folder: ['-y', json.dumps(dict(steps=[name.replace('Net', 'Louder'), 'mel', 'log']))],
    'JSON': lambda name, folder: ['-p', 'loss', json.dumps({name.replace('Net', 'Loss'): {}})],
}
READ = {
    '-f': lambda name, folder: ['-f', recipe_of(dict(backbone=name), folder)],
    '-b': lambda name, folder: ['-b', base64.b64encode(f'backbone: {name}'.encode()).decode()],
    'a folder': lambda name, folder: ['-p', 'init_from', str(folder)],
    'a file that is not there': lambda name, folder: ['-p', 'backbone', str(folder/'gone.py:Net')],
}


@pytest.mark.parametrize('way', [*TYPED, *READ])
def test_what_is_typed_is_consent(way, tmp_path, capsys, mark):
    path = write(tmp_path/'net.py', CODE)
    words = (TYPED | READ)[way](f'{path}:Net', tmp_path)
    default_output([str(find_notebook('train')), *words, '-p', 'out', str(tmp_path/'out')])
    digest = digest_of(path.read_bytes())
    assert list(trusted()) == ([digest] if way in TYPED else [])
    assert (digest[:16] in capsys.readouterr().err) == (way in TYPED)
    assert not mark.exists()                                 # consent is given; nothing has run yet


def test_what_is_typed_behind_asc_sweep(tmp_path, capsys, mark):
    "Consent, and what else is wrong is said"
    path = write(tmp_path/'net.py', CODE)
    with pytest.raises(SystemExit):
        main(['sweep', '', '--set', f'backbone={path}:Net', 'epochs=0', '--out', str(tmp_path/'out')])
    assert 'epochs=0' in capsys.readouterr().err
    assert list(trusted()) == [digest_of(path.read_bytes())]


# the name of a parameter is never code

CODE_AS_NAME = "lr = 0.001; open(__import__('os').environ['MARK'], 'w') #"
NAMES = [
    CODE_AS_NAME, "lr\nopen(__import__('os').environ['MARK'], 'w')\nx", 'lr ', 'lr.x', 'lr[0]', 'lr,bs', '(lr)',
    'lr: int',
    'class', 'None', '', '1lr', '-lr', '_lr', '__builtins__', 'globals()["lr"]', 'ｌｒ', 'lr\0', 'print',
]


def by_papermill(names, folder, source=None):
    "Through our engine, from Python"
    notebook = str(source or find_notebook('train'))
    papermill.execute_notebook(notebook, str(folder/'out.ipynb'), {name: 1 for name in names})


def foreign(folder):
    "The notebook of no project of ours"
    shutil.copy(find_notebook('train'), folder/'foreign.ipynb')
    return folder/'foreign.ipynb'


def words_of(table, folder, way):
    "A table of parameters on the command line of papermill"
    text = json.dumps(table)
    if way == '-f': return ['-f', str(write(folder/'strange.yaml', text))]
    if way == '-b': return ['-b', base64.b64encode(text.encode()).decode()]
    return ['-y', text] if way == '-y' else [way, *[str(word) for pair in table.items() for word in pair]]


def by_command(way):
    return lambda name, folder: default_output([str(find_notebook('train')), *words_of({name: 1}, folder, way)])


NAMED = {
    **{way: by_command(way) for way in ('-p', '-r', '-y', '-f', '-b')},
    'engine': lambda name, folder: by_papermill([name], folder),
    'recipe': lambda name, folder: full_parameters('train', {name: 1}),
    'recipe file': lambda name, folder: sweep_cells([write(folder/'strange.yaml', json.dumps({name: 1}))]),
    'run': lambda name, folder: asc.run_notebook(folder/'run', 'train', {name: 1}),
    'run without a recipe': lambda name, folder: asc.run_notebook(folder/'run', 'train', **{name: 1}),
    'cell': lambda name, folder: sweep_cells(cells=[{'name': 'x', name: 1}]),
    'common': lambda name, folder: sweep_cells([''], parameters={name: 1}),
    'space': lambda name, folder: read_space({name: [1]}, full_parameters('train')),
    'space inside': lambda name, folder: read_space({f'{name}.p': [1]}, full_parameters('train')),
}


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('door', NAMED)
def test_a_name_is_no_code(door, name, tmp_path, mark, damage):
    damage('name of a parameter', lambda: NAMED[door](name, tmp_path))
    assert not mark.exists() and not (tmp_path/'out.ipynb').exists()


@pytest.mark.parametrize('name', [name for name in NAMES if not name.isidentifier() or name in ('class', 'None')])
def test_a_name_is_no_code_in_a_foreign_notebook(name, tmp_path, mark, damage):
    damage('name of a parameter', lambda: by_papermill([name], tmp_path, foreign(tmp_path)))
    assert not mark.exists() and not (tmp_path/'out.ipynb').exists()


VALUES = [
    CODE_AS_NAME, '"; import os #', "\'\'\'", '\n', '\\', '\\" + os.sep + "', '{{x}}', "{'a': __import__('os')}",
    '\u2028', 'é', {CODE_AS_NAME: {'"]; #': [1, None, True]}}, ['\\"', {'\n': '\n'}], {'a"': 1e300},
]


@pytest.mark.parametrize('value', VALUES, ids=str)
def test_a_value_stays_a_value(value):
    "What papermill writes for it is one assignment of it"
    from papermill.translators import PythonTranslator
    assignment, = ast.parse(PythonTranslator.codify({'x': value})).body
    assert ast.literal_eval(assignment.value) == value


TAGS = ['!!python/object/apply:os.system ["touch mark"]', '!!python/name:os.system', '!!python/module:os',
        '!!python/object/new:os.system [x]', '!x 1', '!!binary aGk=', '!!set {a, b}', '&a [1]\nb: *a']


@pytest.mark.parametrize('tag', TAGS)
@pytest.mark.parametrize('way', ['-f', '-y', '-b', 'recipe', '--set'])
def test_yaml_makes_no_objects(way, tag, tmp_path, mark, damage):
    def door():
        text = f'loss: {tag}'
        if way == 'recipe': return sweep_cells([write(tmp_path/'strange.yaml', text)])
        if way == '--set': return read_settings([f'loss={tag}'], '--set')
        words = dict(zip(('-f', '-b', '-y'), (str(write(tmp_path/'strange.yaml', text)),
                                              base64.b64encode(text.encode()).decode(), text)))
        return default_output([str(find_notebook('train')), way, words[way]])
    damage('YAML of a stranger', door)
