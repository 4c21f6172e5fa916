"""`squad forget`: destroy the key of a sender or a message, and wait until the read tables follow."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

import click

from eventstore import traces
from eventstore.listener import Hints
from projections.emails import emails
from projections.messages import messages
from projections.projector import Projector
from service.background import background
from service.cli.running import run
from service.cli.session import make_command, open_session
from service.cli.target import target_options
from service.commands import ForgetSubject
from service.database import StartFailed

if TYPE_CHECKING:
    from service.cli.session import SquadSession
    from service.cli.target import Target
    from service.requests import Outcome

POLL_SECONDS = 0.05
"""How often the positions of the tables are polled."""

STUCK_AFTER_SECONDS = 10.0
"""How long the tables may make no progress before the command gives up."""

_MIN_POSITION = "SELECT coalesce(min(position), 0) FROM projections WHERE name = ANY(%s)"


@click.command()
@click.argument("subject")
@target_options
def forget(*, subject: str, target: Target) -> None:
    """Make a sender's e-mails, or a message, unreadable forever.

    SUBJECT is the address of an e-mail sender, or the id of a message. Only what was logged while payloads
    were encrypted (SQUAD_ENCRYPT_PAYLOADS) can be forgotten. If some of it was not, the command says so and
    exits with 1.
    """

    async def work() -> Outcome:
        async with open_session(target) as squad:
            command = make_command(ForgetSubject, subject=subject)
            in_plain = await traces.in_plain(squad.connection, command.subject)
            outcome = await squad.submit(command.model_copy(update={"in_plain": in_plain}))
            await _wait_for_tables(squad, outcome.position or 0)
            return outcome

    outcome = run(work())
    done = outcome.reply
    what = [
        _count(done[kind], word)
        for kind, word in (("emails", "e-mail"), ("messages", "message"))
        if done[kind]
    ]
    click.echo(
        f"forgotten: {' and '.join(what) or 'a key that encrypted nothing'} (position {outcome.position})"
    )
    if done["in_plain"]:
        raise StartFailed(
            f"{_count(done['in_plain'], 'e-mail')} of this sender entered the log, in whole or in part,"
            " before payloads were encrypted, and cannot be erased"
        )


async def _wait_for_tables(squad: SquadSession, position: int) -> None:
    """Wait until the read tables have erased it too. If no service maintains them, this process does so.

    Raises:
        StartFailed: they make no progress.
    """
    projector = Projector(squad.dsn, squad.settings.squad_schema, Hints())
    async with background(projector.run()):
        reached, moved_at = -1, monotonic()
        while reached < position:
            cursor = await squad.connection.execute(_MIN_POSITION, ([emails.name, messages.name],))
            row = await cursor.fetchone()
            at = row[0] if row else 0
            if at > reached:
                reached, moved_at = at, monotonic()
            elif monotonic() - moved_at > STUCK_AFTER_SECONDS:
                raise StartFailed(
                    f"it is forgotten (position {position}), but the read tables are stuck at {reached}"
                    " and still hold it: see `squad status`"
                )
            if reached < position:
                await asyncio.sleep(POLL_SECONDS)


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
