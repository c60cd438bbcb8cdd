"""Damaged texts: YAML and JSON that people and parsers read differently, in every encoding, and files that are none."""
import pytest

from asc.core import parse_json, parse_yaml, read_json, read_yaml
from nodes import NODES, nothing

REFUSED_YAML = {
    'key twice': 'lr: 1\nlr: 2', 'key twice inside': 'a: {b: 1, b: 2}', 'octal': 'epochs: 010', 'zeros': 'epochs: 00',
    'negative octal': 'seed: -017', 'base 60': 'epochs: 1:30', 'base 60 float': 'lr: 1:30.5', 'list': '- 1',
    'text': 'lr',
    'number': '3', 'reference': 'a: &x 1\nb: *x', 'loop': 'a: &x [*x]', 'object': 'a: !!python/object:os.system {}',
    'set': 'a: !!set {b}', 'binary': 'a: !!binary aGk=', 'own tag': 'a: !mine 3', 'list as key': '? [1, 2]\n: 3',
    'open bracket': 'a: [1', 'open quote': "a: 'b", 'tab': 'a:\n\tb: 1', 'levels': '{a: ' * 5000, 'zero byte': 'a: \0',
    'two documents': 'a: 1\n---\nb: 2', 'merge twice': '<<: {a: 1}\n<<: {a: 2}\na: 1\na: 2',
}
RIGHT_YAML = {
    'exponent': ('lr: 1e-3', {'lr': .001}), 'date': ('day: 2026-01-01', {'day': '2026-01-01'}), 'empty': ('', {}),
    'quoted octal': ("a: '010'", {'a': '010'}), 'accents': ('scene: café', {'scene': 'café'}),
    'mark': ('\ufeffa: 1', {'a': 1}),
}
REFUSED_JSON = {
    'key twice': '{"lr": 1, "lr": 2}', 'NaN': '{"lr": NaN}', 'infinity': '{"lr": -Infinity}', 'list': '[1]',
    'text': '"lr"',
    'levels': '[' * 100000, 'cut': '{"lr": 1', 'empty': '', 'comma': '{"lr": 1,}', 'quotes': "{'lr': 1}",
}


@pytest.mark.parametrize('name', REFUSED_YAML)
def test_yaml_is_refused(name, damage):
    damage('YAML', lambda: parse_yaml(REFUSED_YAML[name], 'me.yaml'), ['me.yaml'])


@pytest.mark.parametrize('name', RIGHT_YAML)
def test_yaml_is_right(name, damage, tmp_path):
    text, value = RIGHT_YAML[name]
    (tmp_path/'me.yaml').write_text(text, encoding='utf-8')
    damage('YAML', lambda: read_yaml(tmp_path/'me.yaml'), right=lambda found: found == value)


@pytest.mark.parametrize('name', REFUSED_JSON)
def test_json_is_refused(name, damage):
    damage('JSON', lambda: parse_json(REFUSED_JSON[name], 'model.json'), ['model.json'])


@pytest.mark.parametrize('encoding', ['cp1252', 'utf-16', 'utf-32', 'latin-1'])
@pytest.mark.parametrize('read', [read_yaml, read_json], ids=['yaml', 'json'])
def test_encoding_is_refused(read, encoding, damage, tmp_path):
    (tmp_path/'me').write_text('{"scene": "café"}', encoding=encoding)
    damage('encoding', lambda: read(tmp_path/'me'), ['me'])


@pytest.mark.parametrize('node', [nothing, *NODES])
@pytest.mark.parametrize('read', [read_yaml, read_json], ids=['yaml', 'json'])
def test_no_regular_file(read, node, damage, tmp_path):
    path = tmp_path/'me.yaml'
    node(path)
    damage('no regular file', lambda: read(path), [path])


@pytest.mark.parametrize('name', ['x' * 300, 'file/me.yaml', 'a\0b'], ids=['too long', 'below a file', 'zero byte'])
@pytest.mark.parametrize('read', [read_yaml, read_json], ids=['yaml', 'json'])
def test_no_path(read, name, damage, tmp_path):
    (tmp_path/'file').write_text('')
    damage('no regular file', lambda: read(tmp_path/name), [tmp_path/name])
