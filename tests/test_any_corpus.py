"""Any corpus trains and gives honest tables: what it does not know is in no table, picture or group, and is said."""
import pandas as pd
import pytest
import torch

import corpora
from asc.core import InputError, read_json
from asc.data.corpus import load_corpus
from asc.data.division import divide
from asc.data.splits import read_split, read_test, read_valid
from asc.experiment.recipe import create_training, read_training_data
from asc.run.folder import Run
from asc.score.doubts import interval_remark
from asc.score.metrics import metrics, read_predictions, vote
from asc.score.plots import result_pictures
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
    return TrainingOptions(data_dir=str(sounds/f'{name}.yaml'), **(SMALL | others))


# name: (fold, files of tables, said of the lists, said of intervals, groups of devices)
KINDS = {
    'no-devices': (1, ['city_wise', 'class_wise'], 'ours, not official: 20% of each scene\'s clips are tested, cut by user',
                   'Intervals are over users.', {}),
    'no-locations': (1, ['class_wise', 'device_wise'], 'cut by recording', 'Intervals are over recordings',
                     dict(seen=('phone', 'zoom'))),
    'nothing': (1, ['class_wise'], 'cut by recording', 'Intervals take every clip as independent', {}),
    'folds': (2, ['class_wise'], 'Official fold 2 of 5 is tested', 'Intervals are over users.', {}),
    'valid-list': (1, ['class_wise', 'device_wise'], 'official validation list watches training', 'Intervals are over users.',
                   dict(seen=('phone', 'zoom'))),
    'fifty-scenes': (4, ['class_wise'], 'Official fold 4 of 4 is tested', 'No intervals: the test list has one recording a',
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
