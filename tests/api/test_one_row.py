"""One run, one operation, one message, by its id: as in its list, and no more to be seen than there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.api.client import running_service
from tests.api.inputs import UNKNOWN_ID
from tests.support.keys import make_key
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.api.client import Answer, Api

KINDS = ("run", "operation", "message")


async def _begin(api: Api, kind: str) -> dict[str, Any]:
    """Begin one thing of a kind, and return the answer."""
    if kind == "run":
        (await api.put("jobs/poll", task="token_monitor", every="300d")).expect(200)
        return (await api.post("jobs/poll/run")).expect(202)
    if kind == "operation":
        return (await api.post("operations", agent="ada", action="a", resources={"n": "1"})).expect(201)
    return (await api.post("messages", from_agent="ada", message="hello")).expect(201)


async def _both(api: Api, kind: str, id_: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the thing as it is shown by itself and in the list."""
    alone = (await api.get(f"{kind}s/{id_}")).expect(200)
    [listed] = [item for item in (await api.get(f"{kind}s")).expect(200)["items"] if item["id"] == id_]
    return alone, listed


@pytest.mark.parametrize("kind", ["operation", "message"])
async def test_one_row_is_shown_as_in_its_list_when_its_id_is_given(api: Api, kind: str) -> None:
    begun = await _begin(api, kind)
    alone, listed = await _both(api, kind, begun["id"])
    # Only a message that is shown by itself says who has acknowledged it.
    alone.pop("acknowledgements", None)
    assert alone == listed
    assert alone["position"] == begun["position"]


async def test_a_run_is_shown_when_it_has_begun_and_when_it_has_ended(api: Api) -> None:
    begun = await _begin(api, "run")
    first = (await api.get(f"runs/{begun['id']}", min_position=begun["position"])).expect(200)
    assert (first["id"], first["job"], first["manual"]) == (begun["id"], "poll", True)

    async def has_ended() -> bool:
        return bool((await api.get(f"runs/{begun['id']}")).expect(200)["status"] == "succeeded")

    await eventually(has_ended)
    alone, listed = await _both(api, "run", begun["id"])
    assert alone == listed
    assert alone["fencing_token"] == first["fencing_token"]


async def test_an_operation_is_still_shown_when_it_has_ended(api: Api) -> None:
    begun = await _begin(api, "operation")
    (await api.post(f"operations/{begun['id']}/finish", outcome="failed")).expect(200)
    shown = (await api.get(f"operations/{begun['id']}")).expect(200)
    assert (shown["state"], shown["outcome"]) == ("finished", "failed")


@pytest.mark.parametrize("kind", KINDS)
async def test_one_row_is_not_found_when_its_id_is_unknown(api: Api, kind: str) -> None:
    (await api.get(f"{kind}s/{UNKNOWN_ID}")).expect(404, f"{kind}_not_found")
    fault = (await api.get(f"{kind}s/7")).expect(422, "validation_failed")
    assert fault["errors"] == [{"field": "id", "message": "must be a UUID"}]


@pytest.mark.parametrize("kind", KINDS)
async def test_one_row_answers_head_when_get_does(api: Api, kind: str) -> None:
    begun = await _begin(api, kind)
    for id_, status in ((begun["id"], 200), (UNKNOWN_ID, 404)):
        async with api.session.head(f"/api/v1/{kind}s/{id_}") as response:
            assert (response.status, await response.read()) == (status, b"")


async def test_checking_a_claim_is_not_an_operation_when_it_is_asked_for_with_get(api: Api) -> None:
    async with api.session.get("/api/v1/operations/check") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")


async def test_an_agent_sees_one_message_only_when_its_list_shows_it(database: str) -> None:
    ann = (await make_key(database, "agent", "ann")).text
    operator = (await make_key(database)).text
    async with running_service(database) as service:
        everything, own = service.api.with_key(operator), service.api.with_key(ann)
        sent = {}
        for sender, to in (("ann", "bob"), ("bob", None), ("bob", "ann"), ("bob", "eve"), ("eve", "bob")):
            answer = await everything.post("messages", from_agent=sender, to_agent=to, message="m")
            sent[sender, to] = answer.expect(201)["id"]
        in_list = {item["id"] for item in (await own.get("messages")).expect(200)["items"]}
        answers = {id_: await own.get(f"messages/{id_}") for id_ in sent.values()}
        assert {id_ for id_, answer in answers.items() if _is_shown(answer)} == in_list
        assert len(in_list) == 3
        for id_ in sent.values():
            (await everything.get(f"messages/{id_}")).expect(200)


def _is_shown(answer: Answer) -> bool:
    if answer.status != 200:
        answer.expect(403, "wrong_agent")
    return answer.status == 200


async def test_an_agent_sees_operations_and_runs_of_others_when_their_lists_show_them(
    database: str,
) -> None:
    ann = (await make_key(database, "agent", "ann")).text
    operator = (await make_key(database)).text
    async with running_service(database) as service:
        for kind in ("operation", "run"):
            begun = await _begin(service.api.with_key(operator), kind)
            alone, listed = await _both(service.api.with_key(ann), kind, begun["id"])
            assert alone["id"] == listed["id"]
