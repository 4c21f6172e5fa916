"""`squad checkpoint`: the log's head, signed, to be kept elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from eventstore import checkpoint as signed
from eventstore import log, lookup, verification
from eventstore.recorded import Head
from service.cli import progress
from service.cli.files import STANDARD, open_output
from service.cli.running import run
from service.cli.target import NO_TIMEOUTS, open_squad, target_options
from service.database import StartFailed

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from eventstore.checkpoint import Checkpoint
    from eventstore.connection import Connection
    from service.cli.target import Target

_FILE = click.Path(path_type=Path)


@click.command()
@click.option("--key", type=_FILE, help="The key to sign with.  [default: the setting checkpoint_key]")
@click.option("--out", type=_FILE, default=STANDARD, help="Where to write it.  [default: stdout]")
@click.option(
    "--new-key", type=_FILE, help="Only create a key in this file, with its public key beside it."
)
@target_options
def checkpoint(
    *,
    key: Path | None,
    out: Path,
    new_key: Path | None,
    target: Target,
) -> None:
    """Verify the log, and sign its last position and hash."""
    if new_key is not None:
        name = signed.new_key(new_key)
        click.echo(f"created the key {name}")
        click.echo(f"  private  {new_key}: keep it out of reach of everyone who can write to the database")
        click.echo(f"  public   {signed.public_key_path(new_key)}: for squad verify --public-key")
        return
    chosen_key = key or target.settings().checkpoint_key
    if chosen_key is None:
        raise StartFailed(
            "there is no key to sign with; name one with --key, or create one with"
            " `squad checkpoint --new-key FILE`"
        )
    private = signed.private_key(chosen_key)

    async def work() -> Checkpoint:
        async with open_squad(target, **NO_TIMEOUTS) as (connection, _, _):
            return await _signed(connection, private)

    made = run(work())
    with open_output(out) as file:
        file.write(made.to_json().encode())


async def _signed(connection: Connection, key: Ed25519PrivateKey) -> Checkpoint:
    """Verify the log, and return a checkpoint of its last event.

    Raises:
        StartFailed: the log does not hold, or is empty.
    """
    async with verification.snapshot(connection):
        total = await log.head_position(connection)
        with progress.show("the log") as report:
            verified = await verification.verify_log(connection, report=lambda done: report(done, total))
        if fault := verified.first_fault:
            place = f"position {fault.position}: " if fault.position is not None else ""
            raise StartFailed(f"nothing was signed, because the log does not hold: {place}{fault.says}")
        last = await lookup.read_one(connection, verified.position)
    if last is None or verified.squad is None:
        raise StartFailed("nothing was signed, because the log is empty")
    now = await log.clock(connection)
    return signed.sign(key, verified.squad, Head(last.position, last.hash, last.recorded_at), now)
