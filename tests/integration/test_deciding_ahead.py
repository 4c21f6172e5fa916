"""Commands are decided ahead, on top of the batch in flight, and decided again if it is not committed."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from eventstore import log, sealing
from service import commands as do
from service.decide import messages
from service.requests import CommandFailed
from service.writing import batch_size
from service.writing.batch_size import AMORTIZED_COMMANDS
from tests.support.components import connected, message, running_writer, submit
from tests.support.erasure import assert_keys_existed_when_used, find_remains, stored_key_ids
from tests.support.log import LogWriter, agent_registered, stored_log
from tests.support.verify import assert_log_is_sound
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from datetime import datetime

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded
    from service.decide import Decision, DecisionContext
    from service.memory.state import State
    from service.requests import Outcome
    from service.writing.writer import Writer


class Gate:
    """Holds back the writer's appends until it is opened; records the number of events of each."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.sizes: list[int] = []


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate, append = Gate(), log.append

    async def gated(
        connection: Connection, batch: Sequence[Recorded], decided_at: datetime, **how: Any
    ) -> datetime:
        if connection.info.get_parameters().get("application_name") == "squad writer":
            gate.sizes.append(len(batch))
            await gate.open.wait()
        return await append(connection, batch, decided_at, **how)

    monkeypatch.setattr(log, "append", gated)
    return gate


@asynccontextmanager
async def batch_in_flight(
    writer: Writer, gate: Gate, *commands: Any
) -> AsyncIterator[Callable[..., list[asyncio.Task[Outcome]]]]:
    """Keep a batch of these commands in flight until the block ends; yield a function that submits more."""
    tasks: list[asyncio.Task[Outcome]] = []

    def add(*more: Any) -> list[asyncio.Task[Outcome]]:
        added = [asyncio.create_task(submit(writer, command)) for command in more]
        tasks.extend(added)
        return added

    gate.open.clear()
    appends = len(gate.sizes)
    add(*commands)
    await eventually(lambda: len(gate.sizes) > appends)
    try:
        yield add
    finally:
        gate.open.set()
        await asyncio.wait(tasks)


def decided_ahead(writer: Writer) -> int:
    return len(writer._appender.pipeline.tickets)


def claim(agent: str) -> do.StartOperation:
    return do.StartOperation(agent=agent, action="respond", resources={"emailId": "one"})


async def test_commands_that_arrive_during_an_append_are_decided_ahead_as_one_batch(
    database: str, gate: Gate
) -> None:
    async with running_writer(database) as writer:
        await submit(writer, message("the first, which registers alice"))
        before = len(gate.sizes)
        async with batch_in_flight(writer, gate, message("below")) as add:
            above = add(message("one"), message("two"))
            await eventually(lambda: decided_ahead(writer) == 2)
            above += add(message("three"))
            await eventually(lambda: decided_ahead(writer) == 3)
            assert not any(task.done() for task in above)
        assert gate.sizes[before:] == [1, 3]
        positions = [task.result().position for task in above]
        assert positions == sorted(positions)  # type: ignore[type-var]
        assert not writer.contended
    assert len(await assert_log_is_sound(database)) == writer.squad.head.position


@pytest.mark.nothing_sealed
async def test_command_decided_ahead_sees_the_effects_of_the_batch_in_flight(
    database: str, gate: Gate
) -> None:
    async with running_writer(database) as writer:
        async with batch_in_flight(writer, gate, claim("alice")) as add:
            [second] = add(claim("bob"))
            await eventually(lambda: decided_ahead(writer) == 1)
        refusal = (await second).refusal
        assert refusal is not None
        assert refusal.code == "conflict"


@pytest.mark.nothing_sealed
async def test_budget_is_not_overspent_across_batches(database: str, gate: Gate) -> None:
    async with running_writer(database, policy=do.SetPolicy(daily_tokens=1_000)) as writer:
        reserve = do.ReserveTokens(agent="alice", tokens=400)
        async with batch_in_flight(writer, gate, reserve) as add:
            later = add(reserve, reserve, reserve)
            await eventually(lambda: decided_ahead(writer) == 3)
        assert [task.result().refusal is None for task in later] == [True, False, False]
        day = writer.squad.day
        assert day is not None
        assert day.reserved == 800


async def test_commands_are_decided_again_when_another_process_appends_first(
    database: str, gate: Gate
) -> None:
    async with running_writer(database) as writer, connected(database) as connection:
        async with batch_in_flight(writer, gate, message("below")) as add:
            above = add(claim("alice"), message("above"))
            await eventually(lambda: decided_ahead(writer) == 2)
            log_writer = LogWriter(connection)
            await log_writer.catch_up()
            await log_writer.append(agent_registered("carol"))
        assert [task.result().refusal for task in above] == [None, None]
        assert decided_ahead(writer) == 0
    await assert_log_is_sound(database)


async def test_command_that_needs_the_log_and_those_after_it_are_not_decided_ahead(
    database: str, gate: Gate
) -> None:
    async with running_writer(database) as writer:
        task = (await submit(writer, do.CreateTask(title="one"))).reply["id"]
        await submit(writer, do.UpdateTask(task_id=task, status="completed"))
        async with batch_in_flight(writer, gate, message("below")) as add:
            first, *rest = add(
                message("ahead"), do.UpdateTask(task_id=task, status="new"), message("after")
            )
            await eventually(lambda: decided_ahead(writer) == 1)
        positions = [task.result().position for task in (first, *rest)]
        assert positions == sorted(positions)  # type: ignore[type-var]
        assert rest[0].result().reply["status"] == "new"


