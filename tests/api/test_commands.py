"""The `squad` command as users type it: what it prints, and how it fails.

Tests that go through a shell or pass `command=SQUAD` run the installed command; the others run forks
(tests/support/forked_command.py) or call it in this process.
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import socket
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from click.testing import CliRunner

from eventstore import log, lookup, page_size
from projections import PROJECTIONS
from service.cli import cli, main
from service.cli.up import MAX_OPEN_FILES
from tests.api.client import running_service
from tests.support.command import ENDS_WITHIN_SECONDS, SQUAD, CommandResult, end, squad, start
from tests.support.components import connected
from tests.support.log import LogWriter, agent_registered, message_sent
from tests.support.verify import projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded
    from tests.api.client import Service

READ_TABLES = {projection.name for projection in PROJECTIONS}
NOWHERE = "host=127.0.0.1 port=1 dbname=nowhere"


async def _populate(service: Service) -> None:
    api = service.api
    await api.put("agents/ada", role="writer")
    await api.post("messages", from_agent="ada", message="hello", data={"long": "x" * 300})
    await api.post("messages", from_agent="bob", message="two\nlines \x1b[31m")
    await api.post("operations", agent="ada", action="respond", resources={"emailId": "e1"})
    await api.post("budget/usage", agent="ada", tokens=1_234)


async def test_events_prints_one_line_per_event(service: Service, tmp_path: Path) -> None:
    await _populate(service)
    lines = (await squad(tmp_path, "events", "--dsn", service.dsn)).lines()
    assert [int(line.split()[0]) for line in lines] == list(range(1, await service.head() + 1))
    [hello] = [line for line in lines if "hello" in line]
    assert "message_sent" in hello
    assert "agent:ada" in hello
    assert not any("\x1b" in line for line in lines)


async def test_events_as_json_are_the_same_as_in_the_api(service: Service, tmp_path: Path) -> None:
    await _populate(service)
    lines = (await squad(tmp_path, "events", "--json", "--dsn", service.dsn)).lines()
    assert [json.loads(line) for line in lines] == (await service.api.get("events")).body["items"]


async def test_events_are_filtered_by_type_agent_position_and_time(service: Service) -> None:
    await _populate(service)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    for arguments, found in (
        (("--type", "message_sent"), 2),
        (("--agent", "bob"), 2),
        (("--agent", "bob", "--type", "message_sent"), 1),
        (("--after", str(await service.head() - 1)), 1),
        (("--since", "1h", "--type", "message_sent"), 2),
        (("--since", tomorrow), 0),
        (("--since", "2020-01-31", "--type", "tokens_used"), 1),
    ):
        command = ("events", *arguments, "--dsn", service.dsn)
        ended = await asyncio.to_thread(CliRunner().invoke, cli, command)
        assert ended.exit_code == 0
        assert len(ended.output.splitlines()) == found, arguments


async def test_large_events_are_read_in_small_pages(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(database) as connection:
        await LogWriter(connection).append(*(message_sent("x" * 1_000) for _ in range(60)))
    read, lengths = lookup.read_filtered, []

    async def read_and_record(*arguments: Any) -> list[Recorded]:
        page = await read(*arguments)
        lengths.append(len(page))
        return page

    monkeypatch.setattr(lookup, "read_filtered", read_and_record)
    monkeypatch.setattr(page_size, "INITIAL_EVENTS", 15)
    monkeypatch.setattr(page_size, "PAGE_CHARACTERS", 20_000)
    ended = await asyncio.to_thread(CliRunner().invoke, cli, ("events", "--dsn", database))
    assert len(ended.output.splitlines()) == sum(lengths) == 60
    assert max(lengths) < 20


async def test_follow_prints_new_events_until_interrupted(service: Service, tmp_path: Path) -> None:
    await service.api.post("messages", from_agent="ada", message="before")
    arguments = ("events", "--follow", "--json", "--type", "message_sent", "--dsn", service.dsn)
    process = await start(tmp_path, *arguments, command=SQUAD)
    assert process.stdout
    for text in ("before", "live", "still live"):
        if text != "before":
            await service.api.post("messages", from_agent="ada", message=text)
        line = await asyncio.wait_for(process.stdout.readline(), ENDS_WITHIN_SECONDS)
        assert json.loads(line)["data"]["message"] == text
    process.send_signal(signal.SIGINT)
    assert (await end(process)) == CommandResult(0, "", "")


def test_interrupted_events_exit_with_130_unless_following(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(work: Coroutine[Any, Any, None]) -> None:
        work.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["service.cli.events"], "run", interrupted)
    for options, code in (((), 130), (("--follow",), None)):
        monkeypatch.setattr(sys, "argv", ["squad", "events", *options])
        ended: int | str | None = None
        try:
            main()
        except SystemExit as exited:
            ended = exited.code
        assert ended == code


async def test_events_ends_quietly_when_its_output_pipe_is_closed(service: Service, tmp_path: Path) -> None:
    commands = [
        {"method": "POST", "path": "/api/v1/messages", "body": {"from_agent": "a", "message": "x" * 500}}
    ]
    await service.api.post("batch", commands=commands * 1_000)
    pipe = f'"{SQUAD}" events --json --dsn "$0" | head -n 1'
    ended = await end(await start(tmp_path, "-c", pipe, service.dsn, command="/bin/sh"))
    [line] = ended.lines()
    assert json.loads(line)["position"] == 1


@pytest.mark.parametrize("arguments", ["events", "status", "jobs", "whatif --daily-tokens 7", "export -"])
async def test_full_disk_under_stdout_is_reported_in_one_line(
    service: Service, tmp_path: Path, arguments: str
) -> None:
    line = f'exec "{SQUAD}" {arguments} --dsn "$0" >/dev/full'
    ended = await end(await start(tmp_path, "-c", line, service.dsn, command="/bin/sh"))
    assert ended.code == 1
    what = "cannot write standard output" if arguments == "export -" else "cannot continue"
    assert ended.error_line() == f"{what}: No space left on device"


@pytest.mark.parametrize(
    ("arguments", "closed"),
    [("events", "<&-"), ("export -", ">&-"), ("events", "<&- >&-"), ("export -", "2>&-")],
)
async def test_commands_work_with_closed_standard_streams(
    service: Service, tmp_path: Path, arguments: str, closed: str
) -> None:
    line = f'exec "{SQUAD}" {arguments} --dsn "$0" {closed}'
    ended = await end(await start(tmp_path, "-c", line, service.dsn, command="/bin/sh"))
    assert ended.code == 0, ended
    assert bool(ended.output) == (">&-" not in closed or closed == "2>&-")


async def test_characters_that_the_locale_cannot_encode_are_escaped(
    service: Service, tmp_path: Path
) -> None:
    await service.api.post("messages", from_agent="ada", message="こ")
    ended = await squad(tmp_path, "events", "--dsn", service.dsn, PYTHONIOENCODING="latin-1")
    assert any(r"message=\u3053" in line for line in ended.lines())


async def test_status_shows_the_squad_on_one_screen(service: Service, tmp_path: Path) -> None:
    await _populate(service)
    await service.api.put("jobs/watch", task="token_monitor", cron="30 4 1 1 *")
    await service.api.put("jobs/nap", task="status_update", every="1h")
    await service.api.post("jobs/nap/pause", note="until \u202enoon")

    async def shown() -> str:
        return "\n".join((await squad(tmp_path, "status", "--dsn", service.dsn)).lines())

    screen = await shown()
    for text in ("orchestrator running", "1,234 used", "98,766 of 100,000 remain", "respond", "emailId e1"):
        assert text in screen, screen
    for agent in ("ada", "bob"):
        assert agent in screen
    rows = [line for line in screen.splitlines() if "│" in line]
    [watch] = [row for row in rows if " watch " in row]
    assert "30 4 1 1 *" in watch
    assert "-01-01 04:30:00Z" in watch
    [nap] = [row for row in rows if " nap " in row]
    assert "every 3600 s" in nap
    assert r"paused: until \u202enoon" in nap
    for table in ("agents", "messages", "operations", "budgets", "tasks", "emails"):
        assert table in screen
    assert len(screen.splitlines()) < 60
    assert "no process serves the squad" not in screen


async def test_status_tells_if_no_process_serves_the_squad(database: str, tmp_path: Path) -> None:
    async with running_service(database) as service:
        await service.api.post("messages", from_agent="ada", message="hello")
    screen = " ".join((await squad(tmp_path, "status", "--dsn", database)).lines())
    assert "orchestrator running" in screen
    assert "no process serves the squad: no job runs" in screen


async def test_table_rows_are_not_wrapped_without_a_terminal(service: Service, tmp_path: Path) -> None:
    agent, note = "an_agent_with_quite_a_long_name", "so that " + "all " * 50 + "can be searched"
    await service.api.put(f"agents/{agent}", role="role " * 15 + "end")
    await service.api.put("jobs/nap", task="status_update", every="1h", agent=agent)
    await service.api.post("jobs/nap/pause", note=note)
    for command, text in (("status", agent), ("state", note), ("jobs", note)):
        lines = (await squad(tmp_path, command, "--dsn", service.dsn, COLUMNS="")).lines()
        assert any(text in line for line in lines), lines


async def test_status_never_shows_a_table_ahead_of_the_log(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if events are appended and reach the tables while it is reading."""
    here = asyncio.get_running_loop()

    async def append_more() -> None:
        await _populate(service)
        await eventually(partial(projected_to_head, service.dsn))

    async def clock(connection: Connection) -> datetime:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(append_more(), here))
        return await log.clock(connection)

    monkeypatch.setattr(sys.modules["service.cli.status"], "log", SimpleNamespace(clock=clock))
    shown = await asyncio.to_thread(CliRunner().invoke, cli, ("status", "--dsn", service.dsn))
    assert shown.exit_code == 0, shown.output
    rows = [[cell.strip() for cell in line.split("│")] for line in shown.output.splitlines()]
    behind = [int(row[3]) for row in rows if row[1:2] and row[1] in READ_TABLES]
    assert len(behind) == len(READ_TABLES)
    assert min(behind) >= 0


