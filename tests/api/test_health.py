"""The probes for liveness and readiness, `/healthz` and `/readyz`."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from psycopg import sql
from psycopg.conninfo import make_conninfo

from service import background, reading
from service.app import READ_CONNECTIONS
from service.http import health
from tests.api.client import Api, Service, running_service, unreachable
from tests.support.components import connected
from tests.support.proxy import Proxy
from tests.support.wait import eventually

if TYPE_CHECKING:
    import pytest

    from tests.support.postgres import PostgresServer


async def _failing_checks(api: Api) -> set[str]:
    """The names of the failing checks; empty if the service is ready."""
    answer = await api.get("/readyz")
    failing = {name for name, check in answer.body["checks"].items() if not check["ok"]}
    assert answer.status == (503 if failing else 200)
    assert answer.body["ready"] == (not failing)
    return failing


async def test_running_service_is_alive_and_ready(api: Api) -> None:
    assert (await api.get("/healthz")).expect(200) == {"status": "alive"}

    async def ready() -> bool:
        return not await _failing_checks(api)

    await eventually(ready)


async def test_service_is_ready_whatever_format_the_database_has_for_intervals(database: str) -> None:
    async with connected(database) as connection:
        statement = "ALTER DATABASE {} SET IntervalStyle = 'iso_8601'"
        name = sql.Identifier(connection.info.dbname)
        await connection.execute(sql.SQL(statement).format(name))
    async with running_service(database) as service:

        async def ready() -> bool:
            return not await _failing_checks(service.api)

        await eventually(ready)


async def test_service_stays_ready_while_the_log_grows(service: Service) -> None:
    async def ready() -> bool:
        return not await _failing_checks(service.api)

    await eventually(ready)
    async with connected(service.dsn) as connection:
        await connection.execute("UPDATE projections SET updated_at = updated_at - interval '1 hour'")
    for number in range(20):
        await service.api.post("messages", from_agent="ada", message=f"m{number}")
        assert await _failing_checks(service.api) == set()


async def test_dead_listener_is_named(service: Service) -> None:
    service.tasks[0].cancel()

    async def named() -> bool:
        return await _failing_checks(service.api) == {"listener"}

    await eventually(named)
    (await service.api.post("messages", from_agent="ada", message="still works")).expect(201)


async def test_failed_projection_is_named_and_the_others_go_on(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "STRICT_WAIT_SECONDS", 0.2)
    async with connected(service.dsn) as connection:
        await connection.execute("ALTER TABLE squad_messages ADD CHECK (message <> 'poison')")
    poison = (await service.api.post("messages", from_agent="ada", message="poison")).expect(201)

    async def named() -> bool:
        return await _failing_checks(service.api) == {"projections"}

    await eventually(named)
    projections = (await service.api.get("/readyz")).body["checks"]["projections"]["by_name"]
    assert projections["messages"]["failed_position"] == poison["position"]
    assert "violates check constraint" in projections["messages"]["error"]
    assert projections["tasks"]["ok"]
    (await service.api.post("tasks", title="still works")).expect(201)
    assert len((await service.api.get("tasks")).expect(200)["items"]) == 1
    (await service.api.get("messages", min_position=poison["position"])).expect(504, "not_yet")


async def test_service_without_database_stays_alive_reports_it_and_recovers(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PROBE_SECONDS", 0.3)
    async with running_service(database) as service:
        api = service.api
        with unreachable(postgres, database):

            async def named() -> bool:
                return await _failing_checks(api) >= {"database", "writer"}

            await eventually(named)
            (await api.get("/healthz")).expect(200)
            answer = await api.get("messages")
            assert "cannot be reached" in answer.expect(503, "unavailable")["detail"]
            assert int(answer.headers["Retry-After"]) > 0
            (await api.get("budget")).expect(200)

        async def ready() -> bool:
            return not await _failing_checks(api)

        await eventually(ready, within_seconds=20)
        (await api.post("messages", from_agent="ada", message="back")).expect(201)


async def test_readiness_is_answered_in_time_while_the_database_is_silent(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PROBE_SECONDS", 0.3)
    async with Proxy(database).running() as proxy, running_service(proxy.dsn) as service:

        async def ready() -> bool:
            return not await _failing_checks(service.api)

        await eventually(ready)
        with proxy.partitioned():
            # More probes than there are connections for reads.
            for _ in range(READ_CONNECTIONS + 2):
                asked_at = monotonic()
                assert "database" in await _failing_checks(service.api)
                assert monotonic() - asked_at < 3, "less than the cancellation of a query takes"
        await eventually(ready, within_seconds=30)
        await eventually(lambda: not background._given_up, within_seconds=15)


async def test_lock_timeout_is_not_reported_as_unreachable_database(database: str) -> None:
    dsn = make_conninfo(database, options="-c lock_timeout=100")
    async with running_service(dsn) as service, connected(database) as holder:
        await holder.execute("BEGIN")
        await holder.execute("LOCK TABLE squad_tasks IN ACCESS EXCLUSIVE MODE")
        answer = await service.api.get("tasks")
        problem = answer.expect(503, "unavailable")
        assert "a lock timed out" in problem["detail"]
        assert "reached" not in f"{problem['title']} {problem['detail']}"
        assert int(answer.headers["Retry-After"]) > 0
