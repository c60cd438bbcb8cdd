"""Sweeps under attack: killed workers, killed drivers, foreign folders, object stores, every engine; each run is there exactly once."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from asc.cli import main
from asc.core import InputError, write_json
from asc.run.parameters import full_parameters
from asc.run.process import Busy, RunFailed, is_held, job_state, only_worker, run_notebook
from asc.experiment.sweeps import Sweep, local_engine, run_sweep, sweep_cells
from conftest import ROOT

CELLS = ["""subset: int = 1
seed: int = 0
journal: str = ''
gate: str = ''
resume: bool = False
out: str = ''""", """from asc.run.folder import Run
run = Run.start(globals(), 'stand_in')""", """import os, time
from pathlib import Path
def tell(what):
    with open(journal, 'a') as f: f.write(f'{what} {subset}-{seed} {os.getpid()} {resume}\\n')
run.note()
(run.dir/'checkpoint.pt').touch()
tell('begun')
end = time.time() + 60
while gate and not Path(gate).exists() and time.time() < end: time.sleep(.02)""", """if seed == 9: raise ValueError('no such seed')
tell('ended')
run.finish(dict(macro_accuracy=subset / 100))"""]


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    "A run notebook that writes a journal and waits for a gate to open, where a training would train"
    (tmp_path/'rfc3987_syntax.py').write_text('raise ImportError')          # jsonschema does without; it takes a second of every papermill
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT/'tests')]))
    kernel = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS], metadata=kernel)
    nb.cells[0].metadata['tags'] = ['parameters']
    nbformat.write(nb, tmp_path/'stand_in.ipynb')
    return tmp_path


def sweep_of(folder, subsets=(25,), seeds=(0,), **kw):
    "A sweep of the stand-in"
    common = dict(journal=str(folder/'journal'), gate=str(folder/'gate'))
    cells = sweep_cells([''], subsets, seeds, common, notebook=folder/'stand_in.ipynb')
    return Sweep(cells, folder/'runs', folder/'stand_in.ipynb', **kw)


def journal(folder, what):
    "Lines of the journal: (cell, process, resumed)"
    lines = (folder/'journal').read_text().splitlines() if (folder/'journal').exists() else []
    return [tuple(l.split()[1:]) for l in lines if l.startswith(what)]


def wait_for(what, seconds=60):
    end = time.time() + seconds
    while not what() and time.time() < end: time.sleep(.02)
    assert what()


def parent(pid): return int(Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[1])


def alive(pid): return Path(f'/proc/{pid}').exists() and Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'


def driver(folder):
    "A process that drives the sweep of two cells"
    code = f'from pathlib import Path; from test_sweep import run_sweep, sweep_of; run_sweep(sweep_of(Path({str(folder)!r}), seeds=(0, 1)), workers=2, pause=.1)'
    return subprocess.Popen([sys.executable, '-c', code], cwd=ROOT)


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='finds processes through /proc')
def test_killed_worker_and_killed_driver(stand_in):
    "kill -9 on the worker of one cell, then on the driver; two drivers at once go on, and every run is there once, from its checkpoint"
    first = driver(stand_in)
    wait_for(lambda: len(journal(stand_in, 'begun')) == 2)
    victim = journal(stand_in, 'begun')[0]
    os.kill(parent(victim[1]), signal.SIGKILL)                              # the worker; its kernel sees that it is alone
    wait_for(lambda: len(journal(stand_in, 'begun')) == 3)                  # the cell is begun again, by itself
    assert journal(stand_in, 'begun')[2][0] == victim[0] and journal(stand_in, 'begun')[2][2] == 'True' and not alive(victim[1])
    sweep = sweep_of(stand_in, seeds=(0, 1))
    assert all(is_held(sweep.out(n)) for n in sweep.cells)
    first.kill()
    first.wait()
    wait_for(lambda: not any(alive(pid) for _, pid, _ in journal(stand_in, 'begun')))               # nothing is left behind
    assert [sweep.state(n) for n in sweep.cells] == ['unfinished'] * 2 and not journal(stand_in, 'ended')
    second = driver(stand_in)
    wait_for(lambda: len(journal(stand_in, 'begun')) == 5)
    (stand_in/'gate').touch()
    assert run_sweep(sweep, workers=2, pause=.1) == list(sweep.cells) and second.wait() == 0
    assert sorted(c for c, _, _ in journal(stand_in, 'ended')) == ['25-0', '25-1'] and len(journal(stand_in, 'begun')) == 5
    assert all(r == 'True' for _, _, r in journal(stand_in, 'ended'))


@pytest.fixture
def learns(stand_in, synthetic):
    "A run notebook with the parameters of train.ipynb, which tells what it finds instead of evaluating, and cells that differ in their seed"
    train = nbformat.read(ROOT/'nbs/train.ipynb', 4)
    declared = next(c.source for c in train.cells if 'parameters' in c.metadata.get('tags', []))
    nb = nbformat.read(stand_in/'stand_in.ipynb', 4)
    nb.cells = [nbformat.v4.new_code_cell(c) for c in (
        declared + "\njournal: str = ''", "from asc.run.folder import Run\nrun = Run.start(globals(), 'learns')\nrun.note()",
        "epochs_done = sum(1 for _ in open(run.dir/'history.csv')) - 1 if (run.dir/'checkpoint.pt').exists() else 0",
        "with open(journal, 'a') as f: f.write(f'ended {subset}-{seed} {epochs_done} {resume}\\n')\nrun.finish(dict(macro_accuracy=.5))")]
    nb.cells[0].metadata['tags'] = ['parameters']
    nbformat.write(nb, stand_in/'learns.ipynb')
    return stand_in, dict(data_dir=str(synthetic), epochs=6, bs=25, backbone='cnn3', frontend='cnn3', pipeline='none', journal=str(stand_in/'journal'))


def stack_of(folder, parameters):
    "A sweep of two cells that can be stacked"
    return Sweep(sweep_cells([''], [5], [0, 1], parameters, notebook=folder/'learns.ipynb'), folder/'runs', folder/'learns.ipynb', stack=True)


def test_stacked_seeds(learns):
    "kill -9 on the driver of a stacked training: nothing is left behind, it goes on from its checkpoints, and every cell is evaluated once"
    folder, parameters = learns
    sweep = stack_of(folder, parameters)
    assert sweep.stacks == [tuple(sweep.cells)]
    epochs = lambda: [sum(1 for _ in open(f)) - 1 for f in (folder/'runs').glob('*/history.csv')]
    first = subprocess.Popen([sys.executable, '-c', f'from asc.experiment.sweeps import attempt; attempt({sweep.task(*sweep.cells)})'], cwd=ROOT)     # as a worker of an engine does
    wait_for(lambda: len(epochs()) == 2 and min(epochs()) >= 2)
    first.kill()
    first.wait()
    wait_for(lambda: not any(is_held(sweep.out(n)) for n in sweep.cells))
    assert 2 <= min(epochs()) and max(epochs()) < 6 and not any(sweep.trained(n) for n in sweep.cells) and not (folder/'journal').exists()
    assert run_sweep(sweep, workers=2, pause=.1) == list(sweep.cells), sweep.errors
    assert sorted(journal(folder, 'ended')) == [('5-0', '6', 'True'), ('5-1', '6', 'True')]
    logs = [folder/f'runs/{n}.log' for n in sweep.cells]
    assert logs[0].read_text().count('continuing after epoch') == 2                                     # both seeds in one process
    before = [p.stat().st_mtime_ns for p in logs]
    assert run_sweep(stack_of(folder, parameters), workers=1) == list(sweep.cells) and [p.stat().st_mtime_ns for p in logs] == before


def test_a_killed_stack_is_tried_again(learns, monkeypatch):
    "A stack whose process is killed counts as an attempt of each of its cells; after it a cell is one like others"
    folder, parameters = learns
    sweep, seen = stack_of(folder, parameters), []
    def stack(runs, env):
        seen.append(tuple(Path(r['out']).name for r in runs))
        if len(seen) == 1: raise RunFailed('killed', killed=True)
        for r in runs:
            asked = dict(notebook='learns', parameters=sweep.cells[Path(r['out']).name].parameters)
            write_json(Path(r['out'])/'.job.json', asked), (Path(r['out'])/'history.csv').write_text('epoch\n' * 7)
    def run(out, **task):
        seen.append(Path(out).name)
        for name in ('params', 'metrics'): write_json(Path(out)/f'{name}.json', dict(notebook='learns', parameters=sweep.cells[Path(out).name].parameters, metrics={}))
    monkeypatch.setattr('asc.experiment.seeds.run_stack', stack), monkeypatch.setattr('asc.experiment.sweeps.run_notebook', run)
    names = tuple(sweep.cells)
    assert run_sweep(sweep, workers=1, pause=.01) == list(names) and seen == [names, names, *names]


def test_a_stack_is_refused_at_once(learns):
    "What cannot be stacked is said before any folder is made; a stack that fails names its reason for each cell"
    folder, parameters = learns
    with pytest.raises(InputError, match='patience=3 cannot be stacked'): stack_of(folder, dict(parameters, patience=3))
    assert not (folder/'runs').exists()
    cells = sweep_cells([''], [5], [0, 1], dict(parameters, data_dir=str(folder/'nowhere')), notebook=folder/'learns.ipynb')
    sweep = Sweep(cells, folder/'runs', folder/'learns.ipynb', stack=True)
    assert run_sweep(sweep, workers=1, pause=.1) == [] and all('nowhere' in sweep.errors[n] for n in sweep.cells) and not (folder/'journal').exists()


HANDLER = '''from pathlib import Path
class Store:
    "Stands for s3://: papermill hands over the text of a notebook"
    def path(self, p): return Path(__file__).parent/'bucket'/p.removeprefix('fake://')
    def write(self, buf, p): self.path(p).parent.mkdir(parents=True, exist_ok=True); self.path(p).write_text(buf)
    def pretty_path(self, p): return p
store = Store()
'''


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='finds processes through /proc')
@pytest.mark.parametrize('engine, options', [('slurm', dict(cluster='local', timeout_min=5)), ('dask', {})])
def test_engines(stand_in, engine, options):
    "SLURM's and Dask's worker is killed on this machine: the cell is redone; the executed notebook is in an object store"
    pytest.importorskip(dict(slurm='submitit', dask='distributed')[engine])
    info = stand_in/'fakestore-1.0.dist-info'
    info.mkdir()
    (info/'METADATA').write_text('Metadata-Version: 2.1\nName: fakestore\nVersion: 1.0\n')
    (info/'entry_points.txt').write_text('[papermill.io]\nfake:// = fakestore:store\n')
    (stand_in/'fakestore.py').write_text(HANDLER)
    killed = []
    def kill(table):
        if not killed and len(journal(stand_in, 'begun')) == 1:
            kernel = journal(stand_in, 'begun')[0][1]
            killed.append(parent(parent(kernel)))                           # the engine's own process, above papermill's
            os.kill(killed[0], signal.SIGKILL)
            (stand_in/'gate').touch()
    sweep = sweep_of(stand_in, executed='fake://mine/')
    assert run_sweep(sweep, engine, 1, options=options, show=kill, pause=.1) == ['default-split25-seed0'], sweep.errors
    assert killed and [len(journal(stand_in, w)) for w in ('begun', 'ended')] == [2, 1]
    executed = json.loads((stand_in/'bucket/mine/default-split25-seed0/stand_in.ipynb').read_text())
    assert [c['metadata'].get('tags') for c in executed['cells']][:2] == [['parameters'], ['injected-parameters']]


def test_folders_are_respected(stand_in):
    "A run of other parameters, a folder of something else and one that is being worked on are left alone; half a file is no result"
    notebook, out = stand_in/'stand_in.ipynb', stand_in/'run'
    run = lambda **kw: run_notebook(out, notebook, wait=0, journal=str(stand_in/'journal'), **kw)
    out.mkdir()
    (out/'thesis.tex').write_text('years of work')
    with pytest.raises(InputError, match='thesis.tex and no job of a sweep'): run()
    (out/'thesis.tex').unlink()
    params = dict(full_parameters(notebook, None, dict(journal=str(stand_in/'journal'))), out=str(out))
    write_json(out/'.job.json', dict(notebook='stand_in', parameters=params))
    write_json(out/'params.json', dict(notebook='stand_in', parameters=params))
    (out/'metrics.json').write_text('{"macro_accuracy": 0.')
    assert job_state(out, 'stand_in', params) == 'unfinished'
    with pytest.raises(InputError, match='subset was 1, is 2'): run(subset=2)
    with only_worker(out), pytest.raises(Busy, match='being worked on by process'): run()
    with pytest.raises(InputError, match="unknown parameter of stand_in 'sead'"): run(sead=1)
    with pytest.raises(InputError, match='seed=.x. must be a whole number'): run(seed='x')
    assert not (stand_in/'journal').exists() and (out/'metrics.json').read_text() == '{"macro_accuracy": 0.'


def test_each_worker_has_its_share(monkeypatch):
    "Cores are divided, and GPUs go round; a cell that was killed too often is given up with a reason"
    seen = []
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,5')
    monkeypatch.setattr('asc.experiment.sweeps.count_cores', lambda: 12)
    def fake(tries, **task):
        seen.append(task['env'])
        time.sleep(.05)
        raise RunFailed('the process was killed', killed=True)
    monkeypatch.setattr('asc.experiment.sweeps.run_notebook', fake)
    with local_engine(4, 0, None) as start: verdicts = [f.result() for f in start([dict(out=str(i)) for i in range(8)])]
    assert {e['OMP_NUM_THREADS'] for e in seen} == {'3'} and {e['CUDA_VISIBLE_DEVICES'] for e in seen} == {'3', '5'}
    assert set(verdicts) == {('killed', 'the process was killed')}


def test_asc_sweep(tmp_path, capsys):
    "`asc sweep` finds the finished runs of two systems, five splits and two seeds, and prints the table of the paper; wrong words are refused at once"
    words = ['sweep', 'easy-cnn3', 'dcase24-baseline', '--subsets', *'5 10 25 50 100'.split(), '--seeds', '0', '1', '--folder', str(tmp_path/'runs')]
    lists = dict(test=dict(fingerprint='0' * 16, clips=10), train=dict(fingerprint='1' * 16, clips=10))
    for c in sweep_cells(['easy-cnn3', 'dcase24-baseline'], [5, 10, 25, 50, 100], [0, 1]):
        base = c.parameters['subset'] + 100 * (c.parameters['backbone'] == 'cnn3')
        macro = (base + (1 if c.parameters['seed'] else -1)) / 1000
        parts = dict(class_accuracy=dict(park=macro), device_accuracy=dict(a=macro), group_accuracy=dict(real=macro))
        write_json(tmp_path/'runs'/c.name/'params.json', dict(notebook='train', parameters=c.parameters, data=dict(corpus='made', synthetic=True, lists=lists)))
        write_json(tmp_path/'runs'/c.name/'metrics.json', dict(macro_accuracy=macro, log_loss=2 - macro, params=10, macs=10, **parts))
    main([*words, '--out', str(tmp_path/'sweep')])
    said = capsys.readouterr().out
    table = {l.split('|')[1].strip(): [c.strip() for c in l.split('|')[2:7]] for l in said.splitlines() if ' ± ' in l and 'split' not in l}
    assert table == {f'recipe {n}': [f'{(b + s) / 10:.2f} ± 0.14' for s in (5, 10, 25, 50, 100)] for n, b in (('easy-cnn3', 100), ('dcase24-baseline', 0))}
    assert json.loads((tmp_path/'sweep/metrics.json').read_text())['found'] == 20 and len(list((tmp_path/'runs').iterdir())) == 20
    assert 'says nothing about TAU' in (tmp_path/'sweep/sweep.ipynb').read_text() and (tmp_path/'sweep').joinpath(f"splits-{'0' * 16}.png").exists()
    for wrong, sentence in ((['--set', 'epoch=3'], "unknown parameter of train 'epoch'"), (['--seeds', '0', '0'], 'are the same run'),
                            (['--set', 'lr=1'], 'lr was 0.')):
        with pytest.raises(SystemExit, match=sentence): main([*words, *wrong])
