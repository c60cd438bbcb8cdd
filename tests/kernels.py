"""Jupyter kernels forked from one process that has the large libraries loaded: seconds less for each run of papermill.

`python kernels.py FOLDER` serves them and makes FOLDER a Jupyter path, whose `python3` kernel is this file once more,
as a client. A forked kernel behaves as any other: it has its own process, environment and folder, and the locks that
its client was handed. Libraries that ask at import whether they are in a notebook (IPython, fastcore, fastai) are not
loaded before the fork."""
import fcntl
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

LOADED = [
    'torch', 'torchaudio', 'torchvision', 'pandas', 'scipy.stats', 'scipy.signal', 'sklearn',
    'matplotlib.pyplot', 'seaborn', 'soundfile', 'yaml', 'requests', 'rich', 'zmq',
]


def become_kernel(request, files):
    "The forked process turns into the kernel that was asked for, with its client's standard output, error and locks"
    os.setsid()
    os.chdir(request['cwd'])
    os.environ.clear()
    os.environ.update(request['env'])
    held = [fcntl.fcntl(number, fcntl.F_DUPFD, 500) for number in files]      # out of the way of every target
    for source, target in zip(held, request['files']):
        os.dup2(source, target)
        os.close(source)
    sys.path[0] = ''
    sys.argv = ['ipykernel_launcher', *request['argv']]
    from ipykernel.kernelapp import launch_new_instance
    launch_new_instance()


def write_kernelspec(folder):
    "Tell Jupyter to start this file as its `python3` kernel"
    spec = folder/'kernels/python3/kernel.json'
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, '-I', '-S', __file__, str(folder), '-f', '{connection_file}']
    spec.write_text(json.dumps(dict(argv=argv, display_name='Python 3', language='python')))


def listen(folder):
    "The socket that clients find in the folder"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder/'socket'))
    listener.listen()
    listener.settimeout(2)
    return listener


def read_request(client):
    "What a client asks for, a line of JSON, and the file descriptors of its outputs and locks"
    message, files, _, _ = socket.recv_fds(client, 1 << 16, 20)
    while not message.endswith(b'\n'):
        message += client.recv(1 << 16)
    return json.loads(message), files


def serve(folder):
    "Load the libraries and fork a kernel for each client, as long as the tests live"
    tests = os.getppid()
    for name in LOADED:
        import_module(name)
    write_kernelspec(folder)
    listener = listen(folder)
    print('ready', flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while os.getppid() == tests:
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        request, files = read_request(client)
        if os.fork() == 0:
            listener.close()
            start_kernel(request, files, client)
        client.close()
        for descriptor in files:
            os.close(descriptor)


def start_kernel(request, files, client):
    "Fork once more: the parent watches, the child is the kernel"
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        watch(pid, client)
    client.close()
    try:
        become_kernel(request, files)
    finally:
        os._exit(0)


def watch(pid, client):
    "Wait for the kernel and tell its client; a kernel whose client was killed is killed as well"
    client.sendall(f'{pid}\n'.encode())
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        client_is_gone = select.select([client], [], [], .1)[0]
        if client_is_gone: os.kill(pid, signal.SIGKILL)
    with suppress(BrokenPipeError):
        client.sendall(str(os.waitstatus_to_exitcode(ended[1])).encode())
    os._exit(0)


def be_client(folder, argv):
    "Ask for a kernel, hand signals on to it, and end with its return code"
    server = socket.socket(socket.AF_UNIX)
    server.connect(str(folder/'socket'))
    locks = [int(number) for number in os.environ.get('ASC_RUN_LOCKS', '').split(',') if number]
    files = [1, 2, *locks]
    request = json.dumps(dict(cwd=os.getcwd(), env=dict(os.environ), argv=argv, files=files))
    socket.send_fds(server, [request.encode() + b'\n'], files)
    answers = server.makefile()
    pid = int(answers.readline())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    sys.exit(abs(int(answers.read() or 1)))


if __name__ == '__main__':
    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        be_client(folder, sys.argv[2:])
    else:
        serve(folder)
