"""A compiled training is the same training: the same losses and files, one graph; refused where nothing can compile."""
import os
import shutil
from functools import partial

import pandas as pd
import pytest
import torch
import torch._inductor.config
from torch._dynamo.utils import counters

import asc.experiment.recipe
from asc.train.options import TrainingOptions
from asc.core import InputError
from asc.data.splits import read_split
from asc.experiment.checks import check_training
from asc.experiment.recipe import TrainingData, create_training
from asc.model.classifier import load_model, save_model
from asc.run.trust import trust
from asc.train.compiled import Compiled, check_compile

pytestmark = pytest.mark.usefixtures('one_thread')
STEPS = ['resample', 'mel', 'log', {'freq_mixstyle': {'p': .4, 'alpha': .3}}]


@pytest.fixture
def trained(packed):
    "trained(**options): a Learner after its training, on 12 clips in batches of 5"
    corpus, store = packed
    rows = read_split(corpus, 100).iloc[::3]
    def make(n=12, **options):
        data = TrainingData(store, rows[:n], rows[-6:], corpus.scenes, corpus.devices)
        small = dict(base=8, blocks=(1, 1, 1), strides={})
        common = dict(backbone_args=small, steps=STEPS, epochs=2, bs=5)
        learn, fit = create_training(data, TrainingOptions(**common | options))
        with learn.no_bar(): fit()
        return learn
    return make


def history(learn):
    "Losses of the training, epoch by epoch"
    return pd.DataFrame(learn.epoch_log.history).drop(columns='epoch')


OWN = '''
from torch import nn

class Net(nn.Module):
    "Two layers, which compile quickly"
    def __init__(self, n_classes=10):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 5, 4), nn.BatchNorm2d(4), nn.Linear(4, n_classes)
    def forward(self, x): return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))
'''


@pytest.mark.skipif(not shutil.which(os.environ.get('CXX', 'g++')), reason='needs a C++ compiler')
def test_compiled_equals_plain(trained, tmp_path):
    "Through C++: two epochs of two whole batches and a smaller one; the saved model loads"
    (tmp_path/'net.py').write_text(OWN)
    trust(tmp_path/'net.py')
    own = dict(backbone=f"{tmp_path/'net.py'}:Net", backbone_args={})
    plain = trained(**own)
    counters.clear()
    # trying the vector instructions takes most of the time
    quick = {'cpp.vec_isa_ok': False, 'cpp_cache_precompile_headers': False}
    with torch._inductor.config.patch(quick): fast = trained(**own, compile=True)
    assert counters['stats']['unique_graphs'] == 1
    assert counters['inductor']['fxgraph_cache_miss'] + counters['inductor']['fxgraph_cache_hit'] >= 1
    assert (history(fast) - history(plain)).abs().max().max() < 1e-4
    save_model(fast.model, folder := tmp_path/'run')
    wave = fast.dls.valid_ds.batch(range(6))[0].to(next(fast.model.parameters()).device)
    with torch.no_grad():
        assert torch.allclose(
            load_model(folder)(wave.cpu()), plain.model.eval()(wave).cpu(), atol=1e-3
        )


@pytest.mark.parametrize(
    'options',
    [
        dict(ema=.8, keep='best', clip=1., freeze='in_c', freeze_epochs=1),
        dict(swa=.5, precision='bf16', steps=[*STEPS, 'mixup']),
        dict(teacher='self', distill=dict(features=[dict(student='stages.s1', how='cosine')])),
    ],
    ids=['averages', 'bf16', 'features'],
)
def test_every_option_goes_along(trained, monkeypatch, options):
    "Hooks, 16 bits, frozen parts, averages and teachers, with the graph PyTorch records and no compiler behind it"
    plain = trained(**options)
    monkeypatch.setattr(asc.experiment.recipe, 'Compiled', partial(Compiled, 'aot_eager'))
    counters.clear()
    fast = trained(**options, compile=True)
    assert counters['stats']['unique_graphs'] >= 1
    assert (history(fast) - history(plain)).abs().max().max() < (
        2e-2 if 'precision' in options else 1e-4
    )
    assert list(fast.model.state_dict()) == list(plain.model.state_dict())
    assert fast.model.backbone._compiled_call_impl is None


def test_no_graph_for_every_size(trained, monkeypatch):
    "One graph a training, whatever the last batch and the validation list; lists smaller than a batch are a batch"
    monkeypatch.setattr(asc.experiment.recipe, 'Compiled', partial(Compiled, 'eager'))
    for n in (12, 3):
        counters.clear()
        trained(n, compile=True)
        assert counters['stats']['unique_graphs'] == 1


def test_refused_without_a_compiler(monkeypatch, tmp_path):
    "Before any work, by the compiler's name"
    assert TrainingOptions().compile is False
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.delenv('CC', raising=False)
    with pytest.raises(
        InputError, match=r'compile=True needs a compiler, and (g|clang)\+\+ cannot be found'
    ):
        check_training(TrainingOptions(compile=True, device='cpu'))
    monkeypatch.setattr('asc.train.compiled.find_spec', lambda name: None)
    with pytest.raises(InputError, match='compile=True needs Triton'):
        check_compile('cuda')
    monkeypatch.setattr('asc.train.compiled.find_spec', lambda name: True)
    with pytest.raises(InputError, match='gcc and clang cannot be found'):
        check_compile('cuda')
    (tmp_path/'mycc').write_text('')
    (tmp_path/'mycc').chmod(0o755)
    monkeypatch.setenv('CXX', 'mycc')
    monkeypatch.setattr('asc.train.compiled.sysconfig.get_path', lambda name: tmp_path)
    with pytest.raises(InputError, match='Python.h'): check_compile('cpu')
    (tmp_path/'Python.h').write_text('')
    check_compile('cpu')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
@pytest.mark.parametrize(
    'options',
    [{}, dict(ema=.8, keep='best'), dict(precision='bf16')],
    ids=['plain', 'averages', 'bf16'],
)
def test_cuda_graphs(trained, options):
    "The recorded steps see every change of the weights"
    plain = trained(epochs=4, **options)
    fast = trained(epochs=4, **options, compile=True)
    assert plain.epoch_log.history[-1]['train_loss'] < plain.epoch_log.history[0]['train_loss'] - .05
    assert (history(fast) - history(plain)).abs().max().max() < .03
