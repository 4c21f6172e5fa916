"""The network between clients, processes and the server, which controls what arrives and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import psycopg
from msgspec import structs
from psycopg import errors as pg

from service import commands as do
from service.requests import Answer, Outcome, Request
from service.writing.batch import CLOCK_ACTOR
from tests.model.fake_connection import Statement
from tests.model.laws import Laws, TrackedRequest
from tests.model.server import Blocked, Server, Session
from tests.model.strategies import ClientRequest
from tests.unit import strategies

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.model.fake_connection import Rows
    from tests.model.process import Process

REFUSED = "refused by the model"
_MAX_STEPS, _MAX_STEPS_TO_SETTLE = 20, 2_000
_TICK_SECONDS = 0.3


class LateStatement(NamedTuple):
    """A statement that is still in flight after its client has given up on it."""

    session: Session
    statement: Statement


def render(outcome: Outcome) -> Answer:
    """The answer that is stored under an idempotency key."""
    return Answer(409 if outcome.refusal else 200, {"position": outcome.position})


class Network:
    """Delivers statements and answers when told to."""

    def __init__(self, server: Server) -> None:
        self.laws = Laws()
        self.processes: list[Process] = []
        self._server = server
        self._late: list[LateStatement] = []
        self._abandoned: list[Session] = []
        """Sessions whose clients are gone, which the server has not detected yet."""
        self._requests = 0

    # clients ----------------------------------------------------------------------------------------------

    def submit(self, request: ClientRequest) -> None:
        """Submit a client's request to a process."""
        command = strategies.with_known_ids(request.command, self.laws.known)
        actor = CLOCK_ACTOR if isinstance(command, do.PassTime) else f"client of {request.target}"
        self._submit(
            request.target,
            Request(
                command,
                actor,
                "",
                request.key,
                repr(command) if request.key else "",
                render if request.key else None,
                bare_fingerprint=f"bare {type(command).__name__}" if request.key else "",
            ),
            request.timeout_seconds,
        )

    def repeat(self, target: int, newest: int) -> None:
        """Repeat an earlier request with an idempotency key."""
        with_key = [tracked.request for tracked in self.laws.requests if tracked.request.idempotency_key]
        if with_key:
            self._submit(target, with_key[-1 - newest % len(with_key)], 20.0)

    def give_work(self, target: int) -> None:
        """Submit a request to a process that has none waiting."""
        if not self.processes[target].writer.queue:
            self.submit(ClientRequest(target, do.SendMessage(from_agent="ann", message="hello")))

    def submit_email(self, target: int, sender: str) -> None:
        """Submit a new e-mail."""
        gmail_id = f"g-{len(self.laws.requests)}"
        self.submit(ClientRequest(target, do.LogEmail(gmail_message_id=gmail_id, from_email=sender)))

    def _submit(self, target: int, request: Request, timeout_seconds: float) -> None:
        self._requests += 1
        request = structs.replace(request, correlation_id=f"request {self._requests}")
        process = self.processes[target]
        self.laws.track(TrackedRequest(request, process.submit(request, timeout_seconds), process))

    # processes --------------------------------------------------------------------------------------------

    def wake(self, process: Process) -> None:
        """Run a process without an answer from the database."""
        connection = process.connection
        was_connected = connection is not None and not connection.is_broken
        process.step()
        if connection and was_connected and connection.is_broken:
            # The process closed the connection itself. Its statement is still in flight.
            self._abandon_session(connection.session, connection.pending, "later")
            connection.pending = None

    def step(self, process: Process) -> bool:
        """Run a process up to its next statement; return whether it made progress."""
        connection = process.connection
        if connection is None or connection.is_broken or connection.pending is None:
            before = connection
            self.wake(process)
            return process.connection is not before
        try:
            answer = self._execute(connection.session, connection.pending)
        except Blocked:
            self.wake(process)
            return False
        connection.receive(answer)
        self.wake(process)
        return True

    def step_until(self, process: Process, condition: Callable[[], bool]) -> None:
        """Run a process until a condition holds, for a limited number of steps."""
        for _ in range(_MAX_STEPS):
            if condition():
                return
            self.step(process)

    def settle(self, process: Process) -> None:
        """Run a process until it is idle, cut off, or blocked by a process that makes no progress."""
        for _ in range(_MAX_STEPS_TO_SETTLE):
            if self.step(process):
                continue
            if process.is_done or process.is_cut_off:
                return
            connection = process.connection
            if not connection or connection.is_broken or connection.pending is None:
                self._server.pass_time(_TICK_SECONDS)
                continue
            self.detect_disconnects()
            if not self.step(process) and not self._step_lock_holder(process):
                return
        raise AssertionError("the process does not become idle")

    def settle_all(self) -> None:
        """Deliver everything in flight, and run all processes until they are idle."""
        for process in self.processes:
            process.is_cut_off = False
        for _ in range(2):
            for process in self.processes:
                self.settle(process)
            while self._late:
                # No live process holds the lock any more.
                self.detect_disconnects()
                self.arrive()
            self.detect_disconnects()
        # A process learns within a second of what the others have done since.
        self._server.pass_time(1.1)
        for process in self.processes:
            process.step()
            self.settle(process)

    def _step_lock_holder(self, waiting: Process) -> bool:
        for process in self.processes:
            if (
                process is not waiting
                and process.connection
                and process.connection.session is self._server.holder
            ):
                return self.step(process)
        return False

    # connections ------------------------------------------------------------------------------------------

    def break_connection(self, process: Process, arrives: str) -> None:
        """Break a connection; both ends detect this at some time."""
        if (connection := process.connection) and not connection.is_broken:
            connection.disconnect()
            self._abandon_session(connection.session, connection.pending, arrives)
            connection.pending = None

    def abandon(self, process: Process, arrives: str) -> None:
        """Disconnect a process that is gone."""
        if (connection := process.connection) and (not connection.is_broken or connection.pending):
            connection.is_broken = True
            self._abandon_session(connection.session, connection.pending, arrives)
            connection.pending = None

    def arrive(self, *, latest: bool = False) -> None:
        """Deliver the oldest or the latest of the late statements."""
        if not self._late:
            return
        late = self._late.pop(-1 if latest else 0)
        try:
            self._execute(late.session, late.statement)
        except Blocked:
            self._late.append(late)

    def detect_disconnects(self) -> None:
        """Let the server detect clients that are gone and have nothing in flight."""
        in_flight = {late.session for late in self._late}
        for session in self._abandoned:
            if session not in in_flight:
                self._server.end(session)
        self._abandoned = [session for session in self._abandoned if session in in_flight]

    def time_out_lock_wait(self, process: Process) -> None:
        """Let a statement's wait for the lock time out."""
        connection = process.connection
        if (
            connection
            and connection.pending
            and not connection.is_broken
            and self._server.is_blocked(connection.session, connection.pending)
        ):
            connection.receive(pg.LockNotAvailable("canceling statement due to lock timeout"))
            self.wake(process)

    def refuse(self, process: Process, how: str) -> None:
        """Let the server refuse an append, because its disk is full or the data is invalid."""
        connection = process.connection
        if connection and not connection.is_broken and process.is_sending("append_events("):
            self._server.abort(connection.session)
            connection.receive(pg.DataError(REFUSED) if how == "never" else pg.DiskFull("no space left"))
            self.wake(process)

    def notify(self, process: Process, how: str) -> None:
        """Deliver, lose, repeat or invent a notification."""
        notifications = self._server.notifications
        received = process.notifications_heard
        match how:
            case "next" if received < len(notifications):
                process.notifications_heard += 1
                process.hints.wake(notifications[received])
            case "last" if notifications:
                process.notifications_heard = len(notifications)
                process.hints.wake(notifications[-1])
            case "lost":
                process.notifications_heard = len(notifications)
            case "again" if received:
                process.hints.wake(notifications[received - 1])
            case "nonsense":
                process.hints.wake(1_000_000)
            case _:
                return
        self.wake(process)

    def _abandon_session(self, session: Session, statement: Statement | None, arrives: str) -> None:
        self._abandoned.append(session)
        if statement is None or arrives == "never":
            return
        self._late.append(LateStatement(session, statement))
        if arrives == "now":
            self.arrive(latest=True)

    def _execute(self, session: Session, statement: Statement) -> list[Rows] | psycopg.Error:
        try:
            return self._server.execute(session, statement)
        except psycopg.Error as error:
            return error
