"""aiohttp alone: validates the same bodies with the same models, and returns answers of the same shape.

Reads return a body of the same size as the service's, serialized for each request.
"""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import count

import orjson
import uvloop
from aiohttp import web
from uuid_utils import uuid7

from benchmarks.subjects import READS, WRITES, Write

_JSON = {"Content-Type": "application/json"}
_ANSWER = {
    "period": "2026-01-31",
    "total": 100_000,
    "used": 450,
    "reserved": 0,
    "remaining": 99_550,
    "resets_at": "2026-02-01T00:00:00Z",
    "agents": {"alice": {"used": 450, "reserved": 0, "limit": None, "remaining": None}},
}
_positions = count(1)


async def write(subject: Write, request: web.Request) -> web.Response:
    """Validate the body, and answer as if the command had been carried out."""
    subject.command.model_validate(orjson.loads(await request.read()), strict=True)
    answer = {"id": str(uuid7()), "position": next(_positions)}
    return web.Response(status=201, body=orjson.dumps(answer), headers=_JSON)


async def read(request: web.Request) -> web.Response:
    """Answer with a fixed budget."""
    del request
    return web.Response(body=orjson.dumps(_ANSWER), headers=_JSON)


async def main() -> None:
    application = web.Application()
    for subject in WRITES.values():
        application.router.add_post(subject.path, partial(write, subject))
    for path in READS.values():
        application.router.add_get(path.partition("?")[0], read)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
