"""Who asks: what a key makes of whoever comes with it."""

from __future__ import annotations

from typing import NamedTuple

from eventstore.events import KeyScope


class Caller(NamedTuple):
    """Whoever stands behind a request from outside."""

    scope: KeyScope
    key_id: str | None = None
    """The key that was shown; None where there are none to show."""
    agent: str | None = None
    """Whose key it is, where it is an agent's."""

    def actor(self, acting_agent: str | None = None) -> str:
        """The caller as the log names it; without a key, as the agent that it says it is."""
        if self.key_id is None:
            return f"agent:{acting_agent}" if acting_agent else "anonymous"
        name = f"agent:{self.agent}" if self.agent else self.scope
        return f"{name} key:{self.key_id}"


ANYBODY = Caller("operator")
"""Whoever reaches a squad that has no keys. It may do everything, but only until the first key is made."""
