"""Agents: registration, heartbeats and lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from yarl import URL

if TYPE_CHECKING:
    from tests.api.client import Api


async def test_put_registers_agent_and_get_shows_it(api: Api) -> None:
    registered = (await api.put("agents/ada", role="writer", url="http://a.test/x", priority=3)).expect(200)
    assert registered["position"] > 0
    shown = (await api.get("agents/ada")).expect(200)
    assert (shown["name"], shown["role"], shown["url"], shown["priority"]) == (
        "ada",
        "writer",
        "http://a.test/x",
        3,
    )
    assert shown["id"] == registered["id"]
    assert shown["last_active"].endswith("Z")


async def test_second_put_changes_profile_and_keeps_id(api: Api) -> None:
    first = (await api.put("agents/ada", role="writer")).expect(200)
    second = (await api.put("agents/ada", role="editor")).expect(200)
    assert (second["id"], second["role"]) == (first["id"], "editor")
    assert second["position"] > first["position"]


@pytest.mark.parametrize(
    "url",
    [
        "http://a.test/",
        "https://a.test:65535/x/y",
        "http://10.0.0.7:1",
        "http://[::1]:80/x",
        "http://[fe80::1%25eth0]",
        "http://user:word@a.test",
        "http://bücher.example",
        "http://a_b-c.test/%20?key=1",
    ],
)
async def test_agent_url_may_have_any_valid_form(api: Api, url: str) -> None:
    (await api.put("agents/ada", role="writer", url=url)).expect(200)
    assert (await api.get("agents/ada")).expect(200)["url"] == url


async def test_put_of_unchanged_profile_appends_nothing(api: Api) -> None:
    first = (await api.put("agents/ada", role="writer")).expect(200)
    assert (await api.put("agents/ada", role="writer")).expect(200)["position"] == first["position"]


async def test_unknown_agent_is_not_found(api: Api) -> None:
    (await api.get("agents/nobody")).expect(404, "agent_not_found")
    (await api.post("agents/nobody/heartbeat")).expect(404, "agent_not_found")


@pytest.mark.parametrize("status", ["active", "idle", "offline"])
async def test_heartbeat_sets_given_status(api: Api, status: str) -> None:
    await api.put("agents/ada", role="writer")
    assert (await api.post("agents/ada/heartbeat", status=status)).expect(200)["status"] == status
    assert (await api.get("agents/ada")).expect(200)["status"] == status


async def test_heartbeat_without_body_sets_status_active(api: Api) -> None:
    await api.put("agents/ada", role="writer")
    beat = (await api.ask("POST", "agents/ada/heartbeat")).expect(200)
    assert beat["status"] == "active"
    assert beat["position"] > 0


async def test_agents_are_listed_by_name_in_pages(api: Api) -> None:
    for name in ("carol", "ada", "bob"):
        await api.put(f"agents/{name}", role="writer")
    first = (await api.get("agents", limit=2)).expect(200)
    assert [agent["name"] for agent in first["items"]] == ["ada", "bob"]
    second = (await api.get("agents", limit=2, after=first["next"])).expect(200)
    assert [agent["name"] for agent in second["items"]] == ["carol"]
    assert second["next"] is None


async def test_name_may_contain_special_characters_and_non_ascii_letters(api: Api) -> None:
    names = (("a/b", "a%2Fb"), ("Zoë", "Zo%C3%AB"), ("50%", "50%25"), ("{x}", "%7Bx%7D"), ("a b", "a%20b"))
    for name, encoded in names:
        async with api.session.put(
            URL(f"/api/v1/agents/{encoded}", encoded=True), json={"role": "writer"}
        ) as response:
            assert (await response.json())["name"] == name
    listed = (await api.get("agents")).expect(200)["items"]
    assert {agent["name"] for agent in listed} == {name for name, _ in names}
