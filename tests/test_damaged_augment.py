"""Numbers that an augmentation cannot mean: each is refused when it is made, by step and keyword."""
import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from torch import nn

from asc.augment.impulse import DIR, synthetic_bank
from asc.augment.mixup import mix_teacher
from asc.augment.pipeline import create_pipeline
from asc.augment.sequence import Choice
from asc.augment.spec import ChannelMixStyle, FilterAugment, FreqGain, FreqMask, FreqMixStyle, TimeMask
from asc.augment.wave import Gain, PitchShift, TimeRoll, draw_shifts
from asc.augment.zoo import augments, create_augment
from asc.experiment.cells import sweep_cells
from asc.experiment.checks import check_training
from asc.experiment.labelled import LabelledFiles
from asc.score.metrics import expected_calibration_error, metrics, reliability
from asc.train.options import TrainingOptions
from asc.use.verdicts import heard_seconds, predict_whole

NAN, INF = float('nan'), float('inf')
WRONG_P = [-.1, 1.1, 2, NAN, INF, -INF, 'often', None, True, [.5]]
WRONG_ALPHA = [0, 0., -1, -1e-9, 1e-30, NAN, INF, 1e30, '0.3', None, True]
WRONG_SIZE = [-1, -.5, NAN, INF, -INF, 1, 1., 1.5, 2.5, 1e30, '48', None, True, [48]]

KEYWORDS = {
    'roll': dict(seconds=[-1, NAN, INF, 1e9, '0.1', None, True], rate=[0, -1, 1, NAN, INF, 44100.5, 10**9, '44100']),
    'gain': dict(low=[0, -1, NAN, INF, 1e-30, 3., '0.5', None], high=[0, -2, NAN, INF, .1, 1e30, None, True]),
    'pitch_shift': dict(semitones=[[], NAN, INF, -INF, 100, -100, [1, NAN], [1, '2'], 'up', None, True, [None], [[1]]]),
    'dir': dict(
        devices=[[], [-1], [.5], [True], 'a', ['a'], 0, [NAN], {}],
        bank_rate=[0, -1, NAN, INF, 1, 10**9, 'own', '', True, [32000]],
        rate=[0, -1, NAN, INF, 'x'], seed=[-1, .5, NAN, 'x', None, True, 10**30],
        exclude=['phone', ['phone'], [1], 3, None], keep_level=['no', 0, 1, None], mode=['valid', '', None, 1]),
    'filter_augment': dict(
        db=[-1, NAN, INF, 1e3, '6', None, True], width=[0, -1, .5, NAN, INF, '6', None, True],
        bands=[(3, 2), (0, 2), (3,), (1, 2, 3), (), (1, INF), (NAN, 3), (1.5, 3), ('1', '3'), 3, '36', None, (True, 2)],
        kind=['cubic', '', None, 1]),
    'spectrum_modulation': dict(source=[-1, .5, NAN, 'a', None, True, [0]], floor=[0, -1, NAN, INF, 2., '1', None]),
    'freq_gain': dict(db=[-1, NAN, INF, 1e3, '6', None], width=[0, -1, .5, NAN, INF, '6', None]),
    'freq_mask': dict(size=WRONG_SIZE, n=[0, -1, .5, 1.5, NAN, INF, 10**9, '2', None, True],
                      fill=[NAN, INF, -INF, 1e30, 'median', '', None, True, [0]], per=['epoch', '', None, 1]),
    'time_mask': dict(size=WRONG_SIZE, n=[0, -1], fill=[NAN, INF], per=['clip']),
    'freq_mixstyle': dict(alpha=WRONG_ALPHA, lam=['class', None, .5], cross=['no', 1, None], axis=['tempo', None]),
    'channel_mixstyle': dict(alpha=[0, NAN, INF, -1], lam=['class'], cross=['yes', 0]),
    'mixup': dict(alpha=WRONG_ALPHA, lam=['device', '', None, 1]),
}
CASES = [(step, key, value) for step, table in KEYWORDS.items() for key, values in table.items() for value in values]
CASES += [(step, 'p', value) for step in KEYWORDS for value in WRONG_P]


@pytest.mark.parametrize('step,key,value', CASES, ids=str)
def test_keyword_is_refused_by_the_class(step, key, value, damage):
    damage('augmentation', lambda: augments[step](**{key: value}), [step, key])


