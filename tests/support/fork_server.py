"""A process that has loaded the `squad` command, and runs it in forks of itself.

It is started as ``python -m tests.support.fork_server SOCKET``; its client is tests/support/forked.py.
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
    """A request, in the fork that becomes the command."""

    conversation: socket.socket
    streams: list[int]


def number(value: int) -> bytes:
    """A pid or an exit code, as encoded in a reply."""
    return value.to_bytes(NUMBER_BYTES, "big", signed=True)


def serve(asking: socket.socket) -> Request:
    """Fork on request, and report each fork's pid and its exit code.

    Returns only in the forks; the process itself exits once its client is gone.
    """
    running: dict[int, socket.socket] = {}
    ended, wakes = socket.socketpair()
    for end in (ended, wakes):
        end.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno())
    # Ctrl-C is for the client, which ends what it started.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    asking.sendall(READY)
    while True:
        readable, _, _ = select.select([asking, ended], [], [])
        if ended in readable:
            ended.recv(4096)
            tell_of_ended(running)
        if asking not in readable:
            continue
        message, descriptors, _, _ = socket.recv_fds(asking, 1, DESCRIPTORS)
        if not message:
            sys.exit()
        conversation = socket.socket(fileno=descriptors[0])
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for end in (asking, ended, wakes, *running.values()):
                end.close()
            return Request(conversation, descriptors[1:])
        running[pid] = conversation
        conversation.sendall(number(pid))
        for descriptor in descriptors[1:]:
            os.close(descriptor)


def tell_of_ended(running: dict[int, socket.socket]) -> None:
    """Report forks that have exited to those who requested them."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            break
        with running.pop(pid) as conversation:
            try:
                conversation.sendall(number(os.waitstatus_to_exitcode(status)))
            except OSError:
                # The one who requested it is gone.
                continue


def become(request: Request) -> None:
    """Take over the request's arguments, environment, folder and streams."""
    with request.conversation as conversation, conversation.makefile() as told:
        order = json.load(told)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = order["arguments"]
    for place, descriptor in enumerate(request.streams):
        os.dup2(descriptor, place)
        os.close(descriptor)


def main() -> None:
    """Load the command as the command itself does, and run it in forks."""
    gc.disable()
    import service.cli  # noqa: F401
    from service.__main__ import main as command

    gc.freeze()
    # A fork continues here, so that it exits like any process.
    become(serve(socket.socket(fileno=int(sys.argv[1]))))
    command()


if __name__ == "__main__":
    main()
