"""Between clients, processes and the server: who says what to whom, and what becomes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import psycopg
from msgspec import structs
from psycopg import errors as pg

from service import commands as do
from service.requests import Answer, Outcome, Request
from service.writing.batch import CLOCK_ACTOR
from tests.model.laws import Asked, Laws
from tests.model.line import Word
from tests.model.server import Blocked, Server, Session
from tests.model.wishes import Wish
from tests.unit import strategies

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.model.line import Rows
    from tests.model.process import Process

REFUSED = "no server says so"
_SOON, _LONG = 20, 2_000
_TICK_SECONDS = 0.3


class Late(NamedTuple):
    """A request whose client has given it up, and which is still on its way."""

    session: Session
    word: Word


def render(outcome: Outcome) -> Answer:
    """The answer that an idempotency key keeps."""
    return Answer(409 if outcome.refusal else 200, {"position": outcome.position})


class Network:
    """Moves words and answers, when it is told to."""

    def __init__(self, server: Server) -> None:
        self.laws = Laws()
        self.processes: list[Process] = []
        self._server = server
        self._late: list[Late] = []
        self._deserted: list[Session] = []
        """Sessions whose clients have gone, which the server has not noticed."""
        self._requests = 0

    # clients ----------------------------------------------------------------------------------------------

    def submit(self, wish: Wish) -> None:
        """A client's request reaches a process."""
        command = strategies.aimed(wish.command, self.laws.known)
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
            wish.patience_seconds,
        )

    def repeat(self, which: int, newest: int) -> None:
        """A client that used a key asks for the same again."""
        keyed = [asked.request for asked in self.laws.asked if asked.request.idempotency_key]
        if keyed:
            self._submit(which, keyed[-1 - newest % len(keyed)], 20.0)

    def give_work(self, which: int) -> None:
        """A process has something to do, if it had nothing."""
        if not self.processes[which].writer.waiting:
            self.submit(Wish(which, do.SendMessage(from_agent="ann", message="hello")))

    def write(self, which: int, sender: str) -> None:
        """An e-mail comes that nobody has seen."""
        gmail_id = f"g-{len(self.laws.asked)}"
        self.submit(Wish(which, do.LogEmail(gmail_message_id=gmail_id, from_email=sender)))

    def _submit(self, which: int, request: Request, patience_seconds: float) -> None:
        self._requests += 1
        request = structs.replace(request, correlation_id=f"request {self._requests}")
        process = self.processes[which]
        self.laws.ask(Asked(request, process.ask(request, patience_seconds), process))

    # processes --------------------------------------------------------------------------------------------

    def wake(self, process: Process) -> None:
        """A process goes on, with no answer from the database."""
        line = process.line
        was_whole = line is not None and not line.is_broken
        process.go_on()
        if line and was_whole and line.is_broken:
            # It hung up by itself. What it had said is on its way.
            self._leave(line.session, line.wants, "later")
            line.wants = None

    def go_on(self, process: Process) -> bool:
        """A process goes on for one word; whether it was said."""
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

    def go_on_until(self, process: Process, is_there: Callable[[], bool]) -> None:
        """A process goes on until something is the case, if it comes to that soon."""
        for _ in range(_SOON):
            if is_there():
                return
            self.go_on(process)

    def settle(self, process: Process) -> None:
        """A process goes on until it has nothing to do, or somebody is in its way who does not go on."""
        for _ in range(_LONG):
            if self.go_on(process):
                continue
            if process.is_done or process.is_cut_off:
                return
            line = process.line
            if not line or line.is_broken or line.wants is None:
                self._server.pass_time(_TICK_SECONDS)
                continue
            self.notice()
            if not self.go_on(process) and not self._let_holder_go_on(process):
                return
        raise AssertionError("it never comes to an end")

    def come_to_rest(self) -> None:
        """All that was on its way arrives, and all processes do what they have to."""
        for process in self.processes:
            process.is_cut_off = False
        for _ in range(2):
            for process in self.processes:
                self.settle(process)
            while self._late:
                # Nobody who is alive holds the lock any more.
                self.notice()
                self.arrive()
            self.notice()
        # What the others did after it comes to its ears within a second.
        self._server.pass_time(1.1)
        for process in self.processes:
            process.go_on()
            self.settle(process)

    def _let_holder_go_on(self, waiting: Process) -> bool:
        for process in self.processes:
            if process is not waiting and process.line and process.line.session is self._server.holder:
                return self.go_on(process)
        return False

    # lines ------------------------------------------------------------------------------------------------

    def break_line(self, process: Process, arrives: str) -> None:
        """A connection breaks, and both ends learn of it some day."""
        if (line := process.line) and not line.is_broken:
            line.tear()
            self._leave(line.session, line.wants, arrives)
            line.wants = None

    def desert(self, process: Process, arrives: str) -> None:
        """A process is not there any more."""
        if (line := process.line) and (not line.is_broken or line.wants):
            line.is_broken = True
            self._leave(line.session, line.wants, arrives)
            line.wants = None

    def arrive(self, *, latest: bool = False) -> None:
        """What was on its way longest arrives, or what was said last."""
        if not self._late:
            return
        late = self._late.pop(-1 if latest else 0)
        try:
            self._carry_out(late.session, late.word)
        except Blocked:
            self._late.append(late)

    def notice(self) -> None:
        """The server notices that clients have gone whose words have all arrived."""
        on_their_way = {late.session for late in self._late}
        for session in self._deserted:
            if session not in on_their_way:
                self._server.end(session)
        self._deserted = [session for session in self._deserted if session in on_their_way]

    def lose_patience(self, process: Process) -> None:
        """The server lets a word wait no longer for the lock."""
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
        """The server refuses an append, because its disk is full or as one that it cannot take."""
        line = process.line
        if line and not line.is_broken and process.wants("append_events("):
            self._server.abort(line.session)
            line.hear(pg.DataError(REFUSED) if how == "never" else pg.DiskFull("no space left"))
            self.wake(process)

    def notify(self, process: Process, how: str) -> None:
        """Something comes of the notifications that a process has not heard."""
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

    def _leave(self, session: Session, word: Word | None, arrives: str) -> None:
        self._deserted.append(session)
        if word is None or arrives == "never":
            return
        self._late.append(Late(session, word))
        if arrives == "now":
            self.arrive(latest=True)

    def _carry_out(self, session: Session, word: Word) -> list[Rows] | psycopg.Error:
        try:
            return self._server.carry_out(session, word)
        except psycopg.Error as refused:
            return refused
