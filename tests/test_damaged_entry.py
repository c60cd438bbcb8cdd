"""Damaged entries of a challenge: what a judge would hold against a meta file, a table, the weights and info.json."""
import json
import os
import shutil
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from asc.backbone.tensors import tensors_digest
from asc.core import SCENES, InputError
from asc.data.splits import read_test
from asc.entry.check import examine_package, file_digest
from asc.entry.files import check_meta, check_output, describe_system, results_of, write_meta
from asc.entry.folder import write_package
from asc.model.classifier import create_classifier
from asc.score.metrics import metrics
from entries import LABEL, ME, leave_run
from nodes import dangling, folder as a_folder, pipe

SMALL = dict(base=8, blocks=(1, 1, 1), strides={})


def make_run(folder, packed, part, subset):
    "A run of an untrained network whose answers differ from clip to clip"
    torch.manual_seed(subset)
    model = create_classifier('cp_mobile_24', scenes=packed[0].scenes, backbone_args=SMALL).eval()
    list(model.backbone.parameters())[-2].data.mul_(200)
    return leave_run(folder, packed, part, model, subset)


@pytest.fixture(scope='module')
def entry(packed, tmp_path_factory):
    "A package of two splits, and where its sounds are"
    folder = tmp_path_factory.mktemp('entry')
    corpus, store = packed
    part = read_test(corpus).groupby('scene').head(2)
    runs = [make_run(folder/f'run{subset}', packed, part, subset) for subset in (5, 10)]
    package = write_package(
        runs, corpus, part, folder, LABEL, store_dir=store.folder.parent, authors=[ME], name='Example',
        abbreviation='ex')
    return SimpleNamespace(folder=package, names=part.filename.tolist(), corpus=corpus)


@pytest.fixture
def copy(entry, tmp_path):
    "A copy of the package, from which the sounds are not found"
    return shutil.copytree(entry.folder, tmp_path/'far/away'/LABEL)


def verdict(folder, names=None, audio=None):
    "What the judge of entries says, as an error where it says anything"
    found = examine_package(folder, names, audio)
    if found.faults: raise InputError('; '.join(found.faults))
    return found


def test_an_honest_entry_passes(entry, copy):
    "What cannot be looked at is said, and so are splits that the organisers' validator would miss"
    faults, (few,) = examine_package(entry.folder, entry.names)
    assert faults == [] and few.startswith('no answers of split_') and 'wants all five splits' in few
    faults, remarks = examine_package(copy, entry.names)
    assert faults == []
    assert remarks == ['the answers were not computed again: the sounds it answers are not here; '
                       'name their folder with --audio', few]


# ---- meta.yaml, field by field

@pytest.fixture(scope='module')
def meta(tmp_path_factory):
    "A meta file that passes, small enough to be read two hundred times"
    path = tmp_path_factory.mktemp('meta')/'meta.yaml'
    rows = pd.DataFrame(dict(filename=['a.wav'], scene_label=['bus'], device=['a'], city='x', bus=[.6], park=[.4]))
    system = describe_system(dict(parameters=dict(pipeline='dcase24'), data=dict(rate=44100)), 16)
    cost = dict(total_parameters=1000, total_parameters_non_zero=1000, macs=10**6, total_model_size=2000)
    external = [dict(name='AudioSet', url='https://example.org', total_audio_length=5000)]
    write_meta(path, LABEL, dict(split_5=results_of(metrics(rows))), cost, system, [ME], 'A system', 'short',
               external_datasets=external)
    return yaml.safe_load(path.read_text(encoding='utf-8'))


def check_as_file(meta, folder):
    "The verdict on a meta file"
    path = folder/'meta.yaml'
    path.write_text(yaml.safe_dump(meta, sort_keys=False, allow_unicode=True), encoding='utf-8')
    if faults := check_meta(path): raise InputError('; '.join(faults))


def at(tree, keys):
    "What lies at some keys, one inside the other"
    for key in keys: tree = tree[key]
    return tree


