"""Any encoder as a teacher: an ONNX file or a callable, a probe on it, and what everybody makes of the run."""
import shutil
import sys

import pytest
import torch
from torch import nn

from asc import create_classifier, predict, trust
from asc.core import InputError, read_json
from asc.data.splits import read_split
from asc.experiment.checks import check_training
from asc.experiment.distillation import Distillation
from asc.experiment.recipe import TrainingData, create_training
from asc.experiment.stacked import check_stacked
from asc.export.onnx import export_model
from asc.frontend.encoder import FrozenEncoder
from asc.load import open_model
from asc.model.adapter import rate_of
from asc.model.classifier import save_model
from asc.train.clips import ClipData
from asc.train.embedding import clip_embeddings
from asc.train.learner import predictions
from asc.train.options import TrainingOptions
from asc.use.answers import predict_teacher
from encoders import CODE, RATE, SECOND, WIDTH, filters, to_onnx


@pytest.fixture(scope='module')
def code(tmp_path_factory):
    "A file of encoders, not yet trusted"
    path = tmp_path_factory.mktemp('own')/'my_encoders.py'
    path.write_text(CODE)
    return path


@pytest.fixture(scope='module')
def onnx_file(tmp_path_factory):
    return to_onnx(filters(), tmp_path_factory.mktemp('onnx')/'filters.onnx')


def settings(source, pooling='mean', epochs=2, window=1., hop=0., **options):
    "The options of a probe"
    frontend = dict(source=str(source), rate=RATE, window=window, hop=hop)
    return TrainingOptions(frontend='encoder', backbone='probe', pipeline='none', frontend_args=frontend, device='cpu',
                           backbone_args=dict(pooling=pooling), epochs=epochs, bs=16, lr=2e-2, **options)


@pytest.fixture(scope='module')
def data(packed):
    corpus, store = packed
    rows = read_split(corpus, 100)
    return TrainingData(store, rows[::4].reset_index(drop=True), rows[1::40].reset_index(drop=True), corpus.scenes,
                        corpus.devices)


def trained(data, options):
    learn, train = create_training(data, options)
    with learn.no_bar(), learn.no_logging(): train()
    return learn


@pytest.fixture(scope='module')
def run(onnx_file, data, tmp_path_factory):
    "The folder of a trained probe on the ONNX file"
    folder = tmp_path_factory.mktemp('runs')/'probe'
    save_model(trained(data, settings(onnx_file, epochs=15)).model, folder)
    return folder


def test_only_the_probe_is_learnt_and_saved(run, onnx_file, data):
    "Loss falls, two trainings are one, and no tensor of the encoder is in the folder"
    options = settings(onnx_file, epochs=15)
    once, again = trained(data, options), trained(data, options)
    assert once.epoch_log.history == again.epoch_log.history
    losses = [row['train_loss'] for row in once.epoch_log.history]
    assert losses[-1] < losses[0] - .1
    saved = read_json(run/'model.json')
    assert saved['backbone_args'] == dict(pooling='mean', width=WIDTH)
    assert len(saved['frontend_args']['digest']) == 64 and saved['frontend_args']['rate'] == RATE
    state = open_model(run).network.state_dict()
    assert sorted(name for name in state if 'num_batches' not in name) == [
        'backbone.head.bias', 'backbone.head.weight', 'backbone.norm.running_mean', 'backbone.norm.running_var']


def test_file_and_callable_are_one(run, onnx_file, code, data):
    "The module behind an ONNX file, trusted and named as a callable, gives the same probe"
    own = f'{code}:Filters'
    with pytest.raises(InputError, match='asc trust'): check_training(settings(own))
    trust(code)
    a, b = (trained(data, settings(source)) for source in (onnx_file, own))
    wave = torch.randn(3, data.store.rate) / 10
    with torch.no_grad(): assert torch.allclose(a.model.eval()(wave), b.model.eval()(wave), atol=1e-3)


def test_windows_and_tokens(code, data):
    "Four windows of three tokens each, which attention weighs; the encoder is never put into training mode"
    trust(code)
    options = settings(f'{code}:Filters', 'attention', window=.5, hop=.25)
    options.frontend_args['options'] = dict(tokens=True)
    learn = trained(data, options)
    frontend, network = learn.model.pipeline.frontend, learn.model.backbone
    assert learn.model.input_shape() == (1, 1, WIDTH, 30)
    learn.model.train()
    module = frontend.encoder.module
    assert not module.training and not any(p.requires_grad for p in module.parameters())
    x = network.eval().tokens(torch.randn(2, 1, WIDTH, 30))
    assert torch.allclose(network.attention(x).sum(2), torch.ones(2, 4))


