"""API keys: which keys are accepted, and what each scope may do and see."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import pytest_asyncio

from eventstore import log
from service import api_keys
from service.http import auth
from service.http.routes import ROUTES
from service.http.scope import Scope
from tests.api.client import Api, Service, running_service, unreachable
from tests.api.inputs import UNKNOWN_ID
from tests.support.components import connected
from tests.support.keys import make_key, revoke_key
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from service.http.route import Route
    from tests.support.postgres import PostgresServer

CHALLENGE = 'Bearer realm="squad"'


class Squad(NamedTuple):
    """A service that requires keys, with a client for each kind of key and one without."""

    service: Service
    nobody: Api
    ann: Api
    bob: Api
    operator: Api
    auditor: Api
    keys: dict[str, api_keys.NewKey]


@contextlib.asynccontextmanager
async def squad_with_keys(dsn: str, **settings: Any) -> AsyncIterator[Squad]:
    keys = {
        "ann": await make_key(dsn, "agent", "ann"),
        "bob": await make_key(dsn, "agent", "bob"),
        "operator": await make_key(dsn, "operator"),
        "auditor": await make_key(dsn, "auditor"),
    }
    async with running_service(dsn, **settings) as service:
        clients = {name: service.api.with_key(key.text) for name, key in keys.items()}
        yield Squad(service, service.api, keys=keys, **clients)


@pytest.fixture
async def squad(database: str) -> AsyncIterator[Squad]:
    async with squad_with_keys(database) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_squad(postgres: PostgresServer, _template: str) -> AsyncIterator[Squad]:
    """One squad for all tests that do not depend on what is in it."""
    with postgres.new_database(template=_template) as dsn:
        async with squad_with_keys(dsn) as running:
            yield running


def _target(route: Route) -> str:
    """A path that matches the route."""
    path = route.plain_path
    for name, value in (("{id}", UNKNOWN_ID), ("{name}", "ann"), ("{position}", "1")):
        path = path.replace(name, value)
    return path


def _name(route: Route) -> str:
    return f"{route.method} {route.path}"


# Every route -------------------------------------------------------------------------------------------


def test_reading_routes_allow_readers_and_writing_routes_no_auditors() -> None:
    for route in ROUTES:
        changes = route.method != "GET" and not route.path.endswith(("/check", "/whatif"))
        expected = {Scope.ACT, Scope.OPERATE} if changes else {Scope.PUBLIC, Scope.READ, Scope.AUDIT}
        assert route.scope in expected, _name(route)
    public = {route.path for route in ROUTES if route.scope is Scope.PUBLIC}
    assert public == {"/healthz", "/readyz", "/openapi.json"}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("route", ROUTES, ids=_name)
async def test_route_requires_a_key_of_sufficient_scope(shared_squad: Squad, route: Route) -> None:
    # A valid request for a stream would not end; this one is rejected with every key and without.
    query = {"after": "x"} if route.path.endswith("/stream") else {}
    body: dict[str, object] | None = None if route.method == "GET" else {}
    for name in ("nobody", "ann", "auditor", "operator"):
        api: Api = getattr(shared_squad, name)
        answer = await api.ask(route.method, _target(route), body, query=query)
        scope = {"ann": "agent", "nobody": None}.get(name, name)
        if route.scope is Scope.PUBLIC:
            assert answer.status == 200
        elif scope is None:
            assert answer.status == 401, (name, answer)
            assert answer.headers["WWW-Authenticate"] == CHALLENGE
        elif scope not in route.scope.value:
            assert answer.status == 403, (name, answer)
            code = answer.body.get("code") or answer.body["details"]["code"]
            assert code == "not_allowed"
        else:
            assert answer.status not in (401, 403), (name, answer)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer nonsense",
        "Bearer squad_",
        "Bearer squad_2222222222_" + "0" * 64,
        "Basic c3F1YWQ6c3F1YWQ=",
        "Bearer squad_ü_ü",
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_malformed_or_unknown_key_is_unauthorized(
    shared_squad: Squad, monkeypatch: pytest.MonkeyPatch, header: str
) -> None:
    answer = await shared_squad.nobody.get("budget", {"Authorization": header})
    answer.expect(401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == f'{CHALLENGE}, error="invalid_token"'


@pytest.mark.asyncio(loop_scope="module")
async def test_key_must_match_to_the_last_character(shared_squad: Squad) -> None:
    text = shared_squad.keys["operator"].text
    for wrong in (text[:-1], text + "0", text[:-1] + ("0" if text[-1] != "0" else "1"), text.upper()):
        answer = await shared_squad.nobody.get("budget", {"Authorization": f"Bearer {wrong}"})
        answer.expect(401, "unauthorized")
        assert text[20:] not in str(answer)
    for right in (f"Bearer {text}", f"bearer {text}", f"BEARER  {text} "):
        (await shared_squad.nobody.get("budget", {"Authorization": right})).expect(200)


@pytest.mark.asyncio(loop_scope="module")
async def test_seed_facade_requires_a_key_and_answers_in_its_own_format(
    shared_squad: Squad,
) -> None:
    answer = await shared_squad.nobody.get("/api/squad", action="orchestrator-status")
    assert answer.expect(401)["details"] == {"code": "unauthorized", "detail": answer.body["error"]}
    assert answer.headers["WWW-Authenticate"] == CHALLENGE
    for api in (shared_squad.ann, shared_squad.auditor, shared_squad.operator):
        (await api.get("/api/squad", action="orchestrator-status")).expect(200)


@pytest.mark.asyncio(loop_scope="module")
async def test_readyz_hides_details_from_agents_and_without_a_key(shared_squad: Squad) -> None:
    for api, shown in (
        (shared_squad.nobody, False),
        (shared_squad.ann, False),
        (shared_squad.auditor, True),
    ):
        checks = (await api.get("/readyz")).body["checks"]
        assert ("by_name" in checks["projections"]) is shown


# What agents may do --------------------------------------------------------------------------------------


async def test_agent_key_can_act_only_as_that_agent(squad: Squad) -> None:
    ann = squad.ann
    (await ann.put("agents/ann", role="writer")).expect(200)
    (await ann.post("agents/ann/heartbeat")).expect(200)
    sent = (await ann.post("messages", from_agent="ann", message="hello")).expect(201)
    recorded = (await squad.operator.get(f"events/{sent['position']}")).expect(200)
    assert recorded["actor"] == f"agent:ann key:{squad.keys['ann'].id}"
    for answer in (
        await ann.put("agents/bob", role="spy"),
        await ann.post("agents/bob/heartbeat"),
        await ann.post("messages", from_agent="bob", message="hello"),
        await ann.post("operations", agent="bob", action="a", resources={"emailId": "1"}),
        await ann.post("budget/reservations", agent="bob", tokens=1),
        await ann.post("budget/usage", agent="bob", tokens=1),
        await ann.post(f"messages/{UNKNOWN_ID}/ack", agent="bob"),
        await ann.post("operations/check", agent="bob", action="a", resources={"emailId": "1"}),
        await ann.post("budget/check", agent="bob", tokens=1),
    ):
        answer.expect(403, "wrong_agent")
    forged = await ann.post("/api/squad", action="orchestrator-message", fromAgent="bob", message="hello")
    assert forged.expect(403)["details"] == {"code": "wrong_agent"}


async def test_agent_cannot_access_objects_of_another_by_id(squad: Squad) -> None:
    bob, ann = squad.bob, squad.ann
    claim = (await bob.post("operations", agent="bob", action="a", resources={"emailId": "1"})).expect(201)
    held = (await bob.post("budget/reservations", agent="bob", tokens=10)).expect(201)
    task = (await bob.post("tasks", title="t", assigned_agent="bob")).expect(201)
    email = {"gmail_message_id": "g", "from_email": "x@example.org", "handled_by": "bob"}
    mail = (await bob.post("emails", **email)).expect(201)
    for answer in (
        await ann.post(f"operations/{claim['id']}/heartbeat"),
        await ann.post(f"operations/{claim['id']}/finish", outcome="cancelled"),
        await ann.post(f"budget/reservations/{held['id']}/settle", tokens_used=10),
        await ann.delete(f"budget/reservations/{held['id']}"),
        await ann.patch(f"tasks/{task['id']}", status="completed"),
        await ann.patch(f"emails/{mail['id']}", status="archived"),
        await ann.get(f"emails/{mail['id']}"),
    ):
        answer.expect(403, "wrong_agent")
    changed = await ann.patch("/api/squad", id=task["id"], status="completed")
    assert changed.expect(403)["details"] == {"code": "wrong_agent"}
    (await bob.post(f"operations/{claim['id']}/finish", outcome="succeeded")).expect(200)
    (await bob.delete(f"budget/reservations/{held['id']}")).expect(200)


async def test_denied_access_is_recorded(squad: Squad) -> None:
    refused = (await squad.ann.post("messages", from_agent="bob", message="hello")).expect(403)
    denied = (await squad.auditor.get(f"events/{refused['position']}")).expect(200)
    assert denied["type"] == "access_denied"
    assert denied["actor"] == f"agent:ann key:{squad.keys['ann'].id}"
    assert denied["data"]["code"] == "wrong_agent"
    assert denied["data"]["command"] == "SendMessage"
    assert denied["data"]["detail"] == refused["detail"]
    assert refused["detail"].endswith("not as 'bob'")
    made = (await squad.auditor.get(f"events/{denied['caused_by']}")).expect(200)
    assert made["stream"] == denied["stream"] == f"key-{squad.keys['ann'].id}"


async def test_changes_to_the_whole_squad_require_an_operator(squad: Squad) -> None:
    for api in (squad.ann, squad.auditor):
        (await api.put("budget", daily_tokens=5)).expect(403, "not_allowed")
        refused = (await api.post("/api/squad", action="orchestrator-shutdown")).expect(403)
        assert refused["details"]["code"] == "not_allowed"
    (await squad.operator.put("budget", daily_tokens=5)).expect(200)
    changed = (await squad.operator.post("/api/squad", action="orchestrator-shutdown")).expect(200)
    event = (await squad.auditor.get(f"events/{changed['position']}")).expect(200)
    assert event["actor"] == f"operator key:{squad.keys['operator'].id}"


async def test_each_command_of_batch_is_authorized(squad: Squad) -> None:
    commands = [
        {"method": "POST", "path": "/api/v1/messages", "body": {"from_agent": "ann", "message": "mine"}},
        {
            "method": "POST",
            "path": "/api/v1/messages",
            "body": {"from_agent": "bob", "message": "not mine"},
        },
        {"method": "PUT", "path": "/api/v1/budget", "body": {"daily_tokens": 5}},
        {"method": "DELETE", "path": "/api/v1/jobs/nightly", "body": {}},
    ]
    results = (await squad.ann.post("batch", commands=commands)).expect(200)["results"]
    assert [result["status"] for result in results] == [201, 403, 403, 403]
    assert [result["body"].get("code") for result in results[1:]] == [
        "wrong_agent",
        "not_allowed",
        "not_allowed",
    ]
    (await squad.auditor.post("batch", commands=commands)).expect(403, "not_allowed")
    whole = (await squad.operator.post("batch", commands=commands)).expect(200)["results"]
    assert [result["status"] for result in whole] == [201, 201, 200, 404]


async def test_idempotency_keys_of_different_agents_are_independent(squad: Squad) -> None:
    headers = {"Idempotency-Key": "run-7"}
    first = (await squad.ann.post("messages", headers, from_agent="ann", message="m")).expect(201)
    again = (await squad.ann.post("messages", headers, from_agent="ann", message="m")).expect(201)
    assert again == first
    other = (await squad.bob.post("messages", headers, from_agent="bob", message="m")).expect(201)
    assert other["id"] != first["id"]
    mismatch = (await squad.ann.post("messages", headers, from_agent="ann", message="n")).expect(409)
    assert "'run-7'" in mismatch["detail"]
    batch = {"commands": [{"method": "POST", "path": "/api/v1/tasks", "body": {"title": "t"}}]}
    (await squad.ann.post("batch", headers, **batch)).expect(409, "idempotency_mismatch")
    headers = {"Idempotency-Key": "run-8"}
    once = (await squad.ann.post("batch", headers, **batch)).expect(200)
    assert (await squad.ann.post("batch", headers, **batch)).body == once
    assert (await squad.bob.post("batch", headers, **batch)).body != once


# What agents may see -------------------------------------------------------------------------------------


async def test_agent_sees_only_messages_that_it_sent_or_received(squad: Squad) -> None:
    async def send(api: Api, sender: str, to: str | None, text: str) -> None:
        (await api.post("messages", from_agent=sender, to_agent=to, message=text)).expect(201)

    await send(squad.ann, "ann", "bob", "ann to bob")
    await send(squad.bob, "bob", None, "bob to all")
    await send(squad.bob, "bob", "eve", "bob to eve")
    await send(squad.operator, "eve", "ann", "eve to ann")

    async def seen(api: Api, path: str, **query: object) -> list[str]:
        body = (await api.get(path, **query)).expect(200)
        return [item["message"] for item in body["items" if "items" in body else "activity"]]

    everything = ["ann to bob", "bob to all", "bob to eve", "eve to ann"]
    assert await seen(squad.auditor, "messages") == everything
    assert await seen(squad.ann, "messages") == ["ann to bob", "bob to all", "eve to ann"]
    assert await seen(squad.ann, "messages", to_agent="eve") == []
    assert sorted(await seen(squad.auditor, "/api/squad")) == everything
    assert sorted(await seen(squad.ann, "/api/squad")) == ["ann to bob", "bob to all", "eve to ann"]
    assert sorted(await seen(squad.ann, "/api/squad", agentName="eve")) == ["eve to ann"]
    assert await seen(squad.ann, "agents/ann/inbox") == ["bob to all", "eve to ann"]
    (await squad.ann.get("agents/bob/inbox")).expect(403, "wrong_agent")
    (await squad.auditor.get("agents/bob/inbox")).expect(200)


async def test_agent_sees_only_emails_that_it_or_nobody_handles(squad: Squad) -> None:
    ids = {}
    for handler in ("ann", "bob", None):
        email = {"gmail_message_id": str(handler), "from_email": "x@example.org", "handled_by": handler}
        logged = await squad.operator.post("emails", **email)
        ids[handler] = logged.expect(201)["id"]

    async def seen(api: Api, **query: object) -> list[str]:
        return [item["id"] for item in (await api.get("emails", **query)).expect(200)["items"]]

    assert await seen(squad.auditor) == [ids["ann"], ids["bob"], ids[None]]
    assert await seen(squad.ann) == [ids["ann"], ids[None]]
    assert await seen(squad.ann, handled_by="bob") == []
    assert await seen(squad.ann, handled_by="ann") == [ids["ann"]]
    (await squad.ann.get(f"emails/{ids['bob']}")).expect(403, "wrong_agent")
    for handler in ("ann", None):
        (await squad.ann.get(f"emails/{ids[handler]}")).expect(200)


async def test_agent_sees_only_its_own_events(squad: Squad) -> None:
    mine = (await squad.ann.post("messages", from_agent="ann", message="mine")).expect(201)["position"]
    other = (await squad.bob.post("messages", from_agent="bob", message="not mine")).expect(201)["position"]

    listed = (await squad.ann.get("events")).expect(200)["items"]
    named = (await squad.ann.get("events", agent="ann")).expect(200)["items"]
    assert listed == named == (await squad.auditor.get("events", agent="ann")).body["items"]
    assert mine in [event["position"] for event in listed]
    (await squad.ann.get("events", agent="bob")).expect(403, "wrong_agent")
    (await squad.ann.get(f"events/{mine}")).expect(200)
    (await squad.ann.get(f"events/{other}")).expect(403, "wrong_agent")
    (await squad.auditor.get(f"events/{other}")).expect(200)
    (await squad.ann.get("events/stream", agent="bob")).expect(403, "wrong_agent")
    async with squad.ann.session.get(
        "/api/v1/events/stream?after=0", headers=squad.ann.headers
    ) as response:
        seen = set()
        async with asyncio.timeout(10):
            async for line in response.content:
                if line.startswith(b"id: "):
                    seen.add(int(line[4:]))
                if max(seen, default=0) >= mine:
                    break
    assert seen <= {event["position"] for event in (await squad.ann.get("events")).body["items"]}


# Creation, use and revocation ----------------------------------------------------------------------------


async def test_keys_are_required_from_the_first_one_until_the_last_is_revoked(database: str) -> None:
    async with running_service(database) as service:
        (await service.api.get("budget")).expect(200)
        key = await make_key(database)
        await eventually(_answers(service.api, 401))
        (await service.api.post("messages", from_agent="ann", message="m")).expect(401, "unauthorized")
        (await service.api.with_key(key.text).get("budget")).expect(200)
        await revoke_key(database, key)
        await eventually(_answers(service.api, 200))


async def test_revoked_key_is_rejected_by_every_process(database: str) -> None:
    """Commands are rejected from the event on, and reads as soon as the process has seen the event."""
    await make_key(database)
    key = await make_key(database)
    async with running_service(database) as one, running_service(database) as other:
        clients = [one.api.with_key(key.text), other.api.with_key(key.text)]
        for client in clients:
            (await client.get("budget")).expect(200)
        position = await revoke_key(database, key)
        # No waiting here: even if a process has not seen the event yet, its appends come after it.
        for client in clients:
            answer = await client.post("messages", from_agent="ann", message="m")
            answer.expect(401, "unauthorized")
            assert answer.headers["WWW-Authenticate"].startswith(CHALLENGE)
        for client in clients:
            await eventually(_answers(client, 401), within_seconds=3)
        async with connected(database) as connection:
            later = await log.read_after(connection, position)
        assert [event for event in later if event.type == "message_sent"] == []


async def test_keys_are_known_after_restart(database: str) -> None:
    """Whether the state is read from the log, as at the first start, or from the tables, as later."""
    gone, kept = await make_key(database), await make_key(database)
    await revoke_key(database, gone)
    for _ in range(2):
        async with running_service(database) as service:
            (await service.api.get("budget")).expect(401, "unauthorized")
            (await service.api.with_key(gone.text).get("budget")).expect(401, "unauthorized")
            api = service.api.with_key(kept.text)
            (await api.get("tasks", min_position=await service.head())).expect(200)


async def test_stream_ends_when_its_key_is_revoked(squad: Squad) -> None:
    async with squad.auditor.session.get(
        "/api/v1/events/stream", headers=squad.auditor.headers
    ) as response:
        assert response.status == 200
        await revoke_key(squad.service.dsn, squad.keys["auditor"])
        async with asyncio.timeout(5):
            await response.content.read()
    answer = await squad.auditor.get("events/stream")
    answer.expect(401, "unauthorized")


async def test_stream_without_a_key_ends_when_the_first_key_is_created(database: str) -> None:
    async with (
        running_service(database) as service,
        service.api.session.get("/api/v1/events/stream") as response,
    ):
        assert response.status == 200
        await make_key(database)
        async with asyncio.timeout(5):
            await response.content.read()


async def test_only_the_first_use_of_a_key_is_recorded(squad: Squad) -> None:
    for api in (squad.auditor, squad.ann):
        await asyncio.gather(*(api.get("budget") for _ in range(5)))

    async def recorded_actors() -> list[str]:
        items = (await squad.operator.get("events", type="key_first_used")).body["items"]
        return sorted(item["actor"] for item in items)

    expected = [
        f"agent:ann key:{squad.keys['ann'].id}",
        f"auditor key:{squad.keys['auditor'].id}",
        f"operator key:{squad.keys['operator'].id}",
    ]

    async def all_recorded() -> bool:
        return await recorded_actors() == expected

    await eventually(all_recorded)
    await asyncio.gather(*(squad.ann.get("budget") for _ in range(5)))
    assert await recorded_actors() == expected


async def test_keys_are_checked_while_database_is_unreachable(
    postgres: PostgresServer, database: str
) -> None:
    async with squad_with_keys(database) as squad:
        with unreachable(postgres, database):
            (await squad.operator.get("budget")).expect(200)
            (await squad.nobody.get("budget")).expect(401, "unauthorized")
            (await squad.ann.put("budget", daily_tokens=5)).expect(403, "not_allowed")


async def test_secrets_of_keys_are_not_in_events_tables_or_metrics(squad: Squad) -> None:
    (await squad.operator.post("messages", from_agent="ann", message="m")).expect(201)
    secrets = [key.text[-64:] for key in squad.keys.values()]
    events = (await squad.auditor.get("events", limit=1000)).body["items"]
    async with connected(squad.service.dsn) as connection:
        cursor = await connection.execute("SELECT to_jsonb(api_keys)::text FROM api_keys")
        rows = await cursor.fetchall()
    assert rows
    shown = f"{events} {rows} {(await squad.operator.get('/metrics')).body}"
    assert not any(secret in shown for secret in secrets)


# Rate limits ---------------------------------------------------------------------------------------------


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let no time pass for the rate limits, until it is undone."""
    with monkeypatch.context() as patch:
        patch.setattr(auth, "monotonic", partial(float, monotonic()))
        yield patch


