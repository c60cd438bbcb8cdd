"""One opener: whatever a model was saved as, all who are given it answer one clip of one device alike, or refuse it."""
from copy import deepcopy
from types import SimpleNamespace

import pandas as pd
import pytest
import soundfile as sf
import torch

from asc import predict
from asc.backbone.weights import weights_fingerprint
from asc.backbone.zoo import create_backbone
from asc.core import InputError, read_json, seed_everything
from asc.data.splits import read_split
from asc.entry.package import open_system
from asc.entry.recomputed import describe_entrant, rebuild_entrant
from asc.entry.weights import entry_state, load_entrant
from asc.experiment.distillation import Distillation
from asc.experiment.norms import adapted_answers
from asc.experiment.recipe import open_start
from asc.load import KINDS, Hearing, open_model, opened
from asc.model.body import body_of
from asc.model.classifier import create_classifier, save_model
from asc.model.per_device import DeviceAware, save_devices
from asc.size.prune import prune
from asc.size.qat import save_quantised
from asc.size.qdq import calibrate, quantised_classifier
from asc.train.clips import ClipData
from asc.train.finetune import start_from
from asc.train.learner import predictions
from asc.train.norms import read_norms
from asc.use.answers import predict_teacher
from asc.use.microphones import probabilities_over_time
from conftest import ROOT
from encoders import RATE, filters, to_onnx

SMALL = dict(backbone_args=dict(base=8), pipeline='none', augment=False)
DEVICE = 'b'


def small_classifier(corpus, rate, **options):
    "A small untrained classifier for the scenes of a corpus"
    return create_classifier('cp_mobile_24', 'dcase24', rate=rate, scenes=corpus.scenes, **SMALL | options).eval()


def save_kinds(folder, corpus, store):
    "A model of every kind under its name; the path of each"
    seed_everything(0)
    general = small_classifier(corpus, store.rate)
    x = torch.randn(general.input_shape())
    save_model(general, folder/'float')

    narrow = deepcopy(general)
    narrow.backbone, _ = prune(general.backbone, x, max_macs=1_500_000, steps=1)
    save_model(narrow, folder/'pruned')

    integer = quantised_classifier(general)
    calibrate(integer.backbone, [torch.randn(8, *x.shape[1:])])
    save_quantised(integer, folder/'quantised')

    other = deepcopy(general.backbone)
    with torch.no_grad(): other.feed_forward[0].weight.mul_(-1)
    save_devices(DeviceAware(general, {DEVICE: other}, corpus.devices), folder/'device-wise')

    save_quantised(DeviceAware(integer, {DEVICE: other_codes(integer)}, corpus.devices), folder/'device-wise int8')

    torch.save(create_backbone('cp_mobile_24').state_dict(), folder/'published.ckpt')
    paths = {kind: folder/kind for kind in ('float', 'pruned', 'quantised', 'device-wise', 'device-wise int8')}
    return paths | dict(published=folder/'published.ckpt') | export(general, folder)


def save_probe(folder, corpus, store):
    "An untrained probe on an ONNX file, where the extra is installed"
    try: import onnxruntime  # noqa: F401
    except ImportError: return {}
    encoder = dict(source=str(to_onnx(filters(), folder/'encoder.onnx')), rate=RATE, window=1.)
    save_model(create_classifier('probe', 'encoder', 'none', store.rate, corpus.scenes, frontend_args=encoder,
                                 augment=False), folder/'probe')
    return dict(probe=folder/'probe')


def other_codes(model):
    "A quantised network like that of a model, the weights of its head negative"
    network = deepcopy(model.backbone)
    with torch.no_grad(): network.feed_forward[0].parametrizations.weight.original.mul_(-1)
    return network


def export(model, folder):
    "The same model as an ONNX file, where the extra is installed"
    try:
        from asc.export.onnx import export_model
        return dict(exported=export_model(model, folder/'exported.onnx'))
    except InputError:
        return {}


@pytest.fixture(scope='module')
def paths(packed, tmp_path_factory):
    "The path of a model of every kind"
    folder = tmp_path_factory.mktemp('kinds')
    return save_kinds(folder, *packed) | save_probe(folder, *packed)


@pytest.fixture(scope='module')
def rows(packed):
    "Clips of one device, which has a network of its own in the device-wise model"
    corpus, _ = packed
    return corpus.meta[corpus.meta.device == DEVICE].head(3).reset_index(drop=True)


@pytest.fixture(scope='module')
def sounds(packed, rows, tmp_path_factory):
    "The same clips as files"
    corpus, _ = packed
    return [str(corpus.dir/name) for name in rows.filename]


