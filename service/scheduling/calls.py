"""Calls to agents: JSON out, JSON back, and nothing but what was agreed.

A call goes to the url that the agent is registered with, and nowhere else: redirects are not followed. It
bears the headers of the Standard Webhooks specification, signed where the agent has a secret. An answer
counts up to 1 MiB; what it says of tokens is believed.
"""

from __future__ import annotations

import base64
import hmac
from hashlib import sha256
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import orjson

from service.values import MAX_TOKENS, storable

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_ANSWER_BYTES = 1024 * 1024
KEPT_OPEN_SECONDS = 1.0
"""For how long a connection is kept without a call. Servers end those after two seconds or more, and a call
that is on its way at that moment has failed."""

_SECRET_PREFIX = "whsec_"  # noqa: S105 - a prefix that every secret has
_SHOWN_CHARACTERS = 300


class Reply(NamedTuple):
    """What an agent answered."""

    ok: bool
    reason: str | None
    """Why it counts as failed, as far as the log can hold it."""
    body: Any
    tokens_used: int | None
    """What the agent said that it used."""


class AgentClient:
    """Calls agents. One session, so that the next call of a run goes over the same connection."""

    def __init__(self, default_url: str, secrets: Mapping[str, str]) -> None:
        self._default_url = default_url
        self._secrets = secrets
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> AgentClient:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_OPEN_SECONDS),
            # What one agent's server would have remembered is no other's business.
            cookie_jar=aiohttp.DummyCookieJar(),
            # Each attempt has its own bound, set by the job.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            auto_decompress=False,
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "squad"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()

    async def call(
        self, agent: str, url: str | None, endpoint: str, message_id: str, payload: dict[str, Any]
    ) -> Reply:
        """POSTs to an agent; whatever goes wrong is an answer too.

        Args:
            agent: its name.
            url: where it is registered; None for the default.
            endpoint: a path there.
            message_id: goes out as `webhook-id`; the same at each attempt and no other call's, so that the
                agent can tell repeats.
            payload: the body.
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
                return read_answer(response.status, answer)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reason = f"the call to {target} failed: {_told(error)}"
            return Reply(ok=False, reason=storable(reason), body=None, tokens_used=None)


def _told(error: Exception) -> str:
    # aiohttp says "ssl:default" of every connection that is not made, and the host once more.
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    return (isinstance(cause, OSError) and cause.strerror) or str(cause) or type(error).__name__


def at_url(url: str, endpoint: str) -> str:
    """Where an endpoint of an agent is: behind the url's path; a query of the url goes along."""
    base, _, query = url.partition("#")[0].partition("?")
    target = base.rstrip("/") + endpoint
    return f"{target}{'&' if '?' in endpoint else '?'}{query}" if query else target


def signed_headers(secret: str | None, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of the Standard Webhooks specification (standardwebhooks.com).

    Args:
        secret: base64, as the specification has it with the prefix `whsec_`; None signs nothing.
        message_id: what is sent; the same at each attempt, and without the full stop that ends it where it
            is signed.
        timestamp: seconds since 1970, by the clock on the wall, as the receiver checks it against its own.
        body: exactly what is sent.
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
    """The key in a secret.

    Raises:
        ValueError: it is not base64.
    """
    return base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)


def read_answer(status: int, answer: bytes) -> Reply:
    """What an answer means. Anything but a 2xx is a failure; a body that is no JSON is only shown."""
    try:
        body: Any = orjson.loads(answer) if answer else None
    except ValueError:
        body = answer[:_SHOWN_CHARACTERS].decode(errors="replace")
    ok = 200 <= status < 300
    reason = None if ok else f"the agent answered {status}: {_brief(body)}"
    return Reply(ok, reason, body, tokens_in(body))


def tokens_in(body: Any) -> int | None:
    """What an answer reports as used: `tokens_used`, or the sum of a `usage` object."""
    if not isinstance(body, dict):
        return None
    if (direct := _count(body.get("tokens_used"))) is not None:
        return direct
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    counts = [_count(usage.get("input_tokens")), _count(usage.get("output_tokens"))]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _count(value: Any) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value <= MAX_TOKENS // 2 else None


def _brief(body: Any) -> str:
    try:
        text = body if isinstance(body, str) else "" if body is None else orjson.dumps(body).decode()
    except TypeError:
        # More can be read than written.
        text = "what is nested too deep to be shown"
    return storable(text)[:_SHOWN_CHARACTERS] or "nothing"
