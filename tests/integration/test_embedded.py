"""The embedded Postgres: real servers in temporary folders, and real processes that share them."""

# ruff: noqa: ASYNC240 - file access blocks nothing else in these tests

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from service.embedded import EmbeddedPostgres, EmbeddedPostgresError, programs, temporary_folder
from service.embedded.cluster import Cluster
from service.embedded.errors import one_line_errors
from service.embedded.programs import grant_access
from tests.support.postgres import run_in_thread
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

TIMEOUT_SECONDS = 60.0

# Uses the server in the folder that is its argument, until it reads a line.
USER_PROGRAM = """
import asyncio, sys
from pathlib import Path
from service.embedded import EmbeddedPostgres

async def main():
    server = EmbeddedPostgres(Path(sys.argv[1]))
    print(await server.start(), flush=True)
    supervision = asyncio.create_task(server.supervise())
    await asyncio.to_thread(sys.stdin.readline)
    supervision.cancel()
    await server.stop()

asyncio.run(main())
"""


@dataclass(frozen=True)
class User:
    """Another process that uses a folder's server."""

    process: asyncio.subprocess.Process

    async def started(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return (await self.process.stdout.readline()).decode().strip()

    async def leave(self) -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await self.process.communicate(b"\n")
        assert self.process.returncode == 0

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await self.process.communicate()


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not in pytest's own folder: each new session closes it to other users, such as the server's.
    parent = temporary_folder("squad-test-")
    folder = parent / "data"
    yield folder
    # Stops what a failed test left running.
    for cluster in parent.rglob("PG_VERSION"):
        Cluster(cluster.parent).stop()
    shutil.rmtree(parent)


@pytest.fixture
async def another_user(folder: Path) -> AsyncIterator[Callable[[], asyncio.Future[User]]]:
    users: list[User] = []

    async def start() -> User:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", USER_PROGRAM, str(folder), stdin=pipe, stdout=pipe
        )
        users.append(User(process))
        return users[-1]

    yield lambda: asyncio.ensure_future(start())
    for user in users:
        if user.process.returncode is None:
            await user.kill()


def postmaster_pid(folder: Path) -> int | None:
    postmaster = Cluster(folder / "postgres").postmaster()
    return None if postmaster is None else postmaster.pid


def query(dsn: str, statement: str) -> object:
    with psycopg.connect(dsn, connect_timeout=5) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return None if row is None else row[0]


