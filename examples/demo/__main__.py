"""Run the demo: `python -m examples.demo [--seconds N] [--until-drafted N] [--keys] [--keep]`."""

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

from examples.demo.environment import Environment, set_up
from examples.demo.narrator import Narrator, follow
from examples.demo.processes import DemoFailed

_UNTIL_DRAFTED_SECONDS = 180.0
_SECONDS_BETWEEN_LETTERS = 1.0


@dataclass(frozen=True)
class Options:
    """The command line options."""

    seconds: float | None
    until_drafted: int | None
    keys: bool
    keep: bool

    @property
    def limit_seconds(self) -> float | None:
        """After how many seconds the demo ends in any case; None is never."""
        if self.seconds is None and self.until_drafted is not None:
            return _UNTIL_DRAFTED_SECONDS
        return self.seconds


def main() -> int:
    """Run the demo. The exit code is 1 if it failed, or made fewer drafts than requested."""
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
        # The reader of our output is gone, or the terminal was closed. Without this, Python would complain
        # again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


def _options() -> Options:
    parser = argparse.ArgumentParser(
        prog="make demo",
        description="Watch e-mails arrive and get classified and drafted. Ctrl-C stops it.",
    )
    parser.add_argument("--seconds", type=_positive, metavar="N", help="stop after N seconds")
    parser.add_argument(
        "--until-drafted",
        type=int,
        metavar="N",
        help="stop when there are N drafts; exit 1 if that takes too long",
    )
    parser.add_argument(
        "--keys", action="store_true", help="create API keys, so that every request needs one"
    )
    parser.add_argument("--keep", action="store_true", help="keep the squad's folder")
    return Options(**vars(parser.parse_args()))


def _positive(text: str) -> float:
    if not 0 < (seconds := float(text)) < 1e6:
        raise argparse.ArgumentTypeError("must be more than 0 and less than 1000000 seconds")
    return seconds


async def _demo(options: Options, folder: Path) -> int:
    """Run the demo until it is done or a signal stops it."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    # Under nohup the demo must outlive the terminal; otherwise none of its processes may.
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
                _print_ending()
                raise
            print(
                f"The squad is at {setting.squad_url}, the mailbox with {setting.office.name}.\n",
                flush=True,
            )
            try:
                await _watch(setting, http, narrator, wanted, options.limit_seconds)
            finally:
                _print_summary(narrator, folder if options.keep else None)
    if wanted is not None and narrator.drafted < wanted:
        print(f"demo: only {narrator.drafted} of {wanted} drafts in time", file=sys.stderr)
        return 1
    return 0


async def _watch(
    setting: Environment,
    http: aiohttp.ClientSession,
    narrator: Narrator,
    wanted: int | None,
    seconds: float | None,
) -> None:
    """Report what happens, until there are as many drafts as requested or time is up."""
    tasks = {
        asyncio.create_task(_supervise(setting)),
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


async def _supervise(setting: Environment) -> None:
    """Deliver the remaining letters one by one, and check that all processes are still running."""
    letters = list(setting.letters_left)
    while True:
        for child in setting.children:
            child.check()
        if letters:
            await asyncio.to_thread(setting.office.deliver, [letters.pop(0)])
        await asyncio.sleep(_SECONDS_BETWEEN_LETTERS)


async def _narrate(
    setting: Environment, http: aiohttp.ClientSession, narrator: Narrator, wanted: int | None
) -> None:
    all_settled = False
    try:
        async for event in follow(http, setting.squad_url, setting.key):
            if line := narrator.tell(event):
                print(line, flush=True)
            if wanted is not None and narrator.drafted >= wanted:
                return
            if narrator.settled == setting.letters and not all_settled:
                all_settled = True
                print("\nThat was all the mail. The squad keeps running; Ctrl-C stops it.", flush=True)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise DemoFailed(f"the event stream broke: {error!r}") from error
    raise DemoFailed("the event stream ended")


def _print_summary(narrator: Narrator, kept: Path | None) -> None:
    print(f"\n{narrator.summary()}")
    if kept:
        # make runs us without activating the virtual environment, so `squad` is not on the PATH.
        squad = os.path.relpath(Path(sys.executable).with_name("squad"))
        print(f"The log was kept. Read it with: {squad} events --data {kept / 'squad'}")
        print(f"The first e-mail drafted: {narrator.example}")
    _print_ending()


def _print_ending() -> None:
    print("Stopping ...", flush=True)


if __name__ == "__main__":
    sys.exit(main())
