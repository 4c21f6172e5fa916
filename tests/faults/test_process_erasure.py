"""Processes that are killed while they encrypt and forget: no event loses its key, no data comes back."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import aiohttp
import pytest

from service import commands as do
from tests.support.components import connected, running_writer, submit
from tests.support.embedded import kill_postmaster, server_in
from tests.support.erasure import assert_keys_existed_when_used, find_remains, stored_key_ids
from tests.support.load import Load
from tests.support.process import squad_up
from tests.support.verify import assert_log_is_sound, assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.process import ServiceProcess

pytestmark = pytest.mark.faults

ADDRESS = "zoe@example.org"
SUBJECT = "so very angry"
_BACKOFF_SECONDS = 0.05
_TIMEOUT = aiohttp.ClientTimeout(total=30)

_KILLED_BEFORE_THE_APPEND = """
import asyncio, os, signal, sys
from eventstore import log
from service import commands as do
from tests.support.components import running_writer, submit

async def work():
    async with running_writer(sys.argv[1], encrypt=True) as writer:
        async def append(*arguments, **more):
            os.kill(os.getpid(), signal.SIGKILL)
        log.append = append
        if sys.argv[3] == "contended":
            writer._appender.contended = True
        email = do.LogEmail(gmail_message_id="g-1", from_email=sys.argv[2], subject="lost")
        await asyncio.gather(
            submit(writer, email), submit(writer, do.SendMessage(from_agent="ada", message="lost"))
        )

asyncio.run(work())
"""


@pytest.mark.parametrize("path", ["in one trip", "contended"])
async def test_process_killed_between_storing_keys_and_appending_leaves_only_orphaned_keys(
    database: str, path: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _KILLED_BEFORE_THE_APPEND, database, ADDRESS, path
    )
    assert await process.wait() == -9
    async with connected(database) as connection:
        orphans = await stored_key_ids(connection)
    assert orphans
    async with running_writer(database, encrypt=True) as writer:
        email = do.LogEmail(gmail_message_id="g-1", from_email=ADDRESS, subject=SUBJECT)
        assert (await submit(writer, email)).refusal is None
        await submit(writer, do.SendMessage(from_agent="ada", message=SUBJECT))
        assert await assert_keys_existed_when_used(database) == 2
        assert (await submit(writer, do.ForgetSubject(subject=ADDRESS))).reply["emails"] == 1
    await assert_keys_existed_when_used(database)
    await assert_log_is_sound(database)


async def test_encrypted_events_survive_kills_of_postgres_and_of_the_service(data_folder: Path) -> None:
    async with squad_up(data=data_folder, SQUAD_ENCRYPT_PAYLOADS="true") as service:
        load = Load([service])
        async with load.running(16):
            await load.wait_for_answers()
            kill_postmaster(data_folder)
            await load.wait_for_answers()
            await service.kill()
            await service.start()
            await load.wait_for_answers()
        await load.assert_retries_get_same_answers()
        async with server_in(data_folder) as dsn:
            await load.assert_log_matches_answers(dsn)
            assert await assert_keys_existed_when_used(dsn) > 100


async def test_kill_of_a_process_that_writes_and_forgets_a_sender_leaves_no_personal_data(
    database: str,
) -> None:
    async with (
        squad_up(dsn=database, SQUAD_ENCRYPT_PAYLOADS="true") as one,
        squad_up(dsn=database, SQUAD_ENCRYPT_PAYLOADS="true") as other,
        aiohttp.ClientSession(timeout=_TIMEOUT) as session,
    ):
        counts: Counter[str] = Counter()
        stopping = asyncio.Event()
        tasks = [
            asyncio.create_task(work(session, service, stopping, counts))
            for service in (one, other)
            for work in (_write, _forget)
        ]
        await _wait_for_more(counts)
        await one.kill()
        await _wait_for_more(counts)
        await one.start()
        await _wait_for_more(counts)
        stopping.set()
        await asyncio.gather(*tasks)
        await _post(session, other, "subjects/forget", subject=ADDRESS)
        await eventually(lambda: projected_to_head(database))
    assert await assert_keys_existed_when_used(database) >= counts["written"]
    assert await find_remains(database, [ADDRESS, SUBJECT]) == []
    await assert_tables_equal_fold(database)
    await assert_log_is_sound(database)


async def _wait_for_more(counts: Counter[str]) -> None:
    """Wait until 20 more e-mails are written and 20 more requests to forget are answered."""
    before = counts.copy()
    await eventually(
        lambda: all(counts[kind] >= before[kind] + 20 for kind in ("written", "forgotten")),
        within_seconds=60,
    )


async def _write(
    session: aiohttp.ClientSession, service: ServiceProcess, stopping: asyncio.Event, counts: Counter[str]
) -> None:
    while not stopping.is_set():
        email = {"gmail_message_id": str(uuid4()), "from_email": ADDRESS, "subject": SUBJECT}
        counts["written"] += await _post(session, service, "emails", **email) == 201


async def _forget(
    session: aiohttp.ClientSession, service: ServiceProcess, stopping: asyncio.Event, counts: Counter[str]
) -> None:
    while not stopping.is_set():
        counts["forgotten"] += await _post(session, service, "subjects/forget", subject=ADDRESS) == 200


async def _post(session: aiohttp.ClientSession, service: ServiceProcess, path: str, **body: Any) -> int:
    """The status of the answer; 0 if the process does not answer."""
    try:
        async with session.post(f"{service.url}/api/v1/{path}", json=body) as response:
            assert response.status in (200, 201, 404, 503), await response.text()
            return response.status
    except (aiohttp.ClientError, OSError):
        await asyncio.sleep(_BACKOFF_SECONDS)
        return 0
