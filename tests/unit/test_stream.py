"""What an event stream reads from the log, how much it sends at once, and how it ends."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from eventstore import lookup
from eventstore.errors import StoreBusy, StoreUnavailable
from eventstore.lookup import Filter
from eventstore.page_size import PageSizer
from eventstore.recorded import Recorded
from service.callers import ANYBODY
from service.channels import FilteredEvents
from service.http import stream as module
from service.http.chunks import SEND_BYTES
from service.http.open_streams import OpenStreams
from service.http.scope import set_caller
from tests.unit.stories import START

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = 9


def events(*positions: int, size: int = 1) -> list[Recorded]:
    data = f'{{"x":"{"x" * size}"}}'
    return [
        Recorded(position, "id", "s", 1, "task_made", 1, data, "ann", None, "c", None, START, b"\1")
        for position in positions
    ]


@pytest.fixture
def services() -> Any:
    """A process that knows the log up to `HEAD`, and has none of it in memory."""
    return SimpleNamespace(
        tail=SimpleNamespace(forgotten=0, last=0),
        writer=SimpleNamespace(squad=SimpleNamespace(head=SimpleNamespace(position=HEAD)), replacements=0),
        tables=SimpleNamespace(connection=nullcontext),
        channels=SimpleNamespace(subscribe=lambda _: nullcontext()),
        authenticator=SimpleNamespace(is_still_allowed=lambda _: True),
        stopping=False,
        streams=OpenStreams(maximum=9, max_per_key=9),
        metrics=SimpleNamespace(open_streams=SimpleNamespace(track_inprogress=nullcontext)),
    )


class FakeResponse:
    """A response that records what was sent to the client."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    async def prepare(self, _: object) -> None: ...

    async def write(self, piece: bytes) -> None:
        self.sent.append(piece)


@pytest.fixture
def response(monkeypatch: pytest.MonkeyPatch) -> FakeResponse:
    response = FakeResponse()
    monkeypatch.setattr(module, "start_response", lambda *_: response)
    set_caller(ANYBODY)
    return response


class FakeRequest:
    """A request whose client is connected."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.transport = self
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True


class TestReadingTheLog:
    @pytest.fixture(autouse=True)
    def _log(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.then_clock_recorded: Callable[[], None] = lambda: None

        async def read(*_: object) -> list[Recorded]:
            self.then_clock_recorded()
            return self.page

        monkeypatch.setattr(lookup, "read_filtered", read)

    async def reached(self, services: Any, *page: int, limit: int = 3) -> tuple[list[int], int]:
        self.page = events(*page)
        found = await module._in_the_log(services, 4, Filter(), PageSizer(limit, first=limit))
        return [one.position for one in found.events], found.upto

    async def test_full_page_reaches_its_last_event(self, services: Any) -> None:
        assert await self.reached(services, 5, 6, 8) == ([5, 6, 8], 8)

    async def test_page_that_is_not_full_reaches_the_head(self, services: Any) -> None:
        assert await self.reached(services, 5, 8) == ([5, 8], HEAD)
        assert await self.reached(services) == ([], HEAD)

    async def test_page_can_reach_beyond_the_head_that_this_process_knows(self, services: Any) -> None:
        assert await self.reached(services, 8, 11) == ([8, 11], 11)

    async def test_page_does_not_reach_events_that_were_appended_meanwhile(self, services: Any) -> None:
        """Those that pass the filter were not read."""

        def append() -> None:
            services.writer.squad.head.position = 20

        self.then_clock_recorded = append
        assert await self.reached(services, 8) == ([8], HEAD)

    async def test_page_is_discarded_when_somebody_was_forgotten_meanwhile(self, services: Any) -> None:
        def forget() -> None:
            services.tail.forgotten += 1

        self.then_clock_recorded = forget
        assert await self.reached(services, 5, 6) == ([], 4)

    @pytest.mark.parametrize("error", [StoreBusy("the pool is exhausted"), StoreUnavailable("gone")])
    async def test_stream_stays_at_its_position_while_the_database_is_unavailable(
        self, services: Any, error: Exception
    ) -> None:
        def fail() -> None:
            raise error

        self.then_clock_recorded = fail
        request: Any = FakeRequest()
        channel: Any = None
        page_sizer = PageSizer(3)
        assert await module._next(services, request, channel, 4, Filter(), page_sizer) == (4, b"")


def test_chunk_ends_with_the_event_that_reaches_the_send_limit(services: Any) -> None:
    found = FilteredEvents(events(5, 6, 7, 8, size=SEND_BYTES // 3), HEAD)
    position, chunk = module._chunk(services, found)
    assert (position, chunk.count(b"\n\n")) == (7, 3)


def test_chunk_with_all_events_reaches_as_far_as_was_read(services: Any) -> None:
    position, chunk = module._chunk(services, FilteredEvents(events(5, 6), HEAD))
    assert (position, chunk.count(b"\n\n")) == (HEAD, 2)


@pytest.mark.parametrize(
    ("cause", "is_logged", "is_aborted"),
    [
        (ConnectionResetError(), False, False),
        (asyncio.CancelledError(), False, False),
        (TimeoutError(), False, True),
        (RuntimeError("a fault"), True, False),
    ],
    ids=["reader disconnects", "service stops", "reader reads nothing", "internal error"],
)
async def test_only_internal_errors_are_logged_and_only_stuck_readers_aborted(
    services: Any,
    response: FakeResponse,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    cause: BaseException,
    is_logged: bool,
    is_aborted: bool,
) -> None:
    async def follow(*_: object) -> None:
        assert len(services.streams._tasks) == 1
        raise cause

    monkeypatch.setattr(module, "_follow", follow)
    request: Any = FakeRequest()
    await module.stream(services, request, None, Filter())
    assert response.sent == [b"retry: 1000\n\n"]
    assert ("an event stream failed" in caplog.text) == is_logged
    assert request.is_aborted == is_aborted
    assert not services.streams._tasks


async def test_stream_that_starts_while_the_log_is_replaced_reports_it(
    services: Any, response: FakeResponse
) -> None:
    """The position that its reader named belongs to the old log."""

    async def replaced(_: int) -> None:
        services.writer.replacements += 1

    services.tables.wait_for_state = replaced
    request: Any = FakeRequest()
    await module.stream(services, request, 4, Filter())
    assert response.sent[1:] == [b'event: log_replaced\ndata: {"position":9}\n\n']
