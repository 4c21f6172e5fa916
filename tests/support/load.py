"""Clients that keep a squad busy over HTTP, record every answer, and check the log against them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp

from tests.support.verify import assert_log_is_sound, assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from eventstore.recorded import Recorded
    from tests.support.process import ServiceProcess

CLIENTS = 32

# A service that can answer does so within this time.
_TIMEOUT = aiohttp.ClientTimeout(total=30, sock_connect=5)
_ANSWERED_WITHIN_SECONDS = 60.0
_BACKOFF_SECONDS = 0.05
_MAILS = 48

_DECISIVE_EVENTS: Mapping[tuple[str, int], str] = {
    ("message", 201): "message_sent",
    ("usage", 201): "tokens_used",
    ("reservation", 201): "tokens_reserved",
    ("reservation", 429): "tokens_denied",
    ("claim", 201): "operation_started",
    ("claim", 409): "conflict_detected",
    ("finish", 200): "operation_finished",
}
"""The decisive event of a request, by its kind and the status of its answer."""

_DECISIVE_TYPES = frozenset(_DECISIVE_EVENTS.values())

_REJECTED = frozenset({"queue_full", "stopping", "unavailable"})
"""Problem codes that promise that nothing was carried out."""

_UNKNOWN = "outcome_unknown"
"""The problem code that leaves the outcome open."""


class WriteRequest(NamedTuple):
    """A request for one write."""

    correlation_id: str
    """Connects the request with its events."""
    key: str | None
    """With an idempotency key it is retried until it is answered; without one it is sent once."""
    kind: str
    path: str
    body: Mapping[str, Any]
    content: Mapping[str, Any]
    """The field values that the decisive event must have."""


class Answer(NamedTuple):
    """The answer of a service."""

    status: int
    body: Mapping[str, Any]


class LogComparison(NamedTuple):
    """The answers to a load compared with the log."""

    acknowledged: int
    lost: list[WriteRequest]
    """Acknowledged, but not in the log, or not at the position or with the content of the answer."""
    doubled: list[WriteRequest]
    """In the log more than once."""
    rejected_but_logged: list[WriteRequest]
    """Rejected, but in the log nevertheless."""

    def plus(self, other: LogComparison) -> LogComparison:
        """The sum of both."""
        return LogComparison(
            self.acknowledged + other.acknowledged,
            self.lost + other.lost,
            self.doubled + other.doubled,
            self.rejected_but_logged + other.rejected_but_logged,
        )

    def assert_consistent(self) -> None:
        """Fail unless every acknowledged request is in the log exactly once, and no rejected one."""
        assert not self.lost, f"{len(self.lost)} of {self.acknowledged} are lost: {self.lost[0]}"
        assert not self.doubled, f"{len(self.doubled)} are in the log more than once: {self.doubled[0]}"
        assert not self.rejected_but_logged, (
            f"{len(self.rejected_but_logged)} were rejected, but logged: {self.rejected_but_logged[0]}"
        )


@dataclass
class Load:
    """Writes of many kinds, half of them with an idempotency key, sent to one or more services."""

    services: Sequence[ServiceProcess]
    agent_prefix: str = "agent"
    """The prefix of the clients' agent names; loads that run at the same time need different ones."""
    api_key: str | None = None
    """The API key that they use, if one is needed."""
    sent: list[WriteRequest] = field(default_factory=list)
    answered: list[tuple[WriteRequest, Answer]] = field(default_factory=list)
    rejected: list[WriteRequest] = field(default_factory=list)
    """Requests without a key that were answered with one of `_REJECTED`."""
    unexpected: list[tuple[WriteRequest, Answer]] = field(default_factory=list)
    _ending: bool = False

    @contextlib.asynccontextmanager
    async def running(self, clients: int = CLIENTS) -> AsyncIterator[None]:
        """Send requests for the duration of the block; afterwards every client has its last answer."""
        connector = aiohttp.TCPConnector(limit=0)
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else None
        async with aiohttp.ClientSession(timeout=_TIMEOUT, connector=connector, headers=headers) as session:
            tasks = [asyncio.create_task(self._client(session, index)) for index in range(clients)]
            try:
                yield
                self._ending = True
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        assert not self.unexpected, f"{len(self.unexpected)} unexpected answers: {self.unexpected[0]}"

    async def wait_for_answers(self, answers: int = 300, *, within_seconds: float = 20.0) -> None:
        """Wait until this many more requests are answered."""
        goal = len(self.answered) + answers
        await eventually(
            lambda: len(self.answered) >= goal,
            within_seconds=within_seconds,
            describe=f"{answers} more requests are answered",
        )

    async def assert_retries_get_same_answers(self, latest: int = 100) -> None:
        """Fail unless requests with an idempotency key get the same answer when repeated."""
        with_key = [(request, answer) for request, answer in self.answered if request.key][-latest:]
        assert with_key
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            for request, answer in with_key:
                again = await _post(session, self.services[0].url, request)
                assert again == answer, f"{request} was answered {answer}, and then {again}"

    async def assert_log_matches_answers(self, dsn: str) -> None:
        """Fail unless the log has every acknowledged request once and unchanged, and the tables agree."""
        await eventually(lambda: projected_to_head(dsn), describe="the tables are at the head")
        self.compare(await assert_log_is_sound(dsn)).assert_consistent()
        assert await assert_tables_equal_fold(dsn) > 0

    def compare(self, events: Sequence[Recorded]) -> LogComparison:
        """Compare a whole log with the answers to this load."""
        decisive: dict[str, list[Recorded]] = defaultdict(list)
        for event in events:
            if event.type in _DECISIVE_TYPES:
                decisive[event.correlation_id].append(event)
        return LogComparison(
            acknowledged=len(self.answered),
            lost=[
                request
                for request, answer in self.answered
                if not _matches_log(request, answer, events, decisive[request.correlation_id])
            ],
            doubled=[request for request in self.sent if len(decisive[request.correlation_id]) > 1],
            rejected_but_logged=[request for request in self.rejected if decisive[request.correlation_id]],
        )

    async def _client(self, session: aiohttp.ClientSession, index: int) -> None:
        service = index
        upcoming = requests(f"{self.agent_prefix}-{index}", first=index)
        request = next(upcoming)
        while not self._ending:
            self.sent.append(request)
            answer = await self._attempt(session, service, request)
            if answer is None:
                # A service that does not answer may be gone for good: switch to the next one.
                await asyncio.sleep(_BACKOFF_SECONDS)
                service += 1
                if request.key:
                    answer, service = await self._retry_until_answered(session, service, request)
            if answer and (request.kind, answer.status) == ("claim", 201):
                request = finish(request, answer)
            else:
                request = next(upcoming)

    async def _retry_until_answered(
        self, session: aiohttp.ClientSession, service: int, request: WriteRequest
    ) -> tuple[Answer, int]:
        """Retry a request until a service answers it; return the answer and the service."""

        answer: Answer | None = None

        async def is_answered() -> bool:
            nonlocal answer, service
            answer = await self._attempt(session, service, request)
            service += answer is None
            return answer is not None

        await eventually(
            is_answered, within_seconds=_ANSWERED_WITHIN_SECONDS, describe=f"a service answers {request}"
        )
        assert answer is not None
        return answer, service

    async def _attempt(
        self, session: aiohttp.ClientSession, service: int, request: WriteRequest
    ) -> Answer | None:
        """Send a request; return None if its outcome is unknown or it was not carried out."""
        try:
            answer = await _post(session, self.services[service % len(self.services)].url, request)
        except (aiohttp.ClientError, TimeoutError):
            return None
        if (request.kind, answer.status) in _DECISIVE_EVENTS:
            self.answered.append((request, answer))
            return answer
        code = answer.body.get("code")
        if code not in {*_REJECTED, _UNKNOWN}:
            self.unexpected.append((request, answer))
            return answer
        if code in _REJECTED and not request.key:
            self.rejected.append(request)
        return None


