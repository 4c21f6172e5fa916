"""The squad that a command works on, and how to open it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from eventstore import schema
from eventstore.connection import connect
from service import settings
from service.cli.parameters import Folder
from service.database import StartFailed, database, resolve_command_dsn
from service.embedded import CLUSTER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from eventstore.connection import Connection
    from service.settings import Settings

NO_TIMEOUTS: dict[str, Any] = {
    "statement_timeout": 0,
    "transaction_timeout": 0,
    "idle_in_transaction_session_timeout": 0,
}
"""Session settings without timeouts, for commands that read or write the whole log."""


class Target(NamedTuple):
    """The options of a command that name the squad; None if not given."""

    config: Path | None = None
    """The settings file."""
    dsn: str | None = None
    """The database."""
    data: Path | None = None
    """The embedded Postgres's folder."""

    def settings(self, **flags: Any) -> Settings:
        """Return the squad's settings, overridden by further command-line flags.

        Raises:
            SettingsError: a setting is wrong, or the file cannot be read.
        """
        return settings.read(self.config, dsn=self.dsn, data=self.data, **flags)


def target_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--dsn`, `--data` and `--config`, which every command takes, and pass them as its `target`."""

    @wraps(command)
    def with_target(
        *args: Any, config: Path | None, dsn: str | None, data: Path | None, **others: Any
    ) -> None:
        command(*args, target=Target(config, dsn, data), **others)

    for option in (
        click.option(
            "--config", type=click.Path(path_type=Path), help="The settings file.  [default: ./squad.toml]"
        ),
        click.option(
            "--data",
            type=Folder(path_type=Path),
            help="The embedded Postgres's folder.  [default: .squad]",
        ),
        click.option("--dsn", help="The database.  [default: the embedded Postgres]"),
    ):
        with_target = option(with_target)
    return with_target


@asynccontextmanager
async def open_squad(
    target: Target, *, create: bool = False, **session: str | int
) -> AsyncIterator[tuple[Connection, Settings, str]]:
    """Connect to an existing squad, or a new one if `create`; yield its settings and DSN as well.

    The DSN gives a dedicated session if possible (see `command_dsn`).

    Args:
        target: the squad.
        create: whether to create the squad if it does not exist.
        session: server settings for the connection.

    Raises:
        StartFailed: there is no squad, or its folder cannot be accessed.
    """
    chosen = target.settings()
    if not create and not chosen.dsn and not _holds_a_cluster(chosen.data):
        raise StartFailed(
            f"there is no squad in {chosen.data}; start one with `squad up`, or name a database with --dsn"
        )
    async with command_dsn(chosen) as found:
        if create:
            await schema.apply(found, chosen.squad_schema)
        connection = await connect(found, chosen.squad_schema, name="squad cli", **session)
        async with connection:
            await schema.check(connection)
            yield connection, chosen, found


@asynccontextmanager
async def command_dsn(chosen: Settings) -> AsyncIterator[str]:
    """Yield the DSN for a command. It gives a dedicated session, past any pooler, if possible.

    Raises:
        StartFailed: SQUAD_LISTEN_DSN leads to another log.
    """
    async with database(chosen) as given:
        yield await resolve_command_dsn(chosen, given)


def _holds_a_cluster(folder: Path) -> bool:
    # A command that only reads must not create one: the folder may be named by mistake.
    try:
        (folder / CLUSTER).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StartFailed(f"the folder {folder} cannot be accessed: {error.strerror}") from error
    return True