AUTHOR = ('submission', 'authors', 0)
BLOCK = ('results', 'development_dataset', 'split_5')
TEXTS = [
    ('submission', 'label'), ('submission', 'name'), ('submission', 'abbreviation'),
    *[(*AUTHOR, name) for name in ('lastname', 'firstname', 'email')],
    *[(*AUTHOR, 'affiliation', name) for name in ('abbreviation', 'institute', 'location')],
    *[('system', 'description', name) for name in (
        'input_sampling_rate', 'acoustic_features', 'machine_learning_method', 'framework', 'split_adaptations',
        'system_adaptations')],
    *[('system', 'external_datasets', 0, name) for name in ('name', 'url')],
]
OPTIONAL = [
    (*AUTHOR, 'affiliation', 'department'), ('system', 'source_code'),
    *[('system', 'description', name) for name in (
        'data_augmentation', 'external_data_usage', 'complexity_management', 'pipeline')],
]
NUMBERS = [
    *[('system', 'complexity', name) for name in (
        'total_parameters', 'total_parameters_non_zero', 'macs', 'total_model_size')],
    ('system', 'external_datasets', 0, 'total_audio_length'),
    *[(*BLOCK, *place, name) for place in (('overall',), ('class_wise', 'bus'), ('device_wise', 'a'))
      for name in ('accuracy', 'logloss')],
]
TABLES = [
    ('submission',), ('system',), ('results',), ('submission', 'authors'), AUTHOR, (*AUTHOR, 'affiliation'),
    ('system', 'description'), ('system', 'complexity'), ('results', 'development_dataset'), BLOCK,
    *[(*BLOCK, kind) for kind in ('overall', 'class_wise', 'device_wise')],
]
WRONG = {
    'text': (TEXTS, (5, True, {}, '', None)),
    'optional': (OPTIONAL, (5, ['a'], ' ')),
    'number': (NUMBERS, ('5', True, {}, -1)),
    'table': (TABLES, (5, None, [])),
}
LEAVES = [(keys, values) for places, values in WRONG.values() for keys in places]


def named(keys):
    "The path of a field, as it is written"
    return '.'.join(map(str, keys))


@pytest.mark.parametrize('keys, values', LEAVES, ids=lambda part: named(part) if isinstance(part[0], str) else '')
def test_another_type_in_the_meta_file(keys, values, meta, tmp_path, damage):
    for value in values:
        changed = deepcopy(meta)
        at(changed, keys[:-1])[keys[-1]] = value
        word = 'author' if 'authors' in str(keys[-1]) or keys == AUTHOR else keys[-1]
        damage('meta.yaml: another type', lambda: check_as_file(changed, tmp_path), [word])


@pytest.mark.parametrize('keys', [*TEXTS, *OPTIONAL, *NUMBERS, ('system', 'external_datasets')], ids=named)
def test_a_field_is_missing_in_the_meta_file(keys, meta, tmp_path, damage):
    changed = deepcopy(meta)
    del at(changed, keys[:-1])[keys[-1]]
    damage('meta.yaml: field missing', lambda: check_as_file(changed, tmp_path), [keys[-1]])


def set_corresponding(value):
    "A damage: another value, or several authors"
    def change(meta): meta['submission']['authors'][0]['corresponding'] = value
    return change


OTHER_META = {
    'no author corresponds': set_corresponding(False),
    'corresponding in words': set_corresponding('yes'),
    'two correspond': lambda m: m['submission']['authors'].append(m['submission']['authors'][0]),
    'placeholder': lambda m: m['submission'].update(name='FILL IN'),
    'e-mail': lambda m: m['submission']['authors'][0].update(email='marie at up'),
    'long abbreviation': lambda m: m['submission'].update(abbreviation='a' * 11),
    'label of another task': lambda m: m['submission'].update(label='Curie_UP_task2_1'),
    'fifth system': lambda m: m['submission'].update(label='Curie_UP_task1_5'),
    'external data a table': lambda m: m['system'].update(external_datasets=dict(name='AudioSet')),
}


@pytest.mark.parametrize('name', OTHER_META)
def test_another_meta_file(name, meta, tmp_path, damage):
    changed = deepcopy(meta)
    OTHER_META[name](changed)
    damage('meta.yaml: value', lambda: check_as_file(changed, tmp_path), ['meta.yaml'])


