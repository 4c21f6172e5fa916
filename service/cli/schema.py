"""`squad schema`: create the tables with one role for others to use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from eventstore import schema
from service.cli.running import run
from service.cli.target import command_dsn, target_options

if TYPE_CHECKING:
    from service.cli.target import Target


@click.group("schema")
def schema_() -> None:
    """Create or upgrade the tables, and grant roles access."""


@schema_.command()
@click.option(
    "--service",
    multiple=True,
    metavar="ROLE",
    help="Let this role run the service: append events and maintain tables.",
)
@click.option("--reader", multiple=True, metavar="ROLE", help="Let this role read, and change nothing.")
@target_options
def apply(
    service: tuple[str, ...],
    reader: tuple[str, ...],
    target: Target,
) -> None:
    """Bring the schema to this version. The DSN's role becomes, or already is, its owner.

    The roles named must exist. An upgrade keeps the access of those named before.
    """
    chosen = target.settings()
    grantees: list[schema.Grantee] = [(role, "service") for role in service]
    grantees += [(role, "reader") for role in reader]

    async def work() -> None:
        async with command_dsn(chosen) as found:
            await schema.apply(found, chosen.squad_schema, grantees)

    run(work())
    click.echo(f"schema {chosen.squad_schema} is at version {schema.SCHEMA_VERSION}")
    for role, as_what in grantees:
        click.echo(f"role {role} has access as {as_what}")
