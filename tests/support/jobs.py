"""A process that runs jobs, reduced to what tests need: a writer, a scheduler, the events seen."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from eventstore import codec, sealing
from eventstore.events import Event, RunFinished
from eventstore.keys import Keyring
from projections.agents import AGENTS
from projections.jobs import jobs
from projections.runs import RUNS
from service import commands as do
from service.clock import DatabaseClock
from service.job_spec import JobSpec
from service.requests import Request, Stopping
from service.scheduling.calls import AgentClient
from service.scheduling.scheduler import Scheduler
from service.writing.writer import SUBMIT_TIMEOUT_SECONDS, Writer
from tests.support.components import SCHEMA, connected, encryption_requested, running_listener, submit
from tests.support.log import whole_log
from tests.support.verify import fold
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from eventstore.recorded import Recorded
    from projections.runs import RunRow
    from service.requests import Outcome

E = TypeVar("E", bound=Event)

NOT_KEPT = " (its answer is not kept, because payloads are encrypted)"

NEVER = "300d"
"""An interval so long that a job runs only when requested."""


def answered(status: int, shown: str) -> str:
    """Why a run failed whose agent answered this: without its answer if payloads are encrypted."""
    return f"the agent answered {status}{NOT_KEPT if encryption_requested() else f': {shown}'}"


class JobProcess:
    """A process that runs jobs; it records every event that it sees."""

    def __init__(self, writer: Writer, scheduler: Scheduler, keyring: Keyring) -> None:
        self.writer = writer
        self.keyring = keyring
        self.scheduler = scheduler
        self.log: list[Recorded] = []
        """Every event that the process has seen."""
        self.tasks: list[asyncio.Task[None]] = []

    def find_events(self, kind: type[E], **fields: object) -> list[E]:
        """The events of a type with these field values."""
        items = (
            sealing.reveal_event(item, self.keyring._secrets) for item in self.log if item.type == kind.type
        )
        events = map(codec.decode, items)
        return [
            event
            for event in events
            if isinstance(event, kind) and all(getattr(event, k) == v for k, v in fields.items())
        ]

    def runs(self, job: str) -> list[RunRow]:
        """The runs of a job, oldest first."""
        items = (sealing.reveal_event(item, self.keyring._secrets) for item in self.log)
        rows: list[RunRow] = list(fold(jobs, items)[RUNS.name].values())
        return sorted((row for row in rows if row.job == job), key=lambda row: row.fencing_token)

    async def run_now(self, job: str) -> str:
        """Start a run of a job on this process; return the run's id."""
        outcome = await submit(self.writer, do.RunJob(name=job, runner=self.scheduler.runner))
        assert outcome.refusal is None, outcome.refusal
        return str(outcome.reply["id"])

    async def wait_for_run(self, run_id: str, *, within_seconds: float = 10.0) -> RunFinished:
        """Wait until a run has ended; return its last event."""
        ended = await eventually(
            partial(self.find_events, RunFinished, run_id=run_id),
            within_seconds=within_seconds,
            describe=f"run {run_id} ends",
        )
        return ended[0]

    async def carry_out(self, job: str) -> RunFinished:
        """Run a job and wait until the run has ended."""
        return await self.wait_for_run(await self.run_now(job))

    def call_before(self, kind: type[do.Command], callback: Callable[[], Awaitable[object]]) -> None:
        """Call `callback` before each command of this type is submitted to the writer."""
        submit = self.writer.submit

        async def submit_later(
            request: Request, timeout_seconds: float = SUBMIT_TIMEOUT_SECONDS
        ) -> Outcome:
            if isinstance(request.command, kind):
                await callback()
            return await submit(request, timeout_seconds)

        self.writer.submit = submit_later  # type: ignore[method-assign] # for the rest of the test

    def crash(self) -> None:
        """End like a killed process, without submitting or releasing anything more."""
        self.writer.observers.clear()
        for task in self.tasks:
            task.cancel()

        async def refuse(request: Request, timeout_seconds: float = 0) -> NoReturn:
            del request, timeout_seconds
            raise Stopping

        self.writer.submit = refuse  # type: ignore[method-assign] # a killed process submits nothing


@contextlib.asynccontextmanager
async def running_job_process(
    dsn: str,
    agents_url: str = "http://127.0.0.1:9",
    *,
    runner: str = "one",
    encrypt: bool | None = None,
    **secrets: str,
) -> AsyncIterator[JobProcess]:
    """A process that runs jobs, in a squad whose orchestrator is started; stopped gracefully at the end."""
    clock = DatabaseClock()
    async with running_listener(dsn) as listener, AgentClient(agents_url, secrets) as client:
        keyring = Keyring()
        encrypt = encryption_requested() if encrypt is None else encrypt
        writer = Writer(dsn, SCHEMA, clock, listener.events, keyring=keyring, encrypt=encrypt)
        scheduler = Scheduler(writer, clock, client, runner)
        job_process = JobProcess(writer, scheduler, keyring)
        writer.observers += [job_process.log.extend, scheduler.observe]
        writer.on_replaced.append(scheduler.cancel_lost_runs)
        job_process.tasks = [asyncio.create_task(writer.run())]
        try:
            await submit(writer, do.SetPolicy(daily_tokens=1_000_000))
            await submit(writer, do.StartOrchestrator(only_if_new=True))
            await _recall(job_process, dsn)
            job_process.tasks.append(asyncio.create_task(scheduler.run()))
            yield job_process
            await scheduler.stop()
        finally:
            for task in job_process.tasks:
                task.cancel()
            ends = await asyncio.gather(*job_process.tasks, return_exceptions=True)
        for end in ends:
            assert end is None or isinstance(end, asyncio.CancelledError), f"a task ended with {end!r}"


async def _recall(job_process: JobProcess, dsn: str) -> None:
    """Prepend the events from before the process started to those it has seen."""
    async with connected(dsn) as connection:
        before = await whole_log(connection)
    job_process.log[:] = [*before, *(item for item in job_process.log if item.position > len(before))]


async def define(
    job_process: JobProcess, name: str, /, *, agent: str | None = "worker", **spec: Any
) -> None:
    """Define a job, which by default calls an endpoint of its own."""
    if agent and job_process.writer.squad.rows(AGENTS).get(agent) is None:
        await submit(job_process.writer, do.RegisterAgent(name=agent, role="test"))
    if "task" not in spec:
        spec = {"endpoint": f"/{name}", **spec}
    if "cron" not in spec:
        spec = {"every": NEVER, **spec}
    definition = JobSpec(agent=agent, **spec).definition()
    outcome = await submit(job_process.writer, do.DefineJob(name=name, source="api", definition=definition))
    assert outcome.refusal is None, outcome.refusal
