"""How much air the code has: `python tests/air.py [folder]` prints the figures that the house test holds."""
import ast
import json
import re
import sys
from pathlib import Path

import numpy as np


def sources(path):
    "The text of every code cell of a notebook"
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type'] == 'code']


def is_exported(source):
    return re.search(r'^#\|\s*export', source, re.M) is not None


def notebooks(folder):
    return sorted(p for p in Path(folder).rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)


def definitions(source):
    "The text of each function and class at the top of a cell"
    kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    return [ast.get_source_segment(source, node) for node in ast.parse(source).body if isinstance(node, kinds)]


def measure(folder):
    "Characters a definition, definitions that share a cell, width of lines, height of exported cells"
    lengths, shared, lines, heights = [], 0, [], []
    for path in notebooks(folder):
        for source in sources(path):
            lines += [len(line) for line in source.splitlines() if line.strip()]
            if not is_exported(source):
                continue
            made = definitions(source)
            lengths += [len(text) for text in made]
            shared += len(made) if len(made) > 1 else 0
            heights.append(len(source.splitlines()))
    lines = np.array(lines)
    return {
        'definitions': len(lengths),
        'median characters': float(np.median(lengths)),
        'p90 characters': float(np.percentile(lengths, 90)),
        'share a cell %': 100 * shared / len(lengths),
        'over 100 columns %': 100 * float((lines > 100).mean()),
        'over 120 columns %': 100 * float((lines > 120).mean()),
        'highest exported cell': max(heights),
    }


if __name__ == '__main__':
    root = Path(__file__).resolve().parents[1]
    for name, value in measure(sys.argv[1] if len(sys.argv) > 1 else root/'nbs').items():
        print(f'{name:<24}{value:10,.1f}')
