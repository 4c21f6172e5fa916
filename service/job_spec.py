"""What a job may look like: the settings' `[jobs.NAME]` and the API's body, checked."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from eventstore.events import JobDefinition, Overlap
from service.schedule import Schedule, next_tick
from service.values import Name, Timezone, Tokens

BUILT_IN_TASKS = (
    "email_poll",
    "email_classify",
    "email_respond",
    "status_update",
    "conflict_check",
    "token_monitor",
    "token_reset",
)
"""What the orchestrator itself can do on a schedule; see `service.tasks`."""

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


Every = Annotated[float, BeforeValidator(_seconds), Field(ge=0.1, le=366 * _DAY_SECONDS)]
"""An interval: a number of seconds, or text such as 2s, 5m, 1h."""

Endpoint = Annotated[
    str,
    StringConstraints(max_length=1_000, pattern=r"^/([^/\s\x00-\x1f\x7f?#][^\s\x00-\x1f\x7f#]*)?$"),
]
"""A path at an agent's url. Never a url of its own: calls go only where the agent is registered."""


class JobSpec(BaseModel):
    """A job. It either calls `endpoint` at its agent or does a built-in `task`, by `cron` or by `every`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    agent: Name | None = None
    """Who is called; registered, or named in the settings."""
    endpoint: Endpoint | None = None
    task: str | None = Field(default=None, json_schema_extra={"enum": [*BUILT_IN_TASKS, None]})
    cron: str | None = Field(default=None, max_length=200)
    """Five fields, with names, ranges and steps."""
    every: Every | None = None
    timezone: Timezone = "UTC"
    tokens: Tokens = 0
    """The estimate that is reserved before each run; 0 reserves nothing."""
    timeout_seconds: float = Field(default=30.0, gt=0, le=3_600)
    """How long one attempt may take."""
    retries: int = Field(default=0, ge=0, le=20)
    """How often a failed attempt is repeated, after 1, 2, 4 ... seconds, with jitter."""
    overlap: Overlap = "skip"
    """What becomes of a tick that comes while the job is running."""
    catch_up_seconds: float = Field(default=60.0, ge=0, le=7 * _DAY_SECONDS)
    """How late a tick may still run; later ones are recorded as missed."""
    jitter_seconds: float = Field(default=0.0, ge=0, le=_DAY_SECONDS)
    """Runs begin up to this much after their tick, by an amount that is the tick's own."""
    pause_on_failure: bool = False
    enabled: bool = True

    @model_validator(mode="after")
    def _whole(self) -> JobSpec:
        if (self.endpoint is None) == (self.task is None):
            raise ValueError("endpoint, task: name exactly one of them")
        if self.task is not None and self.task not in BUILT_IN_TASKS:
            raise ValueError(f"task: must be one of {', '.join(BUILT_IN_TASKS)}")
        if self.agent is None and (self.endpoint is not None or self.task in CALLING_TASKS):
            raise ValueError("agent: name the agent that is to be called")
        if (self.cron is None) == (self.every is None):
            raise ValueError("cron, every: name exactly one of them")
        if self.cron is not None:
            self._check_cron()
        return self

    def _check_cron(self) -> None:
        schedule = Schedule(self.cron, None, self.timezone)
        try:
            first = next_tick(schedule, datetime.now(UTC))
        except ValueError as error:
            raise ValueError(str(error)) from error
        if first is None:
            raise ValueError("cron: there is no such day")

    def definition(self) -> JobDefinition:
        """The job as the log keeps it."""
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
        )


EMAIL_AGENT = "email_agent"


def seed_jobs(reset_hour: int, timezone: str) -> dict[str, dict[str, Any]]:
    """The seed's seven jobs with its schedules, as settings; a squad's own settings go over them."""
    email = {"agent": EMAIL_AGENT, "timeout_seconds": 60.0, "timezone": timezone}
    return {
        "email_poll": {**email, "task": "email_poll", "cron": "*/5 * * * *", "tokens": 1_000},
        "email_classify": {
            **email,
            "task": "email_classify",
            "cron": "*/10 * * * *",
            "timeout_seconds": 300.0,
        },
        "email_respond": {
            **email,
            "task": "email_respond",
            "cron": "*/15 * * * *",
            "timeout_seconds": 300.0,
        },
        "status_update": {"task": "status_update", "cron": "* * * * *"},
        "conflict_check": {"task": "conflict_check", "cron": "*/2 * * * *"},
        "token_monitor": {"task": "token_monitor", "cron": "*/5 * * * *"},
        "token_reset": {"task": "token_reset", "cron": f"0 {reset_hour} * * *", "timezone": timezone},
    }


def over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Settings of a job over those of the seed's job of that name; what they replace goes."""
    merged = {**base, **own}
    for one, other in (("cron", "every"), ("every", "cron"), ("endpoint", "task"), ("task", "endpoint")):
        if one in own and other not in own:
            merged.pop(other, None)
    return merged
