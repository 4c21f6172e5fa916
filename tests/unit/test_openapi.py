"""The OpenAPI document says what the route table does, whole and without slips."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import pytest
from pydantic import TypeAdapter

from service.http.openapi_text import EXAMPLES
from service.http.route import Media, Route
from service.http.routes import ROUTES, openapi
from service.http.scope import Scope
from service.job_spec import JobSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENT = openapi()
OPERATIONS = [
    (method, path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
WITH_BODY = [route for route in ROUTES if route.body]


def _everywhere(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in the document."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _everywhere(part)


def _name(route: Route) -> str:
    return f"{route.method} {route.path}"


def test_it_lists_exactly_the_routes_of_the_table() -> None:
    documented = [(method.upper(), path) for method, path, _ in OPERATIONS]
    assert sorted(documented) == sorted((route.method, route.plain_path) for route in ROUTES)
    assert len(documented) == len(set(documented))


def test_every_operation_has_a_name_of_its_own_and_a_summary() -> None:
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(names) == len(set(names))
    assert all(operation["summary"] and operation["tags"] for _, _, operation in OPERATIONS)


def test_every_tag_is_explained_and_used() -> None:
    used = {tag for _, _, operation in OPERATIONS for tag in operation["tags"]}
    assert used == {tag["name"] for tag in DOCUMENT["tags"]}


def test_every_reference_leads_somewhere_and_every_schema_is_referred_to() -> None:
    references = {item["$ref"] for item in _everywhere(DOCUMENT) if "$ref" in item}
    names = {reference.removeprefix("#/components/schemas/") for reference in references}
    assert names == set(DOCUMENT["components"]["schemas"])


def test_every_schema_is_one() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for name in schemas:
        whole = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
        jsonschema_rs.Draft202012Validator(whole)
        jsonschema_rs.meta.validate(schemas[name])


def test_every_parameter_of_a_path_is_described() -> None:
    for _, path, operation in OPERATIONS:
        described = [item for item in operation.get("parameters", ()) if item["in"] == "path"]
        assert {item["name"] for item in described} == set(re.findall(r"\{(\w+)\}", path))
        for item in described:
            assert item["required"]
            assert item["schema"].keys() & {"pattern", "maximum"}, (path, item)


def test_every_parameter_is_described_in_words() -> None:
    for _, path, operation in OPERATIONS:
        for item in operation.get("parameters", ()):
            assert item.get("description"), (path, item["name"])


def test_no_schema_is_named_after_a_module() -> None:
    """As pydantic does where two models have one name."""
    assert [name for name in DOCUMENT["components"]["schemas"] if "__" in name] == []


def test_every_read_of_the_api_waits_for_a_position_where_it_is_told_to() -> None:
    for method, path, operation in OPERATIONS:
        if method == "get" and path.startswith("/api/v1/"):
            assert "min_position" in {item["name"] for item in operation["parameters"]}, path
            assert "not_yet" in operation["responses"]["504"]["description"], path


def test_every_answer_says_what_it_is() -> None:
    for _, path, operation in OPERATIONS:
        assert any(status.startswith("2") for status in operation["responses"]), path
        for status, response in operation["responses"].items():
            assert response["description"], (path, status)
            assert response["content"], (path, status)


def test_every_operation_says_whether_it_takes_a_key_and_what_happens_without() -> None:
    assert DOCUMENT["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    scopes = {(route.method.lower(), route.plain_path): route.scope for route in ROUTES}
    for method, path, operation in OPERATIONS:
        is_public = scopes[method, path] is Scope.PUBLIC
        assert operation["security"] == ([] if is_public else [{"key": []}]), path
        assert operation["description"]
        assert ("401" in operation["responses"]) == (not is_public)
        assert ("403" in operation["responses"]) == (not is_public)
        assert "rate_limited" in operation["responses"]["429"]["description"]
        if not is_public:
            assert "WWW-Authenticate" in operation["responses"]["401"]["headers"]


def test_writes_take_keys_and_tell_when_to_come_back() -> None:
    for method, path, operation in OPERATIONS:
        names = {item["name"] for item in operation.get("parameters", ())}
        changes_nothing = method == "get" or path.endswith(("/check", "/whatif"))
        assert ("Idempotency-Key" in names) == (not changes_nothing), (method, path)
        if not changes_nothing:
            assert "Retry-After" in operation["responses"]["503"]["headers"]


def test_what_is_not_json_has_its_own_content_type() -> None:
    for path, content_type in (
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("/api/v1/events/stream", "text/event-stream"),
    ):
        assert list(DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]) == [content_type]


def test_what_needs_a_key_needs_the_state_that_has_the_keys() -> None:
    for _, path, operation in OPERATIONS:
        told = operation["responses"].get("503", {"description": ""})["description"]
        assert ("`unavailable`" in told) == bool(operation["security"]), path


def test_problems_are_problem_details_but_for_the_seeds_interface() -> None:
    for _, path, operation in OPERATIONS:
        for status, response in operation["responses"].items():
            if status < "400" or path == "/readyz":
                continue
            expected = "application/json" if path == "/api/squad" else "application/problem+json"
            assert list(response["content"]) == [expected], (path, status)


def test_fields_of_the_path_are_not_asked_for_in_the_body() -> None:
    for _, path, operation in OPERATIONS:
        if "requestBody" not in operation or "{" not in path:
            continue
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = DOCUMENT["components"]["schemas"][reference.rpartition("/")[2]]
        assert not {
            name for name in schema["properties"] if name.endswith("_id") and name in schema["required"]
        }


def _schema(name: str) -> jsonschema_rs.Draft202012Validator:
    whole = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return jsonschema_rs.Draft202012Validator(whole)


def test_a_field_that_a_change_leaves_out_has_no_default() -> None:
    """Or clients that are made of the document send it, and set anew what nobody wanted to change."""
    changes = [operation for method, _, operation in OPERATIONS if method == "patch"]
    assert len(changes) == 3
    for operation in changes:
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = DOCUMENT["components"]["schemas"][reference.rpartition("/")[2]]
        assert not [name for name, field in schema["properties"].items() if "default" in field]
    assert DOCUMENT["components"]["schemas"]["CreateTask"]["properties"]["status"]["default"] == "new"


def test_of_several_ways_to_send_a_command_each_is_a_whole_schema() -> None:
    """Clients that are made of the document know either properties, or choices beside them."""
    for item in _everywhere(DOCUMENT):
        assert "anyOf" not in item or "properties" not in item
    for name, fitting, not_fitting in (
        ("SetBudget", {"daily_tokens": 5}, {}),
        ("SetBudget", {"daily_tokens": None, "agent_limits": {"ada": 5}}, {"daily_tokens": None}),
        ("RecordUsage", {"agent": "ada", "tokens": 5, "model": "m"}, {"tokens": 5}),
        (
            "RecordUsage",
            {"agent": "ada", "input_tokens": 5, "output_tokens": 5},
            {"agent": "ada", "input_tokens": 5, "output_tokens": None},
        ),
    ):
        assert _schema(name).is_valid(fitting)
        assert not _schema(name).is_valid(not_fitting)
        assert not _schema(name).is_valid({**fitting, "other": 5})


@pytest.mark.parametrize(
    ("every", "fits"),
    [(0.1, True), (2, True), ("5m", True), ("1.5 h", True), (0.05, False), ("5 w", False)],
)
def test_an_interval_is_said_to_be_seconds_or_text_and_how_long(every: object, fits: bool) -> None:
    assert _schema("JobSpec").is_valid({"task": "status_update", "every": every}) == fits
    assert _fits(JobSpec, {"task": "status_update", "every": every}) == fits


def test_no_keyword_of_a_schema_is_one_of_pythons() -> None:
    strange = {"ge", "le", "gt", "lt", "min_length", "max_length", "multiple_of"}
    assert not [item for item in _everywhere(DOCUMENT) if strange & item.keys()]


@pytest.mark.parametrize("route", WITH_BODY, ids=_name)
def test_every_body_has_an_example_that_fits(route: Route) -> None:
    example = dict(EXAMPLES[route.method, route.path])
    bound = route.write.bound if route.write else {}
    path = dict.fromkeys(bound.values(), "00000000-0000-7000-8000-000000000000")
    models = route.body if isinstance(route.body, tuple) else (route.body,)
    fitting = [model for model in models if model and _fits(model, {**example, **path})]
    assert fitting, example


def _fits(model: type[Any], value: object) -> bool:
    try:
        TypeAdapter(model).validate_python(value, strict=True)
    except ValueError:
        return False
    return True


def test_no_example_is_left_over() -> None:
    assert EXAMPLES.keys() == {(route.method, route.path) for route in WITH_BODY}


def test_a_jobs_time_zone_is_said_to_be_the_squads_where_none_is_named() -> None:
    schema = DOCUMENT["components"]["schemas"]["JobSpec"]
    zone = schema["properties"]["timezone"]
    assert "default" not in zone
    assert "timezone" not in schema.get("required", ())
    assert "the squad's own" in zone["description"]


def test_what_cannot_be_batched_says_so() -> None:
    alone = {
        path for _, path, operation in OPERATIONS if "Not allowed in a batch" in operation["description"]
    }
    assert alone == {"/api/v1/subjects/forget"}


def test_only_streams_figures_and_the_document_itself_have_no_model() -> None:
    without = {
        route.path for route in ROUTES for answer in route.answers.values() if isinstance(answer, Media)
    }
    assert without == {"/api/v1/events/stream", "/metrics", "/openapi.json"}
