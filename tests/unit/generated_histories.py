"""Random histories, decided and folded by the service's own functions, for tests that only read logs."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from eventstore import codec
from service.commands import AnyCommand, ForgetSubject, RegisterAgent, SetPolicy, StartOrchestrator
from service.requests import Answer, Request
from tests.unit import strategies
from tests.unit.stories import Story

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hypothesis.strategies import SearchStrategy

RandomHistory = list[tuple[float, list[AnyCommand]]]
"""Batches of commands, each with the pause in seconds before it."""

LONG = (*[0.0] * 4, 0.1, 1.0, 9.0, 31.0, 61.0, 299.0, 700.0, 4_000.0, 90_000.0)
SHORT = (0.0, 0.5, 1.0, 2.0, 16.0, 59.0, 60.0, 61.0, 120.0, 200.0)

_ANSWER = Answer(200, {"done": True})


def histories(
    commands: SearchStrategy[AnyCommand], pauses: Sequence[float] = LONG
) -> SearchStrategy[RandomHistory]:
    """Random histories of such commands."""
    batches = st.lists(commands, min_size=1, max_size=8)
    return st.lists(st.tuples(st.sampled_from(pauses), batches), min_size=5, max_size=25)


any_history: SearchStrategy[tuple[list[AnyCommand], RandomHistory]] = st.tuples(
    strategies.first_policies.map(lambda policy: [policy, StartOrchestrator()]),
    histories(strategies.commands),
)
"""The first commands, and a history of all kinds of commands."""

history_of_jobs: SearchStrategy[tuple[list[AnyCommand], RandomHistory]] = st.tuples(
    strategies.first_jobs.map(
        lambda jobs: [
            SetPolicy(daily_tokens=1_000),
            StartOrchestrator(),
            *(RegisterAgent(name=name, role="agent") for name in strategies.AGENTS),
            *jobs,
        ]
    ),
    histories(strategies.jobs, SHORT),
)
"""A history of jobs that tick every minute or two."""

history_of_claims: SearchStrategy[tuple[list[AnyCommand], RandomHistory]] = st.tuples(
    strategies.first_policies.map(lambda policy: [policy]),
    histories(strategies.work, (0, 0, 1, 20, 31, 31, 61)),
)
"""A history of claims on a few resources."""

history_of_usage: SearchStrategy[tuple[list[AnyCommand], RandomHistory]] = st.tuples(
    strategies.first_policies.map(lambda policy: [policy]),
    histories(strategies.spending, (0, 0, 0, 1, 200, 700, 40_000)),
)
"""A history of token usage on a small budget."""

every_history = st.one_of(any_history, history_of_jobs, history_of_claims, history_of_usage)


def story_of(first: Sequence[AnyCommand], life: RandomHistory) -> Story:
    """Return the story of a random history."""
    story = Story()
    known: defaultdict[str, list[str]] = defaultdict(list)
    numbers = iter(range(1_000_000))
    for pause_seconds, batch in [(0.0, list(first)), *life]:
        commands = [strategies.with_known_ids(command, known) for command in batch]
        until = story.now + timedelta(seconds=pause_seconds)
        for part in _split(commands):
            story.decide([_request(command, next(numbers)) for command in part], until)
            for recorded in story.recorded:
                strategies.collect_ids(codec.decode(recorded), known)
    return story


def _split(commands: Sequence[AnyCommand]) -> Iterator[Sequence[AnyCommand]]:
    """Yield batches as the writer splits them: a command that destroys a key has a batch of its own."""
    rest: list[AnyCommand] = []
    for command in commands:
        if isinstance(command, ForgetSubject):
            yield rest
            yield [command]
            rest = []
        else:
            rest.append(command)
    yield rest


def _request(command: AnyCommand, number: int) -> Request:
    """The request of the scheduler, or one over HTTP, sometimes with an idempotency key."""
    if getattr(command, "runner", None):
        correlation = getattr(command, "run_id", None) or f"claim-{number}"
        return Request(command, "system:scheduler", correlation)
    key = f"key-{number}" if number % 7 == 0 else None
    actor = f"agent:{command.acting_agent}" if command.acting_agent else "anonymous"
    return Request(command, actor, f"request-{number}", key, "print", lambda _: _ANSWER)
