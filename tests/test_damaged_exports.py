"""Damaged exported files: what is not as it was written is not run, and its card says the same as it does."""
import hashlib
import os
import shutil

import pytest
import torch

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from asc.cli import main  # noqa: E402
from asc.core import SCENES, read_json, write_json  # noqa: E402
from asc.export.card import card_text, check_card, write_card  # noqa: E402
from asc.export.digest import exported_bytes  # noqa: E402
from asc.export.onnx import Parts, executed_ops, file_metadata, load_exported, stored_tensors, write_graph  # noqa: E402
from asc.frontend.logmel import create_frontend  # noqa: E402
from asc.load import open_model  # noqa: E402
from nodes import NODES, nothing  # noqa: E402

BANDS, FRAMES = 256, 65


def graph():
    "log-mel -> logits: one matrix"
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    torch.manual_seed(0)
    matrix = onnx.numpy_helper.from_array(torch.randn(BANDS * FRAMES, 10).numpy() / 1000, 'network/weight')
    nodes = [helper.make_node('Flatten', ['logmel'], ['flat']),
             helper.make_node('MatMul', ['flat', 'network/weight'], ['logits'])]
    ends = [helper.make_tensor_value_info('logmel', kind, ['batch', 1, BANDS, FRAMES]),
            helper.make_tensor_value_info('logits', kind, ['batch', 10])]
    whole = helper.make_graph(nodes, 'asc', ends[:1], ends[1:], [matrix])
    return helper.make_model(whole, opset_imports=[helper.make_opsetid('', 20)], ir_version=9)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A small exported file with a card"
    path = tmp_path_factory.mktemp('exports')/'net.onnx'
    parts = Parts(create_frontend('dcase24'), torch.nn.Linear(1, 1), list(SCENES), 44100, 'linear')
    write_graph(graph(), file_metadata(parts, 44100, (BANDS, FRAMES), 'float32', False), path)
    facts = {key: value for key, value in load_exported(path).facts.items() if key != 'format'}
    size = dict(challenge=1, bits=32, file=1, network=1, frontend=1, stored={})
    cost = dict(params=1, macs=1, honest=dict(macs=1, elements=1, ram=1))
    write_card(path, dict(
        format='asc-card-1', file=path.name, **facts, sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        bytes=size, complexity=cost, fits_as_stored=True, integer_layers=0, rules={}, accuracy={}, data={}, parity={},
        licence='none', notes=[]))
    return path


@pytest.fixture
def copy(exported, tmp_path):
    "The file and its card, to be damaged"
    for end in ('.onnx', '.json', '.md'): shutil.copy(exported.with_suffix(end), tmp_path)
    return tmp_path/exported.name


def test_whole_file_answers(exported):
    model = open_model(exported)
    assert model(torch.randn(2, 44100) / 10).sum(1).tolist() == pytest.approx([1, 1])
    assert check_card(exported) == []
    assert load_exported(exported).facts['digest'] in exported.with_suffix('.md').read_text(encoding='utf-8')


@pytest.mark.parametrize('part', range(48))
def test_flipped_byte(part, copy, damage):
    "Anywhere: the graph, the weights, the metadata, the digest"
    raw = bytearray(copy.read_bytes())
    place = part if part < 8 else -1 - 9 * (part - 8) if part < 32 else (part - 31) * len(raw) // 17
    raw[place] ^= 1 << part % 8
    copy.write_bytes(raw)
    damage('exported file', lambda: load_exported(copy), [copy])


@pytest.mark.parametrize('length', [0, 1, 9, 100, .1, .3, .5, .7, .9, -2000, -500, -100, -64, -10, -1])
def test_cut(length, copy, damage):
    raw = copy.read_bytes()
    copy.write_bytes(raw[:int(length * len(raw)) if isinstance(length, float) else length])
    damage('exported file', lambda: load_exported(copy), [copy])


def metadata(**values):
    "A change of the metadata"
    def change(m):
        for pair in m.metadata_props:
            if pair.key in values: pair.value = values[pair.key]
    return change


def gather(m):
    "Two classes change places behind the softmax"
    order = onnx.numpy_helper.from_array(torch.tensor([1, 0, *range(2, 10)]).numpy(), 'order')
    m.graph.initializer.append(order)
    m.graph.node[-1].output[0] = 'before'
    m.graph.node.append(onnx.helper.make_node('Gather', ['before', 'order'], ['probabilities'], axis=1))


