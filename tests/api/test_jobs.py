"""Jobs over HTTP: definitions, runs, pausing, and the jobs of the seed and of the settings."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from eventstore import codec
from eventstore.events import RunMissed, RunSkipped
from projections import storage
from service import commands as do
from service.job_spec import BUILT_IN_TASKS, JobSpec
from service.scheduling.scheduler import Scheduler
from tests.api.client import running_service
from tests.support.agents import Agents, answers, when
from tests.support.components import connected
from tests.support.log import whole_log
from tests.support.outage import record_before_outage
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from eventstore.connection import Connection
    from projections.projection import Table
    from tests.api.client import Api, Service

SEEDS = {
    "email_poll": "*/5 * * * *",
    "email_classify": "*/10 * * * *",
    "email_respond": "*/15 * * * *",
    "status_update": "* * * * *",
    "conflict_check": "*/2 * * * *",
    "token_monitor": "*/5 * * * *",
    "token_reset": "7 * * *",
}
RESET_HOUR = 7
WORKER = {"worker": {"role": "test"}}


@pytest.fixture
async def service(database: str, agents: Agents) -> AsyncIterator[Service]:
    """A service with fake agents, and with the seed's jobs disabled."""
    quiet = {name: {"enabled": False} for name in SEEDS}
    async with running_service(
        database, seed_jobs=True, agents_url=agents.url, agents=WORKER, jobs=quiet
    ) as running:
        yield running


async def define_job(api: Api, name: str = "poll", /, **spec: object) -> dict[str, Any]:
    body = {"agent": "worker", "endpoint": f"/{name}", "every": "300d", **spec}
    return (await api.put(f"jobs/{name}", **body)).expect(200)


async def finished_run(api: Api, run_id: str) -> dict[str, Any]:
    async def run() -> dict[str, Any] | None:
        items = (await api.get("runs")).expect(200)["items"]
        found: list[dict[str, Any]] = [item for item in items if item["id"] == run_id]
        return found[0] if found and found[0]["status"] != "running" else None

    return await eventually(run) or {}


async def test_seven_jobs_of_seed_are_defined_with_their_schedules(database: str) -> None:
    async with running_service(
        database, seed_jobs=True, reset_hour=RESET_HOUR, timezone="Europe/Berlin"
    ) as service:
        items = (await service.api.get("jobs")).expect(200)["items"]
        assert {item["name"]: item["cron"] for item in items} == {
            **SEEDS,
            "token_reset": f"0 {RESET_HOUR} * * *",
        }
        assert {item["task"] for item in items} == set(BUILT_IN_TASKS)
        assert {item["source"] for item in items} == {"default"}
        assert all(item["enabled"] and not item["paused"] for item in items)
        agents = {item["name"]: item["agent"] for item in items}
        assert agents["email_poll"] == "email_agent"
        assert agents["token_reset"] is None
        facade = (await service.api.get("/api/squad")).expect(200)["orchestrator"]["scheduledJobs"]
        assert [item["name"] for item in facade] == sorted(SEEDS)


async def test_settings_override_seed_jobs_until_they_are_removed(database: str) -> None:
    often = {"status_update": {"every": "10m"}, "own": {"task": "token_monitor", "cron": "5 4 * * mon"}}
    async with running_service(database, seed_jobs=True, jobs=often) as service:
        shown = (await service.api.get("jobs/status_update")).expect(200)
        assert (shown["every_seconds"], shown["cron"], shown["source"]) == (600, None, "settings")
        assert (await service.api.get("jobs/own")).expect(200)["source"] == "settings"
        (await service.api.put("jobs/by_hand", task="token_monitor", every="1d")).expect(200)
    async with running_service(database, seed_jobs=True) as service:
        names = {item["name"] for item in (await service.api.get("jobs")).expect(200)["items"]}
        assert names == {*SEEDS, "by_hand"}


@pytest.mark.parametrize("batched", [False, True])
async def test_job_without_time_zone_uses_that_of_the_squad(database: str, batched: bool) -> None:
    spec = {"task": "token_monitor", "cron": "0 9 * * *"}
    given = {"own": spec, "other": {**spec, "timezone": "UTC"}}
    async with running_service(database, timezone="America/New_York") as service:
        api = service.api
        if batched:
            commands = [
                {"method": "PUT", "path": f"/api/v1/jobs/{name}", "body": body}
                for name, body in given.items()
            ]
            (await api.post("batch", commands=commands)).expect(200)
        else:
            for name, body in given.items():
                (await api.put(f"jobs/{name}", **body)).expect(200)
    # The squad keeps its time zone even when the settings no longer name it.
    async with running_service(database) as service:
        (await service.api.put("jobs/third", **spec)).expect(200)
        items = (await service.api.get("jobs")).expect(200)["items"]
        zones = {item["name"]: item["timezone"] for item in items}
        assert zones == {"other": "UTC", "own": "America/New_York", "third": "America/New_York"}


