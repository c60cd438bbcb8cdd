"""Pipelines: every preset runs and is the frontend in eval; misplaced steps are refused; published values."""
import json

import pytest
import soundfile as sf
import torch
from scipy import stats

from asc.augment.sequence import Choice, parse_step
from asc.augment.pipeline import create_pipeline, Pipeline, pipelines
from asc.core import InputError
from asc.frontend.logmel import create_frontend

SHAPES = dict(
    none=(256, 65), dcase24=(256, 65), cp=(256, 64), cp_resnet=(256, 43), passt=(128, 100),
    easy_tfsepnet=(512, 64), easy_beats_ssl=(128, 98), easy_beats_ssl_star=(128, 98),
    easy_cnn3=(40, 51), dragonsearch=(128, 44), sp4asc=(256, 44), sp4asc_mixup=(256, 44),
)
PRESETS = list(pipelines)


@pytest.fixture(autouse=True)
def seed():
    "Every test draws the same numbers"
    torch.manual_seed(3)


@pytest.fixture(scope='module')
def waves():
    "Six clips of a second"
    return .1*torch.randn(6, 44100, generator=torch.Generator().manual_seed(0))


DEVICE = torch.tensor([0, 0, 0, 1, 4, -1])


def named(steps):
    "Name -> keywords of the steps"
    return dict(parse_step(s) for s in steps)


@pytest.mark.parametrize('name', PRESETS)
def test_preset(name, waves):
    pipe = create_pipeline(name, 44100)
    x = pipe(waves, DEVICE)
    assert x.shape == (6, 1, *SHAPES[name])
    assert x.dtype == torch.float32
    assert torch.isfinite(x).all()
    state = torch.get_rng_state()
    y = pipe.eval()(waves)
    assert torch.equal(torch.get_rng_state(), state), 'eval draws nothing'
    front = create_frontend(pipelines[name]['frontend']).eval()
    torch.testing.assert_close(y, front(pipe.ops['resample'](waves)), rtol=0, atol=0)
    assert torch.equal(y, create_pipeline(name, 44100, augment=False).eval()(waves))
    assert torch.equal(x, y) == (name in ('none', 'easy_cnn3'))


@pytest.mark.parametrize('name', PRESETS)
@pytest.mark.parametrize('quirks', [False, True])
def test_steps_are_data(name, quirks, waves):
    pipe = create_pipeline(name, 44100, quirks=quirks)
    again = Pipeline(
        create_frontend(pipelines[name]['frontend']), 44100, json.loads(json.dumps(pipe.steps))
    )
    assert again.steps == pipe.steps and not pipe.state_dict()
    torch.manual_seed(4)
    a = pipe(waves, DEVICE)
    torch.manual_seed(4)
    assert torch.equal(again(waves, DEVICE), a)
    if quirks and pipelines[name].get('quirks'):
        assert pipe.steps != create_pipeline(name, 44100).steps


def test_presets_are_not_changed_by_use():
    before = json.dumps(pipelines)
    create_pipeline('cp', 44100, quirks=True, dir={'p': .1}, roll=False)
    create_pipeline('dragonsearch', 44100, quirks=True, pitch_shift={'p': .1})
    assert json.dumps(pipelines) == before


@pytest.mark.parametrize(
    'name,order',
    [
        ('dcase24', 'roll resample mel freq_mask log freq_mixstyle'),
        ('cp', 'resample dir roll mel log freq_mask freq_mixstyle'),
        ('cp_resnet', 'resample dir roll mel log freq_mask freq_mixstyle'),
        ('passt', 'resample dir roll mel log freq_mask time_mask freq_mixstyle'),
        ('easy_tfsepnet', 'resample dir mel log freq_mixstyle mixup'),
        ('easy_beats_ssl', 'resample dir mel log freq_mixstyle freq_mask time_mask mixup'),
        ('easy_beats_ssl_star', 'resample mel log freq_mask time_mask mixup'),
        ('easy_cnn3', 'resample mel log'),
        ('dragonsearch', 'resample choice mel chosen log freq_mixstyle'),
        ('sp4asc', 'resample mel log time_mask freq_mask'),
        ('sp4asc_mixup', 'resample mel log mixup time_mask freq_mask'),
    ],
)
def test_published_order(name, order):
    assert ' '.join(named(pipelines[name]['steps'])) == order


