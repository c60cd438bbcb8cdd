"""A run notebook that stands in for a training: it writes a journal and waits for a gate to open.

`python stand_in.py FOLDER` drives a sweep of two of its cells, as another process does that works on the same sweep."""
import sys
from pathlib import Path

import nbformat

from asc.experiment.sweeps import run_sweep, Sweep
from asc.experiment.cells import sweep_cells

PARAMETERS = '''
subset: int = 1
seed: int = 0
journal: str = ''
gate: str = ''
resume: bool = False
out: str = ''
'''
START = '''
from asc.run.folder import Run
run = Run.start(globals(), 'stand_in')
'''
WAIT = '''
import os, time
from pathlib import Path

def write_journal(word):
    with open(journal, 'a') as file:
        file.write(f'{word} {subset}-{seed} {os.getpid()} {resume}\\n')

run.note()
(run.dir/'checkpoint.pt').touch()
write_journal('begun')
end = time.time() + 60
while gate and not Path(gate).exists() and time.time() < end:
    time.sleep(.02)
'''
FINISH = '''
if seed == 9: raise ValueError('no such seed')
write_journal('ended')
run.finish(dict(macro_accuracy=subset / 100))
'''


def write_notebook(path, *cells):
    "A run notebook of these cells, the first one with its parameters"
    kernel = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
    cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in cells]
    cells[0].metadata['tags'] = ['parameters']
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)


def write_stand_in(folder):
    "The notebook folder/stand_in.ipynb"
    write_notebook(folder/'stand_in.ipynb', PARAMETERS, START, WAIT, FINISH)


def sweep_of(folder, subsets=(25,), seeds=(0,), **options):
    "A sweep of the stand-in"
    common = dict(journal=str(folder/'journal'), gate=str(folder/'gate'))
    notebook = folder/'stand_in.ipynb'
    cells = sweep_cells([''], subsets, seeds, common, notebook=notebook)
    return Sweep(cells, folder/'runs', **options)


def read_journal(folder, word):
    "Lines of the journal that begin with the word: (cell, process, resumed)"
    path = folder/'journal'
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(line.split()[1:]) for line in lines if line.startswith(word)]


if __name__ == '__main__':
    run_sweep(sweep_of(Path(sys.argv[1]), seeds=(0, 1)), workers=2, pause=.1)