def test_everybody_answers_alike(run, packed, data, tmp_path):
    "Prediction of files, logits, a live teacher, and the embeddings of a run"
    corpus, store = packed
    model = open_model(run)
    assert (model.kind, rate_of(model.network)) == ('probe', store.rate)
    rows = data.train[:5]
    clips = ClipData(store, rows, corpus.scenes, corpus.devices)
    expected = predictions(model.network, clips)[corpus.scenes].to_numpy()
    files = [str(corpus.dir/name) for name in rows.filename]
    assert abs(predict(run, files)[corpus.scenes].to_numpy() - expected).max() < 1e-5
    teacher = predict_teacher(run, store, rows, corpus.scenes, corpus.devices)
    assert abs(torch.as_tensor(teacher.logits).float().softmax(1).numpy() - expected).max() < 2e-3
    assert 'sha256=' in teacher.facts['frontend']
    assert Distillation(str(run)).kind == 'run'
    assert clip_embeddings(model.network, clips).shape == (5, WIDTH)


def test_refused_by_name(run, tmp_path):
    "It is a teacher: nothing that ends in an entry takes it"
    model = open_model(run)
    for consumer, kinds in (('submit', ('float', 'pruned')), ('quantize.ipynb', ('float', 'published'))):
        with pytest.raises(InputError, match=r'a probe on an encoder, a teacher alone \(probe\)'):
            model.classifier(consumer, kinds)
    with pytest.raises(InputError, match='is a probe on the encoder'): export_model(model.network, tmp_path/'a.onnx')


def test_a_cache_gives_the_same_training(onnx_file, data, tmp_path, monkeypatch):
    "With cache=True each clip is asked about once, and the numbers are those without"
    monkeypatch.setenv('ASC_PROJECT', str(tmp_path))
    plain = trained(data, settings(onnx_file)).epoch_log.history
    asked = []
    told = FrozenEncoder.mel
    monkeypatch.setattr(FrozenEncoder, 'mel', lambda self, wave: (asked.append(len(wave)), told(self, wave))[1])
    learn, train = create_training(data, settings(onnx_file, epochs=2, cache=True))
    folder = learn.dls.train_ds.cache.folder
    with learn.no_bar(), learn.no_logging(): train()
    cached, clips = learn.epoch_log.history, sum(asked)
    for a, b in zip(plain, cached): assert a['train_loss'] == pytest.approx(b['train_loss'], rel=1e-4)
    assert clips <= len(data.train) + len(data.valid) + 10
    shutil.rmtree(folder)


def test_another_encoder_is_refused(onnx_file, data, tmp_path):
    "A run opens with the very file it was trained on: gone, changed or cut, it is refused in a sentence"
    source = tmp_path/'mine.onnx'
    source.write_bytes(onnx_file.read_bytes())
    save_model(create_classifier('probe', 'encoder', 'none', data.store.rate, data.names,
                                 frontend_args=dict(source=str(source), rate=RATE)), tmp_path/'run')
    assert open_model(tmp_path/'run').kind == 'probe'
    other = filters()
    with torch.no_grad(): other.filters.weight.mul_(1.01)
    to_onnx(other, source)
    with pytest.raises(InputError, match='is not the one that was used'): open_model(tmp_path/'run')
    source.write_bytes(onnx_file.read_bytes()[:500])
    with pytest.raises(InputError, match='mine.onnx'): open_model(tmp_path/'run')
    source.unlink()
    with pytest.raises(InputError, match='there is no such encoder'): open_model(tmp_path/'run')


def test_code_of_a_stranger_does_not_run(data, tmp_path):
    "A folder that names a callable is refused until its text is trusted, and when it has changed since"
    path = tmp_path/'their_encoders.py'
    path.write_text(CODE + f"\nopen({str(tmp_path/'ran')!r}, 'a').write('x')\n")
    trust(path)
    model = create_classifier('probe', 'encoder', 'none', data.store.rate, data.names,
                              frontend_args=dict(source=f'{path}:Filters', rate=RATE))
    save_model(model, tmp_path/'run')
    (tmp_path/'ran').unlink()
    path.write_text(path.read_text() + '# other\n')
    with pytest.raises(InputError, match='asc trust'): open_model(tmp_path/'run')
    assert not (tmp_path/'ran').exists()
    trust(path)
    with pytest.raises(InputError, match='another version'): open_model(tmp_path/'run')
    assert not (tmp_path/'ran').exists()


def test_weights_beside_a_file_belong_to_it(tmp_path):
    "External data are part of the digest, and may not lie elsewhere"
    onnx = pytest.importorskip('onnx')
    path = to_onnx(filters(), tmp_path/'whole.onnx')
    model = onnx.load(path)
    onnx.save_model(model, tmp_path/'split.onnx', save_as_external_data=True, location='split.bin', size_threshold=0)
    first = FrozenEncoder(str(tmp_path/'split.onnx'), RATE)
    wave = torch.randn(2, SECOND) / 10
    assert torch.allclose(first(wave), FrozenEncoder(str(path), RATE)(wave), atol=1e-6)
    raw = bytearray((tmp_path/'split.bin').read_bytes())
    raw[3] ^= 1
    (tmp_path/'split.bin').write_bytes(raw)
    with pytest.raises(InputError, match='is not the one'):
        FrozenEncoder(str(tmp_path/'split.onnx'), RATE, digest=first.encoder.digest)
    (tmp_path/'split.bin').unlink()
    with pytest.raises(InputError, match='file of weights'): FrozenEncoder(str(tmp_path/'split.onnx'), RATE)
    for location in ('../split.bin', '/etc/passwd'):
        model = onnx.load(tmp_path/'split.onnx', load_external_data=False)
        for tensor in model.graph.initializer: tensor.external_data[0].value = location
        (tmp_path/'far.onnx').write_bytes(model.SerializeToString())
        with pytest.raises(InputError, match='outside its folder'): FrozenEncoder(str(tmp_path/'far.onnx'), RATE)


