"""The call that agents answer, for the OpenAPI document; `service.scheduling` makes it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from service.documented import Documented

if TYPE_CHECKING:
    from service.http.schemas import Schemas

_DESCRIPTION = """\
A POST to the URL that the agent is registered with, followed by the endpoint of the job. Redirects are not
followed. The headers are those of Standard Webhooks (standardwebhooks.com).

A run that succeeded has called its agent at least once: recognize repeats by `webhook-id`. The next run is
another call: for an e-mail that still waits, the agent is called again, with another `webhook-id`.
"""
_HEADERS = {
    "webhook-id": "The run's id; in a call about an e-mail, the run's id, `_` and the e-mail's id. The same"
    " when a call is retried.",
    "webhook-timestamp": "When the call was made, in seconds since 1970.",
    "webhook-signature": "`v1,` and the HMAC-SHA256 of `webhook-id`, `.`, `webhook-timestamp`, `.` and the"
    " body, in base64. Only if the settings have a secret for the agent.",
}
_OPTIONAL = frozenset({"webhook-signature"})
_EXAMPLE = {
    "run_id": "01a20782-69c8-7219-8c1d-76196a1edd2f",
    "job": "stock_watch",
    "tick": "2026-11-23T08:15:00Z",
    "attempt": 1,
    "fencing_token": 31,
}


class AgentCall(Documented):
    """An attempt of a run, or one e-mail of it."""

    run_id: str
    """The run, in every call that it makes."""
    job: str
    """The job's name."""
    tick: datetime
    """When the run was due, or requested."""
    attempt: int
    """The number of the attempt, from 1."""
    fencing_token: int
    """Only ever grows: what the agent writes to can reject a smaller one.

    The position of the claim on the job's resources or on the e-mail, or else of the event that began the
    attempt. `fencing_token` of a `Run` is another one.
    """
    email_id: str = Field(default_factory=str)
    """The e-mail to work on; only in the calls of `email_classify` and `email_respond`."""


class ReportedUsage(BaseModel):
    """The tokens that were used, in two parts. `prompt_tokens` and `completion_tokens` mean the same."""

    input_tokens: int = Field(default_factory=int, ge=0)
    output_tokens: int = Field(default_factory=int, ge=0)


class AgentAnswer(BaseModel):
    """What was done, in any shape. The tokens used can be reported in one of two ways, and their model.

    The run's report says so when the report of the tokens is in another form.
    """

    tokens_used: int = Field(default_factory=int, ge=0)
    usage: ReportedUsage = Field(default_factory=ReportedUsage)
    model: str = Field(default_factory=str)


MODELS: tuple[type[BaseModel], ...] = (AgentCall, AgentAnswer)


def webhooks(schemas: Schemas) -> dict[str, Any]:
    """Return the document's `webhooks`."""
    answer = {"application/json": {"schema": schemas.of(AgentAnswer, "serialization")}}
    call = {
        "summary": "Do the work of a job",
        "description": _DESCRIPTION,
        "tags": ["jobs"],
        "operationId": "call_agent",
        "parameters": [
            {
                "name": name,
                "in": "header",
                "required": name not in _OPTIONAL,
                "description": text,
                "schema": {"type": "string"},
            }
            for name, text in _HEADERS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": schemas.of(AgentCall, "serialization"),
                    "example": _EXAMPLE,
                }
            },
        },
        "responses": {
            "2XX": {"description": "The work succeeded. The body can be empty.", "content": answer},
            "default": {
                "description": "The work failed, and is retried if the job allows it. Tokens that were used"
                " can be reported as well.",
                "content": answer,
            },
        },
    }
    return {"agent_call": {"post": call}}
