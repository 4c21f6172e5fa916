"""Why a command was refused, each reason with its stable code.

A refusal is an answer, not an exception: the decision was made, and often it is itself a fact in the log.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

RefusalCode = Literal[
    "agent_not_found",
    "message_not_found",
    "not_addressed",
    "conflict",
    "operation_not_found",
    "operation_expired",
    "operation_finished",
    "budget_exhausted",
    "agent_limit_reached",
    "reservation_not_found",
    "reservation_expired",
    "reservation_ended",
    "task_not_found",
    "email_not_found",
    "email_exists",
    "email_erased",
    "subject_not_found",
    "subject_in_plain",
    "job_not_found",
    "job_running",
    "job_behind",
    "orchestrator_stopped",
    "run_not_held",
    "idempotency_mismatch",
    "unauthorized",
    "wrong_agent",
    "not_allowed",
    "key_not_found",
    "key_exists",
    "too_many_keys",
]


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is answered instead of what was asked for."""

    code: RefusalCode
    detail: str
    """One sentence for a person."""
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """What a program needs to go on, such as the operation in the way."""
    retry_after_seconds: int | None = None
    """When it may be worth trying again, where that is known."""
