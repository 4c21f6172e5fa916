"""The OpenAPI document describes the route table completely, and is itself valid."""

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


def _all_objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in the document."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _all_objects(part)


def _route_id(route: Route) -> str:
    return f"{route.method} {route.path}"


def test_document_lists_exactly_the_routes_of_the_table() -> None:
    documented = [(method.upper(), path) for method, path, _ in OPERATIONS]
    assert sorted(documented) == sorted((route.method, route.plain_path) for route in ROUTES)
    assert len(documented) == len(set(documented))


def test_every_operation_has_a_unique_id_a_summary_and_tags() -> None:
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(names) == len(set(names))
    assert all(operation["summary"] and operation["tags"] for _, _, operation in OPERATIONS)


def test_declared_tags_are_exactly_those_in_use() -> None:
    used = {tag for _, _, operation in OPERATIONS for tag in operation["tags"]}
    assert used == {tag["name"] for tag in DOCUMENT["tags"]}


def test_every_reference_resolves_and_every_schema_is_referenced() -> None:
    references = {item["$ref"] for item in _all_objects(DOCUMENT) if "$ref" in item}
    names = {reference.removeprefix("#/components/schemas/") for reference in references}
    assert names == set(DOCUMENT["components"]["schemas"])


def test_every_schema_is_valid_json_schema() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for name in schemas:
        whole = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
        jsonschema_rs.Draft202012Validator(whole)
        jsonschema_rs.meta.validate(schemas[name])


def test_every_path_parameter_is_declared_required_and_bounded() -> None:
    for _, path, operation in OPERATIONS:
        described = [item for item in operation.get("parameters", ()) if item["in"] == "path"]
        assert {item["name"] for item in described} == set(re.findall(r"\{(\w+)\}", path))
        for item in described:
            assert item["required"]
            assert item["schema"].keys() & {"pattern", "maximum"}, (path, item)


def test_every_parameter_has_a_description() -> None:
    for _, path, operation in OPERATIONS:
        for item in operation.get("parameters", ()):
            assert item.get("description"), (path, item["name"])


def test_no_schema_is_named_after_a_module() -> None:
    """Pydantic does that when two models have the same name."""
    assert [name for name in DOCUMENT["components"]["schemas"] if "__" in name] == []


def test_every_read_documents_min_position_and_its_timeout() -> None:
    for method, path, operation in OPERATIONS:
        if method == "get" and path.startswith("/api/v1/"):
            assert "min_position" in {item["name"] for item in operation["parameters"]}, path
            assert "not_yet" in operation["responses"]["504"]["description"], path


def test_every_response_has_a_description_and_content() -> None:
    for _, path, operation in OPERATIONS:
        assert any(status.startswith("2") for status in operation["responses"]), path
        for status, response in operation["responses"].items():
            assert response["description"], (path, status)
            assert response["content"], (path, status)


def test_every_operation_documents_whether_it_needs_a_key_and_how_it_is_refused() -> None:
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


def test_only_writes_take_an_idempotency_key_and_they_document_retry_after() -> None:
    for method, path, operation in OPERATIONS:
        names = {item["name"] for item in operation.get("parameters", ())}
        changes_nothing = method == "get" or path.endswith(("/check", "/whatif"))
        assert ("Idempotency-Key" in names) == (not changes_nothing), (method, path)
        if not changes_nothing:
            assert "Retry-After" in operation["responses"]["503"]["headers"]
        replayed = {
            status
            for status, response in operation["responses"].items()
            if "Idempotent-Replayed" in response["headers"]
        }
        assert bool(replayed) == (not changes_nothing and path != "/api/v1/batch"), (method, path)
        if path == "/api/v1/operations" and method == "post":
            assert replayed == {"201", "409"}


def test_responses_that_are_not_json_have_their_own_content_type() -> None:
    for path, content_type in (
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("/api/v1/events/stream", "text/event-stream"),
    ):
        assert list(DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]) == [content_type]


def test_only_operations_that_need_a_key_document_unavailable() -> None:
    for _, path, operation in OPERATIONS:
        description = operation["responses"].get("503", {"description": ""})["description"]
        assert ("`unavailable`" in description) == bool(operation["security"]), path


def test_errors_are_problem_details_except_in_the_seeds_interface() -> None:
    for _, path, operation in OPERATIONS:
        for status, response in operation["responses"].items():
            if status < "400" or path == "/readyz":
                continue
            expected = "application/json" if path == "/api/squad" else "application/problem+json"
            assert list(response["content"]) == [expected], (path, status)


def test_path_fields_are_not_required_in_the_body() -> None:
    for _, path, operation in OPERATIONS:
        if "requestBody" not in operation or "{" not in path:
            continue
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        for form in _resolved(body).get("anyOf", [body]):
            schema = _resolved(form)
            assert not {
                name for name in schema["properties"] if name.endswith("_id") and name in schema["required"]
            }