async def test_command_that_fails_does_not_affect_others_decided_ahead(
    database: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = messages.send

    def failing(state: State, command: do.SendMessage, at: DecisionContext) -> Decision:
        if command.message == "poison":
            raise RuntimeError("poisoned")
        return send(state, command, at)

    monkeypatch.setattr(messages, "send", failing)
    async with running_writer(database) as writer:
        async with batch_in_flight(writer, gate, message("below")) as add:
            good, bad, other = add(message("good"), message("poison"), message("other"))
            await eventually(lambda: decided_ahead(writer) == 3)
        with pytest.raises(CommandFailed, match="poisoned"):
            await bad
        assert [(await good).refusal, (await other).refusal] == [None, None]
    await assert_log_is_sound(database)


async def test_first_batch_of_a_burst_leaves_half_of_it_to_be_decided_ahead(
    database: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise all callers would be answered together and ask again together: nothing would overlap."""
    async with running_writer(database) as writer:
        monkeypatch.setattr(writer._appender.batch_sizer, "_minimum", lambda: 1)
        await submit(writer, message("to be known"))
        gate.sizes.clear()
        gate.open.clear()
        submitting = [asyncio.create_task(submit(writer, message(str(number)))) for number in range(64)]
        await eventually(lambda: decided_ahead(writer) == 32)
        gate.open.set()
        await asyncio.gather(*submitting)
        assert gate.sizes == [32, 32]
    await assert_log_is_sound(database)


async def test_answered_callers_join_the_batch_decided_ahead_when_commits_are_slow(
    database: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise there would be two batches for good, each waiting for the other's commit."""
    async with running_writer(database) as writer:
        await submit(writer, message("to be known"))
        monkeypatch.setattr(batch_size, "MAX_LINGER_SECONDS", 60)
        monkeypatch.setattr(writer._appender.batch_sizer, "_append_seconds", 8 * 60)
        monkeypatch.setattr(writer._appender.batch_sizer, "record_append", lambda seconds: None)

        async def submit_in_turn(times: int) -> None:
            for number in range(times):
                await submit(writer, message(str(number)))

        gate.sizes.clear()
        gate.open.clear()
        first = [asyncio.create_task(submit_in_turn(3)) for _ in range(4)]
        await eventually(lambda: gate.sizes == [4])
        second = [asyncio.create_task(submit_in_turn(2)) for _ in range(4)]
        await eventually(lambda: decided_ahead(writer) == 4)
        gate.open.set()
        await asyncio.gather(*first, *second)
        assert gate.sizes == [4, 8, 8]
    await assert_log_is_sound(database)


class TestEncrypted:
    """Commands decided ahead use cached keys, and never a key that is being destroyed."""

    async def test_messages_are_encrypted_with_keys_that_are_stored_in_time(
        self, database: str, gate: Gate
    ) -> None:
        async with running_writer(database, encrypt=True) as writer:
            async with batch_in_flight(writer, gate, message("below")) as add:
                # More than the keys that were created in advance.
                add(*(message(str(number)) for number in range(AMORTIZED_COMMANDS)))
                await eventually(lambda: decided_ahead(writer) == AMORTIZED_COMMANDS)
            assert await assert_keys_existed_when_used(database) == AMORTIZED_COMMANDS + 1
        assert await find_remains(database, ["below"]) == []

    async def test_cached_key_of_a_sender_is_used(self, database: str, gate: Gate) -> None:
        async with running_writer(database, encrypt=True) as writer:
            email_id = (await submit(writer, mail("one", "zoe@example.org"))).reply["id"]
            async with batch_in_flight(writer, gate, message("below")) as add:
                [update] = add(do.UpdateEmail(email_id=email_id, payload={"draft": "a private word"}))
                await eventually(lambda: decided_ahead(writer) == 1)
            assert (await update).refusal is None
            assert await assert_keys_existed_when_used(database) == 3

    async def test_command_that_needs_an_uncached_key_is_not_decided_ahead(
        self, database: str, gate: Gate
    ) -> None:
        async with running_writer(database, encrypt=False) as plain:
            email_id = (await submit(plain, mail("one", "zoe@example.org"))).reply["id"]
        async with running_writer(database, encrypt=True) as writer:
            async with batch_in_flight(writer, gate, message("below")) as add:
                update = do.UpdateEmail(email_id=email_id, payload={"draft": "a private word"})
                first, second = add(message("ahead"), update)
                await eventually(lambda: decided_ahead(writer) == 1)
            assert [(await task).refusal for task in (first, second)] == [None, None]
            assert await assert_keys_existed_when_used(database) == 3

    async def test_nothing_is_decided_on_top_of_a_batch_that_destroys_a_key(
        self, database: str, gate: Gate
    ) -> None:
        async with running_writer(database, encrypt=False) as plain:
            email_id = (await submit(plain, mail("plain", "zoe@example.org"))).reply["id"]
        async with running_writer(database, encrypt=True) as writer:
            await submit(writer, mail("sealed", "zoe@example.org"))
            forget = do.ForgetSubject(subject="zoe@example.org")
            async with batch_in_flight(writer, gate, forget) as add:
                # The unencrypted e-mail still belongs to the sender, whose key is still cached.
                [update] = add(do.UpdateEmail(email_id=email_id, payload={"draft": "a private word"}))
                for _ in range(10):
                    await asyncio.sleep(0)
                assert decided_ahead(writer) == 0
            assert (await update).refusal is None
            assert await assert_keys_existed_when_used(database) == 2
            [_, sealed] = [row for row in await raw_log(database) if sealing.key_of(row)]
            async with connected(database) as connection:
                assert sealing.key_of(sealed) in await stored_key_ids(connection)


def mail(gmail_message_id: str, from_email: str) -> do.LogEmail:
    return do.LogEmail(gmail_message_id=gmail_message_id, from_email=from_email)


async def raw_log(database: str) -> list[Recorded]:
    async with connected(database) as connection:
        return await stored_log(connection)
