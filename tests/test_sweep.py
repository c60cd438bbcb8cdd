"""Sweeps under attack: killed workers and drivers, foreign folders, object stores, all engines; every run once."""
import json
import os
import signal
import sys
import time
from pathlib import Path

import nbformat
import pytest

from asc.cli import main
from asc.core import InputError, write_json
from asc.experiment.sweeps import run_sweep, Sweep
from asc.experiment.engines import local_engine
from asc.experiment.cells import sweep_cells
from asc.run.process import RunFailed
from asc.run.parameters import full_parameters
from asc.run.process import job_state, run_notebook
from asc.run.worker import Busy, is_held, only_worker
import launch
from conftest import ROOT
from stand_in import read_journal, sweep_of, write_notebook, write_stand_in

needs_proc = pytest.mark.skipif(
    not Path('/proc/self/stat').exists(), reason='finds processes through /proc'
)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    "The folder of a run notebook that writes a journal and waits for a gate, where a training would train"
    # jsonschema can do without this package, which takes a second of every papermill
    (tmp_path/'rfc3987_syntax.py').write_text('raise ImportError')
    folders = [str(tmp_path), str(ROOT), str(ROOT/'tests')]
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(folders))
    write_stand_in(tmp_path)
    return tmp_path


def wait_for(condition, seconds=60):
    "Wait until it is true, and fail when it never is"
    end = time.time() + seconds
    while not condition() and time.time() < end: time.sleep(.02)
    assert condition()


def process_status(pid):
    "State and parent of a process, as /proc tells them; None when it is gone"
    path = Path(f'/proc/{pid}/stat')
    return path.read_text().rsplit(')', 1)[1].split()[:2] if path.exists() else None


def parent(pid):
    "The process that started this one"
    return int(process_status(pid)[1])


def alive(pid):
    "Whether the process is there, and not only its exit code"
    status = process_status(pid)
    return status is not None and status[0] != 'Z'


def start_driver(folder):
    "Another process that drives the sweep of two cells"
    return launch.start(sys.executable, ROOT/'tests/stand_in.py', folder)


@needs_proc
def test_killed_worker_and_killed_driver(stand_in):
    "kill -9 on a worker, then on the driver; two drivers go on at once: every run is there once, from its checkpoint"
    first = start_driver(stand_in)
    wait_for(lambda: len(read_journal(stand_in, 'begun')) == 2)
    cell, kernel, _ = read_journal(stand_in, 'begun')[0]
    # the worker is killed; its kernel sees that it is alone, and the cell is begun again by itself
    os.kill(parent(kernel), signal.SIGKILL)
    wait_for(lambda: len(read_journal(stand_in, 'begun')) == 3)
    again, _, resumed = read_journal(stand_in, 'begun')[2]
    assert again == cell
    assert resumed == 'True'
    assert not alive(kernel)
    sweep = sweep_of(stand_in, seeds=(0, 1))
    assert all(is_held(sweep.out(name)) for name in sweep.cells)
    first.kill()
    first.wait()
    # nothing is left behind
    kernels = [pid for _, pid, _ in read_journal(stand_in, 'begun')]
    wait_for(lambda: not any(alive(pid) for pid in kernels))
    assert [sweep.state(name) for name in sweep.cells] == ['unfinished'] * 2
    assert not read_journal(stand_in, 'ended')
    second = start_driver(stand_in)
    wait_for(lambda: len(read_journal(stand_in, 'begun')) == 5)
    (stand_in/'gate').touch()
    assert run_sweep(sweep, workers=2, pause=.1) == list(sweep.cells)
    assert second.wait() == 0
    ended = read_journal(stand_in, 'ended')
    assert sorted(cell for cell, _, _ in ended) == ['25-0', '25-1']
    assert all(resumed == 'True' for _, _, resumed in ended)
    assert len(read_journal(stand_in, 'begun')) == 5


# a run notebook that tells how many epochs were trained, where train.ipynb would evaluate
START = """
from asc.run.folder import Run
run = Run.start(globals(), 'learns')
run.note()
"""
COUNT = """
history = run.dir/'history.csv'
epochs_done = len(history.read_text().splitlines()) - 1 if (run.dir/'checkpoint.pt').exists() else 0
"""
FINISH = """
with open(journal, 'a') as file:
    file.write(f'ended {subset}-{seed} {epochs_done} {resume}\\n')
run.finish(dict(macro_accuracy=.5))
"""


