"""The same twice: on the CPU and on the emulated device, with the same seeds."""
import torch
from torch.utils._pytree import tree_flatten, tree_map

from emulated import DEVICE, Emulated

PLACES = torch.device('cpu'), DEVICE


def each(change, values):
    "Tensors, wherever they stand, changed"
    return tree_map(lambda value: change(value) if isinstance(value, torch.Tensor) else value, values)


def copied(tensor): return tensor.detach().clone()


def twice(call):
    "What `call(place)` gives on the CPU and on the device, its random numbers being the same"
    results = []
    for place in PLACES:
        torch.manual_seed(1)
        results.append(each(copied, call(place)))
    return results


def assert_same(ours, theirs, tolerance=1e-5):
    "The tensors of two results are equal to 1e-5 of the largest; those of the second live on the device"
    ours, theirs = ([value for value in tree_flatten(result)[0] if isinstance(value, torch.Tensor)]
                    for result in (ours, theirs))
    assert len(ours) == len(theirs)
    assert all(isinstance(value, Emulated) for value in theirs)
    for one, other in zip(ours, theirs):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        largest = max(1., one.abs().max().item() if one.numel() else 0.)
        torch.testing.assert_close(other.cpu(), one, rtol=0, atol=tolerance * largest)


def with_gradients(module, place, x, *rest):
    "Output of a module, and the gradients of its sum of squares, of the input and of each parameter"
    module = module.to(place)
    x = x.to(place).detach().requires_grad_()
    y = module(x, *each(lambda value: value.to(place), rest))
    y.square().mean().backward()
    return y, x.grad, [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
