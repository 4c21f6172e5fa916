"""The scheduler: claims due ticks and runs, and carries out what this process has claimed.

Every process has one, and none is a leader. A claim is a command like any other, decided at the head of the
log: the first process gets the run, the others find nothing left to do. A process learns from the log
what it is to carry out: each `run_started` and `run_retried` names its runner.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from pydantic import ValidationError

from eventstore import codec
from eventstore.events import RunAttemptFailed, RunFinished, RunRetried, RunStarted
from eventstore.listener import wait_for_hint
from projections.jobs import JOBS
from projections.operations import OPERATIONS
from projections.runs import RUNS
from service import commands as do
from service.background import background
from service.decide import runs as run_decisions
from service.decide.jobs import due_jobs
from service.requests import (
    CommandFailed,
    NoOutcome,
    OutcomeUnknown,
    QueueFull,
    Request,
    Stopping,
    Unavailable,
)
from service.schedule import schedule_of
from service.scheduling.job_tasks import perform
from service.scheduling.work import ACTOR, Report, Work, complete_despite_cancel, failed
from service.writing.batch import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from eventstore.recorded import Recorded
    from projections.jobs import JobRow
    from projections.runs import RunRow
    from service.clock import DatabaseClock
    from service.commands import AnyCommand
    from service.requests import Outcome
    from service.schedule import Schedule
    from service.scheduling.calls import AgentClient
    from service.writing.writer import Writer

MAX_RUNS = 256
"""How many runs of this process call agents at once; further ones wait for a slot, holding their lease."""

MAX_RUNS_PER_AGENT = 16
"""How many of them call one agent."""

MAX_CLAIMS = 16
"""How many claims of this process are queued at once. One may record 100 missed ticks, and other commands
wait behind it."""

MAX_SLEEP_SECONDS = 1.0

STOP_SECONDS = 1.5
"""How long runs may take to end by themselves when the service stops."""

RELEASE_SECONDS = 2.0
"""How long they may then take to release what they hold."""

_RELEVANT_PREFIXES = ("job_", "run_", "tick_", "orchestrator_")
_OWNERSHIP_TYPES = frozenset(kind.type for kind in (RunStarted, RunRetried, RunAttemptFailed, RunFinished))
_log = logging.getLogger(__name__)


class Scheduler:
    """Runs one squad's jobs from one process. `runner` names the process in the log."""

    def __init__(self, writer: Writer, clock: DatabaseClock, client: AgentClient, runner: str) -> None:
        self.runner = runner
        self._writer = writer
        self._clock = clock
        self._client = client
        self._changed = asyncio.Event()
        self._claiming = asyncio.Lock()
        self._stopping = False
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reported: dict[str, Schedule] = {}
        """Schedules of jobs that cannot be scheduled, as last logged."""
        self._failure_counts: Counter[str] = Counter()
        self._slots = asyncio.Semaphore(MAX_RUNS)
        self._agent_slots: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(MAX_RUNS_PER_AGENT)
        )

    async def run(self) -> None:
        """Claim what is due, until stopped or cancelled."""
        while not self._stopping:
            self._changed.clear()
            try:
                async with self._claiming:
                    seconds = await self._claim_due()
            except Exception:  # noqa: BLE001 - other jobs must still run, now or once this is fixed
                _log.exception("looking for due jobs failed")
                seconds = MAX_SLEEP_SECONDS
            if seconds:
                await wait_for_hint(self._changed, seconds)

    async def stop(self) -> None:
        """Give runs a moment to end; hand back the others, so that another process takes them over."""
        self._stopping = True
        self._changed.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                # A claim in progress becomes our run too.
                async with self._claiming:
                    pass
                while self._tasks:
                    await asyncio.wait(tuple(self._tasks))
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=RELEASE_SECONDS)

    def observe(self, recorded: Sequence[Recorded]) -> None:
        """Handle committed events: start the runs that are ours, and cancel those that are no longer."""
        for item in recorded:
            if not item.type.startswith(_RELEVANT_PREFIXES):
                continue
            self._changed.set()
            if item.type not in _OWNERSHIP_TYPES:
                continue
            event = codec.decode(item)
            if not isinstance(event, RunStarted | RunRetried | RunAttemptFailed | RunFinished):
                continue
            if before := self._runs.pop(event.run_id, None):
                # Ended by another command, such as the next tick's claim, or taken over by another process.
                before.cancel()
            if isinstance(event, RunStarted | RunRetried) and event.runner == self.runner:
                self._begin(event.run_id, item.position)

    def cancel_lost_runs(self) -> None:
        """After the log was replaced, silently cancel runs that are not in it, or not ours in it."""
        rows = self._writer.squad.rows(RUNS)
        for run_id, task in list(self._runs.items()):
            row = rows.get(run_id)
            if row is None or row.runner != self.runner:
                del self._runs[run_id]
                task.cancel()
        self._changed.set()

    def _begin(self, run_id: str, position: int) -> None:
        task = asyncio.create_task(self._attempt(run_id, position))
        self._runs[run_id] = task
        self._tasks.add(task)

        def forget(ended: asyncio.Task[None]) -> None:
            self._tasks.discard(ended)
            if self._runs.get(run_id) is ended:
                del self._runs[run_id]
            if not ended.cancelled() and ended.exception():
                _log.error("run %s aborted", run_id, exc_info=ended.exception())

        task.add_done_callback(forget)

    async def _claim_due(self) -> float:
        """Claim what is due; return how many seconds to wait before looking again."""
        if not self._writer.ready:
            return MAX_SLEEP_SECONDS
        now = self._clock.now()
        jobs, runs, later = due_jobs(self._writer.squad, now, self._report_unschedulable)
        # A run of our own whose lease expired because the database was down is still being carried out.
        claims: list[AnyCommand] = [
            do.TakeUpRun(run_id=run_id, runner=self.runner) for run_id in runs if run_id not in self._runs
        ]
        # Runs first: one that may not be taken over any more ends, and then blocks no tick.
        claims += [do.ClaimTick(name=name, runner=self.runner) for name in jobs]
        if claims:
            return 0 if await self._claim(claims) else MAX_SLEEP_SECONDS
        if later is None:
            return MAX_SLEEP_SECONDS
        return min(MAX_SLEEP_SECONDS, max(0.001, (later - now).total_seconds()))

    def _report_unschedulable(self, job: JobRow, why: str) -> None:
        """Log that a job cannot be scheduled, once per schedule."""
        schedule = schedule_of(job)
        if self._reported.get(job.name) != schedule:
            self._reported[job.name] = schedule
            _log.error("the job %s cannot be scheduled: %s", job.name, why)

    async def _claim(self, claims: list[AnyCommand]) -> bool:
        """Submit the claims; return whether all were decided, so that it is worth looking again at once."""
        left = iter(claims)

        async def claim_in_turn() -> bool:
            all_decided = True
            for claim in left:
                if self._stopping:
                    return False
                try:
                    await self._submit(claim)
                except CommandFailed:
                    # The fault is in this claim; go on with the others.
                    all_decided = False
                except NoOutcome:
                    return False
                except Exception:  # noqa: BLE001 - go on with the others
                    _log.exception("claiming failed")
                    all_decided = False
            return all_decided

        return all(await asyncio.gather(*(claim_in_turn() for _ in range(MAX_CLAIMS))))

    async def _attempt(self, run_id: str, position: int) -> None:
        """Carry out the attempt that the event at this position began."""
        row = self._writer.squad.rows(RUNS).get(run_id)
        if row is None or row.runner != self.runner:
            return
        async with background(self._renew(row)):
            job = self._writer.squad.rows(JOBS).get(row.job)
            if job is None:
                report = failed(row.job, "the job was removed")
            elif job.agent != row.agent:
                # Changed in the very batch that started the attempt. Tokens and work are the run's agent's.
                report = failed(row.job, "the job's agent was changed", ours=True)
            else:
                report = await self._perform(job, row, position)
            await self._end(row, report)

    async def _perform(self, job: JobRow, row: RunRow, position: int) -> Report:
        """Perform the job's work; return a report whatever happens."""
        claim = self._writer.squad.rows(OPERATIONS).get(row.operation_id) if row.operation_id else None
        token = claim.fencing_token if claim else position
        work = Work(self._writer, self._client, job, row, token, self._failure_counts)
        try:
            async with self._slot(job.agent), asyncio.timeout(job.timeout_seconds):
                return await perform(work)
        except TimeoutError:
            return failed(job.name, f"it took longer than {job.timeout_seconds:g} seconds")
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            return failed(job.name, "the service was stopped", ours=True)
        except NoOutcome as error:
            reason = f"the orchestrator was not available: {type(error).__name__}"
            return failed(job.name, reason, ours=True)
        except Exception as error:  # noqa: BLE001 - its end must be recorded, or another process repeats it
            _log.exception("run %s failed with an internal error", row.id)
            # Its text may quote the agent's answer, and the reason is not sealed.
            text = "" if self._writer.encrypts else f": {error}"
            return failed(job.name, f"an internal error of the orchestrator: {type(error).__name__}{text}")

    async def _end(self, row: RunRow, report: Report) -> None:
        """Record how the attempt ended, retrying for as long as it takes."""
        # Even if cancelled: by its deadline while it finished, or by a stop while it reports.
        await complete_despite_cancel(self._record_end(row, report))

    async def _record_end(self, row: RunRow, report: Report) -> None:
        try:
            command = self._end_of(row, report)
        except ValidationError:
            _log.exception("the report of run %s cannot be stored", row.id)
            command = self._end_of(row, report._replace(data=None))
        while True:
            try:
                await self._submit(command)
            except (QueueFull, Unavailable, OutcomeUnknown):
                if self._stopping:
                    return
                await asyncio.sleep(MAX_SLEEP_SECONDS)
            except (Stopping, CommandFailed):
                return
            else:
                return

    def _end_of(self, row: RunRow, report: Report) -> do.EndAttempt:
        which = f" (attempt {row.attempts} of {row.attempts_allowed})" if row.attempts_allowed > 1 else ""
        return do.EndAttempt(
            run_id=row.id,
            runner=self.runner,
            attempt=row.attempts,
            succeeded=report.succeeded,
            reason=report.reason,
            ours=report.ours,
            **(report.usage._asdict() if report.usage else {}),
            answered=report.answered,
            report=report.text if report.succeeded else report.text + which,
            data=report.data,
        )

    async def _submit(self, command: AnyCommand) -> Outcome:
        correlation = getattr(command, "run_id", None) or new_id()
        return await self._writer.submit(Request(command, ACTOR, correlation_id=correlation))

    @asynccontextmanager
    async def _slot(self, agent: str | None) -> AsyncIterator[None]:
        """Hold a slot among the agent's runs, and one among all runs of this process."""
        if agent is None:
            yield
            return
        # The agent's own limit first: runs that queue for it must not occupy slots that others could use.
        async with self._agent_slots[agent], self._slots:
            yield

    async def _renew(self, row: RunRow) -> None:
        """Renew what this process holds for a run: its lease, and the claim on its job's resources."""
        while True:
            await asyncio.sleep(run_decisions.renewal_seconds(self._writer.squad, row))
            with suppress(NoOutcome):
                await self._submit(do.RenewRun(run_id=row.id, runner=self.runner))
