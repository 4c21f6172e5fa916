"""kill -9 while keys are in use: what was taken back stays so, and what is noted of a key is noted once."""

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
from tests.support.load import Load
from tests.support.log import whole_log
from tests.support.parts import connected
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
WELL_AGAIN_WITHIN_SECONDS = 20.0
HEARD_WITHIN_SECONDS = 2.0
"""Another process hears of a revocation: in milliseconds, a second at most where it is not told."""

NO_LIMIT: dict[str, Any] = {"SQUAD_KEY_REQUESTS_PER_SECOND": "0"}


async def test_a_service_killed_while_keys_come_and_go(database: str, tmp_path: Path) -> None:
    random = Random(9)
    operator = await create(tmp_path, database)
    async with (
        squad_up(dsn=database, **NO_LIMIT) as first,
        squad_up(dsn=database, **NO_LIMIT) as second,
    ):
        load = Load([first, second], api_key=operator)
        trial = Trial(
            f"kill -9 of one of two services while keys come and go, {ROUNDS} times",
            WELL_AGAIN_WITHIN_SECONDS,
            load,
        )
        revoked, kept = [], []
        async with trial.running():
            for number in range(ROUNDS):
                made = await create(tmp_path, database)
                # Both are shown it for the first time at once, and one is gone in the middle of that.
                using = [asyncio.create_task(status(service, made)) for service in (first, second)] * 3
                await asyncio.sleep(random.uniform(0.0, 0.02))
                taking_back = asyncio.create_task(revoke(tmp_path, database, made)) if number % 2 else None
                if taking_back and number % 4 == 1:
                    await taking_back
                with trial.cause():
                    await first.kill()
                    await asyncio.gather(*using, return_exceptions=True)
                    if taking_back:
                        # It is acknowledged from here on.
                        await taking_back
                        revoked.append(made)
                    else:
                        kept.append(made)
                await first.start()
                assert await status(first, made) == (401 if taking_back else 200)
                await trial.well(first, second)
                for key in revoked:
                    await eventually(partial(is_shut_out, second, key), within_seconds=HEARD_WITHIN_SECONDS)
                    assert await status(first, key) == 401
                for key in kept:
                    assert [await status(service, key) for service in (first, second)] == [200, 200]
        await trial.judge(database)
        async with connected(database) as connection:
            assert_noted_once(await whole_log(connection), [operator, *kept], revoked)


async def create(folder: Path, dsn: str) -> str:
    """`squad keys create`; the key."""
    ended = await squad(folder, "keys", "create", "--scope", "operator", "--dsn", dsn)
    assert ended.code == 0, ended
    return ended.output.strip()


async def revoke(folder: Path, dsn: str, key: str) -> None:
    """`squad keys revoke`, which says that it is done."""
    ended = await squad(folder, "keys", "revoke", api_keys.id_in(key), "--dsn", dsn)
    assert ended.code == 0, ended


async def status(service: ServiceProcess, key: str) -> int:
    """What somebody with this key is answered."""
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.request("GET", f"{service.url}/api/v1/budget", headers=headers) as response:
        return response.status


async def is_shut_out(service: ServiceProcess, key: str) -> bool:
    return await status(service, key) == 401


def assert_noted_once(events: Sequence[Recorded], kept: Sequence[str], revoked: Sequence[str]) -> None:
    """Each key was made once, used for the first time once at most, and revoked once or not at all."""
    noted = Counter[tuple[str, str]]()
    for recorded in events:
        match event := codec.decode(recorded):
            case KeyCreated() | KeyFirstUsed() | KeyRevoked():
                noted[event.key_id, event.type] += 1
    for key in (*kept, *revoked):
        id_ = api_keys.id_in(key)
        assert noted[id_, KeyCreated.type] == 1
        assert noted[id_, KeyRevoked.type] == (key in revoked)
        assert noted[id_, KeyFirstUsed.type] <= 1
        if key in kept:
            assert noted[id_, KeyFirstUsed.type] == 1
