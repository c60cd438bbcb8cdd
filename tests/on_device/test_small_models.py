"""Folding, half precision, eight bits, pruning and networks of devices, of a model that lives on the device."""
from copy import deepcopy
from unittest.mock import patch

import pytest
import torch

from asc.backbone.zoo import create_backbone
from asc.load import open_model
from asc.model.classifier import create_classifier
from asc.model.per_device import DeviceAware, save_devices
from asc.size.fold import compare_networks, fold, half_weights, norms
from asc.size.prune import official_counts, prune, silent_channels
from asc.size.ptq import mixed_precision, ptq, sensitivity
from asc.size.qat import create_qat_learner, fit_qat, load_quantised, save_quantised, with_augmentation
from asc.size.qdq import calibrate, calibration_batches, prepare, quant_bytes, quantised_classifier
from asc.train.learner import make_dls, predict_logits
from asc.train.optimizers import optimizers
from asc.train.tta import tta_predictions
from asc.train.tune import PARTS, tune
from emulated import DEVICE
from trainings import SMALL_CP, SMOOTH, STEPS, few_clips
from twins import assert_same, twice


@pytest.fixture(scope='module')
def clips(packed):
    "Eight clips to learn, four to be asked about"
    data = few_clips(packed, 8)
    return data.clips(data.train), data.clips(data.valid)


@pytest.fixture(scope='module')
def model(clips):
    "A classifier whose norms know what they see"
    torch.manual_seed(0)
    model = create_classifier(pipeline=STEPS, rate=clips[0].store.rate, scenes=clips[0].scenes, **SMALL_CP)
    with torch.no_grad(): model.train()(*clips[0].batch(range(8))[:2])
    return model.eval()


@pytest.fixture
def there(model):
    "there(place): a copy of the classifier on a device"
    return lambda place: deepcopy(model).to(place)


def spectrograms(model, clips):
    "Those of some clips, where the model is"
    return calibration_batches(model, clips[0], 8, 4)


def test_folded(there, clips):
    def run(place):
        model = there(place)
        small = fold(model)
        assert len(norms(small.backbone, spectrograms(model, clips)[0][:1])) == 0
        return small.state_dict(), half_weights(small).state_dict()
    assert_same(*twice(run))


def test_compared(there, clips):
    "The comparison is one of numbers, wherever the networks are"
    def run(place):
        model = there(place)
        return compare_networks(model.backbone, fold(model).backbone, spectrograms(model, clips))
    ours, theirs = twice(run)
    assert theirs == pytest.approx(ours, abs=1e-6)
    apart = compare_networks(there('cpu').backbone, there(DEVICE).backbone, spectrograms(there('cpu'), clips))
    assert apart['max_logit'] < 1e-5


@pytest.mark.parametrize('name', ['cnn6_60k', 'tf_sepnet_dragon_60', 'bc_resnet_40'])
def test_others_folded(name):
    shape = dict(cnn6_60k=(256, 20), tf_sepnet_dragon_60=(64, 44), bc_resnet_40=(64, 33))[name]
    torch.manual_seed(0)
    network = create_backbone(name).eval()
    x = torch.randn(2, 1, *shape)
    assert_same(*twice(lambda place: fold(network.to(place), x[:1].to(place)).state_dict()))


def test_eight_bits_after_training(there, clips):
    "Calibration, better rounding, the error of each layer, layers held back, and the bytes"
    def run(place):
        model = there(place)
        batches = spectrograms(model, clips)
        small = ptq(model.backbone, batches)
        whole = calibrate(prepare(model.backbone, skip=()), batches)
        errors = torch.tensor(sensitivity(whole, batches).select_dtypes('number').to_numpy(), device='cpu')
        mixed, steps = mixed_precision(model.backbone, batches, batches, target=1., most=1, rounding=False)
        assert quant_bytes(small)['total'] < 4 * sum(p.numel() for p in model.parameters())
        return small.state_dict(), mixed.state_dict(), errors.float().to(place)
    assert_same(*twice(run))


def test_eight_bits_in_training(there, clips, tmp_path):
    "The network learns on in eight bits, taught by the float one, and its file is opened anywhere"
    def run(place):
        model = there(place)
        quantised = quantised_classifier(model)
        calibrate(quantised.backbone, spectrograms(model, clips))
        quantised = with_augmentation(quantised)
        quantised(clips[1].batch(range(2))[0].to(place))   # where it was
        dls = make_dls(*clips, bs=4, device=place)
        options = dict(teacher=model, frozen=1, device=place.type)
        with patch.dict(optimizers, SMOOTH): learn = create_qat_learner(dls, quantised, **options)
        with learn.no_bar(): fit_qat(learn, epochs=2, lr=1e-2)
        save_quantised(quantised.eval(), tmp_path/place.type)
        again = load_quantised(tmp_path/place.type)
        difference = predict_logits(again, clips[1]) - predict_logits(quantised, clips[1])
        assert difference.abs().max() < 1e-4
        return quantised.backbone.state_dict()
    assert_same(*twice(run))


def test_pruned(there, clips):
    pytest.importorskip('torch_pruning')
    def run(place):
        model = there(place)
        x = spectrograms(model, clips)[0][:1]
        counts = official_counts(model.backbone, x)
        small, _ = prune(model.backbone, x, max_macs=counts['macs'] * .8, steps=2)
        silent_channels(model.backbone, spectrograms(model, clips))
        return small.state_dict()
    assert_same(*twice(run))


@pytest.mark.parametrize('part', PARTS)
def test_tuned_for_a_device(there, clips, part):
    "Where the training computes is one thing, where the network lives another"
    def run(place):
        return tune(there(place), *clips, part, epochs=1, bs=4, device=place.type).state_dict()
    assert_same(*twice(run))


def test_a_network_for_each_device(there, clips, tmp_path):
    def run(place):
        model = there(place)
        own = {name: deepcopy(model.backbone) for name in clips[0].devices[:3]}
        with torch.no_grad():
            for i, network in enumerate(own.values()): next(network.parameters()).mul_(1 + .1 * i)
        aware = DeviceAware(model, own, clips[0].devices).eval()
        save_devices(aware, tmp_path/place.type)
        wave, device, _ = clips[0].batch(range(8))
        again = open_model(tmp_path/place.type).network
        assert torch.allclose(predict_logits(again, clips[1]), predict_logits(aware, clips[1]), atol=1e-5)
        x = torch.zeros(aware.input_shape(), device=place)
        return aware(wave.to(place), device.to(place)), fold(aware.backbone, x).state_dict()
    assert_same(*twice(run))


def test_augmented_while_asked(there, clips):
    "Test-time augmentation draws the same and tells the same"
    ours, theirs = twice(lambda place: tta_predictions(there(place), clips[1], 2, clips[0], bs=4))
    assert ours[clips[0].scenes].to_numpy() == pytest.approx(theirs[clips[0].scenes].to_numpy(), abs=1e-5)
