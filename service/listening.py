"""The address to listen on: bound before all else, so that a process that cannot serve changes nothing.

Until `listen`, connections to it are refused, so no load balancer sends a request too early.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web

from service.database import StartFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_BACKLOG = 1024
"""How many connections may wait to be accepted."""


@asynccontextmanager
async def bound(host: str, port: int) -> AsyncIterator[list[socket.socket]]:
    """Bind all addresses of a host for the duration of the block; yield the sockets, which do not listen.

    Raises:
        StartFailed: an address is in use or not one of this machine.
    """
    with ExitStack() as stack:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            addresses = dict.fromkeys((family, address) for family, *_, address in found)
            sockets = []
            for each in addresses:
                try:
                    sockets.append(stack.enter_context(_bind(*each)))
                except OSError as error:
                    # As for the second address of localhost on a machine without IPv6.
                    if error.errno != errno.EAFNOSUPPORT or len(addresses) == 1:
                        raise
        except OSError as error:
            raise _start_failed(host, port, error) from error
        yield sockets


async def listen(runner: web.AppRunner, sockets: Sequence[socket.socket], host: str, port: int) -> None:
    """Accept connections on bound sockets.

    Raises:
        StartFailed: an address is in use.
    """
    for each in sockets:
        # Connections inherit this: those that were closed must not keep the next process from binding.
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            await web.SockSite(runner, each, backlog=_BACKLOG).start()
        except OSError as error:
            raise _start_failed(host, port, error) from error


def _bind(family: int, address: Any) -> socket.socket:
    """Return a socket that is bound to an address."""
    try:
        return _bind_once(family, address, reuse=False)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
    # The closed connections of a process that has just ended occupy the port for a minute, too. Only now,
    # because with SO_REUSEADDR two processes can bind the same port as long as neither listens.
    return _bind_once(family, address, reuse=True)


def _bind_once(family: int, address: Any, *, reuse: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        if family == socket.AF_INET6:
            # The IPv4 address has a socket of its own.
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


def _start_failed(host: str, port: int, error: OSError) -> StartFailed:
    reason = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        reason = "it is in use; stop the other process, or choose another port with --port or SQUAD_PORT"
    return StartFailed(f"cannot listen on {host}:{port}: {reason}")
