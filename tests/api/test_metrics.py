"""Metrics: each one is there, and changes when it should."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, get_args

from prometheus_client.parser import text_string_to_metric_families

from eventstore import codec
from projections import PROJECTIONS
from service import commands as do
from service.clock import DatabaseClock
from service.http.problems import KINDS
from service.http.routes import ROUTES
from service.version import VERSION
from service.writing.stats import JOB_OUTCOMES
from tests.api.client import running_service
from tests.support.agents import answers, running_agents
from tests.support.components import connected, terminate_backends
from tests.support.keys import make_key
from tests.support.log import LogWriter, agent_registered
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

    from eventstore.connection import Connection
    from tests.api.client import Api, Service

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
_COMPARED_METRICS = re.compile(
    r"(squad_\w+)[^()]*? (?:and|unless|-|/) (?:ignoring \((\w+)\) )?(?:rate\()?(squad_\w+)"
)
MESSAGE = {"method": "POST", "path": "/api/v1/messages", "body": {"from_agent": "ada", "message": "m"}}


class Samples(dict[str, float]):
    """The samples by name and label values, as in `name{value,value}`."""

    def total(self, name: str) -> float:
        """The sum over all values of the labels."""
        return sum(value for key, value in self.items() if key.partition("{")[0] == name)


async def scrape(api: Api) -> Samples:
    text = (await api.get("/metrics")).body
    return Samples(
        (_named(sample.name, sample.labels.values()), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    )


def _named(name: str, labels: Iterable[str]) -> str:
    values = ",".join(labels)
    return f"{name}{{{values}}}" if values else name


async def test_requests_and_commands_are_counted_in_prometheus_text_format(service: Service) -> None:
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
    seen = await scrape(api)
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


async def test_batches_and_their_commands_and_events_are_counted(service: Service) -> None:
    before, head = await scrape(service.api), await service.head()
    assert before.total("squad_events_total") == before["squad_batch_events_sum"] == head
    (await service.api.post("batch", commands=[MESSAGE] * 100)).expect(200)
    seen = await scrape(service.api)
    assert seen["squad_batch_commands_sum"] - before["squad_batch_commands_sum"] >= 100
    assert seen["squad_events_total{message_sent}"] == 100
    assert seen["squad_batch_events_sum"] == await service.head()
    batches = seen["squad_batch_commands_count"]
    assert batches == seen["squad_commit_seconds_count"] <= seen["squad_lock_wait_seconds_count"]
    assert seen["squad_batch_commands_bucket{1000.0}"] == batches
    assert seen["squad_batch_commands_bucket{20.0}"] < batches
    assert 0 < seen["squad_commit_seconds_sum"] < 10


async def test_lock_wait_and_waiting_commands_are_measured(service: Service) -> None:
    before = await scrape(service.api)
    async with connected(service.dsn) as holder:
        await holder.execute("BEGIN")
        await holder.execute("SELECT lock_log()")
        requests = [
            asyncio.create_task(service.api.post("batch", commands=[MESSAGE] * 1_000)) for _ in range(3)
        ]

        async def some_wait() -> bool:
            seen = await scrape(service.api)
            return seen["squad_waiting_commands"] > 0 and seen["squad_waiting_bytes"] > 0

        await eventually(some_wait)
        await eventually(lambda: held_up(service.api))
        await eventually(lambda: _is_awaited(holder))
        began = monotonic()
        await eventually(lambda: monotonic() - began > 1)
        await holder.execute("ROLLBACK")
    for answer in await asyncio.gather(*requests):
        answer.expect(200)
    seen = await scrape(service.api)
    assert seen["squad_lock_wait_seconds_sum"] - before["squad_lock_wait_seconds_sum"] > 1
    assert seen["squad_writer_held_up"] == seen["squad_waiting_commands"] == 0


async def held_up(api: Api) -> bool:
    return (await scrape(api))["squad_writer_held_up"] == 1


async def _is_awaited(holder: Connection) -> bool:
    """Whether a session waits for a lock, such as the one that this connection holds."""
    cursor = await holder.execute("SELECT FROM pg_locks WHERE NOT granted")
    return bool(cursor.rowcount)


async def test_lock_wait_is_measured_when_others_write(service: Service) -> None:
    before = await scrape(service.api)
    async with connected(service.dsn) as other:
        log_writer = LogWriter(other)
        await log_writer.catch_up()
        await log_writer.append(agent_registered("somebody else"))
        (await service.api.post("messages", from_agent="ada", message="m")).expect(201)
    seen = await scrape(service.api)
    assert seen["squad_lock_wait_seconds_count"] > before["squad_lock_wait_seconds_count"]
    assert seen["squad_lock_wait_seconds_sum"] - before["squad_lock_wait_seconds_sum"] < 1


async def test_lag_of_projections_is_measured(service: Service) -> None:
    async with connected(service.dsn) as holder:
        await holder.execute("BEGIN")
        await holder.execute("LOCK TABLE squad_messages IN ACCESS EXCLUSIVE MODE")
        await service.api.post("messages", from_agent="ada", message="m")

        async def behind() -> float:
            seen = await scrape(service.api)
            lag = seen["squad_projection_lag_seconds{messages}"]
            return lag if seen["squad_projection_lag_events{messages}"] > 0 and lag > 0 else 0

        first = await eventually(behind)
        await eventually(lambda: behind_more_than(service.api, first + 0.2))
        await holder.execute("ROLLBACK")

    async def caught_up() -> bool:
        seen = await scrape(service.api)
        lags = (seen.total("squad_projection_lag_events"), seen.total("squad_projection_lag_seconds"))
        return seen["squad_projector_active"] == 1 and lags == (0, 0)

    await eventually(caught_up)
    assert (await scrape(service.api))["squad_projections_stopped"] == 0


async def behind_more_than(api: Api, seconds: float) -> bool:
    return (await scrape(api))["squad_projection_lag_seconds{messages}"] > seconds


async def test_stopped_projection_is_counted(service: Service) -> None:
    async with connected(service.dsn) as connection:
        await connection.execute("ALTER TABLE squad_messages ADD CHECK (message <> 'poison')")
    await service.api.post("messages", from_agent="ada", message="poison")

    async def counted() -> bool:
        return (await scrape(service.api))["squad_projections_stopped"] == 1

    await eventually(counted)


async def test_heartbeats_and_reconnects_of_listener_are_counted(service: Service) -> None:
    async def hearing() -> Samples | None:
        seen = await scrape(service.api)
        return seen if seen["squad_listener_hearing"] and seen["squad_listener_heartbeats_total"] else None

    first = await eventually(hearing)
    assert first is not None
    async with connected(service.dsn) as connection:
        await terminate_backends(connection, "squad listener")

    async def hearing_again() -> bool:
        seen = await hearing()
        return (
            seen is not None
            and seen["squad_listener_reconnects_total"] > first["squad_listener_reconnects_total"]
            and seen["squad_listener_heartbeats_total"] > first["squad_listener_heartbeats_total"]
        )

    await eventually(hearing_again)


async def test_events_found_only_by_polling_are_counted(service: Service) -> None:
    service.tasks[0].cancel()

    async def not_hearing() -> bool:
        return (await scrape(service.api))["squad_listener_hearing"] == 0

    await eventually(not_hearing)
    async with connected(service.dsn) as connection:
        log_writer = LogWriter(connection)
        await log_writer.catch_up()

        async def both_rescued() -> bool:
            # Repeated, because an append of the service in between would tell its writer of the event.
            await log_writer.catch_up()
            await log_writer.append(agent_registered(f"agent {log_writer.head.position}"))
            seen = await scrape(service.api)
            return all(seen[f"squad_poll_rescues_total{{{part}}}"] > 0 for part in ("writer", "projector"))

        await eventually(both_rescued)


async def test_outcomes_of_runs_are_counted(database: str) -> None:
    async with (
        running_agents() as agents,
        running_service(database, agents_url=agents.url, agents={"worker": {"role": "test"}}) as service,
    ):
        seen = await scrape(service.api)
        assert {f"squad_job_runs_total{{{outcome}}}" for outcome in JOB_OUTCOMES} <= seen.keys()
        assert seen.total("squad_job_runs_total") == 0
        agents.on("/bad", answers({}, status=400))
        for name in ("good", "bad"):
            spec = {"agent": "worker", "endpoint": f"/{name}", "every": "300d", "retries": 0}
            (await service.api.put(f"jobs/{name}", **spec)).expect(200)
            (await service.api.post(f"jobs/{name}/run")).expect(202)

        async def counted() -> bool:
            seen = await scrape(service.api)
            runs = [seen[f"squad_job_runs_total{{{outcome}}}"] for outcome in ("succeeded", "failed")]
            return runs == [1, 1] and seen.get("squad_commands_total{accepted,EndAttempt}") == 2

        await eventually(counted)


async def test_budget_is_exported(service: Service) -> None:
    await service.api.put("budget", daily_tokens=1_000)
    await service.api.post("budget/usage", agent="ada", tokens=100)
    await service.api.post("budget/reservations", agent="ada", tokens=30)
    seen = await scrape(service.api)
    shown = [seen[f"squad_budget_{what}_tokens"] for what in ("total", "used", "reserved", "remaining")]
    assert shown == [1_000, 100, 30, 870]


async def test_standstill_is_measured_when_clock_is_behind_the_log(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.api.post("messages", from_agent="ada", message="m")
    assert (await scrape(service.api))["squad_standstill_seconds"] == 0
    monkeypatch.setattr(DatabaseClock, "now", lambda _: datetime.now(UTC) - timedelta(hours=1))
    assert 3_500 < (await scrape(service.api))["squad_standstill_seconds"] < 3_700


async def test_open_streams_are_counted(service: Service) -> None:
    async with service.api.session.get("/api/v1/events/stream") as response:
        assert response.status == 200
        assert (await scrape(service.api))["squad_open_streams"] == 1

    async def closed() -> bool:
        return (await scrape(service.api))["squad_open_streams"] == 0

    # The service notices with the next event that it sends.
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
    await eventually(lambda: is_active_projector(api))
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
        "version": {VERSION},
    }
    assert {name for name, _ in found} == known.keys()
    for name, value in found:
        assert value in known[name], (name, value)


async def test_documented_alerts_use_existing_metrics_and_can_fire(database: str) -> None:
    key = await make_key(database, expires_days=1)
    labels: dict[str, set[str]] = {}
    async with running_service(database) as service:
        api = service.api.with_key(key.text)
        await api.post("messages", from_agent="ada", message="m")
        await eventually(lambda: is_active_projector(api))
        for family in text_string_to_metric_families((await api.get("/metrics")).body):
            for sample in family.samples:
                labels.setdefault(sample.name, set()).update(sample.labels)
    alerts = re.findall(r"^    expr: (.+)$", OPERATIONS.read_text(), re.MULTILINE)
    assert len(alerts) == 13
    for alert in alerts:
        for name, matched in re.findall(r"(squad_\w+)(?:\{(\w+)=)?", alert):
            assert labels[name] >= {*filter(None, [matched])}, alert
        # Metrics that are compared have the same labels, apart from ignored ones.
        for left, ignored, right in _COMPARED_METRICS.findall(alert):
            assert labels[left] - {ignored} == labels[right] - {ignored}, alert
        # increase() and rate() do not see a series that begins above zero.
        for counter in re.findall(r"sum\((?:increase|rate)\((squad_\w+\{.+?\})", alert):
            assert f"{counter} offset" in alert, alert


async def is_active_projector(api: Api) -> bool:
    return (await scrape(api))["squad_projector_active"] == 1
