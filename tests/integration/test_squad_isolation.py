"""Two squads in one database: neither sees, wakes or blocks the other."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from eventstore import log, schema
from projections.projector import Projector
from tests.support.components import connected, message, running, running_listener, running_writer, submit
from tests.support.log import LogWriter, message_sent, message_texts, whole_log
from tests.support.verify import assert_log_is_sound, assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from eventstore.recorded import Recorded

# This name begins with the other squad's, so a channel or lock derived from a prefix would be shared.
OTHER = "squad_b"


async def test_each_squad_has_a_log_of_its_own(database: str) -> None:
    await schema.apply(database, OTHER)
    async with connected(database) as one, connected(database, OTHER) as two:
        await LogWriter(one).append(message_sent("in one"))
        await LogWriter(two).append(message_sent("in two"), message_sent("in two as well"))
        assert message_texts(await whole_log(one)) == ["in one"]
        assert message_texts(await whole_log(two)) == ["in two", "in two as well"]


async def test_squad_that_holds_its_lock_does_not_block_others(database: str) -> None:
    await schema.apply(database, OTHER)
    async with connected(database) as one, connected(database, OTHER) as two:
        await log.lock_and_read(one, 0)
        await two.execute("SET lock_timeout = 100")
        await LogWriter(two).append(message_sent("not blocked"))


async def test_event_wakes_only_its_own_squad(database: str) -> None:
    await schema.apply(database, OTHER)
    async with (
        running_listener(database) as one,
        running_listener(database, OTHER) as two,
        connected(database) as in_one,
        connected(database, OTHER) as in_two,
    ):
        await LogWriter(in_one).append(*(message_sent(str(number)) for number in range(7)))
        await LogWriter(in_two).append(message_sent("later"))
        await eventually(lambda: one.events.position == 7 and two.events.position == 1)
        # Notifications arrive in the order of commits, so this squad would have received the others by now.
        assert two.events.position == 1


async def test_two_squads_are_written_and_projected_concurrently(database: str) -> None:
    await schema.apply(database, OTHER)
    async with (
        running_listener(database) as one,
        running_listener(database, OTHER) as two,
        running(
            Projector(database, "squad", one.events).run(), Projector(database, OTHER, two.events).run()
        ),
        running_writer(database, "squad", hints=one.events) as first,
        running_writer(database, OTHER, hints=two.events) as second,
    ):
        for number in range(5):
            await submit(first, message(f"one {number}"))
            await submit(second, message(f"two {number}", agent="bob"))
        for name in ("squad", OTHER):
            await eventually(partial(projected_to_head, database, name))
            assert await assert_tables_equal_fold(database, name) > 0
    assert _agents(await assert_log_is_sound(database, "squad")) == {"agent-alice"}
    assert _agents(await assert_log_is_sound(database, OTHER)) == {"agent-bob"}


def _agents(events: list[Recorded]) -> set[str]:
    return {event.stream for event in events if event.stream.startswith("agent-")}
