"""A server that answers every request with the same bytes: the ceiling of the load generator."""

from __future__ import annotations

import asyncio
from typing import cast

import uvloop

_BODY = b'{"id":"01977a3e-5b5c-7c3f-9d56-0d9f2f9f6a11","position":123456}'
_ANSWER = (
    b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_BODY)
    + _BODY
)


class Canned(asyncio.Protocol):
    """Treats each chunk of data as one request: the load generator sends a request in one piece."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        del data
        self._transport.write(_ANSWER)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Canned, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
