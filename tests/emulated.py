"""An emulated accelerator: its tensors say that they live on another device than the CPU, and are computed on the CPU.

It shows, on a machine without a GPU, what would fail or crawl on one:
- operations that mix devices raise; an index on the CPU is allowed, and counted as a copy;
- `counts` and `sites` tell what makes the host wait, and where: values read back (`.item()`, `.cpu()`, `bool(t)`,
  `nonzero`, boolean indexing) and copies to the device; `events` has them in their order;
- types of `refused` are refused, as Apple's devices refuse float64, and operations of `absent` are not there;
- memory is counted, and ends at `memory.capacity`.

Random numbers come from the CPU's generator, so a seed gives what it gives on the CPU.
Importing it registers the device, for the whole process: PyTorch then takes it for the accelerator at hand.
PyTorch also finds it by itself where `entry_point` has announced it, as it finds any backend of others: with
`entry_point(folder)` and PYTHONPATH=folder:tests, run notebooks and commands compute on it. EMULATED_REFUSES=float64
names the types to be refused."""
import os
import threading
import traceback
import weakref
from collections import Counter, defaultdict
from operator import attrgetter

import numpy as np
import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

NAME = 'emulated'
COPIES = {'aten::_to_copy', 'aten::copy_', 'aten::_copy_from', 'aten::_copy_from_and_resize'}
INDEXING = {'aten::index', 'aten::index_put', 'aten::index_put_', 'aten::_index_put_impl_'}
READS = {'aten::_local_scalar_dense', 'aten::nonzero', 'aten::masked_select', 'aten::equal', 'aten::is_nonzero',
         'aten::_unique2'}
SIXTEEN_BITS = [f'{name}.default' for name in (
    'conv1d', 'conv2d', 'linear', 'matmul', 'mm', 'bmm', 'addmm', 'baddbmm', 'einsum', '_thnn_fused_gru_cell')]
FLOAT32 = ['softmax.int', 'log_softmax.int', 'nll_loss.default', 'cross_entropy_loss.default', 'kl_div.default',
           'layer_norm.default', 'exp.default', 'log.default', 'pow.Tensor_Scalar', 'sum.default', 'sum.dim_IntList',
           'mse_loss.default']

counts, sites, events = Counter(), defaultdict(Counter), []
refused = {getattr(torch, name) for name in os.environ.get('EMULATED_REFUSES', '').split(',') if name}

absent = set()                                                 # names of operations, such as 'aten::fft_fft'


def reset():
    "Begin to count anew"
    counts.clear()
    sites.clear()
    events.clear()


def waits():
    "How often the host waited, or had the device wait, since `reset`"
    return counts.total()


def report():
    "One line a kind and place"
    return '\n'.join(f'{n:5} {kind} at {site}' for kind, places in sites.items() for site, n in places.most_common())


def note(kind):
    "Count something that waits, under the innermost line of the package, else of whoever used torch"
    frames = traceback.extract_stack()
    outside = [frame for frame in frames if frame.filename != __file__ and '/torch/' not in frame.filename]
    own = [frame for frame in frames if '/asc/' in frame.filename] or outside
    site = f'{own[-1].filename.rpartition("/asc/")[2]}:{own[-1].lineno}'
    counts[kind] += 1
    sites[kind][site] += 1
    events.append((kind, site))


class Memory:
    "Bytes of the storages that live on the device"
    capacity = None                                            # bytes; None: as much as there is
    refused = 0                                                # bytes that were asked for beyond it
    def __init__(self): self.allocated, self.peak, self.holders = 0, 0, Counter()

    def hold(self, tensor):
        "Count the storage behind a tensor until its last tensor is gone, or lets it go by what is returned"
        storage = tensor.raw.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if not self.holders[place]:
            if self.capacity is not None and self.allocated + size > self.capacity: self.refused = size
            self.allocated += size
            self.peak = max(self.peak, self.allocated)
        self.holders[place] += 1
        letting_go = weakref.finalize(tensor, self.drop, place, size)
        if self.refused and threading.current_thread() is threading.main_thread(): self.refuse()
        return letting_go

    def refuse(self):
        "Raise what is due: PyTorch's threads of a backward pass cannot be left by an exception of Python's"
        size, self.refused = self.refused, 0
        raise torch.OutOfMemoryError(f'emulated out of memory. Tried to allocate {size} bytes')

    def drop(self, place, size):
        "A tensor is gone"
        self.holders[place] -= 1
        if not self.holders[place]:
            del self.holders[place]
            self.allocated -= size


memory = Memory()


