"""`squad up`: the service."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
from typing import TYPE_CHECKING

import click
from psycopg.conninfo import conninfo_to_dict

from eventstore.redaction import describe
from service import logs, settings
from service.app import serving
from service.cli.running import run
from service.cli.target import target_options
from service.database import StartFailed
from service.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from service.cli.target import Target
    from service.settings import Settings

MAX_OPEN_FILES = 65_536
"""How many files a service may have open, if the system allows it."""

_log = logging.getLogger(__name__)


@click.command()
@click.option("--host", help="The address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="The port to listen on.  [default: 3001]")
@click.option("--insecure", is_flag=True, help="Serve a squad without keys to other machines, too.")
@target_options
def up(
    *,
    host: str | None,
    port: int | None,
    insecure: bool,
    target: Target,
) -> None:
    """Start the service.

    It starts the embedded Postgres as well, unless a database is named.
    """
    chosen = target.settings(host=host, port=port, insecure=insecure or None)
    logs.configure(chosen.log_format, chosen.log_level)
    for line in settings.misspelt():
        _log.warning("%s", line)
    _raise_file_limit()
    run(_serve(chosen))


def _raise_file_limit() -> None:
    """Raise the soft limit on open files: each connection is one, and many systems have a low default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target_limit = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < target_limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target_limit, hard))


async def _serve(chosen: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(logs.log_unhandled)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    # A service started with nohup is meant to outlive the terminal.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, stop.set)
    embedded = None if chosen.dsn else EmbeddedPostgres(chosen.data)
    starting = asyncio.create_task(_until_stopped(chosen, embedded, stop))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
    # A second Ctrl-C means to exit at once; the log is safe in any case. A second SIGTERM does not: `make`
    # and others forward it to us in addition to the one sent to the whole process group.
    loop.add_signal_handler(signal.SIGINT, _exit_at_once, embedded)
    stopped.cancel()
    await starting


def _exit_at_once(embedded: EmbeddedPostgres | None) -> None:
    try:
        if embedded:
            embedded.abandon()
    finally:
        os._exit(1)


async def _until_stopped(chosen: Settings, embedded: EmbeddedPostgres | None, stop: asyncio.Event) -> None:
    async with serving(chosen, embedded) as (url, tasks):
        click.echo(f"squad is listening on {url}")
        click.echo(f"  data   {_database_location(chosen)}")
        click.echo(f"  try    curl '{url}/api/squad?action=orchestrator-status'")
        click.echo(f"  docs   {url}/openapi.json")
        click.echo("  stop   Ctrl-C")
        waiting = asyncio.create_task(stop.wait())
        ended, _ = await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        for task in ended & set(tasks):
            raise StartFailed(f"a part of the service ended: {describe(task.exception())}")
        _announce_stop()


def _announce_stop() -> None:
    try:
        click.echo("squad is stopping")
    except OSError:
        # The terminal or the pipe's reader is gone. Discard what is still to be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _database_location(chosen: Settings) -> str:
    if not chosen.dsn:
        return f"{chosen.data.resolve()} (embedded Postgres), schema {chosen.squad_schema}"
    parts = conninfo_to_dict(chosen.dsn)
    host, name = parts.get("host", "local socket"), parts.get("dbname", "the default database")
    return f"Postgres at {host}, database {name}, schema {chosen.squad_schema}"
