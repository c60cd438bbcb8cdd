"""Any corpus trains and gives honest tables: what it does not know is in no table, picture or group, and is said."""
import numpy as np
import pandas as pd
import pytest
import yaml

import corpora
import launch
from asc.core import SCENES, InputError, read_json
from asc.data.classes import with_classes
from asc.data.corpus import load_corpus
from asc.data.division import divide
from asc.data.splits import check_disjoint, read_split, read_test, read_valid
from asc.experiment.recipe import create_training, read_training_data
from asc.run.folder import Run
from asc.score.differences import drawn_over, intervals_table, pair_table
from asc.score.doubts import interval_remark
from asc.score.labels import labels_of
from asc.score.metrics import metrics, read_predictions, vote
from asc.score.paired import gain_table
from asc.score.plots import result_pictures
from asc.score.report import by_test_list, list_summary, results_tables
from asc.score.runs import usable_runs
from asc.score.stats import bootstrap, compare
from asc.score.tables import evaluate_lines, result_tables, save_maps, score_lines
from asc.train.learner import predictions
from asc.train.options import TrainingOptions

SMALL = dict(backbone='cnn3', frontend='cnn3', pipeline='none', epochs=1, bs=64, device='cpu')


@pytest.fixture(scope='session')
def sounds(once):
    "The folder of the sounds, their tables and descriptions"
    def make(folder):
        corpora.write_sounds(folder)
        for name in corpora.TABLES: corpora.describe(folder, name)
    return once('strangers', make)


def options(sounds, name, **others):
    return TrainingOptions(data_dir=f'{sounds}/{name}.yaml', **(SMALL | others))


# name: (fold, files of tables, said of the lists, said of intervals, groups of devices)
KINDS = {
    'no-devices': (1, ['city_wise', 'class_wise'],
                   "ours, not official: 20 % of each scene's clips are tested, cut by user",
                   'Intervals are over users.', {}),
    'no-locations': (1, ['class_wise', 'device_wise'], 'cut by recording', 'Intervals are over recordings',
                     dict(seen=('phone', 'zoom'))),
    'nothing': (1, ['class_wise'], 'cut by recording', 'Intervals take every clip as independent', {}),
    'folds': (2, ['class_wise'], 'Fold 2 of 5 of the corpus is tested', 'Intervals are over users.', {}),
    'valid-list': (1, ['class_wise', 'device_wise'], 'validation list of the corpus watches training',
                   'Intervals are over users.',
                   dict(seen=('phone', 'zoom'))),
    'fifty-scenes': (4, ['class_wise'], 'Fold 4 of 4 of the corpus is tested',
                     'No intervals: the test list has one recording a',
                     {}),
    'unlabelled': (1, ['class_wise'], '40 clips without a scene are in no list', 'Intervals are over users.', {}),
}


@pytest.mark.usefixtures('one_thread')
@pytest.mark.parametrize('name', KINDS)
def test_every_kind_trains_to_a_table(name, sounds, tmp_path):
    fold, tables, lists, intervals, groups = KINDS[name]
    data = read_training_data(options(sounds, name, fold=fold))
    learn, train = create_training(data, options(sounds, name, fold=fold))
    train()
    preds = predictions(learn.model, data.clips(data.test))
    run = Run(tmp_path, 'train', {})
    run.csv(preds, 'predictions')
    again = read_predictions(tmp_path/'predictions.csv')
    assert list(again) == [*('filename', 'scene_label', 'device', 'city', 'location', 'recording'), *data.names]
    assert lists in ' '.join(data.remarks(.1))
    assert interval_remark(again, data.unit).startswith(intervals)
    assert data.groups == groups
    assert sorted(result_tables(again, data.names, data.groups)) == tables
    save_maps(run, again)
    assert (tmp_path/'class_device.csv').exists() == ('device_wise' in tables)
    assert ('class_device' in result_pictures(again)) == ('device_wise' in tables)
    scores = metrics(again, data.names, data.groups)
    assert bool(scores['device_accuracy']) == ('device_wise' in tables)
    assert bool(scores['city_accuracy']) == ('city_wise' in tables)
    assert score_lines(scores, evaluate_lines(dict(clips=again))['clips'])
    assert len(vote(again)) == len(again[['recording', 'device']].drop_duplicates())


