"""A command's way through the writer, and how what came of it is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from service.http.auth import caller
from service.http.context import NO_PRINT, correlation_id, fingerprint, idempotency_key
from service.http.problems import Problem, from_refusal
from service.requests import (
    Answer,
    CommandFailed,
    Outcome,
    OutcomeUnknown,
    Print,
    QueueFull,
    Request,
    Stopping,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiohttp import web

    from service.commands import AnyCommand
    from service.http.context import Services
    from service.metrics import Metrics

NOT_CARRIED_OUT = (QueueFull, Stopping, Unavailable, OutcomeUnknown, CommandFailed)
"""What the writer raises instead of an outcome."""


def request_for(
    command: AnyCommand,
    *,
    correlation: str,
    key: str | None = None,
    print_: Print = NO_PRINT,
    size: int = 0,
    render: Callable[[Outcome], Answer],
) -> Request:
    """What the writer is asked, in the name of whoever stands behind the HTTP request."""
    who = caller()
    return Request(
        command=command,
        actor=who.actor(command.acting_agent),
        correlation_id=correlation,
        idempotency_key=key,
        fingerprint=print_.whole,
        answer=render,
        size=size + 500,
        bare_fingerprint=print_.bare,
        other_fingerprint=print_.also,
        caller=who,
    )


def asked_by(
    http: web.Request, body: bytes, command: AnyCommand, render: Callable[[Outcome], Answer]
) -> Request:
    """What the writer is asked by an HTTP request that is one command.

    Raises:
        Problem: its idempotency key is not one.
    """
    key = idempotency_key(http.headers)
    return request_for(
        command,
        correlation=correlation_id(http.headers),
        key=key,
        print_=fingerprint(http.method, http.path, body) if key else NO_PRINT,
        size=len(body),
        render=render,
    )


async def carry_out(services: Services, request: Request) -> Answer:
    """Has a command decided and made durable.

    Returns:
        The answer as the request renders it, or for a repeated idempotency key the first one.

    Raises:
        Problem: it was refused, or could not be carried out.
    """
    try:
        outcome = await services.writer.submit(request)
    except NOT_CARRIED_OUT as error:
        raise problem_of(services.metrics, request, error) from error
    return answer_of(services.metrics, request, outcome)


async def carry_out_all(services: Services, requests: Sequence[Request]) -> list[Answer | Problem]:
    """Has commands decided in their order, with nobody else's between them; each gets its own answer."""
    under_way = [services.writer.put(request) for request in requests]
    await asyncio.gather(*under_way, return_exceptions=True)
    return [_told(services.metrics, *each) for each in zip(requests, under_way, strict=True)]


def _told(metrics: Metrics, request: Request, done: asyncio.Future[Outcome]) -> Answer | Problem:
    error = done.exception()
    if error is None:
        return answer_of(metrics, request, done.result())
    return problem_of(metrics, request, error)


def answer_of(metrics: Metrics, request: Request, outcome: Outcome) -> Answer:
    """Counts a command that was decided, and renders what came of it."""
    refusal = outcome.refusal
    metrics.command(type(request.command).__name__, refusal.code if refusal else "accepted")
    if outcome.repeated:
        return outcome.repeated
    assert request.answer
    return request.answer(outcome)


def problem_of(metrics: Metrics, request: Request, error: BaseException) -> Problem:
    """Counts a command that was not carried out, and says why; `error` is the writer's."""
    kind = type(request.command).__name__
    match error:
        case QueueFull():
            metrics.command(kind, "queue_full")
            return Problem("queue_full", "try again in a moment", retry_after_seconds=1)
        case Stopping():
            return Problem(
                "stopping", "ask another process, or this one when it is back", retry_after_seconds=2
            )
        case Unavailable():
            metrics.command(kind, "unavailable")
            return Problem("unavailable", "the command was not carried out", retry_after_seconds=5)
        case OutcomeUnknown():
            metrics.command(kind, "outcome_unknown")
            return Problem(
                "outcome_unknown",
                "the database went away while the command was being stored; repeat it with the same"
                " Idempotency-Key, or look at the log before repeating it without",
                retry_after_seconds=5,
            )
        case _:
            metrics.command(kind, "failed")
            return Problem("internal_error", "the command was not carried out; the service's log says why")


def rendering(status: int) -> Callable[[Outcome], Answer]:
    """How an outcome is shown: the reply with its position, or the refusal as a problem."""

    def render(outcome: Outcome) -> Answer:
        if outcome.refusal:
            problem = from_refusal(outcome.refusal, outcome.position)
            return Answer(problem.status, problem.body)
        return Answer(status, {**outcome.reply, "position": outcome.position})

    return render
