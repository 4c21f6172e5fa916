"""The specification of a job, validated: `[jobs.NAME]` in the settings, and the API's request body."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, get_args
from urllib.parse import unquote

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from eventstore.events import JobDefinition, Overlap
from service.documented import Documented
from service.schedule import Schedule, next_tick
from service.values import Name, Resources, Timezone, Tokens

BuiltInTask = Literal[
    "email_poll",
    "email_classify",
    "email_respond",
    "status_update",
    "conflict_check",
    "token_monitor",
    "token_reset",
]
"""Tasks that the orchestrator itself can perform; see `service.scheduling.job_tasks`."""

BUILT_IN_TASKS: tuple[str, ...] = get_args(BuiltInTask)

CALLING_TASKS = frozenset({"email_poll", "email_classify", "email_respond"})
"""The tasks that call an agent."""

_EVERY = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_DAY_SECONDS = 86_400.0


def _seconds(value: Any) -> Any:
    if isinstance(value, str):
        match = _EVERY.fullmatch(value.strip())
        if not match:
            raise ValueError("must be a duration such as 500ms, 2s, 5m, 1h or 1d")
        return float(match[1]) * _UNIT_SECONDS[match[2]]
    return value


_MIN_SECONDS, _MAX_SECONDS = 0.1, 366 * _DAY_SECONDS

Every = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(ge=_MIN_SECONDS, le=_MAX_SECONDS),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": _MIN_SECONDS, "maximum": _MAX_SECONDS},
                {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?\s*(ms|s|m|h|d)$"},
            ]
        }
    ),
]
"""An interval: a number of seconds, or text such as 2s, 5m, 1h."""

_CRON = r"[\t\x20-\x7e]*"
_ENDPOINT = r"^/([^/\s\x00-\x1f\x7f?#][^\s\x00-\x1f\x7f#]*)?$"


def _check_endpoint(endpoint: str) -> str:
    path = unquote(endpoint.partition("?")[0])
    # Dot segments would be resolved before the call, and lead out of the agent's registered path.
    if not re.fullmatch(_ENDPOINT, endpoint) or not {".", ".."}.isdisjoint(path.split("/")):
        raise ValueError("must be a path at the agent's URL, such as /api/agents/email/poll")
    return endpoint


Endpoint = Annotated[
    str,
    StringConstraints(max_length=1_000),
    AfterValidator(_check_endpoint),
    Field(json_schema_extra={"pattern": _ENDPOINT}),
]
"""A path at an agent's URL, never a URL itself: calls go only to where the agent is registered."""


def _without_default(schema: dict[str, Any]) -> None:
    """Keep a default out of the OpenAPI document, as the API applies another one."""
    schema.pop("default")


class JobSpec(Documented):
    """A job. It calls `endpoint` at its agent or performs a built-in `task`, by `cron` or by `every`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    agent: Name | None = None
    """The agent that is called; registered, or named in the settings."""
    endpoint: Endpoint | None = None
    task: BuiltInTask | None = None
    cron: str | None = Field(default=None, max_length=200)
    """A cron expression with five fields; names, ranges and steps are allowed."""
    every: Every | None = None
    timezone: Timezone = Field(default="UTC", json_schema_extra=_without_default)
    """The time zone of `cron`; defaults to the squad's own."""
    tokens: Tokens = 0
    """The estimated tokens, reserved before each run; 0 reserves none."""
    timeout_seconds: float = Field(default=30.0, gt=0, le=3_600)
    """How long one attempt may take."""
    retries: int = Field(default=0, ge=0, le=20)
    """How often a failed attempt is repeated, after 1, 2, 4 ... seconds, with jitter."""
    overlap: Overlap = "skip"
    """What to do with a tick while a run of the job is active."""
    catch_up_seconds: float = Field(default=60.0, ge=1, le=7 * _DAY_SECONDS)
    """How late a tick may still run; later ones are recorded as missed."""
    jitter_seconds: float = Field(default=0.0, ge=0, le=_DAY_SECONDS)
    """Runs start up to this long after their tick, by an amount fixed for each tick, but before the next
    tick."""
    pause_on_failure: bool = False
    enabled: bool = True
    resources: Resources | None = None
    """What a run claims while it is active, by kind, such as {"mailbox": "info"}."""

    @field_validator("cron")
    @classmethod
    def _ticks(cls, cron: str | None) -> str | None:
        if cron is not None and not re.fullmatch(_CRON, cron):
            raise ValueError("must be five fields on one line, such as 0 9 * * *")
        if cron is not None and next_tick(Schedule(cron, None, "UTC"), datetime.now(UTC)) is None:
            raise ValueError("there is no such day")
        return cron

    @model_validator(mode="after")
    def _whole(self) -> JobSpec:
        if (self.endpoint is None) == (self.task is None):
            raise ValueError("endpoint, task: name exactly one of them")
        if self.agent is None and (self.endpoint is not None or self.task in CALLING_TASKS):
            raise ValueError("agent: name the agent that is to be called")
        if (self.cron is None) == (self.every is None):
            raise ValueError("cron, every: name exactly one of them")
        if self.cron and next_tick(Schedule(self.cron, None, self.timezone), datetime.now(UTC)) is None:
            raise ValueError(f"cron: no clock in {self.timezone} shows such a time")
        return self

    def definition(self) -> JobDefinition:
        """Return the job as the log stores it."""
        return JobDefinition(
            agent=self.agent,
            endpoint=self.endpoint,
            task=self.task,
            cron=self.cron,
            every_seconds=self.every,
            timezone=self.timezone,
            tokens=self.tokens,
            timeout_seconds=self.timeout_seconds,
            retries=self.retries,
            overlap=self.overlap,
            catch_up_seconds=self.catch_up_seconds,
            jitter_seconds=self.jitter_seconds,
            pause_on_failure=self.pause_on_failure,
            enabled=self.enabled,
            resources=self.resources,
        )


EMAIL_AGENT = "email_agent"

SEED_JOBS = BUILT_IN_TASKS
"""The names of the seed's jobs: each performs the task of its name."""


def seed_jobs(reset_hour: int, timezone: str) -> dict[str, dict[str, Any]]:
    """Return the seed's seven jobs with their schedules, as settings; a squad's own override them."""
    email = {"agent": EMAIL_AGENT, "timeout_seconds": 60.0}
    emails = {"agent": EMAIL_AGENT, "timeout_seconds": 300.0}
    jobs: dict[str, dict[str, Any]] = {
        "email_poll": {**email, "cron": "*/5 * * * *", "tokens": 1_000},
        "email_classify": {**emails, "cron": "*/10 * * * *"},
        "email_respond": {**emails, "cron": "*/15 * * * *"},
        "status_update": {"cron": "* * * * *"},
        "conflict_check": {"cron": "*/2 * * * *"},
        "token_monitor": {"cron": "*/5 * * * *"},
        "token_reset": {"cron": f"0 {reset_hour} * * *"},
    }
    return {name: {"task": name, "timezone": timezone, **job} for name, job in jobs.items()}


def merge_job(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Merge a job's settings over those of the seed's job of that name; drop what they replace."""
    merged = {**base, **own}
    for one, other in (("cron", "every"), ("every", "cron"), ("endpoint", "task"), ("task", "endpoint")):
        if one in own and other not in own:
            merged.pop(other, None)
    return merged
