"""What can be asked about operations."""

from __future__ import annotations

from eventstore.events import OperationOutcome
from service.commands.base import Command
from service.values import Id, Name, Resources, Tokens, TtlSeconds


class StartOperation(Command):
    """Claim resources for a piece of work."""

    agent: Name
    action: Name
    """What is done, in a word, for whoever is told of the claim."""
    resources: Resources
    """What the work is on, by kind, such as {"emailId": "email-123"}."""
    ttl_seconds: TtlSeconds | None = None
    """After how many seconds without a heartbeat the operation expires; default: the policy's timeout."""


class CheckOperation(Command):
    """Ask whether a claim would conflict. Changes nothing."""

    agent: Name
    action: Name
    resources: Resources


class RenewOperation(Command):
    """Say that the work goes on."""

    operation_id: Id


class FinishOperation(Command):
    """End the work and give its claims back."""

    operation_id: Id
    outcome: OperationOutcome
    tokens_used: Tokens | None = None
    """Tokens spent on it, recorded as use of the agent."""
