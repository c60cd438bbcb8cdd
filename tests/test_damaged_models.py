"""Damaged model files: descriptions, weights and exported files that are not what was written answer nothing."""
import importlib
import json
import os
import shutil
from copy import deepcopy

import pytest
import torch

from asc.backbone.tensors import TensorFile, read_tensors, write_tensors
from asc.backbone.weights import weights_fingerprint
from asc.backbone.zoo import create_backbone
from asc.cli import main
from asc.core import SCENES, InputError, read_json, write_json
from asc.entry.package import open_system, write_bundle
from asc.entry.weights import load_entrant
from asc.experiment.distillation import Distillation
from asc.experiment.recipe import open_start
from asc.load import open_model
from asc.model.body import body_of
from asc.model.classifier import create_classifier, load_model, save_model
from asc.model.per_device import DeviceAware, load_devices, save_devices
from asc.model.published import load_published
from asc.model.saved import read_saved, write_saved
from asc.size.prune import prune
from asc.size.qat import load_quantised, save_quantised
from asc.size.qdq import calibrate, quantised_classifier
from asc.use.seal import seal
from nodes import NODES, nothing

KINDS = 'float', 'pruned', 'quantised', 'device-wise'
FILES = [(kind, 'model.safetensors') for kind in KINDS] + [('device-wise', 'devices.safetensors')]


def small(seed):
    "A tiny classifier, with norms that have seen something"
    torch.manual_seed(seed)
    options = dict(pipeline='none', rate=8000, backbone_args=dict(base=8, blocks=[1, 1, 1], strides={}), augment=False)
    model = create_classifier('cp_mobile_24', 'dcase24', **options)
    with torch.no_grad(): model.backbone(torch.randn(8, *model.input_shape()[1:]))
    return model.eval()


def save_each(folder, seed):
    "A model of each kind in a folder of its own"
    general = small(seed)
    save_model(general, folder/'float')
    x = torch.randn(8, *general.input_shape()[1:])
    integer = quantised_classifier(general)
    calibrate(integer.backbone, [x])
    save_quantised(integer, folder/'quantised')
    other = deepcopy(general.backbone)
    with torch.no_grad(): other.feed_forward[0].weight.mul_(-1)
    save_devices(DeviceAware(general, {'b': other}, ['a', 'b']), folder/'device-wise')
    narrow = deepcopy(general)
    narrow.backbone, _ = prune(general.backbone, x[:1], max_bytes=3000, steps=1)
    save_model(narrow, folder/'pruned')


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "Two runs of each kind: folder/first/KIND and folder/second/KIND"
    pytest.importorskip('torch_pruning')
    folder = tmp_path_factory.mktemp('saved')
    for seed, name in enumerate(('first', 'second')): save_each(folder/name, seed)
    return folder


@pytest.fixture
def run(saved, tmp_path):
    "run(kind): a copy of a saved model, to be damaged"
    return lambda kind, which='first': shutil.copytree(saved/which/kind, tmp_path/f'{which}-{kind}')


@pytest.mark.parametrize('kind', KINDS)
def test_whole_folders_open(kind, saved):
    "What is not damaged opens, to the last bit the same each time"
    model = open_model(saved/'first'/kind)
    assert model.kind == kind and model.classes == list(SCENES)
    again = open_model(saved/'first'/kind/'model.json')
    assert weights_fingerprint(body_of(again.network)) == model.fingerprint


def swapped(names):
    return [names[1], names[0], *names[2:]]


