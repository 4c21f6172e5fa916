"""`make demo` as a new user runs it: real processes, a real mailbox, a real Postgres."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
READY_SECONDS = 90.0
DRAFTED_SECONDS = 90
END_SECONDS = 45.0


class Demo:
    """The demo's process and its output."""

    def __init__(self, temporary: Path, *arguments: str, terminal: int | None = None) -> None:
        self.output = temporary / "output"
        # The demo must ignore the settings of the developer's own squad.
        foreign = {"SQUAD_DSN": "postgresql://nowhere.invalid/squad", "SQUAD_PORT": "1"}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "examples.demo", *arguments],
                cwd=ROOT,
                stdout=output if terminal is None else terminal,
                stderr=output,
                env={**os.environ, **foreign, "TMPDIR": str(temporary)},
                start_new_session=True,
                # If the tests were started with nohup, the demo would inherit that SIGHUP is ignored.
                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
            )
        self._seen: set[psutil.Process] = set()

    def read(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_for(self, pattern: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.read()):
            assert self.process.poll() is None, self.read()
            assert time.monotonic() < deadline, self.read()
            self.note_children()
            time.sleep(0.1)

    def wait_for_children(self, seconds: float) -> None:
        """Wait until the demo has started its first child process."""
        deadline = time.monotonic() + seconds
        while not self._seen:
            assert time.monotonic() < deadline, self.read()
            self.note_children()
            time.sleep(0.05)

    def note_children(self) -> None:
        """Remember the processes that run below the demo."""
        self._seen.update(psutil.Process(self.process.pid).children(recursive=True))

    def survivors(self) -> list[psutil.Process]:
        """The child processes that are still running; zombies do not count."""
        return [process for process in self._seen if _is_running(process)]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        for process in self._seen:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder that the embedded server's user can access, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="squad-demo-test-") as folder:
        yield Path(folder)


@pytest.fixture
def demos(temporary: Path) -> Iterator[list[Demo]]:
    started: list[Demo] = []
    yield started
    for demo in started:
        if demo.process.poll() is None:
            demo.note_children()
        demo.kill()


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob("squad-demo-*"))


@pytest.mark.parametrize("options", [(), ("--keys",)], ids=["without keys", "with keys"])
def test_demo_receives_classifies_and_drafts_emails(
    temporary: Path, demos: list[Demo], options: tuple[str, ...]
) -> None:
    demos.append(
        demo := Demo(temporary, "--until-drafted", "3", "--seconds", str(DRAFTED_SECONDS), *options)
    )
    demo.wait_for(r"The squad is at http://127\.0\.0\.1:\d+", READY_SECONDS)
    demo.note_children()
    assert demo.process.wait(DRAFTED_SECONDS + END_SECONDS) == 0, demo.read()
    text = demo.read()
    assert "!" not in re.sub(r"“.*”|<- .*|sorted .*", "", text), text
    for line in (
        r"<- e-mail +Quote for our school hall",
        r"sorted +Quote for our school hall +quote_request",
    ):
        assert re.search(line, text), text
    assert len(re.findall("-> drafted", text)) == 3
    assert re.search(r"\d+ e-mails received, \d+ classified, 3 drafted", text)
    assert demo.survivors() == []
    assert leftovers(temporary) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_stops_cleanly_on_a_signal(temporary: Path, demos: list[Demo], number: signal.Signals) -> None:
    demos.append(demo := Demo(temporary))
    demo.wait_for("<- e-mail", READY_SECONDS)
    demo.note_children()
    demo.process.send_signal(number)
    assert demo.process.wait(END_SECONDS) == 0, demo.read()
    assert "Traceback" not in demo.read()
    assert "e-mails received" in demo.read()
    assert demo.survivors() == []
    assert leftovers(temporary) == []


def test_demo_stops_cleanly_during_setup(temporary: Path, demos: list[Demo]) -> None:
    demos.append(demo := Demo(temporary))
    demo.wait_for("Setting up", READY_SECONDS)
    demo.wait_for_children(READY_SECONDS)
    demo.process.send_signal(signal.SIGINT)
    demo.wait_for("Stopping", END_SECONDS)
    assert demo.process.wait(END_SECONDS) == 0, demo.read()
    assert "Traceback" not in demo.read()
    assert demo.survivors() == []
    assert leftovers(temporary) == []


def test_demo_stops_cleanly_when_its_terminal_is_closed(temporary: Path, demos: list[Demo]) -> None:
    terminal, demo_end = os.openpty()
    try:
        demos.append(demo := Demo(temporary, terminal=demo_end))
    finally:
        os.close(demo_end)
    demo.wait_for_children(READY_SECONDS)
    os.close(terminal)
    demo.process.send_signal(signal.SIGHUP)
    assert demo.process.wait(END_SECONDS) == 0, demo.read()
    assert "Traceback" not in demo.read()
    assert demo.survivors() == []
    assert leftovers(temporary) == []


def test_kept_data_can_be_read_with_the_printed_command(temporary: Path, demos: list[Demo]) -> None:
    demos.append(demo := Demo(temporary, "--keep"))
    demo.wait_for("<- e-mail", READY_SECONDS)
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(END_SECONDS) == 0, demo.read()
    printed = re.search(r"Read it with: (.+)", demo.read())
    assert printed, demo.read()
    read = subprocess.run(printed[1].split(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    assert "email_received" in read.stdout


def test_demo_fails_when_too_few_drafts_are_ready_in_time(temporary: Path, demos: list[Demo]) -> None:
    demos.append(demo := Demo(temporary, "--until-drafted", "1000", "--seconds", "1"))
    assert demo.process.wait(READY_SECONDS + END_SECONDS) == 1, demo.read()
    assert "of 1000 drafts in time" in demo.read()
    assert leftovers(temporary) == []
