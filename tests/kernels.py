"""Jupyter kernels forked from one process that has the large libraries loaded: seconds less for each run that papermill starts.

`python kernels.py FOLDER` serves and makes FOLDER a Jupyter path, whose `python3` kernel is this file once more, as a client. What a kernel then does is what it
always does: own process, own environment and folder; nothing that asks at import whether it is in a notebook (IPython, fastcore, fastai) is loaded before."""
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

LOADED = 'torch torchaudio torchvision pandas scipy.stats scipy.signal sklearn matplotlib.pyplot seaborn soundfile yaml requests rich zmq'


def become(request, fds):
    "The forked process turns into the kernel that was asked for"
    os.setsid()
    os.chdir(request['cwd'])
    os.environ.clear()
    os.environ.update(request['env'])
    for fd, at in zip(fds, (1, 2)): os.dup2(fd, at)
    sys.path[0], sys.argv = '', ['ipykernel_launcher', *request['argv']]
    from ipykernel.kernelapp import launch_new_instance
    launch_new_instance()


def serve(folder):
    from importlib import import_module
    tests = os.getppid()  # it ends with them
    for name in LOADED.split(): import_module(name)
    spec = folder/'kernels/python3/kernel.json'
    spec.parent.mkdir(parents=True)
    spec.write_text(
        json.dumps(
            dict(
                argv=[sys.executable, '-I', '-S', __file__, str(folder), '-f', '{connection_file}'],
                display_name='Python 3',
                language='python',
            )
        )
    )
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder/'socket'))
    listener.listen()
    print('ready', flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener.settimeout(2)
    while os.getppid() == tests:
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        message, fds, _, _ = socket.recv_fds(client, 1 << 16, 2)
        while not message.endswith(b'\n'): message += client.recv(1 << 16)
        if os.fork():
            client.close()
            [os.close(f) for f in fds]
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        listener.close()
        if pid := os.fork(): watch(pid, client)
        client.close()
        try:
            become(json.loads(message), fds)
        finally:
            os._exit(0)


def watch(pid, client):
    "Wait for the kernel and tell its client; a kernel whose client was killed is killed as well"
    client.sendall(f'{pid}\n'.encode())
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if select.select([client], [], [], .1)[0]:
            os.kill(pid, signal.SIGKILL)  # it says nothing more, so it is gone
    with suppress(BrokenPipeError):
        client.sendall(str(os.waitstatus_to_exitcode(ended[1])).encode())
    os._exit(0)


def ask(folder, argv):
    server = socket.socket(socket.AF_UNIX)
    server.connect(str(folder/'socket'))
    socket.send_fds(
        server,
        [json.dumps(dict(cwd=os.getcwd(), env=dict(os.environ), argv=argv)).encode() + b'\n'],
        [1, 2],
    )
    answers = server.makefile()
    pid = int(answers.readline())
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, lambda n, _: os.kill(pid, n))
    sys.exit(abs(int(answers.read() or 1)))


if __name__ == '__main__':
    if len(sys.argv) > 2:
        ask(Path(sys.argv[1]), sys.argv[2:])
    else:
        serve(Path(sys.argv[1]))
