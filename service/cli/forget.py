"""`squad forget`: destroys the key of a sender or a message."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from eventstore import traces
from service.app import StartFailed
from service.cli.acting import acting, asked
from service.cli.common import database_options, run
from service.commands import ForgetSubject

if TYPE_CHECKING:
    from pathlib import Path

    from service.requests import Outcome


@click.command()
@click.argument("subject")
@database_options
def forget(*, subject: str, dsn: str | None, data: Path | None, config: Path | None) -> None:
    """Make what a sender wrote, or a message, unreadable for ever.

    SUBJECT is the address of a sender of e-mails, or the id of a message. It can only be forgotten as far
    as it was logged while payloads were encrypted (SQUAD_ENCRYPT_PAYLOADS). Where some of it was not, that
    is told, and the exit is 1.
    """

    async def work() -> Outcome:
        async with acting(config, dsn, data) as squad:
            wanted = asked(ForgetSubject, subject=subject)
            in_plain = await traces.in_plain(squad.connection, wanted.subject)
            return await squad.do(wanted.model_copy(update={"in_plain": in_plain}))

    outcome = run(work())
    done = outcome.reply
    what = [
        _count(done[kind], word)
        for kind, word in (("emails", "e-mail"), ("messages", "message"))
        if done[kind]
    ]
    click.echo(
        f"forgotten: {' and '.join(what) or 'the key, which sealed nothing'} (position {outcome.position})"
    )
    if done["in_plain"]:
        raise StartFailed(
            f"{_count(done['in_plain'], 'e-mail')} of this sender stood in the log before payloads were"
            " encrypted, in whole or in part, and nothing can erase that"
        )


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
