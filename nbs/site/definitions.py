"""The documentation of functions and classes, as Markdown for Sphinx's Python domain.

It is read from their source: nothing is imported, so the site is built whatever extras are installed."""
import ast
import copy
import io
import re
import tokenize

from sphinx.pycode.ast import unparse


# Markdown

def escape(text):
    "Text for a cell of a Markdown table: code stays code, nothing else is markup"
    parts = re.split(r'(`[^`]*`)', text.replace('|', r'\|'))
    parts[::2] = [re.sub(r'([*_$<\[{])', r'\\\1', part) for part in parts[::2]]
    return ''.join(parts)


def code(text):
    "Code for a cell of a Markdown table"
    return f'`{text}`'.replace('|', r'\|') if text else ''


def table(header, rows):
    "A Markdown table without its empty columns"
    keep = [i for i in range(len(header)) if any(row[i] for row in rows)]
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(line[i] for i in keep) + ' |' for line in lines) + '\n'


def parameter_table(rows):
    "(name, type, default, meaning) of each parameter, if there is anything to say about one of them"
    if not any(meaning for *_, meaning in rows):
        return ''
    cells = [[code(name), code(kind), code(default), escape(meaning)] for name, kind, default, meaning in rows]
    return '{.parameters}\n' + table(['name', 'type', 'default', 'meaning'], cells)


# Definitions, read from their source

def comments(source):
    "Comments by the line they end"
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip('# ').strip() for t in tokens if t.type == tokenize.COMMENT}


def text_of(node):
    return ast.unparse(node) if node else ''


def docstring(node):
    return escape(ast.get_docstring(node) or '')


def arguments(node):
    "(argument, default) of a function, in order"
    args = node.args
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + args.defaults
    pairs = [*zip(plain, defaults), (args.vararg, None), *zip(args.kwonlyargs, args.kw_defaults), (args.kwarg, None)]
    return [(arg, default) for arg, default in pairs if arg]


def parameters(node, notes):
    "Rows of a function; a comment belongs to the last parameter of its line"
    rows, lines = {}, {}
    for arg, default in arguments(node):
        rows[arg.arg] = [arg.arg, text_of(arg.annotation), text_of(default), '']
        lines[arg.lineno] = arg.arg
    if node.returns:
        rows['returns'] = ['returns', text_of(node.returns), '', '']
        lines[node.returns.lineno] = 'returns'
    for line in range(node.lineno, max(node.body[0].lineno, node.lineno + 1)):
        if line in notes:
            rows.setdefault(lines.get(line, 'returns'), ['returns', '', '', ''])[3] = notes[line]
    return [row for name, row in rows.items() if name not in ('self', 'cls')]


def fields(node, notes):
    "Rows of a dataclass"
    return [[f.target.id, text_of(f.annotation), text_of(f.value), notes.get(f.end_lineno, '')]
            for f in node.body if isinstance(f, ast.AnnAssign)]


def simple(default):
    "A default that Sphinx can write; others are in the table"
    try:
        unparse(default)
    except NotImplementedError:
        return ast.Constant(...)
    return default


def signature(node):
    "A function's parameters without their types"
    args = copy.deepcopy(node.args)
    args.defaults = [simple(default) for default in args.defaults]
    args.kw_defaults = [default and simple(default) for default in args.kw_defaults]
    for arg in ast.walk(args):
        if isinstance(arg, ast.arg):
            arg.annotation = None
    return f"({re.sub(r'^(self|cls)(, )?', '', ast.unparse(args))})"


def directive(kind, name, call, body, depth=3):
    "A definition for Sphinx's Python domain"
    fence = ':' * depth
    return f'{fence}{{py:{kind}}} {name}{call}\n\n{body}\n{fence}\n'


def function(node, notes):
    "A function, or a method that fastcore patches into its class"
    body = f'{docstring(node)}\n\n{parameter_table(parameters(node, notes))}'
    if any('patch' in text_of(d) for d in node.decorator_list):
        owner = text_of(node.args.args[0].annotation).strip("'")
        return directive('method', f'{owner}.{node.name}', signature(node), body)
    return directive('function', node.name, signature(node), body)


def described(method):
    "A method of a class, or a property"
    if any(text_of(decorator) == 'property' for decorator in method.decorator_list):
        return directive('property', method.name, '', docstring(method))
    return directive('method', method.name, signature(method), docstring(method))


def klass(node, notes):
    "A class: how it is made, and the methods that say what they do"
    methods = {f.name: f for f in node.body if isinstance(f, ast.FunctionDef)}
    if '__init__' in methods:
        call = signature(methods['__init__'])
        rows = [row for row in parameters(methods['__init__'], notes) if row[0] != 'returns']
    else:
        rows = fields(node, notes)
        call = '(' + ', '.join(f'{name}={default}' if default else name for name, _, default, _ in rows) + ')'
    body = f'{docstring(node)}\n\n{parameter_table(rows)}\n'
    for name, method in methods.items():
        if not name.startswith('_') and ast.get_docstring(method):
            body += described(method) + '\n'
    return directive('class', node.name, '' if call == '()' else call, body, depth=4)


def definition(node, notes):
    return klass(node, notes) if isinstance(node, ast.ClassDef) else function(node, notes)