@pytest.mark.parametrize('name, changed, message', [
    ('nothing', dict(target='city'), 'target=city: nothing does not tell the city of any clip'),
    ('folds', dict(target='device'), 'target=device: folds does not tell the device'),
    ('folds', dict(fold=9), 'unknown fold 9: choose one of 1, 2, 3, 4, 5'),
    ('nothing', dict(fold=2), 'fold=2: nothing is not divided into folds'),
    ('valid-list', dict(fold=3), 'fold=3: valid-list is not divided into folds'),
    ('nothing', dict(steps=['resample', 'mel', 'log', {'freq_mixstyle': {'cross': True}}]),
     'cross=True goes by the devices'),
    ('nothing', dict(steps=[{'dir': {'devices': [0]}}, 'resample', 'mel', 'log']), 'goes by the devices'),
    ('nothing', dict(join=10), 'join=10 needs the recordings'),
    ('nothing', dict(crop='windows'), "crop='windows' needs"),
])
def test_what_needs_a_notion_is_refused_without_it(name, changed, message, sounds):
    with pytest.raises(InputError, match=message): read_training_data(options(sounds, name, **changed))


@pytest.mark.parametrize('name', ['no-devices', 'nothing', 'folds', 'valid-list', 'fifty-scenes'])
def test_a_share_of_the_training_list_is_ours(name, sounds):
    "Whole recordings, so much of each scene, each share in the next; always the same ones"
    corpus = load_corpus(sounds/f'{name}.yaml')
    whole, shares = read_split(corpus, 100), [read_split(corpus, subset) for subset in (5, 10, 25, 50, 100)]
    for small, large in zip(shares, shares[1:]): assert set(small.filename) <= set(large.filename)
    for share, percent in zip(shares, (5, 10, 25, 50, 100)):
        assert set(share.scene) == set(whole.scene)
        apart = (share.scene.value_counts() - percent / 100 * whole.scene.value_counts()).abs()
        assert apart.max() <= 1
        assert not set(whole.recording[whole.filename.isin(share.filename)]) & set(
            whole.recording[~whole.filename.isin(share.filename)])
    assert read_split(corpus, 25).equals(shares[2])
    said = read_training_data(options(sounds, name, subset=50)).said
    told = f'The share of 50 % is ours, not official: whole recordings of each scene, {len(shares[3])} of {len(whole)} '
    assert any(sentence.startswith(told) for sentence in said)


def test_the_official_validation_list_is_used_or_left_out(sounds):
    corpus = load_corpus(sounds/'valid-list.yaml')
    official = set(read_valid(corpus).filename)
    used, unused = (read_training_data(options(sounds, 'valid-list', valid=valid)) for valid in (.1, 0.))
    assert set(used.valid.filename) == official and not len(unused.valid)
    assert used.train.equals(unused.train) and not official & set(used.train.filename)
    assert 'is left out: valid is 0' in ' '.join(unused.said)


def test_a_cut_of_ours_is_recorded_and_stays(sounds):
    "The same clips whatever the order of the table, and no user on two sides; another seed, other users"
    corpus = load_corpus(sounds/'no-devices.yaml')
    first = divide(corpus)
    corpus.meta = corpus.meta.sample(frac=1, random_state=0).reset_index(drop=True)
    again = divide(corpus)
    assert set(first.test.filename) == set(again.test.filename)
    assert not set(first.test.location) & set(first.train.location)
    assert first.test.scene.value_counts().tolist() == [10] * 4
    corpus.about['lists'] = dict(by='user', seed=1)
    assert set(divide(corpus).test.filename) != set(first.test.filename)
    facts = read_training_data(options(sounds, 'no-devices')).facts['split']
    assert facts == dict(whose='ours', by='user', test=.2, tested=.2, seed=0, group='user', unlabelled=0)


def test_only_lists_of_known_corpora_are_official(sounds, monkeypatch):
    "The same description is one's own, or one of those that come with a name"
    own = {name: divide(load_corpus(sounds/f'{name}.yaml')) for name in ('folds', 'valid-list')}
    assert own['folds'].said[0].startswith('Fold 1 of 5 of the corpus is tested') and 'official' not in str(own)
    assert own['valid-list'].said == ['Lists that lie with the corpus: train, valid, test.']
    monkeypatch.setenv('ASC_CORPORA', str(sounds))
    known = {name: divide(load_corpus(sounds/f'{name}.yaml')) for name in own}
    assert known['folds'].said[0].startswith('Official fold 1 of 5 is tested')
    assert known['valid-list'].said == ['The lists are the official ones: train, valid, test.']
    assert {division.facts['whose'] for division in known.values()} == {'official'}