DOORS = [(step, key, values[i]) for step, table in KEYWORDS.items() for key, values in (*table.items(), ('p', WRONG_P))
         for i in (0, -1)]


@pytest.mark.parametrize('step,key,value', DOORS, ids=str)
def test_keyword_is_refused_by_name(step, key, value, damage):
    damage('augmentation', lambda: create_augment(step, **{key: value}), [step, key])


PLACE = dict(roll=0, gain=0, pitch_shift=0, dir=0, filter_augment=2, freq_gain=2, spectrum_modulation=2)


def steps_with(step, keywords):
    "A pipeline in which this step stands where it may"
    steps = ['resample', 'mel', 'log']
    steps.insert(PLACE.get(step, 3), {step: keywords})
    return steps


RECIPES = [case for case in DOORS if case[1] == 'p' or case[2] is not None][::2]


@pytest.mark.parametrize('step,key,value', RECIPES, ids=str)
def test_keyword_is_refused_in_a_recipe(step, key, value, damage):
    def call(): check_training(TrainingOptions(steps=steps_with(step, {key: value})))
    damage('augmentation in a recipe', call, [step if value == value else 'steps', key])


WEIGHTS = [[1, -1], [0, 0], [NAN, 1], [INF, 1], [1e-30, 0], [True, 1], ['1', 1], [1], [1, 1, 1], [], None, 1, 'ab',
           [None, 1]]


@pytest.mark.parametrize('weights', WEIGHTS, ids=str)
@pytest.mark.parametrize('door', ['class', 'pipeline'])
def test_weights_of_a_choice_are_refused(door, weights, damage):
    choice = {'choice': {'weights': weights, 'steps': ['roll', None]}}
    calls = {'class': lambda: Choice([nn.Identity(), nn.Identity()], weights),
             'pipeline': lambda: create_pipeline([choice, 'resample', 'mel', 'log'])}
    damage('choice', calls[door], ['choice', 'weights'])


PIPELINES = {
    'no list': dict(name=3), 'no name': dict(name=None), 'table': dict(name={'roll': {}}), 'empty': dict(name=[]),
    'null step': dict(name=[None, 'resample', 'mel', 'log']), 'empty step': dict(name=['', 'resample', 'mel', 'log']),
    'set': dict(name=[{'roll': {'p': {1}}}, 'resample', 'mel', 'log']), 'rate 0': dict(rate=0),
    'rate -1': dict(rate=-1),
    'rate NaN': dict(rate=NAN), 'rate text': dict(rate='44100'), 'rate half': dict(rate=44100.5),
    'change True': dict(roll=True), 'change None': dict(roll=None), 'change number': dict(roll=.5),
    'change list': dict(roll=[.5]), 'change text': dict(roll='off'), 'change 0': dict(roll=0),
    'change p': dict(roll=dict(p=7)), 'jitter text': dict(mel=dict(jitter='no')), 'jitter 1': dict(mel=dict(jitter=1)),
    'no mel': dict(mel=False), 'augment text': dict(augment='no'), 'quirks 1': dict(quirks=1),
    'steps of roll': dict(name=[{'roll': {'steps': 3}}, 'resample', 'mel', 'log']),
    'steps of choice': dict(name=[{'choice': {'weights': [1], 'steps': 'roll'}}, 'resample', 'mel', 'log']),
}


@pytest.mark.parametrize('name', PIPELINES)
def test_pipeline_is_refused(name, damage):
    damage('pipeline', lambda: create_pipeline(**PIPELINES[name]))


FUNCTIONS = {
    'no responses': (lambda: synthetic_bank(32000, 0), 'n'), 'half a response': (lambda: synthetic_bank(32000, 1.5),
    'n'),
    'rate of a bank': (lambda: synthetic_bank(0), 'rate'), 'seed of a bank': (lambda: synthetic_bank(32000, seed=-1),
    'seed'),
    'no shifts': (lambda: draw_shifts(2, 100, ()), 'seconds'), 'NaN shift': (lambda: draw_shifts(2, 100, (NAN,)),
    'seconds'),
    'temperature 0': (lambda: mix_teacher(torch.zeros(1, 2), torch.ones(1), torch.tensor([0]), 0.), 'temperature'),
    'temperature NaN': (lambda: mix_teacher(torch.zeros(1, 2), torch.ones(1), torch.tensor([0]), NAN), 'temperature'),
}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_number_is_refused(name, damage):
    call, parameter = FUNCTIONS[name]
    damage('augmentation', call, [parameter])


