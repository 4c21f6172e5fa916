"""What is counted and measured: every figure is there, and moves when it should."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from prometheus_client.parser import text_string_to_metric_families

from eventstore import codec
from projections import PROJECTIONS
from service import commands as do
from service.clock import DatabaseClock
from service.http.problems import KINDS
from service.http.routes import ROUTES
from service.writing.stats import JOB_OUTCOMES
from tests.api.client import running_service
from tests.support.agents import answers, running_agents
from tests.support.log import LogWriter, joined
from tests.support.parts import connected, terminate
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

    from tests.api.client import Api, Service

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
_SET_AGAINST_EACH_OTHER = re.compile(
    r"(squad_\w+)[^()]*? (?:and|unless|-) (?:ignoring \((\w+)\) )?(?:rate\()?(squad_\w+)"
)
MESSAGE = {"method": "POST", "path": "/api/v1/messages", "body": {"from_agent": "ada", "message": "m"}}


class Samples(dict[str, float]):
    """The samples by name, with the values of their labels in the order of these."""

    def total(self, name: str) -> float:
        """The sum over all labels."""
        return sum(value for key, value in self.items() if key.partition("{")[0] == name)


async def look(api: Api) -> Samples:
    text = (await api.get("/metrics")).body
    return Samples(
        (_named(sample.name, sample.labels.values()), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    )


def _named(name: str, labels: Iterable[str]) -> str:
    values = ",".join(labels)
    return f"{name}{{{values}}}" if values else name


async def test_they_are_in_prometheus_text_format_and_count(service: Service) -> None:
    api = service.api
    for _ in range(2):
        await api.post("messages", {"Idempotency-Key": "k"}, from_agent="ada", message="hello")
    await api.post("budget/reservations", agent="ada", tokens=10**9)
    await api.post("messages", wrong="field")
    await api.get("/no/such/path")
    async with api.session.delete("/api/v1/messages") as response:
        assert response.status == 405
    async with api.session.get("/api/v1/messages", headers={"X-Large": "a" * 10_000}) as response:
        assert response.status == 400
    seen = await look(api)
    assert seen["squad_commands_total{accepted,SendMessage}"] == 1
    assert seen["squad_commands_total{repeated,SendMessage}"] == 1
    assert seen["squad_commands_total{budget_exhausted,ReserveTokens}"] == 1
    assert seen["squad_http_requests_total{/api/v1/messages,201}"] == 2
    assert seen["squad_http_requests_total{/api/v1/messages,422}"] == 1
    for status in (400, 404, 405):
        assert seen[f"squad_http_requests_total{{unmatched,{status}}}"] == 1
    assert seen["squad_head_position"] == await service.head()
    assert seen["squad_writer_ready"] == 1
    assert seen["squad_writer_held_up"] == 0
    assert seen["squad_waiting_commands"] == seen["squad_waiting_bytes"] == 0
    assert seen["squad_open_streams"] == 0
    assert seen["process_resident_memory_bytes"] > 10_000_000


async def test_batches_and_what_is_in_them(service: Service) -> None:
    before, head = await look(service.api), await service.head()
    assert before.total("squad_events_total") == before["squad_batch_events_sum"] == head
    (await service.api.post("batch", commands=[MESSAGE] * 100)).expect(200)
    seen = await look(service.api)
    assert seen["squad_batch_commands_sum"] - before["squad_batch_commands_sum"] >= 100
    assert seen["squad_events_total{message_sent}"] == 100
    assert seen["squad_batch_events_sum"] == await service.head()
    batches = seen["squad_batch_commands_count"]
    assert batches == seen["squad_commit_seconds_count"] <= seen["squad_lock_wait_seconds_count"]
    assert seen["squad_batch_commands_bucket{1000.0}"] == batches
    assert seen["squad_batch_commands_bucket{20.0}"] < batches
    assert 0 < seen["squad_commit_seconds_sum"] < 10


async def test_waits_for_the_lock_and_who_waits_behind(service: Service) -> None:
    before = await look(service.api)
    async with connected(service.dsn) as holder:
        await holder.execute("BEGIN")
        await holder.execute("SELECT lock_log()")
        asking = [
            asyncio.create_task(service.api.post("batch", commands=[MESSAGE] * 1_000)) for _ in range(3)
        ]

        async def some_wait() -> bool:
            seen = await look(service.api)
            return seen["squad_waiting_commands"] > 0 and seen["squad_waiting_bytes"] > 0

        await eventually(some_wait)
        await eventually(lambda: held_up(service.api))
        await holder.execute("ROLLBACK")
    for answer in await asyncio.gather(*asking):
        answer.expect(200)
    seen = await look(service.api)
    assert seen["squad_lock_wait_seconds_sum"] - before["squad_lock_wait_seconds_sum"] > 2
    assert seen["squad_writer_held_up"] == seen["squad_waiting_commands"] == 0


async def held_up(api: Api) -> bool:
    return (await look(api))["squad_writer_held_up"] == 1


async def test_the_lock_is_waited_for_also_where_others_write(service: Service) -> None:
    before = await look(service.api)
    async with connected(service.dsn) as other:
        scribe = LogWriter(other)
        await scribe.catch_up()
        await scribe.append(joined("somebody else"))
        (await service.api.post("messages", from_agent="ada", message="m")).expect(201)
    seen = await look(service.api)
    assert seen["squad_lock_wait_seconds_count"] > before["squad_lock_wait_seconds_count"]
    assert seen["squad_lock_wait_seconds_sum"] - before["squad_lock_wait_seconds_sum"] < 1


async def test_how_far_the_tables_are_behind(service: Service) -> None:
    async with connected(service.dsn) as holder:
        await holder.execute("BEGIN")
        await holder.execute("LOCK TABLE squad_messages IN ACCESS EXCLUSIVE MODE")
        await service.api.post("messages", from_agent="ada", message="m")

        async def behind() -> float:
            seen = await look(service.api)
            lag = seen["squad_projection_lag_seconds{messages}"]
            return lag if seen["squad_projection_lag_events{messages}"] > 0 and lag > 0 else 0

        first = await eventually(behind)
        await eventually(lambda: behind_more_than(service.api, first + 0.2))
        await holder.execute("ROLLBACK")

    async def caught_up() -> bool:
        seen = await look(service.api)
        lags = (seen.total("squad_projection_lag_events"), seen.total("squad_projection_lag_seconds"))
        return seen["squad_projector_active"] == 1 and lags == (0, 0)

    await eventually(caught_up)
    assert (await look(service.api))["squad_projections_stopped"] == 0


async def behind_more_than(api: Api, seconds: float) -> bool:
    return (await look(api))["squad_projection_lag_seconds{messages}"] > seconds


async def test_a_projection_that_stopped_is_counted(service: Service) -> None:
    async with connected(service.dsn) as connection:
        await connection.execute("ALTER TABLE squad_messages ADD CHECK (message <> 'poison')")
    await service.api.post("messages", from_agent="ada", message="poison")

    async def counted() -> bool:
        return (await look(service.api))["squad_projections_stopped"] == 1

    await eventually(counted)


async def test_the_listeners_heartbeats_and_losses(service: Service) -> None:
    async def hears() -> Samples | None:
        seen = await look(service.api)
        return seen if seen["squad_listener_hearing"] and seen["squad_listener_heartbeats_total"] else None

    first = await eventually(hears)
    assert first is not None
    async with connected(service.dsn) as connection:
        await terminate(connection, "squad listener")

    async def hears_again() -> bool:
        seen = await hears()
        return (
            seen is not None
            and seen["squad_listener_reconnects_total"] > first["squad_listener_reconnects_total"]
            and seen["squad_listener_heartbeats_total"] > first["squad_listener_heartbeats_total"]
        )

    await eventually(hears_again)


async def test_what_only_a_look_has_found(service: Service) -> None:
    service.tasks[0].cancel()

    async def deaf() -> bool:
        return (await look(service.api))["squad_listener_hearing"] == 0

    await eventually(deaf)
    async with connected(service.dsn) as connection:
        scribe = LogWriter(connection)
        await scribe.catch_up()

        async def both_are_rescued() -> bool:
            # One of ours that comes between would tell the writer of it.
            await scribe.catch_up()
            await scribe.append(joined(f"agent {scribe.head.position}"))
            seen = await look(service.api)
            return all(seen[f"squad_poll_rescues_total{{{part}}}"] > 0 for part in ("writer", "projector"))

        await eventually(both_are_rescued)


async def test_ends_of_runs(database: str) -> None:
    async with (
        running_agents() as agents,
        running_service(database, agents_url=agents.url, agents={"worker": {"role": "test"}}) as service,
    ):
        seen = await look(service.api)
        assert {f"squad_job_runs_total{{{outcome}}}" for outcome in JOB_OUTCOMES} <= seen.keys()
        assert seen.total("squad_job_runs_total") == 0
        agents.on("/bad", answers({}, status=400))
        for name in ("good", "bad"):
            spec = {"agent": "worker", "endpoint": f"/{name}", "every": "300d", "retries": 0}
            (await service.api.put(f"jobs/{name}", **spec)).expect(200)
            (await service.api.post(f"jobs/{name}/run")).expect(202)

        async def counted() -> bool:
            seen = await look(service.api)
            runs = [seen[f"squad_job_runs_total{{{outcome}}}"] for outcome in ("succeeded", "failed")]
            return runs == [1, 1] and seen.get("squad_commands_total{accepted,EndAttempt}") == 2

        await eventually(counted)


async def test_the_budget(service: Service) -> None:
    await service.api.put("budget", daily_tokens=1_000)
    await service.api.post("budget/usage", agent="ada", tokens=100)
    await service.api.post("budget/reservations", agent="ada", tokens=30)
    seen = await look(service.api)
    shown = [seen[f"squad_budget_{what}_tokens"] for what in ("total", "used", "reserved", "remaining")]
    assert shown == [1_000, 100, 30, 870]


async def test_how_long_time_stands_still(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    await service.api.post("messages", from_agent="ada", message="m")
    assert (await look(service.api))["squad_standstill_seconds"] == 0
    monkeypatch.setattr(DatabaseClock, "now", lambda _: datetime.now(UTC) - timedelta(hours=1))
    assert 3_500 < (await look(service.api))["squad_standstill_seconds"] < 3_700


async def test_open_streams(service: Service) -> None:
    async with service.api.session.get("/api/v1/events/stream") as response:
        assert response.status == 200
        assert (await look(service.api))["squad_open_streams"] == 1

    async def closed() -> bool:
        return (await look(service.api))["squad_open_streams"] == 0

    # It notices with the next thing that it sends.
    await service.api.post("messages", from_agent="ada", message="m")
    await eventually(closed)


async def test_labels_have_a_bounded_set_of_values(service: Service) -> None:
    api = service.api
    for number in range(5):
        await api.post("messages", from_agent=f"agent {number}", message="m")
        await api.post("operations", agent=f"a{number}", action="x", resources={"email": "one"})
        await api.put(f"jobs/job{number}", agent=f"agent {number}", endpoint="/x", every="300d")
        await api.get(f"tasks/{number}")
        await api.get(f"events/{number}")
        await api.get(f"/strange/{number}")
        await api.delete(f"strange/{number}")
        await api.post("tasks", **{f"field {number}": 1})
    await eventually(lambda: projects(api))
    text = (await api.get("/metrics")).body
    found = {
        (name, value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for name, value in sample.labels.items()
        if family.name.startswith("squad_") and name != "le"
    }
    commands = {kind.__name__ for kind in get_args(do.AnyCommand)}
    outcomes = {"accepted", "repeated", "failed", *KINDS, *JOB_OUTCOMES}
    known = {
        "type": commands | codec.EVENT_TYPES.keys(),
        "outcome": outcomes,
        "route": {"unmatched", *(route.plain_path for route in ROUTES)},
        "status": {str(status) for status in range(100, 600)},
        "part": {"writer", "projector"},
        "projection": {projection.name for projection in PROJECTIONS},
    }
    assert {name for name, _ in found} == known.keys()
    for name, value in found:
        assert value in known[name], (name, value)


async def test_the_alerts_that_are_proposed_speak_of_what_is_there_and_can_fire(service: Service) -> None:
    await service.api.post("messages", from_agent="ada", message="m")
    await eventually(lambda: projects(service.api))
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families((await service.api.get("/metrics")).body):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    alerts = re.findall(r"^    expr: (.+)$", OPERATIONS.read_text(), re.MULTILINE)
    assert len(alerts) == 7
    for alert in alerts:
        for name, matched in re.findall(r"(squad_\w+)(?:\{(\w+)=)?", alert):
            assert labels[name] >= {*filter(None, [matched])}, alert
        # What is set against each other has the same labels, but for those that are left out.
        for left, ignored, right in _SET_AGAINST_EACH_OTHER.findall(alert):
            assert labels[left] - {ignored} == labels[right] - {ignored}, alert


async def projects(api: Api) -> bool:
    return (await look(api))["squad_projector_active"] == 1