class Consumers:
    "What each consumer says of the clips: probabilities (3, classes)"

    def __init__(self, packed, rows, sounds):
        self.corpus, self.store = packed
        self.rows, self.sounds = rows, sounds
        self.data = ClipData(self.store, rows, self.corpus.scenes, self.corpus.devices)
        self.wave, self.device, _ = self.data.batch(range(len(rows)))

    def reference(self, path):
        "The opened model itself"
        hearing = Hearing(open_model(path), self.store.rate, self.corpus.devices)
        with torch.no_grad(): return hearing(self.wave, self.device).float().softmax(1)

    def classifier(self, path, consumer, kinds):
        "What a notebook that needs the PyTorch classifier says"
        model = open_model(path, self.store.rate).classifier(consumer, kinds)
        return torch.tensor(predictions(model, self.data)[self.corpus.scenes].to_numpy())

    def asc_predict(self, path):
        return torch.tensor(predict(path, self.sounds, device=DEVICE)[self.corpus.scenes].to_numpy())

    def demo(self, path):
        "Windows of a sound; a demo does not tell the device, so a general network answers"
        tables = [probabilities_over_time(path, wave[None], self.store.rate) for wave in self.wave]
        return torch.tensor(pd.concat(tables)[self.corpus.scenes].to_numpy())

    def logits(self, path):
        teacher = predict_teacher(path, self.store, self.rows, self.corpus.scenes, self.corpus.devices)
        return torch.as_tensor(teacher.logits).float().softmax(1)

    def live_teacher(self, path):
        student = small_classifier(self.corpus, self.store.rate)
        live = Distillation(str(path), dict(sees='clean')).callbacks(student, self.corpus.devices)[0]
        loaders = SimpleNamespace(train_ds=SimpleNamespace(cache=None))
        live.learn = SimpleNamespace(model=student, dls=loaders, xb=(self.wave, self.device), yb=())
        live.before_fit()
        live.after_pred()
        return live.learn.yb[-1].softmax(1)

    def init_from(self, path):
        start = open_start(str(path))
        options = {} if path.suffix == '.ckpt' else dict(backbone_args=dict(base=8))
        student = create_classifier('cp_mobile_24', 'dcase24', 'none', self.store.rate, self.corpus.scenes, **options)
        start_from(student, start, path)
        return torch.tensor(predictions(student.eval(), self.data)[self.corpus.scenes].to_numpy())

    def quantize(self, path):
        return self.classifier(path, 'quantize.ipynb', ('float', 'pruned', 'device-wise', 'published'))

    def norms(self, path):
        "So much of the training that nothing of the clips is left"
        norms = read_norms({'strength': 1e9})
        return torch.tensor(adapted_answers(open_model(path), self.data, norms)[0][self.corpus.scenes].to_numpy())

    def devices(self, path): return self.classifier(path, 'devices.ipynb', ('float', 'pruned'))

    def explore(self, path): return self.classifier(path, 'explore.ipynb', ('float', 'pruned', 'probe'))

    def submit(self, path):
        model, _ = load_entrant(path)
        return torch.tensor(predictions(model, self.data)[self.corpus.scenes].to_numpy())

    def package(self, path):
        return torch.tensor(predictions(open_system(path), self.data)[self.corpus.scenes].to_numpy())


@pytest.fixture(scope='module')
def consumers(packed, rows, sounds):
    return Consumers(packed, rows, sounds)


# consumer -> the kinds it cannot use, and how far its numbers may be from the model's own:
# the logits of a file and the weights of an entry are stored in 16 bits
CANNOT = {
    'asc_predict': ([], 1e-6),
    'demo': ([], 1e-6),
    'logits': ([], 2e-3),
    'live_teacher': (['exported'], 1e-6),
    'init_from': (['pruned', 'quantised', 'device-wise', 'device-wise int8', 'probe', 'exported'], 1e-6),
    'quantize': (['quantised', 'device-wise int8', 'probe', 'exported'], 1e-6),
    'norms': (['quantised', 'device-wise int8', 'probe', 'exported'], 1e-5),
    'devices': (['quantised', 'device-wise', 'device-wise int8', 'published', 'probe', 'exported'], 1e-6),
    'explore': (['quantised', 'device-wise', 'device-wise int8', 'published', 'exported'], 1e-6),
    'submit': (['published', 'probe', 'exported'], 5e-3),
    'package': (['published', 'probe', 'exported'], 1e-6),
}
MADE = [kind for kind in KINDS if kind != 'module']


