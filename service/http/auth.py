"""The door: who comes in, with which key, and how often.

As long as a squad has a key that nobody has revoked, every request needs one, by `Authorization: Bearer`.
The keys are rows of the state in memory, which every process folds from the log. So looking at a key takes
no database, and one that is revoked anywhere opens nothing here from the moment that its event is folded.
What a command may do is looked at again where it is decided (`service.decide.access`), without that moment.

A squad without keys serves its own machine only, and no web page that was led to it by a name of its own
(DNS rebinding) or that posts to it blindly.

Whoever comes with a wrong key too often is told to wait. Whoever has a right one is let in even then, so
nobody can lock out others behind the same address.
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
from service.decide.access import INVALID, NEEDED, key_is_needed
from service.http.limits import (
    Buckets,
    Networks,
    address_in,
    is_this_machine,
    names_this_machine,
    neighbourhood,
)
from service.http.problems import Problem
from service.http.scope import BEYOND, Scope
from service.requests import NoOutcome, Request
from service.writing.batch import new_id

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.web_request import BaseRequest

    from projections.keys import KeyRow
    from service.clock import DatabaseClock
    from service.memory.squad import Squad
    from service.settings import Settings
    from service.writing.writer import Writer

CHALLENGE = 'Bearer realm="squad"'
"""What is said to whoever has no valid key: which way to show one."""

FAILED_TRIES_PER_MINUTE = 20
"""How many wrong keys an address may show before it is told to wait."""

BURST_SECONDS = 2.0
"""For how long a caller may ask as fast as it likes what it is allowed to ask in that time."""

_INVALID_TOKEN = f'{CHALLENGE}, error="invalid_token"'
_MAX_REMEMBERED_KEYS = 1_000
_BEARER = "bearer "
_ID_AT = slice(len(api_keys.PREFIX), len(api_keys.PREFIX) + api_keys.ID_CHARACTERS)
_FORWARDED_FOR = istr("X-Forwarded-For")
_SOMEBODY = "somebody that a proxy does not name"
_SAFE_METHODS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD})
_log = logging.getLogger(__name__)


class Door:
    """Lets requests in."""

    def __init__(self, settings: Settings, writer: Writer, clock: DatabaseClock) -> None:
        self._writer = writer
        self._clock = clock
        self._insecure = settings.insecure
        self._origins = frozenset(settings.cors_origins)
        self._proxies = Networks(settings.trusted_proxies) if settings.trusted_proxies else None
        self._by_key = _buckets(settings.key_requests_per_second)
        self._by_address = _buckets(settings.address_requests_per_second)
        self._failed = Buckets(FAILED_TRIES_PER_MINUTE / 60, FAILED_TRIES_PER_MINUTE)
        self._told = Buckets(1 / 60, 1)
        self._remembered: dict[str, tuple[KeyRow, Caller]] = {}
        self._noting: dict[str, asyncio.Task[None]] = {}

    def admit(self, request: web.Request, scope: Scope) -> Caller | None:
        """Whoever stands behind a request, where the route is open to them; None where anybody may come.

        Raises:
            Problem: the request is not let in.
        """
        address = self._address(request)
        self._count(address)
        return None if scope is Scope.PUBLIC else self._let_in(request, scope, address)

    def too_often(self, request: BaseRequest) -> Problem | None:
        """Why a request that no route answers is not answered either, where its sender asks too often."""
        address = self._address(request)
        try:
            self._count(address)
        except Problem as problem:
            return problem
        return None

    def still_admits(self, known: Caller) -> bool:
        """Whether somebody who was let in before would be let in now."""
        squad = self._writer.squad
        if not squad.head.position:
            # Nothing is known for the moment, and so nothing is shown.
            return True
        if known.key_id is None:
            return not key_is_needed(squad)
        row = squad.rows(KEYS).get(known.key_id)
        return row is not None and not self._has_run_out(row)

    def knows(self, request: web.Request) -> bool:
        """Whether a request that was admitted as anybody's comes from somebody who may see everything."""
        try:
            self._let_in(request, Scope.AUDIT, self._address(request))
        except Problem:
            return False
        return True

    def _let_in(self, request: web.Request, scope: Scope, address: str) -> Caller:
        """Whoever stands behind a request that is counted already.

        Raises:
            Problem: the route is not open to them.
        """
        squad = self._writer.squad
        if not squad.head.position:
            # Nothing is known, also not which keys there are.
            raise Problem("unavailable", "the squad's state is being read", retry_after_seconds=1)
        if not key_is_needed(squad):
            self._check_that_it_is_at_home(request, address)
            return ANYBODY
        known = self._caller(squad, request.headers.get(hdrs.AUTHORIZATION), address)
        if known.scope not in scope.keys:
            raise Problem("not_allowed", BEYOND[scope])
        return known

    def _count(self, address: str) -> None:
        """Counts a request from an address; those of this machine may ask as often as they like.

        Raises:
            Problem: there were too many.
        """
        if self._by_address is not None and not is_this_machine(address):
            _wait(self._by_address.take(neighbourhood(address), monotonic()), f"from {address}")

    def _caller(self, squad: Squad, header: str | None, address: str) -> Caller:
        """Whose key it is.

        Raises:
            Problem: there is none, it is wrong, or it is used too often.
        """
        if header is None:
            raise Problem("unauthorized", NEEDED)
        remembered = self._remembered.get(header)
        # A row is never changed, only replaced: as long as it is the same one, nothing happened to the key.
        if remembered is None or squad.rows(KEYS).get(remembered[0].id) is not remembered[0]:
            remembered = self._look_at(squad, header, address)
        row, known = remembered
        if row.expires_at is not None and self._has_run_out(row):
            raise self._turned_away(address)
        if row.first_used_at is None:
            self._note_use(known)
        if self._by_key is not None:
            _wait(self._by_key.take(row.id, monotonic()), "with this key")
        return known

    def _look_at(self, squad: Squad, header: str, address: str) -> tuple[KeyRow, Caller]:
        self._remembered.pop(header, None)
        text = header[len(_BEARER) :].strip()
        row = squad.rows(KEYS).get(text[_ID_AT])
        is_right = row is not None and text.isascii() and _fits(text, row)
        if row is None or not is_right or header[: len(_BEARER)].lower() != _BEARER:
            raise self._turned_away(address)
        if len(self._remembered) >= _MAX_REMEMBERED_KEYS:
            self._remembered.clear()
        found = self._remembered[header] = (row, Caller(row.scope, row.id, row.agent))
        return found

    def _turned_away(self, address: str) -> Problem:
        seconds = self._failed.take(neighbourhood(address), monotonic())
        if not seconds:
            return Problem("unauthorized", INVALID, headers={"WWW-Authenticate": _INVALID_TOKEN})
        if not self._told.take(neighbourhood(address), monotonic()):
            _log.warning("too many wrong keys come from %s", address)
        return Problem("rate_limited", f"{INVALID}; too many came", retry_after_seconds=ceil(seconds))

    def _has_run_out(self, row: KeyRow) -> bool:
        return row.expires_at is not None and row.expires_at <= self._clock.now()

    def _check_that_it_is_at_home(self, request: web.Request, address: str) -> None:
        """Lets only this machine in, and no web page through it.

        Raises:
            Problem: it comes from elsewhere.
        """
        if self._insecure:
            return
        if not is_this_machine(address):
            raise Problem(
                "not_allowed",
                "a squad without keys serves its own machine only; make one with `squad keys create`",
            )
        host = request.headers.get(hdrs.HOST, "")
        if not names_this_machine(host):
            raise Problem("misdirected", f"without keys, the Host is localhost or 127.0.0.1, not {host!r}")
        origin = None if request.method in _SAFE_METHODS else request.headers.get(hdrs.ORIGIN)
        if origin is not None and origin not in self._origins:
            raise Problem("not_allowed", f"web pages of {origin!r} may change nothing here")

    def _address(self, request: BaseRequest) -> str:
        """Where a request comes from; behind proxies that are trusted, by their word."""
        peer = request.protocol.peername
        address = str(peer[0]) if peer else ""
        if self._proxies is None or not self._proxies.hold(address):
            return address
        # Each proxy adds at the end whom it heard it from; what stands before, anybody may have written.
        for hop in reversed(",".join(request.headers.getall(_FORWARDED_FOR, ())).split(",")):
            if not (said := hop.strip()):
                break
            # Somebody who is not named by an address is still not the proxy, nor this machine.
            address = address_in(said) or _SOMEBODY
            if not self._proxies.hold(address):
                break
        return address

    def _note_use(self, known: Caller) -> None:
        """Has it noted that a key was used for the first time; nobody waits for that."""
        assert known.key_id
        if known.key_id not in self._noting:
            task = asyncio.create_task(self._submit_use(known, known.key_id))
            self._noting[known.key_id] = task

    async def _submit_use(self, known: Caller, key_id: str) -> None:
        request = Request(NoteKeyUse(key_id=key_id), known.actor(), new_id())
        try:
            with suppress(NoOutcome):
                await self._writer.submit(request)
        finally:
            del self._noting[key_id]


def _buckets(per_second: float) -> Buckets | None:
    return Buckets(per_second, max(1.0, per_second * BURST_SECONDS)) if per_second else None


def _fits(text: str, row: KeyRow) -> bool:
    return compare_digest(api_keys.digest_of(text), row.digest)


def _wait(seconds: float, whose: str) -> None:
    if seconds:
        raise Problem("rate_limited", f"too many requests come {whose}", retry_after_seconds=ceil(seconds))