def _matches_log(
    request: WriteRequest, answer: Answer, events: Sequence[Recorded], decisive: Sequence[Recorded]
) -> bool:
    """Whether the log agrees with an answer, at the position that the answer names."""
    position = answer.body["position"]
    if (
        not decisive
        or position > len(events)
        or events[position - 1].correlation_id != request.correlation_id
    ):
        return False
    data = json.loads(decisive[0].data)
    return (
        decisive[0].type == _DECISIVE_EVENTS[request.kind, answer.status]
        and request.content.items() <= data.items()
    )


def requests(agent: str, first: int) -> Iterator[WriteRequest]:
    """One client's endless requests, of each kind in turn; half of them have an idempotency key."""
    for turn in count(first):
        correlation_id = f"{agent}:{turn}"
        key = f"key-{correlation_id}" if turn % 8 < 4 else None
        match turn % 4:
            case 0:
                content: dict[str, Any] = {"agent": agent, "message": f"{correlation_id} says {'x' * 100}"}
                body = {"from_agent": agent, "message": content["message"]}
                yield WriteRequest(correlation_id, key, "message", "messages", body, content)
            case 1:
                content = {"agent": agent, "tokens": turn + 1}
                yield WriteRequest(correlation_id, key, "usage", "budget/usage", content, content)
            case 2:
                content = {"agent": agent, "tokens": turn + 1}
                yield WriteRequest(
                    correlation_id, key, "reservation", "budget/reservations", content, content
                )
            case _:
                mail = {"emailId": f"mail-{turn % _MAILS}"}
                content = {"agent": agent, "action": f"answer for {correlation_id}", "resources": mail}
                yield WriteRequest(correlation_id, key, "claim", "operations", content, content)


def finish(claim: WriteRequest, answer: Answer) -> WriteRequest:
    """The request that finishes a granted claim, so that it does not block others for long."""
    operation_id = answer.body["id"]
    return WriteRequest(
        correlation_id=f"{claim.correlation_id}:finish",
        key=f"key-{claim.correlation_id}:finish",
        kind="finish",
        path=f"operations/{operation_id}/finish",
        body={"outcome": "succeeded"},
        content={"operation_id": operation_id, "outcome": "succeeded"},
    )


async def _post(session: aiohttp.ClientSession, url: str, request: WriteRequest) -> Answer:
    headers = {"X-Correlation-Id": request.correlation_id}
    if request.key:
        headers["Idempotency-Key"] = request.key
    async with session.post(f"{url}/api/v1/{request.path}", json=request.body, headers=headers) as response:
        return Answer(response.status, json.loads(await response.read()))
