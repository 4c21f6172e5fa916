"""The Postgres that the tests run on.

The first of these that is available:

1. the server in ``SQUAD_TEST_DSN``, whose user may create databases;
2. a container of ``SQUAD_TEST_IMAGE``, if a Docker engine answers and has, or can pull, the image;
3. the embedded one, in a temporary folder.

``SQUAD_TEST_POSTGRES`` (``auto``, ``docker`` or ``embedded``) restricts the choice; a server that is
requested explicitly and not available is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from eventstore import schema
from service.embedded import EmbeddedPostgres, temporary_folder

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

Kind = Literal["given", "docker", "embedded"]
RequestedKind = Literal["auto", "docker", "embedded"]
Value = TypeVar("Value")

DEFAULT_IMAGE = "postgres:18"
SQUAD_SCHEMA = "squad"

_IN_MEMORY = "/data"
"""The data folder of a container's server; see `tests.support.scratch`."""

_ENGINE_ANSWERS_WITHIN_SECONDS = 3
# A timeout between two chunks of a download, not for the whole.
_PULL_STALLS_AFTER_SECONDS = 30


@dataclass(frozen=True)
class PostgresServer:
    """A running server; `dsn` is its maintenance database, with a user who may create others."""

    dsn: str
    kind: Kind
    version: str
    remark: str = ""

    def __str__(self) -> str:
        remark = f" ({self.remark})" if self.remark else ""
        return f"{self.kind}, version {self.version}{remark}"

    def execute(self, statement: str, *names: str) -> None:
        """Run one statement outside a transaction, with identifiers filled in."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def disable_fsync(self) -> None:
        """Turn off fsync: the shared server need not survive a power failure."""
        for setting in ("fsync = off", "full_page_writes = off"):
            self.execute(f"ALTER SYSTEM SET {setting}")
        self.execute("SELECT pg_reload_conf()")

    @contextlib.contextmanager
    def new_database(self, *, template: str = "template1") -> Iterator[str]:
        """The DSN of a new database, which is dropped at the end despite open connections."""
        name = f"squad_test_{uuid.uuid4().hex}"
        self.execute("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY", name, template)
        try:
            yield make_conninfo(self.dsn, dbname=name)
        finally:
            self.execute("DROP DATABASE {} WITH (FORCE)", name)

    @contextlib.contextmanager
    def template_with_schema(self) -> Iterator[str]:
        """The name of a database that has the squad's schema and accepts no connections."""
        name = f"squad_template_{uuid.uuid4().hex}"
        self.execute("CREATE DATABASE {}", name)
        try:
            run_in_thread(schema.apply(make_conninfo(self.dsn, dbname=name), SQUAD_SCHEMA))
            # A template with open connections cannot be copied.
            self.execute("ALTER DATABASE {} ALLOW_CONNECTIONS false", name)
            yield name
        finally:
            self.execute("DROP DATABASE {} WITH (FORCE)", name)


@dataclass(frozen=True)
class Choice:
    """The server to use, chosen without starting one."""

    kind: Kind
    remark: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.remark})" if self.remark else self.kind


def choose() -> Choice:
    """Choose a server, which takes a moment at most."""
    if "SQUAD_TEST_DSN" in os.environ:
        return Choice("given", "SQUAD_TEST_DSN")
    requested = _requested_kind()
    if requested == "embedded":
        return Choice("embedded")
    problem = _engine_problem()
    if problem is None:
        return Choice("docker", _image())
    if requested == "docker":
        raise pytest.UsageError(f"SQUAD_TEST_POSTGRES=docker, but {problem}")
    return Choice("embedded", problem)


@contextlib.contextmanager
def running(choice: Choice) -> Iterator[PostgresServer]:
    """Start the chosen server, or the embedded one if the container cannot be started after all."""
    with contextlib.ExitStack() as stack:
        if choice.kind == "docker":
            try:
                dsn = stack.enter_context(_container(choice.remark))
            except Exception as error:
                if _requested_kind() == "docker":
                    raise
                choice = Choice("embedded", f"no container of {choice.remark}: {_first_line(error)}")
        if choice.kind == "given":
            dsn = os.environ["SQUAD_TEST_DSN"]
        elif choice.kind == "embedded":
            dsn = stack.enter_context(_embedded())
        with psycopg.connect(dsn) as connection:
            version = connection.info.parameter_status("server_version") or "unknown"
        server = PostgresServer(dsn, choice.kind, version, choice.remark)
        if choice.kind != "given":
            server.disable_fsync()
        yield server


@contextlib.contextmanager
def _embedded() -> Iterator[str]:
    # Not in pytest's own folder, which each run makes inaccessible to other users, such as the server's.
    folder = temporary_folder("squad-test-")
    server = EmbeddedPostgres(folder)
    try:
        yield run_in_thread(server.start())
    finally:
        run_in_thread(server.stop())
        shutil.rmtree(folder)


@contextlib.contextmanager
def _container(image: str) -> Iterator[str]:
    from testcontainers.community.postgres import PostgresContainer
    from testcontainers.core.docker_client import DockerClient

    client = DockerClient(timeout=_PULL_STALLS_AFTER_SECONDS).client
    try:
        if not client.images.list(name=image):
            client.images.pull(image)
    finally:
        client.close()
    container = PostgresContainer(image, driver=None).with_env("PGDATA", _IN_MEMORY)
    with container.with_tmpfs_mount(_IN_MEMORY):
        yield container.get_connection_url()


def _engine_problem() -> str | None:
    """The reason why no container can be started; None if one can."""
    from testcontainers.core.docker_client import DockerClient

    with warnings.catch_warnings():
        # The client drops the socket of a failed attempt without closing it.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            DockerClient(timeout=_ENGINE_ANSWERS_WITHIN_SECONDS).client.close()
        except Exception as error:  # noqa: BLE001 - whatever the reason, there is no engine to use
            problem = f"no Docker engine answers: {_first_line(_origin(error))}"
        else:
            return None
        gc.collect()
    return problem


def _origin(error: BaseException) -> BaseException:
    while error.__context__ is not None:
        error = error.__context__
    return error


def _requested_kind() -> RequestedKind:
    requested = os.environ.get("SQUAD_TEST_POSTGRES", "auto")
    for known in get_args(RequestedKind):
        if requested == known:
            return cast("RequestedKind", known)
    raise pytest.UsageError(
        f"SQUAD_TEST_POSTGRES={requested}: it is one of {', '.join(get_args(RequestedKind))}"
    )


def _image() -> str:
    return os.environ.get("SQUAD_TEST_IMAGE", DEFAULT_IMAGE)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def run_in_thread(work: Coroutine[Any, Any, Value]) -> Value:
    """Run a coroutine in a separate thread and event loop, apart from the loops of the tests."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(asyncio.run, work).result()
