"""A submission folder its own validator passes, and damaged copies it refuses, each for the right reason."""
import json
import re
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml

from asc.core import InputError, write_json
from asc.data.choose import data_facts
from asc.data.splits import read_test
from asc.entry.files import AUTHOR_TEMPLATE
from asc.entry.folder import check_package, write_package
from asc.model.classifier import create_classifier, load_model, save_model
from asc.score.metrics import metrics
from asc.size.integers import save_quantised
from asc.size.qdq import calibrate, quantised_classifier
from asc.train.clips import ClipData
from asc.train.learner import predictions

LABEL = 'Curie_UP_task1_1'
ME = dict(
    AUTHOR_TEMPLATE,
    lastname='Curie',
    firstname='Marie',
    email='marie@example.org',
    affiliation=dict(
        abbreviation='UP', institute='Université de Paris', department=None, location='Paris'
    ),
)


def make_run(folder, packed, part, subset, seed):
    "A run folder as a training leaves it, of a network whose weights are as they were drawn"
    corpus, store = packed
    torch.manual_seed(seed)
    model = create_classifier('cp_mobile_24', scenes=corpus.scenes).eval()
    folder.mkdir()
    save_model(model, folder)
    parameters = dict(subset=subset, pipeline='dcase24', seed=seed)
    facts = data_facts(corpus, store, test=part)
    write_json(folder/'params.json', dict(notebook='train', parameters=parameters, data=facts))
    table = predictions(model, ClipData(store, part, corpus.scenes, corpus.devices))
    write_json(folder/'metrics.json', metrics(table, corpus.scenes))
    return folder


@pytest.fixture(scope='module')
def entry(packed, tmp_path_factory):
    "Three runs, the folder of a package of the first, and what a package is written with"
    folder = tmp_path_factory.mktemp('entry')
    part = read_test(packed[0]).groupby('scene').head(2)
    runs = [
        make_run(folder/f'run{seed}', packed, part, subset, seed)
        for seed, subset in enumerate((25, 25, 50))
    ]
    options = dict(
        corpus=packed[0], rows=part, store_dir=packed[1].folder.parent, authors=[ME],
        name='Example', abbreviation='ex',
    )
    package = write_package(runs[:1], out=folder, label=LABEL, **options)
    return SimpleNamespace(
        runs=runs, options=options, names=part.filename.tolist(), folder=package
    )


def test_package_passes(entry):
    assert check_package(entry.folder, entry.names) == []


def test_what_a_failed_attempt_left_is_not_handed_in(entry, tmp_path):
    (tmp_path/f'.{LABEL}.part').mkdir()
    (tmp_path/f'.{LABEL}.part/{LABEL}.output.split_5.csv').write_text('half')
    folder = write_package(entry.runs[:1], out=tmp_path, label=LABEL, **entry.options)
    assert check_package(folder, entry.names) == []
    assert len(list(folder.iterdir())) == 4


def test_splits_and_ensembles(entry, tmp_path):
    "Two runs of one split are an ensemble over the budget; two splits have a table each"
    kw = entry.options
    folder = write_package(entry.runs, out=tmp_path, label=LABEL, **kw)
    assert {p.name for p in folder.glob('*.csv')} == {
        f'{LABEL}.output.split_25.csv', f'{LABEL}.output.split_50.csv'
    }
    problems = check_package(folder, entry.names)
    # the ensemble's size, and the other split's count
    assert len(problems) == 2
    assert any('over the budget of 2024' in p for p in problems)
    one = write_package(
        [entry.runs[0], entry.runs[2]], out=tmp_path, label='Curie_UP_task1_2', **kw
    )
    assert check_package(one, entry.names) == []


