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

_FACTS: Mapping[tuple[str, int], str] = {
    ("message", 201): "message_sent",
    ("usage", 201): "tokens_used",
    ("reservation", 201): "tokens_reserved",
    ("reservation", 429): "tokens_denied",
    ("claim", 201): "operation_started",
    ("claim", 409): "conflict_detected",
    ("finish", 200): "operation_finished",
}
"""The decisive event of a request, by its kind and the status of its answer."""

_DECISIVE = frozenset(_FACTS.values())

_REJECTED = frozenset({"queue_full", "stopping", "unavailable"})
"""Problem codes that promise that nothing was carried out."""

_UNKNOWN = "outcome_unknown"
"""The problem code that promises nothing."""


class Ask(NamedTuple):
    """A request for one write."""

    number: str
    """Its correlation id, which connects it with its events."""
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


class EarlierAnswer(NamedTuple):
    """The outcome of a load's requests according to the log."""

    acknowledged: int
    lost: list[Ask]
    """Acknowledged, but not in the log, or not at the position or with the content of the answer."""
    doubled: list[Ask]
    """In the log more than once."""
    haunting: list[Ask]
    """Rejected, but in the log all the same."""

    def with_(self, other: EarlierAnswer) -> EarlierAnswer:
        """The sum of both."""
        return EarlierAnswer(
            self.acknowledged + other.acknowledged,
            self.lost + other.lost,
            self.doubled + other.doubled,
            self.haunting + other.haunting,
        )

    def assert_nothing_amiss(self) -> None:
        """Fail unless everything acknowledged is in the log once, and nothing that was rejected."""
        assert not self.lost, f"{len(self.lost)} of {self.acknowledged} are lost: {self.lost[0]}"
        assert not self.doubled, f"{len(self.doubled)} happened twice: {self.doubled[0]}"
        assert not self.haunting, f"{len(self.haunting)} were rejected and happened: {self.haunting[0]}"


@dataclass
class Load:
    """Writes of many kinds, half of them with an idempotency key, on one or more services."""

    services: Sequence[ServiceProcess]
    squad: str = "agent"
    """The prefix of the clients' agent names; two loads at a time need different ones."""
    api_key: str | None = None
    """The API key that they use, if one is needed."""
    asked: list[Ask] = field(default_factory=list)
    answered: list[tuple[Ask, Answer]] = field(default_factory=list)
    turned_away: list[Ask] = field(default_factory=list)
    """Requests without a key that were answered with one of `_REJECTED`."""
    surprises: list[tuple[Ask, Answer]] = field(default_factory=list)
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
        assert not self.surprises, f"{len(self.surprises)} unexpected answers: {self.surprises[0]}"

    async def more(self, answers: int = 300, *, within_seconds: float = 20.0) -> None:
        """Wait until this many more requests are answered."""
        goal = len(self.answered) + answers
        await eventually(
            lambda: len(self.answered) >= goal,
            within_seconds=within_seconds,
            describe=f"{answers} more requests are answered",
        )

    async def assert_answers_stand(self, latest: int = 100) -> None:
        """Fail unless requests with an idempotency key get the same answer when repeated."""
        kept = [(ask, answer) for ask, answer in self.answered if ask.key][-latest:]
        assert kept
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            for ask, answer in kept:
                again = await _post(session, self.services[0].url, ask)
                assert again == answer, f"{ask} was answered {answer}, and then {again}"

    async def assert_kept(self, dsn: str) -> None:
        """Fail unless the log has what was acknowledged, once and unchanged, and the tables agree."""
        await eventually(lambda: projected_to_head(dsn), describe="the tables are at the head")
        self.compare(await assert_log_is_sound(dsn)).assert_nothing_amiss()
        assert await assert_tables_equal_fold(dsn) > 0

    def compare(self, events: Sequence[Recorded]) -> EarlierAnswer:
        """Compare a whole log with the answers to this load."""
        decisive: dict[str, list[Recorded]] = defaultdict(list)
        for event in events:
            if event.type in _DECISIVE:
                decisive[event.correlation_id].append(event)
        return EarlierAnswer(
            acknowledged=len(self.answered),
            lost=[
                ask
                for ask, answer in self.answered
                if not _is_as_told(ask, answer, events, decisive[ask.number])
            ],
            doubled=[ask for ask in self.asked if len(decisive[ask.number]) > 1],
            haunting=[ask for ask in self.turned_away if decisive[ask.number]],
        )

    async def _client(self, session: aiohttp.ClientSession, index: int) -> None:
        service = index
        more = requests(f"{self.squad}-{index}", first=index)
        ask = next(more)
        while not self._ending:
            self.asked.append(ask)
            answer = await self._attempt(session, service, ask)
            if answer is None:
                # A service that does not answer may be gone for good: switch to the next one.
                await asyncio.sleep(_BACKOFF_SECONDS)
                service += 1
                if ask.key:
                    answer, service = await self._insist(session, service, ask)
            if answer and (ask.kind, answer.status) == ("claim", 201):
                ask = finish(ask, answer)
            else:
                ask = next(more)

    async def _insist(self, session: aiohttp.ClientSession, service: int, ask: Ask) -> tuple[Answer, int]:
        """Retry a request until a service answers it; return the answer and the service."""

        answer: Answer | None = None

        async def is_answered() -> bool:
            nonlocal answer, service
            answer = await self._attempt(session, service, ask)
            service += answer is None
            return answer is not None

        await eventually(
            is_answered, within_seconds=_ANSWERED_WITHIN_SECONDS, describe=f"a service answers {ask}"
        )
        assert answer is not None
        return answer, service

    async def _attempt(self, session: aiohttp.ClientSession, service: int, ask: Ask) -> Answer | None:
        """Send a request; return None if its outcome is unknown or it was not carried out."""
        try:
            answer = await _post(session, self.services[service % len(self.services)].url, ask)
        except (aiohttp.ClientError, TimeoutError):
            return None
        if (ask.kind, answer.status) in _FACTS:
            self.answered.append((ask, answer))
            return answer
        code = answer.body.get("code")
        if code not in {*_REJECTED, _UNKNOWN}:
            self.surprises.append((ask, answer))
            return answer
        if code in _REJECTED and not ask.key:
            self.turned_away.append(ask)
        return None


