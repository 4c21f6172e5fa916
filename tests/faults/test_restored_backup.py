"""An older backup is restored under a running service, which reports this and continues from there."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.support.command import squad, squad_output
from tests.support.load import Load
from tests.support.process import squad_up
from tests.support.servers import Server, new_folder, read_until_log_replaced
from tests.support.verify import assert_log_is_sound, assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.faults

ANSWERS = 60
RECOVERY_SECONDS = 10.0
"""The longest backoff, five seconds, plus a heartbeat."""


async def test_clients_that_know_later_events_are_told_that_a_backup_was_restored(tmp_path: Path) -> None:
    key, checkpoint = tmp_path / "squad.key", tmp_path / "newest.json"
    with new_folder() as folder:
        server, backup = Server(folder / "server"), Server(folder / "backup")
        await server.start()
        dsn = ("--dsn", server.dsn)
        async with squad_up(dsn=server.dsn) as service, aiohttp.ClientSession(service.url) as session:
            before, lost, after = (Load([service], name) for name in ("before", "lost", "after"))
            async with before.running(clients=2):
                await before.wait_for_answers(ANSWERS)
            await server.copy_to(backup)
            async with lost.running(clients=2):
                await lost.wait_for_answers(ANSWERS)
            await squad_output("checkpoint", "--new-key", str(key), cwd=tmp_path)
            await squad_output(
                "checkpoint", "--key", str(key), "--out", str(checkpoint), *dsn, cwd=tmp_path
            )
            newest = json.loads(checkpoint.read_text())["position"]
            async with session.get(f"/api/v1/events/stream?after={newest}") as stream:
                await server.stop()
                await server.replace_by(backup)
                await server.start()
                async with asyncio.timeout(RECOVERY_SECONDS):
                    await read_until_log_replaced(stream)
            await eventually(service.is_ready, within_seconds=RECOVERY_SECONDS)
            assert "the log was replaced" in service.output().lower()
            async with session.get(f"/api/v1/events?after={newest}") as answer:
                body = await answer.json()
                assert (answer.status, body["code"]) == (504, "not_yet")
                assert body["ends_at"] < newest

            events_command = await squad(tmp_path, "events", "--after", str(newest), *dsn)
            assert "does not reach that far" in events_command.error_line()
            await squad_output("verify", *dsn, cwd=tmp_path)
            verification = await squad(tmp_path, "verify", "--checkpoint", str(checkpoint), *dsn)
            assert verification.code == 1
            [verdict] = [line for line in verification.output.splitlines() if str(checkpoint) in line]
            assert verdict.startswith("FAILS")

            async with after.running(clients=2):
                await after.wait_for_answers(ANSWERS)
            await eventually(lambda: projected_to_head(server.dsn))
        events = await assert_log_is_sound(server.dsn)
        before.compare(events).assert_consistent()
        after.compare(events).assert_consistent()
        assert len(lost.compare(events).lost) == len(lost.answered)
        assert await assert_tables_equal_fold(server.dsn) > 0
