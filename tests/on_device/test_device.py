"""Which device computes: found by name, told, recorded, and left for another in the middle of a training."""
import json

import pytest
import torch
from fastai.callback.core import Callback

from asc.data.splits import read_split
from asc.experiment.recipe import TrainingData, create_training
from asc.experiment.turns import Turns, drawing
from asc.run.accelerator import (
    device_words, find_device, forget_peak, found_devices, free_memory, has_float64, peak_memory, random_kept,
    random_state, synchronise, use_device)
from asc.size.ptq import round_together
from asc.train.clips import ClipData, make_resident
from asc.train.compiled import check_compile
from asc.train.ddp import join_ranks
from asc.train.options import TrainingOptions
from asc.train.precision import HostScaler, check_precision
from asc.train.resume import Checkpoint, random_states
from launch import check

CPU = torch.device('cpu')


@pytest.mark.parametrize('name, found', [
    ('', 'emulated:0'), ('emulated', 'emulated:0'), ('emulated:0', 'emulated:0'), ('cpu', 'cpu'), ('cpu:0', 'cpu')])
def test_found_by_name(emulated, name, found):
    "The best there is without a name"
    assert find_device(name) == torch.device(found)
    assert found_devices() == [emulated.DEVICE, CPU]


@pytest.mark.parametrize('name', [
    'emulated:1', 'emulated:255', 'cuda', 'cuda:0', 'mps', 'xpu:1', 'privateuseone', 'meta', 'gpu', 'a', ' emulated'])
def test_absent_device(emulated, damage, name):
    "Refused with what was found here"
    damage('device', lambda: find_device(name), ['parameter device', name, 'emulated:0 (Emulated accelerator)'])


@pytest.mark.parametrize('ask, words', [
    (check_compile, 'cannot compile for emulated here; set it to False'),
    (join_ranks, 'several emulated devices exchange gradients: train in one process')])
def test_what_no_backend_was_announced_for(emulated, damage, ask, words):
    "Compiled steps and ranks, for which a backend of others may bring its own"
    damage('device without a backend', lambda: ask(emulated.DEVICE), [words])


def test_what_a_device_says(emulated):
    "Name, memory, random numbers; what is not known is None"
    device = emulated.DEVICE
    assert device_words(device) == 'emulated:0 (Emulated accelerator)'
    use_device(device)
    forget_peak(device)
    emulated.memory.capacity = emulated.memory.allocated + 10_000
    tensor = torch.rand(1000, device=device)
    synchronise(device)
    assert free_memory(device) == 6000
    assert peak_memory(device) == emulated.memory.allocated
    assert (free_memory(CPU), peak_memory(CPU)) == (None, None)
    with random_kept([device]): first = torch.rand(3, device=device)
    assert torch.equal(first.cpu(), torch.rand(3, device=device).cpu())
    assert tensor.device == device


def test_clips_stay_in_the_store_where_nobody_knows_the_room(emulated, packed, monkeypatch, capsys):
    "A device that does not tell its free memory is not filled"
    corpus, store = packed
    clips = ClipData(store, read_split(corpus, 100)[:5], corpus.scenes, corpus.devices)
    monkeypatch.setattr(type(torch.get_device_module('emulated')), 'mem_get_info', None)
    assert not make_resident([clips], emulated.DEVICE)
    assert 'emulated:0 does not say how much it has' in capsys.readouterr().out
    monkeypatch.undo()
    assert make_resident([clips], emulated.DEVICE)


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_half_precision_is_tried(emulated, precision):
    "Not looked up in a list of devices"
    assert check_precision(precision, emulated.DEVICE) == dict(bf16=torch.bfloat16, fp16=torch.float16)[precision]


def test_scaled_losses_without_float64(emulated):
    "The scale is inverted on the CPU, and a step is what it would be without one"
    emulated.refused.add(torch.float64)
    steps, x = [], torch.rand(4, 3)
    for device, scaler in ((CPU, None), (emulated.DEVICE, HostScaler('emulated'))):
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 2).to(device)
        optimizer = torch.optim.SGD(net.parameters(), .1)
        loss = net(x.to(device)).square().mean()
        if scaler: scaler.scale(loss).backward()
        else: loss.backward()
        if scaler: scaler.step(optimizer)
        else: optimizer.step()
        steps.append(net.weight.detach().cpu())
    assert not has_float64(emulated.DEVICE) and has_float64(CPU)
    torch.testing.assert_close(*steps)


