"""One example of every kind of event about jobs; `tests/golden/events` has their stored form."""

from __future__ import annotations

from datetime import UTC, datetime

from eventstore.events import (
    AnyEvent,
    JobDefined,
    JobDefinition,
    JobPaused,
    JobRemoved,
    JobResumed,
    RunAttemptFailed,
    RunFinished,
    RunMissed,
    RunRenewed,
    RunRetried,
    RunSkipped,
    RunStarted,
    TickBuffered,
)

_RUN = "0198c0de-0000-7000-8000-00000000000a"
_CLAIM = "0198c0de-0000-7000-8000-00000000000b"
_WHOLE_SECOND = datetime(2026, 3, 29, 1, 0, 0, tzinfo=UTC)
_FRACTION = datetime(2026, 3, 29, 1, 0, 0, 120_000, tzinfo=UTC)
_TO_THE_MICROSECOND = datetime(2026, 3, 29, 1, 0, 0, 123_456, tzinfo=UTC)

JOB_EXAMPLES: tuple[AnyEvent, ...] = (
    JobDefined(
        job="email_poll",
        source="settings",
        definition=JobDefinition(
            agent="email_agent",
            endpoint="/api/agents/email/poll?since=<day>&x=ü",
            task=None,
            cron="*/5 6-18 * * MON-FRI",
            every_seconds=None,
            timezone="Europe/Berlin",
            tokens=1_000,
            timeout_seconds=30.0,
            retries=2,
            overlap="buffer_one",
            catch_up_seconds=60.0,
            jitter_seconds=0.1,
            pause_on_failure=True,
            enabled=True,
            resources={"mailbox": "büro"},
        ),
    ),
    JobRemoved(job="email_poll", source="api"),
    JobPaused(job="email_poll", reason="failure", note='the agent answered 500: "gone" — ☂'),
    JobResumed(job="email_poll", note=None),
    TickBuffered(job="email_poll", tick=_WHOLE_SECOND),
    RunMissed(run_id=_RUN, job="email_poll", tick=_FRACTION),
    RunSkipped(
        run_id=_RUN,
        job="email_poll",
        tick=_WHOLE_SECOND,
        reason="schedule_ended",
        detail="the job is being removed",
    ),
    RunStarted(
        run_id=_RUN,
        job="email_poll",
        agent="email_agent",
        tick=_WHOLE_SECOND,
        manual=False,
        runner="host-1f0e9d",
        attempts_allowed=3,
        lease_expires_at=_TO_THE_MICROSECOND,
        reservation_id=None,
        operation_id=_CLAIM,
    ),
    RunRenewed(run_id=_RUN, job="email_poll", lease_expires_at=_TO_THE_MICROSECOND),
    RunAttemptFailed(
        run_id=_RUN,
        job="email_poll",
        attempt=1,
        reason="line one\nline two",
        retry_at=_TO_THE_MICROSECOND,
        tokens_used=12,
    ),
    RunRetried(
        run_id=_RUN,
        job="email_poll",
        attempt=2,
        runner="host-2a3b4c",
        lease_expires_at=_TO_THE_MICROSECOND,
        lease_ran_out=True,
        operation_id=None,
    ),
    RunFinished(
        run_id=_RUN,
        job="email_poll",
        agent=None,
        outcome="lost",
        attempts=3,
        reason="the process that ran it vanished",
        tokens_used=None,
        answered=False,
    ),
)
