"""What commands on finished entities read from the log: a few events, however long the stream is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from projections.messages import MESSAGES
from projections.operations import OPERATIONS
from service import commands as do
from service.history import recall
from service.memory.draft import Draft
from service.requests import Request, Ticket
from tests.support.components import submit

if TYPE_CHECKING:
    import asyncio

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded
    from service.commands import AnyCommand
    from service.requests import Outcome
    from service.writing.writer import Writer

MANY = 40
_NO_WAITER = cast("asyncio.Future[Outcome]", None)


async def _types_read(writer: Writer, connection: Connection, *commands: AnyCommand) -> list[str]:
    """The types of the events read for these commands; checks that the whole streams fold to the same."""
    tickets = [Ticket(Request(command, "agent:test", "test"), _NO_WAITER) for command in commands]
    wanted = recall.required_reads(writer.squad, tickets)
    brief = await recall.read(connection, wanted)
    whole = await recall.read_revealed_streams(
        connection, sorted({excerpts.stream for excerpts in wanted.excerpts})
    )
    assert _folded(writer, brief) == _folded(writer, whole)
    return [recorded.type for recorded in brief]


def _folded(writer: Writer, history: list[Recorded]) -> list[dict[Any, Any]]:
    draft = Draft(writer.squad)
    recall.fold(draft, history)
    return [draft.layers[OPERATIONS].changes, draft.layers[MESSAGES].changes, draft.versions.changes]


async def test_only_the_ends_of_a_finished_operations_stream_are_read(
    writer: Writer, connection: Connection
) -> None:
    claim = do.StartOperation(agent="ann", action="answer", resources={"emailId": "e-1"}, ttl_seconds=600)
    operation = (await submit(writer, claim)).reply["id"]
    for _ in range(MANY):
        await submit(writer, do.RenewOperation(operation_id=operation))
        outcome = await submit(writer, claim.model_copy(update={"agent": "bob"}))
        assert outcome.refusal is not None
    finish = do.FinishOperation(operation_id=operation, outcome="succeeded")
    await submit(writer, finish)
    refused = await submit(writer, finish)
    assert refused.refusal is not None
    assert refused.refusal.code == "operation_finished"
    assert await _types_read(writer, connection, finish, do.RenewOperation(operation_id=operation)) == [
        "operation_started",
        "operation_renewed",
        "operation_finished",
    ]


async def test_other_agents_acknowledgements_within_a_messages_stream_are_not_read(
    writer: Writer, connection: Connection
) -> None:
    sent = await submit(writer, do.SendMessage(from_agent="ann", message="to all"))
    acks = [do.AcknowledgeMessage(message_id=sent.reply["id"], agent=f"agent-{n}") for n in range(MANY)]
    first, *_, last = [await submit(writer, ack) for ack in acks]
    assert (await submit(writer, acks[0])).position == first.position
    # The first event, those of these two agents, and the end, which determines the next version.
    assert await _types_read(writer, connection, acks[0], acks[7]) == [
        "message_sent",
        *["message_acknowledged"] * 4,
    ]
    another = await submit(writer, acks[0].model_copy(update={"agent": "ann"}))
    assert another.position is not None
    assert last.position is not None
    assert another.position > last.position