async def test_explain_says_why_claim_was_refused(service: Service, tmp_path: Path) -> None:
    await _populate(service)
    claim = {"action": "quote", "resources": {"emailId": "e1"}}
    refused = (await service.api.post("operations", agent="bob\u202e", **claim)).expect(409)
    arguments = ("explain", str(refused["position"]), "--dsn", service.dsn)
    lines = (await squad(tmp_path, *arguments)).lines()
    assert lines[0].startswith(f"{refused['position']}  conflict_detected  ")
    assert "blocked from “quote”: ada had claimed emailId e1 for “respond”." in lines[1]
    assert lines[2:4] == ["", "Why"]
    assert "\u202e" not in "".join(lines)
    [line] = (await squad(tmp_path, *arguments, "--json")).lines()
    assert json.loads(line) == (await service.api.get(f"explain/{refused['position']}")).expect(200)


async def test_explain_reports_unknown_position(service: Service, tmp_path: Path) -> None:
    ended = await squad(tmp_path, "explain", "999999", "--dsn", service.dsn)
    assert ended.error_line() == "the log has no position 999999"


async def test_whatif_reports_what_other_rules_would_have_allowed(service: Service, tmp_path: Path) -> None:
    await _populate(service)
    for agent in ("ada", "bob"):
        await service.api.post("budget/reservations", agent=agent, tokens=60_000)
    dsn = ("--dsn", service.dsn)
    lines = (await squad(tmp_path, "whatif", "--daily-tokens", "200000", *dsn)).lines()
    assert lines[0].startswith("Of 3 requests, 0 would have been refused instead of allowed, and 1 allowed")
    assert "acted differently" in lines[1]
    assert "By day and agent" in lines[2]
    [row] = [line for line in lines if "│ bob" in line]
    assert "60,000" in row
    assert any("bob was refused 60,000 tokens. That would have been allowed" in line for line in lines)
    assert lines[-1].endswith("they count as used in full.")
    [line] = (await squad(tmp_path, "whatif", "--daily-tokens", "200000", "--json", *dsn)).lines()
    assert json.loads(line) == (await service.api.post("whatif", daily_tokens=200_000)).expect(200)


