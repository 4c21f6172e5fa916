"""Several processes, one database, and the failures between them, as a state machine.

It runs the real writers against a server. For every statement that they send, it decides whether the
statement and its answer arrive in time, late or not at all, and which process runs, is killed or is
suspended meanwhile. After every step, the log, the answers and the states are checked against the laws
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
from tests.model import strategies as draw
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
        self._encrypt = encrypt if self.server.supports_keys else self._encrypt
        for number in range(draw.PROCESSES):
            self.network.processes.append(self._new(number))
        agents = [do.RegisterAgent(name=name, role="agent") for name in strategies.AGENTS]
        for command in (policy, do.StartOrchestrator(), *agents, *jobs):
            self.network.submit(draw.ClientRequest(0, command))
        self.network.settle(self._process(0))

    # requests of clients ----------------------------------------------------------------------------------

    @rule(requests=draw.requests)
    def ask(self, requests: list[draw.ClientRequest]) -> None:
        """Clients submit requests to processes, which receive them when they run next."""
        for request in requests:
            self.network.submit(request)

    @rule(requests=draw.requests, turns=st.integers(0, 3))
    def drip(self, requests: list[draw.ClientRequest], turns: int) -> None:
        """Clients submit requests one by one; the process receives each at once, even while it waits."""
        for request in requests:
            self.network.submit(request)
            self.network.wake(self._process(request.target))
        for _ in range(turns):
            self.network.step(self._process(requests[-1].target))

    @rule(first=draw.request, requests=draw.requests, turns=st.integers(0, 6))
    def get_requests_during_append(
        self, first: draw.ClientRequest, requests: list[draw.ClientRequest], turns: int
    ) -> None:
        """A process gets more requests while one of its appends is in flight."""
        process = self._process(first.target)
        self.network.submit(first)
        self.network.step_until(process, lambda: process.is_sending("append_events("))
        for request in requests:
            self.network.submit(request._replace(target=first.target))
            self.network.wake(process)
        for _ in range(turns):
            self.network.step(process)

    @rule(target_index=draw.a_process, subject=st.sampled_from(strategies.SENDERS), turns=st.integers(0, 6))
    def forget(self, target_index: int, subject: str, turns: int) -> None:
        """A sender writes before being forgotten, and again before the erasure is in the log."""
        self.network.submit_email(target_index, subject)
        self.network.settle(self._process(target_index))
        forget = draw.ClientRequest(target_index, do.ForgetSubject(subject=subject))
        self.get_requests_during_append(forget, [], 0)
        self.network.submit_email(target_index, subject)
        self.network.wake(self._process(target_index))
        for _ in range(turns):
            self.network.step(self._process(target_index))

    @rule(requests=draw.requests, order=draw.orders_of_processes)
    def race(self, requests: list[draw.ClientRequest], order: list[int]) -> None:
        """Clients submit requests to several processes, which run alternately."""
        self.ask(requests)
        for target_index in order:
            self.network.step(self._process(target_index))

    @rule(target_index=draw.a_process, newest=st.integers(0, 5), turns=st.integers(0, 6))
    def ask_again(self, target_index: int, newest: int, turns: int) -> None:
        """A client repeats a request, possibly on another process."""
        self.network.repeat(target_index, newest)
        for _ in range(turns):
            self.network.step(self._process(target_index))

    @rule(target_index=draw.a_process, turns=st.integers(1, 8))
    def step(self, target_index: int, turns: int) -> None:
        """A process runs for a number of turns, each up to its next statement."""
        for _ in range(turns):
            self.network.step(self._process(target_index))

    @rule(target_index=draw.a_process)
    def settle(self, target_index: int) -> None:
        """A process runs until it is idle or blocked."""
        self.network.settle(self._process(target_index))

    # failures ---------------------------------------------------------------------------------------------

    @rule(target_index=draw.a_process, arrives=draw.arrivals, turns=draw.turns_after_a_loss)
    def lose_commit(self, target_index: int, arrives: str, turns: int) -> None:
        """A connection breaks during a commit; the process runs for some turns before that arrives."""
        process = self._process(target_index)
        self.network.give_work(target_index)
        self.network.step_until(process, lambda: process.is_sending("append_events("))
        self.network.break_connection(process, arrives)
        # It reconnects after a short delay.
        self.network.wake(process)
        self.server.pass_time(0.06)
        for _ in range(turns):
            self.network.step(process)
        self.network.arrive(latest=True)

    @rule(
        target_index=draw.a_process, other=draw.a_process, turns=st.integers(1, 12), patient=st.booleans()
    )
    def suspend_lock_holder(self, target_index: int, other: int, turns: int, patient: bool) -> None:
        """A process is suspended while it holds the lock; another one runs as far as it can."""
        process = self._process(target_index)
        self.network.give_work(other)
        self.network.settle(self._process(other))
        self.network.give_work(target_index)
        self.network.step_until(process, lambda: process.holds_the_lock)
        self.network.give_work(other)
        for _ in range(turns):
            self.network.step(self._process(other))
        if not patient:
            self.network.time_out_lock_wait(self._process(other))

    @rule(target_index=draw.a_process, how=draw.mishaps, arrives=draw.arrivals)
    def mishap(self, target_index: int, how: str, arrives: str) -> None:
        """Something goes wrong with a process, its connection or its session."""
        process = self._process(target_index)
        match how:
            case "its connection breaks":
                self.network.break_connection(process, arrives)
            case "it loses or regains the network":
                process.is_cut_off = not process.is_cut_off
            case "its session is ended" if process.connection:
                self.server.end(process.connection.session)
            case "a request is refused":
                self.network.give_work(target_index)
                self.network.step_until(process, lambda: process.is_sending("append_events("))
                self.network.refuse(process, arrives)
            case "it wakes up before it is answered":
                self.network.wake(process)
            case "a late statement arrives":
                self.network.arrive()
            case _:
                self.network.detect_disconnects()

    @rule(
        target_index=draw.a_process,
        arrives=draw.arrivals,
        gently=st.sampled_from((False, False, True)),
        tables=st.none() | st.tuples(st.integers(0, 12), st.none() | draw.a_projection),
    )
    def end(
        self, target_index: int, arrives: str, gently: bool, tables: tuple[int, int | None] | None
    ) -> None:
        """A process is killed or stopped; a new one starts in its place from what is stored."""
        if tables:
            self.server.project(*tables)
        process = self._process(target_index)
        if gently:
            process.stop()
            self.network.abandon(process, arrives)
        else:
            self.network.abandon(process, arrives)
            process.kill()
            self.laws.mark_killed(process)
        self.network.processes[target_index] = self._new(target_index)

    # other events -----------------------------------------------------------------------------------------

    @rule(seconds=draw.pauses, sleeper=st.none() | draw.a_process)
    def pass_time(self, seconds: float, sleeper: int | None) -> None:
        """Time passes, also for statements in flight. One machine may be suspended meanwhile."""
        self.server.pass_time(seconds)
        if sleeper is not None:
            self._process(sleeper).suspended_seconds += seconds

    @rule(seconds=draw.steps_of_clocks)
    def step_clock(self, seconds: float) -> None:
        """The database's clock is stepped."""
        self.server.step_clock(seconds)

    @rule(target_index=draw.a_process, how=st.sampled_from(("next", "last", "lost", "again", "nonsense")))
    def notify(self, target_index: int, how: str) -> None:
        """A notification arrives in time, late, twice or not at all."""
        self.network.notify(self._process(target_index), how)

    @rule(
        target_index=draw.a_process,
        behind=st.none() | st.integers(0, 12),
        stopped=st.none() | draw.a_projection,
    )
    def keep_house(self, target_index: int, behind: int | None, stopped: int | None) -> None:
        """The read tables catch up, or a process stores a snapshot."""
        squad = self._process(target_index).squad
        if behind is not None:
            self.server.project(behind, stopped)
        elif squad.head.position and not squad.absent:
            self.server.store_snapshot(squad)

    # invariants -------------------------------------------------------------------------------------------

    @invariant()
    def laws_hold(self) -> None:
        """Check the laws after every step."""
        type(self).steps += 1
        self._check_laws()

    def _check_laws(self) -> None:
        # The service may log errors only for the refusals that the model invents.
        assert [text for text in errors.found if REFUSED not in text] == []
        self.laws.take(self.server)
        self.laws.check_answers()
        for process in self.network.processes:
            self.laws.check_state(process)

    def teardown(self) -> None:
        """Check that the squad recovers and answers everybody once all faults have ended."""
        try:
            if sys.exc_info()[0] is None:
                self._check_recovery()
        finally:
            for process in self.network.processes:
                process.kill()
            self.server.close()

    def _check_recovery(self) -> None:
        self.network.settle_all()
        now = self._claim_everything_due()
        self._check_laws()
        for process in self.network.processes:
            assert process.is_done
            assert process.is_at_the_head
            self.laws.check_final_state(process)
        self.laws.check_all_answered(self.server, now)

    def _claim_everything_due(self) -> datetime:
        """Claim all due ticks on all processes at once, as schedulers do; return the time up to which."""
        squad = self._process(0).squad
        now = max(self.server.now, squad.head.recorded_at or self.server.now)
        while True:
            jobs, runs, _ = due_jobs(squad, now)
            if not (jobs or runs):
                return now
            for target_index in range(draw.PROCESSES):
                runner = f"process-{target_index}"
                for name in jobs:
                    self.network.submit(
                        draw.ClientRequest(target_index, do.ClaimTick(name=name, runner=runner))
                    )
                for run_id in runs:
                    self.network.submit(
                        draw.ClientRequest(target_index, do.TakeUpRun(run_id=run_id, runner=runner))
                    )
            before = len(self.server.log)
            self.network.settle_all()
            assert len(self.server.log) > before

    def _process(self, target_index: int) -> Process:
        return self.network.processes[target_index]

    def _new(self, target_index: int) -> Process:
        # Each machine's wall clock is wrong by a different amount; one process connects through a pooler.
        ahead, encrypt = timedelta(hours=target_index - 1), self._encrypt[target_index]
        return Process(self.server, ahead, encrypt=encrypt, is_pooled=target_index == 1)
