"""CLI commands that change something: decided and appended without a service in between.

A command has its own writer for as long as it runs, so it is decided at the head of the log like all
others, whether or not services are running, and what has become due by then is decided before it. A running
service sees its events as it sees those of other processes.
"""

from __future__ import annotations

import getpass
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click
from pydantic import ValidationError

from eventstore import schema
from eventstore.listener import Hints, Listener
from service.app import wait_until_ready
from service.background import background
from service.cli.output import printable
from service.cli.target import open_squad
from service.clock import DatabaseClock
from service.commands.base import Command
from service.database import StartFailed
from service.http.json import dumps
from service.requests import CommandFailed, OutcomeUnknown, QueueFull, Request, Stopping, Unavailable
from service.values import in_words
from service.writing.batch import new_id
from service.writing.writer import Writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from eventstore.connection import Connection
    from service.cli.target import Target
    from service.commands import AnyCommand
    from service.requests import Outcome
    from service.settings import Settings

C = TypeVar("C", bound=Command)

_MAX_LOGIN_CHARACTERS = 100
_SHOWN_CHARACTERS = 100


@dataclass(frozen=True)
class SquadSession:
    """What a CLI command needs to change a squad."""

    connection: Connection
    """For reading."""
    settings: Settings
    dsn: str
    writer: Writer
    """Ready; its `squad` is the state at the log's head, as of the last command."""
    actor: str

    async def submit(self, command: AnyCommand) -> Outcome:
        """Have a command decided; return once its outcome is durable.

        Raises:
            StartFailed: it was refused or could not be decided; the message says why in one line.
        """
        request = Request(command, self.actor, new_id())
        try:
            outcome = await self.writer.submit(request)
        except (Unavailable, QueueFull, Stopping) as error:
            raise StartFailed("the database cannot be reached; nothing was carried out") from error
        except OutcomeUnknown as error:
            raise StartFailed(
                "the database did not confirm the commit in time; `squad events` shows whether it was"
                " carried out"
            ) from error
        except CommandFailed as error:
            if not self.writer.squad.has_policy:
                raise StartFailed("the squad was never started; start it once with `squad up`") from error
            raise StartFailed(printable(f"internal error: {error}")) from error
        if outcome.refusal:
            raise StartFailed(printable(outcome.refusal.detail))
        return outcome


def make_command(kind: type[C], **fields: Any) -> C:
    """Make a command from what the user typed.

    Raises:
        StartFailed: it is not valid; the message names the field and what is wrong with it.
    """
    try:
        return kind(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where, given = ".".join(map(str, first["loc"])), repr(first["input"])
        shown = given if len(given) <= _SHOWN_CHARACTERS else f"{given[:_SHOWN_CHARACTERS]}…"
        raise StartFailed(printable(f"{where} is {shown}: {in_words(first)}")) from error


@asynccontextmanager
async def open_session(
    target: Target,
    *,
    listen: bool = False,
    create: bool = False,
) -> AsyncIterator[SquadSession]:
    """Open an existing squad, or a new one if `create`, to change something in it.

    Args:
        target: the squad.
        listen: for a command that waits for what others do: the writer is then notified at once, instead
            of only polling, which it does before each decision and every second.
        create: whether to create the squad if it does not exist.

    Raises:
        StartFailed: there is no squad, or its state cannot be restored.
    """
    async with open_squad(target, create=create) as (connection, chosen, found):
        await schema.check_may_append(connection)
        listener = Listener(found, chosen.squad_schema) if listen else None
        hints = listener.events if listener else Hints()
        writer = Writer(found, chosen.squad_schema, DatabaseClock(), hints, encrypt=chosen.encrypt_payloads)
        async with background(writer.run(), *([listener.run()] if listener else [])):
            await wait_until_ready(writer)
            yield SquadSession(connection, chosen, found, writer, actor())


async def carry_out(target: Target, command: AnyCommand) -> None:
    """Have a command decided on an existing squad, and print its outcome as JSON.

    Raises:
        StartFailed: there is no such squad, or the command was refused or could not be decided.
    """
    async with open_session(target) as squad:
        outcome = await squad.submit(command)
    click.echo(dumps({**outcome.reply, "position": outcome.position}).decode())


def actor() -> str:
    """Return the user who runs the command, as the log names them."""
    try:
        login = getpass.getuser()
    except (OSError, KeyError, ImportError):
        login = str(os.getuid())
    return f"cli:{printable(login)[:_MAX_LOGIN_CHARACTERS]}"
