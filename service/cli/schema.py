"""`squad schema`: the tables, made by one role for others to use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from eventstore import schema
from service.cli.running import run
from service.cli.target import target_options, way_to_database

if TYPE_CHECKING:
    from service.cli.target import Target


@click.group("schema")
def schema_() -> None:
    """Make or upgrade the squad's tables, and let other roles use them."""


@schema_.command()
@click.option(
    "--service", multiple=True, metavar="ROLE", help="Lets a role run the service: append, and keep tables."
)
@click.option("--reader", multiple=True, metavar="ROLE", help="Lets a role see, and change nothing.")
@target_options
def apply(
    service: tuple[str, ...],
    reader: tuple[str, ...],
    target: Target,
) -> None:
    """Bring the schema to this version. The DSN's role becomes its owner, or is it already.

    The roles that are let in must be there. An upgrade keeps those that were let in before.
    """
    chosen = target.settings()
    guests: list[schema.Guest] = [(role, "service") for role in service]
    guests += [(role, "reader") for role in reader]

    async def work() -> None:
        async with way_to_database(chosen) as found:
            await schema.apply(found, chosen.squad_schema, guests)

    run(work())
    click.echo(f"schema {chosen.squad_schema} is at version {schema.SCHEMA_VERSION}")
    for role, as_what in guests:
        click.echo(f"role {role} is let in as {as_what}")
