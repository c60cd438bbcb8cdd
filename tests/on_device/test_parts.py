"""Frontends, steps of a pipeline and networks on the device: forward and backward, training and not."""
import pytest
import torch

from asc.augment.pipeline import create_pipeline, pipelines
from asc.augment.zoo import augments, create_augment
from asc.backbone.zoo import backbones, create_backbone, list_backbones
from asc.frontend.logmel import create_frontend, list_frontends
from asc.frontend.matmul import graph_frontend
from asc.train.norms import adapt_norms
from networks import SHAPES, SMALL
from twins import assert_same, twice, with_gradients

NUMBERS = torch.tensor([0, 0, 1, -1])
INPUTS = {'wave': (4, 800), 'mel': (4, 64, 20), 'spec': (4, 1, 64, 20)}
PLACES = [(name, stage) for name, kind in augments.items() for stage in INPUTS if stage in kind.stage]
# whatever is drawn, something happens
ALWAYS = {name: dict(p=1) for name in augments}
ALWAYS |= dict(freq_mask=dict(size=30, p=1, n=2, fill='mean'), time_mask=dict(size=9, p=1, per='batch'))
IMAGES = ['torchvision:squeezenet1_1', 'torchvision:mobilenet_v3_small', 'timm:resnet10t', 'timm:vit_tiny_patch16_224']


@pytest.mark.parametrize('training', [True, False], ids=['training', 'evaluation'])
@pytest.mark.parametrize('name', list_frontends())
def test_frontend(name, training):
    frontend = create_frontend(name).train(training)
    wave = .1 * torch.randn(2, frontend.sample_rate // 2)
    assert_same(*twice(lambda place: with_gradients(frontend, place, wave)))


@pytest.mark.parametrize('name', list_frontends())
def test_frontend_of_products(name):
    "The one that is exported comes from a frontend on the device, and is itself on the CPU"
    frontend = create_frontend(name).eval()
    wave = .1 * torch.randn(1, 22050)
    ours, theirs = twice(lambda place: graph_frontend(frontend.to(place), 44100, 22050)(wave))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize('training', [True, False], ids=['training', 'evaluation'])
@pytest.mark.parametrize('quirks', [True, False], ids=['faithful', 'right'])
@pytest.mark.parametrize('name', pipelines)
def test_preset(name, quirks, training):
    wave = .1 * torch.randn(4, 22050)
    pipeline = create_pipeline(name, 44100, quirks=quirks).train(training)
    assert_same(*twice(lambda place: pipeline.to(place)(wave.to(place), NUMBERS.to(place))))


@pytest.mark.parametrize('name, stage', PLACES)
def test_step(name, stage):
    x = torch.rand(INPUTS[stage]) + .1
    step = create_augment(name, **ALWAYS[name])
    if name == 'spectrum_modulation': step.take(torch.randn(5, 64))
    ours, theirs = twice(lambda place: with_gradients(step, place, x, NUMBERS))
    assert_same(ours, theirs)
    assert not torch.equal(ours[0], x)


@pytest.mark.parametrize('training', [True, False], ids=['training', 'evaluation'])
@pytest.mark.parametrize('name', list_backbones() + IMAGES)
def test_network(name, training):
    "Logits, gradients, and afterwards the statistics of the norms"
    if name.startswith('timm:') or name == 'passt_s': pytest.importorskip('timm')
    torch.manual_seed(0)
    network = create_backbone(name, **SMALL.get(name, {})).train(training)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    shape = SHAPES.get(name) or (backbones[name].shape if name in backbones else (64, 51))
    x = torch.randn(2, 1, *shape)

    def run(place):
        network.load_state_dict(state)
        network.zero_grad()
        return with_gradients(network, place, x), network.state_dict()
    assert_same(*twice(run))


def test_adapted_norms():
    "The statistics of a device's clips, where 64 bits are refused too"
    x = 2 + 3 * torch.randn(4, 3, 5, 6)

    def statistics(place):
        norm = torch.nn.BatchNorm2d(3).eval().to(place)
        adapt_norms(norm, [lambda: norm(x.to(place))], n=4)
        return norm.running_mean, norm.running_var

    assert_same(*twice(statistics))
