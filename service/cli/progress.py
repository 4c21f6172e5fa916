"""Progress of long reads of the log: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Task

    Report = Callable[[int, int | None], None]
    """Takes the position reached, and the final one if it is known."""

LINE_SECONDS = 2.0
"""How often a line is printed without a terminal."""


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Return the number of events, and their total."""
        return Text(_count(int(task.completed), None if task.total is None else int(task.total)))


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Return the events per second."""
        return Text(f"{task.finished_speed or task.speed or 0:,.0f} events/s")


@contextmanager
def show(what: str, *, quiet: bool = False) -> Iterator[Report]:
    """Show progress on stderr during the block, which reports it by calling the yielded function.

    Args:
        what: what is being done, in a word or two.
        quiet: show nothing.
    """
    if quiet:
        yield lambda position, goal: None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(what).report
        return
    columns = (TextColumn(what), BarColumn(), _Count(), _Speed(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None, visible=False)

        def report(position: int, goal: int | None) -> None:
            goal = _not_behind(goal, position)
            bar.update(task, completed=position, total=goal, visible=True)

        yield report


class _Lines:
    def __init__(self, what: str) -> None:
        self._what = what
        self._began = self._last_line_at = monotonic()

    def report(self, position: int, goal: int | None) -> None:
        now = monotonic()
        if now - self._last_line_at < LINE_SECONDS:
            return
        self._last_line_at = now
        goal = _not_behind(goal, position)
        speed = position / (now - self._began)
        left = f", {(goal - position) / speed:,.0f} s left" if goal is not None and speed else ""
        click.echo(f"{self._what}: {_count(position, goal)}, {speed:,.0f} events/s{left}", err=True)


def _count(position: int, goal: int | None) -> str:
    return f"{position:,} events" if goal is None else f"{position:,} of {goal:,} events"


def _not_behind(goal: int | None, position: int) -> int | None:
    """The goal, of a log that may have grown since it was set."""
    return None if goal is None else max(goal, position)
