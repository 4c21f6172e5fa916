"""A mailbox, an orchestrator and a language model for tests of the e-mail agent."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from examples.demo import imap_server
from examples.demo.processes import free_ports, running
from examples.email_agent.app import application
from examples.email_agent.settings import Settings
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from examples.demo.imap_server import ImapServer

ROOT = Path(__file__).parents[2]


def settings(**fields: Any) -> Settings:
    """The agent's settings, by default with an unreachable mailbox."""
    nowhere = {"imap_security": "none", "imap_port": 1}
    user = {"imap_user": imap_server.USER, "imap_password": imap_server.PASSWORD}
    return Settings.model_validate({**nowhere, **user, **fields})


@contextmanager
def mailbox(folder: Path) -> Iterator[ImapServer]:
    """A real IMAP server with one empty mailbox."""
    server = imap_server.choose(folder, free_ports(1)[0])
    with running(
        server.name, server.command, folder / "imap.log", cwd=ROOT, environment=dict(os.environ)
    ) as child:

        async def opened() -> bool:
            child.check()
            return await server.is_open()

        asyncio.run(eventually(opened, within_seconds=30))
        yield server


def mailbox_settings(server: ImapServer, **fields: Any) -> Settings:
    """Settings for a mailbox."""
    return settings(**{"imap_port": server.port, **fields})


class FakeSquad:
    """The part of the orchestrator's API that the agent uses, in memory."""

    def __init__(self) -> None:
        self.emails: dict[str, dict[str, Any]] = {}
        self.requests: list[web.Request] = []
        self.position = 0
        self.broken = False
        """Whether it answers 500 to every request."""

    def add(self, **fields: Any) -> str:
        """Log an e-mail; return its id."""
        email_id = str(uuid4())
        self.position += 1
        self.emails[email_id] = {
            "id": email_id,
            "gmail_message_id": email_id,
            "from_email": "anna@customer.example",
            "subject": "Quote for two speakers",
            "category": "unclassified",
            "status": "unread",
            "handled_by": None,
            "payload": {"text": "Please quote for two speakers."},
            **fields,
            "position": self.position,
        }
        return email_id

    def change(self, email_id: str, **fields: Any) -> None:
        """Change an e-mail, as anybody could."""
        self.position += 1
        self.emails[email_id] |= {**fields, "position": self.position}

    def app(self) -> web.Application:
        """The API."""
        app = web.Application()
        app.router.add_post("/api/v1/emails", self._log)
        app.router.add_route("*", "/api/v1/emails/{id}", self._one)
        return app

    async def _log(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        fields = await request.json()
        if self.broken:
            return web.json_response({"code": "internal_error"}, status=500)
        ids = {email["gmail_message_id"] for email in self.emails.values()}
        if fields["gmail_message_id"] in ids:
            return web.json_response({"code": "email_exists", "detail": "known"}, status=409)
        return web.json_response(self.emails[self.add(**fields)], status=201)

    async def _one(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        email = self.emails.get(request.match_info["id"])
        if self.broken or email is None:
            return web.json_response({"code": "email_not_found"}, status=500 if self.broken else 404)
        if request.method == "PATCH":
            changes = await request.json()
            if changes.pop("if_position", email["position"]) != email["position"]:
                return web.json_response({"code": "changed", "detail": "changed"}, status=409)
            self.change(email["id"], **changes)
        return web.json_response(email)


class FakeModel:
    """An OpenAI-compatible endpoint with a fixed answer."""

    def __init__(self, content: str = "", *, status: int = 200, delay_seconds: float = 0) -> None:
        self.content = content
        self.status = status
        self.delay_seconds = delay_seconds
        self.requests: list[dict[str, Any]] = []
        self.then_clock_recorded: Callable[[], None] = lambda: None
        """Called while an answer is awaited."""

    def app(self) -> web.Application:
        """The endpoint."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        return app

    async def _complete(self, request: web.Request) -> web.Response:
        self.requests.append(await request.json())
        self.then_clock_recorded()
        await asyncio.sleep(self.delay_seconds)
        answer = {
            "choices": [{"message": {"role": "assistant", "content": self.content}}],
            "usage": {"prompt_tokens": 120, "completion_tokens": 30},
        }
        return web.json_response(answer, status=self.status)


@asynccontextmanager
async def agent(
    squad: FakeSquad, model: FakeModel | None = None, **fields: Any
) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    """The agent's service, connected to an orchestrator and optionally a language model."""
    async with TestServer(squad.app()) as squad_server:
        # The field is named like its environment variable.
        fields.setdefault("EMAIL_AGENT_SQUAD_URL", str(squad_server.make_url("/")))
        async with TestServer(model.app() if model else web.Application()) as model_server:
            if model:
                fields |= {"llm_base_url": str(model_server.make_url("/v1")), "llm_model": "small-model"}
            app = application(settings(**fields))
            async with TestClient(TestServer(app)) as client:
                yield client


def call(email_id: str | None = None, **fields: Any) -> dict[str, Any]:
    """The body that the orchestrator POSTs."""
    body = {"run_id": str(uuid4()), "job": "a job", "tick": "2026-11-23T08:00:00Z", "attempt": 1}
    return {**body, "fencing_token": 7, **({"email_id": email_id} if email_id else {}), **fields}
