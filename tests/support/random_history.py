"""A small random history of a squad: commands of every kind, in an order determined by a seed."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

from service import api_keys
from service import commands as do
from service.job_spec import JobSpec
from tests.support.components import submit

if TYPE_CHECKING:
    from service.requests import Outcome
    from service.writing.writer import Writer

AGENTS = ("alice", "bob", "carol", "dave")
_ROUNDS = JobSpec(agent="worker", endpoint="/rounds", cron="0 0 1 1 *")


class RandomHistory:
    """Generates commands, some of which continue what earlier ones started."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._started: dict[str, list[str]] = {}
        self._count = 0

    def next(self) -> do.AnyCommand:
        """The next command."""
        self._count += 1
        agent = self._random.choice(AGENTS)
        tokens = self._random.randint(1, 500)
        match self._random.randrange(16):
            case 0:
                return do.RegisterAgent(name=agent, role=f"role {tokens % 3}", priority=tokens % 5)
            case 1 | 2:
                return do.SendMessage(
                    from_agent=agent, message=f"message {self._count}", data={"n": tokens}
                )
            case 3 if message := self._pick("message"):
                return do.AcknowledgeMessage(message_id=message, agent=agent)
            case 4 | 5:
                return do.StartOperation(
                    agent=agent, action="reply", resources={"emailId": f"email-{tokens % 40}"}
                )
            case 6 if operation := self._pick("operation"):
                return do.RenewOperation(operation_id=operation)
            case 7 if operation := self._pick("operation"):
                return do.FinishOperation(operation_id=operation, outcome="succeeded", tokens_used=tokens)
            case 8 | 9:
                return do.ReserveTokens(agent=agent, tokens=tokens)
            case 10 if reservation := self._pick("reservation"):
                return do.SettleReservation(reservation_id=reservation, tokens_used=tokens)
            case 11 if reservation := self._pick("reservation"):
                return do.ReleaseReservation(reservation_id=reservation)
            case 12:
                return do.CreateTask(title=f"task {self._count}", assigned_agent=agent)
            case 13 if task := self._pick("task"):
                return do.UpdateTask(task_id=task, status=self._random.choice(("in_progress", "completed")))
            case 14:
                return do.LogEmail(gmail_message_id=f"gmail-{self._count}", from_email="a@example.org")
            case 15 if email := self._pick("email"):
                return do.UpdateEmail(email_id=email, status=self._random.choice(("classified", "sent")))
            case _:
                return do.RecordUsage(agent=agent, tokens=tokens)

    def note_outcome(self, command: do.AnyCommand, outcome: Outcome) -> None:
        """Remember what a command started, so that later commands can continue it."""
        kind = _STARTING.get(type(command))
        if kind and outcome.refusal is None:
            self._started.setdefault(kind, []).append(outcome.reply["id"])

    async def submit_commands(self, writer: Writer, commands: int, *, at_once: int = 1) -> list[Outcome]:
        """Submit this many commands, `at_once` of them at a time."""
        outcomes: list[Outcome] = []
        while left := commands - len(outcomes):
            chosen = [self.next() for _ in range(min(at_once, left))]
            answers = await asyncio.gather(*(submit(writer, command) for command in chosen))
            for command, outcome in zip(chosen, answers, strict=True):
                self.note_outcome(command, outcome)
            outcomes += answers
        return outcomes

    async def submit_until(self, enough: asyncio.Event, writer: Writer) -> None:
        """Submit commands, one after another, until the event is set."""
        while not enough.is_set():
            await self.submit_commands(writer, 10)

    def _pick(self, kind: str) -> str | None:
        started = self._started.get(kind)
        return self._random.choice(started) if started else None


async def submit_history_with_jobs(
    writer: Writer, seed: int, commands: int = 300, *, at_once: int = 1
) -> None:
    """Submit a random history with a job, a run and a key, so that every read table has rows."""
    key = api_keys.make()
    for command in (
        do.CreateKey(key_id=key.id, digest=key.digest, scope="operator"),
        do.StartOrchestrator(),
        do.RegisterAgent(name="worker", role="test"),
        do.DefineJob(name="rounds", source="api", definition=_ROUNDS.definition()),
        do.RunJob(name="rounds", runner="nobody"),
    ):
        outcome = await submit(writer, command)
        assert outcome.refusal is None, outcome.refusal
    await RandomHistory(seed).submit_commands(writer, commands, at_once=at_once)


_STARTING: dict[type[do.Command], str] = {
    do.SendMessage: "message",
    do.StartOperation: "operation",
    do.ReserveTokens: "reservation",
    do.CreateTask: "task",
    do.LogEmail: "email",
}
"""The commands that start something that later commands may continue."""