@pytest.mark.parametrize(
    'name,step,values',
    [
        ('dcase24', 'roll', dict(reach=4410)),
        ('cp', 'roll', dict(reach=4000)),
        ('cp_resnet', 'roll', dict(reach=4000)),
        ('passt', 'roll', dict(reach=10000)),
        ('dcase24', 'freq_mixstyle', dict(p=.4, alpha=.3, lam='sample')),
        ('cp', 'freq_mixstyle', dict(p=.4, alpha=.3, lam='sample')),
        ('cp_resnet', 'freq_mixstyle', dict(p=.8, alpha=.4, lam='sample')),
        ('passt', 'freq_mixstyle', dict(p=.4, alpha=.4, lam='sample')),
        ('easy_tfsepnet', 'freq_mixstyle', dict(p=.8, alpha=.4, lam='batch')),
        ('easy_beats_ssl', 'freq_mixstyle', dict(p=.4, alpha=.4, lam='batch')),
        ('dragonsearch', 'freq_mixstyle', dict(p=.5, alpha=.2, lam='sample')),
        ('easy_tfsepnet', 'mixup', dict(alpha=.3, per='batch', p=1.)),
        ('easy_beats_ssl_star', 'mixup', dict(alpha=.3, per='batch')),
        ('sp4asc_mixup', 'mixup', dict(alpha=.2, per='batch')),
        ('dcase24', 'freq_mask', dict(size=48, n=1, fill=0.)),
        ('cp', 'freq_mask', dict(size=48, fill=.9)),
        ('passt', 'time_mask', dict(size=20, fill=.9)),
        ('sp4asc', 'freq_mask', dict(size=32, n=2)),
        ('sp4asc', 'time_mask', dict(size=128, n=2)),
        ('sp4asc_mixup', 'freq_mask', dict(size=16, n=2)),
        ('cp', 'dir', dict(p=.6, devices=[0])),
        ('cp_resnet', 'dir', dict(p=.4)),
        ('passt', 'dir', dict(p=.6)),
        ('easy_tfsepnet', 'dir', dict(p=.4, devices=[0])),
        ('easy_beats_ssl', 'dir', dict(p=.6, devices=[0])),
    ],
)
def test_published_values(name, step, values):
    "The published values, as the built modules have them at 44.1 kHz"
    pipe = create_pipeline(name, 44100)
    op = next(m for k, m in pipe.ops.items() if k.endswith(step))
    assert {k: getattr(op, k) for k in values} == values


def test_roll_is_counted_where_it_stands():
    ops_of = lambda steps: create_pipeline(steps, 44100).ops
    assert ops_of([{'roll': {'seconds': .1}}, 'resample', 'mel', 'log'])['0_roll'].reach == 4410
    assert ops_of(['resample', {'roll': {'seconds': .1}}, 'mel', 'log'])['1_roll'].reach == 3200
    before, after = (
        m.bank.irs
        for k, m in ops_of([{'dir': {}}, 'resample', {'dir': {}}, 'mel', 'log']).items()
        if 'dir' in k
    )
    # 1000 Hz to 500 Hz
    ratio = lambda irs, rate: (lambda h: h[:, 1000]/h[:, 500])(torch.fft.rfft(irs, rate).abs())
    # the same microphones
    assert torch.allclose(ratio(before, 44100), ratio(after, 32000), rtol=.05)
    assert not torch.allclose(ratio(before, 32000), ratio(after, 32000), rtol=.05)


@pytest.mark.parametrize(
    'steps,says',
    [
        (['resample', 'mel'], 'one each of resample'),
        (['mel', 'resample', 'log'], 'in this order'),
        (['resample', 'log', 'mel'], 'in this order'),
        (['resample', 'mel', 'mel', 'log'], 'one each'),
        ([], 'none'),
        (['mel', 'log'], "add the step 'resample'"),
        (['resample', 'mel', 'log', 'roll'], r"step 4 \(roll\)"),
        (['resample', 'mel', 'log', {'filter_augment': {}}], r"step 4 \(filter_augment\)"),
        (['freq_mixstyle', 'resample', 'mel', 'log'], r"step 1 \(freq_mixstyle\)"),
        (['resample', 'mel', 'freq_mixstyle', 'log'], r"step 3 \(freq_mixstyle\)"),
        ([{'freq_mask': {}}, 'resample', 'mel', 'log'], r"step 1 \(freq_mask\)"),
        (['resample', 'mel', 'log', 'blur'], "unknown augmentation 'blur'"),
        (['resample', {'mel': {'n_mels': 9}}, 'log'], r"step 2 \(mel\) takes no keywords"),
        (['resample', 'mel', {'log': {'eps': 1}}], 'takes no keywords'),
        ([['resample'], 'mel', 'log'], 'is no step'),
        ([{'roll': 3}, 'resample', 'mel', 'log'], 'is no step'),
        ([{'roll': {'p': 2}}, 'resample', 'mel', 'log'], 'roll: p=2'),
        (
            [{'choice': {'weights': [1, 1], 'steps': ['roll']}}, 'resample', 'mel', 'log'],
            '1 steps for 2 weights',
        ),
        (
            [{'choice': {'weights': [0], 'steps': ['roll']}}, 'resample', 'mel', 'log'],
            'none below 0',
        ),
        ([{'choice': {'steps': ['roll']}}, 'resample', 'mel', 'log'], 'needs steps and weights'),
        ([{'chosen': {'steps': ['roll']}}, 'resample', 'mel', 'log'], 'follows no choice'),
        (
            [{'choice': {'weights': [1], 'steps': ['freq_mask']}}, 'resample', 'mel', 'log'],
            r"step 1 \(freq_mask\)",
        ),
        (
            ['resample', 'mel', 'log', {'choice': {'weights': [1], 'steps': ['mixup']}}],
            'mixup needs whole batches',
        ),
    ],
)
def test_wrong_steps_are_refused(steps, says):
    with pytest.raises(InputError, match=says): create_pipeline(steps, 44100)