CHANGES = {
    'classes reordered': lambda d: d.update(scenes=sorted(d['scenes'], reverse=True)),
    'classes swapped': lambda d: d.update(scenes=swapped(d['scenes'])),
    'class doubled': lambda d: d.update(scenes=[d['scenes'][0], *d['scenes'][:-1]]),
    'class renamed': lambda d: d['scenes'].__setitem__(0, 'terminal'),
    'class in capitals': lambda d: d['scenes'].__setitem__(0, 'Airport'),
    'class removed': lambda d: d['scenes'].pop(),
    'class added': lambda d: d['scenes'].append('beach'),
    'class empty': lambda d: d['scenes'].__setitem__(0, ''),
    'class blank': lambda d: d['scenes'].__setitem__(0, ' '),
    'class of no text': lambda d: d['scenes'].__setitem__(0, 3),
    'class null': lambda d: d['scenes'].__setitem__(0, None),
    'class nested': lambda d: d['scenes'].__setitem__(0, ['airport']),
    'classes a text': lambda d: d.update(scenes='abcdefghij'),
    'classes numbers': lambda d: d.update(scenes=list(range(10))),
    'classes a table': lambda d: d.update(scenes={name: i for i, name in enumerate(d['scenes'])}),
    'classes a number': lambda d: d.update(scenes=10),
    'no classes': lambda d: d.update(scenes=[]),
    'rate higher': lambda d: d.update(rate=8001),
    'rate halved': lambda d: d.update(rate=4000),
    'rate a float': lambda d: d.update(rate=8000.5),
    'rate a text': lambda d: d.update(rate='8000'),
    'rate true': lambda d: d.update(rate=True),
    'rate 0': lambda d: d.update(rate=0),
    'rate 1': lambda d: d.update(rate=1),
    'rate negative': lambda d: d.update(rate=-8000),
    'rate enormous': lambda d: d.update(rate=10**12),
    'rate null': lambda d: d.update(rate=None),
    'rate a list': lambda d: d.update(rate=[8000]),
    'another frontend': lambda d: d.update(frontend='cp'),
    'no such frontend': lambda d: d.update(frontend='nonsense'),
    'frontend a list': lambda d: d.update(frontend=['dcase24']),
    'frontend null': lambda d: d.update(frontend=None),
    'frontend argument': lambda d: d.update(frontend_args=dict(fmin=50)),
    'frontend arguments a list': lambda d: d.update(frontend_args=[]),
    'frontend arguments enormous': lambda d: d.update(frontend_args=dict(n_fft=2**40)),
    'another network': lambda d: d.update(backbone='cp_mobile_23'),
    'no such network': lambda d: d.update(backbone='cp_mobile_99'),
    'network a number': lambda d: d.update(backbone=24),
    'network of a file': lambda d: d.update(backbone='model.py:Net'),
    'strides that fit the tensors': lambda d: d['backbone_args'].update(strides=dict(b1=[2, 2])),
    'wider': lambda d: d['backbone_args'].update(base=16),
    'no such option': lambda d: d['backbone_args'].update(depth=3),
    'option of no number': lambda d: d['backbone_args'].update(base='eight'),
    'options null': lambda d: d.update(backbone_args=None),
    'another pipeline': lambda d: d.update(pipeline='easy_cnn3'),
    'pipeline a number': lambda d: d.update(pipeline=3),
    'another format': lambda d: d.update(format='asc-classifier-2'),
    'format of another kind': lambda d: d.update(
        format='asc-quantised-1' if d['format'] == 'asc-classifier-1' else 'asc-classifier-1'),
    'format null': lambda d: d.update(format=None),
    'unknown field': lambda d: d.update(scene=SCENES),
    'field in capitals': lambda d: d.update(Rate=8000),
    'a note': lambda d: d.update(note='mine'),
    'edited without a seal': lambda d: d.update(edited=True, edited_on='2026-01-01'),
    'edited no': lambda d: d.update(edited=False),
    'pruned or not': lambda d: d.pop('pruned', None) or d.update(pruned='pruned' in d or True, note='x'),
    'no digests': lambda d: d.pop('weights'),
    'digests empty': lambda d: d.update(weights={}),
    'digest of zeros': lambda d: d['weights'].update({'model.safetensors': '0' * 64}),
    'digest short': lambda d: d['weights'].update({'model.safetensors': d['weights']['model.safetensors'][:16]}),
    'digest of another file': lambda d: d['weights'].update({'../model.safetensors': '0' * 64}),
    'digest null': lambda d: d['weights'].update({'model.safetensors': None}),
    **{f'no {name}': lambda d, name=name: d.pop(name)
       for name in ('format', 'backbone', 'frontend', 'pipeline', 'rate', 'scenes', 'backbone_args', 'frontend_args')},
}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', CHANGES)
def test_changed_description(name, kind, run, damage):
    path = run(kind)/'model.json'
    description = read_json(path)
    CHANGES[name](description)
    write_json(path, description)
    damage('model.json', lambda: open_model(path.parent), [path.parent])