class Backend(backend_registration._DummyBackendModule):
    "What PyTorch and fastai ask of a device's module, `torch.emulated`"
    def get_amp_supported_dtype(self): return [torch.bfloat16, torch.float16]
    def get_device_name(self, device=None): return 'Emulated accelerator'
    def get_rng_state(self, device=None): return torch.get_rng_state()
    def set_rng_state(self, state, device=None): torch.set_rng_state(state)
    def set_device(self, device): pass
    def synchronize(self, device=None):
        if memory.refused: memory.refuse()

    def empty_cache(self): pass
    def memory_allocated(self, device=None): return memory.allocated
    def max_memory_allocated(self, device=None): return memory.peak
    def reset_peak_memory_stats(self, device=None): memory.peak = memory.allocated

    def mem_get_info(self, device=None):
        total = memory.capacity or 1 << 34
        return total - memory.allocated, total


backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
DEVICE = torch.device(NAME, 0)


def is_here(device):
    "Whether a device is the emulated one"
    return device is not None and torch.device(device).type == NAME


def as_indices(index):
    "An index with tensors for its lists, which PyTorch itself would send to the device by a way of its own"
    if isinstance(index, tuple): return tuple(map(as_indices, index))
    return torch.tensor(index) if isinstance(index, (list, np.ndarray)) else index


class Emulated(torch.Tensor):
    "A tensor on the emulated device; `raw` is the CPU's tensor that it is computed with"
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw):
        if raw.dtype in refused: raise TypeError(f'the emulated device has no {raw.dtype}')
        self = torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
            layout=raw.layout, device=DEVICE)
        torch._C._set_conj(self, raw.is_conj())            # PyTorch conjugates and negates when it must
        torch._C._set_neg(self, raw.is_neg())
        self.raw = raw.detach()
        self.held = memory.hold(self)
        return self

    @property
    def data(self): return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, other):
        torch.Tensor.data.__set__(self, other)
        self.raw = other.raw
        self.held()
        self.held = memory.hold(self)

    def __repr__(self): return f'Emulated({self.raw})'
    def tolist(self): return self.cpu().tolist()
    def __getitem__(self, index): return super().__getitem__(as_indices(index))
    def __setitem__(self, index, value): super().__setitem__(as_indices(index), value)
    def __reduce_ex__(self, protocol): return self.raw.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None): return compute(operation, args, kwargs or {})


def check_places(name, tensors):
    "RuntimeError for tensors of two devices; numbers and indices may come from the CPU"
    if name in COPIES or not any(isinstance(tensor, Emulated) for tensor in tensors): return
    strangers = [tensor for tensor in tensors if not isinstance(tensor, Emulated) and tensor.dim()]
    if not strangers: return
    if name in INDEXING and not any(tensor.is_floating_point() for tensor in strangers):
        note('index copied to the device')
        return
    places = [str(tensor.device) for tensor in tensors]
    raise RuntimeError(f'Expected all tensors to be on the same device: {name} got {places}')


def note_reads(name, tensors):
    "Count what brings a value to the host"
    if not any(isinstance(tensor, Emulated) for tensor in tensors): return
    if name in READS: note(f'read back: {name[6:]}')
    if name == 'aten::index' and any(tensor.dtype == torch.bool for tensor in tensors):
        note('read back: boolean index')


def lands_here(name, args, tensors, target):
    "Whether the result is the device's; a copy between host and device is counted"
    ours = any(isinstance(tensor, Emulated) for tensor in tensors)
    if name == 'aten::copy_':
        here = isinstance(args[0], Emulated)
        if here != isinstance(args[1], Emulated) and args[1].dim(): note_copy(here)
        return here
    here = ours if target is None else is_here(target)
    if name == 'aten::_to_copy' and here != ours: note_copy(here)
    return here


def note_copy(here):
    "Count a copy between host and device"
    note('copied to the device' if here else 'read back: copy')


def on_cpu(value):
    "An argument as the CPU's operation wants it"
    if isinstance(value, Emulated): return value.raw
    if isinstance(value, torch.device) and is_here(value): return torch.device('cpu')
    return value


def follow(tensors):
    "Tensors of the device have the shape of what they are computed with, also after it was turned or resized in place"
    for tensor in tensors:
        if not isinstance(tensor, Emulated): continue
        if tensor.shape == tensor.raw.shape and tensor.stride() == tensor.raw.stride(): continue
        tensor.data = Emulated(tensor.raw)


def compute(operation, args, kwargs):
    "An operation on the CPU, with the rules of the device"
    flat, shape = tree_flatten((args, kwargs))
    name = operation._schema.name
    if name == 'aten::record_stream': return               # memory of the CPU outlives every stream
    tensors = [value for value in flat if isinstance(value, torch.Tensor)]
    check_places(name, tensors)
    note_reads(name, tensors)
    here = lands_here(name, args, tensors, kwargs.get('device'))
    if here and name in absent: raise NotImplementedError(f'the emulated device has no {name}')
    raw_args, raw_kwargs = tree_unflatten([on_cpu(value) for value in flat], shape)
    raw_kwargs.pop('pin_memory', None)
    result = operation(*raw_args, **raw_kwargs)
    if operation._schema.is_mutable: follow(tensors)
    known = {id(tensor.raw): tensor for tensor in tensors if isinstance(tensor, Emulated)}

    def wrapped(value):
        if not isinstance(value, torch.Tensor) or isinstance(value, Emulated): return value
        if any(value is tensor for tensor in tensors): return value
        if id(value) in known: return known[id(value)]
        return Emulated(value) if here else value
    return tree_map(wrapped, result)


