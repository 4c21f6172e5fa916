"""API keys for tests, created and revoked by a separate writer, as by `squad keys`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore.listener import Hints
from service import api_keys
from service import commands as do
from service.clock import DatabaseClock
from service.writing.writer import Writer
from tests.support.components import SCHEMA, running, submit

if TYPE_CHECKING:
    from eventstore.events import KeyScope
    from service.commands import AnyCommand
    from service.requests import Outcome


async def make_key(
    dsn: str, scope: KeyScope = "operator", agent: str | None = None, *, expires_days: int | None = None
) -> api_keys.NewKey:
    """Create a key of a squad; running services learn of it a moment later."""
    key = api_keys.make()
    command = do.CreateKey(
        key_id=key.id, digest=key.digest, scope=scope, for_agent=agent, expires_days=expires_days
    )
    assert (await _decided(dsn, command)).refusal is None
    return key


async def revoke_key(dsn: str, key: api_keys.NewKey) -> int:
    """Revoke a key; return the position of the event."""
    outcome = await _decided(dsn, do.RevokeKey(key_id=key.id))
    assert outcome.refusal is None
    assert outcome.position is not None
    return outcome.position


async def _decided(dsn: str, command: AnyCommand) -> Outcome:
    writer = Writer(dsn, SCHEMA, DatabaseClock(), Hints())
    async with running(writer.run()):
        return await submit(writer, command)
