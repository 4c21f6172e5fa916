"""What a start records: the policy, jobs and agents of the settings, where they differ from the log's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from yarl import URL

from service.app import serving
from service.database import StartFailed
from service.settings import Settings
from service.settings.sections import AgentSettings, BudgetSettings
from tests.api.client import running_service

if TYPE_CHECKING:
    from tests.api.client import Api, Service


async def _policies(api: Api) -> int:
    return len((await api.get("events", type="policy_set")).expect(200)["items"])


async def test_unchanged_settings_append_nothing(database: str) -> None:
    settings = {
        "daily_tokens": 5_000,
        "timezone": "Europe/Berlin",
        "budget": BudgetSettings(agent_limits={"ada": 100}),
        "agents": {"ada": AgentSettings(role="writer")},
    }
    heads = []
    for _ in range(3):
        async with running_service(database, **settings) as service:
            heads.append(await service.head())
    assert heads == [heads[0]] * 3


async def test_changed_setting_is_recorded_and_takes_effect(database: str) -> None:
    async with running_service(database) as service:
        assert (await service.api.get("budget")).expect(200)["total"] == 100_000
    async with running_service(database, daily_tokens=7_000) as service:
        assert (await service.api.get("budget")).expect(200)["total"] == 7_000
        assert await _policies(service.api) == 2


async def test_value_set_by_api_is_kept_when_settings_do_not_name_it(database: str) -> None:
    async with running_service(database) as service:
        (await service.api.put("budget", daily_tokens=7_000, agent_limits={"ada": 50})).expect(200)
    async with running_service(database, conflict_window_seconds=10) as service:
        shown = (await service.api.get("budget")).expect(200)
        assert (shown["total"], shown["agents"]["ada"]["limit"]) == (7_000, 50)


async def test_jobs_use_time_zone_of_squad_when_settings_name_none(database: str) -> None:
    """As after an import, or after the line was removed from the settings."""
    jobs = {"mine": {"cron": "0 9 * * *", "task": "token_monitor"}}
    async with running_service(database, timezone="Europe/Berlin", jobs=jobs):
        pass
    async with running_service(database, jobs=jobs) as service:
        assert (await service.api.get("jobs/mine")).expect(200)["timezone"] == "Europe/Berlin"
        defined = (await service.api.get("events", type="job_defined")).expect(200)["items"]
        assert len(defined) == 1


async def test_settings_override_values_set_by_api_at_the_next_start(database: str) -> None:
    limits = BudgetSettings(agent_limits={"ada": 10})
    async with running_service(database, daily_tokens=5_000, budget=limits) as service:
        await service.api.put("budget", daily_tokens=7_000, agent_limits={})
    async with running_service(database, daily_tokens=5_000, budget=limits) as service:
        shown = (await service.api.get("budget")).expect(200)
        assert (shown["total"], shown["agents"]["ada"]["limit"]) == (5_000, 10)


async def test_agents_in_settings_are_registered(database: str) -> None:
    agents = {"ada": AgentSettings(role="writer", url="http://a.test", priority=5)}
    async with running_service(database, agents=agents) as service:
        shown = (await service.api.get("agents/ada")).expect(200)
        assert (shown["role"], shown["url"], shown["priority"]) == ("writer", "http://a.test", 5)


@pytest.mark.parametrize(
    ("host", "complaint"), [("127.0.0.1", "it is in use"), ("0.0.0.0", "the squad has no keys")]
)
async def test_start_that_is_refused_leaves_the_squad_as_it_is(
    database: str, host: str, complaint: str
) -> None:
    jobs = {"mine": {"every": "300d", "task": "token_monitor"}}
    async with running_service(database, daily_tokens=5_000, jobs=jobs) as service:
        head = await service.head()
        port = URL(service.url).port if host == "127.0.0.1" else 0
        with pytest.raises(StartFailed, match=complaint):
            async with serving(Settings(dsn=database, host=host, port=port, daily_tokens=9_000)):
                pass
        assert await service.head() == head


async def _everything(service: Service) -> list[object]:
    paths = ("agents", "messages", "operations", "conflicts", "tasks", "emails", "budget", "events")
    return [(await service.api.get(path)).expect(200) for path in paths]


async def test_everything_is_the_same_after_a_restart(database: str) -> None:
    async with running_service(database) as service:
        api = service.api
        await api.put("agents/ada", role="writer")
        await api.post("messages", from_agent="ada", message="hello")
        claim = {"agent": "ada", "action": "respond", "resources": {"emailId": "e"}, "ttl_seconds": 600}
        held = (await api.post("operations", **claim)).expect(201)
        await api.post("operations", **{**claim, "agent": "bob"})
        await api.post("budget/usage", agent="ada", tokens=45_000)
        reserved = (await api.post("budget/reservations", agent="ada", tokens=500)).expect(201)
        await api.post("tasks", title="t")
        await api.post("emails", gmail_message_id="g", from_email="c@example.com")
        before = await _everything(service)
    async with running_service(database) as service:
        api = service.api
        assert await _everything(service) == before
        (await api.post(f"operations/{held['id']}/finish", outcome="succeeded")).expect(200)
        (await api.post(f"budget/reservations/{reserved['id']}/settle", tokens_used=5_500)).expect(200)
        crossed = (await api.get("events", type="budget_threshold_crossed")).expect(200)["items"]
        assert [event["data"]["percent"] for event in crossed] == [50]
