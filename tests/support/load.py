"""Clients that keep a squad busy over HTTP, remember every answer, and hold the log to it in the end."""

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

# A service that can answer does so before this.
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
"""The event that is decisive for a request of a kind that was answered with a status."""

_DECISIVE = frozenset(_FACTS.values())

_TURNED_AWAY = frozenset({"queue_full", "stopping", "unavailable"})
"""Codes of problems that promise that nothing was carried out."""

_UNKNOWN = "outcome_unknown"
"""The code of the problem that promises nothing."""


class Ask(NamedTuple):
    """A request for one write."""

    number: str
    """Its correlation id, which ties it to the events that come of it."""
    key: str | None
    """With an idempotency key it is repeated until it is answered; without one it is made once."""
    kind: str
    path: str
    body: Mapping[str, Any]
    content: Mapping[str, Any]
    """What the decisive event must hold."""


class Answer(NamedTuple):
    """What a service said."""

    status: int
    body: Mapping[str, Any]


class Kept(NamedTuple):
    """What became of a load's requests, by the log."""

    acknowledged: int
    lost: list[Ask]
    """Acknowledged, and not in the log, or not where or as the answer said."""
    doubled: list[Ask]
    """In the log more than once."""
    haunting: list[Ask]
    """Turned away, and in the log all the same."""

    def with_(self, other: Kept) -> Kept:
        """Both loads' together."""
        return Kept(
            self.acknowledged + other.acknowledged,
            self.lost + other.lost,
            self.doubled + other.doubled,
            self.haunting + other.haunting,
        )

    def assert_nothing_amiss(self) -> None:
        """Fails unless everything acknowledged is there once, and nothing is that was turned away."""
        assert not self.lost, f"{len(self.lost)} of {self.acknowledged} are lost: {self.lost[0]}"
        assert not self.doubled, f"{len(self.doubled)} happened twice: {self.doubled[0]}"
        assert not self.haunting, f"{len(self.haunting)} were turned away and happened: {self.haunting[0]}"


@dataclass
class Load:
    """Writes of many kinds, half of them with an idempotency key, on one or more services."""

    services: Sequence[ServiceProcess]
    squad: str = "agent"
    """What the clients' agents are called; two loads at a time need two names."""
    api_key: str | None = None
    """What they show, where a key is needed."""
    asked: list[Ask] = field(default_factory=list)
    answered: list[tuple[Ask, Answer]] = field(default_factory=list)
    turned_away: list[Ask] = field(default_factory=list)
    """Requests without a key that were answered with one of `_TURNED_AWAY`."""
    surprises: list[tuple[Ask, Answer]] = field(default_factory=list)
    _ending: bool = False

    @contextlib.asynccontextmanager
    async def running(self, clients: int = CLIENTS) -> AsyncIterator[None]:
        """Asks for as long as the block lasts; afterwards every client has its last answer."""
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
        """Waits until so many more requests are answered."""
        goal = len(self.answered) + answers
        await eventually(
            lambda: len(self.answered) >= goal,
            within_seconds=within_seconds,
            describe=f"{answers} more requests are answered",
        )

    async def assert_answers_stand(self, latest: int = 100) -> None:
        """Fails unless requests with a key, made once more, are answered as they were."""
        kept = [(ask, answer) for ask, answer in self.answered if ask.key][-latest:]
        assert kept
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            for ask, answer in kept:
                again = await _post(session, self.services[0].url, ask)
                assert again == answer, f"{ask} was answered {answer}, and then {again}"

    async def assert_kept(self, dsn: str) -> None:
        """Fails unless the log holds what was acknowledged, once and unchanged, and the tables agree."""
        await eventually(lambda: projected_to_head(dsn), describe="the tables are at the head")
        self.compare(await assert_log_is_sound(dsn)).assert_nothing_amiss()
        assert await assert_tables_equal_fold(dsn) > 0

    def compare(self, events: Sequence[Recorded]) -> Kept:
        """Holds a whole log to what this load was told."""
        decisive: dict[str, list[Recorded]] = defaultdict(list)
        for event in events:
            if event.type in _DECISIVE:
                decisive[event.correlation_id].append(event)
        return Kept(
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
                # Whoever does not answer may be gone for good: the next one is asked from now on.
                await asyncio.sleep(_BACKOFF_SECONDS)
                service += 1
                if ask.key:
                    answer, service = await self._insist(session, service, ask)
            if answer and (ask.kind, answer.status) == ("claim", 201):
                ask = finish(ask, answer)
            else:
                ask = next(more)

    async def _insist(self, session: aiohttp.ClientSession, service: int, ask: Ask) -> tuple[Answer, int]:
        """Repeats a request until somebody answers it; says who did."""

        answer: Answer | None = None

        async def is_answered() -> bool:
            nonlocal answer, service
            answer = await self._attempt(session, service, ask)
            service += answer is None
            return answer is not None

        await eventually(
            is_answered, within_seconds=_ANSWERED_WITHIN_SECONDS, describe=f"somebody answers {ask}"
        )
        assert answer is not None
        return answer, service

    async def _attempt(self, session: aiohttp.ClientSession, service: int, ask: Ask) -> Answer | None:
        """Makes a request; None where what came of it is not known, or nothing did."""
        try:
            answer = await _post(session, self.services[service % len(self.services)].url, ask)
        except (aiohttp.ClientError, TimeoutError):
            return None
        if (ask.kind, answer.status) in _FACTS:
            self.answered.append((ask, answer))
            return answer
        code = answer.body.get("code")
        if code not in {*_TURNED_AWAY, _UNKNOWN}:
            self.surprises.append((ask, answer))
            return answer
        if code in _TURNED_AWAY and not ask.key:
            self.turned_away.append(ask)
        return None


def _is_as_told(ask: Ask, answer: Answer, events: Sequence[Recorded], decisive: Sequence[Recorded]) -> bool:
    """Whether the log has what an answer said, at the position that it named."""
    position = answer.body["position"]
    if not decisive or position > len(events) or events[position - 1].correlation_id != ask.number:
        return False
    data = json.loads(decisive[0].data)
    return decisive[0].type == _FACTS[ask.kind, answer.status] and ask.content.items() <= data.items()


def requests(agent: str, first: int) -> Iterator[Ask]:
    """One client's requests without end: every kind in turn, with an idempotency key every other time."""
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
    """The request that ends a granted claim, so that it is not in others' way for long."""
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
