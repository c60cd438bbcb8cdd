"""Every augmentation against its distribution, its identity in eval and its seed; impulse responses against SciPy."""
import numpy as np
import pytest
import soundfile as sf
import torch
import torchaudio
import fastai.callback.all  # noqa: no_bar, lr_find
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from scipy import stats
from torch import nn

from asc.augment.impulse import DIR, load_bank, synthetic_bank
from asc.augment.mixup import MixUp, mix_teacher
from asc.augment.spec import ChannelMixStyle, FilterAugment, FreqGain, FreqMask, FreqMixStyle, TimeMask
from asc.augment.wave import Gain, PitchShift, TimeRoll, draw_shifts, random_windows
from asc.augment.wave import shift_pitch, shifted_starts, wrapped
from asc.augment.zoo import augments, create_augment
from asc.core import InputError, seed_everything
from asc.train.targets import MixUpLoss

SHAPES = {'wave': (12, 4000), 'mel': (12, 64, 20), 'spec': (12, 1, 64, 20)}
PLACES = [(name, stage) for name, cls in augments.items() for stage in SHAPES if stage in cls.stage]
LIKELY = 1e-3  # a statistical test with a fixed seed fails below this p-value
# keywords that make something happen on small batches
MUCH = {
    'freq_mixstyle': dict(p=1), 'channel_mixstyle': dict(p=1), 'pitch_shift': dict(p=1),
    'freq_mask': dict(size=30), 'time_mask': dict(size=15), 'roll': dict(seconds=.02),
    'dir': dict(p=1), 'spectrum_modulation': dict(p=1),
}


def made(name, **keywords):
    "An augmentation that is ready; one that is measured in a training has drawn differences of spectra"
    aug = create_augment(name, **MUCH.get(name, {}) | keywords)
    if name == 'spectrum_modulation': aug.take(torch.randn(5, 64))
    return aug


@pytest.fixture(autouse=True)
def seed():
    "Every test draws the same numbers"
    torch.manual_seed(5)


def example(stage):
    "A batch as this stage of the pipeline has it"
    return torch.rand(SHAPES[stage]) + .1


def uniform(draws, n):
    "p-value of whole numbers being uniform on 0 … n-1"
    return stats.chisquare(np.bincount(np.asarray(draws), minlength=n)).pvalue


def close(a, b, **kw):
    "torch's comparison, which shows what differs"
    torch.testing.assert_close(a, b, **kw)


# ---- rules all of them keep

@pytest.mark.parametrize('name,stage', PLACES)
def test_identity_in_eval_and_at_p0(name, stage):
    x, device = example(stage), torch.zeros(12, dtype=torch.long)
    before = x.clone()
    aug = made(name)
    y = aug(x, device)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert torch.isfinite(y).all()
    assert (y - x).abs().max() > 1e-3, 'does nothing in training'
    assert torch.equal(x, before), 'its input was changed in place'
    assert aug.eval()(x, device) is x
    assert create_augment(name, p=0)(x, device) is x


@pytest.mark.parametrize('name,stage', PLACES)
def test_seeded_by_torch_alone(name, stage):
    x, aug, device = example(stage), made(name), torch.zeros(12, dtype=torch.long)
    torch.manual_seed(1)
    first, state = aug(x, device), torch.get_rng_state()
    second = aug(x, device)
    np.random.seed(9)
    torch.manual_seed(1)
    close(aug(x, device), first, rtol=0, atol=0)
    torch.set_rng_state(state)
    close(aug(x, device), second, rtol=0, atol=0)
    assert not torch.equal(first, second)


@pytest.mark.parametrize('name', augments)
def test_nothing_to_save(name):
    assert not create_augment(name).state_dict()