def test_quantised_run_hands_in_int8(entry, tmp_path):
    "The answers and int8 codes of the quantised network, 8 bits in the count; 2022 wants int8 for the first layer, too"
    model = quantised_classifier(load_model(entry.runs[0]))
    x = torch.randn(8, 44100) * .1
    with torch.no_grad(): calibrate(model.backbone, [model.pipeline(x)])
    run = tmp_path/'run'
    shutil.copytree(entry.runs[0], run)
    save_quantised(model, run)
    folder = write_package([run], out=tmp_path, label=LABEL, **entry.options)
    assert check_package(folder, entry.names) == []
    info = json.loads((folder/'info.json').read_text())
    assert info['bits'] == 8
    assert info['complexity']['total_model_size'] == info['Params'] == 61148
    assert info['MACs'] == 29419156
    state = torch.load(folder/f'{LABEL}.model_state_dict.pt', weights_only=True)
    assert sum(v.numel() for v in state.values() if v.dtype == torch.int8) > 58000
    edit_info(lambda i: i.update(year='2022'))(folder)
    assert any('demand int8' in p for p in check_package(folder, entry.names))
    kw = entry.options | dict(rows=entry.options['rows'].head(4))
    with pytest.raises(InputError, match='one precision'):
        write_package([run, entry.runs[1]], out=tmp_path, label='Curie_UP_task1_2', **kw)


def table(folder):
    "The answers of a package"
    return folder/f'{LABEL}.output.csv'


def edit_table(change):
    "A damage: change the table of answers"
    def damage(folder):
        df = pd.read_csv(table(folder), sep='\t')
        change(df).to_csv(table(folder), sep='\t', index=False, float_format='%.8f')
    return damage


def edit_meta(change):
    "A damage: change meta.yaml"
    def damage(folder):
        path = folder/f'{LABEL}.meta.yaml'
        meta = yaml.safe_load(path.read_text(encoding='utf-8'))
        change(meta)
        path.write_text(yaml.safe_dump(meta, sort_keys=False, allow_unicode=True), encoding='utf-8')
    return damage


def edit_info(change):
    "A damage: change info.json"
    def damage(folder):
        info = json.loads((folder/'info.json').read_text())
        change(info)
        (folder/'info.json').write_text(json.dumps(info))
    return damage


def edit_state(change):
    "A damage: change the weights"
    def damage(folder):
        path = folder/f'{LABEL}.model_state_dict.pt'
        state = change(torch.load(path, weights_only=True))
        torch.save(state, path)
    return damage


def cell(row, column, value):
    "A damage: put a value in one field of the table"
    def change(df):
        df = df.astype(object)
        df.iloc[row, df.columns.get_loc(column) if isinstance(column, str) else column] = value
        return df
    return edit_table(change)


def flip_label(df):
    "A label that is not the most probable scene"
    df.loc[0, 'scene_label'] = next(c for c in df.columns[2:] if c != df.scene_label[0])
    return df


def flip_last(path):
    "Flip a byte of the largest tensor of a file of torch"
    raw = bytearray(path.read_bytes())
    tensor = max(torch.load(path, weights_only=True).values(), key=torch.Tensor.numel)
    raw[raw.find(tensor.numpy().tobytes())] ^= 1
    path.write_bytes(raw)


def first(state):
    "Name of the first tensor of floats"
    return next(k for k, v in state.items() if v.is_floating_point())


