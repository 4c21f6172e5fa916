"""The embedded Postgres, with real servers in folders of their own and real processes that share them."""

# ruff: noqa: ASYNC240 - a look at a file blocks nothing else in these tests

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
from tests.support.postgres import run_apart
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

TIMEOUT_SECONDS = 60.0

# Uses the server in the folder named by its argument until it is told to leave.
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
    # Not in pytest's own folder, which each new session closes to other users, the server's among them.
    parent = temporary_folder("squad-test-")
    folder = parent / "data"
    yield folder
    # Whatever a failed test left running: a server that is closed properly needs none of this.
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


async def test_a_started_server_answers_and_a_stopped_one_is_gone(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    dsn = await server.start()
    assert query(dsn, "SELECT 1") == 1
    await server.stop()
    assert postmaster_pid(folder) is None
    with pytest.raises(psycopg.OperationalError):
        query(dsn, "SELECT 1")


async def test_it_is_durable_in_utf8_and_reached_by_its_socket_only(folder: Path) -> None:
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


async def test_stopping_twice_or_unstarted_does_nothing(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    await server.stop()
    await server.start()
    await server.stop()
    await server.stop()
    assert postmaster_pid(folder) is None


async def test_a_cancelled_start_is_undone_by_stop(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    start = asyncio.create_task(server.start())
    await eventually(folder.exists)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    await server.stop()
    assert postmaster_pid(folder) is None


async def test_an_abandoned_server_stops_by_itself(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    await server.start()
    server.abandon()
    await eventually(lambda: postmaster_pid(folder) is None, within_seconds=TIMEOUT_SECONDS)
    await server.stop()


async def test_an_abandoned_server_goes_on_for_others(
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


async def test_the_last_of_two_processes_stops_the_server(
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


async def test_three_processes_that_start_at_once_from_nothing_share_one_server(
    folder: Path, another_user: Callable[[], asyncio.Future[User]]
) -> None:
    users = await asyncio.gather(*(another_user() for _ in range(3)))
    dsns = await asyncio.gather(*(user.started() for user in users))
    assert len(set(dsns)) == 1
    assert query(dsns[0], "SELECT 1") == 1
    assert not list(folder.glob("postgres.new-*"))
    await asyncio.gather(*(user.leave() for user in users))
    assert postmaster_pid(folder) is None


async def test_a_killed_process_is_not_counted(
    folder: Path, another_user: Callable[[], asyncio.Future[User]]
) -> None:
    user = await another_user()
    await user.started()
    server = EmbeddedPostgres(folder)
    await server.start()
    await user.kill()
    await server.stop()
    assert postmaster_pid(folder) is None


async def test_the_server_of_a_killed_process_is_used_again(
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


async def test_a_process_killed_while_it_makes_the_cluster_leaves_a_folder_that_starts(
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
async def test_a_killed_server_is_started_again_with_all_that_was_committed(
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


async def test_files_with_a_process_number_that_is_another_programs_by_now_do_no_harm(folder: Path) -> None:
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
async def test_a_pid_file_of_nonsense_does_no_harm(folder: Path, content: bytes) -> None:
    (folder / "postgres").mkdir(parents=True)
    (folder / "postgres" / "postmaster.pid").write_bytes(content)
    assert postmaster_pid(folder) is None


async def test_a_path_too_long_for_a_socket_is_no_obstacle(folder: Path) -> None:
    deep = folder.joinpath(*["a-folder-with-a-long-name"] * 6)
    server = EmbeddedPostgres(deep)
    dsn = await server.start()
    assert Path(str(query(dsn, "SHOW data_directory"))) == deep / "postgres"
    socket_folder = Path(str(query(dsn, "SHOW unix_socket_directories")).strip('"'))
    assert socket_folder.stat().st_mode & 0o077 == 0
    await server.stop()
    assert not socket_folder.exists()


async def test_a_path_with_spaces_commas_and_quotes_is_no_obstacle(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "it's odd, isn't it")
    assert query(await server.start(), "SELECT 1") == 1
    await server.stop()


async def test_a_cluster_of_another_major_version_is_refused_by_name(folder: Path) -> None:
    (folder / "postgres").mkdir(parents=True)
    (folder / "postgres" / "PG_VERSION").write_text("16\n")
    message = (
        "was created by Postgres 16, and this is Postgres 18: run `squad export` with the version of squad"
    )
    with pytest.raises(EmbeddedPostgresError, match=message):
        await EmbeddedPostgres(folder).start()


async def test_a_folder_with_something_else_in_it_is_left_alone(folder: Path) -> None:
    (folder / "postgres").mkdir(parents=True)
    (folder / "postgres" / "letter.txt").write_text("dear diary")
    with pytest.raises(EmbeddedPostgresError, match="is not empty and not a Postgres cluster"):
        await EmbeddedPostgres(folder).start()


async def test_what_the_server_says_about_a_failed_start_is_handed_on(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    dsn = await server.start()
    with pytest.raises(psycopg.OperationalError):
        query(make_conninfo(dsn, dbname="an_older_error_in_the_log"), "SELECT 1")
    await server.stop()
    # Found out too late for one of its two logs, and in time for the other.
    (folder / "postgres" / "global" / "pg_control").unlink()
    with pytest.raises(EmbeddedPostgresError, match=r"did not start: .*pg_control"):
        await server.start()
    with (folder / "postgres" / "postgresql.auto.conf").open("a") as configuration:
        configuration.write("shared_buffers = 'many'\n")
    with pytest.raises(EmbeddedPostgresError, match=r"did not start: .*errors"):
        await server.start()


async def test_a_file_in_place_of_the_folder_is_named(folder: Path) -> None:
    folder.write_text("a file")
    with pytest.raises(EmbeddedPostgresError, match=f"cannot use {folder}: it is not a folder"):
        await EmbeddedPostgres(folder).start()


@pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="needs a place where even root may not write")
async def test_a_place_where_nobody_may_write_is_named() -> None:
    with pytest.raises(EmbeddedPostgresError, match=r"/sys/squad.*(no permission|read-only)"):
        await EmbeddedPostgres(Path("/sys/squad")).start()


def test_a_full_disk_is_one_clear_line(folder: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(EmbeddedPostgresError, match=r"there is no space left") as caught,
        one_line_errors(folder),
    ):
        raise full
    assert caught.value.__cause__ is full


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has another user run Postgres")
def test_root_is_told_which_folders_are_opened(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    closed = folder.parent / "closed"
    closed.mkdir(mode=0o700)
    for _ in range(2):
        grant_access(closed / "data")
    assert closed.stat().st_mode & 0o777 == 0o701
    assert caplog.text.count(f"made {closed} traversable for every user") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has another user run Postgres")
def test_all_of_what_was_installed_with_a_strict_umask_is_opened(
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


def test_of_a_folder_to_be_thrown_away_nobody_is_told(caplog: pytest.LogCaptureFixture) -> None:
    made = temporary_folder("squad-test-")
    try:
        grant_access(made / "data")
    finally:
        made.rmdir()
    assert str(made) not in caplog.text


def test_a_new_loop_can_stop_what_another_has_started(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    dsn = run_apart(server.start())
    assert query(dsn, "SELECT 1") == 1
    run_apart(server.stop())
    assert postmaster_pid(folder) is None