def test_a_validation_list_that_lacks_classes_is_told(sounds):
    data = read_training_data(options(sounds, 'valid-list'))
    assert not any('validation clip' in sentence for sentence in data.remarks(.1))
    data.valid = data.valid[data.valid.scene == 'bus']
    assert data.remarks(.1)[-1] == 'No validation clip of park, pub, tram, which training has.'


def test_leaks_are_told_in_the_word_of_the_corpus(sounds):
    part = load_corpus(sounds/'folds.yaml').meta
    with pytest.raises(InputError, match='train and test share users'):
        check_disjoint('users', train=part[:1], test=part[1:2])


def test_what_came_out_of_a_cut_is_said(sounds):
    "Seven users of eight are left of each scene, and 30 % of them are two; users that share a recording stay together"
    corpus = load_corpus(sounds/'no-devices.yaml')
    corpus.meta = corpus.meta[corpus.meta.index % 50 < 35].reset_index(drop=True)
    corpus.about['lists'] = dict(test=.3)
    division = divide(corpus)
    assert division.facts['tested'] == .286
    assert "29 % of the clips are tested, asked for 30 % of each scene's" in division.said[0]
    corpus.meta['recording'] = [f'walk {i // 10}' for i in range(len(corpus.meta))]
    for by in ('user', 'filename'):
        corpus.about['lists'] = dict(by=by)
        tied = divide(corpus)
        assert not set(tied.test.recording) & set(tied.train.recording)
        assert not set(tied.test.location) & set(tied.train.location)
    assert 'Clips that share a recording or a user are in one list.' in tied.said
    corpus.about['lists'] = dict(by='city')
    with pytest.raises(InputError, match='no scene has two cities that share nothing'): divide(corpus)


@pytest.mark.parametrize('places, message', [
    (lambda i: f'one{i // 50}', 'no scene has two users'),
    (lambda i: 'everywhere', 'no scene has two users'),
])
def test_what_cannot_be_cut_is_refused(places, message, sounds):
    corpus = load_corpus(sounds/'no-devices.yaml')
    corpus.meta = corpus.meta.assign(location=[places(i) for i in range(200)])
    with pytest.raises(InputError, match=message): read_test(corpus)


def test_clips_of_one_s_own_need_a_scene(sounds, tmp_path):
    (tmp_path/'mine.csv').write_text('filename\nsounds/000.wav\nsounds/055.wav\nsounds/004.wav\n')
    with pytest.raises(InputError, match='1 clips of the train list have no scene, such as sounds/004.wav'):
        read_training_data(options(sounds, 'unlabelled', train_list=str(tmp_path/'mine.csv')))


def finished_run(folder, data, name, skill, seed=0):
    "A run folder as train.ipynb leaves it, of made-up answers"
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(data.test), len(data.names)))
    logits[np.arange(len(logits)), [data.names.index(scene) for scene in data.test.scene]] += skill
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    preds = pd.concat([labels_of(data.test), pd.DataFrame(p, columns=data.names)], axis=1)
    run = Run(folder, 'train', dict(options('', name).as_dict(), lr=.1 * skill, seed=seed, subset=100))
    run.note(data=data.facts, groups=data.groups)
    run.csv(preds, 'predictions')
    run.finish(dict(metrics(preds, data.names, data.groups), params=1, macs=1))
    return folder


REPORTED = {
    'no-devices': ({'city', 'city-log-loss'}, 'ours, cut by user', 'Intervals are over users.'),
    'nothing': (set(), 'ours, cut by recording', 'Intervals take every clip as independent'),
    'folds': (set(), 'fold 1 of 5', 'Intervals are over users.'),
    'valid-list': ({'device', 'device-log-loss', 'group', 'group-log-loss'}, '', 'Intervals are over users.'),
}


