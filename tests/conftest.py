"""The databases of the tests. No server is started before a test asks for one."""

from __future__ import annotations

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
"""Folders of tests that start services and end them, or try things at random."""


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts us in the background has Ctrl-C ignored, and so would all that we start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # And nohup has hangups ignored. We go on after one as well, but what we start shall take it as it does.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    config.stash[_SCRATCH] = choose_folder()
    config.stash[_CHOICE] = choose()
    config.stash[_SERVERS] = set()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with what takes longest: no process shall have a long test left, and the others none."""
    items.sort(key=lambda item: not _LONG.intersection(item.path.parts))


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"postgres: {config.stash[_CHOICE]}", f"temporary files: {config.stash[_SCRATCH]}"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    _show_faults(terminalreporter)
    servers = config.stash[_SERVERS]
    terminalreporter.write_line(f"postgres: {'; '.join(sorted(servers)) or 'none was needed'}")


def _show_faults(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows what came of the faults, as docs/operations.md has it."""
    # A test's rows are in the report of its end, which pytest files under no name where all is well. This
    # is not beside those tests, because the process that tells of several others loads this file only.
    reports = terminalreporter.stats.get("", [])
    rows = [Row(*cells) for report in reports for name, cells in report.user_properties if name == PROPERTY]
    if rows:
        terminalreporter.section("faults")
        for line in table(rows):
            terminalreporter.write_line(line)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes over which server a worker had, where the tests run in several processes."""
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
    """The DSN of a database of the test's own, with an empty squad in the schema ``squad``."""
    with postgres.new_database(template=_template) as dsn:
        yield dsn


@pytest.fixture
def new_squad(postgres: PostgresServer, _template: str) -> Iterator[str]:
    """The DSN of a second database like that, for a test that needs two."""
    with postgres.new_database(template=_template) as dsn:
        yield dsn


@pytest.fixture
def empty_database(postgres: PostgresServer) -> Iterator[str]:
    """The DSN of a database of the test's own with nothing in it."""
    with postgres.new_database() as dsn:
        yield dsn
