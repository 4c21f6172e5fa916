"""Whose keys a route takes, and who stands behind the request that is being answered."""

from __future__ import annotations

from contextvars import ContextVar
from enum import Enum
from typing import TYPE_CHECKING

from eventstore.events import KeyScope
from service.http.problems import Problem

if TYPE_CHECKING:
    from service.callers import Caller


class Scope(Enum):
    """Whose keys a route takes. Every route says so."""

    def __init__(self, keys: frozenset[KeyScope]) -> None:
        self.keys = keys

    PUBLIC = frozenset[KeyScope]()
    """Anybody may call it, with or without a key."""
    READ = frozenset[KeyScope]({"agent", "auditor", "operator"})
    """Every key will do. What an agent's key shows may be less than others see."""
    AUDIT = frozenset[KeyScope]({"auditor", "operator"})
    """It shows what is not every agent's business, and changes nothing."""
    ACT = frozenset[KeyScope]({"agent", "operator"})
    """It changes something that an agent may change, as far as it is its own."""
    OPERATE = frozenset[KeyScope]({"operator"})
    """It changes what is the whole squad's."""


BEYOND = {
    Scope.READ: "this takes a key",
    Scope.AUDIT: "this takes an auditor's or an operator's key",
    Scope.ACT: "an auditor's key reads and changes nothing",
    Scope.OPERATE: "this takes an operator's key",
}
"""What is said to whoever has a key that is none of these."""

_CALLER: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
    """Whoever stands behind the request that is being answered."""
    return _CALLER.get()


def let_in(who: Caller) -> None:
    """Says who stands behind the request that this task answers."""
    _CALLER.set(who)


def own_agent() -> str | None:
    """The agent to whose own things the answer is limited; None for whoever may see everything."""
    return _CALLER.get().agent


def only_own(agent: str | None, what: str) -> None:
    """Lets an agent's key see only what is its own.

    Raises:
        Problem: it is another agent's.
    """
    mine = own_agent()
    if mine is not None and agent != mine:
        raise Problem("wrong_agent", f"this is a key of {mine!r}, and {what}")


def require(scope: Scope) -> None:
    """Lets nobody go on whose key is not one of these.

    Raises:
        Problem: it is none of them.
    """
    if _CALLER.get().scope not in scope.keys:
        raise Problem("not_allowed", BEYOND[scope])
