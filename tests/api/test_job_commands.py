"""`squad jobs`: list, run, pause and resume jobs, with and without a running service."""

from __future__ import annotations

import asyncio
import getpass
import json
import signal
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from eventstore import codec
from eventstore.events import Event, JobPaused, RunFinished, RunRetried, RunStarted, TokensReserved
from service import commands as do
from service.cli import cli, waiting
from service.database import StartFailed
from service.job_spec import SEED_JOBS, JobSpec
from tests.api.client import running_service
from tests.support.agents import Agents, answers, answers_bytes, when
from tests.support.command import end, start
from tests.support.components import connected, running_writer, submit
from tests.support.log import whole_log
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from click.testing import Result

    from eventstore.recorded import Recorded
    from tests.api.client import Service

WORKER = {"worker": {"role": "test"}}


@pytest.fixture
async def service(database: str, agents: Agents) -> AsyncIterator[Service]:
    """A service with the seed's jobs, disabled, and a job `poll` whose next tick is far away."""
    quiet: dict[str, Any] = {name: {"enabled": False} for name in SEED_JOBS}
    own = {"agent": "worker", "endpoint": "/poll", "every": "300d"}
    async with running_service(
        database, seed_jobs=True, agents_url=agents.url, agents=WORKER, jobs={**quiet, "poll": own}
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def _working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run where the developer's squad.toml is not found."""
    monkeypatch.chdir(tmp_path)


async def create_squad(dsn: str, **spec: Any) -> None:
    """Create a squad with the job `poll`, without a running service."""
    whole = JobSpec.model_validate({"agent": "worker", "endpoint": "/poll", "every": "300d", **spec})
    async with running_writer(dsn) as writer:
        for command in (
            do.StartOrchestrator(),
            do.RegisterAgent(name="worker", role="test"),
            do.DefineJob(name="poll", source="api", definition=whole.definition()),
        ):
            assert (await submit(writer, command)).refusal is None


async def squad(dsn: str, *arguments: str) -> Result:
    """Run the `squad` command in this process."""
    return await asyncio.to_thread(CliRunner().invoke, cli, [*arguments, "--dsn", dsn])


async def events_of(dsn: str, kind: type[Event]) -> list[tuple[Recorded, Any]]:
    """All events of a kind, each with its row of the log."""
    async with connected(dsn) as connection:
        log = await whole_log(connection)
    return [(item, codec.decode(item)) for item in log if item.type == kind.type]


async def test_run_is_recorded_and_carried_out_by_running_service(
    service: Service, agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At once, rather than with the next poll.
    monkeypatch.setattr("service.writing.writer.POLL_SECONDS", 60.0)
    ran = await squad(service.dsn, "jobs", "run", "poll")
    assert ran.exit_code == 0, ran.output
    entered = json.loads(ran.stdout)
    assert (entered["job"], entered["status"], entered["attempts"]) == ("poll", "running", 0)
    assert "a running service carries it out at once" in ran.stderr
    assert "within 60 seconds" in ran.stderr
    [(finish, finished)] = await eventually(lambda: events_of(service.dsn, RunFinished))
    assert (finished.run_id, finished.outcome, finished.attempts) == (entered["id"], "succeeded", 1)
    [(start, started)] = await events_of(service.dsn, RunStarted)
    assert (started.manual, started.runner, start.position) == (True, None, entered["position"])
    assert start.actor == f"cli:{getpass.getuser()}"
    [(_, retried)] = await events_of(service.dsn, RunRetried)
    assert (retried.attempt, retried.lease_ran_out) == (1, False)
    assert [call.payload["attempt"] for call in agents.calls] == [1]
    assert finish.correlation_id == entered["id"]


async def test_only_one_of_two_services_carries_out_a_run(database: str, agents: Agents) -> None:
    job = {"poll": {"agent": "worker", "endpoint": "/poll", "every": "300d"}}
    async with (
        running_service(database, agents_url=agents.url, agents=WORKER, jobs=job),
        running_service(database, agents_url=agents.url, agents=WORKER, jobs=job),
    ):
        for _ in range(5):
            ran = await squad(database, "jobs", "run", "poll", "--wait", "20")
            assert ran.exit_code == 0, (ran.output, ran.exception)
    assert len(agents.calls) == len(await events_of(database, RunRetried)) == 5


async def test_wait_shows_outcome_of_run(service: Service, agents: Agents) -> None:
    agents.on("/poll", answers({"tokens_used": 7}))
    ran = await squad(service.dsn, "jobs", "run", "poll", "--wait")
    assert ran.exit_code == 0, (ran.output, ran.exception)
    run = json.loads(ran.stdout)
    assert (run["status"], run["attempts"], run["tokens_used"], run["reason"]) == ("succeeded", 1, 7, None)
    assert run["tick"] <= run["started_at"] <= run["finished_at"]
    # The API shows the same.
    listed = (await service.api.get("runs", min_position=await service.head())).expect(200)["items"]
    assert {name: value for name, value in listed[0].items() if name in run and name != "position"} == {
        name: value for name, value in run.items() if name != "position"
    }


async def test_wait_fails_when_run_fails(service: Service, agents: Agents) -> None:
    agents.on("/poll", answers({}, 500))
    ran = await squad(service.dsn, "jobs", "run", "poll", "--wait=20")
    assert isinstance(ran.exception, StartFailed)
    assert str(ran.exception) == "poll failed: the agent answered 500: {}"
    assert json.loads(ran.stdout)["status"] == "failed"


async def test_wait_fails_when_run_does_not_end_in_time(service: Service, agents: Agents) -> None:
    may_answer = asyncio.Event()
    agents.on("/poll", when(may_answer))
    ran = await squad(service.dsn, "jobs", "run", "poll", "--wait", "1")
    may_answer.set()
    assert isinstance(ran.exception, StartFailed)
    assert str(ran.exception) == "poll did not end within 1 seconds"
    assert json.loads(ran.stdout)["status"] == "running"


async def test_wait_gives_up_when_no_service_starts_the_run(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_START_GRACE_SECONDS", 0.2)
    await create_squad(database, catch_up_seconds=1)
    ran = await squad(database, "jobs", "run", "poll", "--wait")
    assert isinstance(ran.exception, StartFailed)
    assert str(ran.exception) == "poll was not started by any service; is one running?"
    assert json.loads(ran.stdout)["attempts"] == 0


async def test_ctrl_c_ends_wait_but_not_the_run(service: Service, agents: Agents, tmp_path: Path) -> None:
    may_answer = asyncio.Event()
    agents.on("/poll", when(may_answer))
    process = await start(tmp_path, "jobs", "run", "poll", "--wait", "--dsn", service.dsn)
    await eventually(lambda: agents.calls, within_seconds=30)
    process.send_signal(signal.SIGINT)
    assert (await end(process)).code == 130
    may_answer.set()
    await eventually(lambda: events_of(service.dsn, RunFinished))


async def test_run_without_service_is_carried_out_by_the_next_one(database: str, agents: Agents) -> None:
    await create_squad(database, tokens=10)
    ran = await squad(database, "jobs", "run", "poll")
    assert ran.exit_code == 0, ran.output
    assert await events_of(database, TokensReserved)
    assert not await events_of(database, RunFinished)
    async with running_service(database, agents_url=agents.url):
        [(_, finished)] = await eventually(lambda: events_of(database, RunFinished))
    assert finished.outcome == "succeeded"


async def test_run_is_missed_when_no_service_starts_in_time(database: str, agents: Agents) -> None:
    await create_squad(database, catch_up_seconds=1)
    ran = await squad(database, "jobs", "run", "poll")
    run = json.loads(ran.stdout)
    [(entered, _)] = await events_of(database, RunStarted)
    async with connected(database) as connection:

        async def a_second_later() -> bool:
            row = await (await connection.execute("SELECT clock_timestamp()")).fetchone()
            return bool(row and row[0] - entered.recorded_at > timedelta(seconds=1.1))

        await eventually(a_second_later)
    async with running_service(database, agents_url=agents.url) as service:
        [(_, finished)] = await eventually(lambda: events_of(database, RunFinished))
        assert (finished.run_id, finished.outcome) == (run["id"], "missed")
        assert finished.reason == "no process took it up within 1 seconds"

        async def listed() -> list[Any]:
            items = (await service.api.get("runs", status="missed")).expect(200)["items"]
            return [item["id"] for item in items]

        assert await eventually(listed) == [run["id"]]
    assert not agents.calls


async def test_jobs_are_paused_and_resumed_with_and_without_service(database: str) -> None:
    await create_squad(database)
    paused = await squad(database, "jobs", "pause", "poll", "--note", "holidays")
    assert paused.exit_code == 0, paused.output
    shown = json.loads(paused.stdout)
    assert (shown["name"], shown["paused"], shown["note"]) == ("poll", True, "holidays")
    [(event, _)] = await events_of(database, JobPaused)
    assert (event.position, event.actor) == (shown["position"], f"cli:{getpass.getuser()}")
    async with running_service(database) as service:
        assert (await service.api.get("jobs/poll")).expect(200)["pause_note"] == "holidays"
        resumed = json.loads((await squad(database, "jobs", "resume", "poll")).stdout)
        assert resumed["paused"] is False
        answer = await service.api.get("jobs/poll", min_position=resumed["position"])
        assert answer.expect(200)["paused"] is False
        assert (await squad(database, "jobs", "resume", "poll")).exit_code == 0


async def test_dsn_may_be_given_before_or_after_the_subcommand(database: str) -> None:
    await create_squad(database)
    arguments = ["jobs", "--dsn", database, "pause", "poll"]
    paused = await asyncio.to_thread(CliRunner().invoke, cli, arguments)
    assert json.loads(paused.stdout)["paused"] is True
    arguments = ["jobs", "--dsn", "host=127.0.0.1 port=1", "resume", "poll", "--dsn", database]
    assert (await asyncio.to_thread(CliRunner().invoke, cli, arguments)).exit_code == 0


async def test_control_characters_in_answer_of_agent_are_not_printed(database: str, agents: Agents) -> None:
    agents.on("/poll", answers_bytes(b"\x1b[2Jall is well", 500))
    job = {"agent": "worker", "endpoint": "/poll", "every": "300d", "pause_on_failure": True}
    async with running_service(database, agents_url=agents.url, agents=WORKER, jobs={"poll": job}):
        await squad(database, "jobs", "run", "poll", "--wait")
        [(_, paused)] = await events_of(database, JobPaused)
        assert "\x1b" in paused.note
        for command in ("jobs", "status", "state"):
            shown = (await squad(database, command)).stdout
            assert "paused" in shown
            assert "\x1b" not in shown, command


async def test_json_output_is_empty_without_jobs(database: str) -> None:
    async with running_writer(database) as writer:
        assert (await submit(writer, do.StartOrchestrator())).refusal is None
    listed = await squad(database, "jobs", "--json")
    assert (listed.exit_code, listed.stdout) == (0, "")


async def test_jobs_are_listed_with_pause_and_last_runs(service: Service) -> None:
    await squad(service.dsn, "jobs", "run", "poll", "--wait")
    await squad(service.dsn, "jobs", "pause", "poll", "--note", "holidays")
    listed = await squad(service.dsn, "jobs", "--json")
    shown = {item["name"]: item for item in map(json.loads, listed.output.splitlines())}
    assert (shown["poll"]["paused"], shown["poll"]["pause_note"]) == (True, "holidays")
    assert shown["poll"]["resources"] is None
    assert [run["status"] for run in shown["poll"]["last_runs"]] == ["succeeded"]
    assert len(shown) == len(SEED_JOBS) + 1
    table = await squad(service.dsn, "jobs")
    assert table.exit_code == 0
    assert "email_poll" in table.output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("run", "nobody"), "no job is called 'nobody'"),
        (("pause", "nobody"), "no job is called 'nobody'"),
        (("resume", "nobody"), "no job is called 'nobody'"),
        (("run", "a\nb"), r"name is 'a\nb': must be one line of text, without control characters"),
        (("run", ""), "name is '': string should have at least 1 character"),
        (("pause", "poll", "--note", "x" * 100_000), "note is 'xxxxx"),
        (("run", "poll", "--wait", "0"), "Invalid value for '--wait'"),
        (("run", "--wait", "poll"), "Invalid value for '--wait'"),
        (("run", "poll", "--port", "1"), "No such option"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, tuple) else "",
)
async def test_errors_are_reported_in_one_line(
    database: str, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    await create_squad(database)
    ended = await end(await start(tmp_path, "jobs", *arguments, "--dsn", database))
    assert complaint in ended.error_line()
    assert len(ended.errors) < 500


async def test_refusals_are_reported_in_one_line(database: str) -> None:
    await create_squad(database, tokens=2 * 10**9)
    refused = await squad(database, "jobs", "run", "poll")
    assert str(refused.exception) == "2000000000 tokens are needed, 1000000000 remain"
    async with running_writer(database) as writer:
        await submit(writer, do.StopOrchestrator())
    stopped = await squad(database, "jobs", "run", "poll")
    assert str(stopped.exception) == "start the orchestrator to run jobs"


async def test_only_one_of_concurrent_runs_of_a_job_is_accepted(database: str) -> None:
    await create_squad(database)
    results = await asyncio.gather(*(squad(database, "jobs", "run", "poll") for _ in range(3)))
    assert sorted(result.exit_code for result in results) == [0, 1, 1]
    assert {str(result.exception) for result in results if result.exit_code} == {"poll is already running"}