DAMAGES = {
    'row missing': (edit_table(lambda df: df.iloc[1:]), 'missing, such as'),
    'row twice': (edit_table(lambda df: pd.concat([df, df.iloc[:1]])), 'named twice'),
    'foreign name': (
        edit_table(lambda df: pd.concat([df, df.iloc[:1].assign(filename='foreign.wav')])),
        'not on the evaluation list',
    ),
    'other order': (edit_table(lambda df: df.iloc[::-1]), 'not in the order'),
    'columns swapped': (
        edit_table(lambda df: df[[*df.columns[:2], *df.columns[:1:-1]]]), 'in this order'
    ),
    'column missing': (edit_table(lambda df: df.iloc[:, :-1]), 'in this order'),
    'no header': (
        lambda f: table(f).write_text(table(f).read_text().split('\n', 1)[1]),
        'the header begins with',
    ),
    'commas': (
        lambda f: table(f).write_text(table(f).read_text().replace('\t', ',')), 'tabs between'
    ),
    'sum not one': (
        edit_table(lambda df: df.assign(**{c: df[c] * .9 for c in df.columns[2:]})),
        'do not sum to 1',
    ),
    'not a probability': (
        edit_table(lambda df: df.assign(**{df.columns[2]: df.iloc[:, 2] + 1})),
        'no number from 0 to 1',
    ),
    'NaN': (cell(3, 4, 'nan'), 'no number from 0 to 1'),
    'text for a number': (cell(3, 4, 'high'), 'no number from 0 to 1'),
    'label not the argmax': (edit_table(flip_label), 'not the scene of the highest probability'),
    'unknown label': (cell(0, 'scene_label', 'beach'), 'the label is no scene'),
    'table missing': (lambda f: table(f).unlink(), 'output.csv: missing'),
    'meta missing': (lambda f: (f/f'{LABEL}.meta.yaml').unlink(), 'meta.yaml: missing'),
    'meta not YAML': (lambda f: (f/f'{LABEL}.meta.yaml').write_text('a: [b'), 'read as YAML'),
    'placeholder': (
        edit_meta(lambda m: m['submission'].update(name='FILL IN')),
        'submission.name is still a placeholder',
    ),
    'two corresponding authors': (
        edit_meta(lambda m: m['submission']['authors'].append(dict(ME))), 'exactly one author'
    ),
    'e-mail': (
        edit_meta(lambda m: m['submission']['authors'][0].update(email='marie at up')),
        'e-mail address',
    ),
    'long abbreviation': (
        edit_meta(lambda m: m['submission'].update(abbreviation='a' * 11)),
        'more than 10 characters',
    ),
    'other label': (
        edit_meta(lambda m: m['submission'].update(label='Curie_UP_task1_2')),
        'stands in the folder',
    ),
    'improved result': (
        edit_meta(
            lambda m: m['results']['development_dataset']['split_25']['overall'].update(
                accuracy=99.
            )
        ),
        'measured was',
    ),
    'smaller model': (
        edit_meta(lambda m: m['system']['complexity'].update(macs=1)), 'complexity: macs is 1'
    ),
    'over budget': (
        edit_info(lambda i: (i['complexity'].update(macs=31_000_000), i.update(MACs=31_000_000))),
        'over the budget',
    ),
    'info missing': (lambda f: (f/'info.json').unlink(), 'info.json: missing'),
    'info not JSON': (lambda f: (f/'info.json').write_text('{'), 'not JSON'),
    'info counts': (edit_info(lambda i: i.update(Params=1)), 'MACs and Params are not those'),
    'single precision': (
        edit_state(lambda s: {k: v.float() if v.is_floating_point() else v for k, v in s.items()}),
        'half precision is declared',
    ),
    'weights NaN': (
        edit_state(lambda s: {**s, first(s): s[first(s)] * float('nan')}),
        'NaN or infinite weights',
    ),
    'weights fewer': (
        edit_state(lambda s: {k: v for k, v in s.items() if k != first(s)}),
        'parameters, info.json says',
    ),
    'other weights': (
        edit_state(lambda s: {**s, first(s): -s[first(s)]}), 'not the weights the entry was made with'
    ),
    'a byte of the weights': (
        lambda f: flip_last(f/f'{LABEL}.model_state_dict.pt'), 'fails its check sum'
    ),
    'year unknown': (edit_info(lambda i: i.update(year='1999')), 'unknown year'),
    'no cost': (edit_info(lambda i: i.update(complexity={})), 'no field total_parameters'),
    'scenes a number': (edit_info(lambda i: i.update(scenes=10)), 'scenes=10 is no list'),
    'no digest': (edit_info(lambda i: i.pop('digests')), 'no field digests'),
    'digests of no table': (edit_info(lambda i: i.update(digests={})), 'not the weights the entry was made with'),
    'weights missing': (
        lambda f: (f/f'{LABEL}.model_state_dict.pt').unlink(), 'model_state_dict.pt: missing'
    ),
    'weights no file of torch': (
        lambda f: (f/f'{LABEL}.model_state_dict.pt').write_bytes(b'PK nothing'),
        'cannot be read as weights',
    ),
    'stray file': (lambda f: (f/'todo.txt').write_text('x'), 'does not belong'),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_damaged_copy_is_refused(entry, tmp_path, name):
    damage, reason = DAMAGES[name]
    copy = shutil.copytree(entry.folder, tmp_path/LABEL)
    damage(copy)
    problems = check_package(copy, entry.names)
    assert problems and any(reason in p for p in problems), problems
    # also without the list, by its fingerprint
    if name == 'row missing':
        assert any('the evaluation list has' in p for p in check_package(copy))


def test_renamed_folder_is_refused(entry, tmp_path):
    copy = shutil.copytree(entry.folder, tmp_path/'entry')
    assert re.search('is not named', check_package(copy)[0])
    with pytest.raises(InputError, match='no such folder'):
        check_package(tmp_path/'nowhere')
