"""The invariants of API keys, checked from the events alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore.events import Event, KeyCreated, KeyExpired, KeyFirstUsed, KeyRevoked
from projections.keys import KEYS
from service.decide.access import is_key_required

if TYPE_CHECKING:
    from datetime import datetime

    from service.memory.state import State


class KeyInvariants:
    """Every key is created once, first used at most once, and ends by expiry or revocation."""

    def __init__(self) -> None:
        self.created: dict[str, KeyCreated] = {}
        self.used: set[str] = set()
        self.expired: set[str] = set()
        self.revoked: set[str] = set()

    def take(self, event: Event, now: datetime) -> None:
        """Check and apply the next event.

        Raises:
            AssertionError: the event violates an invariant.
        """
        match event:
            case KeyCreated():
                assert event.key_id not in self.created
                self.created[event.key_id] = event
            case KeyFirstUsed():
                assert event.key_id in self.created.keys() - self.used - self.expired - self.revoked
                self.used.add(event.key_id)
            case KeyExpired():
                assert event.key_id in self.created.keys() - self.expired - self.revoked
                expires_at = self.created[event.key_id].expires_at
                assert expires_at is not None
                assert expires_at <= now
                self.expired.add(event.key_id)
            case KeyRevoked():
                assert event.key_id in self.created.keys() - self.revoked
                self.revoked.add(event.key_id)
            case _:
                pass

    def check(self, squad: State) -> None:
        """Check that exactly the usable keys are in memory, and whether a key is known to be required."""
        in_use = self.created.keys() - self.expired - self.revoked
        assert {row.id for row in squad.all(KEYS)} == in_use
        assert is_key_required(squad) == bool(self.created.keys() - self.revoked)
