"""Encryption keys and erasure, with one writer and several: what stays readable and what is erased."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from eventstore import codec, keys, log, schema, sealing, traces
from eventstore.errors import StoreRefused
from eventstore.events import ERASED, EmailReceived, MessageSent, SubjectForgotten
from eventstore.keys import Keyring
from eventstore.listener import Hints
from eventstore.recorded import Recorded
from eventstore.subjects import NO_TRACE, Trace, digest_of
from projections.emails import EMAILS
from projections.projector import Projector
from service import commands as do
from service.history.restore import restore
from service.job_spec import JobSpec
from service.requests import CommandFailed
from service.writing import sealer
from tests.support.components import (
    connected,
    lock_is_awaited,
    message,
    running,
    running_listener,
    running_writer,
    submit,
)
from tests.support.erasure import (
    all_rows_as_text,
    assert_keys_existed_when_used,
    find_remains,
    stored_key_ids,
)
from tests.support.log import LogWriter, message_sent, stored_log, whole_log
from tests.support.roles import new_roles
from tests.support.verify import assert_log_is_sound, assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from eventstore.connection import Connection
    from service.writing.writer import Writer
    from tests.support.postgres import PostgresServer

ADDRESS = "zoe@example.org"
SENDER = f"Zoe Smith <{ADDRESS}>"
PERSONAL = (ADDRESS, "Zoe Smith", "A complaint", "so very angry", "a private word", "call 030-1234")


@pytest.fixture
async def writer(database: str) -> AsyncIterator[Writer]:
    async with running_writer(database, encrypt=True) as started:
        yield started


def log_email(number: int = 1, from_email: str = SENDER, **fields: Any) -> do.LogEmail:
    given = {"subject": "A complaint", "payload": {"text": "so very angry"}, **fields}
    return do.LogEmail(gmail_message_id=f"g-{number}", from_email=from_email, **given)


async def email_key_ids(connection: Connection) -> list[str | None]:
    rows = await stored_log(connection)
    return [sealing.key_of(row) for row in rows if row.type == EmailReceived.type]


async def project(database: str) -> None:
    """Run a projector, as of another process, up to the head of the log."""
    async with running(Projector(database, "squad", Hints()).run()):
        await eventually(partial(projected_to_head, database))


class TestOneWriter:
    async def test_personal_data_is_readable_only_in_the_read_tables(
        self, writer: Writer, database: str
    ) -> None:
        email = await submit(writer, log_email(), key="k-1", fingerprint="f")
        await submit(writer, do.UpdateEmail(email_id=email.reply["id"], payload={"text": "so very angry"}))
        await submit(writer, do.SendMessage(from_agent="ada", message="a private word"), key="k-2")
        assert await find_remains(database, PERSONAL) == []
        await project(database)
        assert set(await find_remains(database, PERSONAL)) == {*PERSONAL} - {"call 030-1234"}
        assert await assert_tables_equal_fold(database) > 2
        await assert_log_is_sound(database)

    async def test_forgotten_data_remains_in_no_table(self, writer: Writer, database: str) -> None:
        email = await submit(writer, log_email(), key="k-1", fingerprint="f")
        await submit(writer, do.UpdateEmail(email_id=email.reply["id"], payload={"text": "so very angry"}))
        sent = do.SendMessage(from_agent="ada", message="a private word", data={"do": "call 030-1234"})
        message_id = (await submit(writer, sent, key="k-2")).reply["id"]
        await submit(writer, do.AcknowledgeMessage(message_id=message_id, agent="bob"))
        await project(database)
        for subject in (ADDRESS, message_id):
            await submit(writer, do.ForgetSubject(subject=subject))
        await project(database)
        assert await find_remains(database, PERSONAL) == []
        assert digest_of(ADDRESS) not in await all_rows_as_text(database)
        assert await assert_tables_equal_fold(database) > 2
        await assert_log_is_sound(database)

    async def test_forgotten_data_is_absent_from_live_and_restored_state(
        self, writer: Writer, database: str, connection: Connection
    ) -> None:
        email_id = (await submit(writer, log_email())).reply["id"]
        await project(database)
        await submit(writer, do.ForgetSubject(subject=ADDRESS))
        for squad in (writer.squad, await restore(connection)):
            row = squad.rows(EMAILS).get(email_id)
            assert row
            assert (row.from_email, row.subject, row.payload) == (ERASED, None, None)

    async def test_writer_without_encryption_reads_and_forgets_encrypted_data(
        self, writer: Writer, database: str
    ) -> None:
        email_id = (await submit(writer, log_email(), key="k", fingerprint="f")).reply["id"]
        async with running_writer(database) as plain:
            row = plain.squad.rows(EMAILS).get(email_id)
            assert row
            assert row.from_email == SENDER
            repeated = await submit(plain, log_email(), key="k", fingerprint="f")
            assert repeated.repeated
            update = do.UpdateEmail(email_id=email_id, payload={"text": "in plain"})
            await submit(plain, update)
            await submit(plain, do.ForgetSubject(subject=ADDRESS))
        assert await find_remains(database, [*PERSONAL, "in plain"]) == ["in plain"]

    async def test_emails_of_a_sender_share_one_key(self, writer: Writer, connection: Connection) -> None:
        await asyncio.gather(*(submit(writer, log_email(number)) for number in range(20)))
        await submit(writer, log_email(99, ADDRESS.upper()))
        found = await email_key_ids(connection)
        assert len(found) == 21
        assert len(set(found)) == 1

    async def test_bounded_number_of_message_keys_is_created_in_advance(
        self, writer: Writer, connection: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sealer, "MAX_NEW_KEYS", 64)
        for number in range(200):
            await submit(writer, message(str(number)))
        rows = [row for row in await stored_log(connection) if row.type == MessageSent.type]
        used = {sealing.key_of(row) for row in rows}
        there = await stored_key_ids(connection)
        assert len(used) == 200
        assert used <= there
        assert len(there) < 200 + 2 * 64

    async def test_key_is_created_when_the_need_shows_only_after_deciding(
        self, writer: Writer, database: str
    ) -> None:
        # Whether a claimed tick sends messages is known only once it is decided.
        await submit(writer, do.RegisterAgent(name="ada", role="r"))
        command = do.RunJob(name="poll", runner="p")
        definition = JobSpec(task="status_update", every=3600).definition()
        await submit(writer, do.StartOrchestrator())
        await submit(writer, do.DefineJob(name="poll", source="api", definition=definition))
        run = (await submit(writer, command)).reply["id"]
        end = do.EndAttempt(run_id=run, runner="p", attempt=1, succeeded=True, report="a private word")
        await submit(writer, end)
        assert await assert_keys_existed_when_used(database) == 1
        assert await find_remains(database, ["a private word"]) == []

    @pytest.mark.parametrize("contended", [False, True], ids=["one round trip", "under the lock"])
    async def test_keys_of_a_batch_that_was_not_appended_are_not_used(
        self, writer: Writer, database: str, contended: bool
    ) -> None:
        writer._appender.contended = contended
        unstorable = log_email(payload={"text": "fine"}).model_copy(update={"subject": "\0"})
        with pytest.raises(CommandFailed):
            await submit(writer, unstorable)
        writer._appender.contended = contended
        await submit(writer, log_email(2))
        assert await assert_keys_existed_when_used(database) == 1

    async def test_erasure_is_a_batch_of_its_own_among_commands_that_await_the_lock(
        self, writer: Writer, database: str, connection: Connection
    ) -> None:
        await submit(writer, log_email(1))
        writer._appender.contended = True
        async with connected(database) as holder, holder.transaction():
            await log.lock(holder)
            commands: list[do.AnyCommand] = [
                log_email(2),
                message("beside it"),
                do.ForgetSubject(subject=ADDRESS),
                log_email(3),
            ]
            submitting = [asyncio.ensure_future(submit(writer, commands[0]))]
            await eventually(partial(lock_is_awaited, connection))
            submitting += [asyncio.ensure_future(submit(writer, command)) for command in commands[1:]]
            await eventually(lambda: len(writer.queue) == 3)
        outcomes = await asyncio.gather(*submitting)
        assert [outcome.refusal for outcome in outcomes] == [None] * 4
        first, second, third = await email_key_ids(connection)
        assert first == second != third
        times = [event.recorded_at for event in await whole_log(connection)]
        forgotten = outcomes[2].position
        assert forgotten is not None
        assert times[forgotten - 2] < times[forgotten - 1] < times[forgotten]
        assert times[forgotten - 2] == times[forgotten - 3]
        await project(database)
        assert await assert_keys_existed_when_used(database) == 4

    async def test_one_command_erases_more_emails_than_fit_in_one_event(
        self, writer: Writer, database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.decide.subjects.MAX_EMAILS", 30)
        await asyncio.gather(*(submit(writer, log_email(number)) for number in range(100)))
        await project(database)
        outcome = await submit(writer, do.ForgetSubject(subject=ADDRESS))
        assert outcome.reply["emails"] == 100
        await project(database)
        assert await find_remains(database, PERSONAL) == []
        assert await assert_tables_equal_fold(database) > 100

    async def test_keyring_holds_the_keys_that_were_just_used(
        self, database: str, connection: Connection
    ) -> None:
        ring, observed = Keyring(), list[Recorded]()
        async with running_writer(database, encrypt=True, keyring=ring) as writer:
            writer.observers.append(observed.extend)
            await submit(writer, message("a private word"))
            await submit(writer, log_email())
        # No key can be read from the database any more.
        await connection.execute("DELETE FROM subject_keys")
        shown = [codec.decode(row) for row in await sealing.reveal(connection, observed, ring)]
        assert [event.message for event in shown if isinstance(event, MessageSent)] == ["a private word"]
        assert [event.from_email for event in shown if isinstance(event, EmailReceived)] == [SENDER]


class TestSeveralWriters:
    async def test_writers_agree_on_the_key_of_a_sender(
        self, database: str, connection: Connection
    ) -> None:
        async with (
            running_writer(database, encrypt=True) as one,
            running_writer(database, encrypt=True) as other,
        ):
            commands = [
                (one, log_email(1)),
                (other, log_email(2)),
                (one, log_email(3)),
                (other, log_email(4)),
            ]
            await asyncio.gather(*(submit(writer, command) for writer, command in commands))
        assert len(set(await email_key_ids(connection))) == 1

    async def test_concurrent_requests_create_one_key_per_sender(self, database: str) -> None:
        async def request_keys() -> dict[str, keys.Key]:
            async with connected(database) as own:
                return await keys.get_or_create_sender_keys(own, ["a" * 64, "b" * 64])

        found = await asyncio.gather(*(request_keys() for _ in range(8)))
        assert all(one == found[0] for one in found)

    async def test_writer_does_not_encrypt_with_a_key_that_another_destroyed(
        self, database: str, connection: Connection
    ) -> None:
        async with (
            running_writer(database, encrypt=True) as one,
            running_writer(database, encrypt=True) as other,
        ):
            await submit(one, log_email(1))
            await submit(other, do.ForgetSubject(subject=ADDRESS))
            await submit(one, log_email(2, subject="Again"))
            await submit(other, log_email(3, subject="And again"))
        first, second, third = await email_key_ids(connection)
        assert first != second == third
        await assert_keys_existed_when_used(database)
        readable = [codec.decode(row) for row in await whole_log(connection)]
        shown = [event.subject for event in readable if isinstance(event, EmailReceived)]
        assert shown == [None, "Again", "And again"]

    async def test_sender_can_be_written_and_forgotten_concurrently(self, database: str) -> None:
        async with (
            running_listener(database) as listener,
            running_writer(database, encrypt=True, hints=listener.events) as one,
            running_writer(database, encrypt=True, hints=listener.events) as other,
        ):
            written = asyncio.Event()
            forgotten = 0

            async def write(writer: Writer, first: int) -> None:
                for number in range(60):
                    pair = (log_email(first + number), message(f"message {number}"))
                    email, _ = await asyncio.gather(*(submit(writer, command) for command in pair))
                    update = do.UpdateEmail(email_id=email.reply["id"], payload={"draft": "so very angry"})
                    outcome = await submit(writer, update)
                    assert outcome.refusal is None or outcome.refusal.code == "email_erased"

            async def forget() -> None:
                nonlocal forgotten
                while not written.is_set():
                    for writer in (one, other):
                        outcome = await submit(writer, do.ForgetSubject(subject=ADDRESS))
                        forgotten += outcome.refusal is None

            forgetting = asyncio.create_task(forget())
            await asyncio.gather(write(one, 1_000), write(other, 2_000))
            written.set()
            await forgetting
            await submit(other, do.ForgetSubject(subject=ADDRESS))
        assert forgotten > 5
        assert await assert_keys_existed_when_used(database) >= 240
        await project(database)
        assert await find_remains(database, PERSONAL) == []
        await assert_tables_equal_fold(database)
        await assert_log_is_sound(database)

    async def test_keyring_drops_a_key_that_another_writer_destroyed(
        self, database: str, connection: Connection
    ) -> None:
        ring, hints = Keyring(), Hints()
        async with (
            running_writer(database, encrypt=True, keyring=ring, hints=hints) as one,
            running_writer(database, encrypt=True) as other,
        ):
            await submit(one, log_email())
            [key_id] = await email_key_ids(connection)
            assert key_id
            assert await ring.secrets(connection, [key_id])
            position = (await submit(other, do.ForgetSubject(subject=ADDRESS))).position
            assert position
            hints.wake(position)
            await eventually(lambda: one.squad.head.position == position)
            assert await ring.secrets(connection, [key_id]) == {}


class TestErasure:
    async def test_key_is_destroyed_in_the_transaction_of_the_event(
        self, writer: Writer, database: str, connection: Connection
    ) -> None:
        await submit(writer, log_email())
        [key_id] = await email_key_ids(connection)
        assert key_id
        log_writer = LogWriter(connection)
        await log_writer.catch_up()
        await connection.execute("BEGIN")
        await log_writer.append(SubjectForgotten(key_id=key_id, emails=[], messages=[], in_plain=0))
        assert key_id not in await stored_key_ids(connection)
        await connection.execute("ROLLBACK")
        assert key_id in await stored_key_ids(connection)

    async def test_erasure_deletes_snapshots(self, writer: Writer, connection: Connection) -> None:
        await submit(writer, log_email())
        await connection.execute("INSERT INTO snapshots (fold, position, state) VALUES ('f', 1, 'x')")
        await submit(writer, do.ForgetSubject(subject=ADDRESS))
        row = await (await connection.execute("SELECT count(*) FROM snapshots")).fetchone()
        assert row == (0,)

    @pytest.mark.parametrize("table", ["subject_keys", "snapshots"])
    async def test_erasure_fails_when_a_trigger_prevents_a_deletion(
        self, writer: Writer, connection: Connection, table: str
    ) -> None:
        await submit(writer, log_email())
        await connection.execute("INSERT INTO snapshots (fold, position, state) VALUES ('f', 1, 'x')")
        keep = (
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
            f" CREATE TRIGGER keeps BEFORE DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION keep()"
        )
        await connection.execute(keep.encode())
        with pytest.raises(CommandFailed):
            await submit(writer, do.ForgetSubject(subject=ADDRESS))
        assert SubjectForgotten.type not in {row.type for row in await stored_log(connection)}
        await connection.execute(f"DROP TRIGGER keeps ON {table}".encode())
        await submit(writer, do.ForgetSubject(subject=ADDRESS))

    async def test_key_is_destroyed_in_the_replication_role_replica_too(
        self, writer: Writer, database: str, connection: Connection
    ) -> None:
        await submit(writer, log_email())
        [key] = await stored_key_ids(connection)
        await connection.execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET session_replication_role = replica',"
            " current_database()); END $$"
        )
        async with running_writer(database, encrypt=True) as another:
            await submit(another, do.ForgetSubject(subject=ADDRESS))
        assert key not in await stored_key_ids(connection)

    async def test_erasure_fails_when_row_level_security_is_forced_on_the_owner(
        self, postgres: PostgresServer
    ) -> None:
        """Forced row level security applies to the owner too, except to a superuser."""
        with new_roles(postgres) as roles:
            await schema.apply(roles.owner.dsn, "squad")
            async with running_writer(roles.owner.dsn, encrypt=True) as writer:
                await submit(writer, log_email())
                async with connected(roles.owner.dsn) as owner:
                    await owner.execute("ALTER TABLE subject_keys FORCE ROW LEVEL SECURITY")
                    with pytest.raises(CommandFailed):
                        await submit(writer, do.ForgetSubject(subject=ADDRESS))
                    await owner.execute("ALTER TABLE subject_keys NO FORCE ROW LEVEL SECURITY")
                await submit(writer, do.ForgetSubject(subject=ADDRESS))

    async def test_planner_statistics_hold_no_personal_data_and_no_keys(
        self, writer: Writer, database: str, connection: Connection
    ) -> None:
        for number in range(3):
            await submit(writer, log_email(number))
            await submit(writer, do.SendMessage(from_agent="ada", message="a private word"))
            await submit(writer, log_email(number + 9, f"anna-{number}@example.org"))
        await project(database)
        await connection.execute(
            "INSERT INTO snapshots (fold, position, state) VALUES ('f', 1, 'Zoe Smith')"
        )
        keys_ = await (await connection.execute("SELECT encode(key, 'hex') FROM subject_keys")).fetchall()
        await connection.execute("ANALYZE")
        statistics = await (
            await connection.execute(
                "SELECT concat_ws(' ', attname, most_common_vals, histogram_bounds) FROM pg_stats"
                " WHERE schemaname = 'squad'"
            )
        ).fetchall()
        shown = "\n".join(text for (text,) in statistics)
        assert "gmail_message_id" in shown
        assert [text for text in (*PERSONAL, digest_of(ADDRESS)) if text in shown] == []
        assert [key for (key,) in keys_ if key in shown] == []

    async def test_upgrade_removes_personal_data_and_keys_from_planner_statistics(
        self, writer: Writer, database: str, connection: Connection
    ) -> None:
        for number in range(3):
            await submit(writer, log_email(number))
        await project(database)
        await connection.execute(
            "ALTER TABLE email_logs ALTER COLUMN from_email SET STATISTICS -1;"
            " ALTER TABLE subject_keys ALTER COLUMN key SET STATISTICS -1; ANALYZE"
        )
        count = (
            "SELECT count(*) FROM pg_stats"
            " WHERE schemaname = 'squad' AND (tablename, attname) IN (('email_logs', 'from_email'),"
            " ('subject_keys', 'key'))"
        )
        assert await (await connection.execute(count)).fetchone() == (2,)
        # A column that somebody's view uses cannot be altered; the upgrade continues without it.
        await connection.execute("CREATE VIEW subjects AS SELECT subject FROM email_logs")
        await connection.execute(schema.steps(schema.schema_sql()).upgrades[5].encode())
        await connection.execute("ANALYZE")
        assert await (await connection.execute(count)).fetchone() == (0,)

    async def test_destroyed_key_that_is_imported_again_can_be_detected(
        self, writer: Writer, connection: Connection
    ) -> None:
        """As after a backup of the keys was restored: both the event and the key exist."""
        await submit(writer, log_email())
        backup = [key async for page in keys.export_keys(connection) for key in page]
        await submit(writer, do.ForgetSubject(subject=ADDRESS))
        await keys.import_keys(connection, [key for key in backup if key.subject])
        rows = await stored_log(connection)
        destroyed = {codec.decode(row).key_id for row in rows if row.type == SubjectForgotten.type}  # type: ignore[union-attr]
        assert destroyed & await stored_key_ids(connection)


class TestKeyTransfer:
    async def test_imported_keys_make_a_copy_of_the_log_readable(
        self, writer: Writer, connection: Connection, postgres: PostgresServer
    ) -> None:
        await submit(writer, log_email())
        await submit(writer, log_email(2, "bob@example.org", subject="Praise"))
        await submit(writer, message("a private word"))
        await submit(writer, do.ForgetSubject(subject=ADDRESS))
        rows = await stored_log(connection)
        all_keys = [key async for page in keys.export_keys(connection) for key in page]
        with postgres.new_database() as copy:
            await schema.apply(copy, "squad")
            async with connected(copy) as other:
                await keys.import_keys(other, all_keys)
                for row in rows:
                    now = await log.clock(other)
                    await log.append(other, [row], now)
                assert await whole_log(other) == await whole_log(connection)
                assert [key async for page in keys.export_keys(other) for key in page] == all_keys
            async with running_writer(copy, encrypt=True) as continuing:
                await submit(continuing, log_email(3, "bob@example.org"))
            async with connected(copy) as other:
                _, bob, again = await email_key_ids(other)
                assert bob == again

    async def test_keys_are_exported_page_by_page(
        self, connection: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(keys, "PAGE_KEYS", 2)
        made = [keys.new_key() for _ in range(5)]
        await keys.store(connection, made)
        pages = [page async for page in keys.export_keys(connection)]
        assert [len(page) for page in pages] == [2, 2, 1]
        assert sorted(made) == [(key.id, key.key) for page in pages for key in page]

    async def test_import_rejects_a_key_that_exists(self, connection: Connection) -> None:
        await keys.store(connection, [keys.new_key()])
        [[key]] = [page async for page in keys.export_keys(connection)]
        with pytest.raises(StoreRefused):
            await keys.import_keys(connection, [key])

    async def test_no_keys_are_exported_from_and_imported_into_an_empty_table(
        self, connection: Connection
    ) -> None:
        assert [page async for page in keys.export_keys(connection)] == []
        await keys.import_keys(connection, [])


class TestTraces:
    async def test_unknown_subject_has_no_traces(self, connection: Connection) -> None:
        for subject in (ADDRESS, "0198c0de-0000-7000-8000-000000000001", "x" * 1_000, "☃"):
            assert await traces.find(connection, subject) == NO_TRACE
            assert await traces.in_plain(connection, subject) == 0

    async def test_wholly_or_partly_unencrypted_emails_are_counted(
        self, database: str, connection: Connection
    ) -> None:
        async with running_writer(database) as plain:
            whole = await submit(plain, log_email(1))
            await submit(plain, log_email(2, f"Z <{ADDRESS.upper()}>"))
            await submit(plain, log_email(3, "bob@example.org"))
        assert await traces.in_plain(connection, ADDRESS) == 2
        async with running_writer(database, encrypt=True) as writer:
            part = await submit(writer, log_email(4))
            sealed = await submit(writer, log_email(5))
            await submit(writer, do.UpdateEmail(email_id=whole.reply["id"], payload={"draft": "sealed"}))
        async with running_writer(database) as plain:
            await submit(plain, do.UpdateEmail(email_id=part.reply["id"], payload={"draft": "plain"}))
            await submit(
                plain, do.UpdateEmail(email_id=sealed.reply["id"], status="classified", payload=None)
            )
        assert await traces.in_plain(connection, ADDRESS) == 3
        assert await traces.in_plain(connection, "bob@example.org") == 1
        found = await traces.find(connection, ADDRESS)
        assert set(found.emails) == {outcome.reply["id"] for outcome in (whole, part, sealed)}

    async def test_traces_are_found_by_an_index(self, connection: Connection) -> None:
        await connection.execute("SET enable_seqscan = off")
        cursor = await connection.execute(("EXPLAIN " + traces._SEALED_WITH).encode(), ("x",))
        plan = "\n".join(line for (line,) in await cursor.fetchall())
        assert "events_by_key" in plan

    async def test_plain_encrypted_and_forgotten_messages_are_distinguished(
        self, database: str, connection: Connection
    ) -> None:
        async with running_writer(database) as plain:
            in_plain = (await submit(plain, message("m"))).reply["id"]
        async with running_writer(database, encrypt=True) as writer:
            sealed = (await submit(writer, message("m"))).reply["id"]
            gone = (await submit(writer, message("m"))).reply["id"]
            position = (await submit(writer, do.ForgetSubject(subject=gone.upper()))).position
        assert (await traces.find(connection, in_plain)).in_plain
        assert (await traces.find(connection, sealed)).key_id in await stored_key_ids(connection)
        assert await traces.find(connection, gone) == Trace(message=gone, forgotten_at=position)


async def test_projector_stops_at_an_event_that_cannot_be_decrypted(
    writer: Writer, database: str, connection: Connection
) -> None:
    position = (await submit(writer, log_email())).position
    # Only a superuser can do this.
    await connection.execute("UPDATE subject_keys SET key = decode(repeat('00', 32), 'hex')")
    projector = Projector(database, "squad", Hints())
    async with running(projector.run()):
        await eventually(lambda: "emails" in projector.failed)
    assert projector.failed["emails"][0] == position
    assert "the box of email_received" in projector.failed["emails"][1]


async def test_unencrypted_events_are_revealed_unchanged(connection: Connection) -> None:
    log_writer = LogWriter(connection)
    rows = await log_writer.append(message_sent("in plain"))
    assert await sealing.reveal(connection, rows) == rows
