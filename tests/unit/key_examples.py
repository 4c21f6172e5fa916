"""One example of every kind of event about API keys; `tests/golden/events` has their stored form."""

from __future__ import annotations

from datetime import UTC, datetime

from eventstore.events import AccessDenied, AnyEvent, KeyCreated, KeyExpired, KeyFirstUsed, KeyRevoked

KEY_EXAMPLES: tuple[AnyEvent, ...] = (
    KeyCreated(
        key_id="7f3k9q2m4x",
        agent="email_agent",
        scope="agent",
        digest="ab" * 32,
        note="für den Poststellen-Rechner ✉️",
        expires_at=datetime(2026, 6, 27, 1, 0, 0, 123_456, tzinfo=UTC),
    ),
    KeyFirstUsed(key_id="7f3k9q2m4x", agent="email_agent"),
    KeyExpired(key_id="7f3k9q2m4x", agent="email_agent"),
    KeyRevoked(key_id="zz3k9q2m4x", agent=None),
    AccessDenied(
        key_id="7f3k9q2m4x",
        agent="email_agent",
        code="wrong_agent",
        command="SendMessage",
        detail="this is a key of 'email_agent', and an agent acts as nobody but itself",
    ),
)
