"""The databases of the tests. No server is started before a test needs one."""

from __future__ import annotations

import gc
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.postgres import Choice, PostgresServer, choose, running
from tests.support.scratch import choose_folder
from tests.support.trial import PROPERTY, Row, table

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHOICE = pytest.StashKey[Choice]()
_SERVERS = pytest.StashKey[set[str]]()
_SCRATCH = pytest.StashKey[str]()
_LONG = frozenset({"faults", "model", "e2e"})
"""Folders of tests that start and stop services, or are randomized."""


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts pytest in the background ignores SIGINT, which child processes would inherit.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # nohup ignores SIGHUP. A handler survives it as well, but child processes get the default handling.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    config.stash[_SCRATCH] = choose_folder()
    config.stash[_CHOICE] = choose()
    config.stash[_SERVERS] = set()


def pytest_collection_finish() -> None:
    """Let the garbage collector scan less: what is imported stays, and tests leave few cycles behind."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(tryfirst=True)  # before the tests are selected by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the shared server, and put the longest first.

    So no process still has a long test while the others are idle.
    """
    for item in items:
        if "postgres" in getattr(item, "fixturenames", ()):
            item.add_marker("database")
    items.sort(key=lambda item: not _LONG.intersection(item.path.parts))


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"postgres: {config.stash[_CHOICE]}", f"temporary files: {config.stash[_SCRATCH]}"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    _show_faults(terminalreporter)
    servers = config.stash[_SERVERS]
    terminalreporter.write_line(f"postgres: {'; '.join(sorted(servers)) or 'none was needed'}")


def _show_faults(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the results of the trials, as in docs/operations.md."""
    # A test's rows are in the report of its teardown, which pytest files under "" if it passed. This code
    # is not in tests/faults, because with several processes the reporting one loads only this file.
    reports = terminalreporter.stats.get("", [])
    rows = [Row(*cells) for report in reports for name, cells in report.user_properties if name == PROPERTY]
    if rows:
        terminalreporter.section("faults")
        for line in table(rows):
            terminalreporter.write_line(line)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Collect the names of servers from the workers, if the tests run in several processes."""
    node.config.stash[_SERVERS].update(getattr(node, "workeroutput", {}).get("postgres", ()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        servers = session.config.stash[_SERVERS]
        output["postgres"] = list(servers)


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    """The server that all tests of a process share."""
    with running(pytestconfig.stash[_CHOICE]) as server:
        pytestconfig.stash[_SERVERS].add(str(server))
        yield server


@pytest.fixture(scope="session")
def _template(postgres: PostgresServer) -> Iterator[str]:
    with postgres.template_with_schema() as name:
        yield name


@pytest.fixture
def database(postgres: PostgresServer, _template: str) -> Iterator[str]:
    """The DSN of a new database for the test, with an empty squad in the schema ``squad``."""
    with postgres.new_database(template=_template) as dsn:
        yield dsn


@pytest.fixture
def second_database(postgres: PostgresServer, _template: str) -> Iterator[str]:
    """The DSN of a second such database."""
    with postgres.new_database(template=_template) as dsn:
        yield dsn


@pytest.fixture
def empty_database(postgres: PostgresServer) -> Iterator[str]:
    """The DSN of a new, empty database for the test."""
    with postgres.new_database() as dsn:
        yield dsn
