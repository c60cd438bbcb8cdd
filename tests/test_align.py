"""Devices made alike in whole trainings, 8-bit networks of devices, and who teaches an 8-bit network."""
from copy import deepcopy

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback

from asc.backbone.tensors import read_tensors
from asc.core import InputError
from asc.data.splits import read_split, read_test
from asc.experiment.checks import check_plan, check_training
from asc.experiment.recipe import create_training, read_training_data
from asc.experiment.seeds import run_config
from asc.experiment.singles import joined_networks, single_networks
from asc.experiment.teaching import own_clips, read_teaching
from asc.experiment.variants import own_teaching, train_quantised, untrained_variants
from asc.load import open_model
from asc.model.classifier import create_classifier, save_model
from asc.model.per_device import DeviceAware
from asc.size.qat import save_quantised
from asc.size.qdq import calibration_batches
from asc.teach.logits import save_teacher
from asc.train.clips import ClipData
from asc.train.learner import predictions
from asc.train.options import TrainingOptions
from asc.train.resume import Checkpoint

SMALL = dict(backbone='cnn3', frontend='cnn3', pipeline='none', epochs=3, bs=32, valid=0.)
KINDS = {'mmd': 'mmd', 'against': {'kind': 'mmd', 'against': 'a', 'layer': 'conv3'},
         'adversarial': {'kind': 'adversarial', 'hidden': 8}}


def few(corpus):
    "Clips of three devices, of the test list, which has several"
    rows = read_test(corpus)
    return rows[rows.device.isin(['a', 'b', 's1'])].groupby(['device', 'scene'], sort=False).head(2)


@pytest.fixture(scope='module')
def lists(packed, tmp_path_factory):
    "Own lists: few clips to train on, those of one device alone, and others to test on"
    folder, rows = tmp_path_factory.mktemp('lists'), few(packed[0])
    others = read_split(packed[0], 100).iloc[::9]
    for name, clips in dict(train=rows, a=rows[rows.device == 'a'], test=others).items():
        clips[['filename']].to_csv(folder/f'{name}.csv', index=False)
    return folder


def options_of(packed, lists, train='train', **options):
    names = dict(train_list=str(lists/f'{train}.csv'), test_list=str(lists/'test.csv'))
    return TrainingOptions(data_dir=str(packed[0].dir), **names, **SMALL | options)


class Stop(Callback):
    "Ends a training before an epoch"
    def __init__(self, epoch): self.last = epoch
    def before_epoch(self):
        if self.epoch == self.last: raise KeyboardInterrupt


def trained(folder, options, stop=None, resume=False):
    "What is learnt in a folder"
    data = read_training_data(options)
    checkpoint = Checkpoint(folder, run_config(options.as_dict(), data), resume)
    learn, fit = create_training(data, options, folder/'history.csv', cbs=[checkpoint, Stop(stop)])
    with learn.no_bar():
        if stop is None: fit()
        else:
            with pytest.raises(KeyboardInterrupt): fit()
    return learn


def same_weights(a, b):
    return all(torch.equal(value, b.model.state_dict()[name]) for name, value in a.model.state_dict().items())


@pytest.mark.parametrize('kind', KINDS)
def test_alignment_resumes_to_the_same_bits(kind, packed, lists, tmp_path):
    "The adversary is resumed with the rest; the column is in the history; no file of the model knows of it"
    options = options_of(packed, lists, alignment=KINDS[kind])
    whole = trained(tmp_path/'a', options)
    trained(tmp_path/'b', options, stop=1)
    again = trained(tmp_path/'b', options, resume=True)
    assert same_weights(whole, again)
    head = whole.alignment.head.state_dict()
    assert all(torch.equal(value, again.alignment.head.state_dict()[name]) for name, value in head.items())
    assert (tmp_path/'a/history.csv').read_text() == (tmp_path/'b/history.csv').read_text()
    assert pd.read_csv(tmp_path/'a/history.csv').alignment.notna().all()
    for name, learn in dict(a=whole, off=trained(tmp_path/'off', options_of(packed, lists))).items():
        save_model(learn.model.cpu(), tmp_path/name)
    files = [read_tensors(tmp_path/name/'model.safetensors', 'file').tensors for name in ('a', 'off')]
    assert set(files[0]) == set(files[1]) and not same_weights(whole, learn)


def test_alignment_with_all_that_it_goes_with(packed, lists, tmp_path):
    "bf16, windows, accumulated batches, averages, gradients clipped; the adversary's loss falls below that of chance"
    options = options_of(packed, lists, alignment=KINDS['adversarial'], precision='bf16', accumulate=2, ema=.9, clip=1.,
                         epochs=6)
    history = trained(tmp_path/'a', options).epoch_log.history
    assert all(0 < line['alignment'] < 3 for line in history)
    assert history[-1]['alignment'] < history[0]['alignment']


