"""A process that loads the `squad` command once and runs it in forks of itself.

It is started as ``python -m tests.support.fork_server SOCKET``.
Its client is tests/support/forked_command.py.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
from typing import NamedTuple

READY = b"R"
NUMBER_BYTES = 4
DESCRIPTORS = 4
"""Descriptors that come with a request: a socket for the replies, stdin, stdout and stderr."""


class Request(NamedTuple):
    """What the fork that becomes the command needs of its request."""

    reply_socket: socket.socket
    streams: list[int]


def number(value: int) -> bytes:
    """A pid or an exit code, as encoded in a reply."""
    return value.to_bytes(NUMBER_BYTES, "big", signed=True)


def serve(requests: socket.socket) -> Request:
    """Fork on request, and report each fork's pid and its exit code.

    Returns only in the forks; the process itself exits once its client is gone.
    """
    running: dict[int, socket.socket] = {}
    exited, wakeup = socket.socketpair()
    for end in (exited, wakeup):
        end.setblocking(False)
    signal.set_wakeup_fd(wakeup.fileno())
    # Ctrl-C is for the client, which stops what it started.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    requests.sendall(READY)
    while True:
        readable, _, _ = select.select([requests, exited], [], [])
        if exited in readable:
            exited.recv(4096)
            report_exited_forks(running)
        if requests not in readable:
            continue
        message, descriptors, _, _ = socket.recv_fds(requests, 1, DESCRIPTORS)
        if not message:
            sys.exit()
        reply_socket = socket.socket(fileno=descriptors[0])
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for end in (requests, exited, wakeup, *running.values()):
                end.close()
            return Request(reply_socket, descriptors[1:])
        running[pid] = reply_socket
        reply_socket.sendall(number(pid))
        for descriptor in descriptors[1:]:
            os.close(descriptor)


def report_exited_forks(running: dict[int, socket.socket]) -> None:
    """Report forks that have exited to the clients that requested them."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            break
        with running.pop(pid) as reply_socket:
            try:
                reply_socket.sendall(number(os.waitstatus_to_exitcode(status)))
            except OSError:
                # The client that requested the fork is gone.
                continue


def become(request: Request) -> None:
    """Take over the request's arguments, environment, folder and streams."""
    with request.reply_socket as reply_socket, reply_socket.makefile() as file:
        command = json.load(file)
    os.chdir(command["folder"])
    os.environ.clear()
    os.environ.update(command["environment"])
    sys.argv = command["arguments"]
    for place, descriptor in enumerate(request.streams):
        os.dup2(descriptor, place)
        os.close(descriptor)


def main() -> None:
    """Load the command as its own entry point does, and run it in forks."""
    gc.disable()
    import service.cli  # noqa: F401
    from service.__main__ import main as command

    gc.freeze()
    # A fork continues here, so that it exits like any process.
    become(serve(socket.socket(fileno=int(sys.argv[1]))))
    command()


if __name__ == "__main__":
    main()
