"""One process a folder: of two runs that want it one is refused, and whatever happened to the first, nothing stays."""
import os
import shutil
import subprocess
import sys
from platform import node

import pytest

import launch
from asc.core import InputError
from asc.run.folder import Run, check_free, check_unfinished
from asc.run.worker import Busy, is_held, only_worker

# A run as its notebook's kernel begins it; it goes on until its standard input ends.
WORDS = '''
import sys
from asc.core import InputError
from asc.run.folder import Run
ns = dict(__annotations__=dict(out=str, resume=bool), out=sys.argv[1], resume=sys.argv[2] == 'True')
try:
    run = Run.start(ns, 'train')
    run.note()
    print('begun', flush=True)
    sys.stdin.read()
    run.finish(dict(accuracy=1))
except InputError as e: print(type(e).__name__, e, flush=True)
'''


def start(out, resume=False, **options):
    "A process that runs into a folder"
    words = [sys.executable, '-c', WORDS, str(out), str(resume)]
    return subprocess.Popen(words, cwd=launch.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


@pytest.fixture
def living(tmp_path):
    "A run that has begun, and its folder"
    process = start(tmp_path/'run')
    assert process.stdout.readline() == 'begun\n'
    yield process, tmp_path/'run'
    process.kill()
    process.communicate()


def test_two_started_together(tmp_path):
    "One of them runs to its end, the other is told its process, machine and start"
    both = [start(tmp_path/'run') for _ in range(2)]
    first = [process.stdout.readline() for process in both]
    assert sorted(first)[1] == 'begun\n'
    winner, loser = both if first[0] == 'begun\n' else both[::-1]
    said = min(first)
    assert f'Busy out={tmp_path}/run is being worked on by process {winner.pid} on {node()} since 20' in said
    for process in loser, winner: process.communicate()
    assert (tmp_path/'run/metrics.json').is_file() and not (tmp_path/'run/.lock').exists()


@pytest.mark.parametrize('resume', [False, True])
def test_beside_a_living_run(living, resume, monkeypatch):
    "A second run is refused, also one that would resume, and the first one's files stay"
    process, folder = living
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    monkeypatch.setattr('asc.run.worker.time.monotonic', iter(range(0, 10000, 20)).__next__)
    (folder/'checkpoint.pt').write_bytes(b'x')
    with pytest.raises(Busy, match=f'by process {process.pid} on {node()} since 20.*: wait for it, end it, or choose'):
        (check_unfinished if resume else check_free)(folder)
    assert is_held(folder) and (folder/'params.json').is_file()


def test_a_dead_owner_is_no_obstacle(living):
    "After kill -9 the run goes on"
    process, folder = living
    process.kill()
    process.communicate()
    again = start(folder, resume=True)
    assert again.communicate()[0] == 'begun\n'
    assert (folder/'metrics.json').is_file()


def test_the_lock_does_not_travel(living, tmp_path):
    "A copy of a folder is nobody's, and a moved one is still the run's"
    _, folder = living
    shutil.copytree(folder, tmp_path/'copy')
    assert not is_held(tmp_path/'copy')
    assert check_unfinished(tmp_path/'copy')
    folder.rename(tmp_path/'moved')
    assert is_held(tmp_path/'moved')
    with pytest.raises(InputError, match='holds no run to resume'): check_unfinished(folder)


def test_a_text_of_another_machine(tmp_path):
    "What a lock says of a process that holds it no more is no obstacle"
    (tmp_path/'.lock').write_text(f'process {os.getpid()} on elsewhere since 2020-01-01 00:00:00')
    assert check_free(tmp_path) == tmp_path


def test_a_refused_run_leaves_no_lock(papermill, tmp_path):
    "A folder that was there stays as it was"
    out = tmp_path/'out'
    out.mkdir()
    result = papermill('report', out=out, folder=tmp_path/'nothing')
    assert result.returncode and 'InputError' in result.stderr
    assert list(out.iterdir()) == []


def test_what_was_handed_down_is_held(tmp_path):
    "The process that holds a folder may begin a run in it through its child"
    with only_worker(tmp_path/'run') as lock:
        env = dict(os.environ, ASC_RUN_LOCKS=f'{lock}')
        child = start(tmp_path/'run', pass_fds=(lock,), env=env)
        assert child.communicate()[0] == 'begun\n'
        assert is_held(tmp_path/'run')


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    "A run begins there, and says what nobody sees to"
    def flock(*_): raise OSError(38, 'Function not implemented')
    monkeypatch.setattr('fcntl.flock', flock)
    ns = dict(__annotations__=dict(out=str), out=str(tmp_path/'run'))
    Run.start(ns, 'train').finish({})
    assert 'no locks (Function not implemented)' in capsys.readouterr().out
