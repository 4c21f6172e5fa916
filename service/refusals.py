"""Refusals of commands, each with a stable code.

A refusal is a result, not an exception: the decision was made, and is often recorded in the log itself.
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
    "changed",
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
    """Why a command was refused."""

    code: RefusalCode
    detail: str
    """One sentence for people."""
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Data for programs, such as the conflicting operation."""
    retry_after_seconds: int | None = None
    """After how long a retry may succeed, if that is known."""