@pytest.mark.usefixtures("stopped_clock")
async def test_wrong_keys_are_rate_limited_and_valid_ones_still_accepted(squad: Squad) -> None:
    wrong = squad.nobody.with_key("squad_2222222222_" + "0" * 64)
    statuses = [(await wrong.get("budget")).status for _ in range(auth.FAILED_TRIES_PER_MINUTE + 3)]
    assert statuses == [401] * auth.FAILED_TRIES_PER_MINUTE + [429] * 3
    refused = await wrong.get("budget")
    refused.expect(429, "rate_limited")
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    seeds = (await wrong.get("/api/squad")).expect(429)
    assert seeds["details"]["code"] == "rate_limited"
    (await squad.operator.get("budget")).expect(200)
    (await squad.nobody.get("budget")).expect(401, "unauthorized")


async def test_requests_are_rate_limited_per_key(database: str, stopped_clock: pytest.MonkeyPatch) -> None:
    async with squad_with_keys(database, key_requests_per_second=0.5) as squad:
        (await squad.ann.get("budget")).expect(200)
        refused = await squad.ann.get("budget")
        refused.expect(429, "rate_limited")
        assert refused.headers["Retry-After"] in ("1", "2")
        (await squad.bob.get("budget")).expect(200)
        stopped_clock.undo()
        await eventually(_answers(squad.ann, 200))


async def test_streams_are_limited_per_key_and_in_total(database: str) -> None:
    async with squad_with_keys(database, max_streams=3, max_streams_per_key=2) as squad:

        async def open_stream(api: Api) -> Any:
            response = await api.session.get("/api/v1/events/stream", headers=api.headers)
            assert response.status == 200
            return response

        first = [await open_stream(squad.ann) for _ in range(2)]
        (await squad.ann.get("events/stream")).expect(429, "too_many_streams")
        first.append(await open_stream(squad.bob))
        (await squad.operator.get("events/stream")).expect(503, "streams_full")
        for response in first:
            response.close()

        async def free_again() -> bool:
            async with squad.ann.session.get(
                "/api/v1/events/stream", headers=squad.ann.headers
            ) as response:
                return response.status == 200

        await eventually(free_again)


def _answers(api: Api, status: int) -> Any:
    async def answers() -> bool:
        return (await api.get("budget")).status == status

    return answers
