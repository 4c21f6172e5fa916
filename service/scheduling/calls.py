"""HTTP calls to agents: JSON out, JSON back.

A call goes to the URL that the agent is registered with and nowhere else: redirects are not followed. It
carries the headers of the Standard Webhooks specification, signed if the agent has a secret. At most 1 MiB
of the answer is read; the tokens that it reports are taken on trust.

Why a call failed is stored in events that are not sealed. So a squad that encrypts payloads does not have
the answer quoted: it may hold personal data, which could then never be forgotten.
"""

from __future__ import annotations

import base64
import hmac
from hashlib import sha256
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import orjson
from pydantic import TypeAdapter, ValidationError

from service.commands import Usage
from service.values import MAX_TOKENS, Name, storable

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_ANSWER_BYTES = 1024 * 1024
KEEPALIVE_SECONDS = 1.0
"""How long an idle connection is kept. Servers close theirs after two seconds or more, and a call in flight
at that moment fails."""

_SECRET_PREFIX = "whsec_"  # noqa: S105 - a prefix that every secret has
_SHOWN_CHARACTERS = 300
NOT_KEPT = "(its answer is not kept, because payloads are encrypted)"
_INPUT, _OUTPUT = ("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens")
"""The names of the parts of `usage`; the second ones are those of OpenAI's API."""
_NAME: TypeAdapter[str] = TypeAdapter(Name)


class Reply(NamedTuple):
    """What an agent answered."""

    ok: bool
    reason: str | None
    """Why it counts as failed, reduced to what the log can store."""
    body: Any
    usage: Usage | None
    """The tokens that the agent reported as used."""


class AgentClient:
    """Calls agents. One session, so that the next call of a run reuses the connection."""

    def __init__(self, default_url: str, secrets: Mapping[str, str]) -> None:
        self._default_url = default_url
        self._secrets = secrets
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> AgentClient:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS),
            # One agent's cookies must not reach another.
            cookie_jar=aiohttp.DummyCookieJar(),
            # Each attempt has its own timeout, set by the job.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            auto_decompress=False,
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "squad"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()

    async def call(
        self,
        agent: str,
        url: str | None,
        endpoint: str,
        message_id: str,
        payload: dict[str, Any],
        *,
        quote: bool,
    ) -> Reply:
        """POST to an agent. A call that fails returns a `Reply` too.

        Args:
            agent: its name.
            url: its registered base URL; None for the default.
            endpoint: a path below it.
            message_id: sent as `webhook-id`; the same at each attempt and unique to the call, so that the
                agent can recognize repeats.
            payload: the body.
            quote: whether the reason of a failure may quote the answer.
        """
        assert self._session
        body = orjson.dumps(payload, option=orjson.OPT_UTC_Z)
        target = at_url(url or self._default_url, endpoint)
        headers = signed_headers(self._secrets.get(agent), message_id, int(time()), body)
        try:
            async with self._session.post(
                target, data=body, headers=headers, allow_redirects=False
            ) as response:
                answer = await response.content.read(MAX_ANSWER_BYTES)
                while len(answer) < MAX_ANSWER_BYTES and (
                    more := await response.content.read(MAX_ANSWER_BYTES - len(answer))
                ):
                    answer += more
                return read_answer(response.status, answer, quote=quote)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reason = f"the call to {target} failed: {_cause_of(error, quote=quote)}"
            # The response references the error, whose traceback would keep this frame, and so the response.
            error.__traceback__ = None
            return Reply(ok=False, reason=storable(reason), body=None, usage=None)


def _cause_of(error: Exception, *, quote: bool) -> str:
    # For every failed connection, aiohttp adds "ssl:default" and repeats the host.
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    # Any text but the operating system's may quote an answer that is not valid HTTP.
    system_text = cause.strerror if isinstance(cause, OSError) else None
    return system_text or (quote and str(cause)) or type(error).__name__


def at_url(url: str, endpoint: str) -> str:
    """Return the URL of an agent's endpoint: appended to the path of `url`, whose query is kept."""
    base, _, query = url.partition("#")[0].partition("?")
    target = base.rstrip("/") + endpoint
    return f"{target}{'&' if '?' in endpoint else '?'}{query}" if query else target


def signed_headers(secret: str | None, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of the Standard Webhooks specification (standardwebhooks.com).

    Args:
        secret: base64, with or without the specification's prefix `whsec_`; None for no signature.
        message_id: the same at each attempt; without a full stop, which terminates it in the signed text.
        timestamp: seconds since 1970 by the wall clock, as the receiver checks it against its own.
        body: the exact bytes that are sent.
    """
    headers = {
        "Content-Type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
    }
    if secret:
        digest = hmac.new(
            decode_secret(secret), f"{message_id}.{timestamp}.".encode() + body, sha256
        ).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers


def decode_secret(secret: str) -> bytes:
    """Return the key in a secret.

    Raises:
        ValueError: it is not base64.
    """
    return base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)


def read_answer(status: int, answer: bytes, *, quote: bool) -> Reply:
    """Interpret an answer. Anything but a 2xx is a failure; any body that is not JSON becomes text.

    Args:
        status: the HTTP status.
        answer: the body.
        quote: whether the reason of a failure may quote the body.
    """
    try:
        body: Any = orjson.loads(answer) if answer else None
    except ValueError:
        body = answer[:_SHOWN_CHARACTERS].decode(errors="replace")
    ok = 200 <= status < 300
    shown = f": {_brief(body)}" if quote else f" {NOT_KEPT}"
    reason = None if ok else f"the agent answered {status}{shown}"
    return Reply(ok, reason, body, usage_in(body))


def usage_in(body: Any) -> Usage | None:
    """Return the tokens that an answer reports: `tokens_used`, or the sum of a `usage` object."""
    if not isinstance(body, dict):
        return None
    found = body.get("usage")
    usage = found if isinstance(found, dict) else {}
    total = _count(body.get("tokens_used"))
    parts = _first_count(usage, _INPUT), _first_count(usage, _OUTPUT)
    if total is None and parts == (None, None):
        return None
    model, known = _model(body.get("model")), sum(part or 0 for part in parts)
    if total in (None, known):
        return Usage(known, *parts, model)
    return Usage(total, model=model)


def is_misreported(body: Any) -> bool:
    """Whether an answer reports tokens in a form that `usage_in` does not understand, or not entirely."""
    if not isinstance(body, dict):
        return False
    total, usage = body.get("tokens_used"), body.get("usage")
    reported = [total]
    if isinstance(usage, dict):
        reported += [usage.get(name) for name in (*_INPUT, *_OUTPUT)]
    counts = [value for value in reported if value is not None]
    # A `usage` in another form does no harm beside a total.
    return any(_count(value) is None for value in counts) or bool(usage and not counts)


def _first_count(usage: dict[str, Any], names: tuple[str, ...]) -> int | None:
    return next((count for name in names if (count := _count(usage.get(name))) is not None), None)


def _count(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value <= MAX_TOKENS // 2 else None


def _model(value: Any) -> str | None:
    try:
        return _NAME.validate_python(value, strict=True)
    except ValidationError:
        return None


def _brief(body: Any) -> str:
    try:
        text = body if isinstance(body, str) else "" if body is None else orjson.dumps(body).decode()
    except TypeError:
        # orjson reads deeper nesting than it writes.
        text = "(nested too deep to be shown)"
    return storable(text)[:_SHOWN_CHARACTERS] or "nothing"
