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
from service.cli.acting import asked
from service.cli.output import printable
from service.database import StartFailed
from service.http.json import dumps

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from eventstore.recorded import Recorded
    from service.cli.acting import Acting

NO_LIMIT = math.inf
"""The default wait: no limit."""

_START_GRACE_SECONDS = 2.0
"""How much longer to wait for a service to begin a run than a service may take for that."""


async def enter(squad: Acting, name: str) -> None:
    """Enter a run in the log, and print it."""
    _show(await _enter(squad, name))


async def enter_and_wait(squad: Acting, name: str, wait_seconds: float) -> None:
    """Enter a run, wait for its end, and print its outcome.

    Raises:
        StartFailed: it did not succeed, or did not end in time.
    """
    watch = _Watch()
    squad.writer.observers.append(watch.observe)
    entered = await _enter(squad, name)
    job = squad.writer.squad.rows(JOBS).get(name)
    taken_up_within = (job.catch_up_seconds if job else 0.0) + _START_GRACE_SECONDS
    ended = await watch.see(entered["id"], min(wait_seconds, taken_up_within), wait_seconds)
    run = {**entered, **watch.story(entered["id"])}
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


async def _enter(squad: Acting, name: str) -> dict[str, Any]:
    outcome = await squad.do(asked(do.RunJob, name=name))
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


class _Watch:
    """Observes runs in the log while a command waits."""

    def __init__(self) -> None:
        self._begun: dict[str, datetime] = {}
        self._attempts: dict[str, int] = {}
        self._ended: dict[str, tuple[RunFinished, datetime]] = {}
        self._news = asyncio.Event()

    def observe(self, recorded: Sequence[Recorded]) -> None:
        """Note committed events."""
        for item in recorded:
            if item.type not in (RunRetried.type, RunAttemptFailed.type, RunFinished.type):
                continue
            event = codec.decode(item)
            if isinstance(event, RunRetried | RunAttemptFailed):
                self._begun.setdefault(event.run_id, item.recorded_at)
                self._attempts[event.run_id] = event.attempt
            elif isinstance(event, RunFinished):
                self._ended[event.run_id] = (event, item.recorded_at)
            self._news.set()

    async def see(self, run_id: str, begun_within_seconds: float, ended_within_seconds: float) -> bool:
        """Wait until a run has ended; False on a timeout, which is shorter until the run has begun."""
        start = asyncio.get_running_loop().time()
        while run_id not in self._ended:
            self._news.clear()
            patience = ended_within_seconds if run_id in self._begun else begun_within_seconds
            try:
                async with asyncio.timeout_at(None if math.isinf(patience) else start + patience):
                    await self._news.wait()
            except TimeoutError:
                return False
        return True

    def story(self, run_id: str) -> dict[str, Any]:
        """Return what is known of a run beyond its entry."""
        begun = self._begun.get(run_id)
        story: dict[str, Any] = {"attempts": self._attempts.get(run_id, 0), "started_at": begun}
        if ending := self._ended.get(run_id):
            event, at = ending
            story |= {
                "status": event.outcome,
                "attempts": event.attempts,
                "reason": event.reason,
                "tokens_used": event.tokens_used,
                "finished_at": at,
            }
        return story