def test_other_wrong_calls():
    with pytest.raises(InputError, match="unknown pipeline 'dcase'"):
        create_pipeline('dcase', 44100)
    with pytest.raises(InputError, match='no step gain'):
        create_pipeline('cp', 44100, gain=False)
    with pytest.raises(InputError, match='irs'):
        create_pipeline('cp', 44100, dir={'folder': 'irs'})
    # prediction needs no responses
    create_pipeline(
        ['resample', {'dir': {'folder': 'not on this machine'}}, 'mel', 'log'],
        44100,
        augment=False,
    )


def test_equal_rates_need_no_resample(waves):
    pipe = create_pipeline(['mel', 'log'], 32000)
    assert torch.equal(pipe(waves), create_pipeline('none', 32000)(waves))
    assert not pipe.ops


def test_mel_jitter_is_a_switch(waves):
    spread = lambda **kw: (lambda pipe: (pipe(waves) - pipe(waves)).abs().max())(
        create_pipeline(['resample', {'mel': kw} if kw else 'mel', 'log'], 44100, 'cp')
    )
    assert spread() > .01
    assert spread(jitter=True) > .01
    assert spread(jitter=False) == 0
    pipe = create_pipeline(
        ['resample', {'mel': {'jitter': False}}, 'log'], 44100, 'cp'
    ).eval().train()
    assert not pipe.frontend.training


def test_choice_draws_by_weight_and_device():
    "dragonsearch: 40 % responses for device a, none for the others, the rest untouched; sets are exclusive"
    w = [.2, .2, .1, 0., .1, .1, .3]
    sets = named(pipelines['dragonsearch']['steps'])
    pipe = create_pipeline('dragonsearch', 44100, choice={'weights': w}, freq_mixstyle=False)
    choice, chosen = (m for m in pipe.ops.values() if isinstance(m, Choice))
    x, device = torch.ones(4000, 64), torch.arange(4000) % 2
    choice(x, device)
    count = lambda d: torch.bincount(choice.drawn[device == d], minlength=8)[:7].tolist()
    a, b = count(0), count(1)
    assert a[3] == 0
    every = 0, 1, 2, 4, 5, 6
    assert stats.chisquare([a[i] for i in every], [2000*w[i] for i in every]).pvalue > 1e-3
    assert b[0] == b[3] == 0
    rest = 1, 2, 4, 5, 6
    assert stats.chisquare([b[i] for i in rest], [2000*w[i]/.8 for i in rest]).pvalue > 1e-3
    m = torch.ones(4000, 40, 30)
    y = chosen(m, device)
    assert torch.equal(chosen.drawn, choice.drawn)
    masked = (y == 0).flatten(1).any(1)
    assert set(choice.drawn[masked].tolist()) == {1, 2}
    assert masked[(choice.drawn == 1) | (choice.drawn == 2)].float().mean() > .9
    assert sets['choice']['weights'] == [.4, 0, 0, 0, 0, 0, .6]
    assert len(sets['chosen']['steps']) == 7
    published = create_pipeline('dragonsearch', 44100).ops['1_choice']
    published(x, device)
    assert abs((published.drawn[device == 0] == 0).float().mean() - .4) < .04
    assert (published.drawn[device == 1] == 6).all()


