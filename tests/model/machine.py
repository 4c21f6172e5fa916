"""Several processes, one database, and whatever can go wrong between them: the laws hold.

A state machine runs the real writer over a stand-in for Postgres, and stops it at every word that it says
to the database: there a request may be lost, or arrive late, or its answer may be lost; a process may be
killed or sleep, the server may end a session. After every step the log, the answers and the states are held
to the laws, which are told from the events alone.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from eventstore.errors import EventStoreError, HeadMoved, StoreBusy, StoreUnavailable
from service import commands as do
from service.batch import CLOCK_ACTOR
from service.requests import Answer, Outcome, Request
from tests.model.laws import Asked, Laws
from tests.model.process import Process, ticket_for
from tests.model.server import Blocked, Server, Session, Word
from tests.model.wishes import (
    PROCESSES,
    Wish,
    a_process,
    arrivals,
    pauses,
    turns_of_processes,
    wishes_of_clients,
)
from tests.unit import strategies

if TYPE_CHECKING:
    from service.commands import AnyCommand


class Late(NamedTuple):
    """A request whose client has given it up, and which is still on its way."""

    session: Session
    request: Word


def render(outcome: Outcome) -> Answer:
    """The answer that an idempotency key keeps."""
    return Answer(409 if outcome.refusal else 200, {"position": outcome.position})


class World(RuleBasedStateMachine):
    """A server, processes, and a network that cannot be relied upon."""

    steps = 0
    """In all runs together."""

    def __init__(self) -> None:
        super().__init__()
        self.server = self.new_server()
        self.laws = Laws()
        self.late: list[Late] = []
        self.deserted: list[Session] = []
        """Sessions whose clients have gone, which the server has not noticed."""
        self.abandoned: list[Asked] = []
        """What was asked of processes that were killed: they owe no answer any more."""
        self.processes = [self._new(number) for number in range(PROCESSES)]
        self._number = 0

    def new_server(self) -> Server:
        """An empty one."""
        raise NotImplementedError

    @initialize(policy=strategies.first_policies, jobs=st.just([]) | strategies.first_jobs)
    def begin(self, policy: AnyCommand, jobs: list[AnyCommand]) -> None:
        """The squad gets its rules before anybody asks for anything."""
        agents = [do.RegisterAgent(name=name, role="agent") for name in strategies.AGENTS]
        for command in (policy, do.StartOrchestrator(), *agents, *jobs):
            self._submit(0, command)
        self._settle(self.processes[0])

    # what clients and time do -----------------------------------------------------------------------------

    @rule(wishes=wishes_of_clients)
    def ask(self, wishes: list[Wish]) -> None:
        """Clients ask processes for something."""
        for wish in wishes:
            self._submit(*wish)

    @rule(wishes=wishes_of_clients, turns=turns_of_processes)
    def race(self, wishes: list[Wish], turns: list[int]) -> None:
        """They ask several processes at a time, each of which goes on whenever it is its turn."""
        self.ask(wishes)
        for which in turns:
            self._go_on(self.processes[which])

    @rule(seconds=pauses)
    def pass_time(self, seconds: float) -> None:
        """Time passes, for requests that are under way as well."""
        self.server.pass_time(seconds)

    @rule(which=a_process, seconds=st.sampled_from((0.4, 5.0, 400.0)))
    def sleep(self, which: int, seconds: float) -> None:
        """A machine sleeps: the database's time goes on, its own does not."""
        self.server.pass_time(seconds)
        self.processes[which].slept_seconds += seconds

    # what the network does --------------------------------------------------------------------------------

    @rule(which=a_process, words=st.integers(1, 8))
    def go_on(self, which: int, words: int) -> None:
        """A process goes on for so many words with the database."""
        for _ in range(words):
            self._go_on(self.processes[which])

    @rule(which=a_process)
    def go_on_for_long(self, which: int) -> None:
        """A process goes on until nothing waits, or somebody is in its way."""
        self._settle(self.processes[which])

    @rule(which=a_process, arrives=arrivals, words=st.integers(0, 12))
    def lose_commit(self, which: int, arrives: str, words: int) -> None:
        """A connection breaks in a commit. The process goes on, for so many words, before that arrives."""
        process = self.processes[which]
        if not process.writer.waiting:
            self._submit(which, do.SendMessage(from_agent="ann", message="hello"))
        for _ in range(20):
            if process.wants is not None and process.wants.what == "append":
                self._break_line(process, arrives)
                break
            self._go_on(process)
        for _ in range(words):
            self._go_on(process)
        self.arrive()

    @rule(which=a_process, arrives=arrivals)
    def break_line(self, which: int, arrives: str) -> None:
        """A connection breaks; what was being asked arrives at the server, or not, or later."""
        self._break_line(self.processes[which], arrives)

    @rule()
    def arrive(self) -> None:
        """What was on its way longest arrives."""
        if self.late:
            self._arrive(self.late.pop(0))

    @rule(which=a_process, arrives=arrivals)
    def kill(self, which: int, arrives: str) -> None:
        """A process is killed, and another one begins in its place."""
        process = self.processes[which]
        self._break_line(process, arrives, tell=False)
        process.vanish()
        self._desert(process)
        self.abandoned += [asked for asked in self.laws.asked if asked.process is process]
        self.processes[which] = self._new(which)

    # what the server does ---------------------------------------------------------------------------------

    @rule()
    def notice(self) -> None:
        """It notices that clients have gone."""
        self._notice()

    @rule(which=a_process)
    def lose_patience(self, which: int) -> None:
        """It does not let a request wait for the lock any longer."""
        process = self.processes[which]
        if process.wants is None or process.line is None:
            return
        if self.server.holder not in (None, process.line.session) and process.wants.what in (
            "lock",
            "append",
        ):
            self._tell(process, StoreBusy("lock timeout"))

    @rule(which=a_process)
    def end_session(self, which: int) -> None:
        """It ends a session, such as one that has been idle in a transaction for too long."""
        process = self.processes[which]
        if process.line is not None:
            self.server.end(process.line.session)

    # what must hold ---------------------------------------------------------------------------------------

    @invariant()
    def laws_hold(self) -> None:
        """After every step."""
        type(self).steps += 1
        self.laws.take(self.server.log, self.server.append_of, self.server.now)
        self.laws.judge_answers()
        for process in self.processes:
            if process.is_idle and process.is_at_the_head:
                self.laws.judge_state(process.squad)

    def teardown(self) -> None:
        """In the end all goes well, and nobody is left without an answer."""
        for process in self.processes:
            self._settle(process)
        while self.late:
            # Nobody who is alive holds the lock any more.
            self._notice()
            self._arrive(self.late.pop(0))
        self._notice()
        for process in self.processes * 2:
            # Twice, for what the others did after it.
            self._go_on(process)
            self._settle(process)
        self.laws_hold()
        for process in self.processes:
            assert process.is_idle
            assert not process.writer.waiting
            assert process.is_at_the_head
            assert process.seen == self.server.log[len(self.server.log) - len(process.seen) :]
            self.laws.judge_partial_rows(process.squad)
        assert all(asked.promise.done() for asked in self.laws.asked if asked not in self.abandoned)
        self.server.close()

    # how --------------------------------------------------------------------------------------------------

    def _new(self, number: int) -> Process:
        # Their machines' clocks are wrong, each in its own way.
        return Process(f"process-{number}", self.server, timedelta(hours=number - 1))

    def _submit(self, which: int, command: AnyCommand, key: str | None = None) -> None:
        self._number += 1
        command = strategies.aimed(command, self.laws.known)
        actor = CLOCK_ACTOR if isinstance(command, do.PassTime) else f"process-{which}"
        request = Request(
            command, actor, f"request {self._number}", key, repr(command), render if key else None
        )
        ticket, promise = ticket_for(request, self.processes[which])
        self.laws.ask(Asked(request, promise, self.processes[which]))
        self.processes[which].writer.waiting.put(ticket)

    def _go_on(self, process: Process) -> bool:
        """Whether anything happened."""
        if not process.is_connected:
            process.connect()
            return True
        answer = None
        if process.wants is not None:
            assert process.line is not None
            try:
                answer = self._carry_out(process.line.session, process.wants)
            except Blocked:
                return False
        self._tell(process, answer)
        return True

    def _tell(self, process: Process, answer: object) -> None:
        process.go_on(answer)
        if not process.is_connected:
            self._desert(process)

    def _settle(self, process: Process) -> None:
        for _ in range(1_000):
            if process.is_idle and not process.writer.waiting:
                return
            if not self._go_on(process):
                self._notice()
                if self.server.holder is not None and not self._let_holder_finish(process):
                    return
        pytest.fail("it never comes to an end")

    def _let_holder_finish(self, waiting: Process) -> bool:
        """Lets another process go on that holds the lock; whether there is one."""
        for process in self.processes:
            if process is not waiting and process.line and process.line.session is self.server.holder:
                return self._go_on(process)
        return False

    def _carry_out(self, session: Session, wanted: Word) -> object:
        if session.is_over:
            return StoreUnavailable("the server has ended the session")
        try:
            return self.server.carry_out(session, wanted)
        except (HeadMoved, EventStoreError) as refused:
            return refused

    def _break_line(self, process: Process, arrives: str, *, tell: bool = True) -> None:
        line, wanted = process.line, process.wants
        if line is None:
            return
        if wanted is not None and not line.session.is_over:
            if arrives == "later":
                self.late.append(Late(line.session, wanted))
            elif arrives == "now":
                self._arrive(Late(line.session, wanted))
        line.is_broken = True
        if tell and wanted is not None:
            self._tell(process, StoreUnavailable("the line broke"))

    def _arrive(self, late: Late) -> None:
        if late.session.is_over:
            return
        try:
            self._carry_out(late.session, late.request)
        except Blocked:
            self.late.append(late)

    def _desert(self, process: Process) -> None:
        """A process has no use for its connection any more; the server does not know yet."""
        if process.line is not None:
            process.line.is_broken = True
            self.deserted.append(process.line.session)
            process.line = None

    def _notice(self) -> None:
        on_their_way = [late.session for late in self.late]
        for session in self.deserted:
            if session not in on_their_way:
                self.server.end(session)
        self.deserted = [session for session in self.deserted if session in on_their_way]
