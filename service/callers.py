"""Callers: what a key says about who makes a request."""

from __future__ import annotations

from typing import NamedTuple

from eventstore.events import KeyScope


class Caller(NamedTuple):
    """The caller of a request from outside."""

    scope: KeyScope
    key_id: str | None = None
    """The key that was presented; None if the squad has no keys."""
    agent: str | None = None
    """The agent whose key it is; None for other keys."""

    def actor(self, acting_agent: str | None = None) -> str:
        """Return the caller's name in the log; without a key, that of the agent it claims to be."""
        if self.key_id is None:
            return f"agent:{acting_agent}" if acting_agent else "anonymous"
        name = f"agent:{self.agent}" if self.agent else self.scope
        return f"{name} key:{self.key_id}"


ANYBODY = Caller("operator")
"""Any caller of a squad that has no keys. It may do everything, but only until the first key is created."""
