"""A network, a frontend and an augmentation of one's own, in one's own file, named in a parameter."""
import pytest
import torch

from asc.train.options import TrainingOptions
from asc.augment.pipeline import create_pipeline
from asc.core import InputError
from asc.data.splits import read_split
from asc.experiment.checks import check_training
from asc.experiment.recipe import TrainingData, create_training
from asc.model.classifier import load_model, save_model
from asc.run.trust import trust

CODE = '''
import torch
from torch import nn

class TinyNet(nn.Sequential):
    def __init__(self, n_classes=10, width=4):
        super().__init__(
            nn.Conv2d(1, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, n_classes),
        )

class Energies(nn.Module):
    "Log energy in 20 bands of a short FFT"
    sample_rate = 44100
    def mel(self, wave):
        power = torch.fft.rfft(wave.unfold(1, 400, 400)).abs().square()
        return power[..., :200].unflatten(2, (20, 10)).mean(3).mT
    def log(self, x): return (x + 1e-5).log()[:, None]

class Flip(nn.Module):
    stage = 'wave'
    calls = 0
    def __init__(self, p=1.):
        super().__init__()
        self.p = p
    def forward(self, x, device=None):
        Flip.calls += 1
        return -x

class Nowhere(nn.Module): pass
'''


@pytest.fixture
def mine(tmp_path):
    "mine(name): the address of a class in one's own file"
    (tmp_path/'mine.py').write_text(CODE)
    trust(tmp_path/'mine.py')
    return lambda name: f"{tmp_path/'mine.py'}:{name}"


def test_trained_saved_and_loaded(packed, tmp_path, mine):
    corpus, store = packed
    rows = read_split(corpus, 100).groupby('scene').head(3)
    options = TrainingOptions(
        backbone=mine('TinyNet'), backbone_args=dict(width=6), frontend=mine('Energies'),
        steps=[mine('Flip'), 'mel', 'log'], epochs=1, bs=10,
    )
    check_training(options)
    data = TrainingData(store, rows, rows[:0], corpus.scenes, corpus.devices)
    learn, fit = create_training(data, options)
    fit()
    assert learn.model.backbone[0].out_channels == 6
    assert type(learn.model.pipeline.ops['0_Flip']).calls == 3  # a batch each
    run = tmp_path/'run'
    run.mkdir()
    save_model(learn.model, run)
    x = torch.randn(2, 44100)
    again = load_model(run)
    with torch.no_grad(): assert torch.equal(again(x), learn.model.cpu().eval()(x))
    (tmp_path/'mine.py').write_text(CODE + '# changed')
    with pytest.raises(InputError, match='run: asc trust'): load_model(run)
    trust(tmp_path/'mine.py')
    with pytest.raises(InputError, match='another version'): load_model(run)


@pytest.mark.parametrize(
    'options, sentence',
    [
        (dict(backbone='Tiny'), 'no class or function Tiny in this file'),
        (dict(backbone='TinyNet', backbone_args=dict(depth=3)), "'depth'"),
        (dict(frontend='TinyNet'), 'it has no sample_rate'),
        (dict(steps=['Nowhere', 'mel', 'log']), 'needs `stage`'),
        (dict(steps=['mel', 'Flip', 'log']), "but stands at 'mel'"),
    ],
)
def test_what_is_refused(mine, options, sentence):
    named = {k: mine(v) if isinstance(v, str) else v for k, v in options.items()}
    if 'steps' in options:
        named['steps'] = ['resample', *(mine(s) if s[0].isupper() else s for s in options['steps'])]
    with pytest.raises(InputError, match=sentence): check_training(TrainingOptions(**named))


def test_pipeline_with_an_own_step(mine):
    pipe = create_pipeline([mine('Flip'), 'resample', 'mel', 'log'], 44100)
    assert type(pipe.ops['0_Flip']).__name__ == 'Flip'
    assert pipe.steps[0] == mine('Flip')