@pytest.mark.parametrize('kind', MADE)
@pytest.mark.parametrize('name', CANNOT)
def test_one_clip_one_answer(name, kind, paths, consumers):
    "Every kind of model through every consumer: the same probabilities for the same clips, or a refusal by name"
    if kind not in paths: pytest.skip("needs the extra 'export'")
    path, consume = paths[kind], getattr(consumers, name)
    cannot, tolerance = CANNOT[name]
    if kind in cannot:
        with pytest.raises(InputError, match=kind): consume(path)
        return
    expected = consumers.reference(path)
    if name == 'demo' and kind.startswith('device-wise'):
        expected = consumers.reference(paths['quantised' if kind.endswith('int8') else 'float'])
    if kind in ('quantised', 'device-wise int8'):
        tolerance = max(tolerance, 5e-3)                   # the last bit of a float moves a code
    assert (consume(path) - expected).abs().max() <= tolerance


def test_the_table_of_the_notebook_is_this_one():
    "Rows and columns of the table in nbs/50_load.ipynb; its first row is of two consumers"
    cells = [''.join(cell['source']) for cell in read_json(ROOT/'nbs/50_load.ipynb')['cells']]
    table = next(text for text in cells if 'Who can use what' in text)
    (_, *kinds), _, *rows = [[word.strip() for word in line.strip('|').split('|')] for line in table.splitlines()
                             if line.startswith('|')]
    assert set(kinds) == set(MADE) and len(rows) == len(CANNOT) - 1
    for (consumer, *words), (name, (cannot, _)) in zip(rows, list(CANNOT.items())[1:]):
        assert {kind for kind, word in zip(kinds, words) if word == 'refused'} == set(cannot), (consumer, name)
        assert set(words) <= {'yes', 'refused'}


def test_a_probe_stays_a_teacher_alone(paths, packed):
    "Also with a network for each device, which those who refuse a probe would else take"
    if 'probe' not in paths: pytest.skip("needs the extra 'export'")
    probe = open_model(paths['probe']).network
    wise = DeviceAware(probe, {DEVICE: deepcopy(probe.backbone)}, packed[0].devices)
    assert opened(wise).kind == 'probe'


@pytest.mark.parametrize('kind', MADE)
def test_kinds_are_told_apart(kind, paths):
    if kind not in paths: pytest.skip("needs the extra 'export'")
    assert open_model(paths[kind]).kind == kind


def test_a_device_has_its_own_network(consumers, paths):
    "The device-wise model differs from the general one for this device, so that the table means something"
    for wise, general in {'device-wise': 'float', 'device-wise int8': 'quantised'}.items():
        gap = (consumers.reference(paths[wise]) - consumers.reference(paths[general])).abs().max()
        assert gap > 1e-3


def test_one_fingerprint(consumers, paths, packed, rows, tmp_path):
    "Card, file of logits, opened run and exported file name a network by the same digits"
    corpus, store = packed
    model = open_model(paths['float'])
    digits = weights_fingerprint(body_of(model.network))
    assert model.fingerprint == digits
    assert predict_teacher(paths['float'], store, rows, corpus.scenes, corpus.devices).facts['fingerprint'] == digits
    facts = Distillation(str(paths['float'])).check(read_split(corpus, 100), corpus.scenes)
    assert facts['teachers'][0]['fingerprint'] == digits
    if 'exported' in paths: assert open_model(paths['exported']).fingerprint == digits


def test_a_sound_at_another_rate(packed, paths, tmp_path):
    "A file at 48 kHz in stereo is brought to the rate of every kind of model"
    corpus, _ = packed
    tone = torch.sin(torch.arange(48000) / 20)[:, None].repeat(1, 2).numpy()
    sf.write(tmp_path/'tone.wav', tone, 48000)
    for path in paths.values():
        table = predict(path, tmp_path/'tone.wav')
        assert table[corpus.scenes].sum(axis=1).tolist() == pytest.approx([1.])


def test_an_entry_of_device_networks_in_eight_bits(paths, consumers):
    "Codes of every network are handed in, of one that is the general one too, and answer as the run does"
    folder = paths['device-wise int8']
    model, bits = load_entrant(folder)
    state = entry_state(model, bits)
    assert bits == 8 and any(name.startswith(f'device_models.{DEVICE}.') for name in state)
    again = rebuild_entrant(state, describe_entrant(model, folder), folder)
    with torch.no_grad():
        expected = model(consumers.wave, consumers.device)
        assert torch.equal(again(consumers.wave, consumers.device), expected)


def test_norms_are_adapted_to_the_network_of_a_device(paths, consumers):
    "The network of the device hears its clips; the general one and the model that was given stay as they are"
    model = open_model(paths['device-wise'])
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    table, counts = adapted_answers(model, consumers.data, read_norms({'strength': 1.}))
    answers = torch.tensor(table[consumers.corpus.scenes].to_numpy())
    assert counts == {DEVICE: 3} and (answers - consumers.reference(paths['device-wise'])).abs().max() > 1e-4
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items())