def test_improved_figures(copy, damage):
    "A figure that is not the measured one, in results and in complexity"
    path = copy/f'{LABEL}.meta.yaml'
    text = path.read_text(encoding='utf-8')
    for word in ('accuracy:', 'total_parameters:', 'macs:', 'logloss:'):
        path.write_text(text.replace(f'{word} ', f'{word} 1', 1), encoding='utf-8')
        damage('meta.yaml: value', lambda: verdict(copy), [word[:-1], 'measured was'])


# ---- tables of answers

def save(frame, path): frame.to_csv(path, sep='\t', index=False, float_format='%.8f')


def edit_table(change):
    "A damage: change the table of answers as a frame"
    def damage(path): save(change(pd.read_csv(path, sep='\t')), path)
    return damage


def edit_text(change):
    "A damage: change the text of a file"
    def damage(path): path.write_text(change(path.read_text(encoding='utf-8')), encoding='utf-8')
    return damage


def cell(row, column, value):
    "A damage: put a value in one field"
    def change(frame):
        frame = frame.astype(object)
        frame.iloc[row, column] = value
        return frame
    return edit_table(change)


def other_label(frame):
    "A label that is not the most probable scene"
    frame.loc[0, 'scene_label'] = next(scene for scene in SCENES if scene != frame.scene_label[0])
    return frame


def with_swapped_columns(frame):
    "The names of two columns exchanged"
    return frame.rename(columns=dict(bus='tram', tram='bus'))


TABLES_DAMAGED = {
    'row missing': edit_table(lambda f: f.iloc[1:]),
    'row twice': edit_table(lambda f: pd.concat([f, f.iloc[:1]])),
    'foreign name': edit_table(lambda f: pd.concat([f, f.iloc[:1].assign(filename='foreign.wav')])),
    'other order': edit_table(lambda f: f.iloc[::-1]),
    'columns turned': edit_table(lambda f: f[[*f.columns[:2], *f.columns[:1:-1]]]),
    'columns exchanged': edit_table(with_swapped_columns),
    'column missing': edit_table(lambda f: f.iloc[:, :-1]),
    'column more': edit_table(lambda f: f.assign(beach=0.)),
    'other scenes': edit_table(lambda f: f.rename(columns=dict(bus='beach'))),
    'no header': edit_text(lambda t: t.split('\n', 1)[1]),
    'commas': edit_text(lambda t: t.replace('\t', ',')),
    'a tab more': edit_text(lambda t: t.replace('\n', '\t\n').replace('\t\n', '\n', 1)),
    'a tab less': edit_text(lambda t: t[::-1].replace('\t', '', 1)[::-1]),
    'blank line': edit_text(lambda t: t.replace('\n', '\n\n', 1)),
    'quotes': edit_text(lambda t: t.replace('.wav', '.wav"').replace('\n', '\n"')),
    'mark': edit_text(lambda t: '\ufeff' + t),
    'empty': edit_text(lambda t: ''),
    'header only': edit_text(lambda t: t.split('\n')[0] + '\n'),
    'latin-1': lambda path: path.write_bytes('filename\tcafé'.encode('latin-1')),
    'sum not one': edit_table(lambda f: f.assign(**{c: f[c] * .9 for c in SCENES})),
    'above one': edit_table(lambda f: f.assign(bus=f.bus + 1)),
    'below zero': edit_table(lambda f: f.assign(bus=f.bus - 1)),
    'NaN': cell(3, 4, 'nan'),
    'infinity': cell(3, 4, 'inf'),
    'empty field': cell(3, 4, ''),
    'text for a number': cell(3, 4, 'high'),
    'comma for a point': cell(3, 4, '0,1'),
    'truth values': edit_table(lambda f: f.assign(**dict.fromkeys(SCENES, False)).assign(airport=True)),
    'label not the likeliest': edit_table(other_label),
    'unknown label': cell(0, 1, 'beach'),
    'no label': cell(0, 1, ''),
    'constant': edit_table(lambda f: f.iloc[[0] * len(f)].assign(filename=f.filename)),
}


