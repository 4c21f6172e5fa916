"""`squad verify`: check the log's invariants, and the tables against the log."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eventstore import checkpoint as signed
from eventstore import guards, log, verification
from eventstore.errors import AtPosition, PermissionDenied
from eventstore.verification import Check
from projections.comparison import compare
from projections.indexes import missing_indexes
from projections.refold import check_accepts_writes
from service.cli import progress
from service.cli.output import printable
from service.cli.running import run
from service.cli.target import NO_TIMEOUTS, open_squad, target_options
from service.history.time_travel import check_snapshots
from service.http.json import dumps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventstore.connection import Connection
    from eventstore.verification import Verified
    from projections.comparison import Difference
    from service.cli.progress import Report
    from service.cli.target import Target

_FILE = click.Path(path_type=Path)


@click.command()
@click.option(
    "--checkpoint", "files", type=_FILE, multiple=True, help="A signed checkpoint to check the log against."
)
@click.option(
    "--public-key",
    "keys",
    type=_FILE,
    multiple=True,
    help="A key that may have signed it.  [default: any key]",
)
@click.option("--no-tables", is_flag=True, help="Check only the log, not the tables.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, without progress.")
@target_options
def verify(
    *,
    files: tuple[Path, ...],
    keys: tuple[Path, ...],
    no_tables: bool,
    as_json: bool,
    target: Target,
) -> None:
    """Check the log's invariants, and every table against the log.

    The exit code is 0 only if all checks hold.
    """
    if keys and not files:
        raise click.UsageError("--public-key requires a --checkpoint whose signature it verifies")
    expected = [signed.public_key(key) for key in keys]
    checkpoints = [(str(file), signed.read(file, expected)) for file in files]

    async def work() -> tuple[Verified, list[Check], list[Difference]]:
        async with open_squad(target, **NO_TIMEOUTS) as (connection, chosen, found):
            if not no_tables:
                await check_accepts_writes(connection)
            async with verification.snapshot(connection):
                total = await log.head_position(connection)
                with progress.show("the log", quiet=as_json) as report:
                    verified = await verification.verify_log(
                        connection, checkpoints, lambda done: report(done, total)
                    )
            if no_tables:
                return verified, verified.checks, []
            with progress.show("the tables", quiet=as_json) as report:
                tables, differences = await _tables(found, chosen.squad_schema, report, verified)
            tables.append(await _indexes(connection, chosen.squad_schema))
            with progress.show("the snapshots", quiet=as_json) as report:
                kept = await _snapshots(
                    connection, lambda position: report(position, verified.position), verified
                )
            return verified, [*verified.checks, *tables, kept], differences

    verified, checks, differences = run(work())
    if as_json:
        click.echo(dumps(_document(verified, checks, differences)).decode())
    else:
        for check in checks:
            click.echo(_line(check))
        if checkpoints and not keys:
            click.echo("any key may have signed the checkpoints; name yours with --public-key")
    if not all(check.holds for check in checks):
        sys.exit(1)


async def _tables(
    dsn: str, schema: str, report: Report, verified: Verified
) -> tuple[list[Check], list[Difference]]:
    try:
        differences = await compare(dsn, schema, progress=report)
    except Exception as error:  # noqa: BLE001 - see there
        return [_incomparable("tables", error, verified)], []
    if not differences:
        return [Check("tables", holds=True, says="every row follows from the log, and none is missing")], []
    return [Check("tables", holds=False, says=str(each), faults=1) for each in differences], differences


async def _indexes(connection: Connection, schema: str) -> Check:
    """Check that log and tables have the indexes, keys included, that readers and writers rely on."""
    lost = [
        *(f"{name} of events" for name in await guards.missing_indexes(connection)),
        *(f"{index.name} of {index.table}" for index in await missing_indexes(connection, schema)),
    ]
    if not lost:
        return Check("indexes", holds=True, says="every index of the schema is in place")
    return Check("indexes", holds=False, says=f"{lost[0]} is missing or not valid", faults=len(lost))


async def _snapshots(connection: Connection, report: Callable[[int], None], verified: Verified) -> Check:
    """Check that each stored snapshot equals a fold of the log."""
    try:
        faults = await check_snapshots(connection, report)
    except Exception as error:  # noqa: BLE001 - see there
        return _incomparable("snapshots", error, verified)
    if not faults:
        return Check("snapshots", holds=True, says="each equals a fold of the log at its position")
    first = faults[0]
    says = f"{first.reason}; stop every process, TRUNCATE snapshots, and start them again"
    return Check("snapshots", holds=False, says=says, position=first.position, faults=len(faults))


def _incomparable(name: str, error: Exception, verified: Verified) -> Check:
    """Return a failed check: it could not be made because of the log, or the role may not see the keys.

    A log that was tampered with can make its fold fail with any error. If the log is known not to hold, no
    error may suppress the report of what was found; otherwise the error is raised.
    """
    if not isinstance(error, AtPosition | PermissionDenied) and verified.first_fault is None:
        raise error
    says = f"they cannot be compared with the log: {error}"
    return Check(name, holds=False, says=says, position=getattr(error, "position", None), faults=1)


def _line(check: Check) -> str:
    place = f"position {check.position:,}: " if check.position is not None and not check.holds else ""
    others = f" (and {check.faults - 1:,} more)" if check.faults > 1 else ""
    verdict = click.style("holds", fg="green") if check.holds else click.style("FAILS", fg="red")
    return f"{verdict}  {check.name:<10}  {place}{printable(check.says)}{others}"


def _document(
    verified: Verified, checks: Sequence[Check], differences: Sequence[Difference]
) -> dict[str, Any]:
    return {
        "holds": all(check.holds for check in checks),
        "position": verified.position,
        "hash": verified.hash.hex(),
        "squad": verified.squad,
        "checks": [check._asdict() for check in checks],
        "differences": [asdict(difference) for difference in differences],
    }
