"""A process that has loaded the `squad` command, and runs it in forks of itself.

It is started as ``python -m tests.support.loaded SOCKET``; see tests/support/forked.py for who asks.
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
"""Each request brings the socket of a conversation, and what is to be stdin, stdout and stderr."""


class Request(NamedTuple):
    """What came with a request, in the process that is to be the command."""

    conversation: socket.socket
    streams: list[int]


def number(value: int) -> bytes:
    """A process's number or exit code, as a conversation has it."""
    return value.to_bytes(NUMBER_BYTES, "big", signed=True)


def serve(asking: socket.socket) -> Request:
    """Forks whenever it is asked to, and tells of each fork its number and its end.

    It ends the process once nobody can ask any more, and returns in the forks alone.
    """
    running: dict[int, socket.socket] = {}
    ended, wakes = socket.socketpair()
    for end in (ended, wakes):
        end.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno())
    # Ctrl-C is for whoever asked; they end what they had started.
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
    """Tells those who asked for them of forks that have ended."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            break
        with running.pop(pid) as conversation:
            try:
                conversation.sendall(number(os.waitstatus_to_exitcode(status)))
            except OSError:
                # Whoever asked for it does not want to know.
                continue


def become(request: Request) -> None:
    """Takes over everything by which one process differs from another."""
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
    """Loads the command as the command itself does, and runs it in forks."""
    gc.disable()
    import service.cli  # noqa: F401
    from service.__main__ import main as command

    gc.freeze()
    # A fork goes on from here, so that it ends as any process does.
    become(serve(socket.socket(fileno=int(sys.argv[1]))))
    command()


if __name__ == "__main__":
    main()