async def test_whatif_accepts_every_rule(service: Service) -> None:
    await _populate(service)
    arguments = (
        "--agent-limit",
        "ada=1000",
        "--agent-limit",
        "x=y=none",
        "--conflict-window-seconds",
        "0.5",
        "--operation-timeout-seconds",
        "90",
        "--warning-percents",
        "1, 99",
        "--since",
        "1h",
        "--until",
        "2100-01-01",
    )
    ended = await asyncio.to_thread(CliRunner().invoke, cli, ("whatif", *arguments, "--dsn", service.dsn))
    assert ended.exit_code == 0, ended.output
    assert "1% of " in ended.output
    ended = await asyncio.to_thread(CliRunner().invoke, cli, ("whatif", "--dsn", service.dsn))
    assert ended.output == "Nothing would have been different, in 1 request.\n"


async def test_replay_repairs_tables_and_reports_what_it_did(service: Service, tmp_path: Path) -> None:
    await _populate(service)
    await eventually(partial(projected_to_head, service.dsn))
    async with connected(service.dsn) as connection:
        await connection.execute("UPDATE squad_messages SET message = 'tampered'")
    ended = await squad(tmp_path, "replay", "messages", "tasks", "--dsn", service.dsn)
    first, *table = ended.lines()
    assert first.startswith(
        f"replayed {await service.head()} events into the tables of messages, tasks in "
    )
    shown = [[cell.strip() for cell in line.strip("│").split("│")] for line in table if "│" in line]
    assert shown == [
        ["squad_messages", "2", "2", "2"],
        ["squad_message_acks", "0", "0", "0"],
        ["squad_tasks", "0", "0", "0"],
    ]
    advice = "if somebody changed the tables, restart every process"
    assert advice in " ".join(table)
    ended = await squad(tmp_path, "replay", "messages", "tasks", "--dsn", service.dsn)
    assert advice not in " ".join(ended.lines())
    messages = (await service.api.get("messages")).body["items"]
    assert {message["message"] for message in messages} == {"hello", "two\nlines \x1b[31m"}