WRONG = {
    'mixup': (dict(alignment='mmd', steps=['mel', 'log', {'mixup': {'alpha': .3}}]), 'mixup.*two devices'),
    'target': (dict(alignment='mmd', target='device'), 'target .device., which is to be told and hidden'),
    'sharpness': (dict(alignment='mmd', sharpness='sam'), 'sharpness'),
    'compile': (dict(alignment='mmd', compile=True), 'compile'),
    'frozen': (dict(alignment='mmd', freeze='encoder'), 'freeze .encoder., which keeps the embeddings'),
    'probe': (dict(alignment='mmd', backbone='probe', frontend='encoder'),
              'pooling .mean., which has nothing to learn'),
    'kind': (dict(alignment='mdm'), 'did you mean mmd'),
    'key': (dict(alignment={'kind': 'mmd', 'hidden': 3}), "'hidden'"),
    'weight': (dict(alignment={'kind': 'adversarial', 'weight': -1.}), 'alignment weight=-1'),
    'hidden': (dict(alignment={'kind': 'adversarial', 'hidden': 0}), 'alignment hidden=0'),
}


@pytest.mark.parametrize('case', WRONG)
def test_alignments_that_are_refused(case):
    options, words = WRONG[case]
    with pytest.raises(InputError, match=words): check_training(TrainingOptions(**options))
    if case != 'compile':
        with pytest.raises(InputError, match=words): check_plan(TrainingOptions(**options).as_dict())


def test_alignment_needs_devices(packed, lists):
    with pytest.raises(InputError, match='1 devices are known in the training list'):
        read_training_data(options_of(packed, lists, 'a', alignment='mmd'))
    with pytest.raises(InputError, match="'zz'"):
        read_training_data(options_of(packed, lists, alignment={'kind': 'mmd', 'against': 'zz'}))
    data = read_training_data(options_of(packed, lists))
    _, fit = create_training(data, options_of(packed, lists, alignment={'kind': 'mmd', 'layer': 'conv9'}))
    with pytest.raises(InputError, match="layer of alignment 'conv9'"): fit()


@pytest.fixture(scope='module')
def aware(packed):
    "A small model with networks for two devices, and some training clips"
    corpus, store = packed
    rows = few(corpus)
    torch.manual_seed(0)
    general = create_classifier('cp_mobile_24', rate=store.rate, scenes=corpus.scenes, pipeline='none',
                                backbone_args=dict(base=8, blocks=(1, 1, 1), strides={})).eval()
    networks = {name: deepcopy(general.backbone) for name in ('a', 'b')}
    with torch.no_grad(): networks['b'].feed_forward[0].weight.mul_(-1)
    return DeviceAware(general, networks, corpus.devices).eval(), ClipData(store, rows, corpus.scenes, corpus.devices)


def test_each_device_network_is_quantised(aware, tmp_path):
    "As if each were alone; saved, opened as one, and close to float; a device like the general one costs no tensor"
    model, clips = aware
    singles = single_networks(model)
    forms = {}
    for name, single in singles.items():
        forms[name] = untrained_variants(single, calibration_batches(single, own_clips(clips, name), 16))
    whole = joined_networks({name: form['PTQ'] for name, form in forms.items()}, clips.devices)
    save_quantised(whole, tmp_path/'int8')
    opened = open_model(tmp_path/'int8')
    wave, device, _ = clips.batch(range(len(clips)))
    device[:3] = -1
    with torch.no_grad():
        answer, exact = opened.network(wave, device), model(wave, device)
        assert torch.equal(answer, whole(wave, device))
        own = forms['b']['PTQ'](wave)
    mine = device == clips.devices.index('b')
    assert opened.kind == 'device-wise int8' and mine.any()
    assert (answer[mine] - own[mine]).abs().max() < 1e-3
    assert (answer - exact).abs().max() < .1 * exact.abs().max()
    assert (answer[mine] - forms['']['PTQ'](wave)[mine]).abs().max() > 1e-3


def test_teachers_of_an_8_bit_network(aware, tmp_path):
    "The default is the float network; a file, a run, the student itself and the labels alone teach otherwise"
    model, clips = aware
    single = single_networks(model)['']
    form = untrained_variants(single, calibration_batches(single, clips, 16))
    g = torch.Generator().manual_seed(0)
    path = save_teacher(tmp_path/'t.safetensors', clips.rows.filename,
                        torch.randn(len(clips), len(clips.scenes), generator=g), clips.scenes)
    save_model(single_networks(model)['b'], tmp_path/'run')
    spoken = {}
    teachers = {'float': '', 'file': str(path), 'run': str(tmp_path/'run'), 'self': 'self', 'none': 'none'}
    for name, teacher in teachers.items():
        teaching = read_teaching(teacher, {}) or own_teaching(single)
        torch.manual_seed(0)
        taught = own_clips(clips, teacher=teaching.files)
        spoken[name] = predictions(train_quantised(form, taught, lr=1e-3, bs=16, teaching=teaching), clips)
    assert len({table[clips.scenes].to_numpy().tobytes() for table in spoken.values()}) == 5
