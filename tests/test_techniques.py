"""A curriculum by device and spectrum modulation in a whole training: resumed to the same bits, refused by name."""
import pytest
import torch
from fastai.callback.core import Callback

from asc.core import InputError
from asc.data.own_lists import own_list
from asc.data.splits import read_split, read_test
from asc.experiment.checks import check_plan, check_training
from asc.experiment.recipe import create_training, read_training_data, train_and_save
from asc.experiment.seeds import run_config
from asc.teach.logits import save_teacher
from asc.train.options import TrainingOptions
from asc.train.resume import Checkpoint, read_checkpoint

MODULATED = ['resample', 'mel', 'spectrum_modulation', 'log', {'freq_mixstyle': {'p': .4}}]
SMALL = dict(backbone='cnn3', frontend='cnn3', epochs=4, bs=32, valid=0.)


@pytest.fixture(scope='module')
def lists(packed, tmp_path_factory):
    "Own lists: clips that three devices recorded at once to train on, and others to test on"
    folder, rows = tmp_path_factory.mktemp('lists'), read_test(packed[0])
    rows = rows[rows.device.isin(['a', 'b', 's1']) & (rows.snippet < 2)]
    rows[['filename']].to_csv(folder/'train.csv', index=False)
    read_split(packed[0], 100).iloc[::9][['filename']].to_csv(folder/'test.csv', index=False)
    return dict(data_dir=str(packed[0].dir), train_list=str(folder/'train.csv'), test_list=str(folder/'test.csv'))


@pytest.fixture(scope='module')
def guide(packed, lists, tmp_path_factory):
    "A file of logits that is sure of every second clip of the training list"
    rows = own_list(packed[0], lists['train_list'], 'train_list')
    logits = torch.zeros(len(rows), 3)
    logits[::2, 1] = torch.linspace(1, 9, len(logits[::2]))
    return str(save_teacher(tmp_path_factory.mktemp('guide')/'devices.safetensors', rows.filename, logits, [*'abc']))


class Watch(Callback):
    "How many different clips each epoch has; stops before one of them"
    def __init__(self, stop=None): self.stop, self.seen = stop, []
    def before_epoch(self):
        if self.epoch == self.stop: raise KeyboardInterrupt

    def before_train(self): self.ids = set()
    def before_batch(self):
        if self.training: self.ids |= {wave.sum().item() for wave in self.xb[0]}

    def after_train(self): self.seen.append((len(self.ids), self.dls.train.n))


def trained(folder, options, stop=None, resume=False):
    "What is learnt in a folder, watched"
    data = read_training_data(options)
    checkpoint = Checkpoint(folder, run_config(options.as_dict(), data), resume)
    learn, fit = create_training(data, options, cbs=[checkpoint, Watch(stop)])
    with learn.no_bar():
        if stop is None: fit()
        else:
            with pytest.raises(KeyboardInterrupt): fit()
    return learn


def test_curriculum_and_modulation_resume_to_the_same_bits(lists, guide, tmp_path):
    "Few clips at first, all at last, as many steps in each epoch; a changed file of answers is another training"
    options = TrainingOptions(steps=MODULATED, sharpness='asam', curriculum={'devices': guide, 'until': .5}, **lists,
                              **SMALL)
    whole = trained(tmp_path/'a', options)
    (first, n), (second, _), *rest = whole.watch.seen
    assert first < second < n and rest == [(n, n)] * 2 and whole.dls.train.epoch.done == 1.
    trained(tmp_path/'b', options, stop=2)
    assert 'curriculum answers' in read_checkpoint(tmp_path/'b'/'checkpoint.pt')['config']
    learn = trained(tmp_path/'b', options, resume=True)
    for name, value in whole.model.state_dict().items(): assert torch.equal(value, learn.model.state_dict()[name]), name
    ratios = whole.model.pipeline.ops['2_spectrum_modulation'].ratios
    assert len(ratios) == sum(read_training_data(options).facts['parallel'].values()) and ratios.isfinite().all()


def test_a_run_tells_devices_apart(lists, tmp_path):
    "A run with target device leads a curriculum, one that tells scenes does not"
    options = dict(pipeline='none', **lists, **SMALL | dict(epochs=1))
    for target in ('device', 'scene'): train_and_save(tmp_path/target, TrainingOptions(target=target, **options))
    lead = TrainingOptions(curriculum=str(tmp_path/'device'), **options)
    assert set(read_training_data(lead).facts['curriculum']['entropy']) == {'a', 'b', 's1'}
    with pytest.raises(InputError, match='scene tells airport, .* apart, and the devices of'):
        read_training_data(TrainingOptions(curriculum=str(tmp_path/'scene'), **options))


WRONG = {
    'key': ({'device': 'x'}, 'did you mean devices'),
    'until': ({'devices': 'x', 'until': 2.}, 'curriculum until=2.0 must be between'),
    'least': ({'devices': 'x', 'least': 0.}, 'curriculum least=0.0 must be between'),
    'type': ({'devices': 'x', 'until': 'early'}, "curriculum until='early' must be"),
    'nobody': ({'until': .3}, 'devices is missing'),
}


@pytest.mark.parametrize('case', WRONG)
def test_curricula_that_are_refused(case):
    spec, words = WRONG[case]
    for check in (check_training, lambda options: check_plan(options.as_dict())):
        with pytest.raises(InputError, match=words): check(TrainingOptions(curriculum=spec))


def test_what_a_curriculum_and_a_modulation_need(packed, guide, tmp_path):
    with pytest.raises(InputError, match='leave extra or curriculum out'):
        check_training(TrainingOptions(curriculum=guide, extra=['synthetic']))
    with pytest.raises(InputError, match='nowhere'): check_training(TrainingOptions(curriculum='nowhere'))
    rows = read_split(packed[0], 100)
    rows[rows.device == 'a'][['filename']].to_csv(tmp_path/'a.csv', index=False)
    alone = dict(data_dir=str(packed[0].dir), train_list=str(tmp_path/'a.csv'), **SMALL)
    with pytest.raises(InputError, match='no recording of device a .* leave the step out'):
        read_training_data(TrainingOptions(steps=MODULATED, **alone))
    steps = ['resample', 'mel', {'spectrum_modulation': {'source': 40}}, 'log']
    with pytest.raises(InputError, match='source=40 of a corpus that has 9 devices'):
        read_training_data(TrainingOptions(steps=steps, **alone))