async def test_started_server_answers_and_stopped_server_is_gone(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    dsn = await server.start()
    assert query(dsn, "SELECT 1") == 1
    await server.stop()
    assert postmaster_pid(folder) is None
    with pytest.raises(psycopg.OperationalError):
        query(dsn, "SELECT 1")


async def test_server_is_durable_uses_utf8_and_listens_only_on_its_socket(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    dsn = await server.start()
    settings = {
        name: query(dsn, f"SHOW {name}")
        for name in (
            "fsync",
            "synchronous_commit",
            "full_page_writes",
            "data_checksums",
            "server_encoding",
            "listen_addresses",
        )
    }
    await server.stop()
    assert settings == {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "server_encoding": "UTF8",
        "listen_addresses": "",
    }


async def test_data_survives_a_restart(folder: Path) -> None:
    first = EmbeddedPostgres(folder)
    query(await first.start(), "CREATE TABLE kept AS SELECT 42 AS answer")
    await first.stop()
    second = EmbeddedPostgres(folder)
    assert query(await second.start(), "SELECT answer FROM kept") == 42
    await second.stop()


async def test_stop_does_nothing_when_the_server_is_not_started_or_already_stopped(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    await server.stop()
    await server.start()
    await server.stop()
    await server.stop()
    assert postmaster_pid(folder) is None


async def test_cancelled_start_is_undone_by_stop(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    start = asyncio.create_task(server.start())
    await eventually(folder.exists)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    await server.stop()
    assert postmaster_pid(folder) is None


async def test_abandoned_server_stops_by_itself(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    await server.start()
    server.abandon()
    await eventually(lambda: postmaster_pid(folder) is None, within_seconds=TIMEOUT_SECONDS)
    await server.stop()


async def test_abandoned_server_keeps_running_for_other_users(
    folder: Path, another_user: Callable[[], asyncio.Future[User]]
) -> None:
    user = await another_user()
    dsn = await user.started()
    server = EmbeddedPostgres(folder)
    await server.start()
    with psycopg.connect(dsn) as connection:
        server.abandon()
        await server.stop()
        assert connection.execute("SELECT 1").fetchone() == (1,)
    await user.leave()
    assert postmaster_pid(folder) is None


async def test_last_of_two_processes_stops_the_server(
    folder: Path, another_user: Callable[[], asyncio.Future[User]]
) -> None:
    first, second = await another_user(), await another_user()
    dsn = await first.started()
    assert await second.started() == dsn
    pid = postmaster_pid(folder)
    await first.leave()
    assert postmaster_pid(folder) == pid
    assert query(dsn, "SELECT 1") == 1
    await second.leave()
    assert postmaster_pid(folder) is None


async def test_three_processes_that_start_concurrently_share_one_new_server(
    folder: Path, another_user: Callable[[], asyncio.Future[User]]
) -> None:
    users = await asyncio.gather(*(another_user() for _ in range(3)))
    dsns = await asyncio.gather(*(user.started() for user in users))
    assert len(set(dsns)) == 1
    assert query(dsns[0], "SELECT 1") == 1
    assert not list(folder.glob("postgres.new-*"))
    await asyncio.gather(*(user.leave() for user in users))
    assert postmaster_pid(folder) is None


async def test_killed_process_does_not_count_as_a_user(
    folder: Path, another_user: Callable[[], asyncio.Future[User]]
) -> None:
    user = await another_user()
    await user.started()
    server = EmbeddedPostgres(folder)
    await server.start()
    await user.kill()
    await server.stop()
    assert postmaster_pid(folder) is None


async def test_server_of_a_killed_process_is_reused(
    folder: Path, another_user: Callable[[], asyncio.Future[User]]
) -> None:
    user = await another_user()
    await user.started()
    pid = postmaster_pid(folder)
    await user.kill()
    assert postmaster_pid(folder) == pid
    server = EmbeddedPostgres(folder)
    await server.start()
    assert postmaster_pid(folder) == pid
    await server.stop()
    assert postmaster_pid(folder) is None


async def test_server_starts_after_a_process_was_killed_while_creating_the_cluster(
    folder: Path, another_user: Callable[[], asyncio.Future[User]]
) -> None:
    user = await another_user()
    await eventually(lambda: list(folder.glob("postgres.new-*/global")))
    await user.kill()
    assert not (folder / "postgres").exists()
    server = EmbeddedPostgres(folder)
    assert query(await server.start(), "SELECT 1") == 1
    await server.stop()


@pytest.mark.faults
async def test_killed_server_is_restarted_with_all_committed_data(
    folder: Path, another_user: Callable[[], asyncio.Future[User]]
) -> None:
    user = await another_user()
    await user.started()
    server = EmbeddedPostgres(folder)
    dsn = await server.start()
    supervision = asyncio.create_task(server.supervise())
    query(dsn, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number")

    pids = set()
    for _ in range(2):
        pid = postmaster_pid(folder)
        assert pid is not None
        pids.add(pid)
        os.kill(pid, signal.SIGKILL)
        count = await eventually(
            lambda: query(dsn, "SELECT count(*) FROM kept"),
            within_seconds=TIMEOUT_SECONDS,
            ignore=(psycopg.OperationalError,),
        )
        assert count == 1000
    assert postmaster_pid(folder) not in pids

    supervision.cancel()
    await server.stop()
    await user.leave()
    assert postmaster_pid(folder) is None


async def test_stale_files_with_the_pid_of_another_process_are_ignored(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    await server.start()
    files = [folder / "postgres" / name for name in ("postmaster.pid", ".s.PGSQL.5432.lock")]
    texts = [file.read_text() for file in files]
    await server.stop()
    for file, text in zip(files, texts, strict=True):
        file.write_text("\n".join([str(os.getpid()), *text.splitlines()[1:]]))
    assert query(await server.start(), "SELECT 1") == 1
    await server.stop()


@pytest.mark.parametrize(
    "content", [b"\0" * 80, b"\xff\n", b"\n", b"many\n"], ids=["nul", "bytes", "line", "word"]
)
async def test_malformed_pid_file_is_ignored(folder: Path, content: bytes) -> None:
    (folder / "postgres").mkdir(parents=True)
    (folder / "postgres" / "postmaster.pid").write_bytes(content)
    assert postmaster_pid(folder) is None


async def test_socket_of_a_folder_with_a_long_path_is_in_a_private_temporary_folder(folder: Path) -> None:
    deep = folder.joinpath(*["a-folder-with-a-long-name"] * 6)
    server = EmbeddedPostgres(deep)
    dsn = await server.start()
    assert Path(str(query(dsn, "SHOW data_directory"))) == deep / "postgres"
    socket_folder = Path(str(query(dsn, "SHOW unix_socket_directories")).strip('"'))
    assert socket_folder.stat().st_mode & 0o077 == 0
    await server.stop()
    assert not socket_folder.exists()


async def test_path_may_contain_spaces_commas_and_quotes(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "it's odd, isn't it")
    assert query(await server.start(), "SELECT 1") == 1
    await server.stop()


async def test_cluster_of_another_major_version_is_rejected_with_instructions(folder: Path) -> None:
    (folder / "postgres").mkdir(parents=True)
    (folder / "postgres" / "PG_VERSION").write_text("16\n")
    message = (
        "was created by Postgres 16, and this is Postgres 18: run `squad export` with the version of squad"
    )
    with pytest.raises(EmbeddedPostgresError, match=message):
        await EmbeddedPostgres(folder).start()


async def test_folder_with_other_contents_is_rejected(folder: Path) -> None:
    (folder / "postgres").mkdir(parents=True)
    (folder / "postgres" / "letter.txt").write_text("dear diary")
    with pytest.raises(EmbeddedPostgresError, match="is not empty and not a Postgres cluster"):
        await EmbeddedPostgres(folder).start()


async def test_failed_start_is_reported_with_the_servers_reason(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    dsn = await server.start()
    with pytest.raises(psycopg.OperationalError):
        query(make_conninfo(dsn, dbname="an_older_error_in_the_log"), "SELECT 1")
    await server.stop()
    # The first error comes after the logging collector has started, the second one before.
    (folder / "postgres" / "global" / "pg_control").unlink()
    with pytest.raises(EmbeddedPostgresError, match=r"did not start: .*pg_control"):
        await server.start()
    with (folder / "postgres" / "postgresql.auto.conf").open("a") as configuration:
        configuration.write("shared_buffers = 'many'\n")
    with pytest.raises(EmbeddedPostgresError, match=r"did not start: .*errors"):
        await server.start()


async def test_file_in_place_of_the_folder_is_reported(folder: Path) -> None:
    folder.write_text("a file")
    with pytest.raises(EmbeddedPostgresError, match=f"cannot use {folder}: it is not a folder"):
        await EmbeddedPostgres(folder).start()


@pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="needs a folder where even root may not write")
async def test_folder_that_cannot_be_created_is_reported() -> None:
    with pytest.raises(EmbeddedPostgresError, match=r"/sys/squad.*(no permission|read-only)"):
        await EmbeddedPostgres(Path("/sys/squad")).start()


def test_full_disk_is_reported_in_one_line(folder: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(EmbeddedPostgresError, match=r"there is no space left") as caught,
        one_line_errors(folder),
    ):
        raise full
    assert caught.value.__cause__ is full


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another user")
def test_root_gets_one_log_line_for_each_folder_made_traversable(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    closed = folder.parent / "closed"
    closed.mkdir(mode=0o700)
    for _ in range(2):
        grant_access(closed / "data")
    assert closed.stat().st_mode & 0o777 == 0o701
    assert caplog.text.count(f"made {closed} traversable for every user") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another user")
def test_installation_with_a_strict_umask_is_made_readable_for_every_user(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "pg/pginstall18/bin/postgres": 0o705,
        "pg/pginstall18/share/c.sql": 0o704,
        "pg.libs/libpq.so": 0o704,
    }
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for path in folder.rglob("*"):
        path.chmod(0o700)
    monkeypatch.setattr(programs, "_installation", lambda: folder / "pg" / "pginstall18")
    grant_access(folder / "data")
    assert {name: (folder / name).stat().st_mode & 0o777 for name in files} == files
    assert (folder / "pg.libs").stat().st_mode & 0o777 == 0o705


def test_temporary_folder_made_traversable_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    made = temporary_folder("squad-test-")
    try:
        grant_access(made / "data")
    finally:
        made.rmdir()
    assert str(made) not in caplog.text


def test_server_can_be_stopped_from_another_event_loop(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    dsn = run_in_thread(server.start())
    assert query(dsn, "SELECT 1") == 1
    run_in_thread(server.stop())
    assert postmaster_pid(folder) is None
