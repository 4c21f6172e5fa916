"""Which keys a route accepts, and the caller of the request that is being answered."""

from __future__ import annotations

from contextvars import ContextVar
from enum import Enum
from typing import TYPE_CHECKING

from eventstore.events import KeyScope
from service.http.problems import Problem

if TYPE_CHECKING:
    from service.callers import Caller


class Scope(Enum):
    """Which keys a route accepts. Every route declares it."""

    def __init__(self, keys: frozenset[KeyScope]) -> None:
        self.keys = keys

    PUBLIC = frozenset[KeyScope]()
    """Anybody may call it, with or without a key."""
    READ = frozenset[KeyScope]({"agent", "auditor", "operator"})
    """It accepts every key. An agent's key may see less than others."""
    AUDIT = frozenset[KeyScope]({"auditor", "operator"})
    """It shows what not every agent may see, and changes nothing."""
    ACT = frozenset[KeyScope]({"agent", "operator"})
    """It changes something that an agent may change if it is its own."""
    OPERATE = frozenset[KeyScope]({"operator"})
    """It changes something that belongs to the whole squad."""


DENIAL_DETAIL = {
    Scope.READ: "this requires a key",
    Scope.AUDIT: "this requires an auditor's or an operator's key",
    Scope.ACT: "an auditor's key can only read",
    Scope.OPERATE: "this requires an operator's key",
}
"""The detail of the problem for a key without the scope."""

_CALLER: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
    """Return the caller of the request that is being answered."""
    return _CALLER.get()


def set_caller(who: Caller) -> None:
    """Set the caller of the request that this task answers."""
    _CALLER.set(who)


def own_agent() -> str | None:
    """Return the agent whose data the answer is limited to; None if the caller may see everything."""
    return _CALLER.get().agent


def require_own(agent: str | None, what: str) -> None:
    """Check that what an agent's key asks for is its own.

    Raises:
        Problem: it is another agent's.
    """
    mine = own_agent()
    if mine is not None and agent != mine:
        raise Problem("wrong_agent", f"this is a key of {mine!r}, and {what}")


def require(scope: Scope) -> None:
    """Check that the caller's key has this scope.

    Raises:
        Problem: it has not.
    """
    if _CALLER.get().scope not in scope.keys:
        raise Problem("not_allowed", DENIAL_DETAIL[scope])
