"""`squad orchestrator`: show, start and shut down the orchestrator, with and without a running service."""

from __future__ import annotations

import asyncio
import getpass
import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from eventstore import codec
from eventstore.events import OrchestratorStarted, OrchestratorStopped
from service import commands as do
from service.cli import cli
from service.job_spec import JobSpec
from tests.api.client import running_service
from tests.support.command import end, start
from tests.support.components import connected, running_writer, submit
from tests.support.log import whole_log
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

    from eventstore.recorded import Recorded
    from tests.support.agents import Agents

ME = f"cli:{getpass.getuser()}"


@pytest.fixture(autouse=True)
def _working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run where the developer's squad.toml is not found."""
    monkeypatch.chdir(tmp_path)


async def create_squad(dsn: str) -> None:
    """Create a squad with the job `poll`, without a running service."""
    poll = JobSpec.model_validate({"agent": "worker", "endpoint": "/poll", "every": "300d"})
    async with running_writer(dsn) as writer:
        for command in (
            do.StartOrchestrator(),
            do.RegisterAgent(name="worker", role="test"),
            do.DefineJob(name="poll", source="api", definition=poll.definition()),
        ):
            assert (await submit(writer, command)).refusal is None


async def squad(dsn: str, *arguments: str) -> Result:
    """Run the `squad` command in this process."""
    return await asyncio.to_thread(CliRunner().invoke, cli, [*arguments, "--dsn", dsn])


async def answer(dsn: str, *arguments: str) -> dict[str, Any]:
    """Run a command that succeeds and prints one JSON object."""
    ended = await squad(dsn, *arguments)
    assert ended.exit_code == 0, (ended.output, ended.exception)
    return dict(json.loads(ended.stdout))


async def changes(dsn: str) -> list[tuple[Recorded, Any]]:
    """The starts and stops of the orchestrator, each with its row of the log."""
    async with connected(dsn) as connection:
        log = await whole_log(connection)
    kinds = (OrchestratorStarted.type, OrchestratorStopped.type)
    return [(item, codec.decode(item)) for item in log if item.type in kinds]


async def test_orchestrator_is_shown_as_never_started_when_only_a_key_was_created(database: str) -> None:
    await squad(database, "keys", "create", "--scope", "operator")
    assert (await squad(database, "orchestrator")).stdout == "never started\n"
    assert await answer(database, "orchestrator", "--json") == {
        "running": False,
        "since": None,
        "actor": None,
        "position": None,
    }


async def test_orchestrator_is_shown_with_time_and_user_when_it_is_stopped_and_started(
    database: str,
) -> None:
    await create_squad(database)
    for subcommand, kind, running, words in (
        ("stop", OrchestratorStopped, False, "shut down"),
        ("start", OrchestratorStarted, True, "running"),
    ):
        changed = await answer(database, "orchestrator", subcommand)
        recorded, event = (await changes(database))[-1]
        assert (type(event), recorded.actor) == (kind, ME)
        assert (changed["running"], changed["position"]) == (running, recorded.position)
        shown = (await squad(database, "orchestrator")).stdout
        moment = f"{recorded.recorded_at:%Y-%m-%d %H:%M:%S}Z"
        assert shown == f"{words} since {moment}, by {ME} (position {recorded.position})\n"
        as_json = await answer(database, "orchestrator", "--json")
        assert (as_json["running"], as_json["actor"], as_json["position"]) == (
            running,
            ME,
            recorded.position,
        )


async def test_stop_and_start_record_nothing_when_repeated(database: str) -> None:
    await create_squad(database)
    for subcommand in ("stop", "start"):
        first = await answer(database, "orchestrator", subcommand)
        recorded = await changes(database)
        assert (await answer(database, "orchestrator", subcommand))["position"] == first["position"]
        assert await changes(database) == recorded


async def test_running_service_follows_when_orchestrator_is_stopped_and_started(
    database: str, agents: Agents
) -> None:
    await create_squad(database)
    async with running_service(database, agents_url=agents.url) as service:
        await answer(database, "orchestrator", "stop")
        refused = await service.api.post("jobs/poll/run")
        assert refused.expect(409)["detail"] == "start the orchestrator to run jobs"
        await answer(database, "orchestrator", "start")
        (await service.api.post("jobs/poll/run")).expect(202)
        await eventually(lambda: agents.calls)


async def test_copy_of_a_squad_calls_no_agent_when_stopped_before_its_first_service_starts(
    database: str, agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_squad(database)
    run = await answer(database, "jobs", "run", "poll")
    assert (await squad(database, "export", "squad.jsonl")).exit_code == 0

    monkeypatch.setenv("SQUAD_SCHEMA", "copy")
    assert (await squad(database, "import", "squad.jsonl")).exit_code == 0
    stopped = await answer(database, "orchestrator", "stop")
    async with running_service(database, agents_url=agents.url) as service:

        async def ended() -> Any:
            return (await service.api.get(f"runs/{run['id']}")).body.get("reason")

        reason = await eventually(ended, describe="the copy ends the run that it has from the squad")
        assert reason == "the orchestrator was shut down before attempt 1 of 1"
        assert not agents.calls
        shown = await answer(database, "orchestrator", "--json")
        assert (shown["running"], shown["position"]) == (False, stopped["position"])

        await answer(database, "orchestrator", "start")
        assert (await answer(database, "jobs", "run", "poll", "--wait", "20"))["status"] == "succeeded"
        assert len(agents.calls) == 1


async def test_dsn_may_be_given_before_or_after_the_subcommand(database: str) -> None:
    await create_squad(database)
    arguments = ["orchestrator", "--dsn", database, "stop"]
    stopped = await asyncio.to_thread(CliRunner().invoke, cli, arguments)
    assert json.loads(stopped.stdout)["running"] is False
    arguments = ["orchestrator", "--dsn", "host=127.0.0.1 port=1", "start", "--dsn", database]
    assert (await asyncio.to_thread(CliRunner().invoke, cli, arguments)).exit_code == 0


async def test_first_service_leaves_orchestrator_shut_down_when_it_was_stopped_in_a_new_squad(
    database: str,
) -> None:
    await squad(database, "keys", "create", "--scope", "operator")
    stopped = await answer(database, "orchestrator", "stop")
    async with running_service(database):
        shown = await answer(database, "orchestrator", "--json")
        assert (shown["running"], shown["position"]) == (False, stopped["position"])
    assert (await squad(database, "verify")).exit_code == 0


async def test_stop_fails_in_one_line_when_there_is_no_squad(tmp_path: Path) -> None:
    ended = await end(await start(tmp_path, "orchestrator", "stop", "--data", "nowhere"))
    assert "there is no squad in nowhere" in ended.error_line()