async def test_job_is_shown_with_last_five_runs_and_next_five_ticks(api: Api) -> None:
    defined = await define_job(api, every="1h", overlap="allow_all")
    before = (await api.get("jobs/poll", min_position=defined["position"])).expect(200)
    assert before["last_runs"] == []
    next_ticks = [datetime.fromisoformat(tick) for tick in before["next_ticks"]]
    assert len(next_ticks) == 5
    assert {later - tick for tick, later in pairwise(next_ticks)} == {timedelta(hours=1)}
    runs = []
    for _ in range(7):
        run = (await api.post("jobs/poll/run")).expect(202)
        await finished_run(api, run["id"])
        runs.append(run["id"])
    shown = (await api.get("jobs/poll")).expect(200)
    assert [run["id"] for run in shown["last_runs"]] == runs[:1:-1]
    assert {run["status"] for run in shown["last_runs"]} == {"succeeded"}


async def test_last_runs_of_all_jobs_on_a_page_are_read_in_one_query(
    api: Api, agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    queried: list[Sequence[str]] = []
    newest = storage.newest

    async def read_and_record(
        connection: Connection, table: Table[Any, Any], column: str, values: Sequence[str], *rest: Any
    ) -> Any:
        queried.append(values)
        return await newest(connection, table, column, values, *rest)

    names = ["poll", "rest", "send"]
    for name in names:
        await define_job(api, name, overlap="allow_all")
    started: dict[str, list[str]] = {name: [] for name in names}
    for name in ["poll"] * 7 + ["send"] * 2:
        started[name].append((await api.post(f"jobs/{name}/run")).expect(202)["id"])
    monkeypatch.setattr(storage, "newest", read_and_record)
    shown = (await api.get("jobs", after="email_respond", limit=3)).expect(200)["items"]
    assert [item["name"] for item in shown] == names
    for item in shown:
        assert [run["id"] for run in item["last_runs"]] == started[item["name"]][:-6:-1]
    assert [list(values)[:3] for values in queried] == [names]


async def test_manual_run_is_answered_with_its_id(api: Api, agents: Agents) -> None:
    may_answer = asyncio.Event()
    agents.on("/poll", when(may_answer, answers({"tokens_used": 5})))
    await define_job(api, tokens=10)
    started = (await api.post("jobs/poll/run")).expect(202)
    assert (started["job"], started["status"], started["attempts"]) == ("poll", "running", 1)
    listed = (await api.get("runs", min_position=started["position"], status="running")).expect(200)[
        "items"
    ]
    assert [item["id"] for item in listed] == [started["id"]]
    may_answer.set()
    run = await finished_run(api, started["id"])
    assert (run["status"], run["manual"], run["tokens_used"], run["reason"]) == ("succeeded", True, 5, None)
    assert run["tick"] == started["tick"] <= run["started_at"] <= run["finished_at"]
    event = (await api.get(f"events/{started['position']}")).expect(200)
    assert (event["type"], event["actor"], event["data"]["manual"]) == ("run_started", "anonymous", True)


async def test_repeated_request_starts_no_second_run(api: Api, agents: Agents) -> None:
    await define_job(api, overlap="allow_all")
    key = {"Idempotency-Key": "once"}
    first = (await api.post("jobs/poll/run", key)).expect(202)
    again = (await api.post("jobs/poll/run", key)).expect(202)
    assert again == first
    await finished_run(api, first["id"])
    assert len(agents.calls) == 1


async def test_manual_run_is_refused_when_it_is_not_possible(api: Api, agents: Agents) -> None:
    may_answer = asyncio.Event()
    agents.on("/poll", when(may_answer))
    await define_job(api)
    (await api.post("jobs/nobody/run")).expect(404, "job_not_found")
    started = (await api.post("jobs/poll/run")).expect(202)
    (await api.post("jobs/poll/run")).expect(409, "job_running")
    may_answer.set()
    await finished_run(api, started["id"])
    await define_job(api, "dear", tokens=10**9)
    (await api.post("jobs/dear/run")).expect(429, "budget_exhausted")
    (await api.post("/api/squad", action="orchestrator-shutdown")).expect(200)
    (await api.post("jobs/poll/run")).expect(409, "orchestrator_stopped")


async def test_job_is_paused_with_note_and_resumed(api: Api) -> None:
    await define_job(api, every="1s")
    paused = (await api.post("jobs/poll/pause", note="the mailbox moves")).expect(200)
    assert (paused["paused"], paused["note"]) == (True, "the mailbox moves")
    shown = (await api.get("jobs/poll", min_position=paused["position"])).expect(200)
    assert (shown["paused"], shown["pause_note"]) == (True, "the mailbox moves")

    async def skipped() -> list[Any]:
        items = (await api.get("runs", job="poll", status="skipped")).expect(200)["items"]
        return [item["reason"] for item in items]

    assert (await eventually(skipped))[0] == "paused: the mailbox moves"
    (await api.post("jobs/poll/resume")).expect(200)
    await eventually(lambda: _has(api, "succeeded"))
    (await api.post("jobs/nobody/pause")).expect(404, "job_not_found")


async def _has(api: Api, status: str) -> bool:
    return bool((await api.get("runs", status=status)).expect(200)["items"])


async def test_runs_are_listed_by_job_and_status_in_pages(api: Api, agents: Agents) -> None:
    agents.on("/bad", answers({}, 500))
    for name in ("good", "bad"):
        await define_job(api, name, overlap="allow_all")
    for name in ("good", "bad", "good", "good"):
        run = (await api.post(f"jobs/{name}/run")).expect(202)
        await finished_run(api, run["id"])
    page = (await api.get("runs", limit=3)).expect(200)
    assert [item["job"] for item in page["items"]] == ["good", "bad", "good"]
    rest = (await api.get("runs", limit=3, after=page["next"])).expect(200)
    assert ([item["job"] for item in rest["items"]], rest["next"]) == (["good"], None)
    bad = (await api.get("runs", job="bad")).expect(200)["items"]
    assert [(item["status"], item["reason"]) for item in bad] == [("failed", "the agent answered 500: {}")]
    assert len((await api.get("runs", status="failed,succeeded")).expect(200)["items"]) == 4
    (await api.get("runs", status="sleeping")).expect(422, "validation_failed")


async def test_invalid_job_is_rejected_with_the_name_of_the_field(api: Api) -> None:
    for spec, field in (
        ({"every": None, "cron": "61 * * * *"}, "cron"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"endpoint": "http://elsewhere/"}, "endpoint"),
        ({"every": "sometimes"}, "every"),
        ({"retries": -1}, "retries"),
    ):
        body = {"agent": "worker", "endpoint": "/poll", "every": "1h", **spec}
        refused = (await api.put("jobs/poll", **body)).expect(422, "validation_failed")
        assert field in json.dumps(refused)
    (await api.put("jobs/poll", agent="nobody", endpoint="/x", every="1h")).expect(404, "agent_not_found")
    (await api.get("jobs/poll")).expect(404, "job_not_found")


