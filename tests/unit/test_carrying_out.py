"""What a caller is told of a command, whatever comes of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from multidict import CIMultiDict

from service.callers import Caller
from service.commands import SendMessage
from service.http.context import correlate, fingerprint
from service.http.problems import Problem
from service.http.scope import set_caller
from service.http.submitting import carry_out, carry_out_all, rendering, request_from_http
from service.refusals import Refusal
from service.requests import (
    Answer,
    CommandFailed,
    Outcome,
    OutcomeUnknown,
    QueueFull,
    Request,
    Stopping,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web

    from service.http.context import Services

FIRST = Answer(201, {"id": "the first"})


class Pen:
    """A writer that tells what came of commands when the test does."""

    def __init__(self) -> None:
        self.outcomes: list[asyncio.Future[Outcome]] = []

    def put(self, request: Request) -> asyncio.Future[Outcome]:
        return self.put_all([request])[0]

    def put_all(self, requests: Sequence[Request]) -> list[asyncio.Future[Outcome]]:
        loop = asyncio.get_running_loop()
        self.outcomes += [loop.create_future() for _ in requests]
        return self.outcomes


def services(pen: Pen) -> Services:
    return cast("Services", SimpleNamespace(writer=pen))


def a_request() -> Request:
    command = SendMessage(from_agent="ann", message="hello")
    return Request(command, "agent:ann", "c", answer=rendering(201))


async def told(come: Outcome | Exception) -> Answer | Problem:
    """What is told of one command."""
    pen = Pen()
    asking = asyncio.create_task(carry_out(services(pen), a_request()))
    await asyncio.sleep(0)
    _let_come(pen.outcomes[0], come)
    try:
        return await asking
    except Problem as problem:
        return problem


def _let_come(future: asyncio.Future[Outcome], come: Outcome | Exception) -> None:
    if isinstance(come, Exception):
        future.set_exception(come)
    else:
        future.set_result(come)


async def test_a_reply_comes_with_its_position() -> None:
    assert await told(Outcome({"id": "x"}, 7)) == Answer(201, {"id": "x", "position": 7})


async def test_a_repeat_is_told_what_was_told_the_first_time() -> None:
    assert await told(Outcome({}, None, repeated=FIRST)) is FIRST


@pytest.mark.parametrize("position", [None, 9])
async def test_a_refusal_is_a_problem_with_the_position_of_its_event(position: int | None) -> None:
    refusal = Refusal("conflict", "somebody is at it", {"resets_at": None}, 5)
    answer = await told(Outcome({}, position, refusal))
    assert isinstance(answer, Answer)
    assert answer.status == 409
    assert (answer.body["code"], answer.body["retry_after_seconds"]) == ("conflict", 5)
    assert answer.body.get("position") == position


@pytest.mark.parametrize(
    ("error", "code", "status", "again"),
    [
        (QueueFull(), "queue_full", 503, 1),
        (Stopping(), "stopping", 503, 2),
        (Unavailable(), "unavailable", 503, 5),
        (OutcomeUnknown(), "outcome_unknown", 503, 5),
        (CommandFailed("a fault"), "internal_error", 500, None),
    ],
)
async def test_where_there_is_no_outcome_it_is_said_why_and_when_to_come_again(
    error: Exception, code: str, status: int, again: int | None
) -> None:
    problem = await told(error)
    assert isinstance(problem, Problem)
    assert (problem.code, problem.status) == (code, status)
    assert problem.body.get("retry_after_seconds") == again
    assert "a fault" not in str(problem.body)


class TestWhatTheWriterIsAsked:
    WHO = Caller("agent", "2222222222", "ann")
    BODY = b'{"message": "hello"}'

    def asked(self, **headers: str) -> Request:
        set_caller(self.WHO)
        correlate({"X-Correlation-Id": "c-7"})
        http = SimpleNamespace(headers=CIMultiDict(headers), method="POST", path="/api/v1/messages")
        command = SendMessage(from_agent="ann", message="hello")
        return request_from_http(cast("web.Request", http), self.BODY, command, rendering(201))

    def test_is_in_the_name_of_whoever_stands_behind_it(self) -> None:
        request = self.asked()
        assert (request.caller, request.actor) == (self.WHO, "agent:ann key:2222222222")
        assert request.correlation_id == "c-7"

    def test_counts_its_body_against_the_queues_bound(self) -> None:
        assert self.asked().size == len(self.BODY) + 500

    def test_is_bound_to_a_key_where_one_was_sent_and_only_then(self) -> None:
        plain = self.asked()
        assert (plain.idempotency_key, plain.fingerprint, plain.bare_fingerprint) == (None, "", "")
        keyed = self.asked(**{"Idempotency-Key": "k"})
        assert keyed.idempotency_key == "agent:ann k"
        told = fingerprint("POST", "/api/v1/messages", self.BODY)
        assert (keyed.fingerprint, keyed.bare_fingerprint) == (told.whole, told.bare)
        assert "" not in told[:2]


class TestSeveral:
    async def test_are_told_in_their_order_each_its_own(self) -> None:
        pen = Pen()
        asking = asyncio.create_task(carry_out_all(services(pen), [a_request()] * 3))
        await asyncio.sleep(0)
        come: list[Outcome | Exception] = [Outcome({"n": 0}, 5), QueueFull(), Outcome({"n": 2}, 6)]
        for future, what in reversed(list(zip(pen.outcomes, come, strict=True))):
            assert not asking.done()
            _let_come(future, what)
            await asyncio.sleep(0)
        answers: list[Any] = await asking
        assert answers[0] == Answer(201, {"n": 0, "position": 5})
        assert answers[1].code == "queue_full"
        assert answers[2] == Answer(201, {"n": 2, "position": 6})

    async def test_whose_caller_has_gone_are_not_waited_for(self) -> None:
        pen = Pen()
        asking = asyncio.create_task(carry_out_all(services(pen), [a_request()] * 3))
        await asyncio.sleep(0)
        pen.outcomes[0].set_result(Outcome({}, 5))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait((asking,))
        assert asking.cancelled()
        assert [future.cancelled() for future in pen.outcomes] == [False, True, True]
