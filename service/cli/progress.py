"""How far a long command is, on stderr: a bar where a person looks on, elsewhere a line now and then."""

from __future__ import annotations

from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Task

LINE_SECONDS = 2.0
"""How often there is a line where there is no terminal."""


class Tell(Protocol):
    """Is told how far the work is."""

    def __call__(self, done: int, total: int | None = None, /) -> None:
        """So many events are done, of so many; without a total, of as many as was said before."""


@contextmanager
def progress(what: str, total: int | None = None, *, quiet: bool = False) -> Iterator[Tell]:
    """Shows how far the work in the block is.

    Args:
        what: the work, in a word or two.
        total: how many events there are; None where nobody knows yet.
        quiet: shows nothing.
    """
    console = Console(stderr=True)
    if quiet:
        yield _say_nothing
    elif console.is_terminal:
        with _bar(console, what, total) as tell:
            yield tell
    else:
        yield _Lines(what, total).tell


def _say_nothing(done: int, total: int | None = None, /) -> None:
    del done, total


@contextmanager
def _bar(console: Console, what: str, total: int | None) -> Iterator[Tell]:
    columns = (TextColumn("{task.description}"), BarColumn(), _Done(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(what, total=total)

        def tell(done: int, total: int | None = None, /) -> None:
            shown.update(task, completed=done, total=total)

        yield tell


class _Done(ProgressColumn):
    """How many events are done, of how many, and how many in a second."""

    def render(self, task: Task) -> Text:
        """The column's text."""
        rate = task.finished_speed or task.speed
        total = f" of {task.total:,.0f}" if task.total is not None else ""
        return Text(f"{task.completed:,.0f}{total} events" + (f", {rate:,.0f}/s" if rate else ""))


class _Lines:
    def __init__(self, what: str, total: int | None) -> None:
        self._what = what
        self._total = total
        self._began = self._told = monotonic()

    def tell(self, done: int, total: int | None = None, /) -> None:
        self._total = total or self._total
        now = monotonic()
        if now - self._told < LINE_SECONDS:
            return
        self._told = now
        rate = done / (now - self._began)
        text = f"{self._what}: {done:,}" + (f" of {self._total:,}" if self._total else "")
        text += f" events, {rate:,.0f}/s"
        if self._total and rate:
            text += f", {(self._total - done) / rate:,.0f} s left"
        click.echo(text, err=True)
