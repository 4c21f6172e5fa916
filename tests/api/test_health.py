"""Alive, and ready."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg.conninfo import make_conninfo

from service import reading
from service.http import health
from tests.api.client import Api, Service, running_service, unreachable
from tests.support.parts import connected
from tests.support.wait import eventually

if TYPE_CHECKING:
    import pytest

    from tests.support.postgres import PostgresServer


async def _unwell(api: Api) -> set[str]:
    """Which checks fail; none of them where the service is ready."""
    answer = await api.get("/readyz")
    unwell = {name for name, check in answer.body["checks"].items() if not check["ok"]}
    assert answer.status == (503 if unwell else 200)
    assert answer.body["ready"] == (not unwell)
    return unwell


async def test_a_running_service_is_alive_and_ready(api: Api) -> None:
    assert (await api.get("/healthz")).expect(200) == {"status": "alive"}

    async def ready() -> bool:
        return not await _unwell(api)

    await eventually(ready)


async def test_readiness_does_not_falter_while_the_log_grows(service: Service) -> None:
    async def ready() -> bool:
        return not await _unwell(service.api)

    await eventually(ready)
    async with connected(service.dsn) as connection:
        await connection.execute("UPDATE projections SET updated_at = updated_at - interval '1 hour'")
    for number in range(20):
        await service.api.post("messages", from_agent="ada", message=f"m{number}")
        assert await _unwell(service.api) == set()


async def test_a_listener_that_does_not_hear_is_named(service: Service) -> None:
    service.tasks[0].cancel()

    async def named() -> bool:
        return await _unwell(service.api) == {"listener"}

    await eventually(named)
    (await service.api.post("messages", from_agent="ada", message="still works")).expect(201)


async def test_a_projection_that_fails_is_named_and_the_others_go_on(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "STRICT_WAIT_SECONDS", 0.2)
    async with connected(service.dsn) as connection:
        await connection.execute("ALTER TABLE squad_messages ADD CHECK (message <> 'poison')")
    poison = (await service.api.post("messages", from_agent="ada", message="poison")).expect(201)

    async def named() -> bool:
        return await _unwell(service.api) == {"projections"}

    await eventually(named)
    projections = (await service.api.get("/readyz")).body["checks"]["projections"]["by_name"]
    assert projections["messages"]["failed_position"] == poison["position"]
    assert "violates check constraint" in projections["messages"]["error"]
    assert projections["tasks"]["ok"]
    (await service.api.post("tasks", title="still works")).expect(201)
    assert len((await service.api.get("tasks")).expect(200)["items"]) == 1
    (await service.api.get("messages", min_position=poison["position"])).expect(504, "not_yet")


async def test_without_its_database_the_service_lives_says_so_and_recovers(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PROBE_SECONDS", 0.3)
    async with running_service(database) as service:
        api = service.api
        with unreachable(postgres, database):

            async def named() -> bool:
                return await _unwell(api) >= {"database", "writer"}

            await eventually(named)
            (await api.get("/healthz")).expect(200)
            answer = await api.get("messages")
            assert "cannot be reached" in answer.expect(503, "unavailable")["detail"]
            assert int(answer.headers["Retry-After"]) > 0
            (await api.get("budget")).expect(200)

        async def ready() -> bool:
            return not await _unwell(api)

        await eventually(ready, within_seconds=20)
        (await api.post("messages", from_agent="ada", message="back")).expect(201)


async def test_a_database_that_is_there_and_gives_up_is_not_said_to_be_out_of_reach(database: str) -> None:
    impatient = make_conninfo(database, options="-c lock_timeout=100")
    async with running_service(impatient) as service, connected(database) as holder:
        await holder.execute("BEGIN")
        await holder.execute("LOCK TABLE squad_tasks IN ACCESS EXCLUSIVE MODE")
        answer = await service.api.get("tasks")
        told = answer.expect(503, "unavailable")
        assert "a lock timed out" in told["detail"]
        assert "reached" not in f"{told['title']} {told['detail']}"
        assert int(answer.headers["Retry-After"]) > 0
