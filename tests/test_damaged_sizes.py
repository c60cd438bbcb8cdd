"""A description may ask for too much, for the net, or be of no type: told in a sentence, before memory is taken."""
import json
import pickle
import resource
import shutil
import socket
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from asc.augment.pipeline import create_pipeline
from asc.backbone.tensors import write_tensors
from asc.backbone.weights import PUBLISHED_WEIGHTS
from asc.backbone.zoo import create_backbone
from asc.core import DEVICES, SCENES, InputError
from asc.experiment import recipe
from asc.experiment.cells import sweep_cells
from asc.experiment.checks import check_training
from asc.export.facts import check_facts
from asc.load import open_model
from asc.model.classifier import create_classifier, save_model
from asc.model.description import description_digest
from asc.model.per_device import DeviceAware, save_devices
from asc.model.saved import _digest_of, read_saved
from asc.run.bounds import MOST_NUMBERS
from asc.size.qat import save_quantised
from asc.size.qdq import calibrate, quantised_classifier
from asc.train.options import TrainingOptions

NETWORK = dict(base=8, blocks=[1, 1], strides=dict(b1=[2, 2]), mult=1.5, expansion=2., grn=False)
FRONTEND = dict(
    sample_rate=8000, n_fft=512, win=400, hop=160, n_mels=32, fmin=20., fmax=3800., scale='htk', norm=None,
    window='hann', power=2, pad='reflect', preemphasis=0., per_frame=False, gain=1., offset=0., log='ln', eps=1e-5,
    mean=0., std=1., fmin_jitter=0, fmax_jitter=0, allow_empty=True)
STEPS = [{'roll': {'seconds': .1}}, {'mel': {'jitter': False}},
         {'choice': {'weights': [.5, .5], 'steps': [{'freq_mask': {'size': 8}}, None]}}, 'log',
         {'freq_mixstyle': {'p': .4, 'alpha': .3}}]


@pytest.fixture(scope='session')
def theirs(tmp_path_factory):
    "Models of a stranger: folder/KIND"
    folder = tmp_path_factory.mktemp('sizes')
    torch.manual_seed(0)
    model = create_classifier('cp_mobile_24', 'logmel', STEPS, 8000, backbone_args=NETWORK, frontend_args=FRONTEND)
    x = torch.randn(8, *model.input_shape()[1:])
    with torch.no_grad(): model.backbone(x)
    save_model(model.eval(), folder/'float', params=1, macs=2, data=dict(lists={}), note='theirs')
    save_devices(DeviceAware(model, {'b': deepcopy(model.backbone)}, list(DEVICES)), folder/'device-wise')
    integer = quantised_classifier(model)
    calibrate(integer.backbone, [x])
    save_quantised(integer, folder/'quantised')
    model = create_classifier('torchvision:mobilenet_v3_small', 'logmel', 'none', 8000, frontend_args=FRONTEND)
    save_model(model.eval(), folder/'of a library')
    return folder


@pytest.fixture
def forged(theirs, tmp_path):
    "forged(kind, change): a folder whose description was changed and sealed, as a stranger can"
    def forged(kind, change, metadata=None):
        folder = shutil.copytree(theirs/kind, tmp_path/kind)
        saved = read_saved(folder)
        description = deepcopy(saved.description)
        change(description)
        for name, file in saved.weights.items():
            file = file._replace(metadata=file.metadata | ((metadata or {}) if name.startswith('devices') else {}))
            description['weights'][name] = _digest_of(file)
            saved.weights[name] = file
        digest = description_digest(description)
        for name, file in saved.weights.items():
            write_tensors(folder/name, file.tensors, dict(file.metadata, description=digest))
        (folder/'model.json').write_text(json.dumps(description))
        return folder
    return forged