@pytest.mark.parametrize('name', REPORTED)
def test_reports_and_comparisons_leave_out_what_is_not_known(name, sounds, tmp_path):
    more, whose, drawn = REPORTED[name]
    data = read_training_data(options(sounds, name))
    folders = [finished_run(tmp_path/f'{skill}', data, name, skill) for skill in (1, 3)]
    records, left_out = usable_runs(folders)
    assert len(records) == 2 and not left_out
    assert set(results_tables(records)) == {'summary', 'class', 'class-log-loss', *more}
    assert whose in list_summary(by_test_list(records))
    assert drawn_over(records).startswith(drawn)
    assert intervals_table(records, ('device_accuracy',)).shape[1] == (2 if 'device' in more else 0)
    table, _ = pair_table(*folders)
    assert any(row.startswith('device ') for row in table.index) == ('device' in more)
    gains = gain_table(*([read_predictions(folder/'predictions.csv')] for folder in folders), groups=data.groups)
    assert ('phone' in gains.index) == ('device' in more)
    assert gains.loc['macro accuracy', ['from', 'to']].notna().all()


def test_older_tables_are_read_and_compared_with_newer(sounds):
    "A table without the two columns of places, beside one with them, on the same clips"
    data = read_training_data(options(sounds, 'no-devices'))
    p = np.random.default_rng(0).dirichlet(np.ones(4), len(data.test))
    newer = pd.concat([labels_of(data.test), pd.DataFrame(p, columns=data.names)], axis=1)
    older = newer.drop(columns=['location', 'recording'])
    assert interval_remark(older).startswith('No intervals: 40 file names do not tell the place')
    assert metrics(older)['accuracy'] == metrics(newer)['accuracy']
    assert bootstrap(older).low.isna().all() and bootstrap(newer).low.notna().all()
    for pair in ((older, newer), (newer, older)):
        assert compare(*pair, over=['locations']).difference.item() == 0
    with pytest.raises(InputError, match='tell no device'): compare(newer, newer, 'mean_device_accuracy')


def test_train_on_real_recordings_in_folds(shared, papermill, tmp_path):
    "ESC-50 as far as it is here: five classes, their official folds, and 16 kHz as it came"
    folders = [shared/f'data/{name}/source' for name in ('other', 'ambience')]
    files = [path for folder in folders for path in sorted(folder.glob('*.flac'))]
    rows = pd.DataFrame([path.stem.split('-') for path in files], columns=['fold', 'source', 'take', 'target'])
    rows = rows.assign(filename=[str(path.relative_to(shared/'data')) for path in files])
    rows = rows[rows.target.isin(['34', '36', '37', '40', '42'])].groupby(['fold', 'target']).head(3)
    rows.to_csv(tmp_path/'esc.csv', index=False)
    about = dict(reader='table', folder=str(shared/'data'), table=str(tmp_path/'esc.csv'), lists='folds',
                 group='source',
                 columns=dict(filename='filename', scene='target', list='fold', location='source'),
                 licence='CC BY-NC 3.0')
    (tmp_path/'esc.yaml').write_text(yaml.safe_dump(about))
    launch.check(papermill('train', data_dir=tmp_path/'esc.yaml', fold=4, out=tmp_path/'run', **SMALL))
    preds = read_predictions(tmp_path/'run/predictions.csv')
    assert set(preds.filename) == set(rows.filename[rows.fold == '4'])
    params = read_json(tmp_path/'run/params.json')
    assert params['data']['split'] == dict(whose='corpus', fold=4, folds=[1, 2, 3, 4, 5], unused=0, group='source',
                                           unlabelled=0)
    assert any(line.startswith('Fold 4 of 5 of the corpus is tested') for line in params['result'])
    text = (tmp_path/'run/train.ipynb').read_text()
    assert 'Licence: CC BY\\\\-NC 3.0.' in text or 'Licence: CC BY-NC 3.0.' in text
    assert not [*(tmp_path/'run').glob('*device*'), *(tmp_path/'run').glob('city*')]


def test_classes_called_as_tau_does_are_those_of_tau(sounds):
    "A described corpus has the classes that occur in it; one whose classes a run names after TAU's has all ten"
    corpus = load_corpus(f'{sounds}/nothing.yaml')
    assert corpus.scenes == sorted(corpus.meta.scene.dropna().unique())
    named = with_classes(corpus, dict(zip(corpus.scenes, ('bus', 'tram'))))
    assert named.scenes == list(SCENES)