def test_off_is_off_and_published_values_stay():
    "0 switches off where it says so, NumPy's numbers are numbers, and what papers use is inside"
    x = torch.rand(3, 1, 8, 9)
    for mask in (FreqMask(0), TimeMask(0, p=0), FreqMask(np.int64(2), n=np.int32(2)), TimeMask(np.float32(.2))): mask(x)
    for step in (FreqMixStyle(p=0), ChannelMixStyle(alpha=1)): step(x)
    for step in (FilterAugment(db=0), FreqGain(db=np.float64(3), width=1)): assert step(x[:, 0]).isfinite().all()
    for step in (TimeRoll(0), Gain(.5, .5), PitchShift(-2)): assert step(torch.rand(2, 4096)).isfinite().all()
    assert DIR(devices=range(2), bank_rate='native').devices == [0, 1]


# plans, tables and folders that ask for what cannot be

PLANS = {
    'subset 7': (dict(subsets=[25, 7]), ['easy-cnn3-split7', '7']), 'subset 0': (dict(subsets=[0]), ['split0']),
    'subset text': (dict(subsets=['all']), ['subset']), 'seed -1': (dict(seeds=[0, -1]), ['easy-cnn3-seed-1', 'seed']),
    'seed .5': (dict(seeds=[.5]), ['seed']), 'seed NaN': (dict(seeds=[NAN]), ['seed']),
    'seed 1e30': (dict(seeds=[10**30]), ['seed']), 'seeds 3': (dict(seeds=3), ['seeds']),
    'seeds text': (dict(seeds='012'), ['seeds']), 'recipes text': (dict(recipes='easy-cnn3'), ['recipes']),
    'no recipe': (dict(recipes=['easy-cnn4']), ['easy-cnn4']), 'cells 3': (dict(cells=3), ['cells']),
    'parameters 3': (dict(parameters=3), ['parameters']), 'twice': (dict(seeds=[1, 1]), ['seed1']),
}
PARAMETERS = {
    'epoch': 3, 'epochs': 0, 'lr': -1., 'bs': 0, 'valid': .9, 'backbone': 'cnn4', 'frontend': 'mel',
    'pipeline': 'dcase25',
    'steps': [{'roll': {'p': 2}}, 'mel', 'log'], 'backbone_args': {'q': 1}, 'frontend_args': {'q': 1}, 'loss': 'mse',
    'optimizer': 'sgd2', 'schedule': 'up', 'ema': 1., 'precision': 'int4', 'join': 0, 'crop': 'left', 'keep': 'first',
    'distill': {'temperature': 0}, 'resume': True, 'out': 'x', 'wd': NAN, 'clip': INF, 'freeze_epochs': 2,
    'target': 'sound',
}


@pytest.mark.parametrize('name', PLANS)
def test_plan_is_refused(name, damage):
    "A sweep is refused as a whole, before a run is begun"
    keywords, names = PLANS[name]
    damage('sweep', lambda: sweep_cells(**dict(recipes=['easy-cnn3']) | keywords), names)


@pytest.mark.parametrize('name', PARAMETERS)
@pytest.mark.parametrize('door', ['parameters', 'cells'])
def test_parameter_of_a_plan_is_refused(door, name, damage):
    given = {name: PARAMETERS[name]}
    keywords = dict(cells=[dict(given, name='mine')]) if door == 'cells' else dict(parameters=given)
    named = {'steps': 'roll: p=2'}.get(name, name.removesuffix('_args'))
    damage('sweep', lambda: sweep_cells(['easy-cnn3'], **keywords), [named])


def test_a_plan_does_without_files_that_are_yet_to_come():
    "A cell may begin with what another will have trained, and ask for a device that the planner has not"
    cell = dict(recipe='easy-cnn3', name='second', init_from='runs/sweep/first', compile=True, precision='fp16')
    assert [cell.name for cell in sweep_cells(cells=[cell])] == ['second']


TABLE = pd.DataFrame(dict(filename=['a', 'b'], scene_label=['bus', 'tram'], device='a', city='oslo', bus=[.9, .2],
                          tram=[.1, .8]))
