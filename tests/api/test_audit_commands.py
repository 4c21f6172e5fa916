"""`squad verify`, `checkpoint`, `export` and `import` as users type them."""

from __future__ import annotations

import asyncio
import gzip
import json
import shlex
import sys
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, LiteralString

import pytest
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

from eventstore import checkpoint, log
from eventstore.listener import Hints
from eventstore.recorded import Head
from projections.agents import AGENTS
from projections.projector import Projector
from service.cli import cli, main
from service.history import snapshots
from service.history.restore import restore
from tests.api.client import running_service
from tests.support.audit import verify_in_plain_python
from tests.support.command import SQUAD, CommandResult, end, squad, start
from tests.support.components import SCHEMA, connected, running
from tests.support.embedded import new_data_folder
from tests.support.log import LogWriter, message_sent, new_id, whole_log
from tests.support.log_tampering import EVENTS, append_sample_history, rehash_log, replace_history, tamper
from tests.support.verify import assert_log_is_sound, assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.client import Service

CHECKS = ["positions", "chain", "times", "causes", "streams", "ids", "guards", "forgotten"]
ALL_CHECKS = [*CHECKS, "tables", "indexes", "snapshots"]


@pytest.fixture
async def history(database: str) -> str:
    """The DSN of a database with twelve events, and read tables up to date with them."""
    async with connected(database) as connection:
        await append_sample_history(connection)
    async with running(Projector(database, SCHEMA, Hints()).run()):
        await eventually(partial(projected_to_head, database))
    return database


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in the test's folder, so that files can be named without one."""
    monkeypatch.chdir(tmp_path)


_LOG_UNREADABLE_AFTER_11 = """
    CREATE VIEW events AS
        SELECT position, id, stream, version, type, schema_version, data, actor, caused_by, correlation_id,
            CASE WHEN position = 12 THEN (1 / (position - 12))::text ELSE idempotency_key
            END AS idempotency_key,
            recorded_at, hash, agent
        FROM those_stored
"""


async def _squad(*arguments: str) -> CommandResult:
    """Run the command in this process, which is faster than starting another."""
    result = await asyncio.to_thread(CliRunner().invoke, cli, arguments)
    failed = result.exception is not None and not isinstance(result.exception, SystemExit)
    return CommandResult(
        result.exit_code, result.stdout, f"{result.exception}\n" if failed else result.stderr
    )