TEXTS = {
    'key twice': lambda text: text.replace('"rate": 8000', '"rate": 4000, "rate": 8000'),
    'classes twice': lambda text: text.replace('"rate"', f'"scenes": {json.dumps(SCENES)}, "rate"'),
    'cut': lambda text: text[:-20], 'empty': lambda text: '', 'a list': lambda text: f'[{text}]',
    'NaN': lambda text: text.replace('8000', 'NaN'), 'deep': lambda text: '[' * 100_000,
    'null': lambda text: 'null', 'twice': lambda text: text * 2, 'a comment': lambda text: '# mine\n' + text,
}
ENCODINGS = {'utf-16': 'utf-16', 'zero bytes': 'utf-32'}
LAYOUTS = {
    'byte order mark': lambda text: '\ufeff' + text, 'one line': lambda text: json.dumps(json.loads(text)),
    'other order': lambda text: json.dumps(dict(reversed(json.loads(text).items()))),
    'Windows': lambda text: text.replace('\n', '\r\n'),
    'escapes': lambda text: text.replace('airport', '\\u0061irport'),
}


@pytest.mark.parametrize('name', [*TEXTS, *ENCODINGS])
def test_broken_text(name, run, damage):
    path = run('float')/'model.json'
    text = TEXTS.get(name, str)(path.read_text(encoding='utf-8'))
    path.write_text(text, encoding=ENCODINGS.get(name, 'utf-8'))
    damage('model.json', lambda: open_model(path.parent), [path.parent])


@pytest.mark.parametrize('name', LAYOUTS)
def test_the_same_in_another_layout(name, run, damage):
    path = run('float')/'model.json'
    path.write_bytes(LAYOUTS[name](path.read_text(encoding='utf-8')).encode())
    damage('model.json', lambda: open_model(path.parent), right=lambda model: model.classes == list(SCENES))


@pytest.mark.parametrize('part', range(12))
@pytest.mark.parametrize('kind, file', FILES)
def test_flipped_byte(kind, file, part, run, damage):
    "In the length, the header and the numbers"
    path = run(kind)/file
    raw = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(raw[:8], 'little')
    places = [0, 5, 8, 20, header // 3, header // 2, header - 1, header, header + 2, (header + len(raw)) // 2,
              len(raw) - 7, len(raw) - 1]
    raw[places[part]] ^= 1 << part % 8
    path.write_bytes(raw)
    damage('byte of weights', lambda: open_model(path.parent), [path.parent])


@pytest.mark.parametrize('length', [0, 1, 7, 8, 9, 100, .1, .3, .5, .7, .9, -8, -4, -1])
@pytest.mark.parametrize('file', ['model.safetensors', 'devices.safetensors'])
def test_cut_weights(file, length, run, damage):
    path = run('device-wise')/file
    raw = path.read_bytes()
    path.write_bytes(raw[:int(length * len(raw)) if isinstance(length, float) else length])
    damage('cut weights', lambda: open_model(path.parent), [path])


