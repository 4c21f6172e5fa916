"""A squad that is simulated in memory and returns the events to be logged.

E-mails come in, are claimed, answered and paid for in tokens, jobs tick, agents fall silent, budgets run
out, the rules change. Every event is decided by the service's own functions, in order, so the log is one
that the service could have written: chained, with versions, refusals and expiries, and with every event
type of a squad.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from random import Random
from typing import TYPE_CHECKING, NamedTuple, cast
from uuid import UUID

from projections.runs import RUNS
from service import commands as do
from service.decide.jobs import due_jobs
from service.history import recall
from service.job_spec import EMAIL_AGENT, JobSpec, seed_jobs
from service.memory.draft import Draft
from service.memory.squad import Squad
from service.requests import Answer, Outcome, Request, Ticket
from service.writing.batch import decide_batch

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from eventstore.events import EmailStatus, OperationOutcome
    from eventstore.recorded import Recorded

AGENTS = ("orchestrator", EMAIL_AGENT, *(f"agent_{number:02}" for number in range(2, 40)))
_STOCK = {"agent": AGENTS[3], "endpoint": "/stock", "every": "20s", "tokens": 400, "retries": 2}
JOBS = {
    name: JobSpec.model_validate(job).definition()
    for name, job in {**seed_jobs(0, "UTC"), "stock": {**_STOCK, "overlap": "buffer_one"}}.items()
}
MODELS = ("small", "medium", "large")
_AT_ONCE = 20
"""The average number of active operations, and of open reservations."""

_REOPENED = 50
"""One in this many tasks and e-mails may be reopened after it was finished."""

_NOBODY_WAITS = cast("asyncio.Future[Outcome]", None)
_TEXT = (
    "customer asks for an offer about delivery in March and needs the answer before Friday please check"
    " stock prices and whether the contract from last year still holds thank you for your patience"
)
_WORDS = tuple(_TEXT.split())


class _Begun(NamedTuple):
    """Ids of what was begun and may be continued."""

    operations: list[str]
    reservations: list[str]
    tasks: list[str]
    emails: list[str]


class SimulatedSquad:
    """A squad in memory that decides random commands and returns the events to be logged.

    `open_things` is the usual number of open tasks, and of open e-mails.
    """

    def __init__(self, seed: int = 0, *, open_things: int = 100) -> None:
        self.squad = Squad()
        self._random = Random(seed)
        self._open_things = open_things
        self._begun = _Begun([], [], [], [])
        self._messages: deque[str] = deque(maxlen=200)
        self._finished: deque[do.AnyCommand] = deque(maxlen=20)
        self._streams: dict[str, list[Recorded]] = {"job-conflict_check": []}
        """Streams that commands about messages, and about finished or removed things, have to read."""
        self._count = 0
        self._kinds: tuple[tuple[Callable[[str], do.AnyCommand | None], float], ...] = (
            (self._mail, 5),
            (self._update_mail, 12),
            (self._claim, 9),
            (self._continue_operation, 9),
            (self._reserve, 9),
            (self._end_reservation, 9),
            (self._spend, 8),
            (self._send_message, 10),
            (self._acknowledge, 7),
            (self._create_task, 3),
            (self._update_task, 6),
            (lambda agent: do.Heartbeat(agent=agent), 6),
            (lambda agent: do.RegisterAgent(name=agent, role=self._words(2)), 0.2),
            (self._reopen, 0.2),
            (self._set_policy, 0.2),
        )

    def first(self, now: datetime) -> list[Recorded]:
        """Return the first events of a new squad."""
        return self._decide(
            [
                do.SetPolicy(daily_tokens=150_000, agent_limits={AGENTS[2]: 20_000}),
                *(do.RegisterAgent(name=name, role=self._words(2)) for name in AGENTS[:30]),
                do.StartOrchestrator(only_if_new=True),
                *(
                    do.DefineJob(name=name, source="settings", definition=definition)
                    for name, definition in JOBS.items()
                ),
            ],
            now,
        )

    def more(self, now: datetime) -> list[Recorded]:
        """Return the next events, decided at `now`: from none to a few dozen."""
        jobs, runs, _ = due_jobs(self.squad, now)
        commands: list[do.AnyCommand] = [do.ClaimTick(name=name, runner=self._runner()) for name in jobs]
        commands += [do.TakeUpRun(run_id=run_id, runner=self._runner()) for run_id in runs]
        commands += self._attempts(set(runs))
        # The first ones do most of the work; the last ones are often idle.
        agents = self._random.choices(
            AGENTS, [1 / (place + 1) for place in range(len(AGENTS))], k=self._random.randint(4, 40)
        )
        kinds, weights = zip(*self._kinds, strict=True)
        for agent, kind in zip(agents, self._random.choices(kinds, weights, k=len(agents)), strict=True):
            if command := kind(agent):
                commands.append(command)
        return self._decide(commands, now)

    # commands ---------------------------------------------------------------------------------------

    def _mail(self, agent: str) -> do.AnyCommand | None:
        if len(self._begun.emails) > self._open_things:
            return self._update_mail(agent)
        return do.LogEmail(
            gmail_message_id=f"{self._random.getrandbits(64):016x}",
            from_email=f"customer{self._random.randrange(5_000)}@example.com",
            subject=self._words(6),
            payload={
                "snippet": self._words(25),
                "labels": ["INBOX"],
                "size": self._random.randrange(90_000),
            },
        )

    def _update_mail(self, agent: str) -> do.AnyCommand | None:
        if len(self._begun.emails) < self._open_things // 2:
            return self._mail(agent)
        email, more = self._one(self._begun.emails, ends=0.4, keep=self._open_things)
        if email is None:
            return None
        if more:
            status: EmailStatus = self._random.choice(("classified", "draft_created"))
            return do.UpdateEmail(email_id=email, status=status, category="inquiry", handled_by=agent)
        return self._ended(do.UpdateEmail(email_id=email, status="sent", handled_by=agent))

    def _create_task(self, agent: str) -> do.AnyCommand | None:
        if len(self._begun.tasks) > self._open_things:
            return self._update_task(agent)
        return do.CreateTask(
            title=self._words(5),
            description=self._words(20),
            assigned_agent=self._random.choice((agent, None)),
            priority=self._random.choice(("low", "medium", "high", "urgent")),
        )

    def _update_task(self, agent: str) -> do.AnyCommand | None:
        if len(self._begun.tasks) < self._open_things // 2:
            return self._create_task(agent)
        task, more = self._one(self._begun.tasks, ends=0.5, keep=self._open_things)
        if task is None:
            return None
        if more:
            return do.UpdateTask(task_id=task, status="in_progress", assigned_agent=agent)
        return self._ended(do.UpdateTask(task_id=task, status="completed"))

    def _reopen(self, agent: str) -> do.AnyCommand | None:
        del agent
        if not self._finished:
            return None
        ended = self._finished.popleft()
        if isinstance(ended, do.UpdateTask):
            self._begun.tasks.append(ended.task_id)
            return do.UpdateTask(task_id=ended.task_id, status="in_progress")
        assert isinstance(ended, do.UpdateEmail)
        self._begun.emails.append(ended.email_id)
        return do.UpdateEmail(email_id=ended.email_id, status="classified")

    def _claim(self, agent: str) -> do.AnyCommand | None:
        if len(self._begun.operations) > _AT_ONCE:
            return self._continue_operation(agent)
        resources = {"emailId": f"email-{self._random.randrange(400)}"}
        if self._random.random() < 0.3:
            resources["customerId"] = f"customer-{self._random.randrange(200)}"
        return do.StartOperation(agent=agent, action="respond", resources=resources, ttl_seconds=150)

    def _continue_operation(self, agent: str) -> do.AnyCommand | None:
        del agent
        operation, more = self._one(self._begun.operations, ends=0.7)
        if operation is None:
            return None
        if more:
            return do.RenewOperation(operation_id=operation)
        outcome: OperationOutcome = self._random.choice(("succeeded", "succeeded", "failed", "cancelled"))
        return do.FinishOperation(operation_id=operation, outcome=outcome, tokens_used=self._tokens())

    def _reserve(self, agent: str) -> do.AnyCommand | None:
        if len(self._begun.reservations) > _AT_ONCE:
            return self._end_reservation(agent)
        return do.ReserveTokens(agent=agent, tokens=self._tokens())

    def _end_reservation(self, agent: str) -> do.AnyCommand | None:
        del agent
        reservation, _ = self._one(self._begun.reservations, ends=1)
        if reservation is None:
            return None
        if self._random.random() < 0.1:
            return do.ReleaseReservation(reservation_id=reservation)
        return do.SettleReservation(reservation_id=reservation, tokens_used=self._tokens())

    def _spend(self, agent: str) -> do.AnyCommand:
        tokens = self._tokens()
        return do.RecordUsage(
            agent=agent,
            input_tokens=tokens,
            output_tokens=tokens // 3,
            model=self._random.choice(MODELS),
        )

    def _send_message(self, agent: str) -> do.AnyCommand:
        return do.SendMessage(
            from_agent=agent,
            to_agent=self._random.choice((*AGENTS[:8], None)),
            message=self._words(18),
            data={"customer": self._random.randrange(5_000)} if self._random.random() < 0.3 else None,
        )

    def _acknowledge(self, agent: str) -> do.AnyCommand | None:
        if not self._messages:
            return None
        return do.AcknowledgeMessage(message_id=self._random.choice(self._messages), agent=agent)

    def _set_policy(self, agent: str) -> do.AnyCommand:
        match self._random.randrange(10):
            case 0:
                return do.SetBudget(daily_tokens=self._random.choice((2_000_000, 9_000_000, 12_000_000)))
            case 1:
                return do.StopOrchestrator()
            case 2 | 3 | 4:
                return do.StartOrchestrator()
            case 5:
                return do.PauseJob(name="stock", note=self._words(3))
            case 6:
                return do.RemoveJob(name="conflict_check")
            case 7:
                return do.DefineJob(name="conflict_check", source="api", definition=JOBS["conflict_check"])
            case _:
                return do.ResumeJob(name="stock", note=agent)

    def _attempts(self, free: set[str]) -> Iterator[do.AnyCommand]:
        for run in list(self.squad.all(RUNS)):
            if run.runner is None or run.id in free:
                continue
            if self._random.random() < 0.3:
                yield do.RenewRun(run_id=run.id, runner=run.runner)
                continue
            succeeded = self._random.random() < 0.93
            yield do.EndAttempt(
                run_id=run.id,
                runner=run.runner,
                attempt=run.attempts,
                succeeded=succeeded,
                reason=None if succeeded else "the agent answered 503",
                tokens_used=self._tokens() if run.reservation_id else None,
                report=f"{run.job} is done",
            )

    # deciding -----------------------------------------------------------------------------------------

    def _decide(self, commands: list[do.AnyCommand], now: datetime) -> list[Recorded]:
        tickets = [Ticket(self._request(command), _NOBODY_WAITS) for command in commands]
        draft = Draft(self.squad)
        wanted = recall.required_reads(self.squad, tickets)
        streams = dict.fromkeys((*wanted.streams, *(ends.stream for ends in wanted.excerpts)))
        recall.fold(draft, [recorded for name in streams for recorded in self._streams.get(name, ())])
        ids = partial(self._id, now)
        lost = None
        if self._random.randrange(200) == 0:
            # As when a connection breaks during a commit that then proves not to have happened.
            lost = decide_batch(Draft(self.squad), tickets, {}, now=now, decided_at=now, ids=ids)
        batch = decide_batch(
            draft,
            tickets,
            {},
            now=now,
            decided_at=now,
            abandoned=lost if lost and lost.recorded else None,
            ids=ids,
        )
        self.squad.merge(draft)
        for ticket, outcome in batch.outcomes:
            if isinstance(outcome, Exception):
                raise outcome
            self._learn(ticket.request.command, outcome)
        for recorded in batch.recorded:
            if recorded.stream in self._streams:
                self._streams[recorded.stream].append(recorded)
        return batch.recorded

    def _request(self, command: do.AnyCommand) -> Request:
        self._count += 1
        agent = command.acting_agent
        key = f"key-{self._count}" if agent and self._count % 50 == 0 else None
        return Request(
            command, f"agent:{agent}" if agent else "anonymous", f"request-{self._count}", key, "", _answer
        )

    def _learn(self, command: do.AnyCommand, outcome: Outcome) -> None:
        if outcome.refusal or "id" not in outcome.reply:
            return
        id_ = outcome.reply["id"]
        match command:
            case do.StartOperation():
                self._begun.operations.append(id_)
            case do.ReserveTokens():
                self._begun.reservations.append(id_)
            case do.CreateTask():
                self._begun.tasks.append(id_)
                self._remember(f"task-{id_}", one_in=_REOPENED)
            case do.LogEmail():
                self._begun.emails.append(id_)
                self._remember(f"email-{id_}", one_in=_REOPENED)
            case do.SendMessage():
                if len(self._messages) == self._messages.maxlen:
                    del self._streams[f"message-{self._messages[0]}"]
                self._messages.append(id_)
                self._remember(f"message-{id_}", one_in=1)
            case _:
                pass

    def _remember(self, stream: str, *, one_in: int) -> None:
        if self._random.randrange(one_in) == 0:
            self._streams[stream] = []

    def _ended(self, command: do.UpdateTask | do.UpdateEmail) -> do.AnyCommand:
        stream = (
            f"task-{command.task_id}" if isinstance(command, do.UpdateTask) else f"email-{command.email_id}"
        )
        if stream in self._streams:
            if len(self._finished) == self._finished.maxlen:
                self._finished.popleft()
            self._finished.append(command)
        return command

    def _one(self, begun: list[str], *, ends: float, keep: int = 0) -> tuple[str | None, bool]:
        """Pick one of `begun` and say whether it continues; if there are fewer than `keep`, it does."""
        if not begun:
            return None, False
        place = self._random.randrange(len(begun))
        if len(begun) < keep or self._random.random() >= ends:
            return begun[place], True
        begun[place], begun[-1] = begun[-1], begun[place]
        return begun.pop(), False

    def _id(self, now: datetime) -> str:
        """A UUIDv7 for that time (RFC 9562)."""
        head = int(now.timestamp() * 1000) << 80
        return str(UUID(int=head | 0x7 << 76 | 0x2 << 62 | self._random.getrandbits(74) & ~(0x3 << 62)))

    def _runner(self) -> str:
        return f"host-{self._random.randrange(2)}"

    def _tokens(self) -> int:
        return int(self._random.lognormvariate(5.0, 0.8)) + 1

    def _words(self, count: int) -> str:
        return " ".join(self._random.choices(_WORDS, k=count))


def _answer(outcome: Outcome) -> Answer:
    return Answer(409 if outcome.refusal else 200, {"position": outcome.position})