@pytest.mark.parametrize('name', TABLES_DAMAGED)
def test_damaged_table(name, entry, tmp_path, damage):
    path = shutil.copy(entry.folder/f'{LABEL}.output.split_5.csv', tmp_path/'output.csv')
    assert check_output(path, entry.names, list(SCENES)) == []
    TABLES_DAMAGED[name](path)

    def check():
        if faults := check_output(path, entry.names, list(SCENES)): raise InputError('; '.join(faults))
    damage('table of answers', check, ['output.csv'])


@pytest.mark.parametrize('name', ['row missing', 'row twice', 'foreign name', 'other order', 'constant'])
def test_damaged_table_without_the_list(name, copy, damage):
    "The fingerprint of the names and the digest of the table stand for the evaluation list"
    TABLES_DAMAGED[name](copy/f'{LABEL}.output.split_5.csv')
    damage('table of answers', lambda: verdict(copy), ['output.split_5.csv'])


# ---- info.json

def set_info(**values):
    "A damage: other values"
    def change(info): info.update(values)
    return change


def without(name):
    "A damage: a field that is not there"
    def change(info): del info[name]
    return change


INFO_FIELDS = ['MACs', 'Params', 'bits', 'year', 'results', 'complexity', 'scenes', 'splits', 'systems', 'clips',
               'fingerprint', 'digests', 'kind', 'audio']
INFO_DAMAGED = {
    **{f'no {name}': without(name) for name in INFO_FIELDS},
    **{f'{name} null': set_info(**{name: None}) for name in INFO_FIELDS},
    **{f'{name} empty': set_info(**{name: empty}) for name, empty in (
        ('splits', []), ('scenes', []), ('results', {}), ('systems', {}), ('complexity', {}), ('digests', {}))},
    'split a path': set_info(splits=['split_5/../../x', 'split_10']),
    'split twice': set_info(splits=['split_5', 'split_5']),
    'split unknown': set_info(splits=['split_5', 'split_25']),
    'split a number': set_info(splits=[5, 10]),
    'other scenes': set_info(scenes=['beach', *SCENES[1:]]),
    'scenes turned': set_info(scenes=list(SCENES[::-1])),
    'year unknown': set_info(year='1999'),
    'year a number': set_info(year=2024),
    'bits': set_info(bits=4),
    'clips': set_info(clips=19),
    'clips true': set_info(clips=True),
    'kind': set_info(kind='rehearsal'),
    'results of a split null': lambda info: info['results'].update(split_5=None),
    'figure in words': lambda info: info['results']['split_5']['overall'].update(accuracy='good'),
    'counts': set_info(Params=1),
    'over budget': lambda info: (info['complexity'].update(macs=31_000_000), info.update(MACs=31_000_000)),
    'systems a text': lambda info: info['systems'].update(split_5='cp_mobile'),
    'system a text': lambda info: info['systems'].update(split_5=['cp_mobile']),
    'system of two': lambda info: info['systems'].update(split_5=info['systems']['split_5'] * 2),
    'network unknown': lambda info: info['systems']['split_5'][0].update(backbone='resnet_9000'),
    'network without options': lambda info: info['systems']['split_5'][0].update(backbone_args={}),
    'rate': lambda info: info['systems']['split_5'][0].update(rate=0),
}


@pytest.mark.parametrize('name', INFO_DAMAGED)
def test_damaged_info(name, copy, damage):
    path = copy/'info.json'
    info = json.loads(path.read_text(encoding='utf-8'))
    INFO_DAMAGED[name](info)
    path.write_text(json.dumps(info), encoding='utf-8')
    damage('info.json', lambda: verdict(copy))


TEXTS_OF_INFO = {'cut': '{', 'list': '[]', 'number': '3', 'null': 'null', 'NaN': '{"MACs": NaN}', 'empty': '',
                 'twice': '{"MACs": 1, "MACs": 2}', 'levels': '[' * 100_000}


@pytest.mark.parametrize('name', TEXTS_OF_INFO)
def test_info_of_another_shape(name, copy, damage):
    (copy/'info.json').write_text(TEXTS_OF_INFO[name])
    damage('info.json', lambda: verdict(copy), ['info.json'])


# ---- weights, and answers of other weights

def weights(folder, split='split_5'): return folder/f'{LABEL}.model_state_dict.{split}.pt'
def table(folder, split='split_5'): return folder/f'{LABEL}.output.{split}.csv'
def state_of(folder, split='split_5'): return torch.load(weights(folder, split), weights_only=True)