async def test_replay_of_log_from_newer_version_fails_with_one_line(
    service: Service, tmp_path: Path
) -> None:
    async with connected(service.dsn) as connection:
        log_writer = LogWriter(connection)
        await log_writer.catch_up()
        [stored] = await log_writer.append(agent_registered("ann"), type="from_the_future")
    ended = await squad(tmp_path, "replay", "--dsn", service.dsn)
    assert ended.error_line() == (
        "the log holds an event that this version of the software does not know:"
        f" from_the_future v1 at position {stored.position}"
    )


async def test_state_shows_past_and_current_squad_on_one_screen(service: Service, tmp_path: Path) -> None:
    await _populate(service)
    api = service.api
    await api.post("budget/reservations", agent="ada", tokens=1_111)
    await api.post(
        "emails", gmail_message_id="g-1", from_email="a@example.org", subject="two\nlines \x1b[31m"
    )
    for number in range(12):
        await api.post("tasks", title=f"task {number}")
    await api.put("jobs/yearly", task="conflict_check", cron="0 0 1 1 *")
    before = await service.head()
    await api.post("jobs/yearly/pause", note="holidays")
    await api.post("/api/squad", action="orchestrator-shutdown")

    async def shown(*arguments: str) -> str:
        return "\n".join((await squad(tmp_path, "state", *arguments, "--dsn", service.dsn)).lines())

    now, then, first = await shown(), await shown("--at", str(before)), await shown("--at", "0")
    for text in (
        "1,234 used",
        "1,111 reserved",
        "respond",
        "emailId e1",
        "a@example.org",
        "task 11",
        "yearly",
    ):
        assert text in now, text
        assert text in then, text
    assert "the newest 10 of 12" in now
    assert "task 1 " not in now
    assert ("orchestrator shut down" in now, "orchestrator running" in then) == (True, True)
    assert ("paused: holidays" in now, "paused" in then) == (True, False)
    assert "\x1b" not in now
    assert len(now.splitlines()) < 80
    assert first == "there is nothing before the first event"


async def test_state_as_json_is_the_same_as_in_the_api(service: Service, tmp_path: Path) -> None:
    await _populate(service)
    head = await service.head()
    recorded = (await service.api.get(f"events/{head}")).body["recorded_at"]
    for at in ("0", "3", str(head), recorded):
        [line] = (await squad(tmp_path, "state", "--at", at, "--json", "--dsn", service.dsn)).lines()
        assert json.loads(line) == (await service.api.get("state", at=at)).body
    [line] = (await squad(tmp_path, "state", "--json", "--dsn", service.dsn)).lines()
    now = json.loads(line)
    assert now["moment"] > now["recorded_at"]
    [line] = (await squad(tmp_path, "state", "--at", "1h", "--json", "--dsn", service.dsn)).lines()
    assert json.loads(line)["position"] == 0


async def test_state_beyond_end_of_log_is_reported(service: Service, tmp_path: Path) -> None:
    for at, complaint in (
        ("1000000", "it ends at position"),
        ("2300-01-01T00:00:00Z", "2300-01-01T00:00:00+00:00 is in the future, it is"),
    ):
        ended = await squad(tmp_path, "state", "--at", at, "--dsn", service.dsn)
        assert f"the log does not reach that far: {complaint}" in ended.error_line()