def _complaint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the command prints to stderr when it fails."""
    monkeypatch.setattr(sys, "argv", ["squad", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    printed = capsys.readouterr()
    return CommandResult(ended.value.code, printed.out, printed.err).error_line()


def _file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def _populate(service: Service) -> None:
    await service.api.put("agents/ada", role="writer")
    for number in range(20):
        await service.api.post("messages", from_agent="ada", message=f"message {number}")
        await service.api.post("operations", agent="ada", action="x", resources={"e": str(number % 5)})


class TestVerify:
    async def test_reports_that_all_checks_hold_for_running_squad(
        self, service: Service, tmp_path: Path
    ) -> None:
        await _populate(service)
        await eventually(partial(projected_to_head, service.dsn))
        lines = (await _squad("verify", "--dsn", service.dsn)).lines()
        assert [line.split()[:2] for line in lines] == [["holds", name] for name in ALL_CHECKS]
        assert lines[0].endswith(f"1 to {await service.head()}, none is missing")

    async def test_json_output_is_one_object(self, history: str, tmp_path: Path) -> None:
        [line] = (await _squad("verify", "--json", "--dsn", history)).lines()
        found = json.loads(line)
        assert found["holds"] is True
        assert (found["position"], found["differences"]) == (EVENTS, [])
        assert [check["name"] for check in found["checks"]] == ALL_CHECKS
        async with connected(history) as connection:
            assert found["hash"] == (await log.head(connection)).hash.hex()

    async def test_reports_missing_tables_and_indexes_with_all_other_checks(self, history: str) -> None:
        async with connected(history) as connection:
            await connection.execute("DROP TABLE squad_message_acks; DROP INDEX squad_messages_from")
        ended = await _squad("verify", "--dsn", history)
        assert ended.code == 1
        reported = {line.split()[1]: line for line in ended.output.splitlines()}
        assert list(reported) == ALL_CHECKS
        assert reported["tables"].endswith(f"squad_message_acks at position {EVENTS}: it does not exist")
        assert reported["indexes"].endswith(
            "squad_message_acks_pkey of squad_message_acks is missing or not valid (and 1 more)"
        )
        assert (await _squad("replay", "--dsn", history)).code == 0
        assert (await _squad("verify", "--dsn", history)).code == 0
        async with connected(history) as connection:
            await connection.execute("DROP INDEX events_by_type, events_by_agent, events_by_key")
        [line] = [
            line
            for line in (await _squad("verify", "--dsn", history)).output.splitlines()
            if not line.startswith("holds")
        ]
        assert line == "FAILS  indexes     events_by_type of events is missing or not valid (and 2 more)"

    async def test_names_first_bad_position_and_row(self, history: str, tmp_path: Path) -> None:
        async with connected(history) as connection:
            await tamper(
                connection, "UPDATE events SET actor = E'mal\\x1b[31mlory' WHERE position IN (4, 6, 9)"
            )
            await connection.execute("UPDATE squad_messages SET message = 'lies' WHERE position = 8")
        ended = await _squad("verify", "--dsn", history)
        assert (ended.code, ended.errors) == (1, "")
        lines = ended.output.splitlines()
        chain, tables = lines[1], lines[-3]
        assert chain == (
            "FAILS  chain       position 4: its hash does not match its content and the previous hash"
            " (and 2 more)"
        )
        assert tables.startswith("FAILS  tables      squad_messages at position 12: the row id=")
        assert tables.endswith("has message 'lies', the log says 'message 8' (1 changed)")
        assert [line for line in lines if not line.startswith("holds")] == [chain, tables]

    async def test_names_snapshot_that_differs_from_fold_of_log(self, history: str, tmp_path: Path) -> None:
        async with connected(history) as connection:
            squad = await restore(connection)
            agents: Any = squad.tables[AGENTS.name]
            name, row = next(iter(agents.items()))
            agents[name] = row.replaced(role="made up")
            await snapshots.store(connection, squad, squad.head.position)
        ended = await _squad("verify", "--dsn", history)
        assert ended.code == 1
        [line] = [line for line in ended.output.splitlines() if not line.startswith("holds")]
        assert line.startswith(f"FAILS  snapshots   position {EVENTS}: squad_agents differs from the fold")
        assert "TRUNCATE snapshots" in line

    async def test_json_output_names_bad_positions_and_rows(self, history: str, tmp_path: Path) -> None:
        async with connected(history) as connection:
            await tamper(connection, "UPDATE events SET version = 7 WHERE position = 7")
            await connection.execute("DELETE FROM squad_messages WHERE position = 8")
        ended = await _squad("verify", "--json", "--dsn", history)
        assert (ended.code, ended.errors) == (1, "")
        found = json.loads(ended.output)
        assert found["holds"] is False
        bad = {check["name"]: check["position"] for check in found["checks"] if not check["holds"]}
        assert bad == {"chain": 7, "streams": 7, "tables": None}
        [difference] = found["differences"]
        assert (difference["table"], difference["kind"]) == ("squad_messages", "missing")

    async def test_no_tables_option_skips_checks_of_tables(self, history: str, tmp_path: Path) -> None:
        async with connected(history) as connection:
            await connection.execute("DELETE FROM squad_messages")
        lines = (await _squad("verify", "--no-tables", "--dsn", history)).lines()
        assert [line.split()[1] for line in lines] == CHECKS

    @pytest.mark.parametrize("command", ["verify", "replay"])
    async def test_verify_and_replay_report_read_only_server_at_once(
        self, history: str, tmp_path: Path, command: str
    ) -> None:
        """As on a standby."""
        dsn = make_conninfo(history, options="-c default_transaction_read_only=on")
        complaint = (await _squad(command, "--dsn", dsn)).error_line()
        assert complaint.startswith("the database accepts no writes: it is a standby, or ")
        assert "--no-tables" in complaint
        lines = (await _squad("verify", "--no-tables", "--dsn", dsn)).lines()
        assert [line.split()[1] for line in lines] == CHECKS

    async def test_reports_log_that_cannot_be_folded(self, history: str, tmp_path: Path) -> None:
        async with connected(history) as connection:
            await tamper(connection, "DELETE FROM events WHERE position = 5")
        ended = await _squad("verify", "--dsn", history)
        assert ended.code == 1
        bad = [line for line in ended.output.splitlines() if line.startswith("FAILS")]
        assert bad[0] == "FAILS  positions   position 5: is missing"
        assert bad[-1].startswith("FAILS  tables      position 5: they cannot be compared with the log: ")

    @pytest.mark.parametrize(
        ("change", "place"),
        [
            ("recorded_at = 'infinity' WHERE position = 6", "position 6: "),
            ("type = 'subject_forgotten', data = '[]' WHERE position = 6", "position 6: "),
            ("schema_version = NULL WHERE position = 6", "position 6: "),
            ("data = NULL WHERE position = 6", ""),
        ],
    )
    async def test_reports_bad_position_also_when_log_cannot_be_folded(
        self, history: str, tmp_path: Path, change: LiteralString, place: str
    ) -> None:
        async with connected(history) as connection:
            for column in ("schema_version", "data"):
                await connection.execute(f"ALTER TABLE events ALTER COLUMN {column} DROP NOT NULL".encode())
            await tamper(connection, f"UPDATE events SET {change}")
        ended = await _squad("verify", "--dsn", history)
        assert (ended.code, ended.errors) == (1, "")
        bad = [line for line in ended.output.splitlines() if line.startswith("FAILS")]
        assert bad[0].startswith("FAILS  chain       position 6: its hash does not match")
        assert bad[-1].startswith(f"FAILS  tables      {place}they cannot be compared with the log: ")


class TestCheckpoint:
    async def test_shows_that_log_was_truncated_or_rewritten(self, history: str, tmp_path: Path) -> None:
        made = (await _squad("checkpoint", "--new-key", "squad.key")).lines()
        assert _file_names(tmp_path) == ["squad.key", "squad.key.pub"]
        dsn = ("--dsn", history)
        assert (await _squad("checkpoint", "--key", "squad.key", "--out", "c.json", *dsn)).lines() == []
        assert json.loads((tmp_path / "c.json").read_text())["public_key"] in made[0]
        pinned = ("--checkpoint", "c.json", "--public-key", "squad.key.pub", "--no-tables", *dsn)
        lines = (await _squad("verify", *pinned)).lines()
        assert lines[-1].startswith("holds  checkpoint  c.json, signed ")
        async with connected(history) as connection:
            await tamper(connection, "DELETE FROM events WHERE position > 10")
            cut = await _squad("verify", *pinned)
            await rehash_log(connection)
            log_writer = LogWriter(connection)
            await log_writer.catch_up()
            await log_writer.append(*(message_sent("instead") for _ in range(2)))
            await replace_history(connection)
        anew = await _squad("verify", *pinned)
        for ended, place, why in (
            (cut, 11, "covers events up to 12: the log was truncated"),
            (anew, 12, "has a different hash here: the log was rewritten, from here or from earlier on"),
        ):
            assert ended.code == 1
            [fault] = [line for line in ended.output.splitlines() if line.startswith("FAILS")]
            assert fault.startswith(f"FAILS  checkpoint  position {place}: c.json, signed ")
            assert fault.endswith(why)

    async def test_verify_warns_that_signer_is_unknown_without_public_key(
        self, history: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SQUAD_CHECKPOINT_KEY", "squad.key")
        await _squad("checkpoint", "--new-key", "squad.key")
        printed = (await _squad("checkpoint", "--dsn", history)).output
        (tmp_path / "c.json").write_text(printed)
        lines = (await _squad("verify", "--checkpoint", "c.json", "--no-tables", "--dsn", history)).lines()
        assert lines[-1] == ("any key may have signed the checkpoints; name yours with --public-key")

    async def test_verify_checks_log_against_all_given_checkpoints(
        self, history: str, tmp_path: Path
    ) -> None:
        await _squad("checkpoint", "--new-key", "squad.key")
        arguments = ["--no-tables", "--dsn", history]
        for name in ("a.json", "b.json"):
            await _squad("checkpoint", "--key=squad.key", "--out", name, "--dsn", history)
            arguments += ["--checkpoint", name]
        lines = (await _squad("verify", *arguments)).lines()
        assert [line.split()[2] for line in lines[-3:-1]] == ["a.json,", "b.json,"]

    async def test_invalid_log_is_not_signed(self, history: str, tmp_path: Path) -> None:
        await _squad("checkpoint", "--new-key", "squad.key")
        async with connected(history) as connection:
            await tamper(connection, "UPDATE events SET actor = 'mallory' WHERE position = 4")
        ended = await _squad("checkpoint", "--key=squad.key", "--out=c.json", "--dsn", history)
        assert ended.error_line() == (
            "nothing was signed, because the log does not hold: position 4: its hash does not match its"
            " content and the previous hash"
        )
        assert not (tmp_path / "c.json").exists()

    async def test_empty_log_is_not_signed(self, database: str, tmp_path: Path) -> None:
        await _squad("checkpoint", "--new-key", "squad.key")
        ended = await _squad("checkpoint", "--key=squad.key", "--dsn", database)
        assert ended.error_line() == "nothing was signed, because the log is empty"

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (("checkpoint",), "there is no key to sign with; name one with --key, or create one with"),
            (("checkpoint", "--key", "nothing"), "cannot read nothing: No such file or directory"),
            (("checkpoint", "--key", "a.pub"), "a.pub is not a private key in PEM"),
            (("checkpoint", "--new-key", "a"), "cannot create a.pub: File exists"),
            (("verify", "--checkpoint", "nothing"), "cannot read nothing: No such file or directory"),
            (("verify", "--checkpoint", "a"), "a is not a checkpoint: it: Invalid JSON"),
            (("verify", "--checkpoint", "c", "--public-key", "nothing"), "cannot read nothing: No such"),
            (("verify", "--checkpoint", "c", "--public-key", "a"), "a is not a public key in PEM"),
            (("verify", "--checkpoint", "c", "--public-key", "b.pub"), "c is signed with another key"),
            (("verify", "--checkpoint", "bad"), "the signature of bad does not match its content"),
            (("verify", "--public-key", "a.pub"), "--public-key requires a --checkpoint"),
        ],
        ids=str,
    )
    def test_invalid_keys_checkpoints_and_options_are_reported_in_one_line(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        arguments: tuple[str, ...],
        complaint: str,
    ) -> None:
        for key in ("a", "b"):
            checkpoint.new_key(tmp_path / key)
        (tmp_path / "a.pub").chmod(0o600)
        head = Head(12, bytes(32), datetime.now(UTC))
        good = checkpoint.sign(checkpoint.private_key(tmp_path / "a"), new_id(), head, datetime.now(UTC))
        (tmp_path / "c").write_text(good.to_json())
        (tmp_path / "bad").write_text(good.to_json().replace('"position": 12', '"position": 2'))
        before = _file_names(tmp_path)
        assert complaint in _complaint(monkeypatch, capsys, *arguments)
        assert _file_names(tmp_path) == before


class TestExportAndImport:
    @pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
    async def test_import_of_export_restores_squad(
        self, service: Service, empty_database: str, tmp_path: Path, name: str
    ) -> None:
        await _populate(service)
        head = await service.head()
        lines = (await _squad("export", name, "--dsn", service.dsn)).lines()
        assert lines == [f"exported {head} events, up to position {head}"]
        assert (tmp_path / name).read_bytes().startswith(b"\x1f\x8b") == name.endswith(".gz")
        code, words = verify_in_plain_python(tmp_path / name)
        assert (code, words.startswith(f"{head} events hold")) == (0, True)
        [imported] = (await _squad("import", name, "--dsn", empty_database)).lines()
        assert imported.startswith(f"imported {head} events and built the tables; last hash ")
        async with connected(empty_database) as there, connected(service.dsn) as here:
            assert await whole_log(there) == (await whole_log(here))[:head]
        await assert_log_is_sound(empty_database)
        assert await assert_tables_equal_fold(empty_database) > 20
        assert len((await _squad("verify", "--dsn", empty_database)).lines()) == len(ALL_CHECKS)
        async with running_service(empty_database) as again:
            await again.api.post("messages", from_agent="ada", message="it goes on")
            assert await again.head() > head

    async def test_export_can_be_piped_into_import(
        self, history: str, empty_database: str, tmp_path: Path
    ) -> None:
        export = shlex.join([str(SQUAD), "export", "-", "--dsn", history])
        command = f"{export} | {shlex.join([str(SQUAD), 'import', '-', '--dsn', empty_database])}"
        ended = await end(await start(tmp_path, "-c", command, command="/bin/sh"))
        assert ended.code == 0, ended
        assert ended.output.startswith("imported 12 events")
        assert ended.errors == "exported 12 events, up to position 12\n"

    async def test_compressed_export_is_the_same_file_each_time(self, history: str, tmp_path: Path) -> None:
        for name in ("a.gz", "b.gz"):
            await _squad("export", name, "--dsn", history)
        assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()

    async def test_export_writes_given_range_and_import_needs_the_beginning(
        self, history: str, empty_database: str, tmp_path: Path
    ) -> None:
        async def exported(*arguments: str) -> list[int]:
            await _squad("export", "part", *arguments, "--dsn", history)
            lines = map(json.loads, (tmp_path / "part").read_text().splitlines())
            return [line["position"] for line in lines if line["kind"] == "event"]

        assert await exported("--after", "9") == [10, 11, 12]
        assert verify_in_plain_python(tmp_path / "part")[0] == 0
        ended = await _squad("import", "part", "--dsn", empty_database)
        assert "line 1: the file begins after position 9, an import needs the whole" in ended.error_line()
        assert await exported("--after", "3", "--until", "5") == [4, 5]
        assert await exported("--until", "4") == [1, 2, 3, 4]
        await _squad("import", "part", "--dsn", empty_database)
        assert len(await assert_log_is_sound(empty_database)) == 4

    async def test_cloudevents_export_has_one_event_per_line(self, history: str, tmp_path: Path) -> None:
        arguments = ("export", "events", "--format", "cloudevents", "--dsn", history)
        await _squad(*arguments)
        found = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
        assert [event["position"] for event in found] == [str(number) for number in range(1, EVENTS + 1)]
        assert {event["source"] for event in found} == {f"urn:uuid:{found[0]['id']}"}
        assert found[1]["data"]["message"] == "message 2"

    async def test_export_of_invalid_log_is_written_and_reported_as_not_importable(
        self, history: str, empty_database: str, tmp_path: Path
    ) -> None:
        async with connected(history) as connection:
            await tamper(connection, "UPDATE events SET actor = 'mallory' WHERE position = 4")
        ended = await _squad("export", "log", "--dsn", history)
        assert ended.error_line() == (
            "log was written but cannot be imported: at position 4 the hash does not match the event and"
            " the previous hash"
        )
        assert verify_in_plain_python(tmp_path / "log")[1].startswith("line 5: position 4 ")
        ended = await _squad("import", "log", "--dsn", empty_database)
        assert "nothing was imported: line 5: its hash does not match" in ended.error_line()

    async def test_failed_export_leaves_existing_file_unchanged(self, history: str, tmp_path: Path) -> None:
        await _squad("export", "log", "--dsn", history)
        before = (tmp_path / "log").read_bytes()
        async with connected(history) as connection:
            await connection.execute("ALTER TABLE events RENAME TO those_stored")
            await connection.execute(_LOG_UNREADABLE_AFTER_11)
        assert "division by zero" in (await _squad("export", "log", "--dsn", history)).error_line()
        assert (tmp_path / "log").read_bytes() == before
        assert _file_names(tmp_path) == ["log"]

    async def test_import_refuses_log_that_tables_cannot_apply(
        self, history: str, empty_database: str
    ) -> None:
        async with connected(history) as connection:
            log_writer = LogWriter(connection)
            await log_writer.catch_up()
            await log_writer.append(message_sent("by nobody we know", agent="mallory"))
        await _squad("export", "log", "--dsn", history)
        complaint = (await _squad("import", "log", "--dsn", empty_database)).error_line()
        assert complaint.startswith("nothing was imported: line 14: the tables cannot apply it: ")
        assert "mallory" in complaint
        assert await assert_log_is_sound(empty_database) == []
        await assert_tables_equal_fold(empty_database)

    async def test_import_refuses_squad_that_has_events(self, service: Service) -> None:
        await _squad("export", "log", "--dsn", service.dsn)
        before = await service.head()
        ended = await _squad("import", "log", "--dsn", service.dsn)
        assert f"the squad is not new, its log ends at position {before}" in ended.error_line()

    async def test_only_one_of_concurrent_imports_succeeds(
        self, history: str, empty_database: str, tmp_path: Path
    ) -> None:
        await squad(tmp_path, "export", "log", "--dsn", history)
        ended = await asyncio.gather(
            *(squad(tmp_path, "import", "log", "--dsn", empty_database) for _ in range(3))
        )
        assert sorted(each.code for each in ended) == [0, 1, 1]
        for each in ended:
            if each.code:
                assert "nothing was imported: " in each.error_line()
        assert len(await assert_log_is_sound(empty_database)) == EVENTS
        await assert_tables_equal_fold(empty_database)

    async def test_import_creates_missing_embedded_database(self, history: str, tmp_path: Path) -> None:
        await squad(tmp_path, "export", "log", "--dsn", history)
        with new_data_folder() as folder:
            imported = await squad(tmp_path, "import", "log", "--data", str(folder / "new"))
            assert imported.output.startswith("imported 12 events")
            lines = (await squad(tmp_path, "verify", "--data", str(folder / "new"))).lines()
            assert len(lines) == len(ALL_CHECKS)

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (("import", "nothing"), "cannot read nothing: No such file or directory"),
            (("import", "."), "cannot read .: Is a directory"),
            (("import", "empty"), "nothing was imported: line 1: it is empty"),
            (("import", "text"), "nothing was imported: line 1: invalid JSON"),
            (("import", "text.gz"), "cannot read text.gz: Not a gzipped file"),
            (("import", "half.gz"), "cannot read half.gz: Compressed file ended before"),
            (("export", "log"), "there is no squad in .squad"),
            (("export", "log", "--after", "-1"), "Invalid value for '--after'"),
            (("export", "log", "--after", "5", "--until", "3"), "--until 3 is before --after 5"),
            (("export", "log", "--format", "xml"), "'xml' is not one of"),
            (("export",), "Missing argument 'FILE'"),
        ],
        ids=str,
    )
    def test_invalid_input_is_reported_in_one_line_and_leaves_no_files(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        arguments: tuple[str, ...],
        complaint: str,
    ) -> None:
        (tmp_path / "empty").touch()
        (tmp_path / "text").write_text("hello")
        (tmp_path / "text.gz").write_text("hello")
        (tmp_path / "half.gz").write_bytes(gzip.compress(b"hello\n" * 1_000)[:20])
        before = _file_names(tmp_path)
        assert complaint in _complaint(monkeypatch, capsys, *arguments)
        assert _file_names(tmp_path) == before

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (("export", "no/where"), "cannot write no/where: No such file or directory"),
            (("export", "log", "--after", "13"), "there is nothing after position 13: the log ends at 12"),
        ],
        ids=str,
    )
    async def test_impossible_export_is_reported_in_one_line_and_leaves_no_files(
        self, history: str, tmp_path: Path, arguments: tuple[str, ...], complaint: str
    ) -> None:
        assert complaint in (await _squad(*arguments, "--dsn", history)).error_line()
        assert _file_names(tmp_path) == []
