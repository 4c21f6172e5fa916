"""What generators of clients make of the OpenAPI document: names, types and the address."""

from __future__ import annotations

import re

from service.http import answers
from service.http.problems import KINDS
from service.http.routes import ROUTES, openapi

DOCUMENT = openapi()


def test_operation_is_named_with_a_verb_and_a_noun_of_its_own() -> None:
    names = [operation["operationId"] for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert [name for name in names if not re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", name)] == []
    assert len(names) == len(set(names)) == len(ROUTES)


def test_operation_is_named_after_its_command_when_the_route_names_none() -> None:
    names = {(route.method, route.path): route.name for route in ROUTES}
    assert names["POST", "/api/v1/operations"] == "start_operation"
    assert names["POST", "/api/v1/messages/{id}/ack"] == "acknowledge_message"
    assert names["PUT", "/api/v1/jobs/{name}"] == "define_job"


def test_page_is_named_after_its_items() -> None:
    for model in (answers.Task, answers.Message, answers.Job):
        assert f"{model.__name__}Page" in DOCUMENT["components"]["schemas"]


def test_schema_of_problems_lists_every_code() -> None:
    listed, anything = DOCUMENT["components"]["schemas"]["ProblemDetails"]["properties"]["code"]["anyOf"]
    assert anything == {"type": "string"}
    assert listed["enum"] == sorted(KINDS)


def test_operation_names_the_codes_that_it_answers_with() -> None:
    answered = DOCUMENT["paths"]["/api/v1/operations"]["post"]["responses"]
    named = {
        status: re.findall("`([a-z_]+)`: ", answer["description"]) for status, answer in answered.items()
    }
    assert named["409"] == ["conflict", "idempotency_mismatch"]
    assert named["403"] == ["not_allowed", "wrong_agent"]


def test_paths_are_relative_to_where_the_document_is_served() -> None:
    assert [server["url"] for server in DOCUMENT["servers"]] == ["/"]
