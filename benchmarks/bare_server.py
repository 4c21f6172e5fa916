"""aiohttp alone: validates the same body with the same model, and gives an answer of the same shape."""

from __future__ import annotations

import asyncio
from itertools import count

import orjson
import uvloop
from aiohttp import web
from uuid_utils import uuid7

from service.commands import SendMessage

_positions = count(1)


async def handle(request: web.Request) -> web.Response:
    """Validates the body, and answers as if something had come of it."""
    SendMessage.model_validate(orjson.loads(await request.read()), strict=True)
    answer = {"id": str(uuid7()), "position": next(_positions)}
    return web.Response(status=201, body=orjson.dumps(answer), headers={"Content-Type": "application/json"})


async def main() -> None:
    application = web.Application()
    application.router.add_post("/api/v1/messages", handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
