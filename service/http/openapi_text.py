"""The OpenAPI document's prose, and an example of each request body."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from service.http.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

DESCRIPTION = """\
Schedules, connects, budgets and audits a squad of AI agents.

Everything that happens is an event in one log. A write answers with the `position` of its last event; a
read with `min_position` waits until it covers that position. A write repeated with the same
`Idempotency-Key` gets the first answer again, with the header `Idempotent-Replayed`; whether a claim in it
still holds, a heartbeat without a key tells. Errors under `/api/v1` are problem details (RFC 9457) with a
stable `code`. HEAD is answered like GET, without the body, except on the event stream, which never ends.

As long as the squad has a key that has not been revoked, every request needs one, as
`Authorization: Bearer squad_...`. An agent's key acts as that agent and sees what is its own or shared by
all; an auditor's key sees everything and changes nothing; an operator's key may do everything.

`webhooks` has the one call that goes the other way: from the service to an agent.
"""

KEYS_OF_SCOPE: Mapping[Scope, str] = MappingProxyType(
    {
        Scope.PUBLIC: "Needs no key.",
        Scope.READ: "Accepts any key. An agent's key may see less than others.",
        Scope.AUDIT: "Requires an auditor's or an operator's key.",
        Scope.ACT: "Requires an operator's key, or an agent's key for what is its own.",
        Scope.OPERATE: "Requires an operator's key.",
    }
)
"""Which keys a route accepts."""

TAGS: Mapping[str, str] = MappingProxyType(
    {
        "squad": "Everything a dashboard needs at one address, in camelCase; the rest is under `/api/v1`.",
        "agents": "The squad's agents and their status.",
        "messages": "Messages between agents: to one or to all, with an inbox for each.",
        "operations": "Claims on resources, so that no two agents do the same work.",
        "budget": "Tokens: what may be spent in a day, what is reserved, what has been spent.",
        "jobs": "The schedule, the outcome of every tick, and manual control.",
        "tasks": "The task board.",
        "emails": "The e-mail log.",
        "subjects": "Senders and messages whose content is stored encrypted and can be forgotten.",
        "state": "The squad as it was, at any position of the log or at any time.",
        "events": "The log itself, as a list and as a live stream.",
        "audit": "Why something happened, and what other rules would have changed.",
        "batch": "Many writes in one request: all those under `/api/v1` that do not exclude it.",
        "health": "Liveness, readiness, metrics, and this document.",
    }
)

PATH_PARAMETERS: Mapping[str, str] = MappingProxyType(
    {
        "id": "Its id, from the answer to its creation.",
        "name": "The agent's or the job's name.",
        "position": "The event's position in the log.",
    }
)

EXAMPLES: Mapping[tuple[str, str], Mapping[str, Any]] = MappingProxyType(
    {
        ("POST", "/api/squad"): {
            "action": "orchestrator-message",
            "fromAgent": "email_agent",
            "toAgent": "orchestrator",
            "message": "Task completed",
        },
        ("PATCH", "/api/squad"): {"id": "01932b5c-5a3e-7c11-9d0a-4f2f6e1f0a11", "status": "completed"},
        ("PUT", "/api/v1/agents/{name}"): {
            "role": "answers e-mails",
            "url": "http://localhost:3002/email",
            "priority": 5,
        },
        ("POST", "/api/v1/agents/{name}/heartbeat"): {"status": "active"},
        ("POST", "/api/v1/messages"): {
            "from_agent": "email_agent",
            "to_agent": "quote_agent",
            "message": "Customer inquiry detected",
            "data": {"emailId": "email-123"},
        },
        ("POST", "/api/v1/messages/{id}/ack"): {"agent": "quote_agent"},
        ("POST", "/api/v1/operations/check"): {
            "agent": "email_agent",
            "action": "respond",
            "resources": {"emailId": "email-123"},
        },
        ("POST", "/api/v1/operations"): {
            "agent": "email_agent",
            "action": "respond",
            "resources": {"emailId": "email-123", "customerId": "customer-7"},
            "ttl_seconds": 120,
        },
        ("POST", "/api/v1/operations/{id}/heartbeat"): {},
        ("POST", "/api/v1/operations/{id}/finish"): {"outcome": "succeeded", "tokens_used": 450},
        ("PUT", "/api/v1/budget"): {"daily_tokens": 200_000, "agent_limits": {"email_agent": 50_000}},
        ("POST", "/api/v1/budget/check"): {"agent": "email_agent", "tokens": 500},
        ("POST", "/api/v1/budget/reservations"): {"agent": "email_agent", "tokens": 500, "ttl_seconds": 60},
        ("POST", "/api/v1/budget/reservations/{id}/settle"): {
            "input_tokens": 300,
            "output_tokens": 150,
            "model": "small",
        },
        ("DELETE", "/api/v1/budget/reservations/{id}"): {},
        ("POST", "/api/v1/budget/usage"): {
            "agent": "email_agent",
            "input_tokens": 300,
            "output_tokens": 150,
            "model": "small",
        },
        ("POST", "/api/v1/tasks"): {
            "title": "Answer the inquiry",
            "assigned_agent": "email_agent",
            "priority": "high",
        },
        ("PATCH", "/api/v1/tasks/{id}"): {"status": "completed"},
        ("POST", "/api/v1/emails"): {
            "gmail_message_id": "18c2f0a9b7d3e411",
            "from_email": "customer@example.com",
            "subject": "A question about your offer",
        },
        ("PATCH", "/api/v1/emails/{id}"): {"category": "inquiry", "status": "classified"},
        ("POST", "/api/v1/subjects/forget"): {"subject": "customer@example.com"},
        ("POST", "/api/v1/batch"): {
            "commands": [
                {
                    "method": "PUT",
                    "path": "/api/v1/agents/email_agent",
                    "body": {"role": "answers e-mails"},
                },
                {
                    "method": "POST",
                    "path": "/api/v1/budget/usage",
                    "body": {"agent": "email_agent", "tokens": 450},
                },
            ]
        },
        ("PUT", "/api/v1/jobs/{name}"): {
            "agent": "email_agent",
            "endpoint": "/api/agents/email/digest",
            "cron": "30 7 * * MON-FRI",
            "timezone": "Europe/Berlin",
            "tokens": 2_000,
            "retries": 2,
        },
        ("POST", "/api/v1/jobs/{name}/pause"): {"note": "the mail server is being moved"},
        ("POST", "/api/v1/jobs/{name}/resume"): {"note": "the mail server is back"},
        ("DELETE", "/api/v1/jobs/{name}"): {},
        ("POST", "/api/v1/jobs/{name}/run"): {},
        ("POST", "/api/v1/whatif"): {
            "daily_tokens": 200_000,
            "agent_limits": {"email_agent": 80_000, "quote_agent": None},
            "since": "2026-01-31T00:00:00Z",
        },
    }
)
"""By method and path; tests check them against the models."""