def test_filters_are_rounded_without_float64(emulated):
    "As on the CPU, where it is done"
    emulated.refused.add(torch.float64)
    w, x = torch.randn(6, 8), torch.randn(1, 8, 40)
    values = w, w.abs().amax(1) / 127, x @ x.mT / 40
    assert torch.equal(round_together(*values), round_together(*(value.to(emulated.DEVICE) for value in values)))


def test_threads_keep_the_generators_of_the_device(emulated):
    "What the last thread draws for another is what that one would have drawn"
    turns = Turns(2, emulated.DEVICE)
    expected = []
    for seed in range(2):
        torch.manual_seed(seed)
        turns.states[seed] = random_states(device=emulated.DEVICE)
        expected.append(torch.rand(2, device=emulated.DEVICE).cpu())
    torch.set_rng_state(turns.states[1]['torch'])
    drawn = []
    for i in range(2):
        with drawing(turns, i, emulated.DEVICE): drawn.append(torch.rand(2, device=emulated.DEVICE).cpu())
    assert torch.equal(torch.stack(drawn), torch.stack(expected))
    assert random_state(emulated.DEVICE) is not None


class Killed(Callback):
    "Ends a training in its second epoch"
    def before_epoch(self):
        if self.epoch == 1: raise KeyboardInterrupt


def learn(packed, folder, device, resume=False, cbs=()):
    "Two epochs with augmentation, a momentum and an average; the weights in the end"
    corpus, store = packed
    rows = read_split(corpus, 100).iloc[::3]
    data = TrainingData(store, rows[:24], rows[-10:], corpus.scenes, corpus.devices)
    options = TrainingOptions(device=device, epochs=2, bs=8, ema=.9, backbone_args=dict(base=8), crop='windows')
    checkpoint = Checkpoint(folder, dict(lr=options.lr), resume)
    learner, fit = create_training(data, options, cbs=[checkpoint, *cbs])
    with learner.no_bar(): fit()
    assert learner.dls.device == next(learner.model.parameters()).device == find_device(device)
    return {name: tensor.cpu() for name, tensor in learner.model.state_dict().items()}


@pytest.fixture(scope='module')
def undisturbed(packed, tmp_path_factory):
    "The weights of a training on the CPU that nobody touched"
    return learn(packed, tmp_path_factory.mktemp('undisturbed'), 'cpu')


@pytest.mark.parametrize('first, then', [('emulated', 'cpu'), ('cpu', 'emulated'), ('emulated', 'emulated')])
def test_training_goes_on_on_another_device(emulated, packed, undisturbed, tmp_path, first, then):
    "A checkpoint of one device, continued on another: the weights of a training that was never interrupted"
    with pytest.raises(KeyboardInterrupt): learn(packed, tmp_path, first, cbs=[Killed()])
    kind = torch.load(tmp_path/'checkpoint.pt', weights_only=True)['random']['device']['kind']
    assert kind == first
    weights = learn(packed, tmp_path, then, resume=True)
    for name, tensor in undisturbed.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def test_train_notebook(run):
    "From the sound to the tables on the device, which is told first and recorded"
    folder, terminal = run
    record = json.loads((folder/'params.json').read_text())
    assert (record['parameters']['device'], record['device']) == ('', 'emulated:0')
    assert record['device_name'] == 'Emulated accelerator'
    said = 'device: emulated:0 (Emulated accelerator)'
    assert said in terminal[:terminal.index('epoch ')]
    cells = json.loads((folder/'train.ipynb').read_text())['cells']
    outputs = [''.join(output.get('text', '')) for cell in cells[:6] for output in cell.get('outputs', [])]
    assert any(said in text for text in outputs)
    assert (folder/'metrics.json').exists()


def test_predict_command(run, asc, short_test):
    "The same table from the device and from the CPU"
    sounds = sorted((short_test/'audio').glob('*.wav'))[:3]
    tables = [check(asc('predict', run[0], *sounds, '--format', 'csv', *words)).stdout
              for words in ((), ('--device', 'cpu', '--recorder', 'a'))]
    first, second = ([line.split(',')[2:] for line in table.splitlines()[1:]] for table in tables)
    torch.testing.assert_close(*(torch.tensor([list(map(float, row)) for row in table]) for table in (first, second)),
                               rtol=1e-5, atol=2e-6)