def _resolved(reference: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["components"]["schemas"][reference["$ref"].rpartition("/")[2]]
    return found


def _schema(name: str) -> jsonschema_rs.Draft202012Validator:
    whole = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return jsonschema_rs.Draft202012Validator(whole)


def test_fields_of_a_patch_have_no_defaults() -> None:
    """Generated clients would send the default, and reset a field that nobody wanted to change."""
    patches = [operation for method, _, operation in OPERATIONS if method == "patch"]
    assert len(patches) == 3
    for operation in patches:
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = DOCUMENT["components"]["schemas"][reference.rpartition("/")[2]]
        assert not [name for name, field in schema["properties"].items() if "default" in field]
    assert DOCUMENT["components"]["schemas"]["CreateTask"]["properties"]["status"]["default"] == "new"


def test_each_alternative_form_of_a_command_is_a_complete_schema() -> None:
    """Client generators support properties or alternatives, but not both in one schema."""
    for item in _all_objects(DOCUMENT):
        assert "anyOf" not in item or "properties" not in item
    for name, valid, invalid in (
        ("SetBudget", {"daily_tokens": 5}, {}),
        ("SetBudget", {"daily_tokens": None, "agent_limits": {"ada": 5}}, {"daily_tokens": None}),
        ("RecordUsage", {"agent": "ada", "tokens": 5, "model": "m"}, {"tokens": 5}),
        (
            "RecordUsage",
            {"agent": "ada", "input_tokens": 5, "output_tokens": 5},
            {"agent": "ada", "input_tokens": 5, "output_tokens": None},
        ),
        ("SettleReservationBody", {"tokens_used": 5, "model": "m"}, {"model": "m"}),
        ("SettleReservationBody", {"input_tokens": 5, "output_tokens": 5}, {"input_tokens": 5}),
    ):
        assert _schema(name).is_valid(valid)
        assert not _schema(name).is_valid(invalid)
        assert not _schema(name).is_valid({**valid, "other": 5})


@pytest.mark.parametrize(
    ("every", "is_valid"),
    [(0.1, True), (2, True), ("5m", True), ("1.5 h", True), (0.05, False), ("5 w", False)],
)
def test_schema_and_model_accept_the_same_intervals(every: object, is_valid: bool) -> None:
    assert _schema("JobSpec").is_valid({"task": "status_update", "every": every}) == is_valid
    assert _is_valid(JobSpec, {"task": "status_update", "every": every}) == is_valid


def test_no_schema_has_a_keyword_of_pydantic() -> None:
    pydantic_keywords = {"ge", "le", "gt", "lt", "min_length", "max_length", "multiple_of"}
    assert not [item for item in _all_objects(DOCUMENT) if pydantic_keywords & item.keys()]


@pytest.mark.parametrize("route", WITH_BODY, ids=_route_id)
def test_every_body_has_a_valid_example(route: Route) -> None:
    example = dict(EXAMPLES[route.method, route.path])
    bound = route.write.bound if route.write else {}
    path = dict.fromkeys(bound.values(), "00000000-0000-7000-8000-000000000000")
    models = route.body if isinstance(route.body, tuple) else (route.body,)
    valid = [model for model in models if model and _is_valid(model, {**example, **path})]
    assert valid, example


def _is_valid(model: type[Any], value: object) -> bool:
    try:
        TypeAdapter(model).validate_python(value, strict=True)
    except ValueError:
        return False
    return True


def test_every_example_belongs_to_a_route_with_a_body() -> None:
    assert EXAMPLES.keys() == {(route.method, route.path) for route in WITH_BODY}


def test_job_without_a_time_zone_is_documented_to_use_the_squads() -> None:
    schema = DOCUMENT["components"]["schemas"]["JobSpec"]
    zone = schema["properties"]["timezone"]
    assert "default" not in zone
    assert "timezone" not in schema.get("required", ())
    assert "the squad's own" in zone["description"]


def test_token_of_a_run_is_documented_not_to_be_that_of_its_calls() -> None:
    token = DOCUMENT["components"]["schemas"]["Run"]["properties"]["fencing_token"]
    assert token["type"] == "integer"
    assert "never changes. The agent's calls carry another token" in token["description"]


def test_only_forgetting_is_documented_as_not_allowed_in_a_batch() -> None:
    not_in_batches = {
        path for _, path, operation in OPERATIONS if "Not allowed in a batch" in operation["description"]
    }
    assert not_in_batches == {"/api/v1/subjects/forget"}


def test_only_streams_metrics_and_the_document_have_no_response_model() -> None:
    without_model = {
        route.path for route in ROUTES for answer in route.answers.values() if isinstance(answer, Media)
    }
    assert without_model == {"/api/v1/events/stream", "/metrics", "/openapi.json"}
