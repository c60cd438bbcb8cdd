"""The emulated accelerator itself: it raises, counts, refuses and runs out of memory."""
import copy

import pytest
import torch

from asc.augment.spec import draw_beta


def test_device_is_the_accelerator_at_hand(emulated):
    "PyTorch takes it for the machine's"
    assert torch.accelerator.current_accelerator() == torch.device('emulated')
    assert torch.ones(2, device='emulated').device == emulated.DEVICE


def test_mixed_devices_raise(emulated):
    "Tensors of two devices do not meet; numbers and indices may come from the CPU"
    x = torch.rand(3).to(emulated.DEVICE)
    with pytest.raises(RuntimeError, match='same device'): x + torch.ones(3)
    with pytest.raises(RuntimeError, match='same device'): torch.nn.Linear(3, 2)(x)
    assert torch.equal((x + torch.tensor(1.)).cpu(), x.cpu() + 1)


@pytest.mark.parametrize('read, kind', [
    (lambda x: x.sum().item(), 'read back: _local_scalar_dense'),
    (lambda x: bool(x.any()), 'read back: _local_scalar_dense'),
    (lambda x: x.cpu(), 'read back: copy'),
    (lambda x: x.nonzero(), 'read back: nonzero'),
    (lambda x: x[x > .5], 'read back: boolean index'),
    (lambda x: x[torch.tensor([0])], 'index copied to the device'),
    (lambda x: x[[0, 2]], 'index copied to the device'),
    (lambda x: x + torch.ones(4).to(x.device), 'copied to the device'),
    (lambda x: torch.tensor([1, 2], device=x.device), 'copied to the device'),
    (lambda x: torch.zeros(4).copy_(x), 'read back: copy'),
])
def test_waits_are_counted(emulated, read, kind):
    "Each with its kind and the line it comes from"
    x = torch.rand(4).to(emulated.DEVICE)
    emulated.reset()
    read(x)
    assert emulated.counts[kind] == 1
    assert 'test_emulated.py' in emulated.report()


def test_a_step_alone_waits_for_nothing(emulated):
    "Forward, backward and an optimiser's step; what is drawn is what the CPU draws"
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(.5)).to(emulated.DEVICE)
    optimizer = torch.optim.AdamW(net.parameters())
    x = torch.rand(8, 4, device=emulated.DEVICE)
    emulated.reset()
    net(x).square().mean().backward()
    optimizer.step()
    assert emulated.waits() == 0, emulated.report()
    torch.manual_seed(0)
    twin = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(.5))
    twin(torch.rand(8, 4)).square().mean().backward()
    assert torch.equal(net[0].weight.grad.cpu(), twin[0].weight.grad)


def test_data_are_shared(emulated):
    "`data` set to a part of another tensor is that part from then on"
    whole, part = torch.zeros(2, 3, device=emulated.DEVICE), torch.nn.Parameter(torch.ones(3, device=emulated.DEVICE))
    before = emulated.memory.allocated
    part.data = whole[1]
    assert emulated.memory.allocated == before - 12
    whole += 2
    assert part.tolist() == [2, 2, 2]


def test_types_are_refused(emulated):
    "As Apple's devices refuse float64"
    emulated.refused.add(torch.float64)
    with pytest.raises(TypeError, match='no torch.float64'): torch.ones(2, device=emulated.DEVICE).double()


def test_conjugates_and_turned_tensors(emulated):
    "PyTorch puts off conjugating, and turns some tensors in place: both are told to it"
    x, y = torch.randn(2, 3, dtype=torch.complex64), torch.randn(2, 3, dtype=torch.complex64)
    there = x.to(emulated.DEVICE)
    assert torch.equal((there.conj() * y.to(emulated.DEVICE)).cpu(), x.conj() * y)
    assert torch.equal(there.conj().imag.cpu(), x.conj().imag)
    assert torch.equal(there.transpose_(0, 1).reshape(6).cpu(), x.T.reshape(6))
    assert torch.arange(5, device=emulated.DEVICE).shape == (5,)


def test_operations_are_absent(emulated):
    "As Apple's devices draw from no gamma distribution: what needs one is drawn on the CPU"
    emulated.absent.add('aten::_sample_dirichlet')
    a = torch.full((3,), .3).to(emulated.DEVICE)
    with pytest.raises(NotImplementedError): torch.distributions.Beta(a, a, validate_args=False).sample()
    shares = draw_beta(.3, 1000, emulated.DEVICE)
    assert shares.device == emulated.DEVICE
    assert abs(float(shares.var()) - 1/6.4) < .03


def test_autocast(emulated):
    "Products in 16 bits, sums of exponentials in 32"
    x = torch.rand(2, 3).to(emulated.DEVICE)
    with torch.autocast('emulated', torch.bfloat16):
        assert (x @ x.T).dtype == torch.bfloat16
        assert (x @ x.T).softmax(1).dtype == torch.float32


@pytest.mark.parametrize('words', [{}, {'bias': False}, {'bidirectional': True, 'num_layers': 2}],
                         ids=['plain', 'without bias', 'both ways, two layers'])
def test_recurrent_cells(emulated, words):
    "A GRU calls a cell that the CPU does not have; outputs and gradients are the CPU's, and autocast has 16 bits"
    torch.manual_seed(0)
    net, x = torch.nn.GRU(5, 7, **words), torch.randn(4, 3, 5)
    twin = copy.deepcopy(net).to(emulated.DEVICE)
    y, there = net(x)[0], twin(x.to(emulated.DEVICE))[0]
    y.square().sum().backward()
    there.square().sum().backward()
    assert torch.allclose(y, there.cpu(), atol=1e-6)
    for ours, theirs in zip(net.parameters(), twin.parameters()):
        assert torch.allclose(ours.grad, theirs.grad.cpu(), atol=1e-5)
    with torch.autocast(emulated.NAME, torch.bfloat16): short = twin(x.to(emulated.DEVICE))[0]
    assert short.dtype == torch.bfloat16 and torch.allclose(y, short.cpu().float(), atol=.02)


def test_memory_ends(emulated):
    "It is counted, given back, and refused beyond its end"
    before = emulated.memory.allocated
    x = torch.zeros(1000, device=emulated.DEVICE)
    assert emulated.memory.allocated == before + 4000
    y = x[:10].view(2, 5)
    del x
    assert emulated.memory.allocated == before + 4000
    del y
    assert emulated.memory.allocated == before
    emulated.memory.capacity = before + 3000
    with pytest.raises(torch.OutOfMemoryError): torch.zeros(1000, device=emulated.DEVICE)
