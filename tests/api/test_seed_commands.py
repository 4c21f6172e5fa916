"""The seed's own commands, word for word, against `squad up` as users start it."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.process import squad_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Exactly as in the seed, from which its users copy them.
INITIALIZE = """\
curl -X POST http://localhost:3001/api/squad \\
  -H "Content-Type: application/json" \\
  -d '{"action": "orchestrator-init"}'
"""
CHECK_STATUS = """\
curl http://localhost:3001/api/squad?action=orchestrator-status
"""
SEND_MESSAGE = """\
curl -X POST http://localhost:3001/api/squad \\
  -H "Content-Type: application/json" \\
  -d '{
    "action": "orchestrator-message",
    "fromAgent": "test_agent",
    "message": "Test message"
  }'
"""

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")


@pytest.fixture
async def port(database: str) -> AsyncIterator[str]:
    """The port of a service that was started from the command line."""
    async with squad_up(dsn=database) as process:
        yield process.url.rpartition(":")[2]
        assert await process.stop() == 0


async def _run(command: str, port: str) -> dict[str, Any]:
    """Run a command of the seed, with only the port changed to this service's."""
    assert command.count(":3001/") == 1
    process = await asyncio.create_subprocess_shell(
        command.replace(":3001/", f":{port}/").replace(
            "curl ", "curl --silent --show-error --max-time 20 "
        ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return dict(json.loads(output))


async def test_three_commands_of_the_seed_work_word_for_word(port: str) -> None:
    started = await _run(INITIALIZE, port)
    assert started == {
        "success": True,
        "message": "Orchestrator initialized",
        "position": started["position"],
    }
    status = await _run(CHECK_STATUS, port)
    assert status.keys() == {"tokenBudget", "activeOperations", "timestamp"}
    assert status["tokenBudget"] == {"total": 100_000, "used": 0, "remaining": 100_000, "agentUsage": {}}
    sent = await _run(SEND_MESSAGE, port)
    assert (sent["success"], sent["message"]) == (True, "Message sent")
    assert sent["position"] > started["position"]
