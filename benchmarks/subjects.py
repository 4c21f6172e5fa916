"""The HTTP requests that are measured: each write with its body, and each live read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.load import NUMBER
from service.commands import RecordUsage, ReserveTokens, SendMessage, StartOperation
from service.commands.base import Command


class Write(NamedTuple):
    """A write that is never refused, however often it is repeated; what it opens outlasts the load."""

    path: str
    command: type[Command]
    """The model that validates its body."""
    body: Mapping[str, Any]


WRITES: dict[str, Write] = {
    "message": Write(
        "/api/v1/messages", SendMessage, {"from_agent": "alice", "to_agent": "bob", "message": "x" * 200}
    ),
    "usage": Write(
        "/api/v1/budget/usage",
        RecordUsage,
        {"agent": "alice", "input_tokens": 300, "output_tokens": 150, "model": "m" * 100},
    ),
    "reservation": Write(
        "/api/v1/budget/reservations", ReserveTokens, {"agent": "alice", "tokens": 500, "ttl_seconds": 600}
    ),
    "claim": Write(
        "/api/v1/operations",
        StartOperation,
        {
            "agent": "alice",
            "action": "respond",
            "resources": {"emailId": f"email-{NUMBER}", "customerId": f"customer-{NUMBER}"},
            "ttl_seconds": 600,
        },
    ),
}

READS: dict[str, str] = {
    "budget": "/api/v1/budget",
    "status": "/api/squad?action=orchestrator-status",
}
