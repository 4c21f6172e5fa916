"""Runs the demo: `python -m examples.demo [--seconds N] [--until-drafted N] [--keep]`."""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import secrets
import shutil
import signal
import sys
import tempfile
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from examples.demo import post_office
from examples.demo.letters import letters
from examples.demo.narrator import Narrator, follow
from examples.demo.processes import Child, DemoFailed, free_ports, running

_ROOT = Path(__file__).parents[2]
_FIRST_LETTERS = 8
_SECONDS_BETWEEN_LETTERS = 1.0
_READY_SECONDS = 90.0
_UNTIL_DRAFTED_SECONDS = 180.0

_SQUAD_TOML = """\
# The demo's squad. The jobs are the seed's, only much more often.

[agents.email_agent]
role = "Email"
url = "{agent_url}"
secret = "{secret}"

[jobs.email_poll]
every = "3s"

[jobs.email_classify]
every = "4s"

[jobs.email_respond]
every = "4s"
"""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    seconds: float | None
    until_drafted: int | None
    keep: bool


def main() -> int:
    """Runs the demo; its exit code is 1 where it failed, or drafted less than it was to."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="squad-demo-"))
    try:
        return asyncio.run(_demo(options, folder))
    except DemoFailed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    finally:
        if options.keep:
            print(f"The squad's folder is kept: squad events --data {folder / 'squad'}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="make demo", description="See e-mails arrive, sorted and drafted.")
    parser.add_argument("--seconds", type=float, help="end after that long (else: Ctrl-C)")
    parser.add_argument("--until-drafted", type=int, metavar="N", help="end as soon as there are N drafts")
    parser.add_argument("--keep", action="store_true", help="leave the squad's data folder behind")
    return Options(**vars(parser.parse_args()))


async def _demo(options: Options, folder: Path) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    work = asyncio.create_task(_show(options, folder))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not work.done():
        print("\nEnding ...", flush=True)
        work.cancel()
    with suppress(asyncio.CancelledError):
        return await work
    return 0


async def _show(options: Options, folder: Path) -> int:
    narrator = Narrator()
    limit = options.seconds or (_UNTIL_DRAFTED_SECONDS if options.until_drafted else None)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        # Leaving it blocks for seconds while the children end; nothing else is to be done then.
        children = stack.enter_context(ExitStack())
        squad_url, office, started = await _start(children, http, folder)
        stack.callback(lambda: print(f"\n{narrator.summary()}", flush=True))
        print(f"The squad is at {squad_url}. Ctrl-C ends all of it.\n", flush=True)
        try:
            async with asyncio.timeout(limit), asyncio.TaskGroup() as tasks:
                tasks.create_task(_deliver_the_rest(office))
                tasks.create_task(_watch(started))
                await _narrate(http, squad_url, narrator, options.until_drafted)
                raise _Enough
        except* (TimeoutError, _Enough):
            pass
        except* DemoFailed as group:
            raise group.exceptions[0] from None
        return 0 if options.until_drafted is None or narrator.drafted >= options.until_drafted else 1
    raise AssertionError


class _Enough(Exception):
    """There are as many drafts as were asked for."""