async def test_removed_job_can_be_defined_again(api: Api) -> None:
    await define_job(api)
    (await api.delete("jobs/poll")).expect(200)
    (await api.get("jobs/poll")).expect(404, "job_not_found")
    await define_job(api)
    run = (await api.post("jobs/poll/run")).expect(202)
    assert (await finished_run(api, run["id"]))["status"] == "succeeded"


async def test_job_claims_its_resources_while_it_runs(api: Api, agents: Agents) -> None:
    may_answer = asyncio.Event()
    agents.on("/poll", when(may_answer, answers({})))
    await define_job(api, resources={"mailbox": "info"})
    started = (await api.post("jobs/poll/run")).expect(202)
    await eventually(lambda: agents.calls)
    [held] = (await api.get("operations", state="active", min_position=started["position"])).body["items"]
    assert (held["agent"], held["action"], held["resources"]) == ("worker", "poll", {"mailbox": "info"})
    assert agents.calls[0].payload["fencing_token"] == held["fencing_token"]
    claim = {"agent": "ada", "action": "sort", "resources": {"mailbox": "info"}}
    refused = (await api.post("operations", **claim)).expect(409, "conflict")
    assert refused["conflict"]["operation_id"] == held["id"]
    may_answer.set()
    run = await finished_run(api, started["id"])
    assert run["operation_id"] == held["id"]
    (await api.post("operations", **claim)).expect(201)
    refused_run = (await api.post("jobs/poll/run")).expect(409, "conflict")
    assert refused_run["conflict"]["agents"] == ["ada"]
    assert refused_run["detail"] == "'ada' has claimed mailbox info for 'sort'"
    conflict = (await api.get(f"events/{refused_run['position']}")).expect(200)
    assert (conflict["type"], conflict["data"]["agent"]) == ("conflict_detected", "worker")


async def test_tick_is_skipped_with_name_of_holder_when_resources_are_claimed(
    api: Api, agents: Agents
) -> None:
    (await api.post("operations", agent="ada", action="sort", resources={"mailbox": "info"})).expect(201)
    await define_job(api, every="1s", resources={"mailbox": "info"})

    async def skipped() -> list[dict[str, Any]]:
        return list((await api.get("runs", job="poll", status="skipped")).expect(200)["items"])

    [run, *_] = await eventually(skipped)
    assert run["reason"] == "conflict: 'ada' has claimed mailbox info for 'sort'"
    event = (await api.get(f"events/{run['position']}")).expect(200)
    cause = (await api.get(f"events/{event['caused_by']}")).expect(200)
    assert cause["type"] == "conflict_detected"
    assert not agents.calls