def seal(folder):
    "Write the digests anew, as whoever tampers with an entry would"
    info = json.loads((folder/'info.json').read_text(encoding='utf-8'))
    for path in folder.glob('*.pt'): info['digests'][path.name] = tensors_digest(torch.load(path, weights_only=True))
    for path in folder.glob('*.csv'): info['digests'][path.name] = file_digest(path)
    (folder/'info.json').write_text(json.dumps(info), encoding='utf-8')


def edit_state(change):
    "A damage: change the tensors of a split"
    def damage(folder): torch.save(change(state_of(folder)), weights(folder))
    return damage


def first(state): return next(name for name, value in state.items() if value.is_floating_point())
def statistics(state): return next(name for name in state if name.endswith('running_mean'))


def exchange(path, other):
    "Two files change places"
    kept = path.read_bytes()
    shutil.copy(other, path)
    other.write_bytes(kept)


def flip_a_byte(folder):
    "A byte of the largest tensor"
    raw = bytearray(weights(folder).read_bytes())
    tensor = max(state_of(folder).values(), key=torch.Tensor.numel)
    raw[raw.find(tensor.numpy().tobytes())] ^= 1
    weights(folder).write_bytes(raw)


WEIGHTS_DAMAGED = {
    'exchanged': lambda folder: exchange(weights(folder), weights(folder, 'split_10')),
    'of the other split': lambda folder: shutil.copy(weights(folder, 'split_10'), weights(folder)),
    'zeroed': edit_state(lambda s: {name: torch.zeros_like(value) for name, value in s.items()}),
    'one tensor zeroed': edit_state(lambda s: s | {first(s): torch.zeros_like(s[first(s)])}),
    'turned': edit_state(lambda s: s | {first(s): -s[first(s)]}),
    'a parameter short': edit_state(lambda s: {name: v for name, v in s.items() if name != first(s)}),
    'a statistic short': edit_state(lambda s: {name: v for name, v in s.items() if name != statistics(s)}),
    'a tensor more': edit_state(lambda s: s | dict(more=torch.zeros(1).half())),
    'renamed': edit_state(lambda s: {f'net.{name}': value for name, value in s.items()}),
    'single precision': edit_state(lambda s: {n: v.float() if v.is_floating_point() else v for n, v in s.items()}),
    'NaN': edit_state(lambda s: s | {first(s): s[first(s)] * float('nan')}),
    'sparse': edit_state(lambda s: s | {first(s): s[first(s)].float().to_sparse()}),
    'no tensor': edit_state(lambda s: s | dict(epoch=3)),
    'empty': edit_state(lambda s: {}),
    'a number for a name': edit_state(lambda s: s | {3: torch.zeros(1)}),
    'a byte': flip_a_byte,
    'no file of torch': lambda folder: weights(folder).write_bytes(b'PK nothing'),
    'cut short': lambda folder: weights(folder).write_bytes(weights(folder).read_bytes()[:1000]),
    'missing': lambda folder: weights(folder).unlink(),
}
# what a new digest does not hide, even where the sounds are not at hand
SEALED = ['zeroed', 'a parameter short', 'a statistic short', 'a tensor more', 'renamed', 'NaN']


@pytest.mark.parametrize('name', WEIGHTS_DAMAGED)
def test_damaged_weights(name, copy, damage):
    WEIGHTS_DAMAGED[name](copy)
    damage('weights of an entry', lambda: verdict(copy), [weights(copy).name])


@pytest.mark.parametrize('name', SEALED)
def test_damaged_weights_with_a_new_digest(name, copy, damage):
    WEIGHTS_DAMAGED[name](copy)
    seal(copy)
    damage('weights of an entry', lambda: verdict(copy), [weights(copy).name])


def roll(folder):
    "Each clip is answered as the next one"
    frame = pd.read_csv(table(folder), sep='\t')
    frame[frame.columns[1:]] = np.roll(frame[frame.columns[1:]].to_numpy(), 1, axis=0)
    save(frame, table(folder))


def nudge(folder):
    "One clip in five is answered a little otherwise"
    frame = pd.read_csv(table(folder), sep='\t')
    frame.loc[::5, SCENES] = frame.loc[::5, SCENES] * .97 + .003
    save(frame, table(folder))