def _is_as_told(ask: Ask, answer: Answer, events: Sequence[Recorded], decisive: Sequence[Recorded]) -> bool:
    """Whether the log agrees with an answer, at the position that the answer names."""
    position = answer.body["position"]
    if not decisive or position > len(events) or events[position - 1].correlation_id != ask.number:
        return False
    data = json.loads(decisive[0].data)
    return decisive[0].type == _FACTS[ask.kind, answer.status] and ask.content.items() <= data.items()


def requests(agent: str, first: int) -> Iterator[Ask]:
    """One client's endless requests: every kind in turn, every other one with an idempotency key."""
    for turn in count(first):
        number = f"{agent}:{turn}"
        key = f"key-{number}" if turn % 8 < 4 else None
        match turn % 4:
            case 0:
                content: dict[str, Any] = {"agent": agent, "message": f"{number} says {'x' * 100}"}
                body = {"from_agent": agent, "message": content["message"]}
                yield Ask(number, key, "message", "messages", body, content)
            case 1:
                content = {"agent": agent, "tokens": turn + 1}
                yield Ask(number, key, "usage", "budget/usage", content, content)
            case 2:
                content = {"agent": agent, "tokens": turn + 1}
                yield Ask(number, key, "reservation", "budget/reservations", content, content)
            case _:
                mail = {"emailId": f"mail-{turn % _MAILS}"}
                content = {"agent": agent, "action": f"answer for {number}", "resources": mail}
                yield Ask(number, key, "claim", "operations", content, content)


def finish(claim: Ask, answer: Answer) -> Ask:
    """The request that finishes a granted claim, so that it does not block others for long."""
    operation_id = answer.body["id"]
    return Ask(
        number=f"{claim.number}:finish",
        key=f"key-{claim.number}:finish",
        kind="finish",
        path=f"operations/{operation_id}/finish",
        body={"outcome": "succeeded"},
        content={"operation_id": operation_id, "outcome": "succeeded"},
    )


async def _post(session: aiohttp.ClientSession, url: str, ask: Ask) -> Answer:
    headers = {"X-Correlation-Id": ask.number}
    if ask.key:
        headers["Idempotency-Key"] = ask.key
    async with session.post(f"{url}/api/v1/{ask.path}", json=ask.body, headers=headers) as response:
        return Answer(response.status, json.loads(await response.read()))
