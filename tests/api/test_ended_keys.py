"""Warnings of keys that are tried after they were revoked or have expired."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

from eventstore.errors import StoreUnavailable
from service import api_keys
from service.http import ended_keys
from service.http.ended_keys import EndedKeys
from tests.api.client import running_service
from tests.support.components import connected
from tests.support.keys import make_key, revoke_key
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from eventstore.connection import Connection
    from service.clock import DatabaseClock
    from service.reading import ReadTables
    from tests.api.client import Api


@dataclass
class Tables:
    """The tables of a database, or of one that cannot be reached."""

    dsn: str | None
    reads: int = 0

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        self.reads += 1
        if self.dsn is None:
            raise StoreUnavailable
        async with connected(self.dsn) as connection:
            yield connection


@dataclass
class Clock:
    """A clock that stands still."""

    at: datetime

    def now(self) -> datetime:
        return self.at


def ended(tables: Tables, at: datetime) -> EndedKeys:
    return EndedKeys(cast("ReadTables", tables), cast("DatabaseClock", Clock(at)))


async def checked(keys: EndedKeys, *texts: str) -> None:
    for text in texts:
        keys.check(text, "203.0.113.7")
        await asyncio.gather(*keys._lookups)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "service.http.ended_keys"]


async def _rejected(api: Api) -> bool:
    return (await api.get("budget")).status == 401


async def test_revoked_key_that_is_tried_is_logged_by_its_id_only(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key, other = await make_key(database), await make_key(database)
    async with running_service(database) as service:
        api = service.api.with_key(key.text)
        assert await _rejected(service.api.with_key(f"squad_{key.id}_{'0' * 64}"))
        (await api.get("budget")).expect(200)
        position = await revoke_key(database, key)
        (await service.api.with_key(other.text).get("tasks", min_position=position)).expect(200)

        async def rejected() -> bool:
            return await _rejected(api)

        async def logged() -> bool:
            return bool(warnings(caplog))

        await eventually(rejected)
        await eventually(logged)
        assert await _rejected(service.api.with_key(f"squad_{other.id}_{'0' * 64}"))
    assert warnings(caplog) == [f"the revoked key {key.id} is being tried from 127.0.0.1"]
    assert key.text.rpartition("_")[2] not in caplog.text


async def test_request_and_denial_are_logged_with_the_id_of_the_key(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = await make_key(database, "auditor")
    async with running_service(database) as service:
        api = service.api.with_key(key.text)
        (await api.get("budget")).expect(200)
        (await api.put("budget", daily_tokens=7)).expect(403, "not_allowed")
        (await service.api.get("budget")).expect(401)
    lines = [record.getMessage() for record in caplog.records]
    shown = [line for line in lines if line.startswith("GET /api/v1/budget: ")]
    assert [line.endswith(f" ms, key {key.id}") for line in shown] == [True, False]
    assert f"the key {key.id} is denied: this requires an operator's key" in lines


async def test_each_ended_key_is_logged_once_a_minute(
    database: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    expiring, valid = await make_key(database, expires_days=1), await make_key(database)
    revoked = await make_key(database)
    await revoke_key(database, revoked)
    async with running_service(database) as service:
        api = service.api.with_key(valid.text)
        (await api.get("budget", min_position=await service.head())).expect(200)
        (await api.get("tasks", min_position=await service.head())).expect(200)
        keys, seconds = ended(Tables(database), now + timedelta(days=2)), 1_000.0
        monkeypatch.setattr(ended_keys, "monotonic", lambda: seconds)
        await checked(keys, *[expiring.text, revoked.text, valid.text, api_keys.make().text] * 3)
        expected = [
            f"the expired key {expiring.id} is being tried from 203.0.113.7",
            f"the revoked key {revoked.id} is being tried from 203.0.113.7",
        ]
        assert warnings(caplog) == expected
        seconds += 61
        await checked(keys, revoked.text)
        assert warnings(caplog) == [*expected, expected[1]]


async def test_lookups_are_few_and_survive_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    tables = Tables(None)
    keys = ended(tables, datetime.now(UTC))
    for text in ("", "squad", "täg", "squad_ä", "other_1"):
        keys.check(text, "")
    assert not keys._lookups
    for _ in range(9):
        keys.check(api_keys.make().text, "")
    await asyncio.gather(*keys._lookups)
    assert tables.reads == ended_keys.MAX_LOOKUPS
    await checked(keys, api_keys.make().text)
    assert tables.reads == ended_keys.MAX_LOOKUPS + 1
    assert not warnings(caplog)
