"""A run that is asked for on the command line: entered in the log, carried out by a service, waited for."""

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

WITHOUT_END = math.inf
"""How long is waited where nobody says: as long as it takes."""

_NOTICED_WITHIN_SECONDS = 2.0
"""How much longer than a service may take to take a run up is waited for that."""


async def enter(hand: Acting, name: str) -> None:
    """Enters a run in the log, and shows it."""
    _show(await _enter(hand, name))


async def enter_and_wait(hand: Acting, name: str, wait_seconds: float) -> None:
    """Enters a run, waits for its end, and shows what came of it.

    Raises:
        StartFailed: it did not succeed, or did not end in time.
    """
    watch = _Watch()
    hand.writer.observers.append(watch.observe)
    entered = await _enter(hand, name)
    job = hand.writer.squad.rows(JOBS).get(name)
    taken_up_within = (job.catch_up_seconds if job else 0.0) + _NOTICED_WITHIN_SECONDS
    ended = await watch.see(entered["id"], min(wait_seconds, taken_up_within), wait_seconds)
    run = {**entered, **watch.story(entered["id"])}
    _show(run)
    if not ended:
        waited = f"within {wait_seconds:g} seconds" if run["started_at"] else "so far; is one running?"
        problem = "has not ended" if run["started_at"] else "was taken up by no service"
        raise StartFailed(f"{printable(name)} {problem} {waited}")
    if run["status"] != "succeeded":
        reason = printable(run["reason"] or "no reason was given")
        raise StartFailed(f"{printable(name)} {_WHAT_BECAME_OF_IT[run['status']]}: {reason}")


_WHAT_BECAME_OF_IT = {"failed": "failed", "lost": "was lost", "missed": "was missed"}


async def _enter(hand: Acting, name: str) -> dict[str, Any]:
    outcome = await hand.do(asked(do.RunJob, name=name))
    job = hand.writer.squad.rows(JOBS).get(name)
    seconds = job.catch_up_seconds if job else 0.0
    click.echo(
        "squad: a service that is running carries it out at once;"
        f" one that starts within {seconds:g} seconds does too",
        err=True,
    )
    return {**outcome.reply, "position": outcome.position}


def _show(run: dict[str, Any]) -> None:
    click.echo(dumps(run).decode())


class _Watch:
    """What the log tells of runs while a command waits."""

    def __init__(self) -> None:
        self._begun: dict[str, datetime] = {}
        self._attempts: dict[str, int] = {}
        self._ended: dict[str, tuple[RunFinished, datetime]] = {}
        self._news = asyncio.Event()

    def observe(self, recorded: Sequence[Recorded]) -> None:
        """Takes note of committed events."""
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
        """Waits until a run has ended; not for ever, and less long where nobody begins it."""
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
        """What is known of a run beyond its beginning."""
        begun = self._begun.get(run_id)
        told: dict[str, Any] = {"attempts": self._attempts.get(run_id, 0), "started_at": begun}
        if ending := self._ended.get(run_id):
            event, at = ending
            told |= {
                "status": event.outcome,
                "attempts": event.attempts,
                "reason": event.reason,
                "tokens_used": event.tokens_used,
                "finished_at": at,
            }
        return told
