"""Submit commands to the writer and render their outcomes."""

from __future__ import annotations

import asyncio
from types import MappingProxyType
from typing import TYPE_CHECKING

from service.http.context import NO_FINGERPRINTS, correlation_id, fingerprint, idempotency_key
from service.http.problems import Problem, from_refusal
from service.http.scope import caller
from service.requests import (
    Answer,
    Fingerprints,
    NoOutcome,
    Outcome,
    OutcomeUnknown,
    QueueFull,
    Request,
    Stopping,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aiohttp import web

    from service.commands import AnyCommand
    from service.http.context import Services

_REPLAYED: Mapping[str, str] = MappingProxyType({"Idempotent-Replayed": "true"})
_NONE: Mapping[str, str] = MappingProxyType({})


def request_for(
    command: AnyCommand,
    *,
    key: str | None = None,
    batch_key: str | None = None,
    fingerprints: Fingerprints = NO_FINGERPRINTS,
    size: int = 0,
    render: Callable[[Outcome], Answer],
) -> Request:
    """Return the writer's request for a command, on behalf of the caller of this HTTP request."""
    who = caller()
    return Request(
        command=command,
        actor=who.actor(command.acting_agent),
        correlation_id=correlation_id(),
        idempotency_key=key,
        batch_key=batch_key,
        fingerprint=fingerprints.whole,
        answer=render,
        size=size + 500,
        bare_fingerprint=fingerprints.bare,
        other_fingerprint=fingerprints.also,
        caller=who,
    )


def request_from_http(
    http: web.Request, body: bytes, command: AnyCommand, render: Callable[[Outcome], Answer]
) -> Request:
    """Return the writer's request for an HTTP request that is one command.

    Raises:
        Problem: its idempotency key is not valid.
    """
    key = idempotency_key(http.headers)
    return request_for(
        command,
        key=key,
        fingerprints=fingerprint(http.method, http.path, body) if key else NO_FINGERPRINTS,
        size=len(body),
        render=render,
    )


async def carry_out(services: Services, request: Request) -> Answer:
    """Have a command decided and made durable.

    Returns:
        The answer as the request renders it; for a repeated idempotency key, the first answer.

    Raises:
        Problem: it could not be carried out.
    """
    try:
        outcome = await services.writer.put(request)
    except NoOutcome as error:
        raise problem_of(error) from error
    return answer_of(request, outcome)


async def carry_out_all(services: Services, requests: Sequence[Request]) -> list[Answer | Problem]:
    """Have commands decided in order, with no others in between; each gets its own answer."""
    under_way = services.writer.put_all(requests)
    try:
        for done in under_way:
            # One by one: most are done when the first is, and waiting for all at once costs each something.
            if not done.done():
                await asyncio.wait((done,))
    except asyncio.CancelledError:
        for done in under_way:
            done.cancel()
        raise
    return [
        answer_of(request, done.result()) if (error := done.exception()) is None else problem_of(error)
        for request, done in zip(requests, under_way, strict=True)
    ]


def answer_of(request: Request, outcome: Outcome) -> Answer:
    """Render the outcome of a command that was decided."""
    if first := outcome.repeated:
        return Answer(first.status, first.body, is_replayed=True)
    assert request.answer
    return request.answer(outcome)


def headers_of(answer: Answer) -> Mapping[str, str]:
    """Return the headers of an answer beyond those of every answer."""
    return _REPLAYED if answer.is_replayed else _NONE


def problem_of(error: BaseException) -> Problem:
    """Return the problem for a command that was not carried out. `error` is the writer's."""
    match error:
        case QueueFull():
            return Problem("queue_full", "try again in a moment", retry_after_seconds=1)
        case Stopping():
            return Problem(
                "stopping", "retry at another process, or here once it is back", retry_after_seconds=2
            )
        case Unavailable():
            return Problem("unavailable", "the command was not carried out", retry_after_seconds=5)
        case OutcomeUnknown():
            return Problem(
                "outcome_unknown",
                "the database did not confirm the commit in time; retry with the same Idempotency-Key, or"
                " look at the log before you retry without one",
                retry_after_seconds=5,
            )
        case _:
            return Problem("internal_error", "the command was not carried out; see the service's log")


def rendering(status: int) -> Callable[[Outcome], Answer]:
    """Return how to render an outcome: the reply with its position, or the refusal as a problem."""

    def render(outcome: Outcome) -> Answer:
        if outcome.refusal:
            problem = from_refusal(outcome.refusal, outcome.position)
            return Answer(problem.status, problem.body)
        return Answer(status, {**outcome.reply, "position": outcome.position})

    return render
