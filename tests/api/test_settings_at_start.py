"""What a service that starts says about settings that override changes made through the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp

from service.job_spec import SEED_JOBS
from tests.api.client import running_service
from tests.support.process import squad_up
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

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


async def test_start_names_jobs_that_the_settings_change_and_withdraw_when_they_differ_from_the_log(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    squad: dict[str, Any] = {"agents": {"quote_agent": {"role": "Quotes"}}}
    job = {"agent": "quote_agent", "endpoint": "/check", "every": "300d"}
    quiet = {name: {"enabled": False} for name in SEED_JOBS}
    own = {**quiet, "stock_watch": job, "email_poll": {"every": "300d"}}
    async with running_service(database, seed_jobs=True, jobs=own, **squad) as service:
        by_hand = (await service.api.put("jobs/by_hand", **job)).expect(200)
        positions = {
            name: (await service.api.get(f"jobs/{name}", min_position=by_hand["position"])).body["position"]
            for name in own
        }
    assert not _warnings(caplog), "a new squad"

    async with running_service(database, seed_jobs=True, jobs=own, **squad):
        assert not _warnings(caplog), "the same settings"

    changed = {**own, "stock_watch": {**job, "every": "200d", "tokens": 7}}
    async with running_service(database, seed_jobs=True, jobs=changed, **squad) as service:
        head = await service.head()
        stock_watch = (await service.api.get("jobs/stock_watch", min_position=head)).body["position"]
    assert _warnings(caplog) == [
        "the settings change every_seconds, tokens of job stock_watch,"
        f" last changed at position {positions['stock_watch']}"
    ]

    caplog.clear()
    async with running_service(database, seed_jobs=True) as service:
        listed = (await service.api.get("jobs", min_position=await service.head())).expect(200)["items"]
        kept = {item["name"]: item["position"] for item in listed}
    # A default never replaces an explicit definition, and the settings do not remove what the API defined.
    assert kept.items() >= {"email_poll": positions["email_poll"], "by_hand": by_hand["position"]}.items()
    assert "stock_watch" not in kept
    assert _warnings(caplog) == [
        f"the settings withdraw job stock_watch, last changed at position {stock_watch}"
    ]


async def test_limits_of_agents_are_kept_when_left_out_and_cleared_when_set_to_an_empty_table(
    database: str,
) -> None:
    squad: dict[str, Any] = {"agents": {"quote_agent": {"role": "Quotes"}}}
    for budget, limit in (
        ({"agent_limits": {"quote_agent": 300}}, 300),
        ({}, 300),
        ({"agent_limits": {}}, None),
    ):
        async with running_service(database, budget=budget, **squad) as service:
            shown = (await service.api.get("budget", min_position=await service.head())).expect(200)
            # An agent that has neither used tokens nor a limit is not shown.
            assert shown["agents"].get("quote_agent", {}).get("limit") == limit


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelname == "WARNING" and "the settings" in record.getMessage()
    ]
