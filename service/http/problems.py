"""The API's errors: RFC 9457 problem details with a stable code, never a stack trace."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from service.values import in_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    from service.refusals import Refusal

CONTENT_TYPE = "application/problem+json"

MAX_FAULTS = 20
"""How many wrong fields are reported at once; a body can have a hundred thousand."""

MAX_FAULTS_EXAMINED = 1_000
"""With more of them, none is reported: listing them takes seconds and blocks every other request."""


class Kind(NamedTuple):
    """What all problems with the same code share."""

    status: int
    """The HTTP status."""
    title: str


REFUSALS: Mapping[str, Kind] = MappingProxyType(
    {
        "agent_not_found": Kind(404, "No such agent"),
        "message_not_found": Kind(404, "No such message"),
        "not_addressed": Kind(409, "The message was sent to another agent"),
        "conflict": Kind(409, "The resource is already claimed"),
        "operation_not_found": Kind(404, "No such operation"),
        "operation_expired": Kind(410, "The operation has expired"),
        "operation_finished": Kind(409, "The operation has finished"),
        "budget_exhausted": Kind(429, "The request exceeds the daily token budget"),
        "agent_limit_reached": Kind(429, "The request exceeds the agent's token limit"),
        "reservation_not_found": Kind(404, "No such reservation"),
        "reservation_expired": Kind(410, "The reservation has expired"),
        "reservation_ended": Kind(409, "The reservation has ended"),
        "task_not_found": Kind(404, "No such task"),
        "email_not_found": Kind(404, "No such e-mail"),
        "email_exists": Kind(409, "The e-mail is already logged"),
        "email_erased": Kind(409, "The e-mail's sender has been forgotten"),
        "changed": Kind(409, "It has changed since it was read"),
        "subject_not_found": Kind(404, "No such subject"),
        "subject_in_plain": Kind(409, "The log holds it unencrypted"),
        "job_not_found": Kind(404, "No such job"),
        "job_running": Kind(409, "The job is already running"),
        "job_behind": Kind(409, "The job's missed ticks have yet to be recorded"),
        "orchestrator_stopped": Kind(409, "The orchestrator is shut down"),
        "run_not_held": Kind(409, "The caller does not hold the run"),
        "idempotency_mismatch": Kind(409, "The idempotency key belongs to a different request"),
        "unauthorized": Kind(401, "A valid API key is required"),
        "wrong_agent": Kind(403, "The key belongs to another agent"),
        "not_allowed": Kind(403, "The key does not permit this"),
        "key_not_found": Kind(404, "No such key"),
        "key_exists": Kind(409, "The key already exists"),
        "too_many_keys": Kind(409, "Too many keys are in use"),
    }
)
"""The reasons for which a command can be refused, by code."""

OTHERS: Mapping[str, Kind] = MappingProxyType(
    {
        "malformed_json": Kind(400, "The body is not valid JSON"),
        "validation_failed": Kind(422, "The request is not valid"),
        "not_found": Kind(404, "Not found"),
        "run_not_found": Kind(404, "No such run"),
        "method_not_allowed": Kind(405, "The method is not allowed here"),
        "payload_too_large": Kind(413, "The body is too large"),
        "misdirected": Kind(421, "The Host header does not name this service"),
        "rate_limited": Kind(429, "Too many requests"),
        "request_timeout": Kind(408, "The request took too long to arrive"),
        "connections_full": Kind(503, "Too many connections are open"),
        "streams_full": Kind(503, "Too many event streams are open"),
        "too_many_streams": Kind(429, "The key has too many event streams open"),
        "unsupported_media_type": Kind(415, "The body must be JSON"),
        "bad_request": Kind(400, "The request cannot be understood"),
        "queue_full": Kind(503, "Too many commands are waiting"),
        "stopping": Kind(503, "The service is stopping"),
        "unavailable": Kind(503, "The service is temporarily unavailable"),
        "outcome_unknown": Kind(503, "The outcome of the command is not known yet"),
        "took_too_long": Kind(503, "Reconstructing the past state took too long"),
        "not_yet": Kind(504, "That position is not covered yet"),
        "internal_error": Kind(500, "Internal error"),
    }
)
"""Everything else that can go wrong, by code."""

KINDS: Mapping[str, Kind] = MappingProxyType({**REFUSALS, **OTHERS})


class Problem(Exception):
    """An error to answer a request with."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        retry_after_seconds: int | None = None,
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.status, title = KINDS[code]
        self.headers = dict(headers or {})
        self.body = {
            "type": f"urn:squad:problem:{code}",
            "title": title,
            "status": self.status,
            "detail": detail,
            "code": code,
            **extra,
        }
        if retry_after_seconds is not None:
            self.body["retry_after_seconds"] = retry_after_seconds


def from_refusal(refusal: Refusal, position: int | None) -> Problem:
    """Return a refusal as a problem. `position` is that of the event that records it, if one does."""
    extra = dict(refusal.extra)
    if position is not None:
        extra["position"] = position
    return Problem(refusal.code, refusal.detail, retry_after_seconds=refusal.retry_after_seconds, **extra)


def invalid_field(field: str, message: str) -> Problem:
    """Return a problem with one wrong field and what is allowed there."""
    return Problem(
        "validation_failed", f"{field}: {message}", errors=[{"field": field, "message": message}]
    )


def from_validation(
    error: ValidationError, within: str = "body", names: Mapping[str, str] | None = None
) -> Problem:
    """Return a problem that lists the wrong fields and what is allowed there.

    Args:
        error: pydantic's error.
        within: the name for a fault that lies in no field.
        names: the caller's names of fields, by the model's, where they differ.
    """
    errors = field_errors(error, within)
    for item in errors:
        item["field"] = (names or {}).get(item["field"], item["field"])
    summary = "; ".join(f"{item['field']}: {item['message']}" for item in errors[:5])
    return Problem("validation_failed", summary, errors=errors)


def field_errors(error: ValidationError, within: str = "body") -> list[dict[str, str]]:
    """Return one entry per fault: the field's path and what is allowed there."""
    if (count := error.error_count()) > MAX_FAULTS_EXAMINED:
        return [{"field": within, "message": f"has {count:,} errors, too many to list"}]
    faults = error.errors(include_url=False, include_input=False)
    return [{"field": _path(item) or within, "message": in_words(item)} for item in faults[:MAX_FAULTS]]


def _path(fault: ErrorDetails) -> str:
    text = ".".join(map(str, fault["loc"]))
    # The names of unknown fields are the caller's and can be as long as a body.
    return text if len(text) <= 200 else f"{text[:199]}…"
