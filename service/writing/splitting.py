"""Which commands are committed together: which need a batch of their own, which may join, how to bisect."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from eventstore.redaction import describe
from service.commands import ForgetSubject
from service.logs import log_extra
from service.requests import CommandFailed
from service.writing.command_queue import MAX_BATCH_COMMANDS

if TYPE_CHECKING:
    from service.requests import Ticket
    from service.writing.command_queue import CommandQueue

_log = logging.getLogger(__name__)


def split_batches(tickets: list[Ticket]) -> list[list[Ticket]]:
    """Split the tickets into batches, in reverse order for `pop`."""
    parts: list[list[Ticket]] = [[]]
    for ticket in tickets:
        if _needs_own_batch(ticket):
            parts += [ticket], []
        else:
            parts[-1].append(ticket)
    return [part for part in reversed(parts) if part]


def take_joiners(part: list[Ticket], queue: CommandQueue) -> list[Ticket]:
    """Take from the queue the tickets that may join a part after its wait for the lock."""
    if _needs_own_batch(part[0]):
        return []
    size = sum(ticket.request.size for ticket in part)
    more = queue.drain(MAX_BATCH_COMMANDS - len(part), size=size)
    alone = next((index for index, ticket in enumerate(more) if _needs_own_batch(ticket)), len(more))
    if alone < len(more):
        queue.requeue(more[alone:])
        del more[alone:]
    return more


def bisect(part: list[Ticket], error: Exception) -> list[list[Ticket]]:
    """Return what to try instead of a failed batch: its halves, in reverse order for `pop`.

    A single command fails for good: its caller is told so, and nothing is left to try.
    """
    # A command whose caller was answered must not be decided again.
    left = [ticket for ticket in part if not ticket.outcome.done()]
    if len(left) > 1:
        half = len(left) // 2
        return [left[half:], left[:half]]
    for ticket in left:
        kind, correlation_id = type(ticket.request.command).__name__, ticket.request.correlation_id
        _log.error("%s failed: %s", kind, describe(error), extra=log_extra(correlation_id))
        ticket.fail(CommandFailed(str(error)))
    return []


def _needs_own_batch(ticket: Ticket) -> bool:
    """Whether it needs a batch of its own: its neighbors could be sealed with the key that it destroys."""
    return type(ticket.request.command) is ForgetSubject
