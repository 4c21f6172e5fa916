"""Authentication and rate limits: who may send requests, with which key, and how often.

As long as a squad has a key that has not been revoked, every request needs one, as `Authorization: Bearer`.
The keys are rows of the state in memory, which every process folds from the log. So a check needs no
database, and a key revoked in any process stops working here as soon as its event is folded. What a command
may do is checked again when it is decided (`service.decide.access`), where that lag does not exist.

A squad without keys serves its own machine only. It refuses web pages that reach it under a name of their
own (DNS rebinding) and cross-origin writes.

An address that sends wrong keys too often has to wait. A valid key is accepted even then, so nobody can
lock out others behind the same address.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from hmac import compare_digest
from math import ceil
from time import monotonic
from typing import TYPE_CHECKING

from aiohttp import hdrs
from multidict import istr

from projections.keys import KEYS
from service import api_keys
from service.callers import ANYBODY, Caller
from service.commands import NoteKeyUse
from service.decide.access import KEY_INVALID, KEY_REQUIRED, is_key_required
from service.http.limits import (
    Buckets,
    Networks,
    address_in,
    client_network,
    is_local_host,
    is_loopback,
)
from service.http.problems import Problem
from service.http.scope import DENIAL_DETAIL, Scope
from service.requests import NoOutcome, Request
from service.writing.batch import new_id

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.web_request import BaseRequest

    from projections.keys import KeyRow
    from service.clock import DatabaseClock
    from service.http.ended_keys import EndedKeys
    from service.memory.squad import Squad
    from service.settings import Settings
    from service.writing.writer import Writer

CHALLENGE = 'Bearer realm="squad"'
"""The WWW-Authenticate header for callers without a valid key."""

FAILED_TRIES_PER_MINUTE = 20
"""How many wrong keys an address may send before it has to wait."""

BURST_SECONDS = 2.0
"""The size of a burst: as many requests as the rate allows in this time may come at once."""

_INVALID_TOKEN = f'{CHALLENGE}, error="invalid_token"'
_MAX_CACHED_KEYS = 1_000
_BEARER = "bearer "
_ID_AT = slice(len(api_keys.PREFIX), len(api_keys.PREFIX) + api_keys.ID_CHARACTERS)
_FORWARDED_FOR = istr("X-Forwarded-For")
_UNKNOWN_CLIENT = "an unknown address behind a proxy"
_SAFE_METHODS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD})
_log = logging.getLogger(__name__)


class Authenticator:
    """Admits or rejects requests."""

    def __init__(
        self, settings: Settings, writer: Writer, clock: DatabaseClock, ended_keys: EndedKeys
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._ended_keys = ended_keys
        self._insecure = settings.insecure
        self._origins = frozenset(settings.cors_origins)
        self._proxies = Networks(settings.trusted_proxies) if settings.trusted_proxies else None
        self._by_key = _buckets(settings.key_requests_per_second)
        self._by_address = _buckets(settings.address_requests_per_second)
        self._failed = Buckets(FAILED_TRIES_PER_MINUTE / 60, FAILED_TRIES_PER_MINUTE)
        self._warned = Buckets(1 / 60, 1)
        self._verified_keys: dict[str, tuple[KeyRow, Caller]] = {}
        self._recording: dict[str, asyncio.Task[None]] = {}

    def authenticate(self, request: web.Request, scope: Scope) -> Caller | None:
        """Return the caller of a request that the route is open to; None if the route is public.

        Raises:
            Problem: the request is rejected.
        """
        address = self._address(request)
        self._count(address)
        return None if scope is Scope.PUBLIC else self._authorize(request, scope, address)

    def check_rate_limit(self, request: BaseRequest) -> Problem | None:
        """Count a request that matches no route; return a problem if its sender exceeds the rate limit."""
        address = self._address(request)
        try:
            self._count(address)
        except Problem as problem:
            return problem
        return None

    def is_still_allowed(self, known: Caller) -> bool:
        """Return whether a caller that was admitted before would be admitted now."""
        squad = self._writer.squad
        if not squad.head.position:
            # The state is being read, so there is nothing to show either.
            return True
        if known.key_id is None:
            return not is_key_required(squad)
        row = squad.rows(KEYS).get(known.key_id)
        return row is not None and not self._has_expired(row)

    def has_full_access(self, request: web.Request) -> bool:
        """Return whether a request to a public route comes from a caller that may see everything."""
        try:
            self._authorize(request, Scope.AUDIT, self._address(request))
        except Problem:
            return False
        return True

    def _authorize(self, request: web.Request, scope: Scope, address: str) -> Caller:
        """Return the caller of a request that has been counted.

        Raises:
            Problem: the route is not open to it.
        """
        squad = self._writer.squad
        if not squad.head.position:
            # It is not known yet which keys there are.
            raise Problem("unavailable", "the squad's state is being loaded", retry_after_seconds=1)
        if not is_key_required(squad):
            self._check_local(request, address)
            return ANYBODY
        known = self._caller(squad, request.headers.get(hdrs.AUTHORIZATION), address)
        if known.scope not in scope.keys:
            _log.debug("the key %s is denied: %s", known.key_id, DENIAL_DETAIL[scope])
            raise Problem("not_allowed", DENIAL_DETAIL[scope])
        return known

    def _count(self, address: str) -> None:
        """Count a request from an address. This machine's own addresses are not limited.

        Raises:
            Problem: the address exceeds its rate limit.
        """
        if self._by_address is not None and not is_loopback(address):
            _check_limit(self._by_address.take(client_network(address), monotonic()), f"from {address}")

    def _caller(self, squad: Squad, header: str | None, address: str) -> Caller:
        """Return the caller whose key the Authorization header holds.

        Raises:
            Problem: there is no key, it is not valid, or it exceeds its rate limit.
        """
        if header is None:
            raise Problem("unauthorized", KEY_REQUIRED)
        cached = self._verified_keys.get(header)
        # Rows are replaced, never modified: the same row object means that the key has not changed.
        if cached is None or squad.rows(KEYS).get(cached[0].id) is not cached[0]:
            cached = self._verify_key(squad, header, address)
        row, known = cached
        if row.expires_at is not None and self._has_expired(row):
            raise self._rejection(header, address)
        if row.first_used_at is None:
            self._note_use(known)
        if self._by_key is not None:
            _check_limit(self._by_key.take(row.id, monotonic()), "with this key")
        return known

    def _verify_key(self, squad: Squad, header: str, address: str) -> tuple[KeyRow, Caller]:
        self._verified_keys.pop(header, None)
        text = header[len(_BEARER) :].strip()
        row = squad.rows(KEYS).get(text[_ID_AT])
        is_match = row is not None and text.isascii() and _matches(text, row)
        if row is None or not is_match or header[: len(_BEARER)].lower() != _BEARER:
            raise self._rejection(header, address)
        if len(self._verified_keys) >= _MAX_CACHED_KEYS:
            self._verified_keys.clear()
        found = self._verified_keys[header] = (row, Caller(row.scope, row.id, row.agent))
        return found

    def _rejection(self, header: str, address: str) -> Problem:
        seconds = self._failed.take(client_network(address), monotonic())
        if not seconds:
            self._ended_keys.check(header[len(_BEARER) :].strip(), address)
            return Problem("unauthorized", KEY_INVALID, headers={"WWW-Authenticate": _INVALID_TOKEN})
        if not self._warned.take(client_network(address), monotonic()):
            _log.warning("too many invalid keys from %s", address)
        return Problem(
            "rate_limited", f"{KEY_INVALID}; too many attempts", retry_after_seconds=ceil(seconds)
        )

    def _has_expired(self, row: KeyRow) -> bool:
        return row.expires_at is not None and row.expires_at <= self._clock.now()

    def _check_local(self, request: web.Request, address: str) -> None:
        """Admit only this machine, and no web page through it.

        Raises:
            Problem: the request comes from elsewhere.
        """
        if self._insecure:
            return
        if not is_loopback(address):
            raise Problem(
                "not_allowed",
                "a squad without keys serves its own machine only; create one with `squad keys create`",
            )
        host = request.headers.get(hdrs.HOST, "")
        if not is_local_host(host):
            raise Problem("misdirected", f"without keys, Host must be localhost or 127.0.0.1, not {host!r}")
        origin = None if request.method in _SAFE_METHODS else request.headers.get(hdrs.ORIGIN)
        if origin is not None and origin not in self._origins:
            raise Problem("not_allowed", f"web pages of {origin!r} may not change anything here")

    def _address(self, request: BaseRequest) -> str:
        """Return the client's address; behind trusted proxies, the one they report."""
        peer = request.protocol.peername
        address = str(peer[0]) if peer else ""
        if self._proxies is None or not self._proxies.contains(address):
            return address
        # Each proxy appends its peer's address; what comes before may have been forged by the client.
        for hop in reversed(",".join(request.headers.getall(_FORWARDED_FOR, ())).split(",")):
            if not (said := hop.strip()):
                break
            # A hop that is not an address is still neither the proxy nor this machine.
            address = address_in(said) or _UNKNOWN_CLIENT
            if not self._proxies.contains(address):
                break
        return address

    def _note_use(self, known: Caller) -> None:
        """Record in the background that a key was used for the first time."""
        assert known.key_id
        if known.key_id not in self._recording:
            task = asyncio.create_task(self._submit_use(known, known.key_id))
            self._recording[known.key_id] = task

    async def _submit_use(self, known: Caller, key_id: str) -> None:
        request = Request(NoteKeyUse(key_id=key_id), known.actor(), new_id())
        try:
            with suppress(NoOutcome):
                await self._writer.submit(request)
        finally:
            del self._recording[key_id]


def _buckets(per_second: float) -> Buckets | None:
    return Buckets(per_second, max(1.0, per_second * BURST_SECONDS)) if per_second else None


def _matches(text: str, row: KeyRow) -> bool:
    return compare_digest(api_keys.digest_of(text), row.digest)


def _check_limit(seconds: float, source: str) -> None:
    if seconds:
        raise Problem("rate_limited", f"too many requests {source}", retry_after_seconds=ceil(seconds))
