"""The agent's HTTP service, which the orchestrator calls."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Annotated, TypeVar

import aiohttp
from aiohttp import web
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from examples.email_agent import signature
from examples.email_agent.agent import Agent, Report, StaleCall
from examples.email_agent.deduplication import Deduplicator
from examples.email_agent.llm import Model
from examples.email_agent.mailbox import MailboxError
from examples.email_agent.squad import CURRENT_RUN, Squad, SquadError, SquadRefusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiohttp.typedefs import Handler, Middleware

    from examples.email_agent.settings import Settings

_log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 65_536
AGENT = web.AppKey("agent", Agent)
_REPEATS: web.AppKey[Deduplicator[Report]] = web.AppKey("repeats", Deduplicator)

Uuid = Annotated[
    str,
    StringConstraints(
        pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
        to_lower=True,
    ),
]


class Call(BaseModel):
    """The body of every call. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    run_id: Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,100}$")]
    job: str | None = None
    tick: str | None = None
    attempt: int = 1
    fencing_token: int | None = None


class EmailCall(Call):
    """A call about one e-mail."""

    email_id: Uuid


C = TypeVar("C", bound=Call)


def application(settings: Settings) -> web.Application:
    """The service with its dependencies."""

    async def parts(app: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession() as http:
            model = Model(settings, http) if settings.llm_model else None
            app[AGENT] = Agent(settings, Squad(settings, http), model)
            app[_REPEATS] = Deduplicator()
            yield

    secret = settings.webhook_secret
    app = web.Application(
        middlewares=[_problems, _signed_with(secret.get_secret_value() if secret else None)],
        client_max_size=_MAX_BODY_BYTES,
    )
    app.cleanup_ctx.append(parts)
    app.router.add_get("/healthz", _healthz)
    app.router.add_post("/api/agents/email/poll", _poll)
    app.router.add_post("/api/agents/email/classify", _classify)
    app.router.add_post("/api/agents/email/respond", _respond)
    return app


async def _healthz(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def _poll(request: web.Request) -> web.Response:
    call = await _body(request, Call)
    agent = request.app[AGENT]
    return web.json_response(await request.app[_REPEATS].once(("poll", call.run_id), agent.poll))


async def _classify(request: web.Request) -> web.Response:
    return await _about_email(request, request.app[AGENT].classify)


async def _respond(request: web.Request) -> web.Response:
    return await _about_email(request, request.app[AGENT].respond)


async def _about_email(request: web.Request, work: Callable[[str], Awaitable[Report]]) -> web.Response:
    call = await _body(request, EmailCall)
    request.app[AGENT].check_fencing_token(call.email_id, call.fencing_token)

    async def once() -> Report:
        return await work(call.email_id)

    return web.json_response(
        await request.app[_REPEATS].once((request.path, call.run_id, call.email_id), once)
    )


async def _body(request: web.Request, model: type[C]) -> C:
    call = model.model_validate_json(await request.read())
    CURRENT_RUN.set(call.run_id)
    return call


def _signed_with(secret: str | None) -> Middleware:
    """If there is a secret, rejects calls that are not signed with it."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if secret is not None and request.method == "POST":
            signature.verify(secret, request.headers, await request.read(), time.time())
        return await handler(request)

    return check


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn errors into one line of JSON, with a status that says whether a retry may help."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _problem(error.status, error.reason)
    except signature.BadSignature as error:
        return _failed(request, 401, str(error))
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        return _problem(400, f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}")
    except StaleCall as error:
        return _problem(409, str(error))
    except SquadRefusal as error:
        return _failed(request, 404 if error.status == 404 else 502, str(error))
    except (SquadError, MailboxError) as error:
        return _failed(request, 503, str(error))
    except Exception:  # noqa: BLE001 - the last resort: it is logged and reported to the caller
        _log.exception("%s failed", request.path)
        return _problem(500, "the agent failed; its log says why")


def _failed(request: web.Request, status: int, message: str) -> web.Response:
    """A problem that the agent's operator must know of: most are caused by a wrong setting."""
    _log.warning("%s: %s", request.rel_url.raw_path, message)
    return _problem(status, message)


def _problem(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