def test_choice_with_nothing_left():
    steps = [
        {'choice': {'weights': [1.], 'steps': [{'dir': {'p': 1., 'devices': [0]}}]}},
        'resample',
        'mel',
        'log',
    ]
    choice = create_pipeline(steps, 44100).ops['0_choice']
    x = torch.randn(4, 200)
    assert (choice(x, torch.tensor([0, 1, 1, 0])) != x).any(1).tolist() == [
        True, False, False, True
    ]


def test_changes_reach_into_a_choice():
    steps = create_pipeline(
        'dragonsearch', 44100, dir={'keep_level': True}, pitch_shift=False
    ).steps
    inside = named(steps)['choice']['steps']
    assert inside[0]['dir'] == dict(p=1., devices=[0], keep_level=True)
    assert inside[3] is None
    assert len(inside) == 7


def test_a_folder_may_be_a_path(tmp_path):
    sf.write(tmp_path/'click.wav', [0., .5, 0.], 44100)
    pipe = create_pipeline('cp', 44100, dir={'folder': tmp_path, 'bank_rate': 'native'})
    assert named(pipe.steps)['dir']['folder'] == str(tmp_path)
    assert pipe.ops['1_dir'].bank.irs.tolist() == [[0., .5, 0.]]


def test_quirks():
    step = lambda name, key: next(
        m for k, m in create_pipeline(name, 44100, quirks=True).ops.items() if k.endswith(key)
    )
    # F3
    assert step('cp', 'freq_mask').per == 'batch'
    assert step('passt', 'time_mask').per == 'batch'
    # F4
    assert step('easy_beats_ssl', 'freq_mixstyle').dims == (1, 2)
    # the published fault: responses for 32 kHz on waves of 16 kHz
    wrong = step('easy_beats_ssl', 'dir').bank.irs
    right = create_pipeline('easy_beats_ssl', 44100).ops['1_dir'].bank.irs
    assert torch.equal(wrong, create_pipeline('cp', 44100).ops['1_dir'].bank.irs)
    assert not torch.equal(wrong, right)
    # F6
    assert step('dragonsearch', 'choice').ops[0].same


def test_time_axis_mixstyle_is_the_turned_one():
    "What easy-dcase did to BEATs' (T, F) spectrogram is frequency MixStyle of the turned one"
    from asc.augment.spec import FreqMixStyle
    x = torch.randn(5, 1, 128, 98)
    torch.manual_seed(1)
    a = FreqMixStyle(p=1, axis='time')(x)
    torch.manual_seed(1)
    b = FreqMixStyle(p=1)(x.transpose(2, 3)).transpose(2, 3)
    torch.testing.assert_close(a, b)


def test_resume_continues_the_draws(waves):
    pipe = create_pipeline('easy_beats_ssl', 44100)
    torch.manual_seed(0)
    a = [pipe(waves, DEVICE) for _ in range(4)]
    torch.manual_seed(0)
    for i in range(2): pipe(waves, DEVICE)
    state = torch.get_rng_state()
    fresh = create_pipeline('easy_beats_ssl', 44100)
    torch.set_rng_state(state)
    assert torch.equal(torch.stack([fresh(waves, DEVICE) for _ in range(2)]), torch.stack(a[2:]))


def test_precisions_and_copies(waves):
    import copy
    pipe = create_pipeline('cp', 44100)
    with torch.autocast('cpu', torch.bfloat16):
        assert pipe(waves, DEVICE).dtype == torch.float32
    torch.manual_seed(0)
    a = pipe(waves, DEVICE)
    torch.manual_seed(0)
    assert torch.equal(copy.deepcopy(pipe)(waves, DEVICE), a)
    # one clip will do
    assert torch.equal(pipe.eval()(waves[:1]), pipe(waves[:1]))


@pytest.mark.parametrize('name', PRESETS)
def test_real_clips(name, shared):
    "Seven genuine TAU snippets, 24-bit, through every preset, with the MicIRP responses where there are some"
    files = sorted((shared/'data/tau-samples').glob('*.wav'))
    x = torch.stack([torch.from_numpy(sf.read(f, dtype='float32')[0]) for f in files])
    device = torch.tensor(['abc'.find(f.stem[-1]) if f.stem[-2] == '-' else 8 for f in files])
    has_dir = 'dir' in json.dumps(pipelines[name]['steps'])
    pipe = create_pipeline(
        name,
        44100,
        **({'dir': {'folder': str(shared/'data/micirp'), 'p': 1.}} if has_dir else {}),
    )
    y, clean = pipe(x, device), pipe.eval()(x, device)
    assert torch.isfinite(y).all()
    assert y.shape == clean.shape == (7, 1, *SHAPES[name])