class Reshaped(nn.Module):
    "The filters behind another form of input or output"
    def __init__(self, rank=2, two=False):
        super().__init__()
        self.net, self.rank, self.two = filters(), rank, two

    def forward(self, wave):
        wave = wave[None] if self.rank == 1 else wave[:, 0] if self.rank == 3 else wave
        x = self.net(wave)
        x = x[0] if self.rank == 1 else x
        return (x, x * 2) if self.two else x


def test_forms_of_files(tmp_path):
    "One wave at a time, a channel axis, a fixed batch of one, several outputs: read from the file"
    wave = torch.randn(3, SECOND) / 10
    want = FrozenEncoder(filters(), RATE)(wave)
    forms = dict(one=dict(module=Reshaped(1), wave=torch.zeros(SECOND), free=()),
                 channel=dict(module=Reshaped(3), wave=torch.zeros(1, 1, SECOND)),
                 fixed=dict(module=filters(), free=()))
    for name, form in forms.items():
        path = to_onnx(path=tmp_path/f'{name}.onnx', **form)
        assert torch.allclose(FrozenEncoder(str(path), RATE)(wave), want, atol=1e-5), name
    path = to_onnx(Reshaped(two=True), tmp_path/'two.onnx', output_names=['a', 'b'])
    assert torch.allclose(FrozenEncoder(str(path), RATE, output='b')(wave), 2 * want, atol=1e-5)
    with pytest.raises(InputError, match='has the outputs a, b; name one'): FrozenEncoder(str(path), RATE)
    with pytest.raises(InputError, match='choose one of a, b'): FrozenEncoder(str(path), RATE, output='c')
    with pytest.raises(InputError, match='takes 8000; give window: 1'):
        FrozenEncoder(str(tmp_path/'fixed.onnx'), RATE, window=2)


@pytest.mark.parametrize('words, change', [
    ('takes frontend=encoder|take frontend=encoder', dict(frontend='dcase24')),
    ('take backbone=probe', dict(backbone='cp_mobile_24')),
    ('bands of frequency', dict(pipeline='dcase24')),
    ('say at how many Hz', dict(frontend_args=dict(source='a.onnx'))),
    ('no encoder is named', dict(frontend_args=dict(rate=8000))),
    ('there is no such encoder', dict(frontend_args=dict(source='a.onnx', rate=8000))),
    ("unknown keyword 'windw'", dict(frontend_args=dict(source='a.onnx', rate=8000, windw=1.))),
    ('must be a whole number', dict(frontend_args=dict(source='a.onnx', rate='16k'))),
    ('choose one of mean, max, attention', dict(backbone_args=dict(pooling='mode'))),
    ('made for embeddings of 5 numbers|width', dict(backbone_args=dict(width=5))),
])
def test_refused_before_training(words, change, onnx_file, data):
    base = settings(onnx_file).as_dict()
    with pytest.raises(InputError, match=words) as e:
        options = TrainingOptions(**base | change)
        check_training(options)
        create_training(data, options)[0].model.input_shape()
        create_classifier('probe', 'encoder', 'none', RATE, data.names, **{
            k: base[k] | change.get(k, {}) for k in ('frontend_args', 'backbone_args')})(torch.zeros(1, RATE))
    assert '\n' not in str(e.value)


def test_without_the_runtime(onnx_file, monkeypatch):
    "Where the extra is missing, a sentence says what to install"
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(InputError, match=r"pip install 'asc\[export\]'"): check_training(settings(onnx_file))


def test_not_stacked(onnx_file):
    from asc.run.parameters import full_parameters
    options = settings(onnx_file).as_dict()
    names = {name: value for name, value in options.items() if name != 'device'}
    with pytest.raises(InputError, match="frontend='encoder' cannot be stacked"):
        check_stacked(**full_parameters('train', None, names))


def test_a_callable_in_a_script(packed, tmp_path):
    "Any callable will do in Python; what lies in no file cannot be saved"
    corpus, store = packed
    model = create_classifier('probe', 'encoder', 'none', store.rate, corpus.scenes,
                              frontend_args=dict(source=filters(), rate=RATE))
    assert model.eval()(torch.randn(2, store.rate) / 10).shape == (2, len(corpus.scenes))
    with pytest.raises(InputError, match='lies in no file'): save_model(model, tmp_path/'run')
