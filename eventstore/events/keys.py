"""What happens to API keys, and what was denied to those who hold them."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from eventstore.events.base import Event

KeyScope = Literal["agent", "operator", "auditor"]
DenialCode = Literal["wrong_agent", "not_allowed"]


class _KeyEvent(Event, frozen=True, kw_only=True):
    key_id: str
    agent: str | None
    """Whose key it is, where it is an agent's."""

    @property
    def stream(self) -> str:
        return f"key-{self.key_id}"


class KeyCreated(_KeyEvent, frozen=True, kw_only=True):
    """A key was made. The key itself was shown once and is nowhere; `digest` is its SHA-256."""

    type: ClassVar[str] = "key_created"
    scope: KeyScope
    digest: str
    note: str | None
    expires_at: datetime | None


class KeyFirstUsed(_KeyEvent, frozen=True, kw_only=True):
    """Somebody came with the key for the first time."""

    type: ClassVar[str] = "key_first_used"


class KeyExpired(_KeyEvent, frozen=True, kw_only=True):
    """A key's time ran out."""

    type: ClassVar[str] = "key_expired"


class KeyRevoked(_KeyEvent, frozen=True, kw_only=True):
    """A key was taken back."""

    type: ClassVar[str] = "key_revoked"


class AccessDenied(_KeyEvent, frozen=True, kw_only=True):
    """A command was refused because its key does not reach so far."""

    type: ClassVar[str] = "access_denied"
    code: DenialCode
    command: str
    detail: str
