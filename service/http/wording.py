"""What the OpenAPI document says in words, and an example of each request body."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from service.http.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

DESCRIPTION = """\
Schedules, connects, budgets and audits a squad of AI agents.

Everything that happens is an event in one log. A write answers with the `position` of its last event, and a
read with `min_position` waits until it shows that position. With an `Idempotency-Key`, a repeated POST gets
the first answer again. Errors under `/api/v1` are problem details (RFC 9457) with a stable `code`. HEAD is
answered as GET, without the body; only the event stream, which never ends, does not take it.

As long as the squad has a key that nobody has revoked, every request needs one, as
`Authorization: Bearer squad_...`. An agent's key acts as that agent and shows what is its own or of all;
an auditor's shows everything and changes nothing; an operator's may do everything.
"""

KEYS_OF_SCOPE: Mapping[Scope, str] = MappingProxyType(
    {
        Scope.PUBLIC: "Needs no key.",
        Scope.READ: "Takes every key. An agent's may see less than others.",
        Scope.AUDIT: "Takes an auditor's or an operator's key.",
        Scope.ACT: "Takes an operator's key, or an agent's for what is its own.",
        Scope.OPERATE: "Takes an operator's key.",
    }
)
"""Whose key a route takes."""

TAGS: Mapping[str, str] = MappingProxyType(
    {
        "squad": "All that a dashboard needs at one address, in camelCase; the rest is under `/api/v1`.",
        "agents": "Who belongs to the squad, and what each is at.",
        "messages": "What agents tell each other: to one or to all, with an inbox for each.",
        "operations": "Claims on resources, so that no two agents do the same work.",
        "budget": "Tokens: what may be spent in a day, what is set aside, what was spent.",
        "jobs": "What runs when, what came of every tick, and a person's hand on it.",
        "tasks": "The task board.",
        "emails": "The e-mail log.",
        "subjects": "Those whose words are encrypted, and can be forgotten.",
        "state": "The squad as it was, at any position of the log and at any time.",
        "events": "The log itself, as a list and as a live stream.",
        "audit": "What the log answers for: why it happened, and what other rules would have done.",
        "batch": "Many writes in one request: any under `/api/v1` that does not say otherwise.",
        "health": "Whether the service is well, what it has counted, and this document.",
    }
)

PATH_PARAMETERS: Mapping[str, str] = MappingProxyType(
    {
        "id": "Its id, as the answer to its creation gave it.",
        "name": "The name of the agent, or of the job.",
        "position": "The event's place in the log.",
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
        ("POST", "/api/v1/budget/reservations/{id}/settle"): {"tokens_used": 450},
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
"""By method and path; tests hold them to the models."""