@pytest.fixture
def learns(stand_in, synthetic):
    "The folder of a run notebook with the parameters of train.ipynb, and parameters of a small training"
    train = nbformat.read(ROOT/'nbs/train.ipynb', 4)
    declared = next(c.source for c in train.cells if 'parameters' in c.metadata.get('tags', []))
    parameters = declared + "\njournal: str = ''"
    write_notebook(stand_in/'learns.ipynb', parameters, START, COUNT, FINISH)
    return stand_in, dict(
        data_dir=str(synthetic), epochs=6, bs=25, backbone='cnn3', frontend='cnn3',
        pipeline='none', journal=str(stand_in/'journal'),
    )


def stack_of(folder, parameters):
    "A sweep of two cells that can be stacked"
    notebook = folder/'learns.ipynb'
    cells = sweep_cells([''], [5], [0, 1], parameters, notebook=notebook)
    return Sweep(cells, folder/'runs', stack=True)


def start_worker(sweep):
    "A process that trains both cells, as the worker of an engine does"
    code = f'from asc.experiment.engines import attempt; attempt({sweep.task(*sweep.cells)})'
    return launch.start(sys.executable, '-c', code)


def count_epochs(folder):
    "Epochs in the history of each run"
    return [len(p.read_text().splitlines()) - 1 for p in (folder/'runs').glob('*/history.csv')]


def test_stacked_seeds(learns):
    "kill -9 while seeds train at once: nothing is left, they go on from their checkpoints, each cell is evaluated once"
    folder, parameters = learns
    sweep = stack_of(folder, parameters)
    assert sweep.stacks == [tuple(sweep.cells)]
    first = start_worker(sweep)
    wait_for(lambda: len(count_epochs(folder)) == 2 and min(count_epochs(folder)) >= 2)
    first.kill()
    first.wait()
    wait_for(lambda: not any(is_held(sweep.out(n)) for n in sweep.cells))
    assert 2 <= min(count_epochs(folder))
    assert max(count_epochs(folder)) < 6
    assert not any(sweep.trained(n) for n in sweep.cells)
    assert not (folder/'journal').exists()
    assert run_sweep(sweep, workers=2, pause=.1) == list(sweep.cells), sweep.errors
    assert sorted(read_journal(folder, 'ended')) == [('5-0', '6', 'True'), ('5-1', '6', 'True')]
    logs = [folder/f'runs/{n}.log' for n in sweep.cells]
    # both seeds in one process
    assert logs[0].read_text().count('continuing after epoch') == 2
    before = [p.stat().st_mtime_ns for p in logs]
    assert run_sweep(stack_of(folder, parameters), workers=1) == list(sweep.cells)
    assert [p.stat().st_mtime_ns for p in logs] == before


def test_a_killed_stack_is_tried_again(learns, monkeypatch):
    "A stack whose process is killed is trained again, as a new attempt of each cell; then each cell is evaluated"
    folder, parameters = learns
    sweep = stack_of(folder, parameters)
    calls = []

    def job(out):
        "What a run notes about itself"
        return dict(notebook='learns', parameters=sweep.cells[Path(out).name].parameters)

    def run_stack(runs, env):
        "Killed at first, then trained"
        calls.append(tuple(Path(run['out']).name for run in runs))
        if len(calls) == 1: raise RunFailed('killed', killed=True)
        for run in runs:
            out = Path(run['out'])
            write_json(out/'.job.json', job(out))
            (out/'history.csv').write_text('epoch\n' * 7)

    def run_notebook(out, **task):
        "Evaluated at once"
        calls.append(Path(out).name)
        write_json(Path(out)/'params.json', dict(job(out), metrics={}))
        write_json(Path(out)/'metrics.json', dict(job(out), metrics={}))
    monkeypatch.setattr('asc.experiment.seeds.run_stack', run_stack)
    monkeypatch.setattr('asc.experiment.engines.run_notebook', run_notebook)
    names = tuple(sweep.cells)
    assert run_sweep(sweep, workers=1, pause=.01) == list(names)
    assert calls == [names, names, *names]


def test_a_stack_is_refused_at_once(learns):
    "What cannot be stacked is said before any folder is made; a stack that fails names its reason for each cell"
    folder, parameters = learns
    with pytest.raises(InputError, match='patience=3 cannot be stacked'):
        stack_of(folder, dict(parameters, patience=3))
    assert not (folder/'runs').exists()
    sweep = stack_of(folder, dict(parameters, data_dir=str(folder/'nowhere')))
    assert run_sweep(sweep, workers=1, pause=.1) == []
    assert all('nowhere' in sweep.errors[n] for n in sweep.cells)
    assert not (folder/'journal').exists()


# a child whose thread that watches its parent is never given a turn, as on a machine that is busy beyond measure
DEAF_CHILD = '''
import time
from asc.run import process
process.end_with_parent = lambda kernels: time.sleep(1000)
_child = process._child
'''
START_DEAF = "from asc.run import process; start = process.run_child; process.run_child = lambda module, *more: " \
             "start('deaf', *more); process.run_notebook({out!r}, {notebook!r}, journal={journal!r}, gate={gate!r})"


