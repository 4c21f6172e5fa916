"""What is decided ahead, above a batch that is on its way, and what is left of that afterwards."""

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


class Deciding:
    """Somebody waits, while a batch is on its way above a squad."""

    def __init__(self) -> None:
        self.squad = a_squad().squad
        self.waiting = CommandQueue()
        self.pipeline = Pipeline(
            DatabaseClock(), self.waiting, Sealing(Keyring(), encrypt=False), BatchSizer()
        )
        self.below = Draft(self.squad)
        self.ticket = Ticket(
            Request(Heartbeat(agent="ann"), "ann", "c"), asyncio.get_running_loop().create_future()
        )
        self.waiting.put(self.ticket)


@pytest.fixture
async def deciding() -> Deciding:
    return Deciding()


async def test_it_stands_on_the_squad_once_the_batch_below_is_in_the_log(deciding: Deciding) -> None:
    """Or each batch would stand on all those before it, for as long as somebody always waits."""
    with deciding.pipeline.deciding_on_top(deciding.below):
        await asyncio.sleep(0)
    assert list(deciding.pipeline.tickets) == [deciding.ticket]
    deciding.squad.merge(deciding.below)
    deciding.pipeline.rebase(deciding.squad)
    decided = deciding.pipeline.take()
    assert decided
    assert decided.draft.layers.base is deciding.squad


async def test_nothing_is_decided_any_more_once_the_batch_below_has_come_back(deciding: Deciding) -> None:
    with deciding.pipeline.deciding_on_top(deciding.below):
        pass
    deciding.waiting.notify()
    await asyncio.sleep(0)
    assert list(deciding.pipeline.tickets) == []
    assert list(deciding.waiting) == [deciding.ticket]
    assert deciding.waiting.on_arrival is None


async def test_whoever_was_decided_waits_again_where_the_batch_below_fails(deciding: Deciding) -> None:
    async def fail() -> None:
        with deciding.pipeline.deciding_on_top(deciding.below):
            await asyncio.sleep(0)
            assert deciding.pipeline.tickets
            raise ConnectionError

    with pytest.raises(ConnectionError):
        await fail()
    assert list(deciding.pipeline.tickets) == []
    assert list(deciding.waiting) == [deciding.ticket]


def test_a_recalled_email_that_is_reopened_ahead_is_found_by_its_gmail_id() -> None:
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
