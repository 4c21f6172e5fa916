"""The call that agents receive, against its description in the OpenAPI document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonschema_rs
import pytest

from service.http.routes import openapi
from service.scheduling.email_work import CLASSIFY_ENDPOINT
from tests.api.client import running_service
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.agents import Agents, Call

DOCUMENT = openapi()
CALL = DOCUMENT["webhooks"]["agent_call"]["post"]
WORKER = {"role": "test", "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}


def _validator(content: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    schema = content["content"]["application/json"]["schema"]
    return jsonschema_rs.Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def _check(call: Call, *fields: str) -> None:
    """Check that a call has the described headers and fields, of which these are optional."""
    assert not list(_validator(CALL["requestBody"]).iter_errors(call.payload))
    described = DOCUMENT["components"]["schemas"]["AgentCall"]
    assert call.payload.keys() == {*described["required"], *fields}
    assert described["properties"].keys() >= call.payload.keys()
    assert {item["name"] for item in CALL["parameters"] if item["name"] not in call.headers} == set()


async def test_agent_is_called_as_the_document_describes(database: str, agents: Agents) -> None:
    async with running_service(database, agents_url=agents.url, agents={"worker": WORKER}) as service:
        api = service.api
        (await api.put("jobs/work", agent="worker", endpoint="/work", every="300d")).expect(200)
        (await api.put("jobs/sort", agent="worker", task="email_classify", every="300d")).expect(200)
        (await api.post("emails", gmail_message_id="g-1", from_email="a@example.org")).expect(201)
        for job in ("work", "sort"):
            (await api.post(f"jobs/{job}/run")).expect(202)
        await eventually(lambda: agents.called("/work") and agents.called(CLASSIFY_ENDPOINT))
    _check(agents.called("/work")[0])
    _check(agents.called(CLASSIFY_ENDPOINT)[0], "email_id")


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        ({}, True),
        ({"tokens_used": 7, "found": 3}, True),
        ({"usage": {"input_tokens": 3, "output_tokens": 4}}, True),
        ({"tokens_used": -1}, False),
        ({"usage": {"input_tokens": "3"}}, False),
    ],
)
def test_answer_of_an_agent_fits_its_schema_when_its_tokens_can_be_counted(answer: Any, fits: bool) -> None:
    assert _validator(CALL["responses"]["2XX"]).is_valid(answer) == fits