@pytest.mark.parametrize(
    "resources", [{}, {"mailbox": ""}, {"": "x"}, {"mailbox": 7}, ["mailbox"], {"a\nb": "x"}]
)
async def test_invalid_resources_of_job_are_rejected(api: Api, resources: object) -> None:
    body = {"agent": "worker", "endpoint": "/poll", "every": "1h", "resources": resources}
    refused = (await api.put("jobs/poll", **body)).expect(422, "validation_failed")
    assert "resources" in json.dumps(refused)


async def jobs_after_start(database: str, **settings: Any) -> set[str]:
    """The names of the jobs that exist after a service has started."""
    async with running_service(database, **{"seed_jobs": True, **settings}) as service:
        head = await service.head()
        found = (await service.api.get("jobs", min_position=head)).expect(200)
        return {item["name"] for item in found["items"]}


async def test_removed_seed_job_stays_removed_until_settings_name_it(database: str) -> None:
    async with running_service(database, seed_jobs=True) as service:
        (await service.api.delete("jobs/email_poll")).expect(200)
        (await service.api.get("jobs/email_poll")).expect(404, "job_not_found")
    others = SEEDS.keys() - {"email_poll"}
    assert await jobs_after_start(database) == others
    assert await jobs_after_start(database) == others
    assert await jobs_after_start(database, jobs={"email_poll": {}}) == SEEDS.keys()
    assert await jobs_after_start(database) == SEEDS.keys()


async def test_switching_seed_jobs_off_and_on_restores_all_of_them(database: str) -> None:
    async with running_service(database, seed_jobs=True) as service:
        (await service.api.delete("jobs/email_poll")).expect(200)
        (await service.api.put("jobs/token_reset", task="token_reset", cron="30 2 * * *")).expect(200)
    assert await jobs_after_start(database, seed_jobs=False) == {"token_reset"}
    async with running_service(database, seed_jobs=False) as service:
        # Another start with the seed's jobs switched off appends nothing.
        head = await service.head()
    assert await jobs_after_start(database, seed_jobs=False) == {"token_reset"}
    async with running_service(database, seed_jobs=False) as service:
        assert await service.head() == head
    assert await jobs_after_start(database) == SEEDS.keys()


FAST = JobSpec(task="token_monitor", every=0.1, catch_up_seconds=1.0)


async def ticks_that_did_not_run(dsn: str) -> list[datetime]:
    """The ticks that were recorded as missed or skipped, in the order of the log."""
    async with connected(dsn) as connection:
        log = await whole_log(connection)
    events = [codec.decode(item) for item in log if item.type in (RunMissed.type, RunSkipped.type)]
    return [event.tick for event in events if isinstance(event, RunMissed | RunSkipped)]


async def test_job_removed_by_settings_leaves_no_tick_without_outcome(database: str) -> None:
    since = await record_before_outage(
        database,
        do.SetPolicy(),
        do.DefineJob(name="fast", source="settings", definition=FAST.definition()),
        away=timedelta(minutes=3),
    )
    assert await jobs_after_start(database, seed_jobs=False) == set()
    ticks = await ticks_that_did_not_run(database)
    assert timedelta(0) < ticks[0] - since <= timedelta(seconds=0.1)
    assert {later - tick for tick, later in pairwise(ticks)} == {timedelta(seconds=0.1)}
    async with connected(database) as connection:
        [removed] = [item for item in await whole_log(connection) if item.type == "job_removed"]
    assert timedelta(0) <= removed.recorded_at - ticks[-1] < timedelta(seconds=0.1)


async def test_job_that_is_behind_is_removed_after_its_missed_ticks_are_recorded(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await record_before_outage(
        database,
        do.SetPolicy(),
        do.DefineJob(name="fast", source="api", definition=FAST.definition()),
        away=timedelta(minutes=3),
    )

    async def claim_nothing(_: Scheduler) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Scheduler, "run", claim_nothing)
    async with running_service(database) as service:
        api = service.api
        changed = {"task": "token_monitor", "every": "1h"}
        behind = await api.put("jobs/fast", **changed)
        assert behind.expect(409, "job_behind")["retry_after_seconds"] == 1
        assert behind.headers["Retry-After"] == "1"
        refusals = 1
        while (answer := await api.delete("jobs/fast")).status != 200:
            answer.expect(409, "job_behind")
            refusals += 1
        # Three minutes of ten ticks a second, 500 at a time.
        assert refusals == 3
    ticks = await ticks_that_did_not_run(database)
    assert {later - tick for tick, later in pairwise(ticks)} == {timedelta(seconds=0.1)}
