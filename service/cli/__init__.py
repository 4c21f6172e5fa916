"""The `squad` command."""

from __future__ import annotations

import io
import os
import sys

import click
import psycopg

from eventstore.errors import EventStoreError
from service.cli.bench import bench
from service.cli.checkpoint import checkpoint
from service.cli.events import events
from service.cli.explain import explain_position
from service.cli.export import export_command, import_command
from service.cli.forget import forget
from service.cli.jobs import jobs
from service.cli.keys import keys_
from service.cli.orchestrator import orchestrator
from service.cli.parameters import take_only_utf8
from service.cli.replay import replay
from service.cli.schema import schema_
from service.cli.state import state
from service.cli.status import status
from service.cli.up import up
from service.cli.verify import verify
from service.cli.whatif import whatif
from service.database import StartFailed
from service.embedded import EmbeddedPostgresError
from service.settings import SettingsError
from service.version import VERSION

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="squad")
def cli() -> None:
    """Schedules, connects, budgets and audits a squad of AI agents."""


cli.add_command(up)
cli.add_command(events)
cli.add_command(forget)
cli.add_command(jobs)
cli.add_command(orchestrator)
cli.add_command(replay)
cli.add_command(keys_)
cli.add_command(status)
cli.add_command(bench)
cli.add_command(verify)
cli.add_command(checkpoint)
cli.add_command(export_command)
cli.add_command(import_command)
cli.add_command(explain_position)
cli.add_command(state)
cli.add_command(schema_)
cli.add_command(whatif)
take_only_utf8(cli)


def main() -> None:
    """Run the command; an error is one clear line on stderr and a non-zero exit code."""
    _open_closed_streams()
    _escape_unencodable_output()
    try:
        cli(standalone_mode=False, prog_name="squad")
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        click.echo(f"squad: {error.format_message()}", err=True)
        sys.exit(error.exit_code)
    except (StartFailed, SettingsError, EmbeddedPostgresError, EventStoreError, psycopg.Error) as error:
        for line in str(error).strip().splitlines():
            click.echo(f"squad: {line}", err=True)
        sys.exit(1)
    except OSError as error:
        # Usually the output cannot be written because a disk is full.
        place = f"{error.filename}: " if error.filename else ""
        click.echo(f"squad: cannot continue: {place}{error.strerror or error}", err=True)
        # Otherwise Python would report it again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


def _escape_unencodable_output() -> None:
    """Have stdout escape characters that the locale's encoding lacks, as stderr does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _open_closed_streams() -> None:
    """Redirect stdin, stdout and stderr to the null device if they are closed.

    The next file opened would get their descriptor, and libuv aborts a process that closes one of these.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
