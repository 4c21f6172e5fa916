"""Which commands go into the log together: who stands apart, who comes along, what follows a fault."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from eventstore.describing import describe
from service.commands import ForgetSubject
from service.logs import about
from service.requests import CommandFailed
from service.writing.waiting import MAX_BATCH_COMMANDS

if TYPE_CHECKING:
    from service.requests import Ticket
    from service.writing.waiting import Waiting

_log = logging.getLogger(__name__)


def apart(tickets: list[Ticket]) -> list[list[Ticket]]:
    """The tickets as batches, the first one last, to be popped next."""
    parts: list[list[Ticket]] = [[]]
    for ticket in tickets:
        if _stands_apart(ticket):
            parts += [ticket], []
        else:
            parts[-1].append(ticket)
    return [part for part in reversed(parts) if part]


def companions(part: list[Ticket], waiting: Waiting) -> list[Ticket]:
    """Takes those out of the queue who may go along with a part that has waited for its turn."""
    if _stands_apart(part[0]):
        return []
    size = sum(ticket.request.size for ticket in part)
    more = waiting.drain(MAX_BATCH_COMMANDS - len(part), size=size)
    alone = next((index for index, ticket in enumerate(more) if _stands_apart(ticket)), len(more))
    if alone < len(more):
        waiting.put_back(more[alone:])
        del more[alone:]
    return more


def halves(part: list[Ticket], error: Exception) -> list[list[Ticket]]:
    """What to try instead of a batch that failed: its halves, the first one last, to be popped next.

    Of a single command that failed, the caller is told so.
    """
    # Whoever was told already must not be decided again.
    left = [ticket for ticket in part if not ticket.outcome.done()]
    if len(left) > 1:
        half = len(left) // 2
        return [left[half:], left[:half]]
    for ticket in left:
        kind, correlation_id = type(ticket.request.command).__name__, ticket.request.correlation_id
        _log.error("%s failed: %s", kind, describe(error), extra=about(correlation_id))
        ticket.fail(CommandFailed(str(error)))
    return []


def _stands_apart(ticket: Ticket) -> bool:
    """Whether it is a batch of its own: what stood beside it could be sealed with the key it destroys."""
    return type(ticket.request.command) is ForgetSubject
