"""The scheduler: claims what is due, and carries out what this process has claimed.

Every process has one, and none of them leads. Claiming is a command like any other, decided at the head of
the log: who is first gets the run, the others find nothing left to do. What this process is to carry out
it reads from the log itself: each `run_started` and `run_retried` names its runner.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from eventstore import codec
from eventstore.events import RunFinished, RunRetried, RunStarted
from eventstore.listener import wait_for_hint
from projections.jobs import JOBS, RUNS
from service import commands as do
from service.batch import new_id
from service.decide.jobs import due_jobs
from service.decide.runs import LEASE_SECONDS
from service.requests import CommandFailed, OutcomeUnknown, QueueFull, Request, Stopping, Unavailable
from service.tasks import ACTOR, Work, failed, perform

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from eventstore.recorded import Recorded
    from service.calls import Caller
    from service.clock import DatabaseClock
    from service.commands import AnyCommand
    from service.requests import Outcome
    from service.tasks import Report
    from service.writer import Writer

MAX_RUNS = 256
"""How many runs of this process are under way at once; more wait their turn, under their lease."""

MAX_RUNS_PER_AGENT = 16
"""How many of them call one agent."""

LONGEST_SLEEP_SECONDS = 1.0
STOP_SECONDS = 1.5
"""How long runs have to end by themselves when the service stops."""

_NOT_NOW = (QueueFull, Stopping, Unavailable, OutcomeUnknown, CommandFailed)
_CONCERNS_US = ("job_", "run_", "tick_", "orchestrator_")
_log = logging.getLogger(__name__)


class Scheduler:
    """Runs one squad's jobs from one process. `runner` names the process in the log."""

    def __init__(self, writer: Writer, clock: DatabaseClock, caller: Caller, runner: str) -> None:
        self.runner = runner
        self._writer = writer
        self._clock = clock
        self._caller = caller
        self._changed = asyncio.Event()
        self._stopping = False
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(MAX_RUNS)
        self._places_of_agent: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(MAX_RUNS_PER_AGENT)
        )

    async def run(self) -> None:
        """Claims what is due until cancelled."""
        while not self._stopping:
            self._changed.clear()
            seconds = LONGEST_SLEEP_SECONDS
            if self._writer.ready:
                now = self._clock.now()
                jobs, runs, later = due_jobs(self._writer.squad, now)
                claims: list[AnyCommand] = [do.ClaimTick(name=name, runner=self.runner) for name in jobs]
                claims += [do.TakeUpRun(run_id=run_id, runner=self.runner) for run_id in runs]
                if claims and await self._claim(claims):
                    continue
                if later is not None:
                    seconds = min(seconds, max(0.001, (later - now).total_seconds()))
            await wait_for_hint(self._changed, seconds)

    async def stop(self) -> None:
        """Lets runs end, for a moment; what does not is given back, so that another process takes it up."""
        self._stopping = True
        tasks = list(self._runs.values())
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=STOP_SECONDS)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    def observe(self, recorded: Sequence[Recorded]) -> None:
        """Sees every event after it was committed; begins the runs that are ours."""
        for item in recorded:
            if not item.type.startswith(_CONCERNS_US):
                continue
            self._changed.set()
            if item.type not in (RunStarted.type, RunRetried.type, RunFinished.type):
                continue
            event = codec.decode(item)
            if isinstance(event, RunStarted | RunRetried) and event.runner == self.runner:
                attempt = event.attempt if isinstance(event, RunRetried) else 1
                self._begin(event.run_id, attempt)
            elif isinstance(event, RunFinished) and (task := self._runs.get(event.run_id)):
                # Over by somebody else's word, such as the next tick's: our part of it is no longer wanted.
                task.cancel()

    def _begin(self, run_id: str, attempt: int) -> None:
        task = asyncio.create_task(self._attempt(run_id, attempt))
        self._runs[run_id] = task

        def forget(ended: asyncio.Task[None]) -> None:
            if self._runs.get(run_id) is ended:
                del self._runs[run_id]
            if not ended.cancelled() and ended.exception():
                _log.error("run %s broke off", run_id, exc_info=ended.exception())

        task.add_done_callback(forget)

    async def _claim(self, claims: list[AnyCommand]) -> bool:
        """Claims all at once; whether it may be worth looking again without waiting."""
        results = await asyncio.gather(*(self._submit(claim) for claim in claims), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, _NOT_NOW):
                _log.error("claiming failed", exc_info=result)
        return not any(isinstance(result, BaseException) for result in results)

    async def _attempt(self, run_id: str, attempt: int) -> None:
        row = self._writer.squad.rows(RUNS).get(run_id)
        job = self._writer.squad.rows(JOBS).get(row.job) if row else None
        if row is None or job is None:
            return
        work = Work(self._writer, self._caller, job, row)
        async with self._renewing(run_id):
            try:
                async with self._place(job.agent), asyncio.timeout(job.timeout_seconds):
                    report = await perform(work)
            except TimeoutError:
                report = failed(job.name, f"it took longer than {job.timeout_seconds:g} seconds")
            except asyncio.CancelledError:
                if not self._stopping:
                    raise
                report = failed(job.name, "the service was stopped")
            except _NOT_NOW as error:
                report = failed(job.name, f"the orchestrator was not available: {type(error).__name__}")
            await self._end(run_id, attempt, report)

    async def _end(self, run_id: str, attempt: int, report: Report) -> None:
        """Says how the attempt ended, for as long as it takes to be heard."""
        command = do.EndAttempt(
            run_id=run_id,
            runner=self.runner,
            attempt=attempt,
            succeeded=report.succeeded,
            reason=report.reason,
            tokens_used=report.tokens_used,
            report=report.text,
            data=report.data,
        )
        while True:
            try:
                await self._submit(command)
            except (QueueFull, Unavailable, OutcomeUnknown):
                if self._stopping:
                    return
                await asyncio.sleep(LONGEST_SLEEP_SECONDS)
            except (Stopping, CommandFailed):
                return
            else:
                return

    async def _submit(self, command: AnyCommand) -> Outcome:
        correlation = getattr(command, "run_id", None) or new_id()
        return await self._writer.submit(Request(command, ACTOR, correlation_id=correlation))

    @asynccontextmanager
    async def _place(self, agent: str | None) -> AsyncIterator[None]:
        """A place among the runs under way, and among those of the agent."""
        if agent is None:
            yield
            return
        # The agent's own bound first: its queue must not take places from others.
        async with self._places_of_agent[agent], self._places:
            yield

    @asynccontextmanager
    async def _renewing(self, run_id: str) -> AsyncIterator[None]:
        async def renew() -> None:
            while True:
                await asyncio.sleep(LEASE_SECONDS / 3)
                with suppress(*_NOT_NOW):
                    await self._submit(do.RenewRun(run_id=run_id, runner=self.runner))

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewing.cancel()