@needs_proc
def test_an_orphan_ends_though_nothing_is_given_a_turn(stand_in):
    "kill -9 on whoever wanted a run: the system ends its processes; no watching thread, no poll is needed"
    (stand_in/'deaf.py').write_text(DEAF_CHILD)
    names = dict(out='run', notebook='stand_in.ipynb', journal='journal', gate='gate')
    code = START_DEAF.format(**{name: str(stand_in/file) for name, file in names.items()})
    worker = launch.start(sys.executable, '-c', code)
    wait_for(lambda: read_journal(stand_in, 'begun'))
    kernel = int(read_journal(stand_in, 'begun')[0][1])
    child = parent(kernel)
    assert parent(child) == worker.pid
    worker.kill()
    worker.wait()
    wait_for(lambda: not alive(kernel) and not alive(child), 10)
    (stand_in/'gate').touch()
    assert run_notebook(stand_in/'run', stand_in/'stand_in.ipynb', journal=str(stand_in/'journal'),
                        gate=str(stand_in/'gate'))['state'] == 'resumed'
    assert [len(read_journal(stand_in, word)) for word in ('begun', 'ended')] == [2, 1]


def test_an_orphan_finishes_nothing(tmp_path):
    "A run whose owner has gone ends where it would have written its result"
    code = f"""
import os, subprocess, sys
from asc.run.folder import Run
from asc.run.owner import process_mark
owner = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
os.environ['ASC_RUN_OWNER'] = process_mark(owner.pid)
run = Run({str(tmp_path)!r}, 'train', {{}})
run.note()
owner.kill()
owner.wait()
run.finish(dict(accuracy=1))
"""
    assert launch.run(sys.executable, '-c', code).returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ['params.json']


OBJECT_STORE = '''
from pathlib import Path

class Store:
    "Stands for s3://: papermill hands over the text of a notebook"
    def path(self, address):
        return Path(__file__).parent/'bucket'/address.removeprefix('fake://')

    def write(self, text, address):
        path = self.path(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def pretty_path(self, address):
        return address

store = Store()
'''


def install_object_store(folder):
    "A package in the folder that gives papermill the addresses fake://"
    info = folder/'fakestore-1.0.dist-info'
    info.mkdir()
    (info/'METADATA').write_text('Metadata-Version: 2.1\nName: fakestore\nVersion: 1.0\n')
    (info/'entry_points.txt').write_text('[papermill.io]\nfake:// = fakestore:store\n')
    (folder/'fakestore.py').write_text(OBJECT_STORE)


@needs_proc
@pytest.mark.parametrize(
    'engine, options', [('slurm', dict(cluster='local', timeout_min=5)), ('dask', {})]
)
def test_engines(stand_in, engine, options):
    "A worker of SLURM or Dask is killed here: the cell is redone; the executed notebook is in an object store"
    pytest.importorskip(dict(slurm='submitit', dask='distributed')[engine])
    install_object_store(stand_in)
    killed = []

    def kill(table):
        "Kill the engine's own process, above papermill's, and open the gate for the next"
        begun = read_journal(stand_in, 'begun')
        if not killed and len(begun) == 1:
            kernel = begun[0][1]
            killed.append(parent(parent(kernel)))
            os.kill(killed[0], signal.SIGKILL)
            wait_for(lambda: not alive(kernel))
            (stand_in/'gate').touch()
    sweep = sweep_of(stand_in, executed='fake://mine/')
    done = run_sweep(sweep, engine, 1, options=options, show=kill, pause=.1)
    assert done == ['default-split25-seed0'], sweep.errors
    assert killed
    assert len(read_journal(stand_in, 'begun')) == 2
    assert len(read_journal(stand_in, 'ended')) == 1
    path = stand_in/'bucket/mine/default-split25-seed0/stand_in.ipynb'
    cells = json.loads(path.read_text())['cells']
    tags = [cell['metadata'].get('tags') for cell in cells]
    assert tags[:2] == [['parameters'], ['injected-parameters']]


