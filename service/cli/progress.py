"""How far a long command is, on stderr: a bar where a person looks on, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Task

    Tell = Callable[[int], None]
    """Is told how many events are done."""

LINE_EVERY_SECONDS = 5.0


@contextmanager
def progress(what: str, total: int | None, *, quiet: bool = False) -> Iterator[Tell]:
    """Shows how far the work in the block is.

    Args:
        what: the work, in a word or two.
        total: how many events there are; None where nobody knows.
        quiet: shows nothing.
    """
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar(what, total) as tell:
            yield tell
    else:
        yield _Lines(what, total).tell


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Tell]:
    columns = (TextColumn("{task.description}"), BarColumn(), _Done(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done: shown.update(task, completed=done)


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
        self._began = self._told = time.monotonic()

    def tell(self, done: int) -> None:
        now = time.monotonic()
        if now - self._told < LINE_EVERY_SECONDS:
            return
        self._told = now
        total = f" of {self._total:,}" if self._total is not None else ""
        rate = done / (now - self._began)
        click.echo(f"{self._what}: {done:,}{total} events, {rate:,.0f}/s", err=True)
