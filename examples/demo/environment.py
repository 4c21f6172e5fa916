"""Sets up the demo: a mailbox, the e-mail agent and a squad, each in its own process."""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from examples.demo import imap_server
from examples.demo.letters import letters
from examples.demo.processes import Child, DemoFailed, free_ports, running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import ExitStack

    from examples.demo.imap_server import ImapServer

_ROOT = Path(__file__).parents[2]
_SQUAD = (sys.executable, "-m", "service")
_LETTERS_AT_FIRST = 6
_READY_SECONDS = 90.0
# Settings of a real squad must not reach the demo's, except those of a language model.
_PASSED_ON = ("EMAIL_AGENT_LLM_", "EMAIL_AGENT_PERSONA", "EMAIL_AGENT_SIGNATURE")

_SQUAD_TOML = """\
# The default jobs, only much more often.

[agents.email_agent]
role = "Email"
url = "{agent_url}"
secret = "{secret}"

[jobs.email_poll]
every = "3s"

[jobs.email_classify]
every = "3s"

[jobs.email_respond]
every = "4s"
"""


@dataclass(frozen=True)
class Environment:
    """The running demo."""

    squad_url: str
    office: ImapServer
    children: tuple[Child, ...]
    letters: int
    """How many there are in total."""
    letters_left: tuple[bytes, ...]
    key: str | None
    """The API key of the narrator, if the squad has keys."""


async def set_up(
    stack: ExitStack, http: aiohttp.ClientSession, folder: Path, *, with_keys: bool = False
) -> Environment:
    """Start everything and wait until it is ready. The stack stops the processes in reverse order.

    Args:
        stack: owns the processes.
        http: the session for readiness checks.
        folder: the folder for all data.
        with_keys: whether to create keys for the agent and the narrator, so that the squad requires one.

    Raises:
        DemoFailed: something does not start.
    """
    squad_port, agent_port, imap_port = free_ports(3)
    squad_url, agent_url = f"http://127.0.0.1:{squad_port}", f"http://127.0.0.1:{agent_port}"
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    office = imap_server.choose(folder / "mail", imap_port)
    python = sys.executable

    def start(name: str, command: Sequence[str], **variables: str) -> Child:
        environment = {**_clean_environment(), **variables}
        log = folder / f"{name}.log"
        return stack.enter_context(running(name, command, log, cwd=_ROOT, environment=environment))

    mail = start(office.name, office.command)
    await _wait_until_ready(mail, office.is_open)
    posted = letters()
    await asyncio.to_thread(office.deliver, posted[:_LETTERS_AT_FIRST])

    data = folder / "squad"
    keys: dict[str, str] = {}
    narrator_key: str | None = None
    if with_keys:
        agent_key, narrator_key = await asyncio.gather(
            _make_key(data, "--scope", "agent", "--agent", "email_agent"),
            _make_key(data, "--scope", "auditor", "--note", "the demo's narrator"),
        )
        keys = {"EMAIL_AGENT_SQUAD_API_KEY": agent_key}

    agent = start(
        "email_agent",
        (python, "-m", "examples.email_agent"),
        EMAIL_AGENT_PORT=str(agent_port),
        EMAIL_AGENT_SQUAD_URL=squad_url,
        EMAIL_AGENT_WEBHOOK_SECRET=secret,
        EMAIL_AGENT_IMAP_PORT=str(imap_port),
        EMAIL_AGENT_IMAP_SECURITY="none",
        EMAIL_AGENT_IMAP_USER=imap_server.USER,
        EMAIL_AGENT_IMAP_PASSWORD=imap_server.PASSWORD,
        EMAIL_AGENT_SAVE_DRAFTS="1",
        **keys,
    )
    await _wait_until_ready(agent, lambda: _answers(http, f"{agent_url}/healthz"))

    toml = folder / "squad.toml"
    toml.touch(mode=0o600)
    toml.write_text(_SQUAD_TOML.format(agent_url=agent_url, secret=secret))
    options = ("--config", str(toml), "--data", str(data))
    squad = start(
        "squad",
        (*_SQUAD, "up", "--port", str(squad_port), *options),
    )
    await _wait_until_ready(squad, lambda: _answers(http, f"{squad_url}/readyz"))
    left = tuple(posted[_LETTERS_AT_FIRST:])
    return Environment(squad_url, office, (mail, agent, squad), len(posted), left, narrator_key)


async def _make_key(data: Path, *arguments: str) -> str:
    command = (*_SQUAD, "keys", "create", *arguments, "--data", str(data))
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=_ROOT,
        env=_clean_environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await process.communicate()
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
    if process.returncode:
        raise DemoFailed(f"cannot create an API key: {errors.decode().strip()}")
    return output.decode().strip()


def _clean_environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SQUAD_", "EMAIL_AGENT_")) or name.startswith(_PASSED_ON)
    }


async def _wait_until_ready(child: Child, is_ready: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not await is_ready():
        child.check()
        if time.monotonic() > deadline:
            raise DemoFailed(f"{child.name} is not ready after {_READY_SECONDS:.0f} seconds")
        await asyncio.sleep(0.1)


async def _answers(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(url, timeout=aiohttp.ClientTimeout(total=10)) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False
