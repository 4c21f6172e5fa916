"""The network between clients, processes and the server, which decides what arrives and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import psycopg
from msgspec import structs
from psycopg import errors as pg

from service import commands as do
from service.requests import Answer, Outcome, Request
from service.writing.batch import CLOCK_ACTOR
from tests.model.fake_connection import Statement
from tests.model.laws import Asked, Laws
from tests.model.server import Blocked, Server, Session
from tests.model.wishes import Wish
from tests.unit import strategies

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.model.fake_connection import Rows
    from tests.model.process import Process

REFUSED = "no server says so"
_SOON, _LONG = 20, 2_000
_TICK_SECONDS = 0.3


class Late(NamedTuple):
    """A request that is still in flight after its client has given up on it."""

    session: Session
    word: Statement


def render(outcome: Outcome) -> Answer:
    """The answer that is stored under an idempotency key."""
    return Answer(409 if outcome.refusal else 200, {"position": outcome.position})


class Network:
    """Delivers words and answers when told to."""

    def __init__(self, server: Server) -> None:
        self.laws = Laws()
        self.processes: list[Process] = []
        self._server = server
        self._late: list[Late] = []
        self._deserted: list[Session] = []
        """Sessions whose clients are gone, which the server has not noticed yet."""
        self._requests = 0

    # clients ----------------------------------------------------------------------------------------------

    def submit(self, wish: Wish) -> None:
        """Submit a client's request to a process."""
        command = strategies.with_known_ids(wish.command, self.laws.known)
        actor = CLOCK_ACTOR if isinstance(command, do.PassTime) else f"client of {wish.which}"
        self._submit(
            wish.which,
            Request(
                command,
                actor,
                "",
                wish.key,
                repr(command) if wish.key else "",
                render if wish.key else None,
                bare_fingerprint=f"bare {type(command).__name__}" if wish.key else "",
            ),
            wish.timeout_seconds,
        )

    def repeat(self, which: int, newest: int) -> None:
        """Repeat an earlier request with an idempotency key."""
        keyed = [asked.request for asked in self.laws.asked if asked.request.idempotency_key]
        if keyed:
            self._submit(which, keyed[-1 - newest % len(keyed)], 20.0)

    def give_work(self, which: int) -> None:
        """Submit a request to a process that has none waiting."""
        if not self.processes[which].writer.queue:
            self.submit(Wish(which, do.SendMessage(from_agent="ann", message="hello")))

    def write(self, which: int, sender: str) -> None:
        """Submit a new e-mail."""
        gmail_id = f"g-{len(self.laws.asked)}"
        self.submit(Wish(which, do.LogEmail(gmail_message_id=gmail_id, from_email=sender)))

    def _submit(self, which: int, request: Request, timeout_seconds: float) -> None:
        self._requests += 1
        request = structs.replace(request, correlation_id=f"request {self._requests}")
        process = self.processes[which]
        self.laws.ask(Asked(request, process.ask(request, timeout_seconds), process))

    # processes --------------------------------------------------------------------------------------------

    def wake(self, process: Process) -> None:
        """Run a process without an answer from the database."""
        line = process.line
        was_whole = line is not None and not line.is_broken
        process.step()
        if line and was_whole and line.is_broken:
            # It closed the connection by itself. What it had sent is in flight.
            self._leave(line.session, line.wants, "later")
            line.wants = None

    def step(self, process: Process) -> bool:
        """Run a process for one word; return whether it made progress."""
        line = process.line
        if line is None or line.is_broken or line.wants is None:
            before = line
            self.wake(process)
            return process.line is not before
        try:
            answer = self._carry_out(line.session, line.wants)
        except Blocked:
            self.wake(process)
            return False
        line.hear(answer)
        self.wake(process)
        return True

    def step_until(self, process: Process, is_there: Callable[[], bool]) -> None:
        """Run a process until a condition holds, or a number of words have been exchanged."""
        for _ in range(_SOON):
            if is_there():
                return
            self.step(process)

    def settle(self, process: Process) -> None:
        """Run a process until it is idle, or blocked by a process that makes no progress."""
        for _ in range(_LONG):
            if self.step(process):
                continue
            if process.is_done or process.is_cut_off:
                return
            line = process.line
            if not line or line.is_broken or line.wants is None:
                self._server.pass_time(_TICK_SECONDS)
                continue
            self.notice()
            if not self.step(process) and not self._let_holder_go_on(process):
                return
        raise AssertionError("the process never becomes idle")

    def come_to_rest(self) -> None:
        """Deliver everything in flight, and run all processes until they are idle."""
        for process in self.processes:
            process.is_cut_off = False
        for _ in range(2):
            for process in self.processes:
                self.settle(process)
            while self._late:
                # No live process holds the lock any more.
                self.notice()
                self.arrive()
            self.notice()
        # A process learns within a second of what the others have done since.
        self._server.pass_time(1.1)
        for process in self.processes:
            process.step()
            self.settle(process)

    def _let_holder_go_on(self, waiting: Process) -> bool:
        for process in self.processes:
            if process is not waiting and process.line and process.line.session is self._server.holder:
                return self.step(process)
        return False

    # lines ------------------------------------------------------------------------------------------------

    def break_line(self, process: Process, arrives: str) -> None:
        """Break a connection; both ends notice at some time."""
        if (line := process.line) and not line.is_broken:
            line.tear()
            self._leave(line.session, line.wants, arrives)
            line.wants = None

    def desert(self, process: Process, arrives: str) -> None:
        """Disconnect a process that is gone."""
        if (line := process.line) and (not line.is_broken or line.wants):
            line.is_broken = True
            self._leave(line.session, line.wants, arrives)
            line.wants = None

    def arrive(self, *, latest: bool = False) -> None:
        """Deliver the oldest late request, or the latest."""
        if not self._late:
            return
        late = self._late.pop(-1 if latest else 0)
        try:
            self._carry_out(late.session, late.word)
        except Blocked:
            self._late.append(late)

    def notice(self) -> None:
        """Let the server notice clients that are gone and have nothing in flight."""
        on_their_way = {late.session for late in self._late}
        for session in self._deserted:
            if session not in on_their_way:
                self._server.end(session)
        self._deserted = [session for session in self._deserted if session in on_their_way]

    def lose_patience(self, process: Process) -> None:
        """Let a word's wait for the lock time out."""
        line = process.line
        if (
            line
            and line.wants
            and not line.is_broken
            and self._server.is_in_the_way(line.session, line.wants)
        ):
            line.hear(pg.LockNotAvailable("canceling statement due to lock timeout"))
            self.wake(process)

    def refuse(self, process: Process, how: str) -> None:
        """Let the server refuse an append, because its disk is full or the data is invalid."""
        line = process.line
        if line and not line.is_broken and process.wants("append_events("):
            self._server.abort(line.session)
            line.hear(pg.DataError(REFUSED) if how == "never" else pg.DiskFull("no space left"))
            self.wake(process)

    def notify(self, process: Process, how: str) -> None:
        """Deliver, lose, repeat or invent a notification."""
        said = self._server.notifications
        heard = process.notifications_heard
        match how:
            case "next" if heard < len(said):
                process.notifications_heard += 1
                process.hints.wake(said[heard])
            case "last" if said:
                process.notifications_heard = len(said)
                process.hints.wake(said[-1])
            case "lost":
                process.notifications_heard = len(said)
            case "again" if heard:
                process.hints.wake(said[heard - 1])
            case "nonsense":
                process.hints.wake(1_000_000)
            case _:
                return
        self.wake(process)

    def _leave(self, session: Session, word: Statement | None, arrives: str) -> None:
        self._deserted.append(session)
        if word is None or arrives == "never":
            return
        self._late.append(Late(session, word))
        if arrives == "now":
            self.arrive(latest=True)

    def _carry_out(self, session: Session, word: Statement) -> list[Rows] | psycopg.Error:
        try:
            return self._server.carry_out(session, word)
        except psycopg.Error as refused:
            return refused
