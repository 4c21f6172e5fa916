"""`squad` with faults whose exceptions contain client texts: `python tests/support/leaky_squad.py up ...`.

A message that contains `FAIL_IN_REQUEST` makes its decision fail.
A task title that contains it makes its request fail.
Data that contains `FAIL_IN_BACKGROUND` makes an observer of the log fail, and a background task.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

FAIL_IN_REQUEST = "stumble"
FAIL_IN_BACKGROUND = "later"

PROGRAM = (sys.executable, str(Path(__file__).resolve()))
"""The script to run in place of `squad`."""


async def _fail(text: str) -> None:
    raise LookupError(f"cannot process {text}")


def main() -> None:
    """Run the command line with these faults."""
    from service.commands import CreateTask, SendMessage
    from service.http import route
    from service.writing import batch
    from service.writing.writer import Writer

    decide, carry_out = vars(batch)["decide"], vars(route)["carry_out"]
    publish = Writer._publish

    def deciding(state: Any, command: Any, at: Any) -> Any:
        if isinstance(command, SendMessage) and FAIL_IN_REQUEST in command.message:
            try:
                vars(Writer)[command.message]
            except KeyError as error:
                raise ValueError(f"cannot decide {command!r}") from error
        return decide(state, command, at)

    async def carrying_out(services: Any, request: Any) -> Any:
        if isinstance(request.command, CreateTask) and FAIL_IN_REQUEST in request.command.title:
            raise TypeError(f"cannot carry out {request!r}")
        return await carry_out(services, request)

    def publishing(writer: Writer, recorded: Sequence[Any], events: Sequence[Any]) -> None:
        for one in recorded:
            if FAIL_IN_BACKGROUND in one.data:
                writer.observers.append(lambda page: (_ for _ in ()).throw(RuntimeError(str(page))))
                asyncio.get_running_loop().create_task(_fail(one.data))
        publish(writer, recorded, events)

    for where, name, what in (
        (batch, "decide", deciding),
        (route, "carry_out", carrying_out),
        (Writer, "_publish", publishing),
    ):
        setattr(where, name, what)

    from service.cli import main as squad

    squad()


if __name__ == "__main__":
    main()
