"""api_keys and access: the keys, and whether one is needed at all.

There are two projections, so that an ended key can be read back from the log without being counted again.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

from eventstore.events import KeyCreated, KeyExpired, KeyFirstUsed, KeyRevoked, KeyScope
from projections.projection import Projection, Row, Table, fixed_key, key_in, require

if TYPE_CHECKING:
    from eventstore.recorded import AnyRecorded
    from projections.projection import View

THE_SQUAD = "squad"
"""The key of the only row of `access`."""

KeyState = Literal["active", "expired", "revoked"]


class KeyRow(Row, frozen=True):
    """A key. `digest` is the SHA-256 of the key itself, which is stored nowhere."""

    id: str
    scope: KeyScope
    agent: str | None
    note: str | None
    digest: str
    state: KeyState
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    first_used_at: datetime | None
    ended_at: datetime | None
    position: int


class AccessRow(Row, frozen=True):
    """Whether requests need a key: they do as long as one has not been revoked, expired or not."""

    name: str
    unrevoked_keys: int
    position: int


KEYS = Table[str, KeyRow](
    "api_keys",
    KeyRow,
    key=("id",),
    types=(
        "text",
        "text",
        "text",
        "text",
        "text",
        "text",
        "text",
        "timestamptz",
        "timestamptz",
        "timestamptz",
        "timestamptz",
        "bigint",
    ),
)

ACCESS = Table[str, AccessRow]("access", AccessRow, key=("name",), types=("text", "bigint", "bigint"))

keys = Projection("keys", (KEYS,))
access = Projection("access", (ACCESS,))


_KEY_ROW = (key_in(KEYS, "key_id"),)


@keys.on(KeyCreated)
def _created(view: View, event: KeyCreated, recorded: AnyRecorded) -> None:
    row = KeyRow(
        id=event.key_id,
        scope=event.scope,
        agent=event.agent,
        note=event.note,
        digest=event.digest,
        state="active",
        created_by=recorded.actor,
        created_at=recorded.recorded_at,
        expires_at=event.expires_at,
        first_used_at=None,
        ended_at=None,
        position=recorded.position,
    )
    view.rows(KEYS).put(event.key_id, row)


@keys.on(KeyFirstUsed, reads=_KEY_ROW)
def _first_used(view: View, event: KeyFirstUsed, recorded: AnyRecorded) -> None:
    row = require(view, KEYS, event.key_id)
    row = row.replaced(first_used_at=recorded.recorded_at, position=recorded.position)
    view.rows(KEYS).put(row.id, row)


@keys.on(KeyExpired, KeyRevoked, reads=_KEY_ROW)
def _ended(view: View, event: KeyExpired | KeyRevoked, recorded: AnyRecorded) -> None:
    row = require(view, KEYS, event.key_id)
    row = row.replaced(
        state="expired" if isinstance(event, KeyExpired) else "revoked",
        ended_at=recorded.recorded_at,
        position=recorded.position,
    )
    view.rows(KEYS).put(row.id, row)


# An expired key still counts: a squad whose last key expires must not become open to everybody.
@access.on(KeyCreated, KeyRevoked, reads=(fixed_key(ACCESS, THE_SQUAD),))
def _counted(view: View, event: KeyCreated | KeyRevoked, recorded: AnyRecorded) -> None:
    before = view.rows(ACCESS).get(THE_SQUAD)
    unrevoked = (before.unrevoked_keys if before else 0) + (1 if isinstance(event, KeyCreated) else -1)
    view.rows(ACCESS).put(THE_SQUAD, AccessRow(THE_SQUAD, unrevoked, recorded.position))
