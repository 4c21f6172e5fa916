"""What a service that starts says about settings that override changes made through the API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp

from tests.support.process import squad_up
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = """
daily_tokens = 50000
[agents.quote_agent]
role = "Quotes"
url = "http://127.0.0.1:4001"
"""
AGENT = {"role": "Quotes", "url": "http://127.0.0.1:4002"}


async def test_start_names_what_the_settings_override_and_where_it_was_set(
    database: str, tmp_path: Path
) -> None:
    config = tmp_path / "squad.toml"
    config.write_text(SETTINGS)
    async with squad_up(dsn=database, SQUAD_CONFIG=str(config)) as service:
        await eventually(service.is_ready)
        assert not _overriding(service.log_lines())
        async with aiohttp.ClientSession(service.url) as session:
            changed = await _put(session, "/api/v1/budget", {"daily_tokens": 70_000})
            moved = await _put(session, "/api/v1/agents/quote_agent", AGENT)
        await service.stop()
        await service.start()
        await eventually(service.is_ready)
        assert _overriding(service.log_lines()) == [
            f"the settings change daily_tokens of the policy, last changed at position {changed}",
            f"the settings change url of agent quote_agent, last changed at position {moved}",
        ]
        async with aiohttp.ClientSession(service.url) as session:
            budget = await (await session.get("/api/v1/budget")).json()
        assert budget["total"] == 50_000


async def _put(session: aiohttp.ClientSession, path: str, body: object) -> int:
    async with session.put(path, json=body) as answer:
        assert answer.status == 200
        return int((await answer.json())["position"])


def _overriding(lines: list[str]) -> list[str]:
    found = [line[line.index("the settings change") :] for line in lines if "the settings change" in line]
    return [line.partition(" [")[0].rstrip() for line in found]
