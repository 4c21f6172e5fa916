"""What the commands share: which database, and how it is opened."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import re
import signal
import sys
import threading
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import click
import uvloop
from rich.console import Console

from eventstore import schema
from eventstore.connection import connect
from service import settings
from service.database import StartFailed, database, way_for_commands
from service.embedded import CLUSTER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from eventstore.connection import Connection
    from service.settings import Settings

F = TypeVar("F", bound="Callable[..., Any]")
T = TypeVar("T")

AT_LEISURE: dict[str, Any] = {
    "statement_timeout": 0,
    "transaction_timeout": 0,
    "idle_in_transaction_session_timeout": 0,
}
"""The session of a command that reads or writes the whole log: it takes as long as it takes."""

_SAID_AGAIN_AFTER_SECONDS = 1.0
"""A second signal means "at once", unless it comes with the first: `timeout` sends it to the group, too."""

_STUCK_AFTER_SECONDS = 1.5
"""How long a command may take to hear of a signal, as while it waits for whoever reads its output."""

_WIDE = 10_000
"""Columns enough for any row."""

_AGO = re.compile(r"([0-9]{1,9})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Folder(click.Path):
    """A folder. A path of nothing is none: it would be the one in which the command runs."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Its path."""
        if value == "":
            self.fail("it must name a folder", param, ctx)
        return super().convert(value, param, ctx)


def database_options(command: F) -> F:
    """`--dsn`, `--data` and `--config`, which every command takes."""
    for option in (
        click.option(
            "--config", type=click.Path(path_type=Path), help="The settings' file.  [default: ./squad.toml]"
        ),
        click.option(
            "--data",
            type=Folder(path_type=Path),
            help="The embedded Postgres's folder.  [default: .squad]",
        ),
        click.option("--dsn", help="The database; without it, the embedded Postgres."),
    ):
        command = option(command)
    return command


COLLECT_AFTER = (50_000, 50, 100)
"""Thresholds of Python's garbage collector (gc.set_threshold). By default it looks through the state in
memory again and again, while everybody waits; and what is made here has next to no cycles."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's work. Told to end by SIGTERM or SIGHUP, it cleans up first, as after Ctrl-C."""
    # Where nobody has set up logs, Python would print warnings of parts and libraries beside the one line
    # with which a command fails.
    logging.getLogger().addHandler(logging.NullHandler())
    gc.set_threshold(*COLLECT_AFTER)
    told: list[int] = []
    try:
        return uvloop.run(_until_told(work, told))
    except (asyncio.CancelledError, KeyboardInterrupt):
        if not told:
            raise
        sys.exit(128 + told[0])


async def _until_told(work: Coroutine[Any, Any, T], told: list[int]) -> T:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    since = 0.0

    def end(number: int, _: object) -> None:
        nonlocal since
        if task and not told:
            since = monotonic()
            told.append(number)
            task.cancel()
            # Only where the loop turns can it clean up by itself; else it says this again, to itself.
            signal.signal(signal.SIGALRM, end)
            signal.setitimer(signal.ITIMER_REAL, _STUCK_AFTER_SECONDS)
            loop.call_soon_threadsafe(signal.setitimer, signal.ITIMER_REAL, 0)
        elif monotonic() - since > _SAID_AGAIN_AFTER_SECONDS:
            raise KeyboardInterrupt

    # Elsewhere, as in tests, signals are none of ours; Python would not let them be.
    is_main = threading.current_thread() is threading.main_thread()
    for number in (signal.SIGTERM, signal.SIGHUP) if is_main else ():
        # Whoever starts it with nohup wants it to outlive the terminal.
        if signal.getsignal(number) == signal.SIG_DFL:
            # Not the loop's own way, which is deaf while a write waits for whoever reads the output.
            signal.signal(number, end)
    return await work


@asynccontextmanager
async def open_squad(
    config: Path | None,
    dsn: str | None,
    data: Path | None,
    *,
    anew: bool = False,
    **session: str | int,
) -> AsyncIterator[tuple[Connection, Settings, str]]:
    """A connection to a squad that exists, or (`anew`) comes to exist by this; its settings, and the DSN.

    The DSN leads to a session of one's own, where there is a way to one.

    Args:
        config: the settings' file, where one is named.
        dsn: the database, where one is named.
        data: the embedded Postgres's folder, where one is named.
        session: settings of the server for the connection.

    Raises:
        StartFailed: there is no squad, or its folder cannot be reached.
    """
    chosen = settings.read(config, dsn=dsn, data=data)
    if not anew and not chosen.dsn and not _holds_a_cluster(chosen.data):
        raise StartFailed(
            f"there is no squad in {chosen.data}; start one with `squad up`, or name it with --dsn"
        )
    async with way_to_database(chosen) as found:
        if anew:
            await schema.apply(found, chosen.squad_schema)
        connection = await connect(found, chosen.squad_schema, name="squad cli", **session)
        async with connection:
            await schema.check(connection)
            yield connection, chosen, found


@asynccontextmanager
async def way_to_database(chosen: Settings) -> AsyncIterator[str]:
    """The DSN that a command acts on: it leads to a session of one's own, where there is a way to one.

    Raises:
        StartFailed: SQUAD_LISTEN_DSN leads to another log.
    """
    async with database(chosen) as given:
        yield await way_for_commands(chosen, given)


def _holds_a_cluster(folder: Path) -> bool:
    # A command that only looks makes none: the folder may be named by mistake.
    try:
        (folder / CLUSTER).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StartFailed(f"the folder {folder} cannot be reached: {error.strerror}") from error
    return True


class Text(click.ParamType[str]):
    """A text in UTF-8. What is none comes with surrogates, which no database and no output takes."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text."""
        text = str(click.STRING.convert(value, param, ctx))
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail(f"{text!r} is not UTF-8", param, ctx)
        return text


def take_only_utf8(command: click.Command) -> None:
    """Has a command, and all below it, refuse texts that are not UTF-8. Names of files may be anything."""
    for param in command.params:
        if param.type is click.STRING:
            param.type = Text()
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        take_only_utf8(below)


class Whole(click.IntRange):
    """A whole number within bounds. What click calls it itself makes no sentence where it is none."""

    name = "integer"


class Seconds(click.FloatRange):
    """So many seconds. Python's nan is none, though no range turns it away."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds


class Moment(click.ParamType[datetime]):
    """A moment: RFC 3339, or how long ago, such as 90s, 15m, 2h or 1d."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The moment in UTC."""
        if isinstance(value, datetime):
            return value
        try:
            if ago := _AGO.fullmatch(value):
                return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
            moment = datetime.fromisoformat(value)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is neither RFC 3339 nor like 15m, 2h or 1d", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def tables() -> Console:
    """Stdout, for tables. Where it is no terminal it may be searched, so that no row is folded."""
    console = Console()
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = _WIDE
    return console


def printable(text: str) -> str:
    """What somebody sent, on one line, and without what a terminal would obey."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