@pytest.fixture
def little_memory():
    "300 MB more than this process has; whoever takes more is not given it"
    with open('/proc/self/statm') as file: pages = int(file.read().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 300 * 2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def unafraid(call):
    "What a door says; AssertionError where it found out by asking for the memory"
    try: return call()
    except InputError as error:
        assert 'memory' not in str(error) and 'alloc' not in str(error), str(error)
        raise


# too much

MANY = dict(
    n_fft=2**30, win=2**30, n_mels=10**9, hop=10**12, sample_rate=10**9, fmin=1e300, fmax=1e12, fmax_jitter=10**12)
HUGE = {
    **{name: lambda d, entry=entry: d['frontend_args'].update([entry]) for entry in MANY.items() for name in entry[:1]},
    'long window': lambda d: d['frontend_args'].update(n_fft=2**40, win=2**40),
    'many bands of many bins': lambda d: d['frontend_args'].update(n_fft=2**18, n_mels=2**20),
    'a hop of 1 of many bands': lambda d: d['frontend_args'].update(hop=1, n_mels=4096, sample_rate=768_000),
    'rate': lambda d: d.update(rate=10**9),
    'width': lambda d: d['backbone_args'].update(base=8 * 10**8),
    'width below the bound': lambda d: d['backbone_args'].update(base=800_000),
    'far wider than the weights': lambda d: d['backbone_args'].update(base=8192),
    'depth': lambda d: d['backbone_args'].update(blocks=[10**9]),
    'depth below the bound': lambda d: d['backbone_args'].update(blocks=[10**6] * 100),
    'growth': lambda d: d['backbone_args'].update(mult=1e300),
    'growth of a stage': lambda d: d['backbone_args'].update(mult=1e7),
    'expansion': lambda d: d['backbone_args'].update(expansion=1e9),
    'classes': lambda d: d.update(scenes=[f'c{i}' for i in range(200_000)]),
    'another network': lambda d: d.update(backbone='passt_s', backbone_args={}),
    'transformer': lambda d: d.update(backbone='beats', backbone_args=dict(cfg=dict(encoder_embed_dim=2**20))),
    'transformer of a million layers': lambda d: d.update(
        backbone='passt_s', backbone_args=dict(depth=10**6, dim=12, heads=1)),
    'positions': lambda d: d.update(backbone='passt_s', backbone_args=dict(grid=[12, 10**6])),
    'kernel': lambda d: d.update(backbone='tf_sepnet_64', backbone_args=dict(k=10**9 + 1)),
}


# slow to refuse, and the same in every format
SLOW = 'classes', 'transformer of a million layers', 'another network'


@pytest.mark.parametrize('kind, name', [
    (kind, name) for kind in ('float', 'quantised') for name in HUGE if kind == 'float' or name not in SLOW])
def test_too_much(kind, name, forged, little_memory, damage):
    folder = forged(kind, HUGE[name])
    damage('size in a description', lambda: unafraid(lambda: open_model(folder)), [folder])


@pytest.mark.parametrize('name', [
    name for name in HUGE if name not in (*SLOW, 'rate', 'far wider than the weights')])
def test_too_much_in_a_recipe(name, little_memory, damage):
    "At the door of trainings; what only a file of weights shows is left out"
    fields = dict(backbone='cp_mobile_24', backbone_args=dict(NETWORK), frontend_args=dict(FRONTEND))
    HUGE[name](fields)
    damage('size in a recipe', lambda: unafraid(lambda: check_training(TrainingOptions(frontend='logmel', **fields))))


def test_a_network_for_each_of_many_devices(forged, little_memory, damage):
    names = [*DEVICES, *(f'd{i}' for i in range(10_000))]
    folder = forged('device-wise', lambda d: None, dict(devices=json.dumps(names), known=json.dumps(names)))
    damage('size in a description', lambda: unafraid(lambda: open_model(folder)), ['devices.safetensors'])


def test_a_large_teacher_is_allowed():
    "A network of a gigabyte"
    with torch.device('meta'): net = create_backbone('passt_s', dim=1536, depth=8)
    assert 2**27 < sum(p.numel() for p in net.parameters()) < MOST_NUMBERS


# the net

@pytest.fixture
def no_net(monkeypatch):
    "Whoever looks for a server is told"
    def connect(*args, **kw): raise AssertionError('this looks for the net')
    for name in ('connect', 'connect_ex'): monkeypatch.setattr(socket.socket, name, connect)
    monkeypatch.setattr(socket, 'getaddrinfo', connect)
    monkeypatch.setattr(socket, 'create_connection', connect)


PUBLIC = next(iter(PUBLISHED_WEIGHTS))
FETCHING = {
    'pretrained': dict(pretrained=True), 'public weights': dict(weights=PUBLIC), 'a file': dict(weights='/dev/zero'),
}


@pytest.mark.parametrize('name', FETCHING)
def test_opening_fetches_nothing(name, forged, no_net, damage):
    "The weights of a model lie beside its description; those that it began with are nobody's business any more"
    folder = forged('of a library', lambda d: d['backbone_args'].update(FETCHING[name]))
    answer = open_model(folder)(torch.zeros(1, 8000))       # not refused either
    damage('the net', lambda: answer, right=lambda answer: answer.shape == (1, 10))


@pytest.mark.parametrize('parameters', [
    dict(backbone='passt_s', frontend='passt', pipeline='passt', backbone_args=dict(weights=PUBLIC)),
    dict(teacher=PUBLIC), dict(teacher=PUBLIC, distill=dict(temperature=3.)), dict(init_from=PUBLIC),
    dict(backbone='torchvision:mobilenet_v3_small', backbone_args=dict(pretrained=True)),
], ids=str)
def test_a_plan_fetches_nothing(parameters, no_net, damage):
    damage('the net', lambda: sweep_cells(cells=[dict(parameters, name='x')]), right=lambda cells: len(cells) == 1)


def test_the_data_of_a_run_ask_for_no_network(monkeypatch):
    "Whatever it was trained with: own code, a teacher, weights"
    theirs = dict(backbone='gone.py:Net', teacher=PUBLIC, init_from=PUBLIC, loss='gone.py:Loss', subset=5, join=2)
    asked = []
    monkeypatch.setattr(recipe, 'read_training_data', lambda options: asked.append(options) or recipe.TrainingData(
        None, None, None, [], [], facts=dict(lists={})))
    recipe.data_of_run(dict(parameters=theirs, dir='run', data=dict(lists={})))
    assert asked == [TrainingOptions(subset=5, join=2)]


class Planted:
    "A pickle that would leave a mark"
    def __init__(self, mark): self.mark = mark

    def __reduce__(self): return open, (str(self.mark), 'w')


@pytest.mark.parametrize('option', [
    'checkpoint_path', 'pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir', 'scriptable', 'exportable', 'no_jit'])
def test_no_option_opens_a_pickle(option, tmp_path, no_net, damage):
    "timm unpickles what `checkpoint_path` names"
    pytest.importorskip('timm')
    path = tmp_path/'net.pth'
    path.write_bytes(pickle.dumps(Planted(tmp_path/'mark')))
    damage('the net', lambda: create_backbone('timm:resnet10t', **{option: str(path)}), [option])
    assert not (tmp_path/'mark').exists()


# what is of no type

def places(tree, place=()):
    "The place of every value in tables and lists"
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield place + (key,)
        yield from places(value, place + (key,))


def put(tree, place, value):
    for key in place[:-1]: tree = tree[key]
    tree[place[-1]] = value


DESCRIPTION = dict(
    format='', backbone='', frontend='', pipeline=STEPS, rate=0, scenes=[SCENES[0]], backbone_args=NETWORK,
    frontend_args=FRONTEND, params=0, macs=0, data={}, note='')
PLACES = [place for place in places(DESCRIPTION) if place[0] != 'pipeline' or len(place) == 1]     # see `STEPS`
NO_VALUES = None, [[None]], 'x' * 10**5, True, -1, 10**12


@pytest.mark.parametrize('place', PLACES, ids=lambda place: '.'.join(map(str, place)))
def test_values_of_no_type(place, forged, theirs, damage):
    "Each is refused in a sentence that names the file, or is one that the model can mean, and then it answers"
    for value in NO_VALUES:
        folder = forged('float', lambda d: put(d, place, value))
        damage('value in a description', lambda: brief(lambda: open_model(folder)), [folder], answers)
        shutil.rmtree(folder)


def brief(call):
    "What a door says, if that is a sentence and no page"
    try: return call()
    except InputError as error:
        assert len(str(error)) < 1500
        raise


def answers(model):
    "Whether an opened model answers a sound, or says why not"
    try: return model(torch.randn(1, model.rate) / 9).isfinite().all()
    except InputError: return True


@pytest.mark.parametrize('place', [place for place in places(STEPS)], ids=lambda place: '.'.join(map(str, place)))
def test_steps_of_no_type(place, damage):
    for value in NO_VALUES:
        steps = deepcopy(STEPS)
        put(steps, place, value)
        damage('steps', lambda: brief(lambda: create_pipeline(steps, 32000)), right=lambda pipeline: pipeline.plan)


FIELDS = 'backbone', 'frontend', 'pipeline', 'rate', 'scenes', 'backbone_args', 'frontend_args'


@pytest.mark.parametrize('field', FIELDS)
def test_a_classifier_of_no_type(field, damage):
    for value in NO_VALUES:
        if value is None or not value and field.endswith('args'): continue          # the default
        damage('value of a classifier', lambda: brief(lambda: create_classifier(**{field: value})), [field])


FACTS = dict(kind='network', classes=['bus', 'park'], rate=8000, samples=8000, logmel=[32, 51], precision='float32',
             network='cnn3', frontend=FRONTEND, fingerprint='0' * 16)


@pytest.mark.parametrize('name', [
    'kind', 'classes', 'rate', 'samples', 'frontend', *(f'frontend.{name}' for name in FRONTEND)])
def test_facts_of_an_exported_file(name, damage):
    "Whoever forges a file can seal it"
    check_facts(FACTS, Path('x.onnx'))
    for value in (None, [], 'x', -1, 10**12, float('nan'), {'n_fft': 2**30}):
        facts = deepcopy(FACTS)
        put(facts, tuple(name.split('.')), value)
        if value is None and name in ('frontend.norm', 'frontend.fmax', 'frontend.pad', 'frontend.log'): continue
        if value == -1 and name in ('frontend.gain', 'frontend.offset', 'frontend.mean', 'frontend.std'): continue
        damage('facts of an exported file', lambda: check_facts(facts, Path('x.onnx')), ['x.onnx'])