def without_softmax(m):
    m.graph.node.remove(m.graph.node[-1])
    m.graph.node.append(onnx.helper.make_node('Identity', ['logits'], ['probabilities']))


def other_weights(m):
    matrix = onnx.numpy_helper.to_array(m.graph.initializer[0]).copy()
    matrix[0, 0] += 1
    m.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(matrix, 'network/weight'))


def weights_elsewhere(m):
    "The matrix in a file beside this one, as ONNX allows"
    tensor = m.graph.initializer[0]
    tensor.ClearField('raw_data')
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key='location', value='weights.bin')


def second_digest(m):
    m.metadata_props.add(key='digest', value='0' * 64)


def no_metadata(m):
    del m.metadata_props[:]


EDITS = {
    'classes reordered': metadata(classes=str(sorted(SCENES, reverse=True)).replace("'", '"')),
    'class renamed': metadata(classes=str(['terminal', *SCENES[1:]]).replace("'", '"')),
    'rate': metadata(rate='32000'), 'samples': metadata(samples='22050'), 'kind': metadata(kind='waveform'),
    'frontend': metadata(frontend='{}'), 'fingerprint': metadata(fingerprint='0' * 16),
    'precision': metadata(precision='int8'),
    'digest of zeros': metadata(digest='0' * 64), 'digest short': metadata(digest='0' * 63),
    'no digest': metadata(digest=''),
    'format': metadata(format='asc-export-2'), 'gather': gather, 'no softmax': without_softmax,
    'weights': other_weights,
    'weights elsewhere': weights_elsewhere, 'second digest': second_digest, 'no metadata': no_metadata,
    'a note': lambda m: m.metadata_props.add(key='note', value='mine'),
    'producer': lambda m: setattr(m, 'producer_name', 'x'),
}


@pytest.mark.parametrize('name', EDITS)
@pytest.mark.parametrize('door', [load_exported, open_model, check_card, stored_tensors, executed_ops],
                         ids=lambda door: door.__name__)
def test_edited(name, door, copy, damage):
    "With the usual tools, which leave a sound ONNX file"
    m = onnx.load(copy)
    EDITS[name](m)
    copy.write_bytes(m.SerializeToString())
    damage('exported file', lambda: door(copy), [copy])


PLACES = {'missing': nothing, **{node.__name__: node for node in NODES},
          'sparse': lambda path: (path.touch(), os.truncate(path, 2**33)), 'text': lambda path: path.write_text('ONNX')}


@pytest.mark.parametrize('name', PLACES)
def test_no_file(name, copy, damage):
    copy.unlink()
    PLACES[name](copy)
    damage('exported file', lambda: load_exported(copy), [copy])


CARDS = {
    'another digest': lambda card: card.update(digest='0' * 64),
    'another hash': lambda card: card.update(sha256='0' * 64),
    'classes': lambda card: card.update(classes=card['classes'][::-1]), 'rate': lambda card: card.update(rate=32000),
    'file': lambda card: card.update(file='other.onnx'), 'no digest': lambda card: card.pop('digest'),
    'accuracy': lambda card: card.update(accuracy=dict(accuracy=.99)), 'licence': lambda card: card.pop('licence'),
    'precision': lambda card: card.update(precision='int8'), 'frontend': lambda card: card.update(frontend={}),
}


@pytest.mark.parametrize('name', CARDS)
def test_card_of_another_file(name, copy):
    card = read_json(copy.with_suffix('.json'))
    CARDS[name](card)
    write_json(copy.with_suffix('.json'), card)
    problem, = check_card(copy)
    assert 'net.json' in problem and 'write' in problem


def test_card_for_people_alone(copy):
    path = copy.with_suffix('.md')
    text = card_text(read_json(copy.with_suffix('.json')))
    path.write_text(text.replace('| licence | none |', '| licence | MIT |'), encoding='utf-8')
    assert 'net.md: not the card' in check_card(copy)[0]


def test_the_digest_of_a_whole_file_is_right(copy):
    assert exported_bytes(copy) == copy.read_bytes()


def test_the_command_compares(copy, capsys):
    main(['check', str(copy)])
    assert 'nothing to object to' in capsys.readouterr().out
    write_json(copy.with_suffix('.json'), read_json(copy.with_suffix('.json')) | dict(rate=32000))
    with pytest.raises(SystemExit): main(['check', str(copy)])
    assert 'net.json: rate not as in net.onnx' in capsys.readouterr().out
