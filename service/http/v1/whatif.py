"""What-if: the same history under other rules."""

from __future__ import annotations

from datetime import date, datetime
from typing import TYPE_CHECKING

from service.http.answers import Answer
from service.http.context import Services, body_of, parse_command, parse_object
from service.http.problems import Problem
from service.http.reply import Reply, respond
from service.http.route import Route
from service.http.scope import Scope
from service.whatif import OtherRules, shown
from service.whatif.reader import judge
from service.whatif.report import Verdict, What

if TYPE_CHECKING:
    from aiohttp import web

PAGE_POSITIONS = 500
"""How many positions are evaluated at a time, blocking every other request: a few milliseconds' worth."""


class Instead(Answer):
    """How many requests of one kind would have been decided differently."""

    refused_instead: int
    allowed_instead: int


class DayOfAgent(Answer):
    """What would have been different for an agent on a day."""

    day: date
    agent: str
    refused_instead: int
    allowed_instead: int
    tokens_refused: int
    tokens_allowed: int


class DifferentRequest(Answer):
    """A request that would have been decided differently; `position` is that of its recorded outcome."""

    position: int
    recorded_at: datetime
    day: date
    agent: str
    what: What
    recorded: Verdict
    instead: Verdict
    tokens: int | None
    sentence: str


class DifferentWarning(Answer):
    """A warning that would have come at another time; null means never."""

    day: date
    percent: int
    recorded_at: datetime | None
    instead_at: datetime | None


class UnderOtherRules(Answer):
    """What would have been refused instead of allowed, and allowed instead of refused.

    The other rules apply after position `after`, up to position `upto`. `differences` has the first ten.
    `caveats` say how much of it is certain.
    """

    summary: str
    different: bool
    after: int
    upto: int
    requests: int
    refused_instead: int
    allowed_instead: int
    reservations: Instead
    claims: Instead
    heartbeats: Instead
    finishes: Instead
    runs: Instead
    tokens_refused: int
    tokens_allowed: int
    tokens_not_used: int
    days: list[DayOfAgent]
    days_left_out: int
    differences: list[DifferentRequest]
    warnings_changed: int
    warnings: list[DifferentWarning]
    caveats: list[str]


async def _judge(services: Services, request: web.Request) -> Reply:
    rules = parse_command(OtherRules, parse_object(await body_of(request)))

    def look(_: int, __: int) -> None:
        if services.stopping:
            raise Problem("stopping", "the service stopped before this was done", retry_after_seconds=2)
        if request.transport is None or request.transport.is_closing():
            raise Problem("bad_request", "the client has disconnected")

    async with services.judging:
        report = await judge(services.tables.connection, rules, page_positions=PAGE_POSITIONS, at_page=look)
    return respond(200, shown(report))


ROUTES = (
    Route(
        method="POST",
        path="/api/v1/whatif",
        name="try_rules",
        summary="Ask what other rules would have refused or allowed in the same history; changes nothing",
        tag="audit",
        scope=Scope.AUDIT,
        handler=_judge,
        body=OtherRules,
        answers={200: UnderOtherRules},
        problems=("queue_full",),
    ),
)
