"""Several processes, one database, and everything that can go wrong between them.

A state machine runs the real writers against a server. For every word that they send, it decides whether it
arrives, late or not at all, and whether the answer does; and which process runs meanwhile, is killed or
suspended. After every step the log, the answers and the states are checked against the laws
(`tests.model.laws`).
"""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from service import commands as do
from service.decide.jobs import due_jobs
from tests.model import wishes as draw
from tests.model.network import REFUSED, Network
from tests.model.process import Process, errors
from tests.unit import strategies

if TYPE_CHECKING:
    from datetime import datetime

    from service.commands import AnyCommand
    from tests.model.server import Server


class World(RuleBasedStateMachine):
    """A server, processes, and an unreliable network."""

    steps = 0
    """The total over all runs."""

    def __init__(self) -> None:
        super().__init__()
        errors.found.clear()
        self.server = self.new_server()
        self.network = Network(self.server)
        self.laws = self.network.laws
        self.theme = "everything"
        self._encrypt: tuple[bool, ...] = (False,) * draw.PROCESSES

    def new_server(self) -> Server:
        """Return an empty server."""
        raise NotImplementedError

    @initialize(
        theme=st.sampled_from(sorted(draw.THEMES)),
        policy=draw.first_policies,
        jobs=st.just([]) | strategies.first_jobs,
        encrypt=draw.encryption,
    )
    def begin(
        self, theme: str, policy: AnyCommand, jobs: list[AnyCommand], encrypt: tuple[bool, ...]
    ) -> None:
        """Set up the squad's policy, agents and jobs before any other request."""
        self.theme = theme
        self._encrypt = encrypt if self.server.keeps_keys else self._encrypt
        for number in range(draw.PROCESSES):
            self.network.processes.append(self._new(number))
        agents = [do.RegisterAgent(name=name, role="agent") for name in strategies.AGENTS]
        for command in (policy, do.StartOrchestrator(), *agents, *jobs):
            self.network.submit(draw.Wish(0, command))
        self.network.settle(self._process(0))

    # what clients do --------------------------------------------------------------------------------------

    @rule(wishes=draw.wishes)
    def ask(self, wishes: list[draw.Wish]) -> None:
        """Clients submit requests to processes, which handle them when they run next."""
        for wish in wishes:
            self.network.submit(wish)

    @rule(wishes=draw.wishes, words=st.integers(0, 3))
    def drip(self, wishes: list[draw.Wish], words: int) -> None:
        """Clients submit requests one by one; the process receives each at once, whatever it waits for."""
        for wish in wishes:
            self.network.submit(wish)
            self.network.wake(self._process(wish.which))
        for _ in range(words):
            self.network.step(self._process(wishes[-1].which))

    @rule(first=draw.wish, wishes=draw.wishes, words=st.integers(0, 6))
    def go_on_meanwhile(self, first: draw.Wish, wishes: list[draw.Wish], words: int) -> None:
        """While one append is in flight, the same process gets more requests."""
        process = self._process(first.which)
        self.network.submit(first)
        self.network.step_until(process, lambda: process.wants("append_events("))
        for wish in wishes:
            self.network.submit(wish._replace(which=first.which))
            self.network.wake(process)
        for _ in range(words):
            self.network.step(process)

    @rule(which=draw.a_process, subject=st.sampled_from(strategies.SENDERS), words=st.integers(0, 6))
    def forget(self, which: int, subject: str, words: int) -> None:
        """A sender writes before being forgotten, and again before that is in the log."""
        self.network.write(which, subject)
        self.network.settle(self._process(which))
        forget = draw.Wish(which, do.ForgetSubject(subject=subject))
        self.go_on_meanwhile(forget, [], 0)
        self.network.write(which, subject)
        self.network.wake(self._process(which))
        for _ in range(words):
            self.network.step(self._process(which))

    @rule(wishes=draw.wishes, turns=draw.turns_of_processes)
    def race(self, wishes: list[draw.Wish], turns: list[int]) -> None:
        """Clients submit requests to several processes, which run in turns."""
        self.ask(wishes)
        for which in turns:
            self.network.step(self._process(which))

    @rule(which=draw.a_process, newest=st.integers(0, 5), words=st.integers(0, 6))
    def ask_again(self, which: int, newest: int, words: int) -> None:
        """A client repeats a request, at any process."""
        self.network.repeat(which, newest)
        for _ in range(words):
            self.network.step(self._process(which))

    @rule(which=draw.a_process, words=st.integers(1, 8))
    def step(self, which: int, words: int) -> None:
        """A process runs for a number of words."""
        for _ in range(words):
            self.network.step(self._process(which))

    @rule(which=draw.a_process)
    def settle(self, which: int) -> None:
        """A process runs until it is idle or blocked."""
        self.network.settle(self._process(which))

    # what goes wrong --------------------------------------------------------------------------------------

    @rule(which=draw.a_process, arrives=draw.arrivals, words=draw.words_after_a_loss)
    def lose_commit(self, which: int, arrives: str, words: int) -> None:
        """A connection breaks during a commit; the process runs for some words before that arrives."""
        process = self._process(which)
        self.network.give_work(which)
        self.network.step_until(process, lambda: process.wants("append_events("))
        self.network.break_line(process, arrives)
        # It reconnects after a short delay.
        self.network.wake(process)
        self.server.pass_time(0.06)
        for _ in range(words):
            self.network.step(process)
        self.network.arrive(latest=True)

    @rule(which=draw.a_process, other=draw.a_process, words=st.integers(1, 12), waits=st.booleans())
    def stand_still(self, which: int, other: int, words: int, waits: bool) -> None:
        """A process is suspended while it holds the lock; another one runs as far as it can."""
        process = self._process(which)
        self.network.give_work(other)
        self.network.settle(self._process(other))
        self.network.give_work(which)
        self.network.step_until(process, lambda: process.holds_the_lock)
        self.network.give_work(other)
        for _ in range(words):
            self.network.step(self._process(other))
        if not waits:
            self.network.lose_patience(self._process(other))

    @rule(which=draw.a_process, how=draw.mishaps, arrives=draw.arrivals)
    def mishap(self, which: int, how: str, arrives: str) -> None:
        """Something goes wrong with a process, its connection or its session."""
        process = self._process(which)
        match how:
            case "its line breaks":
                self.network.break_line(process, arrives)
            case "it cannot connect, or can again":
                process.is_cut_off = not process.is_cut_off
            case "its session is ended" if process.line:
                self.server.end(process.line.session)
            case "a request is refused":
                self.network.give_work(which)
                self.network.step_until(process, lambda: process.wants("append_events("))
                self.network.refuse(process, arrives)
            case "it wakes up before the answer is there":
                self.network.wake(process)
            case "something that was late arrives":
                self.network.arrive()
            case _:
                self.network.notice()

    @rule(
        which=draw.a_process,
        arrives=draw.arrivals,
        gently=st.sampled_from((False, False, True)),
        tables=st.none() | st.tuples(st.integers(0, 12), st.none() | draw.a_projection),
    )
    def end(self, which: int, arrives: str, gently: bool, tables: tuple[int, int | None] | None) -> None:
        """A process is killed or stopped; a new one starts in its place from what is stored."""
        if tables:
            self.server.project(*tables)
        process = self._process(which)
        if gently:
            process.stop()
            self.network.desert(process, arrives)
        else:
            self.network.desert(process, arrives)
            process.kill()
            self.laws.bury(process)
        self.network.processes[which] = self._new(which)

    # what else happens ------------------------------------------------------------------------------------

    @rule(seconds=draw.pauses, sleeper=st.none() | draw.a_process)
    def pass_time(self, seconds: float, sleeper: int | None) -> None:
        """Time passes, also for requests in flight. One machine may be suspended meanwhile."""
        self.server.pass_time(seconds)
        if sleeper is not None:
            self._process(sleeper).slept_seconds += seconds

    @rule(seconds=draw.steps_of_clocks)
    def step_clock(self, seconds: float) -> None:
        """The database's clock is stepped."""
        self.server.step_clock(seconds)

    @rule(which=draw.a_process, how=st.sampled_from(("next", "last", "lost", "again", "nonsense")))
    def notify(self, which: int, how: str) -> None:
        """A notification arrives in time, late, twice or not at all."""
        self.network.notify(self._process(which), how)

    @rule(
        which=draw.a_process, behind=st.none() | st.integers(0, 12), stopped=st.none() | draw.a_projection
    )
    def keep_house(self, which: int, behind: int | None, stopped: int | None) -> None:
        """The read tables catch up, or a process stores a snapshot."""
        squad = self._process(which).squad
        if behind is not None:
            self.server.project(behind, stopped)
        elif squad.head.position and not squad.absent:
            self.server.put_away(squad)

    # what must hold ---------------------------------------------------------------------------------------

    @invariant()
    def laws_hold(self) -> None:
        """Check the laws after every step."""
        type(self).steps += 1
        self._judge()

    def _judge(self) -> None:
        # The service logs errors only for refusals that no real server would give.
        assert [text for text in errors.found if REFUSED not in text] == []
        self.laws.take(self.server)
        self.laws.judge_answers()
        for process in self.network.processes:
            self.laws.judge_state(process)

    def teardown(self) -> None:
        """Once all faults have ended, the squad recovers, and nobody is left without an answer."""
        try:
            if sys.exc_info()[0] is None:
                self._end_well()
        finally:
            for process in self.network.processes:
                process.kill()
            self.server.close()

    def _end_well(self) -> None:
        self.network.come_to_rest()
        now = self._claim_all_that_is_due()
        self._judge()
        for process in self.network.processes:
            assert process.is_done
            assert process.is_at_the_head
            self.laws.judge_end(process)
        self.laws.judge_all(self.server, now)

    def _claim_all_that_is_due(self) -> datetime:
        """Claim all due ticks on all processes at once, as schedulers do; return up to when."""
        squad = self._process(0).squad
        now = max(self.server.now, squad.head.recorded_at or self.server.now)
        while True:
            jobs, runs, _ = due_jobs(squad, now)
            if not (jobs or runs):
                return now
            for which in range(draw.PROCESSES):
                runner = f"process-{which}"
                for name in jobs:
                    self.network.submit(draw.Wish(which, do.ClaimTick(name=name, runner=runner)))
                for run_id in runs:
                    self.network.submit(draw.Wish(which, do.TakeUpRun(run_id=run_id, runner=runner)))
            before = len(self.server.log)
            self.network.come_to_rest()
            assert len(self.server.log) > before

    def _process(self, which: int) -> Process:
        return self.network.processes[which]

    def _new(self, which: int) -> Process:
        # Each machine's clock is wrong in its own way; one process connects through a pooler.
        ahead, encrypt = timedelta(hours=which - 1), self._encrypt[which]
        return Process(self.server, ahead, encrypt=encrypt, is_pooled=which == 1)
