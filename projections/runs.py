"""job_runs: the outcome of every tick, folded by `projections.jobs`."""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256
from typing import Literal
from uuid import UUID

from projections.projection import Row, Table

RunStatus = Literal["running", "succeeded", "failed", "skipped", "missed", "lost"]


class RunRow(Row, frozen=True):
    """The outcome of a tick. While running, `runner` holds it under a lease, or it waits for `retry_at`.

    A run that no process has taken up yet has had no attempts.
    """

    id: str
    job: str
    tick: datetime
    status: RunStatus
    manual: bool
    agent: str | None
    attempts: int
    attempts_allowed: int
    reason: str | None
    runner: str | None
    lease_expires_at: datetime | None
    retry_at: datetime | None
    reservation_id: str | None
    operation_id: str | None
    """The last attempt's claim on the job's resources."""
    tokens_used: int | None
    started_at: datetime | None
    finished_at: datetime | None
    fencing_token: int
    """The position at which the tick got its run, or its outcome without one. Runs are listed in its order.

    It stays the same at each attempt, so it is not the token that the agent is sent.
    """
    position: int


RUNS = Table[str, RunRow](
    "job_runs",
    RunRow,
    key=("id",),
    types=(
        "uuid",
        "text",
        "timestamptz",
        "text",
        "boolean",
        "text",
        "integer",
        "integer",
        "text",
        "text",
        "timestamptz",
        "timestamptz",
        "uuid",
        "uuid",
        "bigint",
        "timestamptz",
        "timestamptz",
        "bigint",
        "bigint",
    ),
)


def run_id(job: str, tick: datetime) -> str:
    """Return the id of a tick's run, the same in every process, in the layout of a UUIDv7 (RFC 9562)."""
    digest = int.from_bytes(sha256(f"{job}\n{tick.timestamp():.6f}".encode()).digest()[:16], "big")
    milliseconds = int(tick.timestamp() * 1000) & ((1 << 48) - 1)
    value = (milliseconds << 80) | (digest & ((1 << 80) - 1))
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return str(UUID(int=value))
