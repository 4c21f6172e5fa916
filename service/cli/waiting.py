"""A run requested on the command line: entered in the log, carried out by a service, and waited for."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import click

from eventstore import codec
from eventstore.events import RunAttemptFailed, RunFinished, RunRetried
from projections.jobs import JOBS
from service import commands as do
from service.cli.output import printable
from service.cli.session import make_command
from service.database import StartFailed
from service.http.json import dumps

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from eventstore.recorded import Recorded
    from service.cli.session import SquadSession

NO_LIMIT = math.inf
"""The default wait: no limit."""

_START_GRACE_SECONDS = 2.0
"""How much longer to wait for a service to begin a run than a service may take for that."""


async def submit_run(squad: SquadSession, name: str) -> None:
    """Enter a run in the log, and print it."""
    _show(await _submit_run(squad, name))


async def submit_run_and_wait(squad: SquadSession, name: str, wait_seconds: float) -> None:
    """Enter a run, wait for its end, and print its outcome.

    Raises:
        StartFailed: it did not succeed, or did not end in time.
    """
    observer = _RunObserver()
    squad.writer.observers.append(observer.observe)
    submitted = await _submit_run(squad, name)
    job = squad.writer.squad.rows(JOBS).get(name)
    start_timeout = (job.catch_up_seconds if job else 0.0) + _START_GRACE_SECONDS
    ended = await observer.wait_until_ended(submitted["id"], min(wait_seconds, start_timeout), wait_seconds)
    run = {**submitted, **observer.details(submitted["id"])}
    _show(run)
    if not ended:
        if run["started_at"]:
            problem = f"did not end within {wait_seconds:g} seconds"
        else:
            problem = "was not started by any service; is one running?"
        raise StartFailed(f"{printable(name)} {problem}")
    if run["status"] != "succeeded":
        reason = printable(run["reason"] or "no reason was given")
        raise StartFailed(f"{printable(name)} {_OUTCOMES[run['status']]}: {reason}")


_OUTCOMES = {"failed": "failed", "lost": "was lost", "missed": "was missed"}


async def _submit_run(squad: SquadSession, name: str) -> dict[str, Any]:
    outcome = await squad.submit(make_command(do.RunJob, name=name))
    job = squad.writer.squad.rows(JOBS).get(name)
    seconds = job.catch_up_seconds if job else 0.0
    click.echo(
        "squad: a running service carries it out at once;"
        f" so does one that starts within {seconds:g} seconds",
        err=True,
    )
    return {**outcome.reply, "position": outcome.position}


def _show(run: dict[str, Any]) -> None:
    click.echo(dumps(run).decode())


class _RunObserver:
    """Observes runs in the log while a command waits."""

    def __init__(self) -> None:
        self._started: dict[str, datetime] = {}
        self._attempts: dict[str, int] = {}
        self._ended: dict[str, tuple[RunFinished, datetime]] = {}
        self._changed = asyncio.Event()

    def observe(self, recorded: Sequence[Recorded]) -> None:
        """Note committed events."""
        for item in recorded:
            if item.type not in (RunRetried.type, RunAttemptFailed.type, RunFinished.type):
                continue
            event = codec.decode(item)
            if isinstance(event, RunRetried | RunAttemptFailed):
                self._started.setdefault(event.run_id, item.recorded_at)
                self._attempts[event.run_id] = event.attempt
            elif isinstance(event, RunFinished):
                self._ended[event.run_id] = (event, item.recorded_at)
            self._changed.set()

    async def wait_until_ended(
        self, run_id: str, start_timeout_seconds: float, timeout_seconds: float
    ) -> bool:
        """Wait until a run has ended; False on a timeout, which is shorter until the run has begun."""
        start = asyncio.get_running_loop().time()
        while run_id not in self._ended:
            self._changed.clear()
            timeout = timeout_seconds if run_id in self._started else start_timeout_seconds
            try:
                async with asyncio.timeout_at(None if math.isinf(timeout) else start + timeout):
                    await self._changed.wait()
            except TimeoutError:
                return False
        return True

    def details(self, run_id: str) -> dict[str, Any]:
        """Return what is known of a run beyond its entry."""
        started_at = self._started.get(run_id)
        details: dict[str, Any] = {"attempts": self._attempts.get(run_id, 0), "started_at": started_at}
        if ending := self._ended.get(run_id):
            event, at = ending
            details |= {
                "status": event.outcome,
                "attempts": event.attempts,
                "reason": event.reason,
                "tokens_used": event.tokens_used,
                "finished_at": at,
            }
        return details