library = torch.library.Library('_', 'IMPL')
library.fallback(lambda operation, *args, **kwargs: compute(operation, args, kwargs), 'PrivateUse1')


def fused_gru_cell(input_gates, hidden_gates, hidden, input_bias=None, hidden_bias=None):
    "A step of a GRU and what its gradient needs, 5 values a unit: three gates, the state before and the new one's part"
    if input_bias is not None: input_gates = input_gates + input_bias
    if hidden_bias is not None: hidden_gates = hidden_gates + hidden_bias
    input_reset, input_update, input_new = input_gates.chunk(3, 1)
    hidden_reset, hidden_update, hidden_new = hidden_gates.chunk(3, 1)
    reset = (input_reset + hidden_reset).sigmoid()
    update = (input_update + hidden_update).sigmoid()
    new = (input_new + reset*hidden_new).tanh()
    return new + update*(hidden - new), torch.cat([reset, update, new, hidden, hidden_new], 1)


def fused_gru_cell_backward(grad, workspace, has_bias):
    "Gradients of the gates from the input and from the state, of the state, and of the biases"
    reset, update, new, hidden, hidden_new = workspace.chunk(5, 1)
    grad_update = grad * (hidden - new) * update * (1 - update)
    grad_new = grad * (1 - update) * (1 - new**2)
    grad_reset = grad_new * hidden_new * reset * (1 - reset)
    of_input = torch.cat([grad_reset, grad_update, grad_new], 1)
    of_hidden = torch.cat([grad_reset, grad_update, grad_new*reset], 1)
    biases = (of_input.sum(0), of_hidden.sum(0)) if has_bias else (None, None)
    return of_input, of_hidden, grad*update, *biases


# What PyTorch calls on accelerators only, and the CPU therefore lacks.
accelerated = torch.library.Library('aten', 'IMPL')
accelerated.impl('_thnn_fused_gru_cell', fused_gru_cell, 'CPU')
accelerated.impl('_thnn_fused_gru_cell_backward', fused_gru_cell_backward, 'CPU')


def cast(value, dtype):
    "A float32 or 16-bit tensor of the device in another of these types"
    if not isinstance(value, Emulated) or not value.is_floating_point() or value.dtype == torch.float64: return value
    return value.to(dtype)


def casting(operation, dtype=None): # None: that of autocast
    "An operation as autocast has it: its tensors brought to a type first"
    def call(*args, **kwargs):
        kind = dtype or torch.get_autocast_dtype(NAME)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            return operation(*tree_map(lambda value: cast(value, kind), args), **kwargs)
    return call


autocast = torch.library.Library('aten', 'IMPL')
everything = torch.library.Library('_', 'IMPL')
everything.fallback(torch.library.fallthrough_kernel, 'AutocastPrivateUse1')
for name in SIXTEEN_BITS + FLOAT32:
    operation = attrgetter(name)(torch.ops.aten)
    autocast.impl(operation, casting(operation, torch.float32 if name in FLOAT32 else None), 'AutocastPrivateUse1')
as_subclass = torch.Tensor.as_subclass


def sending(make):
    "`torch.tensor` or `torch.as_tensor`, whose own way to a device knows nothing of this one"
    def make_there(data, dtype=None, device=None, **kwargs):
        made = make(data, dtype=dtype, **kwargs)
        return made if device is None else made.to(device)
    return make_there


def stay(self, kind, *args, **kwargs):
    "`Tensor.as_subclass`, by which fastai has its kinds of tensors: where a tensor is, is no kind of it"
    return self if Emulated in (type(self), kind) else as_subclass(self, kind, *args, **kwargs)


torch.tensor, torch.as_tensor = sending(torch.tensor), sending(torch.as_tensor)
torch.Tensor.as_subclass = torch.as_subclass = stay


def autoload():
    "What PyTorch calls at its import: this module has registered all"


def entry_point(folder):
    "Announce the device in a folder of PYTHONPATH, beside the one of this file, as an installed package would"
    info = folder/'emulated_accelerator-1.dist-info'
    info.mkdir()
    (info/'METADATA').write_text('Metadata-Version: 2.1\nName: emulated-accelerator\nVersion: 1\n')
    (info/'entry_points.txt').write_text('[torch.backends]\nemulated = emulated:autoload\n')
