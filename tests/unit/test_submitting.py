"""How HTTP requests become commands, and the outcomes of commands become answers."""

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


class StubWriter:
    """A writer whose outcomes are set by the test."""

    def __init__(self) -> None:
        self.futures: list[asyncio.Future[Outcome]] = []

    def put(self, request: Request) -> asyncio.Future[Outcome]:
        return self.put_all([request])[0]

    def put_all(self, requests: Sequence[Request]) -> list[asyncio.Future[Outcome]]:
        loop = asyncio.get_running_loop()
        self.futures += [loop.create_future() for _ in requests]
        return self.futures


def services(writer: StubWriter) -> Services:
    return cast("Services", SimpleNamespace(writer=writer))


def a_request() -> Request:
    command = SendMessage(from_agent="ann", message="hello")
    return Request(command, "agent:ann", "c", answer=rendering(201))


async def answer_to(outcome: Outcome | Exception) -> Answer | Problem:
    """Return the answer to a command with this outcome."""
    writer = StubWriter()
    task = asyncio.create_task(carry_out(services(writer), a_request()))
    await asyncio.sleep(0)
    _resolve(writer.futures[0], outcome)
    try:
        return await task
    except Problem as problem:
        return problem


def _resolve(future: asyncio.Future[Outcome], outcome: Outcome | Exception) -> None:
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


async def test_reply_has_the_position_of_the_command() -> None:
    assert await answer_to(Outcome({"id": "x"}, 7)) == Answer(201, {"id": "x", "position": 7})


async def test_repeat_gets_the_first_answer() -> None:
    answer = await answer_to(Outcome({}, None, repeated=FIRST))
    assert answer == Answer(FIRST.status, FIRST.body, is_replayed=True)


@pytest.mark.parametrize("position", [None, 9])
async def test_refusal_is_a_problem_with_the_position_of_its_event(position: int | None) -> None:
    refusal = Refusal("conflict", "somebody is at it", {"resets_at": None}, 5)
    answer = await answer_to(Outcome({}, position, refusal))
    assert isinstance(answer, Answer)
    assert answer.status == 409
    assert (answer.body["code"], answer.body["retry_after_seconds"]) == ("conflict", 5)
    assert answer.body.get("position") == position


@pytest.mark.parametrize(
    ("error", "code", "status", "retry_after_seconds"),
    [
        (QueueFull(), "queue_full", 503, 1),
        (Stopping(), "stopping", 503, 2),
        (Unavailable(), "unavailable", 503, 5),
        (OutcomeUnknown(), "outcome_unknown", 503, 5),
        (CommandFailed("a fault"), "internal_error", 500, None),
    ],
)
async def test_missing_outcome_is_a_problem_that_says_why_and_when_to_retry(
    error: Exception, code: str, status: int, retry_after_seconds: int | None
) -> None:
    problem = await answer_to(error)
    assert isinstance(problem, Problem)
    assert (problem.code, problem.status) == (code, status)
    assert problem.body.get("retry_after_seconds") == retry_after_seconds
    assert "a fault" not in str(problem.body)


class TestRequestFromHttp:
    CALLER = Caller("agent", "2222222222", "ann")
    BODY = b'{"message": "hello"}'

    def from_http(self, **headers: str) -> Request:
        set_caller(self.CALLER)
        correlate({"X-Correlation-Id": "c-7"})
        http = SimpleNamespace(headers=CIMultiDict(headers), method="POST", path="/api/v1/messages")
        command = SendMessage(from_agent="ann", message="hello")
        return request_from_http(cast("web.Request", http), self.BODY, command, rendering(201))

    def test_request_has_its_caller_and_correlation_id(self) -> None:
        request = self.from_http()
        assert (request.caller, request.actor) == (self.CALLER, "agent:ann key:2222222222")
        assert request.correlation_id == "c-7"

    def test_request_size_includes_the_body(self) -> None:
        assert self.from_http().size == len(self.BODY) + 500

    def test_request_has_a_fingerprint_only_with_an_idempotency_key(self) -> None:
        plain = self.from_http()
        assert (plain.idempotency_key, plain.fingerprint, plain.bare_fingerprint) == (None, "", "")
        keyed = self.from_http(**{"Idempotency-Key": "k"})
        assert keyed.idempotency_key == "agent:ann k"
        expected = fingerprint("POST", "/api/v1/messages", self.BODY)
        assert (keyed.fingerprint, keyed.bare_fingerprint) == (expected.whole, expected.bare)
        assert "" not in expected[:2]


class TestCarryOutAll:
    async def test_answers_are_in_the_order_of_the_commands(self) -> None:
        writer = StubWriter()
        task = asyncio.create_task(carry_out_all(services(writer), [a_request()] * 3))
        await asyncio.sleep(0)
        outcomes: list[Outcome | Exception] = [Outcome({"n": 0}, 5), QueueFull(), Outcome({"n": 2}, 6)]
        for future, outcome in reversed(list(zip(writer.futures, outcomes, strict=True))):
            assert not task.done()
            _resolve(future, outcome)
            await asyncio.sleep(0)
        answers: list[Any] = await task
        assert answers[0] == Answer(201, {"n": 0, "position": 5})
        assert answers[1].code == "queue_full"
        assert answers[2] == Answer(201, {"n": 2, "position": 6})

    async def test_unfinished_commands_are_cancelled_when_the_caller_disconnects(self) -> None:
        writer = StubWriter()
        task = asyncio.create_task(carry_out_all(services(writer), [a_request()] * 3))
        await asyncio.sleep(0)
        writer.futures[0].set_result(Outcome({}, 5))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled()
        assert [future.cancelled() for future in writer.futures] == [False, True, True]
