"""What a training may be asked for, on the device as on the CPU: averages, rates, precisions, crops, teachers."""
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import torch

from asc.core import InputError, seed_everything
from asc.experiment.recipe import create_training
from asc.experiment.stacked import train_stacked
from asc.model.classifier import create_classifier, load_model, save_model
from asc.teach.logits import save_teacher
from asc.train.optimizers import optimizers
from asc.train.options import TrainingOptions
from emulated import DEVICE
from trainings import SMALL_CP, SMOOTH, STEPS, check_training_twice, ended_with, few_clips, train
from twins import assert_same, twice

PLAIN = dict(SMALL_CP, steps=STEPS, epochs=2, bs=4, lr=1e-2, seed=3)
CACHED = dict(cache=True, steps=['resample', {'mel': {'jitter': False}}, 'log', 'mixup'])
FEATURES = [dict(student='stages.s1', how='cosine'), dict(student='stages.s2', how='distance')]
WAYS = dict(
    plain={},
    averaged=dict(ema=.8, clip=.5),
    swa=dict(swa=.5),
    frozen=dict(freeze='encoder', freeze_epochs=1),
    by_layer=dict(lr_decay=.7, loss='focal'),
    best=dict(keep='best', patience=1, monitor='accuracy'),
    cached=CACHED,
    windows=dict(crop='windows'),
    shifted=dict(crop='shifted'),
    devices=dict(target='device'),
    unwatched=dict(valid=0.),
)
TAUGHT = dict(
    by_file=dict(teacher='file', distill=dict(temperature=3.)),
    by_files=dict(teacher='files'),
    live=dict(teacher='run', distill=dict(features=FEATURES), crop='windows'),
    clean=dict(teacher='run', distill=dict(sees='clean')),
    itself=dict(teacher='self', distill=dict(decay=.9, features=FEATURES)),
    cached=dict(CACHED, teacher='run'),
)


@pytest.fixture(scope='module')
def clips(packed): return few_clips(packed, 8)


@pytest.fixture(scope='module')
def teachers(clips, tmp_path_factory):
    "Logits in a file, in two, a run, and the word for itself"
    folder = tmp_path_factory.mktemp('teacher')
    seed_everything(5)
    save_model(create_classifier(rate=clips.store.rate, scenes=clips.names, **SMALL_CP), folder/'run')
    names = [*clips.train.filename, *clips.valid.filename]
    files = [str(folder/f'{i}.safetensors') for i in range(2)]
    for path in files: save_teacher(path, names, torch.randn(len(names), 10), clips.names)
    return dict(run=str(folder/'run'), file=files[0], files=files, self='self')


def target_of(clips, options):
    "Clips whose names are those of what is classified"
    return replace(clips, names=clips.devices) if options.get('target') == 'device' else clips


@pytest.mark.parametrize('way', WAYS)
def test_way(way, clips, tmp_path):
    options = PLAIN | WAYS[way]
    check_training_twice(target_of(clips, options), tmp_path, **options)


@pytest.mark.parametrize('way', TAUGHT)
def test_taught(way, clips, teachers, tmp_path):
    options = PLAIN | TAUGHT[way]
    check_training_twice(clips, tmp_path, **options | dict(teacher=teachers[options['teacher']]))


def test_begun_with_another(clips, teachers, tmp_path):
    check_training_twice(clips, tmp_path, **PLAIN, init_from=teachers['run'])


@pytest.mark.parametrize('precision, kind', [('bf16', torch.bfloat16), ('fp16', torch.float16)])
def test_sixteen_bits(precision, kind, clips, tmp_path, emulated):
    "Convolutions in 16 bits, the weights in 32, and it learns what it learns in 32"
    emulated.refused.clear()                               # the scaler of fp16 divides in float64, but on Apple's
    seen = set()
    exact = train(clips, DEVICE, tmp_path, **PLAIN)

    def listen(place):
        learn, fit = create_training(clips, TrainingOptions(**PLAIN, precision=precision))
        learn.model.backbone.in_c[0][0].register_forward_hook(lambda layer, x, y: seen.add(y.dtype))
        with learn.no_bar(): fit()
        return learn
    learn = twice(listen)[1]
    assert kind in seen
    assert {weight.dtype for weight in learn.model.parameters()} == {torch.float32}
    assert learn.recorder.values[-1][0] == pytest.approx(exact.recorder.values[-1][0], rel=.1)


def test_fp16_is_refused_on_a_cpu_alone(clips):
    with pytest.raises(InputError, match='fp16'):
        create_training(clips, TrainingOptions(**PLAIN, precision='fp16', device='cpu'))


def test_compiling_is_refused(clips):
    "PyTorch compiles nothing for this device"
    learn, fit = create_training(clips, TrainingOptions(**PLAIN, compile=True))
    with pytest.raises(InputError, match='cannot compile for emulated'), learn.no_bar(): fit()


def test_seeds_at_once(clips, tmp_path):
    "Two seeds in one stack, on the device and on the CPU; and each alone"
    options = PLAIN | dict(backbone='cnn3', frontend='cnn3', backbone_args={}, ema=.9)

    def stack(place):
        def make(seed):
            chosen = TrainingOptions(**options | dict(seed=seed, device=place.type))
            with patch.dict(optimizers, SMOOTH): return create_training(clips, chosen, tmp_path/f'{seed}.csv')
        return [ended_with(learn) for learn in train_stacked([partial(make, seed) for seed in range(2)], place.type)]
    ours, theirs = twice(stack)
    assert_same(ours, theirs)
    for seed in range(2):
        alone = train(clips, DEVICE, tmp_path, **options | dict(seed=seed))
        assert_same([weight.cpu() for weight in ended_with(alone).values()], theirs[seed], 1e-3)


def test_seeds_of_another_device_are_refused(clips):
    "Trainings that were made for one device, stacked for another"
    options = TrainingOptions(**PLAIN | dict(backbone='cnn3', frontend='cnn3', backbone_args={}, device='cpu'))
    with pytest.raises(InputError, match='a training was made for cpu'):
        train_stacked([partial(create_training, clips, options)] * 2, 'emulated')


def test_the_rate_is_looked_for(clips, tmp_path):
    "`lr_find` suggests what it suggests on the CPU, and what follows is trained"
    def search(place):
        learn, fit = create_training(clips, TrainingOptions(**PLAIN, device=place.type), tmp_path/'history.csv')
        learn.path = tmp_path
        with learn.no_bar():
            found = learn.lr_find(num_it=6, show_plot=False)
            fit()
        return torch.tensor(found.valley, device=place), learn.model.state_dict()
    assert_same(*twice(search), tolerance=1e-3)


def test_a_learner_is_looked_at(clips, tmp_path):
    "fastai's other doors: a summary, a batch in pictures, predictions, losses, and a model folder"
    learn = train(clips, DEVICE, tmp_path, **PLAIN | dict(epochs=1))
    learn.path = tmp_path
    with learn.no_bar():
        assert 'Total params' in str(learn.summary())
        learn.dls.show_batch()
        learn.show_results()
        probabilities, targets = learn.get_preds()
        learn.save('weights', with_opt=True)
        learn.load('weights')
    assert probabilities.device.type == targets.device.type == 'cpu'
    assert_same([weight.cpu() for weight in learn.model.state_dict().values()],
                [weight.to(DEVICE) for weight in load_model(learn.export('folder')).state_dict().values()])