async def test_help_is_printed_without_arguments_and_for_every_command(tmp_path: Path) -> None:
    ended = await end(await start(tmp_path, command=SQUAD))
    assert "Usage: squad" in ended.output + ended.errors
    for name in cli.commands:
        helped = CliRunner().invoke(cli, (name, "--help"), prog_name="squad")
        assert helped.output.startswith(f"Usage: squad {name}")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ("events", "--dsn", NOWHERE),
            "the database cannot be reached: connection failed: connection to server at",
        ),
        (("status", "--dsn", NOWHERE), "connection to server at"),
        (
            ("up", "--dsn", "host=a..b"),
            "the database cannot be reached: a label of the host name is empty",
        ),
        (("bench", "--seconds", "nan", "--dsn", NOWHERE), "'nan' is not a number of seconds"),
        (("bench", "--seconds", "1", "--dsn", NOWHERE), "1.0 is not in the range 2<=x<=300"),
        (("jobs", "run", "x", "--wait", "nan", "--dsn", NOWHERE), "'nan' is not a number of seconds"),
        (("up", "--dsn", "nonsense"), "dsn (SQUAD_DSN) is 'nonsense': must be a libpq connection string"),
        (
            ("up", "--port", "70000"),
            "port (SQUAD_PORT) is 70000: input should be less than or equal to 65535",
        ),
        (("up", "--port", "x"), "Invalid value for '--port'"),
        (("explain", "7", "--dsn", NOWHERE), "connection to server at"),
        (("explain",), "Missing argument 'POSITION'"),
        (("explain", "0"), "Invalid value for 'POSITION'"),
        (("whatif", "--dsn", NOWHERE), "connection to server at"),
        (("whatif",), "there is no squad in .squad"),
        (("whatif", "--agent-limit", "ada"), "'ada' is not like email_agent=50000"),
        (("whatif", "--agent-limit", "ada=-5"), "'ada=-5' is not like email_agent=50000"),
        (("whatif", "--agent-limit", "=5"), "--agent-limit: string should have at least 1 character"),
        (("whatif", "--daily-tokens", "-1"), "--daily-tokens: input should be greater than or equal to 0"),
        (("whatif", "--daily-tokens", "many"), "Invalid value for '--daily-tokens'"),
        (("whatif", "--conflict-window-seconds", "nan"), "--conflict-window-seconds: input should be"),
        (("whatif", "--warning-percents", "50;75"), "'50;75' is not like 50,75,90"),
        (("whatif", "--warning-percents", "0"), "--warning-percents: input should be greater than"),
        pytest.param(
            ("whatif", "--agent-limit", f"ada={'9' * 5_000}"),
            "is not like email_agent=50000",
            id="long agent limit",
        ),
        (
            ("whatif", "--agent-limit", f"ada={'9' * 30}"),
            "--agent-limit: input should be less than or equal to",
        ),
        pytest.param(
            ("whatif", "--warning-percents", "9" * 5_000), "is not like 50,75,90", id="long percentage"
        ),
        (("events", "--agent", "\udcff", "--dsn", NOWHERE), "for '--agent': '\\udcff' is not UTF-8"),
        (("jobs", "run", "\udcff", "--dsn", NOWHERE), "for 'NAME': '\\udcff' is not UTF-8"),
        (("jobs", "--dsn", "\udcff"), "for '--dsn': '\\udcff' is not UTF-8"),
        (("whatif", "--since", "1h", "--until", "2h"), "since must be before until"),
        (("explain", "9" * 30), "Invalid value for 'POSITION'"),
        (("explain", "x"), "Invalid value for 'POSITION': 'x' is not a valid integer."),
        (("events",), "there is no squad in .squad; start one with `squad up`"),
        (("status",), "there is no squad in .squad; start one with `squad up`"),
        (("status", "--data", "else/where"), "there is no squad in else/where"),
        (("up", "--data", ""), "Invalid value for '--data': it must name a folder"),
        (("up", "--dsn", ""), "dsn (SQUAD_DSN) is '': must name a database"),
        (("verify", "--data", "."), "there is no squad in .; start one with `squad up`"),
        (("status", "--data", "x" * 300), f"the folder {'x' * 300} cannot be accessed: File name too long"),
        (
            ("status", "--config", "x" * 300),
            f"the configuration file {'x' * 300} cannot be read: File name",
        ),
        (("events", "--since", "yesterday"), "'yesterday' is neither RFC 3339 nor like 15m, 2h or 1d"),
        (("state", "--dsn", NOWHERE), "connection to server at"),
        (("state",), "there is no squad in .squad; start one with `squad up`"),
        (("state", "--at", "yesterday"), "'yesterday' is neither RFC 3339 nor like 15m, 2h or 1d"),
        (("state", "--at", "-1"), "'-1' is neither RFC 3339 nor like"),
        (("state", "--at", "9" * 30), "is too large for a position"),
        (("events", "--since", "999999999d"), "'999999999d' is neither RFC 3339 nor like"),
        (("events", "--after", "-1"), "Invalid value for '--after'"),
        (("events", "--config", "nowhere.toml"), "the configuration file nowhere.toml does not exist"),
        (("replay", "--dsn", NOWHERE), "connection to server at"),
        (("replay",), "there is no squad in .squad; start one with `squad up`"),
        (
            ("replay", "tasks", "task"),
            "there is no projection 'task'; known are agents, messages, operations, budgets, usage, tasks",
        ),
        (("dance",), "No such command 'dance'"),
        (("up", "--fast"), "No such option"),
    ],
    ids=str,
)
def test_errors_are_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: tuple[str, ...],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["squad", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    printed = capsys.readouterr()
    assert complaint in CommandResult(ended.value.code, printed.out, printed.err).error_line()
    assert list(tmp_path.iterdir()) == []


async def test_service_does_not_start_without_database(tmp_path: Path) -> None:
    ended = await squad(tmp_path, "up", "--dsn", NOWHERE)
    assert "connection to server at" in ended.error_line()


async def test_port_in_use_is_reported(database: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = await squad(tmp_path, "up", "--dsn", database, "--port", str(port))
    assert ended.error_line() == (
        f"cannot listen on 127.0.0.1:{port}: it is in use; stop the other process, or choose another port"
        " with --port or SQUAD_PORT"
    )


async def test_database_without_squad_is_reported(empty_database: str, tmp_path: Path) -> None:
    for command in ("events", "status", "replay", "state"):
        ended = await squad(tmp_path, command, "--dsn", empty_database)
        assert "squad" in ended.error_line()


async def test_database_is_taken_from_environment(service: Service, tmp_path: Path) -> None:
    await _populate(service)
    assert (await squad(tmp_path, "events", SQUAD_DSN=service.dsn)).lines()


async def test_up_prints_its_address_and_its_database(database: str, tmp_path: Path) -> None:
    process = await start(tmp_path, "up", "--port", "0", "--dsn", database, command=SQUAD)
    assert process.stdout
    lines = [await asyncio.wait_for(process.stdout.readline(), ENDS_WITHIN_SECONDS) for _ in range(2)]
    assert b"squad is listening on http://127.0.0.1:" in lines[0]
    assert b"database squad_test_" in lines[1]
    process.send_signal(signal.SIGTERM)
    assert (await end(process)).code == 0


async def test_up_warns_of_misspelt_environment_variable(database: str, tmp_path: Path) -> None:
    process = await start(tmp_path, "up", "--port", "0", "--dsn", database, SQUAD_SEED_JOB="0")
    assert process.stdout
    await asyncio.wait_for(process.stdout.readline(), ENDS_WITHIN_SECONDS)
    process.send_signal(signal.SIGTERM)
    assert "SQUAD_SEED_JOB is not a setting" in (await end(process)).errors


async def test_up_raises_its_limit_of_open_files(database: str, tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    script = f'ulimit -Sn 256 && exec "{SQUAD}" up --port 0 --dsn "$0"'
    process = await start(tmp_path, "-c", script, database, command="/bin/sh")
    assert process.stdout
    line = await asyncio.wait_for(process.stdout.readline(), ENDS_WITHIN_SECONDS)
    assert b"squad is listening on" in line
    allowed, _ = psutil.Process(process.pid).rlimit(psutil.RLIMIT_NOFILE)
    assert allowed == (MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES))
    process.send_signal(signal.SIGTERM)
    assert (await end(process)).code == 0


async def test_command_beside_two_services_reads_events_of_both(database: str, tmp_path: Path) -> None:
    async with running_service(database) as one, running_service(database) as other:
        await one.api.post("messages", from_agent="ada", message="one")
        await other.api.post("messages", from_agent="ada", message="other")

        async def both_seen() -> bool:
            ended = await squad(tmp_path, "events", "--type", "message_sent", "--dsn", database)
            return len(ended.lines()) == 2

        await eventually(both_seen)
