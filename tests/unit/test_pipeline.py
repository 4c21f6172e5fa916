"""What is decided ahead, on top of the batch in flight, and what becomes of it when that batch ends."""

from __future__ import annotations

import asyncio

import pytest
from msgspec import structs

from eventstore import codec
from eventstore.keys import Keyring
from service.clock import DatabaseClock
from service.commands import Heartbeat, LogEmail, UpdateEmail
from service.history import recall
from service.memory.draft import Draft
from service.requests import Request, Ticket
from service.writing.batch_size import BatchSizer
from service.writing.command_queue import CommandQueue
from service.writing.pipeline import Pipeline
from service.writing.sealer import Sealing
from tests.unit.job_stories import a_squad


class BatchInFlight:
    """A batch in flight on top of a squad, and a command in the queue."""

    def __init__(self) -> None:
        self.squad = a_squad().squad
        self.queue = CommandQueue()
        self.pipeline = Pipeline(
            DatabaseClock(), self.queue, Sealing(Keyring(), encrypt=False), BatchSizer()
        )
        self.below = Draft(self.squad)
        self.ticket = Ticket(
            Request(Heartbeat(agent="ann"), "ann", "c"), asyncio.get_running_loop().create_future()
        )
        self.queue.put(self.ticket)


@pytest.fixture
async def in_flight() -> BatchInFlight:
    return BatchInFlight()


async def test_draft_decided_ahead_moves_onto_the_squad_after_the_commit_below(
    in_flight: BatchInFlight,
) -> None:
    """Otherwise each draft would stand on all those before it, as long as the queue is never empty."""
    with in_flight.pipeline.deciding_on_top(in_flight.below):
        await asyncio.sleep(0)
    assert list(in_flight.pipeline.tickets) == [in_flight.ticket]
    in_flight.squad.merge(in_flight.below)
    in_flight.pipeline.rebase(in_flight.squad)
    decided = in_flight.pipeline.take()
    assert decided
    assert decided.draft.layers.base is in_flight.squad


async def test_nothing_is_decided_ahead_once_the_batch_in_flight_has_ended(
    in_flight: BatchInFlight,
) -> None:
    with in_flight.pipeline.deciding_on_top(in_flight.below):
        pass
    in_flight.queue.notify()
    await asyncio.sleep(0)
    assert list(in_flight.pipeline.tickets) == []
    assert list(in_flight.queue) == [in_flight.ticket]
    assert in_flight.queue.on_arrival is None


async def test_commands_decided_ahead_return_to_the_queue_when_the_batch_below_fails(
    in_flight: BatchInFlight,
) -> None:
    async def fail() -> None:
        with in_flight.pipeline.deciding_on_top(in_flight.below):
            await asyncio.sleep(0)
            assert in_flight.pipeline.tickets
            raise ConnectionError

    with pytest.raises(ConnectionError):
        await fail()
    assert list(in_flight.pipeline.tickets) == []
    assert list(in_flight.queue) == [in_flight.ticket]


def test_recalled_email_that_is_reopened_ahead_is_found_by_its_gmail_id() -> None:
    story = a_squad().given(LogEmail(gmail_message_id="g-1", from_email="zoe@example.org"))
    story.given(UpdateEmail(email_id=story.id, status="archived"))
    email_id, squad = story.log[-1].stream.removeprefix("email-"), story.squad
    assert "g-1" not in squad.gmail_ids
    below = Draft(squad)
    recall.fold(below, [recorded for recorded in story.log if recorded.stream == f"email-{email_id}"])
    above = Draft(below)
    closed = story.log[-1]
    reopened = structs.replace(codec.decode(closed), status="unread")
    above.fold(reopened, closed._replace(position=closed.position + 1, version=closed.version + 1))
    squad.merge(below)
    squad.merge(above)
    assert squad.gmail_ids == {"g-1": email_id}
