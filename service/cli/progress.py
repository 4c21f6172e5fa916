"""How far a long reading of the log is: a bar on a terminal, elsewhere a line every few seconds."""

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

    Tell = Callable[[int, int | None], None]
    """Is told the position reached, and the one to be reached where that is known."""

LINE_SECONDS = 2.0
"""How often there is a line where there is no terminal."""


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        """How many events, and of how many."""
        return Text(_count(int(task.completed), None if task.total is None else int(task.total)))


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Events a second."""
        return Text(f"{task.finished_speed or task.speed or 0:,.0f} events/s")


@contextmanager
def shown(what: str, *, quiet: bool = False) -> Iterator[Tell]:
    """Gives what to tell the position reached and the one to be reached; shows it on stderr.

    Args:
        what: what is being done, in a word or two.
        quiet: shows nothing.
    """
    if quiet:
        yield lambda position, goal: None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(what).tell
        return
    columns = (TextColumn(what), BarColumn(), _Count(), _Speed(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None, visible=False)

        def tell(position: int, goal: int | None) -> None:
            bar.update(task, completed=position, total=goal, visible=True)

        yield tell


class _Lines:
    def __init__(self, what: str) -> None:
        self._what = what
        self._began = self._told = monotonic()

    def tell(self, position: int, goal: int | None) -> None:
        now = monotonic()
        if now - self._told < LINE_SECONDS:
            return
        self._told = now
        speed = position / (now - self._began)
        left = f", {(goal - position) / speed:,.0f} s left" if goal is not None and speed else ""
        click.echo(f"{self._what}: {_count(position, goal)}, {speed:,.0f} events/s{left}", err=True)


def _count(position: int, goal: int | None) -> str:
    return f"{position:,} events" if goal is None else f"{position:,} of {goal:,} events"