def test_folders_are_respected(stand_in):
    "A run of other parameters, a folder of something else and one at work are left alone; half a file is no result"
    notebook = stand_in/'stand_in.ipynb'
    out = stand_in/'run'
    common = dict(journal=str(stand_in/'journal'))

    def run(**parameters):
        "The cell in this folder"
        return run_notebook(out, notebook, wait=0, **common, **parameters)
    out.mkdir()
    (out/'thesis.tex').write_text('years of work')
    with pytest.raises(InputError, match='thesis.tex and no job of a sweep'): run()
    (out/'thesis.tex').unlink()
    params = dict(full_parameters(notebook, None, common), out=str(out))
    write_json(out/'.job.json', dict(notebook='stand_in', parameters=params))
    write_json(out/'params.json', dict(notebook='stand_in', parameters=params))
    (out/'metrics.json').write_text('{"macro_accuracy": 0.')
    assert job_state(out, 'stand_in', params) == 'unfinished'
    with pytest.raises(InputError, match='subset was 1, is 2'): run(subset=2)
    with only_worker(out), pytest.raises(Busy, match='being worked on by process'):
        run()
    with pytest.raises(InputError, match="unknown parameter of stand_in 'sead'"):
        run(sead=1)
    with pytest.raises(InputError, match='seed=.x. must be a whole number'):
        run(seed='x')
    assert not (stand_in/'journal').exists()
    assert (out/'metrics.json').read_text() == '{"macro_accuracy": 0.'


def test_each_worker_has_its_share(monkeypatch):
    "Cores are divided, and GPUs go round; a cell that was killed too often is given up with a reason"
    environments = []
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,5')
    monkeypatch.setattr('asc.experiment.engines.count_cores', lambda: 12)

    def be_killed(tries, **task):
        "Note the environment and fail"
        environments.append(task['env'])
        time.sleep(.05)
        raise RunFailed('the process was killed', killed=True)
    monkeypatch.setattr('asc.experiment.engines.run_notebook', be_killed)
    with local_engine(4, 0, None) as start:
        verdicts = [future.result() for future in start([dict(out=str(i)) for i in range(8)])]
    assert {e['OMP_NUM_THREADS'] for e in environments} == {'3'}
    assert {e['CUDA_VISIBLE_DEVICES'] for e in environments} == {'3', '5'}
    assert set(verdicts) == {('killed', 'the process was killed')}


SYSTEMS = ['easy-cnn3', 'dcase24-baseline']
SPLITS = [5, 10, 25, 50, 100]


def write_finished_run(folder, cell, macro):
    "The folder of a cell of which only the numbers are made up"
    lists = dict(
        test=dict(fingerprint='0' * 16, clips=10),
        train=dict(fingerprint='1' * 16, clips=10),
    )
    data = dict(corpus='made', synthetic=True, lists=lists)
    write_json(folder/'params.json', dict(notebook='train', parameters=cell.parameters, data=data))
    write_json(folder/'metrics.json', dict(
        macro_accuracy=macro, log_loss=2 - macro, params=10, macs=10,
        class_accuracy=dict(park=macro), device_accuracy=dict(a=macro),
        group_accuracy=dict(real=macro),
    ))


def read_table(text):
    "System -> its entries in a table of means and deviations"
    lines = [line for line in text.splitlines() if ' ± ' in line and 'split' not in line]
    rows = [[entry.strip() for entry in line.split('|')] for line in lines]
    return {row[1]: row[2:7] for row in rows}


def test_asc_sweep(tmp_path, capsys):
    "`asc sweep` finds finished runs and prints the table of the paper; wrong words are refused at once"
    words = [
        'sweep', *SYSTEMS, '--subsets', *map(str, SPLITS), '--seeds', '0', '1',
        '--folder', str(tmp_path/'runs'),
    ]
    for cell in sweep_cells(SYSTEMS, SPLITS, [0, 1]):
        base = cell.parameters['subset'] + 100 * (cell.parameters['backbone'] == 'cnn3')
        macro = (base + (1 if cell.parameters['seed'] else -1)) / 1000
        write_finished_run(tmp_path/'runs'/cell.name, cell, macro)
    main([*words, '--out', str(tmp_path/'sweep')])
    assert read_table(capsys.readouterr().out) == {
        'easy-cnn3': [f'{(100 + split) / 10:.2f} ± 0.14' for split in SPLITS],
        'dcase24-baseline': [f'{split / 10:.2f} ± 0.14' for split in SPLITS],
    }
    assert json.loads((tmp_path/'sweep/metrics.json').read_text())['found'] == 20
    assert len(list((tmp_path/'runs').iterdir())) == 20
    assert 'says nothing about TAU' in (tmp_path/'sweep/sweep.ipynb').read_text()
    assert (tmp_path/'sweep/splits-made.png').exists()
    for wrong, sentence in (
        (['--set', 'epoch=3'], "unknown parameter of train 'epoch'"),
        (['--seeds', '0', '0'], 'are the same run'),
        (['--set', 'lr=1'], 'lr was 0.'),
    ):
        with pytest.raises(SystemExit, match=sentence): main([*words, *wrong])
