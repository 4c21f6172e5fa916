"""What goes wrong, as the API says it: RFC 9457 problem details with a stable code, never a stack trace."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from service.values import in_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    from service.refusals import Refusal

CONTENT_TYPE = "application/problem+json"

MAX_FAULTS = 20
"""How many wrong fields are told at once; a body can have a hundred thousand."""

MAX_FAULTS_LOOKED_AT = 1_000
"""With more of them, none is told: to look at all takes seconds, in which nobody else is answered."""

REFUSAL_STATUS: Mapping[str, int] = MappingProxyType(
    {
        "agent_not_found": 404,
        "message_not_found": 404,
        "not_addressed": 409,
        "conflict": 409,
        "operation_not_found": 404,
        "operation_expired": 410,
        "operation_finished": 409,
        "budget_exhausted": 429,
        "agent_limit_reached": 429,
        "reservation_not_found": 404,
        "reservation_expired": 410,
        "reservation_ended": 409,
        "task_not_found": 404,
        "email_not_found": 404,
        "email_exists": 409,
        "email_erased": 409,
        "subject_not_found": 404,
        "subject_in_plain": 409,
        "job_not_found": 404,
        "job_running": 409,
        "job_behind": 409,
        "orchestrator_stopped": 409,
        "run_not_held": 409,
        "idempotency_mismatch": 409,
        "unauthorized": 401,
        "wrong_agent": 403,
        "not_allowed": 403,
        "key_not_found": 404,
        "key_exists": 409,
        "too_many_keys": 409,
    }
)
"""The HTTP status of each refusal."""

OTHER_STATUS: Mapping[str, int] = MappingProxyType(
    {
        "malformed_json": 400,
        "validation_failed": 422,
        "not_found": 404,
        "method_not_allowed": 405,
        "payload_too_large": 413,
        "misdirected": 421,
        "rate_limited": 429,
        "request_timeout": 408,
        "connections_full": 503,
        "streams_full": 503,
        "too_many_streams": 429,
        "unsupported_media_type": 415,
        "bad_request": 400,
        "queue_full": 503,
        "stopping": 503,
        "unavailable": 503,
        "outcome_unknown": 503,
        "took_too_long": 503,
        "not_yet": 504,
        "internal_error": 500,
    }
)
"""The HTTP status of everything else that can go wrong."""

STATUS: Mapping[str, int] = MappingProxyType({**REFUSAL_STATUS, **OTHER_STATUS})

TITLES: Mapping[str, str] = MappingProxyType(
    {
        "agent_not_found": "No such agent",
        "message_not_found": "No such message",
        "not_addressed": "The message was sent to somebody else",
        "conflict": "Somebody is at it already",
        "operation_not_found": "No such operation",
        "operation_expired": "The operation has expired",
        "operation_finished": "The operation has finished",
        "budget_exhausted": "The day's token budget does not allow it",
        "agent_limit_reached": "The agent's token limit does not allow it",
        "reservation_not_found": "No such reservation",
        "reservation_expired": "The reservation has expired",
        "reservation_ended": "The reservation has ended",
        "task_not_found": "No such task",
        "email_not_found": "No such e-mail",
        "email_exists": "The e-mail is logged already",
        "email_erased": "The e-mail's sender was forgotten",
        "subject_not_found": "Nothing is known of that",
        "subject_in_plain": "The log holds it in plain",
        "job_not_found": "No such job",
        "job_running": "The job is running already",
        "job_behind": "Missed ticks of the job have yet to be recorded",
        "orchestrator_stopped": "The orchestrator is shut down",
        "run_not_held": "Somebody else holds the run, or nobody any more",
        "idempotency_mismatch": "The idempotency key belongs to a different request",
        "unauthorized": "A valid key is needed",
        "wrong_agent": "The key belongs to another agent",
        "not_allowed": "The key does not reach so far",
        "key_not_found": "No such key",
        "key_exists": "There is such a key already",
        "too_many_keys": "Too many keys are in use",
        "malformed_json": "The body is not valid JSON",
        "validation_failed": "Something in the request is not as it must be",
        "not_found": "Nothing is here",
        "method_not_allowed": "The method is not allowed here",
        "payload_too_large": "The body is too large",
        "misdirected": "That is not a name of this service",
        "rate_limited": "Too many requests",
        "request_timeout": "The request took too long to arrive",
        "connections_full": "Too many connections are open",
        "streams_full": "Too many event streams are open",
        "too_many_streams": "The key has too many event streams open",
        "unsupported_media_type": "The body must be JSON",
        "bad_request": "The request cannot be understood",
        "queue_full": "Too many commands are waiting",
        "stopping": "The service is stopping",
        "unavailable": "The service cannot do that at the moment",
        "outcome_unknown": "What came of the command is not known yet",
        "took_too_long": "Looking back takes too long",
        "not_yet": "That position is not covered yet",
        "internal_error": "Something went wrong on our side",
    }
)


class Problem(Exception):
    """Something that the caller is told instead of an answer."""

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
        self.status = STATUS[code]
        self.headers = dict(headers or {})
        self.body = {
            "type": f"urn:squad:problem:{code}",
            "title": TITLES[code],
            "status": self.status,
            "detail": detail,
            "code": code,
            **extra,
        }
        if retry_after_seconds is not None:
            self.body["retry_after_seconds"] = retry_after_seconds


def from_refusal(refusal: Refusal, position: int | None = None) -> Problem:
    """A refusal as a problem. `position` is that of the event which records the refusal, where one does."""
    extra = dict(refusal.extra)
    if position is not None:
        extra["position"] = position
    return Problem(refusal.code, refusal.detail, retry_after_seconds=refusal.retry_after_seconds, **extra)


def wrong(field: str, message: str) -> Problem:
    """One field that is wrong, and what is allowed there."""
    return Problem(
        "validation_failed", f"{field}: {message}", errors=[{"field": field, "message": message}]
    )


def from_validation(
    error: ValidationError, within: str = "body", names: Mapping[str, str] | None = None
) -> Problem:
    """Which fields are wrong, and what is allowed.

    Args:
        error: what pydantic found.
        within: what was looked at, where a fault lies in no field of it.
        names: what fields are called where the caller knows them by another name.
    """
    errors = field_errors(error, within)
    for item in errors:
        item["field"] = (names or {}).get(item["field"], item["field"])
    summary = "; ".join(f"{item['field']}: {item['message']}" for item in errors[:5])
    return Problem("validation_failed", summary, errors=errors)


def field_errors(error: ValidationError, within: str = "body") -> list[dict[str, str]]:
    """One entry a fault: the field, by its path, and what is allowed there."""
    if (count := error.error_count()) > MAX_FAULTS_LOOKED_AT:
        return [{"field": within, "message": f"has {count:,} faults, too many to tell them"}]
    faults = error.errors(include_url=False, include_input=False)
    return [{"field": _path(item) or within, "message": in_words(item)} for item in faults[:MAX_FAULTS]]


def _path(fault: ErrorDetails) -> str:
    text = ".".join(map(str, fault["loc"]))
    # The names of unknown fields are the caller's, and can be as long as a body.
    return text if len(text) <= 200 else f"{text[:199]}…"