TABLES = {
    **{f'{bins} bins': (lambda bins=bins: reliability(TABLE, bins), 'bins')
           for bins in (0, -1, 1.5, NAN, INF, '9', True)},
    'calibration': (lambda: expected_calibration_error(TABLE, 0), 'bins'),
    'scenes twice': (lambda: metrics(TABLE, ['bus', 'tram', 'bus']), 'scenes'),
    'column twice': (lambda: metrics(pd.concat([TABLE, TABLE[['bus']]], axis=1)), 'bus'),
    'no table': (lambda: metrics({'bus': [1]}), 'predictions'), 'a list': (lambda: metrics([1]), 'predictions'),
    'no labels': (lambda: metrics(TABLE[['bus', 'tram']]), 'filename'),
    'groups of letters': (lambda: metrics(TABLE, groups=dict(known='abc')), 'groups'),
    'groups a list': (lambda: metrics(TABLE, groups=['a']), 'groups'),
    'device in two': (lambda: metrics(TABLE, groups=dict(known=['a'], other=['a', 'b'])), "'a'"),
    'NaN': (lambda: metrics(TABLE.assign(bus=NAN)), 'bus'), 'infinite': (lambda: metrics(TABLE.assign(bus=INF)), 'bus'),
    'negative': (lambda: metrics(TABLE.assign(bus=-.1, tram=1.1)), 'bus'),
}


@pytest.mark.parametrize('name', TABLES)
def test_table_is_refused(name, damage):
    call, parameter = TABLES[name]
    damage('table of predictions', call, [parameter])


LABELLED = [dict(rate=0), dict(rate=NAN), dict(rate=-1), dict(samples=0), dict(samples=-1), dict(samples=1.5),
            dict(samples=10**12), dict(scenes=[]), dict(scenes='bus'), dict(scenes=['bus', 'bus']),
            dict(folder='nowhere')]


@pytest.mark.parametrize('wrong', LABELLED, ids=str)
def test_labelled_folder_is_refused(wrong, damage, tmp_path):
    sf.write(tmp_path/'bus-oslo-1-1-0-a.wav', np.full(800, .1), 800)
    given = dict(folder=tmp_path, rate=800, samples=800, scenes=['bus', 'tram']) | wrong
    damage('labelled folder', lambda: LabelledFiles(**given), ['sounds' if 'folder' in wrong else next(iter(wrong))])


# sounds heard as a whole

class Level(nn.Module):
    "Answers with the loudest sample and the length it was given"
    scenes, sample_rate = ['bus', 'tram'], 800

    def forward(self, wave):
        length = torch.full((len(wave),), wave.shape[1] / 800)
        return torch.stack([length, wave.abs().amax(1)], 1).log().softmax(1).log()


def test_a_sound_heard_as_a_whole_is_as_long_as_it_is(tmp_path):
    "A FLAC whose header does not say how many samples it has, or a pipe's wav, is read to its end"
    path = tmp_path/'bus-oslo-1-1-0-a.flac'
    sf.write(path, np.full(1600, .5), 800)
    data = path.read_bytes()
    unknown = int.from_bytes(data[18:26], 'big') >> 36 << 36
    path.write_bytes(data[:18] + unknown.to_bytes(8, 'big') + data[26:])
    assert heard_seconds(path) == 2
    answer = predict_whole(Level(), [path], ['a'])
    assert answer[['bus', 'tram']].to_numpy()[0] == pytest.approx([.8, .2], abs=1e-3)      # 2 s : 0.5


@pytest.mark.parametrize('format', ['WAV', 'AIFF', 'AU'])
@pytest.mark.parametrize('subtype', ['PCM_16', 'PCM_24', 'PCM_32', 'FLOAT', 'DOUBLE'])
@pytest.mark.parametrize('channels', [1, 3])
def test_a_cut_file_is_said_to_promise_what_it_did(channels, subtype, format, damage, tmp_path):
    path = tmp_path/f'cut.{format.lower()}'
    sf.write(path, np.full((800, channels), .1), 800, subtype, format=format)
    path.write_bytes(path.read_bytes()[:1000 * channels + 1])
    damage('cut sound', lambda: heard_seconds(path), ['cut', 'promises 800 samples'])
