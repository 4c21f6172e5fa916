"""Runs the demo: `python -m examples.demo [--seconds N] [--until-drafted N] [--keys] [--keep]`."""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from examples.demo.narrator import Narrator, follow
from examples.demo.processes import DemoFailed
from examples.demo.setting import Setting, set_up

_UNTIL_DRAFTED_SECONDS = 180.0
_SECONDS_BETWEEN_LETTERS = 1.0


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    seconds: float | None
    until_drafted: int | None
    keys: bool
    keep: bool

    @property
    def limit_seconds(self) -> float | None:
        """After how long the demo ends in any case."""
        if self.seconds is None and self.until_drafted is not None:
            return _UNTIL_DRAFTED_SECONDS
        return self.seconds


def main() -> int:
    """Runs the demo; its exit code is 1 where it failed, or drafted less than it was to."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="squad-demo-"))
    try:
        return asyncio.run(_demo(options, folder))
    except DemoFailed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        # Whoever read our output has enough of it, or the terminal was closed; Python would complain once
        # more while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


def _options() -> Options:
    parser = argparse.ArgumentParser(
        prog="make demo", description="See e-mails arrive, be classified and drafted. Ctrl-C ends it."
    )
    parser.add_argument("--seconds", type=_positive, metavar="N", help="end after that long")
    parser.add_argument(
        "--until-drafted",
        type=int,
        metavar="N",
        help="end when there are N drafts; exit 1 if it takes too long",
    )
    parser.add_argument("--keys", action="store_true", help="make API keys, and let nobody in without one")
    parser.add_argument("--keep", action="store_true", help="leave the squad's folder behind")
    return Options(**vars(parser.parse_args()))


def _positive(text: str) -> float:
    if not 0 < (seconds := float(text)) < 1e6:
        raise argparse.ArgumentTypeError("must be more than nothing, and no more than days")
    return seconds


async def _demo(options: Options, folder: Path) -> int:
    """The demo, until it is over or somebody ends it."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    # Whoever starts it with nohup wants it to outlive the terminal; else nothing of it may.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, stop.set)
    show = asyncio.create_task(_show(options, folder))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({show, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    show.cancel()
    with suppress(asyncio.CancelledError):
        return await show
    return 0


async def _show(options: Options, folder: Path) -> int:
    narrator = Narrator()
    wanted = options.until_drafted
    async with aiohttp.ClientSession() as http:
        with ExitStack() as children:
            print("Setting up a squad, an agent and a mailbox ...", flush=True)
            try:
                setting = await set_up(children, http, folder, with_keys=options.keys)
            except asyncio.CancelledError:
                _say_that_it_ends()
                raise
            print(
                f"The squad is at {setting.squad_url}, the mailbox with {setting.office.name}.\n",
                flush=True,
            )
            try:
                await _watch(setting, http, narrator, wanted, options.limit_seconds)
            finally:
                _sum_up(narrator, folder if options.keep else None)
    if wanted is not None and narrator.drafted < wanted:
        print(f"demo: {narrator.drafted} drafts in time, and {wanted} were wanted", file=sys.stderr)
        return 1
    return 0


async def _watch(
    setting: Setting,
    http: aiohttp.ClientSession,
    narrator: Narrator,
    wanted: int | None,
    seconds: float | None,
) -> None:
    """Tells what happens, until there are as many drafts as are wanted, or the time is over."""
    tasks = {
        asyncio.create_task(_look_after(setting)),
        asyncio.create_task(_narrate(setting, http, narrator, wanted)),
    }
    try:
        ended, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _look_after(setting: Setting) -> None:
    """Posts the letters that are left, one after another, and sees to it that all processes live."""
    letters = list(setting.letters_left)
    while True:
        for child in setting.children:
            child.check()
        if letters:
            await asyncio.to_thread(setting.office.deliver, [letters.pop(0)])
        await asyncio.sleep(_SECONDS_BETWEEN_LETTERS)


async def _narrate(
    setting: Setting, http: aiohttp.ClientSession, narrator: Narrator, wanted: int | None
) -> None:
    said_all = False
    try:
        async for event in follow(http, setting.squad_url, setting.key):
            if line := narrator.tell(event):
                print(line, flush=True)
            if wanted is not None and narrator.drafted >= wanted:
                return
            if narrator.settled == setting.letters and not said_all:
                said_all = True
                print("\nThat was all the mail. The squad goes on; Ctrl-C ends it.", flush=True)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise DemoFailed(f"the event stream broke: {error!r}") from error
    raise DemoFailed("the event stream ended")


def _sum_up(narrator: Narrator, kept: Path | None) -> None:
    print(f"\n{narrator.summary()}")
    if kept:
        # Nobody has activated the environment that make runs us in.
        squad = os.path.relpath(Path(sys.executable).with_name("squad"))
        print(f"Kept. All that happened: {squad} events --data {kept / 'squad'}")
        print(f"The first e-mail drafted: {narrator.example}")
    _say_that_it_ends()


def _say_that_it_ends() -> None:
    print("Ending ...", flush=True)


if __name__ == "__main__":
    sys.exit(main())
