"""Run notebooks started as a person starts them: papermill, in a process of its own, from the root of the project."""
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def environment(kernels=None, **variables):
    "Variables of a process: one thread, and the folder `kernels` that a Jupyter kernel is taken from"
    if kernels: variables['JUPYTER_PATH'] = str(kernels)
    return dict(os.environ, OMP_NUM_THREADS='1', MPLBACKEND='agg', **variables)


def run(*words, cwd=ROOT, stdin=subprocess.DEVNULL, timeout=300, **variables):
    "Run a program to its end; what it wrote and its return code"
    return subprocess.run(
        [str(word) for word in words], cwd=cwd, stdin=stdin, timeout=timeout,
        env=environment(**variables), capture_output=True, text=True,
    )


def start(*words, cwd=ROOT, **variables):
    "Start a program and go on; nobody reads what it says"
    return subprocess.Popen(
        [str(word) for word in words], cwd=cwd, env=environment(**variables),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )


def command(notebook, *words, executed=None, **parameters):
    "A line of the terminal: numbers and text as `-p name value`, lists and tables as `-y`"
    line = [BIN/'papermill', f'nbs/{notebook}.ipynb']
    if executed: line.append(executed)
    for name, value in parameters.items():
        if isinstance(value, (list, dict)):
            line += ['-y', json.dumps({name: value}, default=str)]
        else:
            line += ['-p', name, value]
    return [*line, *words]


def papermill(notebook, *words, executed=None, kernels=None, stdin=subprocess.DEVNULL, variables=None, **parameters):
    "Run a notebook of nbs with these parameters; `words` stand on the command line as they are"
    line = command(notebook, *words, executed=executed, **parameters)
    return run(*line, stdin=stdin, kernels=kernels, **(variables or {}))


@contextmanager
def quick_kernels(folder, **variables):
    "A Jupyter path, whose kernels start from a process that has the large libraries loaded"
    words = [sys.executable, ROOT/'tests/kernels.py', folder]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment(**variables))
    assert server.stdout.readline() == 'ready\n'
    yield folder
    server.kill()
    server.wait()
    server.stdout.close()


def check(result):
    "The program ended well, or the end of its complaint is shown; its result"
    assert result.returncode == 0, result.stderr[-3000:]
    return result
