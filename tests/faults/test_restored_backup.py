"""An older backup is restored under a service that runs: it says so, and goes on from there."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.support.command import finished, squad
from tests.support.load import Load
from tests.support.process import squad_up
from tests.support.servers import Server, new_folder, told_of_another_log
from tests.support.verify import assert_log_is_sound, assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.faults

ANSWERS = 60
START_TIMEOUT_SECONDS = 10.0
"""The longest wait between two attempts, five seconds, and a heartbeat."""


async def test_whoever_knows_more_than_a_restored_backup_is_told(tmp_path: Path) -> None:
    key, checkpoint = tmp_path / "squad.key", tmp_path / "newest.json"
    with new_folder() as folder:
        server, backup = Server(folder / "server"), Server(folder / "backup")
        await server.start()
        dsn = ("--dsn", server.dsn)
        async with squad_up(dsn=server.dsn) as service, aiohttp.ClientSession(service.url) as session:
            before, lost, after = (Load([service], name) for name in ("before", "lost", "after"))
            async with before.running(clients=2):
                await before.more(ANSWERS)
            await server.copy_to(backup)
            async with lost.running(clients=2):
                await lost.more(ANSWERS)
            await finished("checkpoint", "--new-key", str(key), cwd=tmp_path)
            await finished("checkpoint", "--key", str(key), "--out", str(checkpoint), *dsn, cwd=tmp_path)
            newest = json.loads(checkpoint.read_text())["position"]
            async with session.get(f"/api/v1/events/stream?after={newest}") as stream:
                await server.stop()
                await server.replace_by(backup)
                await server.start()
                async with asyncio.timeout(START_TIMEOUT_SECONDS):
                    await told_of_another_log(stream)
            await eventually(service.is_ready, within_seconds=START_TIMEOUT_SECONDS)
            assert "the log was replaced" in service.story().lower()
            async with session.get(f"/api/v1/events?after={newest}") as answer:
                body = await answer.json()
                assert (answer.status, body["code"]) == (504, "not_yet")
                assert body["ends_at"] < newest

            known = await squad(tmp_path, "events", "--after", str(newest), *dsn)
            assert "does not reach that far" in known.complaint()
            await finished("verify", *dsn, cwd=tmp_path)
            cut = await squad(tmp_path, "verify", "--checkpoint", str(checkpoint), *dsn)
            assert cut.code == 1
            [verdict] = [line for line in cut.output.splitlines() if str(checkpoint) in line]
            assert verdict.startswith("FAILS")

            async with after.running(clients=2):
                await after.more(ANSWERS)
            await eventually(lambda: projected_to_head(server.dsn))
        events = await assert_log_is_sound(server.dsn)
        before.compare(events).assert_nothing_amiss()
        after.compare(events).assert_nothing_amiss()
        assert len(lost.compare(events).lost) == len(lost.answered)
        assert await assert_tables_equal_fold(server.dsn) > 0