ANSWERS_DAMAGED = {
    'rotated': roll,
    'nudged': nudge,
    'of the other split': lambda folder: shutil.copy(table(folder, 'split_10'), table(folder)),
    'exchanged': lambda folder: exchange(table(folder), table(folder, 'split_10')),
}


@pytest.mark.parametrize('name', ANSWERS_DAMAGED)
def test_other_answers(name, copy, damage):
    "Without the sounds, the digest of the table tells"
    ANSWERS_DAMAGED[name](copy)
    damage('answers of an entry', lambda: verdict(copy), [table(copy).name, 'not the answers the entry was made with'])


TAMPERED = {**ANSWERS_DAMAGED, **{f'weights {name}': WEIGHTS_DAMAGED[name] for name in ('exchanged', 'turned')}}


@pytest.mark.parametrize('name', TAMPERED)
def test_other_answers_with_new_digests(name, entry, copy, damage):
    "With the sounds, a sample of answers computed again"
    TAMPERED[name](copy)
    seal(copy)
    damage('answers of an entry', lambda: verdict(copy, audio=entry.corpus), [table(copy).name, 'packed weights'])


# ---- the folder

FOLDER_DAMAGED = {
    'stray file': lambda folder: (folder/'todo.txt').write_text('x'),
    'stray folder': lambda folder: (folder/'notes').mkdir(),
    'table of a third split': lambda folder: shutil.copy(table(folder), table(folder, 'split_25')),
    'table missing': lambda folder: table(folder).unlink(),
    'meta missing': lambda folder: (folder/f'{LABEL}.meta.yaml').unlink(),
    'meta no YAML': lambda folder: (folder/f'{LABEL}.meta.yaml').write_text('a: [b'),
    'meta of another label': lambda folder: edit_text(lambda t: t.replace(LABEL, 'Curie_UP_task1_2'))(
        folder/f'{LABEL}.meta.yaml'),
    'info missing': lambda folder: (folder/'info.json').unlink(),
    **{f'mark in {name}': lambda folder, name=name: edit_text(lambda t: '\ufeff' + t)(folder/name) for name in (
        'info.json', f'{LABEL}.meta.yaml', f'{LABEL}.output.split_5.csv')},
}


@pytest.mark.parametrize('name', FOLDER_DAMAGED)
def test_damaged_folder(name, copy, damage):
    FOLDER_DAMAGED[name](copy)
    damage('folder of an entry', lambda: verdict(copy))


@pytest.mark.parametrize('node', [a_folder, pipe, dangling])
@pytest.mark.parametrize('name', ['info.json', f'{LABEL}.meta.yaml', f'{LABEL}.output.split_5.csv',
                                  f'{LABEL}.model_state_dict.split_5.pt'])
def test_something_else_in_the_folder(name, node, copy, damage):
    (copy/name).unlink()
    node(copy/name)
    damage('folder of an entry', lambda: verdict(copy), [name])


@pytest.mark.parametrize('name', ['Curie', 'Curie_UP_task1_9', 'Curie_UP_task2_1', 'Curie UP_task1_1'])
def test_another_label(name, entry, tmp_path, damage):
    damage('folder of an entry', lambda: verdict(shutil.copytree(entry.folder, tmp_path/name)), [name])


def test_no_folder(tmp_path, damage):
    damage('folder of an entry', lambda: verdict(tmp_path/'nowhere'), ['nowhere'])
    damage('folder of an entry', lambda: verdict(__file__), ['test_damaged_entry.py'])


def test_sounds_that_are_not_there(entry, copy, damage):
    "A folder that was named must hold the sounds; one that was recorded is only looked for"
    damage('sounds of an entry', lambda: verdict(copy, audio=copy), [copy])
    os.mkdir(copy.parent/'empty')
    info = json.loads((copy/'info.json').read_text(encoding='utf-8'))
    for value in ('../empty', '/nowhere', '\0', 'x' * 5000):
        (copy/'info.json').write_text(json.dumps(info | dict(audio=value)), encoding='utf-8')
        assert 'not computed again' in examine_package(copy).remarks[0]
