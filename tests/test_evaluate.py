"""A model judged by one command, and lists of one's own: what a run folder of evaluate.ipynb holds."""
from types import SimpleNamespace

import pandas as pd
import pytest

from asc.core import InputError, fingerprint, read_json
from asc.data.corpus import load_corpus
from asc.experiment.evaluation import check_same_classes
from asc.experiment.recipe import read_lists, read_training_data
from asc.score.metrics import read_predictions
from asc.train.options import TrainingOptions
import launch


def test_an_own_list_is_evaluated(finished, papermill, synthetic, tmp_path):
    "Ten clips of one's own choice; the run says which"
    names = read_predictions(finished/'predictions.csv').filename[::97][:10]
    (tmp_path/'mine.csv').write_text('filename\n' + '\n'.join(name.split('/')[1] for name in names))
    out = tmp_path/'judged'
    launch.check(papermill('evaluate', model=finished, test_list=tmp_path/'mine.csv', out=out))
    assert sorted(read_predictions(out/'predictions.csv').filename) == sorted(names)
    assert read_json(out/'params.json')['data']['lists']['test'] == dict(clips=10, fingerprint=fingerprint(names))


@pytest.mark.parametrize('classes', [['bus'], ['bus', 'metro'], ['bus', 'tram', 'metro'], ['airplane', 'tram']])
def test_other_classes_are_refused(classes):
    corpus = SimpleNamespace(scenes=['bus', 'tram'], name='mine')
    with pytest.raises(InputError, match='model=a.ckpt: its classes are not those of mine'):
        check_same_classes(classes, corpus, 'a.ckpt')


def test_lists_of_ones_own_train_and_test(synthetic, tmp_path):
    "train_list and test_list are taken in place of the official ones; a clip in both is refused"
    corpus = load_corpus(synthetic)
    official = read_lists(corpus, TrainingOptions(valid=0.))
    mine = {part: official[part].filename[::3] for part in ('train', 'test')}
    for part, names in mine.items(): pd.DataFrame(dict(filename=names)).to_csv(tmp_path/f'{part}.csv', index=False)
    options = dict(train_list=str(tmp_path/'train.csv'), test_list=str(tmp_path/'test.csv'), valid=0.)
    lists = read_lists(corpus, TrainingOptions(**options))
    assert list(lists['train'].filename) == list(mine['train'])
    assert list(lists['test'].filename) == list(mine['test'])
    overlapping = TrainingOptions(data_dir=str(synthetic), **dict(options, test_list=options['train_list']))
    with pytest.raises(InputError, match='take them out of one list'): read_training_data(overlapping)
