"""Commands about operations."""

from __future__ import annotations

from eventstore.events import OperationOutcome
from service.commands.base import Command
from service.commands.usage import UsageReport
from service.values import Id, Name, Resources, TtlSeconds


class StartOperation(Command):
    """Claim resources for a piece of work."""

    agent: Name
    action: Name
    """What the agent is doing, in a word; shown to others when the claim conflicts with theirs."""
    resources: Resources
    """What the work is about, by kind, such as {"emailId": "email-123"}. All agents must use the same kinds
    and values, in the same letter case. The built-in jobs claim an e-mail as `emailId`, with its `id`."""
    ttl_seconds: TtlSeconds | None = None
    """After how many seconds without a heartbeat the operation expires; default: the policy's timeout. It
    blocks other claims for less, the policy's conflict window after each heartbeat: see `blocks_until`."""


class CheckOperation(Command):
    """Ask whether a claim would conflict. Changes nothing."""

    agent: Name
    action: Name
    resources: Resources


class RenewOperation(Command):
    """Report that the work continues."""

    operation_id: Id


class FinishOperation(UsageReport):
    """End the work and release its claims.

    Tokens spent on it, given as `tokens_used` or as input and output tokens, are recorded as used by the
    agent. Leave out those that a reservation settles or that were recorded already: they would be counted
    twice.
    """

    operation_id: Id
    outcome: OperationOutcome
