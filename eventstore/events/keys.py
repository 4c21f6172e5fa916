"""The events of API keys, and of requests that were denied to them."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from eventstore.events.base import Event

KeyScope = Literal["agent", "operator", "auditor"]
DenialCode = Literal["wrong_agent", "not_allowed"]


class _KeyEvent(Event, frozen=True, kw_only=True):
    key_id: str
    """The key's id in `api_keys`."""
    agent: str | None
    """The agent that the key belongs to, if its scope is `agent`."""

    @property
    def stream(self) -> str:
        return f"key-{self.key_id}"


class KeyCreated(_KeyEvent, frozen=True, kw_only=True):
    """A key was created. The key itself was shown once and is not stored; `digest` is its SHA-256."""

    type: ClassVar[str] = "key_created"
    scope: KeyScope
    """Whose key it is."""
    digest: str
    """The SHA-256 of the key, in hexadecimal."""
    note: str | None
    """What it is for, in words."""
    expires_at: datetime | None
    """When it stops being valid; null for never."""


class KeyFirstUsed(_KeyEvent, frozen=True, kw_only=True):
    """A key was used for the first time."""

    type: ClassVar[str] = "key_first_used"


class KeyExpired(_KeyEvent, frozen=True, kw_only=True):
    """A key expired."""

    type: ClassVar[str] = "key_expired"


class KeyRevoked(_KeyEvent, frozen=True, kw_only=True):
    """A key was revoked."""

    type: ClassVar[str] = "key_revoked"


class AccessDenied(_KeyEvent, frozen=True, kw_only=True):
    """A command was refused because its key does not permit it."""

    type: ClassVar[str] = "access_denied"
    code: DenialCode
    """The code of the problem that the caller was answered."""
    command: str
    """What was refused, such as `StartOperation`."""
    detail: str
    """Why, in words."""