@pytest.mark.parametrize('file', ['model.safetensors', 'devices.safetensors'])
@pytest.mark.parametrize('tail', [b'\0', b'\n', bytes(1000), 'sparse'])
def test_longer_weights(file, tail, run, damage):
    "Also by four gigabytes that are not there"
    path = run('device-wise')/file
    if tail == 'sparse': os.truncate(path, 2**32)
    else: path.write_bytes(path.read_bytes() + tail)
    damage('cut weights', lambda: open_model(path.parent), [path])


HEADERS = {
    'length enormous': (b'\xff' * 8, b''), 'length zero': (bytes(8), b''), 'no table': (None, b'[1]'),
    'shape enormous': (None, b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'),
    'shape overflows': (None, b'{"a":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,4]}}'),
    'shape negative': (None, b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}'),
    'name twice': (None, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                         b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
    'overlap': (None, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                      b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
    'unknown type': (None, b'{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}'),
    'no offsets': (None, b'{"a":{"dtype":"F32","shape":[1]}}'), 'entry a number': (None, b'{"a":3}'),
    'no tensors': (None, b'{}'),
}


@pytest.mark.parametrize('name', HEADERS)
@pytest.mark.parametrize('kind, file', [('float', 'model.safetensors'), ('device-wise', 'devices.safetensors')])
def test_made_up_header(name, kind, file, run, damage):
    "Its numbers are bounds to check, not to allocate by"
    start, header = HEADERS[name]
    path = run(kind)/file
    path.write_bytes((start or len(header).to_bytes(8, 'little')) + header + bytes(4))
    damage('header of weights', lambda: open_model(path.parent), [path])


PLACES = {
    'missing': nothing, **{node.__name__: node for node in NODES}, 'empty': lambda path: path.touch(),
    'text': lambda path: path.write_text('weights'), 'a web page': lambda path: path.write_text('<html>' * 100),
}


@pytest.mark.parametrize('name', PLACES)
@pytest.mark.parametrize('file', ['model.json', 'model.safetensors', 'devices.safetensors'])
def test_no_file_of_a_model(file, name, run, damage):
    "A device-wise folder never answers as the general network"
    path = run('device-wise')/file
    path.unlink()
    PLACES[name](path)
    damage('no file of a model', lambda: open_model(path.parent), [path])


@pytest.mark.parametrize('name', [name for name in PLACES if name != 'missing'])
def test_a_stray_file_of_devices(name, run, damage):
    path = run('float')/'devices.safetensors'
    PLACES[name](path)
    damage('no file of a model', lambda: open_model(path.parent), [path])


def pairs():
    "(kind, file, kind) of files that change places between two runs"
    same = [(kind, file, kind) for kind in KINDS for file in ('model.json', 'model.safetensors')]
    across = [(a, file, b) for a in KINDS for b in KINDS if a != b for file in ('model.json', 'model.safetensors')]
    return same + [('device-wise', 'devices.safetensors', 'device-wise')] + across


@pytest.mark.parametrize('kind, file, other', pairs())
def test_swapped_files(kind, file, other, run, saved, damage):
    folder = run(kind)
    shutil.copy(saved/'second'/other/file, folder/file)
    damage('swapped files', lambda: open_model(folder), [folder])


@pytest.mark.parametrize('known', ['["a"]', '["b", "b"]', '[]', '["z"]', '"b"', 'b', '[1]', '{"b": 1}', ''])
@pytest.mark.parametrize('sealed', [True, False])
def test_other_names_of_devices(known, sealed, run, damage):
    "In the metadata of devices.safetensors; also where the seal was made anew"
    folder = run('device-wise')
    path = folder/'devices.safetensors'
    tensors, metadata = read_tensors(path)
    metadata = metadata | dict(known=known)
    if sealed: reseal(folder, {path.name: TensorFile(tensors, metadata)})
    else: write_tensors(path, tensors, metadata)
    damage('metadata of weights', lambda: open_model(folder), [folder])


def reseal(folder, files):
    "Write files of tensors with digests that agree"
    saved = read_saved(folder, sealed=False)
    write_saved(folder, saved.description, saved.weights | files)


def values(change):
    return lambda tensors, name: {**tensors, name: change(tensors[name].clone())}


def one(number):
    "A change of one value of a tensor"
    def change(tensor):
        tensor.view(-1)[0] = number
        return tensor
    return values(change)


FIRST, NORM, LAST = 'in_c.0.0.weight', 'in_c.0.1.running_var', 'feed_forward.0.weight'
TENSORS = {
    'NaN': (one(float('nan')), FIRST), 'infinity': (one(float('inf')), FIRST),
    'minus infinity': (one(-float('inf')), LAST),
    'variance negative': (one(-.1), NORM), 'variance NaN': (one(float('nan')), NORM),
    'first layer 0': (values(torch.zeros_like), FIRST), 'last layer 0': (values(torch.zeros_like), LAST),
    'last norm 0': (values(torch.zeros_like), 'feed_forward.1.weight'),
    'all 0': (lambda tensors, _: {k: torch.zeros_like(v) for k, v in tensors.items()}, ''),
    'int32': (values(torch.Tensor.int), FIRST), 'int64': (values(torch.Tensor.long), LAST),
    'bool': (values(torch.Tensor.bool), FIRST), 'complex': (values(lambda t: t.to(torch.complex64)), FIRST),
    'float64': (values(torch.Tensor.double), FIRST), 'uint8': (values(lambda t: t.to(torch.uint8)), NORM),
    'missing': (lambda tensors, name: {k: v for k, v in tensors.items() if k != name}, FIRST),
    'one more': (lambda tensors, name: {**tensors, 'stray': torch.ones(1)}, ''),
    'renamed': (lambda tensors, name: {k.replace('in_c', 'in'): v for k, v in tensors.items()}, ''),
    'transposed': (values(lambda t: t.transpose(0, 1).contiguous()), FIRST), 'flat': (values(torch.flatten), FIRST),
    'longer': (values(lambda t: torch.cat([t, t])), FIRST), 'shorter': (values(lambda t: t[:-1]), LAST),
    'empty': (values(lambda t: t[:0]), FIRST), 'none': (lambda tensors, name: {}, ''),
    'counter a float': (values(torch.Tensor.float), 'in_c.0.1.num_batches_tracked'),
}


@pytest.mark.parametrize('door', [open_model, load_model, seal], ids=lambda door: door.__name__)
@pytest.mark.parametrize('name', TENSORS)
def test_wrong_tensors(name, door, run, damage):
    "Where the digests agree, since somebody made them anew, and where a seal is asked for"
    folder = run('float')
    path = folder/'model.safetensors'
    tensors, metadata = read_tensors(path)
    change, tensor = TENSORS[name]
    changed = TensorFile(change(tensors, tensor), metadata)
    if door is seal: write_tensors(path, *changed)
    else: reseal(folder, {path.name: changed})
    damage('tensors', lambda: door(folder), [path])


@pytest.mark.parametrize('name', [name for name in TENSORS if name not in ('missing', 'renamed', 'none', 'all 0')])
def test_wrong_tensors_of_a_device(name, run, damage):
    folder = run('device-wise')
    file = read_tensors(folder/'devices.safetensors')
    tensors = read_tensors(folder/'model.safetensors').tensors
    change, tensor = TENSORS[name]
    changed = change(tensors, tensor)
    own = {f'b/{k}': v for k, v in changed.items() if k not in tensors or tensors[k] is not v}
    reseal(folder, {'devices.safetensors': TensorFile(own, file.metadata)})
    damage('tensors', lambda: open_model(folder), [folder/'devices.safetensors'])


SCALES = {
    '0': torch.zeros_like, 'negative': torch.neg, 'NaN': lambda t: t * float('nan'), 'infinite': lambda t: t / 0,
    'half': torch.Tensor.half, 'int': torch.Tensor.int, 'longer': lambda t: torch.cat([t.reshape(-1)] * 2),
}
POINTS = {'negative': torch.tensor(-1, dtype=torch.int32), '256': torch.tensor(256, dtype=torch.int32),
          'float': torch.tensor(3.), 'NaN': torch.tensor(float('nan')), 'two': torch.tensor([1, 2], dtype=torch.uint8)}


def stored(folder, end):
    "Name of the first tensor of a quantised file with this end"
    tensors, metadata = read_tensors(folder/'model.safetensors')
    return next(name for name in sorted(tensors) if name.endswith(end)), tensors, metadata


@pytest.mark.parametrize('name', SCALES)
@pytest.mark.parametrize('end', ['weight_scale', '.scale'])
def test_wrong_scale(name, end, run, damage):
    folder = run('quantised')
    key, tensors, metadata = stored(folder, end)
    reseal(folder, {'model.safetensors': TensorFile({**tensors, key: SCALES[name](tensors[key])}, metadata)})
    damage('scales', lambda: open_model(folder), [folder/'model.safetensors'])


@pytest.mark.parametrize('name', POINTS)
def test_wrong_zero_point(name, run, damage):
    folder = run('quantised')
    key, tensors, metadata = stored(folder, 'zero_point')
    reseal(folder, {'model.safetensors': TensorFile({**tensors, key: POINTS[name]}, metadata)})
    damage('scales', lambda: open_model(folder), [folder/'model.safetensors'])


CODES = {'float': torch.Tensor.float, 'uint8': lambda t: t.to(torch.uint8), 'int32': torch.Tensor.int,
         '-128': lambda t: t.fill_(-128), 'flat': torch.flatten, 'bool': torch.Tensor.bool}


@pytest.mark.parametrize('name', CODES)
def test_wrong_codes(name, run, damage):
    folder = run('quantised')
    key, tensors, metadata = stored(folder, 'weight_scale')
    key = key.removesuffix('_scale')
    reseal(folder, {'model.safetensors': TensorFile({**tensors, key: CODES[name](tensors[key])}, metadata)})
    damage('scales', lambda: open_model(folder), [folder/'model.safetensors'])


def live_teacher(folder): return Distillation(str(folder), dict(sees='clean')).check(None, list(SCENES))
def start(folder): return open_start(str(folder))


DOORS = {'float': [open_model, load_model, live_teacher, start, load_entrant, open_system],
         'pruned': [open_model, live_teacher, load_entrant], 'quantised': [open_model, load_quantised, load_entrant],
         'device-wise': [open_model, load_devices, live_teacher, load_entrant, open_system]}


@pytest.mark.parametrize('kind, door', [(kind, door) for kind in KINDS for door in DOORS[kind]],
                         ids=lambda value: getattr(value, '__name__', value))
def test_every_door_looks(kind, door, run, damage):
    "Two classes that changed places"
    path = run(kind)/'model.json'
    description = read_json(path)
    write_json(path, description | dict(scenes=swapped(description['scenes'])))
    damage('doors', lambda: door(path.parent), [path])


@pytest.mark.parametrize('kind, door', [('device-wise', load_model), ('quantised', load_model), ('pruned', load_model),
                                        ('float', load_devices), ('float', load_quantised)])
def test_the_door_of_another_kind(kind, door, saved, damage):
    "A device-wise folder does not answer as the general network, whoever opens it"
    damage('doors', lambda: door(saved/'first'/kind), [saved/'first'/kind])


def test_sealed_by_hand(run, capsys):
    "A class renamed on purpose; every opening says so; a second seal changes nothing"
    path = run('device-wise')/'model.json'
    assert not seal(path.parent)
    description = read_json(path)
    write_json(path, description | dict(scenes=['terminal', *SCENES[1:]]))
    assert seal(path.parent) and not seal(path.parent)
    assert open_model(path.parent).classes[0] == 'terminal'
    assert capsys.readouterr().err.count('sealed by hand on 20') == 1
    assert read_json(path)['edited'] is True
    write_json(path, {key: value for key, value in read_json(path).items() if not key.startswith('edited')})
    with pytest.raises(InputError, match='asc seal'): open_model(path.parent)


def test_an_earlier_folder_can_be_sealed(run):
    "One without digests, as it was saved before there were any"
    folder = run('float')
    write_json(folder/'model.json', {key: v for key, v in read_json(folder/'model.json').items() if key != 'weights'})
    write_tensors(folder/'model.safetensors', read_tensors(folder/'model.safetensors').tensors, {})
    with pytest.raises(InputError, match='holds no digests'): open_model(folder)
    assert seal(folder) and open_model(folder).kind == 'float'


# checkpoints of others
@pytest.fixture(scope='module')
def state():
    torch.manual_seed(0)
    return create_backbone('cnn3').state_dict()


def filled(path):
    return create_backbone('cnn3', weights=path)


STATES = {
    'NaN': one(float('nan')), 'infinity': one(float('inf')), 'int32': values(torch.Tensor.int),
    'bool': values(torch.Tensor.bool), 'complex': values(lambda t: t.to(torch.complex64)),
    'float64': values(torch.Tensor.double), 'sparse': values(torch.Tensor.to_sparse),
    'all 0': lambda tensors, _: {k: torch.zeros_like(v) for k, v in tensors.items()},
    'missing': lambda tensors, name: {k: v for k, v in tensors.items() if k != name},
    'one more': lambda tensors, name: {**tensors, 'stray': torch.ones(1)},
    'number for a name': lambda tensors, name: {1: torch.ones(1), **tensors},
    'longer': values(lambda t: torch.cat([t, t])), 'empty': values(lambda t: t[:0]),
    'on no device': values(lambda t: t.to('meta')), 'a list': lambda tensors, name: list(tensors.values()),
    'a tensor': lambda tensors, name: tensors[name], 'nothing': lambda tensors, name: {},
}


@pytest.mark.parametrize('name', STATES)
def test_wrong_checkpoint(name, state, tmp_path, damage):
    torch.save(STATES[name](state, next(iter(state))), tmp_path/'net.pt')
    damage('checkpoints', lambda: filled(tmp_path/'net.pt'), [tmp_path/'net.pt'])


@pytest.mark.parametrize('width', [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_half_checkpoint_is_right(width, state, tmp_path, damage):
    torch.save({k: v.to(width) if v.is_floating_point() else v for k, v in state.items()}, tmp_path/'net.pt')
    name = next(iter(state))
    damage('checkpoints', lambda: filled(tmp_path/'net.pt').state_dict()[name],
           right=lambda found: torch.equal(found, state[name].to(width).float()))


@pytest.mark.parametrize('length', [0, 1, 4, 30, 100, 1000, .2, .4, .6, .8, .95, -100, -20, -1])
@pytest.mark.parametrize('end', ['pt', 'safetensors'])
def test_cut_checkpoint(end, length, state, tmp_path, damage):
    path = tmp_path/f'net.{end}'
    if end == 'pt': torch.save(state, path)
    else: write_tensors(path, state, {})
    raw = path.read_bytes()
    path.write_bytes(raw[:int(length * len(raw)) if isinstance(length, float) else length])
    damage('checkpoints', lambda: filled(path), [path])


@pytest.mark.parametrize('name', [name for name in PLACES if name != 'missing'])
@pytest.mark.parametrize('door', [filled, load_published], ids=lambda door: door.__name__)
def test_no_checkpoint(door, name, tmp_path, damage):
    path = tmp_path/'net.ckpt'
    PLACES[name](path)
    damage('checkpoints', lambda: door(path), [path])


@pytest.mark.parametrize('layer', ['first', 'last'])
def test_a_blind_published_system(layer, state, tmp_path, damage):
    "One whose first or last weights are 0 hears nothing"
    names = [name for name, tensor in state.items() if tensor.ndim > 1]
    name = names[0 if layer == 'first' else -1]
    torch.save({**state, name: torch.zeros_like(state[name])}, tmp_path/'net.pt')
    damage('checkpoints', lambda: load_published(tmp_path/'net.pt'), [tmp_path/'net.pt'])


def test_published_systems_open(shared, damage):
    "The checkpoints of others keep their fingerprints"
    path = shared/'data/weights/cpjku23_c0a7nzin.ckpt'
    damage('checkpoints', lambda: weights_fingerprint(load_published(path).network),
           right=lambda found: found == '3353a08ff7e35ffa')


@pytest.mark.parametrize('part', range(12))
def test_flipped_byte_of_a_checkpoint(part, state, tmp_path, damage):
    "torch does not compare the check sums; the padding between the tensors may say anything"
    path = tmp_path/'net.pt'
    torch.save(state, path)
    raw = bytearray(path.read_bytes())
    tensor = next(iter(state.values()))
    start = raw.find(tensor.numpy().tobytes())
    raw[start + part * tensor.numel() * 4 // 12] ^= 1 << part % 8
    path.write_bytes(raw)
    damage('checkpoints', lambda: filled(path), [path])


def test_weights_without_their_description(run, damage):
    "The file of a run, given alone, would be taken for a published system with the classes of TAU"
    path = run('float')/'model.safetensors'
    damage('checkpoints', lambda: open_model(path), [path])


def test_state_of_a_training(state, tmp_path, damage):
    "A checkpoint.pt is no model yet"
    path = tmp_path/'checkpoint.pt'
    torch.save(dict(format='asc-checkpoint-1', model=state), path)
    damage('checkpoints', lambda: open_model(path), [path, '-p resume True'])
    damage('checkpoints', lambda: open_model(tmp_path), [tmp_path, '-p resume True'])


@pytest.mark.parametrize('classes', ['abcdefghij', ['bus'] * 10, [*SCENES[:9], ''], list(range(10)), ['bus']])
def test_wrong_names_for_a_published_system(classes, state, tmp_path, damage):
    torch.save(state, tmp_path/'net.pt')
    damage('checkpoints', lambda: load_published(tmp_path/'net.pt', classes), [tmp_path/'net.pt'])


def test_the_command_seals(run, capsys):
    path = run('quantised')/'model.json'
    write_json(path, read_json(path) | dict(note='better names'))
    main(['seal', str(path.parent)])
    main(['seal', str(path.parent)])
    assert capsys.readouterr().out.count('sealed; whoever') == 1
    assert open_model(path.parent).kind == 'quantised'


def test_the_inference_package_looks_at_its_weights(run, tmp_path, monkeypatch):
    "Its own copy of the library compares the digests before it answers"
    folder = write_bundle([run('device-wise')], tmp_path, 'Curie_UP_task1')
    monkeypatch.syspath_prepend(folder)
    api = importlib.import_module('Curie_UP_task1.Curie_UP_task1_1')
    assert list(api.load_model().model.device_models) == ['b']
    path, = folder.rglob('devices.safetensors')
    path.unlink()
    with pytest.raises(ValueError, match='devices.safetensors is missing'): api.load_model()


@pytest.mark.parametrize('name', ['file', 'start', 'scene'])
def test_a_class_called_like_a_column(name, damage):
    "The tables of answers have columns of these names, so no class may"
    damage('classes', lambda: create_classifier('cnn3', pipeline='none', rate=44100, scenes=['bus', name]), ['scenes'])
    module = torch.nn.Linear(8000, 2)
    module.scenes, module.sample_rate = ['bus', name], 8000
    with pytest.raises(InputError, match='none of them file'): open_model(module)