@pytest.mark.parametrize(
    'name',
    ['roll', 'gain', 'pitch_shift', 'dir', 'filter_augment', 'freq_gain', 'freq_mask', 'time_mask'],
)
def test_p_is_per_clip(name):
    stage = next(s for s in SHAPES if s in augments[name].stage)
    x = torch.rand(2000, *((256,) if stage == 'wave' else (64, 64))) + .1
    options = {}
    if name == 'pitch_shift': options = dict(semitones=12)
    if name == 'roll': options = dict(seconds=1)
    if 'mask' in name: options = dict(size=64)
    if name == 'pitch_shift': x = torch.rand(300, 2000) + .1
    changed = (create_augment(name, **options, p=.3)(x) != x).flatten(1).any(1).sum().item()
    assert stats.binomtest(changed, len(x), .3 if 'mask' not in name else .3*63/64).pvalue > LIKELY


@pytest.mark.parametrize('name', ['freq_mixstyle', 'channel_mixstyle', 'mixup'])
def test_p_is_per_batch(name):
    x, aug = torch.rand(8, 1, 6, 4), create_augment(name, p=.3)
    share = [(aug(x) != x).any().item() for _ in range(1500)]
    assert stats.binomtest(sum(share), 1500, .3).pvalue > LIKELY


@pytest.mark.parametrize(
    'name,kw',
    [
        ('roll', dict(seconds=-1)),
        ('gain', dict(low=2, high=1)),
        ('freq_mask', dict(size=-3)),
        ('freq_mask', dict(fill='median')),
        ('freq_mask', dict(per='epoch')),
        ('freq_mixstyle', dict(alpha=0)),
        ('freq_mixstyle', dict(lam='class')),
        ('freq_mixstyle', dict(axis='tempo')),
        ('mixup', dict(alpha=-1)),
        ('dir', dict(mode='valid')),
        ('dir', dict(folder='no such folder')),
        ('filter_augment', dict(bands=(3, 2))),
        ('freq_gain', dict(width=0)),
        ('roll', dict(p=2)),
        ('time_mask', dict(widht=3)),
    ],
)
def test_bad_keywords(name, kw):
    with pytest.raises(InputError): create_augment(name, **kw)


# ---- waves

def test_roll_is_uniform_and_inclusive():
    x = torch.zeros(6000, 200)
    x[:, 0] = 1
    shift = (TimeRoll(.01, 1000)(x).argmax(1) + 100) % 200 - 100
    assert shift.min() == -10
    assert shift.max() == 10
    assert uniform(shift + 10, 21) > LIKELY


def test_roll_is_a_roll_even_beyond_the_clip():
    x = torch.rand(40, 37)
    y = TimeRoll(9., 100)(x)  # 900 samples asked of a clip of 37
    for a, b in zip(x, y): assert any(torch.equal(a.roll(k), b) for k in range(37))


def test_gain_is_uniform_in_db():
    db = 20*Gain(.1, 10)(torch.ones(4000, 1))[:, 0].log10()
    assert stats.kstest(db, stats.uniform(-20, 40).cdf).pvalue > LIKELY


@pytest.mark.parametrize('semitones', [-12, -7, -2, -.5, .5, 2, 7, 12])
def test_pitch_shift_moves_a_tone(semitones):
    t = torch.arange(32000)/32000
    y = shift_pitch(torch.sin(2*torch.pi*1000*t)[None], semitones)[0]
    assert y.shape == t.shape
    spec = torch.fft.rfft(y*torch.hann_window(32000)).abs()
    hz, want = spec.argmax().item(), 1000*2**(semitones/12)
    assert abs(hz - want) <= 1 + .001*want
    # still one tone
    assert spec[int(want)-30:int(want)+30].square().sum() > .95*spec.square().sum()


def test_pitch_shift_draws_each_value():
    t = torch.arange(4000)/8000
    y = PitchShift((-12, 12), p=.5)(torch.sin(2*torch.pi*1000*t)[None].repeat(400, 1))
    hz = torch.fft.rfft(y*torch.hann_window(4000)).abs().argmax(1)*2
    counts = [((hz - f).abs() < 20).sum().item() for f in (500, 1000, 2000)]
    assert sum(counts) == 400
    assert stats.chisquare(counts, [100, 200, 100]).pvalue > LIKELY


