"""kill -9 while keys are in use: revocations persist, and each key's events are recorded once."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from eventstore import codec
from eventstore.events import KeyCreated, KeyFirstUsed, KeyRevoked
from service import api_keys
from tests.support.command import squad
from tests.support.components import connected
from tests.support.load import Load
from tests.support.log import whole_log
from tests.support.process import squad_up
from tests.support.trial import Trial
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from eventstore.recorded import Recorded
    from tests.support.process import ServiceProcess

pytestmark = pytest.mark.faults

ROUNDS = 4
RECOVERY_SECONDS = 20.0
REVOKED_WITHIN_SECONDS = 2.0
"""Another process learns of a revocation within milliseconds, or by its next poll after a second."""

NO_LIMIT: dict[str, Any] = {"SQUAD_KEY_REQUESTS_PER_SECOND": "0"}


async def test_revocations_persist_when_a_service_is_killed_while_keys_are_in_use(
    database: str, tmp_path: Path
) -> None:
    random = Random(9)
    operator = await create(tmp_path, database)
    async with (
        squad_up(dsn=database, **NO_LIMIT) as first,
        squad_up(dsn=database, **NO_LIMIT) as second,
    ):
        load = Load([first, second], api_key=operator)
        trial = Trial(
            f"kill -9 of one of two services while keys come and go, {ROUNDS} times",
            RECOVERY_SECONDS,
            load,
        )
        revoked, kept = [], []
        async with trial.running():
            for number in range(ROUNDS):
                key = await create(tmp_path, database)
                # Both services see it for the first time at once, and one is killed meanwhile.
                using = [asyncio.create_task(status(service, key)) for service in (first, second)] * 3
                await asyncio.sleep(random.uniform(0.0, 0.02))
                revoking = asyncio.create_task(revoke(tmp_path, database, key)) if number % 2 else None
                if revoking and number % 4 == 1:
                    await revoking
                with trial.fault_injection():
                    await first.kill()
                    await asyncio.gather(*using, return_exceptions=True)
                    if revoking:
                        # From here on, the revocation is acknowledged.
                        await revoking
                        revoked.append(key)
                    else:
                        kept.append(key)
                await first.start()
                assert await status(first, key) == (401 if revoking else 200)
                await trial.wait_until_recovered(first, second)
                for former in revoked:
                    await eventually(
                        partial(is_rejected, second, former), within_seconds=REVOKED_WITHIN_SECONDS
                    )
                    assert await status(first, former) == 401
                for valid in kept:
                    assert [await status(service, valid) for service in (first, second)] == [200, 200]
        await trial.verify(database)
        async with connected(database) as connection:
            assert_key_events_occur_once(await whole_log(connection), [operator, *kept], revoked)


async def create(folder: Path, dsn: str) -> str:
    """Create a key with `squad keys create`; return it."""
    ended = await squad(folder, "keys", "create", "--scope", "operator", "--dsn", dsn)
    assert ended.code == 0, ended
    return ended.output.strip()


async def revoke(folder: Path, dsn: str, key: str) -> None:
    """Revoke a key with `squad keys revoke`."""
    ended = await squad(folder, "keys", "revoke", api_keys.id_in(key), "--dsn", dsn)
    assert ended.code == 0, ended


async def status(service: ServiceProcess, key: str) -> int:
    """The status of the answer to a request with this key."""
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.request("GET", f"{service.url}/api/v1/budget", headers=headers) as response:
        return response.status


async def is_rejected(service: ServiceProcess, key: str) -> bool:
    return await status(service, key) == 401


def assert_key_events_occur_once(
    events: Sequence[Recorded], kept: Sequence[str], revoked: Sequence[str]
) -> None:
    """Fail unless each key was created once, first used at most once, and revoked once or never."""
    counts = Counter[tuple[str, str]]()
    for recorded in events:
        match event := codec.decode(recorded):
            case KeyCreated() | KeyFirstUsed() | KeyRevoked():
                counts[event.key_id, event.type] += 1
    for key in (*kept, *revoked):
        id_ = api_keys.id_in(key)
        assert counts[id_, KeyCreated.type] == 1
        assert counts[id_, KeyRevoked.type] == (key in revoked)
        assert counts[id_, KeyFirstUsed.type] <= 1
        if key in kept:
            assert counts[id_, KeyFirstUsed.type] == 1
