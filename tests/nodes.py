"""What may lie where a regular file is expected; each is made at a path that is free."""
import os
import socket


def nothing(path): pass


def folder(path): path.mkdir()


def pipe(path): os.mkfifo(path)


def loop(path): path.symlink_to(path)


def dangling(path): path.symlink_to(path.with_name('nowhere'))


def device(path): path.symlink_to('/dev/zero')


def plug(path):
    "A socket; its address may not be long, so it is made from its folder"
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server: server.bind(path.name)
    finally: os.chdir(here)


NODES = [folder, pipe, loop, dangling, device, plug]