def test_random_windows_are_uniform():
    frames = torch.tensor([30, 14, 10]).repeat(4000)
    start = random_windows(frames, 10).view(-1, 3)
    assert uniform(start[:, 0], 21) > LIKELY
    assert uniform(start[:, 1], 5) > LIKELY
    assert (start[:, 2] == 0).all()
    g = torch.Generator().manual_seed(3)
    a, state = random_windows(frames, 10, g), g.get_state()
    b = random_windows(frames, 10, g)
    assert torch.equal(random_windows(frames, 10, torch.Generator().manual_seed(3)), a)
    assert torch.equal(random_windows(frames, 10, torch.Generator().set_state(state)), b)


@pytest.mark.parametrize('rate', [44100, 32000, 16000])
def test_shifted_crops_are_a_roll_and_a_cut(rate):
    "All nine shifts of a 10-s recording, against rolling and cutting it; two published faults must not return"
    recording = torch.arange(10*rate)
    for tenths in range(1, 10):
        shift = tenths*rate//10
        start = shifted_starts(torch.arange(10), 10*rate, rate, shift)
        assert torch.equal(
            recording[wrapped(start, rate, 10*rate)], recording.roll(shift).view(10, rate)
        )
        # a second apart: in one published code it was a sample
        assert (start.diff() % (10*rate) == rate).all()
    drawn = draw_shifts(4500, rate)
    # tenths of a second at the recording's rate: in one published code at another rate
    assert uniform(drawn*10//rate - 1, 9) > LIKELY
    assert (drawn % (rate//10) == 0).all()


def test_shifted_crops_of_uneven_recordings():
    start = shifted_starts(
        torch.tensor([0, 0, 4]), torch.tensor([500, 300, 500]), 100, torch.tensor([10, 90, 30])
    )
    assert start.tolist() == [490, 210, 370]
    assert wrapped(start, 100, torch.tensor([500, 300, 500]))[:, -1].tolist() == [89, 9, 469]


# ---- impulse responses

def test_dir_is_the_full_convolution():
    x = torch.randn(9, 3000)
    aug = DIR(p=1, rate=32000).bank
    which = torch.randint(len(aug), (9,))
    want = np.stack([np.convolve(a, aug.irs[k])[:3000] for a, k in zip(x.numpy(), which)])
    np.testing.assert_allclose(aug.convolve(x, which), want, atol=1e-4)
    # another clip length
    want = np.stack([np.convolve(a, aug.irs[k])[:700] for a, k in zip(x[:, :700].numpy(), which)])
    np.testing.assert_allclose(aug.convolve(x[:, :700], which), want, atol=1e-4)


def test_dir_of_an_impulse_is_the_response(shared):
    aug = DIR(p=1, rate=32000, folder=shared/'data/micirp').bank
    x, which = torch.zeros(66, 32000), torch.arange(66)
    x[:, 1000] = 1
    y = aug.convolve(x, which)
    close(y[:, 1000:17000], aug.irs[:, :16000], atol=1e-6, rtol=0)
    assert y[:, :1000].abs().max() < 1e-6
    # sounds stay where they were
    assert torch.equal(y.abs().argmax(1) - 1000, aug.irs.abs().argmax(1))


def test_same_convolution_loses_the_impulse(shared):
    "dragonsearch's centred convolution, with the length of each response"
    aug = DIR(p=1, rate=32000, folder=shared/'data/micirp', bank_rate='native').bank
    x, which = .1*torch.randn(66, 32000), torch.arange(66)
    y = aug.convolve(x, which, same=True)
    for k in (0, 13, 65):
        h = aug.irs[k, :aug.lengths[k]].numpy()
        np.testing.assert_allclose(y[k], np.convolve(x[k].numpy(), h, 'same'), atol=1e-4)
    click = torch.zeros(66, 32000)
    click[:, 1000] = 1
    noise = torch.randn(4, 32000)
    torch.manual_seed(8)
    a = DIR(p=1, folder=shared/'data/micirp', bank_rate='native', mode='same')(noise)
    torch.manual_seed(8)
    torch.rand(4)
    close(a, aug.convolve(noise, torch.randint(66, (4,)), same=True))
    assert (aug.convolve(click, which, same=True).norm(dim=1)/aug.irs.norm(dim=1)).median() < .1


def test_micirp_bank(shared):
    "The figures of the 66 responses at 32 kHz"
    irs, lengths = load_bank(shared/'data/micirp', 32000)
    norm = irs.norm(dim=1)
    peak = irs.abs().amax(1)
    position = irs.abs().argmax(1)
    assert len(irs) == 66 and (lengths.min(), lengths.max()) == (10972, 16000)
    np.testing.assert_allclose([norm.min(), norm.max(), norm.median()], [.22, 2.37, 1.64], atol=.02)
    np.testing.assert_allclose([peak.min(), peak.max()], [.13, 1.06], atol=.02)
    assert (position.min(), position.max()) == (2, 84) and position.median() == 51
    native = load_bank(shared/'data/micirp', None)[1]
    assert (native.min(), native.max()) == (16446, 22050)


def test_ambience_devices_can_be_kept_out(shared):
    names = [f.stem for f in (shared/'data/ambience/irs').glob('*.wav')]
    assert len(names) == 8
    assert len(load_bank(shared/'data/micirp', 44100, exclude=names)[0]) == 58


def test_bank_reads_any_wav(tmp_path):
    ring = .5*np.sin(np.arange(800)/3)*np.exp(-np.arange(800)/90)
    sf.write(tmp_path/'stereo48.wav', np.stack([ring, ring], 1), 48000, subtype='PCM_24')
    sf.write(tmp_path/'float16k.wav', ring[:100], 16000, subtype='FLOAT')
    irs, lengths = load_bank(tmp_path, 16000)
    assert lengths.tolist() == [100, 267] and (irs[0, 100:] == 0).all()
    np.testing.assert_allclose(irs[0, :100], ring[:100], atol=1e-6)
    want = torchaudio.functional.resample(torch.tensor(ring, dtype=torch.float32), 48000, 16000)
    np.testing.assert_allclose(irs[1], want, atol=1e-5)
    sf.write(tmp_path/'hush.wav', np.zeros(10), 16000)
    with pytest.raises(InputError, match=r'hush.wav: cannot be used \(it is silent'):
        load_bank(tmp_path, 16000)
    (tmp_path/'hush.wav').write_bytes(b'no sound at all')
    with pytest.raises(InputError, match='hush.wav: cannot be used'):
        load_bank(tmp_path, 16000)
    with pytest.raises(InputError, match='no .wav file to use'):
        load_bank(tmp_path, 16000, exclude=['hush', 'stereo48', 'float16k'])


def test_dir_draws_uniformly_and_by_device():
    aug = DIR(p=.5, rate=8000, devices=[0, 3])
    x, device = torch.zeros(6000, 64), torch.arange(6000) % 5
    x[:, 0] = 1
    y = aug(x, device)
    hit = (y != x).any(1)
    of = hit & torch.isin(device, torch.tensor([0, 3]))
    assert torch.equal(hit, of)
    assert stats.binomtest(int(of.sum()), 2400, .5).pvalue > LIKELY
    which = torch.cdist(y[hit], aug.bank.irs[:, :64]).argmin(1)
    assert uniform(which, len(aug.bank)) > LIKELY


def test_dir_level_and_bank_rate():
    x = torch.randn(30, 2000)
    close(DIR(p=1, rate=16000, keep_level=True)(x).norm(dim=1), x.norm(dim=1), rtol=1e-4, atol=0)
    assert torch.isfinite(DIR(p=1, keep_level=True)(torch.zeros(2, 500))).all()
    # published code takes the response for 32 kHz as one for 16 kHz
    close(DIR(rate=16000, bank_rate=32000).bank.irs, DIR(rate=32000).bank.irs)
    assert not torch.allclose(DIR(rate=16000).bank.irs, DIR(rate=32000).bank.irs, atol=.05)


@pytest.mark.parametrize('rate', [16000, 32000, 44100])
def test_synthetic_bank(rate):
    h, _ = synthetic_bank(rate, seed=3)
    state = torch.get_rng_state()
    assert torch.equal(h, synthetic_bank(rate, seed=3)[0])
    assert not torch.allclose(h, synthetic_bank(rate, seed=4)[0], atol=.1)
    # the bank does not touch the default generator
    assert torch.equal(state, torch.get_rng_state())
    db = 20*torch.fft.rfft(h, rate).abs().log10()
    # no microphone hears 1 … 11 Hz
    assert (db[:, 1:12].mean(1) < db[:, 900:1100].mean(1) - 15).all()
    # they differ, and have died away
    assert db[:, 900:1100].mean(1).std() > 1
    assert h[:, 2048:].norm(dim=1).max() < .05


# ---- spectrograms

def stripes(x):
    "What is hidden, each clip in a row"
    return (x == 0).flatten(1)


@pytest.mark.parametrize(
    'axis,ours,theirs',
    [
        (1, FreqMask, torchaudio.transforms.FrequencyMasking),
        (2, TimeMask, torchaudio.transforms.TimeMasking),
    ],
)
def test_mask_equals_torchaudio(axis, ours, theirs):
    x = torch.rand(16, 1, 64, 50) + 1
    torch.manual_seed(2)
    want = theirs(24, iid_masks=True)(x)
    torch.manual_seed(2)
    assert torch.equal(ours(24)(x), want)


def test_mask_width_and_place():
    hid = stripes(FreqMask(24)(torch.ones(20_000, 40, 1)))
    width, first = hid.sum(1), hid.float().argmax(1)
    assert uniform(width, 24) > LIKELY
    # given the width, any place that has room
    for w in (5, 23):
        starts = first[width == w]
        # as torchaudio: never quite to the end
        assert starts.max() == 39 - w
        assert uniform(starts[starts < 39 - w], 39 - w) > LIKELY
    runs = (hid[:, 1:] & ~hid[:, :-1]).sum(1) + hid[:, 0]
    assert runs.max() == 1  # one stripe


def test_two_stripes_hide_a_quarter():
    "sp4asc: [128, 2, 32, 2] on 256 × 431 leaves about three quarters"
    x = torch.ones(300, 1, 256, 431)
    y = FreqMask(32, n=2)(TimeMask(128, n=2)(x))
    share = (y == 0).float().mean()
    def p(size, length):
        return 1 - (1 - (size - 1)/2/length)**2
    assert abs(share - (1 - (1 - p(32, 256))*(1 - p(128, 431)))) < .02


def test_mask_options():
    x = torch.rand(64, 1, 30, 20) + 1
    batch = FreqMask(20, per='batch')(x) == 0
    assert (batch == batch[:1]).all()
    assert (FreqMask(20, fill=.9)(x) == .9).any()
    y = FreqMask(20, fill='mean')(x)
    # of each frequency, over the batch
    close(y[y != x], x.mean((0, 1, 3))[:, None].expand_as(x)[y != x])
    # narrower than half of 20 frames
    assert (TimeMask(.5)(x) == 0).all(2).sum((1, 2)).max() == 9
    # an axis shorter than the mask
    assert (FreqMask(500)(x) == 0).all(3).sum((1, 2)).max() <= 29
    linear = TimeMask(5)(FreqMask(48)(torch.ones(8, 256, 65)))
    # silence, before the log
    assert (linear + 1e-5).log().min().item() == pytest.approx(-11.51, abs=.01)


@pytest.mark.parametrize(
    'cls,alpha', [(FreqMixStyle, .3), (FreqMixStyle, .4), (ChannelMixStyle, .1)]
)
def test_mixstyle_lambda_is_beta(cls, alpha):
    "Clips of mean 0 with a partner of mean 1 end at mean 1 - λ"
    x = torch.randn(8000, 1, 2, 8)
    x -= x.mean((2, 3) if cls is ChannelMixStyle else 3, keepdim=True)
    x[::2] += 1
    dims = (1, 2, 3) if cls is ChannelMixStyle else 3
    mean = cls(p=1, alpha=alpha)(x)[1::2].mean(dims).view(4000, -1)[:, 0]
    # half of them have such a partner
    grid = np.linspace(.02, .98, 25)
    share = (mean[:, None] > torch.tensor(grid)).float().mean(0)*2
    assert abs(share - stats.beta(alpha, alpha).sf(grid)).max() < .05


def test_mixstyle_lambda_per_batch_or_sample():
    "With one λ two partners share out their means; with two they do not"
    def kept(lam, n=200):
        x = [torch.randn(2, 1, 1, 9) + torch.tensor([0., 5.]).view(2, 1, 1, 1) for _ in range(n)]
        return np.mean([abs((FreqMixStyle(p=1, lam=lam)(a) - a).mean()) < 1e-5 for a in x])
    # half of the permutations move nothing
    assert kept('batch') == 1
    assert .3 < kept('sample') < .7


@pytest.mark.parametrize('scale', [1, .003])
def test_mixstyle_is_the_formula(scale):
    "With quiet clips the 1e-6 under the root, and with it the unbiased variance, count"
    x = scale*(torch.randn(5, 3, 7, 3)*torch.rand(5, 3, 7, 1) + torch.randn(5, 1, 7, 1))
    torch.manual_seed(3)
    y = FreqMixStyle(p=1)(x)
    torch.manual_seed(3)
    torch.rand(())
    perm = torch.randperm(5)
    alpha = torch.full((5,), .3)
    lam = torch.distributions.Beta(alpha, alpha).sample()[:, None, None, None]
    mu = x.mean((1, 3), keepdim=True)
    sd = (x.var((1, 3), keepdim=True) + 1e-6).sqrt()
    close(
        y,
        (x - mu)/sd*(lam*sd + (1 - lam)*sd[perm]) + lam*mu + (1 - lam)*mu[perm],
        atol=1e-5*scale,
        rtol=1e-4,
    )


def test_masked_bin_becomes_a_constant():
    "What a mask hid, MixStyle turns into the blend of the two means"
    x = torch.randn(32, 1, 16, 30)
    x[:, :, 4] = -11.51
    y = FreqMixStyle(p=1)(x)[:, :, 4]
    close(y, torch.full_like(y, -11.51), atol=1e-3, rtol=0)


def test_mixstyle_statistics_carry_no_gradient():
    x = torch.randn(4, 2, 5, 6, requires_grad=True)
    y = FreqMixStyle(p=1)(x)
    w = torch.rand_like(x) + .5
    g = torch.autograd.grad((y*w).sum(), x)[0]/w
    # a plain scale per clip and frequency
    close(g, g[:, :1, :, :1].expand_as(g))


def test_mixstyle_cross_device():
    device = torch.arange(400) % 4
    x = torch.randn(400, 1, 1, 50)*.01 + device[:, None, None, None]
    m = ChannelMixStyle(p=1, cross=True)(x, device).mean((1, 2, 3))
    assert ((m - device).abs() > 1e-6).float().mean() > .5
    with pytest.raises(InputError, match='needs the device'):
        ChannelMixStyle(p=1, cross=True)(x)


@pytest.mark.parametrize('kind', ['step', 'linear'])
def test_filter_augment(kind):
    aug, n = FilterAugment(db=6, bands=(3, 6), width=6, kind=kind), []
    edges = []
    for _ in range(400):
        c = aug.curve(4, 64)
        assert c.abs().max() <= 6
        bend = c.diff(dim=1).abs() > 1e-6 if kind == 'step' else c.diff(dim=1).diff(dim=1).abs() > 1e-4
        n.append(aug.curve(64, 64))
        edges.append(bend)
    if kind == 'linear': return
    bands = torch.stack([b[0].sum() + 1 for b in edges])
    assert uniform(bands - 3, 4) > LIKELY
    assert min(np.diff(np.flatnonzero(np.r_[True, b[0].numpy(), True])).min() for b in edges) >= 6
    gains = torch.stack([c[:, 0] for c in n]).flatten()
    assert stats.kstest(gains, stats.uniform(-6, 12).cdf).pvalue > LIKELY


def test_filter_augment_on_few_bins():
    assert FilterAugment(width=6)(torch.ones(3, 10, 2)).shape == (3, 10, 2)


def test_freq_gain_is_normal():
    x = torch.ones(3000, 33, 2)
    db = 10*FreqGain(db=2, width=8)(x)[..., 0].log10()
    assert stats.kstest(db[:, [0, 8, 16, 24, 32]].flatten(), stats.norm(0, 2).cdf).pvalue > LIKELY
    assert abs(np.corrcoef(db[:, 0], db[:, 8])[0, 1]) < .05
    own = 10*FreqGain(db=2, width=1)(x)[..., 0].log10()
    assert abs(np.corrcoef(own[:, 0], own[:, 1])[0, 1]) < .05


# ---- MixUp

@pytest.mark.parametrize('per', ['batch', 'sample'])
def test_mixup_lambda_is_beta(per):
    up = MixUp(.3, lam=per)
    x = torch.randn(4 if per == 'batch' else 2000, 3)
    lam = []
    for _ in range(1500 if per == 'batch' else 2):
        y = up(x)
        lam.append(up.lam[:1] if per == 'batch' else up.lam)
        close(y, up.lam[:, None]*x + (1 - up.lam[:, None])*x[up.perm])
        assert sorted(up.perm.tolist()) == list(range(len(x)))
        assert per == 'sample' or (up.lam == up.lam[0]).all()
    lam = torch.cat(lam).double()
    assert stats.kstest(lam.clamp(1e-6, 1 - 1e-6), stats.beta(.3, .3).cdf).pvalue > LIKELY


class Clips(torch.utils.data.Dataset):
    "Noise around one of three centres: (x, device), label[, teacher logits]"
    n_inp = 2
    def __init__(self, n, teacher=False):
        g = torch.Generator().manual_seed(n)
        self.y, self.teacher = torch.arange(n) % 3, teacher
        self.x = nn.functional.one_hot(self.y, 3)*2. + torch.randn(n, 3, generator=g)
        self.t = 3*torch.randn(n, 3, generator=g)
    def __len__(self): return len(self.y)
    def __getitem__(self, i):
        return (self.x[i], torch.tensor(0), self.y[i], self.t[i])[:4 if self.teacher else 3]


class Net(nn.Module):
    def __init__(self, *mixups):
        super().__init__()
        self.mix, self.out = nn.ModuleList(mixups), nn.Linear(3, 3)
    def forward(self, x, device):
        for m in self.mix: x = m(x, device)
        return self.out(x)


def learner(tmp_path, *mixups, loss, teacher=False, cbs=None, bs=16, **kw):
    dls = DataLoaders.from_dsets(Clips(48, teacher), Clips(12, teacher), bs=bs, device='cpu')
    return Learner(dls, Net(*mixups), loss, lr=.1, cbs=cbs or [MixUpLoss()], path=tmp_path, **kw)


def quiet(learn, n=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n)


def test_mixup_loss_is_the_published_one(tmp_path):
    "λ·CE(ŷ,y) + (1-λ)·CE(ŷ,y_perm), and the labels are back after the loss"
    ce = nn.functional.cross_entropy
    up = MixUp(.3)
    seen = []
    from fastai.callback.core import Callback
    class Look(Callback):
        order = 50
        def after_loss(self): seen.append((self.training, self.y.ndim))
    def loss(pred, y):
        got = ce(pred, y)
        if y.ndim == 2:
            hard = batch['y']
            close(got, up.lam[0]*ce(pred, hard) + (1 - up.lam[0])*ce(pred, hard[up.perm]))
        return got
    batch = {}
    class Hold(Callback):
        order = -50
        def before_batch(self): batch['y'] = self.y
    quiet(learner(tmp_path, up, loss=loss, cbs=[MixUpLoss(), Look(), Hold()]), 2)
    assert seen == [(True, 1)]*3 + [(False, 1)] + [(True, 1)]*3 + [(False, 1)]


def test_soft_mixup_of_teacher_rows(tmp_path):
    "λ·KL(p₁‖q) + (1-λ)·KL(p₂‖q) at temperature 2 has the gradient of the loss on mixed rows"
    shapes = []
    def loss(pred, y, t):
        shapes.append((tuple(y.shape), tuple(t.shape)))
        return nn.functional.kl_div(
            (pred/2).log_softmax(1), (t/2).log_softmax(1), log_target=True,
            reduction='batchmean',
        )
    quiet(learner(tmp_path, MixUp(.3), loss=loss, teacher=True, cbs=[MixUpLoss(temperature=2)]))
    assert shapes == [((16, 3), (16, 3))]*3 + [((12,), (12, 3))]
    t = 5*torch.randn(40, 10)
    lam = torch.rand(40)
    perm = torch.randperm(40)
    def soft(z):
        return (z/2).softmax(1)
    close(
        soft(mix_teacher(t, lam, perm, 2)),
        lam[:, None]*soft(t) + (1 - lam[:, None])*soft(t)[perm],
    )
    close(soft(mix_teacher(t, torch.ones(40), perm, 2)), soft(t))


def test_mixup_loss_without_and_with_two(tmp_path):
    quiet(
        learner(
            tmp_path,
            loss=lambda p, y: (nn.functional.cross_entropy(p, y), setattr(y, 'seen', y.ndim))[0],
        )
    )
    with pytest.raises(InputError, match='mixes 2 times'):
        quiet(learner(tmp_path, MixUp(), MixUp(), loss=nn.functional.cross_entropy))


def test_mixup_now_and_then_leaves_the_other_batches_hard(tmp_path):
    dims, ce = [], nn.functional.cross_entropy
    quiet(
        learner(
            tmp_path,
            MixUp(p=.5),
            loss=lambda p, y: (dims.append((p.requires_grad, y.ndim)), ce(p, y))[1],
            bs=2,
        ),
        3,
    )
    train, valid = ([d for g, d in dims if g == on] for on in (True, False))
    assert len(train) == 72
    assert stats.binomtest(train.count(2), 72, .5).pvalue > LIKELY
    assert set(valid) == {1}


def test_lr_find_and_resume(tmp_path):
    "The learning-rate finder runs; training from a saved generator state continues as if never stopped"
    learn = learner(tmp_path, MixUp(.3), loss=nn.functional.cross_entropy)
    with learn.no_bar():
        assert learn.lr_find(num_it=20, show_plot=False, stop_div=False).valley > 0
    def draws(stop):
        seed_everything(0)
        a = learner(tmp_path, MixUp(.3), loss=nn.functional.cross_entropy)
        quiet(a)
        if stop:
            a.save('half')
            state = torch.get_rng_state()
            torch.manual_seed(99)
            a = learner(
                tmp_path, MixUp(.3), loss=nn.functional.cross_entropy
            ).load('half', with_opt=False)
            torch.set_rng_state(state)
        a.model.train()
        x = [a.model(torch.ones(4, 3)*torch.arange(4)[:, None], None) for _ in range(3)]
        return torch.stack(x), a.model.mix[0].lam, a.model.mix[0].perm
    for x, y in zip(draws(False), draws(True)): close(x, y, rtol=0, atol=0)
