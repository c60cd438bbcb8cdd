"""Damaged teachers, checkpoints, weights and numbers of a training: each ends right or refused, before work starts."""
import json

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.core import DataLoaders
from safetensors.torch import load_file, save_file
from torch import nn

from asc.core import SCENES
from asc.experiment.distillation import read_distill
from asc.teach.distill import DistillLoss, SelfTeacher
from asc.teach.features import read_layer_pairs
from asc.teach.logits import LOGITS_FORMAT, _digest, read_teacher, save_teacher
from asc.teach.published import read_published_logits
from asc.teach.teacher import Teacher
from asc.train.averages import EMA, SWA, EarlyStop
from asc.train.finetune import Freeze, layer_groups
from asc.train.learner import create_learner, fit
from asc.train.losses import FocalLoss, create_loss
from asc.train.optimizers import create_optimizer
from asc.train.resume import Checkpoint
from asc.train.schedules import create_schedule
from nodes import NODES, nothing

NAN, INF = float('nan'), float('inf')


def listed(recordings=120, snippets=4, seed=9):
    "Rows of a list: recordings of ten scenes in no order, three a place, the snippets of each together"
    rows = []
    for r in np.random.default_rng(seed).permutation(recordings):
        scene, place = SCENES[r % 10], r % 10 + 10 * (r // 30)
        where = dict(scene=scene, device='abc'[r % 3], city='oslo', location=f'oslo-{place}')
        name = f'{scene}-oslo-{place}-{r}'
        rows += [dict(where, recording=name, filename=f'audio/{name}-{k}-a.wav') for k in range(snippets)]
    return pd.DataFrame(rows)


def strong(rows, seed=0, skill=6.):
    "Logits right on some 99 % of the clips"
    rng = np.random.default_rng(seed)

    def shared(column):
        "Noise that is the same for all rows of a value"
        return rng.normal(size=(rows[column].nunique(), 10))[pd.factorize(rows[column])[0]]
    own = np.eye(10)[pd.Categorical(rows.scene, SCENES).codes]
    return shared('filename') + .7 * shared('recording') + .4 * shared('location') + skill * own


ROWS = listed()
MIXED = ROWS.sample(frac=1, random_state=1).reset_index(drop=True)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A sound teacher file as bytes, its tensors and what it says of itself"
    path = tmp_path_factory.mktemp('teacher')/'whole.safetensors'
    save_teacher(path, ROWS.filename, strong(ROWS), SCENES, seen=np.zeros(len(ROWS)), model='made up')
    tensors = load_file(path)
    about = dict(model='made up', format=LOGITS_FORMAT, scenes=list(SCENES), digest=_digest(tensors, SCENES))
    return path.read_bytes(), tensors, about


def written(path, tensors, about, anew=False):
    "A file of these, with a digest that fits where `anew`"
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    if anew: about = dict(about, digest=_digest(tensors, about['scenes']))
    save_file(tensors, path, dict(asc=about if isinstance(about, str) else json.dumps(about)))
    return path


# bytes of a file

CUTS = [0, 1, 7, 8, 9, 100, 500, -1, -7, -1000]
FLIPS = [0, 1, 7, 8, 9, 20, 40, 80, 120, 200, 300, 400, 500, 700, 900, 1500, 3000, 6000, 9000, -1, -2, -500, -3000]


@pytest.mark.parametrize('cut', CUTS)
def test_cut_teacher(cut, whole, damage, tmp_path):
    path = tmp_path/'t.safetensors'
    path.write_bytes(whole[0][:cut])
    damage('teacher file, bytes', lambda: read_teacher(path), [path])


@pytest.mark.parametrize('at', FLIPS)
@pytest.mark.parametrize('bit', [1, 128])
def test_flipped_teacher(at, bit, whole, damage, tmp_path):
    data, path = bytearray(whole[0]), tmp_path/'t.safetensors'
    data[at] ^= bit
    path.write_bytes(data)
    right = whole[1]['logits']
    damage('teacher file, bytes', lambda: read_teacher(path), [path], lambda t: torch.equal(t.logits, right))


def text(path): path.write_text('no teacher', encoding='utf-8')


@pytest.mark.parametrize('node', [nothing, *NODES, text])
@pytest.mark.parametrize('read', [read_teacher, lambda p: read_published_logits(p, ROWS)], ids=['teacher', 'published'])
def test_no_teacher_file(read, node, damage, tmp_path):
    path = tmp_path/'t.safetensors'
    node(path)
    names = [] if path.is_symlink() else [path]            # of a link its end is named
    damage('teacher, no regular file', lambda: read(path), names)


# what a file says and holds

ABOUT = {
    'format': dict(format='asc-teacher-2'), 'no format': dict(format=None), 'number as format': dict(format=3),
    'digest': dict(digest='0' * 64), 'no digest': dict(digest=None), 'scenes text': dict(scenes='abcdefghij'),
    'scenes reversed': dict(scenes=SCENES[::-1]), 'scenes short': dict(scenes=SCENES[:9]),
    'scenes doubled': dict(scenes=['bus'] * 10), 'scenes numbers': dict(scenes=list(range(10))),
    'scenes empty': dict(scenes=[]), 'scenes none': dict(scenes=None), 'scene renamed': dict(scenes=['x', *SCENES[1:]]),
    'empty name': dict(scenes=['', *SCENES[1:]]), 'hop text': dict(hop='1'), 'hop negative': dict(hop=-1),
    'hop true': dict(hop=True), 'hop list': dict(hop=[1]), 'hop huge': dict(hop=1e9),
    'scenes table': dict(scenes={'a': 1}),
}
TEXTS = {
    'no json': 'x', 'list': '[1]', 'key twice': '{"format": 1, "format": 2}', 'nan': '{"hop": NaN}', 'empty': '{}',
    'deep': '[' * 5000, 'cut': '{"format": "asc',
}


@pytest.mark.parametrize('name', ABOUT)
def test_teacher_metadata(name, whole, damage, tmp_path):
    path = written(tmp_path/'t.safetensors', whole[1], {**whole[2], **ABOUT[name]})
    damage('teacher file, metadata', lambda: read_teacher(path), [path])


@pytest.mark.parametrize('name', TEXTS)
def test_teacher_metadata_text(name, whole, damage, tmp_path):
    path = written(tmp_path/'t.safetensors', whole[1], TEXTS[name])
    damage('teacher file, metadata', lambda: read_teacher(path), [path])


TENSORS = {
    'logits float32': lambda t: dict(logits=t['logits'].float()),
    'logits int': lambda t: dict(logits=t['logits'].int()),
    'logits bool': lambda t: dict(logits=t['logits'] > 0),
    'logits float64': lambda t: dict(logits=t['logits'].double()),
    'logits flat': lambda t: dict(logits=t['logits'].flatten()),
    'logits wide': lambda t: dict(logits=t['logits'].repeat(1, 2)),
    'logits short': lambda t: dict(logits=t['logits'][1:]),
    'logits long': lambda t: dict(logits=t['logits'].repeat(2, 1)),
    'logits complex': lambda t: dict(logits=t['logits'].to(torch.complex64)),
    'logits empty': lambda t: dict(logits=t['logits'][:0]), 'no logits': lambda t: dict(logits=None),
    'a NaN': lambda t: dict(logits=set_value(t['logits'], NAN)),
    'an infinity': lambda t: dict(logits=set_value(t['logits'], INF)),
    'all NaN': lambda t: dict(logits=t['logits'] * NAN), 'no names': lambda t: dict(names=None),
    'names int': lambda t: dict(names=t['names'].int()), 'names table': lambda t: dict(names=t['names'][None]),
    'names no UTF-8': lambda t: dict(names=set_value(t['names'], 255)),
    'names doubled': lambda t: dict(names=doubled(t)),
    'names empty': lambda t: dict(names=t['names'][:0]), 'names cut': lambda t: dict(names=t['names'][:-40]),
    'spare tensor': lambda t: dict(extra=torch.zeros(1)), 'seen short': lambda t: dict(seen=t['seen'][1:]),
    'seen float': lambda t: dict(seen=t['seen'].float()), 'seen 7': lambda t: dict(seen=t['seen'] + 7),
    'which alone': lambda t: dict(which=torch.zeros(len(t['logits']), dtype=torch.int32)),
    'start alone': lambda t: dict(start=torch.zeros(len(t['logits']), dtype=torch.float64)),
    'start negative': lambda t: window(t, -1.), 'start NaN': lambda t: window(t, NAN),
    'start a year': lambda t: window(t, 3e7),
    'which beyond': lambda t: window(t, 0., 10**6), 'which negative': lambda t: window(t, 0., -1),
    'windows at one time': lambda t: window(t, 0., 0),
}


def set_value(tensor, value):
    "The tensor with another value in its middle"
    tensor = tensor.clone()
    tensor.view(-1)[tensor.numel() // 2] = value
    return tensor


def doubled(tensors):
    "Names of which the second is the first"
    names = bytes(tensors['names'].numpy()).split(b'\n')
    return torch.frombuffer(bytearray(b'\n'.join([names[0], names[0], *names[2:]])), dtype=torch.uint8)


def window(tensors, start, which=None):
    "The tensors of a file of windows, one of them odd"
    n = len(tensors['logits'])
    numbers = torch.arange(n, dtype=torch.int32) if which is None else torch.full((n,), which, dtype=torch.int32)
    return dict(which=numbers, start=torch.full((n,), start, dtype=torch.float64))


@pytest.mark.parametrize('name', TENSORS)
def test_teacher_tensors(name, whole, damage, tmp_path):
    "The digest fits: only types, shapes and values can tell"
    tensors = {key: value for key, value in {**whole[1], **TENSORS[name](whole[1])}.items() if value is not None}
    path = written(tmp_path/'t.safetensors', tensors, whole[2], anew=True)
    damage('teacher file, tensors', lambda: read_teacher(path), [path])


# rows of other clips

def blocked(first, last, change):
    "Change a block of the logits"
    def changed(z, rng):
        z = z.copy()
        z[first:last] = change(z[first:last], rng)
        return z
    return changed


def shuffle(z, rng): return z[rng.permutation(len(z))]


def shift(z, rng): return np.roll(z, 1, 0)


def softmax(z, rng): return np.exp(z) / np.exp(z).sum(1, keepdims=True)


BLOCKS = {
    'all shuffled': blocked(0, 480, shuffle), 'all shifted': blocked(0, 480, shift),
    'last half shifted': blocked(240, 480, shift),
    'first half shifted': blocked(0, 240, shift), 'quarter shifted': blocked(120, 240, shift),
    'shifted back': blocked(240, 480, lambda z, rng: np.roll(z, -1, 0)),
    'by seven': blocked(200, 480, lambda z, rng: np.roll(z, 7, 0)),
    'ten shuffled': blocked(235, 245, lambda z, rng: np.roll(z, 4, 0)), 'twenty shuffled': blocked(100, 120, shuffle),
    'forty shuffled': blocked(300, 340, shuffle), 'reversed block': blocked(60, 120, lambda z, rng: z[::-1]),
    'end shuffled': blocked(440, 480, shuffle), 'beginning shuffled': blocked(0, 40, shuffle),
    'columns reversed in a block': blocked(100, 200, lambda z, rng: z[:, ::-1]),
    'two columns in a block': blocked(100, 340, lambda z, rng: z[:, [1, 0, 3, 2, *range(4, 10)]]),
    'columns reversed': blocked(0, 480, lambda z, rng: z[:, ::-1]), 'negated': blocked(0, 480, lambda z, rng: -z),
    'negated block': blocked(100, 150, lambda z, rng: -z), 'zeros': blocked(100, 104, lambda z, rng: 0 * z),
    'one row of zeros': blocked(7, 8, lambda z, rng: 0 * z), 'constant rows': blocked(0, 9, lambda z, rng: 0 * z + 3),
    'probabilities': blocked(0, 480, softmax), 'probabilities in a block': blocked(50, 90, softmax),
    'one-hot': blocked(0, 480, lambda z, rng: np.eye(10)[z.argmax(1)]),
    'rounded': blocked(0, 480, lambda z, rng: z.round()),
    'one row for all': blocked(0, 480, lambda z, rng: 0 * z + z[:1]),
    'copies': blocked(100, 130, lambda z, rng: 0 * z + z[:1]),
    'scaled block': blocked(100, 160, lambda z, rng: 100 * z),
    'shrunk block': blocked(100, 160, lambda z, rng: z / 100),
    'noise': blocked(0, 480, lambda z, rng: rng.normal(size=z.shape)),
    'noise in a block': blocked(20, 70, lambda z, rng: rng.normal(size=z.shape)),
}


@pytest.mark.parametrize('name', BLOCKS)
def test_rows_of_other_clips(name, damage):
    "Written under the right names with a valid digest: only labels, recordings and the rows themselves can tell"
    z = BLOCKS[name](strong(MIXED), np.random.default_rng(3))
    teacher = Teacher(MIXED.filename, z, SCENES, file='t.safetensors')
    damage('teacher, rows of other clips', lambda: teacher.check(MIXED), ['t.safetensors'])


@pytest.mark.parametrize('first', [180, 240])
def test_slipped_half_of_a_sorted_list(first, damage):
    "Rows recording after recording: the scene is right nearly everywhere"
    rows = listed(300, 5)
    z = strong(rows, skill=4.)
    z[first:] = np.roll(z[first:], 1, 0)
    damage('teacher, rows of other clips', lambda: Teacher(rows.filename, z, SCENES, file='t').check(rows), ['t'])


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('order', ['list', 'device', 'filename', 'scene'])
def test_honest_teachers_pass(seed, order):
    rows = ROWS if order == 'list' else ROWS.sort_values(order, kind='stable').reset_index(drop=True)
    figures = Teacher(rows.filename, strong(rows, seed, 1.5 + 1.5 * seed), SCENES).check(rows)
    assert figures['agreement'] > 8


@pytest.mark.parametrize('scale', [1, 4])
def test_a_recording_misheard_as_a_whole_passes(scale):
    "Certain and wrong on ten rows next to each other, but of one recording"
    rows = listed(120, 10)
    z = strong(rows)
    misheard = rows.recording == rows.recording[600]
    z[misheard] = scale * np.roll(z[misheard], 1, 1)
    assert Teacher(rows.filename, z, SCENES).check(rows)['accuracy'] > .95


ASKED = {
    'other classes': dict(scene='beach'), 'no labels': dict(scene=None), 'other clips': dict(filename='x.wav'),
}


@pytest.mark.parametrize('name', ASKED)
def test_teacher_of_another_corpus(name, damage):
    teacher = Teacher(ROWS.filename, strong(ROWS), SCENES, file='t.safetensors')
    damage('teacher of another corpus', lambda: teacher.check(ROWS.assign(**ASKED[name])), [])


MADE = {
    'integers': (np.ones((3, 2), int), None), 'booleans': (np.ones((3, 2), bool), None),
    'complex': (np.ones((3, 2), complex), None),
    'text': ([['a', 'b']] * 3, None), 'ragged': ([[1., 2.], [3.]], None), 'short': (np.ones((2, 2)), None),
    'NaN': (np.full((3, 2), NAN), None),
    'infinite': (np.full((3, 2), INF), None), 'beyond float16': (np.full((3, 2), 1e6), None),
    'a vector': (np.ones(3), None),
    'doubled name': (np.ones((3, 2)), ['a', 'a', 'b']), 'no names': (np.ones((0, 2)), []),
}


@pytest.mark.parametrize('name', MADE)
def test_teacher_is_made(name, damage):
    logits, names = MADE[name]
    names = ['a', 'b', 'c'] if names is None else names
    damage('logits in memory', lambda: Teacher(names, logits, ['bus', 'tram']))


PUBLISHED = {
    'a table': dict(z=1), 'a list': [1, 2], 'a number': 3, 'integers': torch.ones(480, 10, dtype=torch.int64),
    'flat': torch.ones(480),
    'three dimensions': torch.ones(480, 10, 1), 'nine columns': torch.ones(480, 9), 'short': torch.ones(479, 10),
    'long': torch.ones(481, 10), 'NaN': torch.full((480, 10), NAN), 'infinite': torch.full((480, 10), INF),
    'constant': torch.ones(480, 10),
    'sparse': torch.eye(10).repeat(48, 1).to_sparse(), 'text': 'logits', 'none': None,
    'complex': torch.ones(480, 10) * 1j,
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_logits(name, damage, tmp_path):
    torch.save(PUBLISHED[name], tmp_path/'p.pt')
    damage('published logits', lambda: read_published_logits(tmp_path/'p.pt', ROWS), [])


# checkpoints

def small_training(folder, resume=False, lr=.1):
    "Two epochs of a tiny network"
    torch.manual_seed(0)
    rows = [(torch.randn(4), torch.tensor(i % 2)) for i in range(16)]
    dls = DataLoaders.from_dsets(rows, rows[:8], bs=8, num_workers=0, device='cpu')
    learn = create_learner(dls, nn.Linear(4, 2), cbs=[EMA(.9), Checkpoint(folder, dict(lr=lr), resume)], path=folder)
    learn.remove_cb(learn.epoch_log)
    with learn.no_bar(): fit(learn, 2, lr)
    return learn


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "The checkpoint of a small training, as an object and as bytes"
    folder = tmp_path_factory.mktemp('run')
    small_training(folder)
    return torch.load(folder/'checkpoint.pt', weights_only=True), (folder/'checkpoint.pt').read_bytes()


def without(name): return lambda state: {key: value for key, value in state.items() if key != name}


def with_weight(value):
    def changed(state):
        model = {key: tensor.clone() for key, tensor in state['model'].items()}
        model['weight'][0, 0] = value
        return dict(state, model=model)
    return changed


CHECKPOINTS = {f'no {name}': without(name) for name in ('format', 'config', 'shape', 'epoch', 'train_iter', 'model',
                                                        'opt',
                                                        'callbacks', 'recorder', 'random')}
CHECKPOINTS |= {f'{name} a list': lambda state, name=name: dict(state, **{name: [1]})
                for name in ('config', 'shape', 'epoch', 'model', 'opt', 'callbacks', 'recorder', 'random')}
CHECKPOINTS |= {f'{name} empty': lambda state, name=name: dict(state, **{name: {}})
                for name in ('shape', 'model', 'opt', 'callbacks', 'recorder', 'random')}
CHECKPOINTS |= {
    'a NaN': with_weight(NAN), 'an infinity': with_weight(INF), 'a list': lambda state: [1],
    'a number': lambda state: 3,
    'another format': lambda state: dict(state, format='asc-checkpoint-0'),
    'another shape': lambda state: dict(state, model=dict(state['model'], weight=torch.zeros(3, 3))),
    'another rate': lambda state: dict(state, config=dict(lr=.2)),
}


@pytest.mark.parametrize('name', CHECKPOINTS)
def test_checkpoint(name, trained, damage, tmp_path):
    torch.save(CHECKPOINTS[name](trained[0]), tmp_path/'checkpoint.pt')
    damage('checkpoint', lambda: small_training(tmp_path, True), ['checkpoint.pt'])


@pytest.mark.parametrize('cut', [0, 1, 100, 1000, -1, -100])
def test_cut_checkpoint(cut, trained, damage, tmp_path):
    (tmp_path/'checkpoint.pt').write_bytes(trained[1][:cut])
    damage('checkpoint', lambda: small_training(tmp_path, True), ['checkpoint.pt'])


@pytest.mark.parametrize('bit', range(0, 64, 9))
def test_flipped_checkpoint(bit, trained, damage, tmp_path):
    "torch reads on over a changed weight; its check sum does not"
    data = bytearray(trained[1])
    at = data.index(trained[0]['model']['weight'].numpy().tobytes())
    data[at + bit // 8] ^= 1 << bit % 8
    (tmp_path/'checkpoint.pt').write_bytes(data)
    damage('checkpoint', lambda: small_training(tmp_path, True), ['checkpoint.pt', 'remove it to begin again'])


@pytest.mark.parametrize('node', NODES)
def test_no_checkpoint_file(node, damage, tmp_path):
    node(tmp_path/'checkpoint.pt')
    damage('checkpoint', lambda: small_training(tmp_path, True), ['checkpoint.pt'])


# numbers that train nothing, or break

NUMBERS = {
    'ema 1': (lambda: EMA(1.), 'ema'), 'ema above': (lambda: EMA(1.5), 'ema'),
    'ema negative': (lambda: EMA(-.1), 'ema'),
    'ema NaN': (lambda: EMA(NAN), 'ema'), 'swa 0': (lambda: SWA(0.), 'swa'), 'swa above': (lambda: SWA(2.), 'swa'),
    'swa NaN': (lambda: SWA(NAN), 'swa'), 'patience 0': (lambda: EarlyStop(0), 'patience'),
    'delta infinite': (lambda: EarlyStop(3, min_delta=INF), 'min_delta'),
    'freeze -1': (lambda: Freeze('x', -1), 'freeze_epochs'),
    'decay 0': (lambda: layer_groups(nn.Linear(1, 1), 0.), 'lr_decay'),
    'decay NaN': (lambda: layer_groups(nn.Linear(1, 1), NAN), 'lr_decay'),
    'temperature 0': (lambda: DistillLoss(0.), 'temperature'),
    'temperature infinite': (lambda: DistillLoss(INF), 'temperature'),
    'temperature NaN': (lambda: DistillLoss(NAN), 'temperature'),
    'weight 7': (lambda: DistillLoss(2., 7.), 'hard_weight'),
    'weight -1': (lambda: DistillLoss(2., -1.), 'hard_weight'),
    'own average still': (lambda: SelfTeacher(nn.Linear(1, 1), 1.), 'decay'),
    'distill decay': (lambda: read_distill(dict(decay=1.), 'self'), 'decay'),
    'distill temperature': (lambda: read_distill(dict(temperature=0.), 'files'), 'temperature'),
    'features weight': (lambda: read_layer_pairs([dict(student='a', weight=0.)]), 'weight'),
    'features infinite': (lambda: read_layer_pairs([dict(student='a', weight=INF)]), 'weight'),
    'smoothing 1.5': (lambda: create_loss({'ce': {'label_smoothing': 1.5}}), 'label_smoothing'),
    'smoothing 1': (lambda: create_loss({'focal': {'label_smoothing': 1.}}), 'label_smoothing'),
    'gamma -1': (lambda: FocalLoss(-1.), 'gamma'), 'gamma infinite': (lambda: FocalLoss(INF), 'gamma'),
    'gamma NaN': (lambda: create_loss({'focal': {'gamma': NAN}}), 'gamma'),
    'warm-up 2': (lambda: create_schedule({'warmup_cosine': {'warmup': 2.}}, 1, 1), 'warmup'),
    'factor 0': (lambda: create_schedule({'constant': {'factor': 0.}}, 1, 9, 9), 'schedule'),
    'nothing learnt': (lambda: create_schedule({'linear': {'first': 0., 'last': 0.}}, 1, 1, 100), 'schedule'),
    'key twice': (lambda: create_schedule('{"ramp": {"warmup": 1, "warmup": 2}}', 1, 1), 'warmup'),
    'no loss': (lambda: create_loss('mse'), 'loss'), 'no optimiser': (lambda: create_optimizer('sgd'), 'optimizer'),
    'a list': (lambda: create_loss(['ce']), 'loss'),
    'two losses': (lambda: create_loss({'ce': {}, 'focal': {}}), 'loss'),
}


@pytest.mark.parametrize('name', NUMBERS)
def test_numbers(name, damage):
    call, parameter = NUMBERS[name]
    damage('numbers of a training', call, [parameter])


@pytest.mark.parametrize('lr', [0., -1., NAN, INF, [.1, 0.]], ids=str)
def test_learning_rates(lr, damage, tmp_path):
    damage('numbers of a training', lambda: small_training(tmp_path, lr=lr), ['lr'])
