"""The OpenAPI 3.1 document, made from the route table and the models that the code itself uses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

from service.http.answers import ProblemDetails, SeedError
from service.http.problems import CONTENT_TYPE, STATUS, TITLES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from service.http.route import Route

_REF = "#/components/schemas/{model}"
_ON_EVERY_ROUTE = ("bad_request", "stopping", "unavailable", "internal_error")
_WITH_PARAMETERS = ("validation_failed",)
_WITH_BODY = ("malformed_json", "payload_too_large", "unsupported_media_type")
_WRITES = ("queue_full", "outcome_unknown", "idempotency_mismatch")


def document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The document for these routes."""
    routes = list(routes)
    models: list[tuple[type[BaseModel], Any]] = [
        (ProblemDetails, "serialization"),
        (SeedError, "serialization"),
    ]
    for route in routes:
        models += [(model, "serialization") for model in route.answers.values() if model]
        if route.body:
            models.append((route.body, "validation"))
    refs, definitions = models_json_schema(models, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation = _operation(route, refs, definitions["$defs"])
        paths.setdefault(_plain(route.path), {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Squad orchestrator",
            "version": version,
            "description": "Schedules, connects, budgets and audits a squad of AI agents.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }


def _plain(path: str) -> str:
    """The path without its parameters' patterns."""
    return re.sub(r"\{(\w+):(?:[^{}]|\{[^{}]*\})*\}", r"{\1}", path)


def _operation(route: Route, refs: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "tags": [route.tag],
        "operationId": _operation_id(route),
        "parameters": _parameters(route),
        "responses": _responses(route, refs),
    }
    if route.body:
        operation["requestBody"] = _request_body(route, refs, definitions)
    elif route.method == "POST" and route.path == "/api/squad":
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    return {key: value for key, value in operation.items() if value}


def _operation_id(route: Route) -> str:
    words = re.findall(r"\w+", _plain(route.path).removeprefix("/api/v1"))
    return "_".join([route.method.lower(), *words])


def _parameters(route: Route) -> list[dict[str, Any]]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": TypeAdapter(kind).json_schema()}
        for name, kind in route.path_types.items()
    ]
    if route.query:
        schema = route.query.model_json_schema(by_alias=True)
        for name, field in schema["properties"].items():
            parameters.append(_query_parameter(name, field, schema.get("$defs", {})))
    if route.write:
        key = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[\\x21-\\x7e]+$"}
        parameters.append({"name": "Idempotency-Key", "in": "header", "required": False, "schema": key})
    return parameters


def _query_parameter(name: str, field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    # A parameter that is left out is how a query says null.
    choices = [choice for choice in field.get("anyOf", [field]) if choice.get("type") != "null"]
    schema = choices[0] if len(choices) == 1 else {"anyOf": choices}
    schema = {key: value for key, value in schema.items() if key not in ("title", "description", "default")}
    parameter = {"name": name, "in": "query", "required": False, "schema": schema}
    if schema.get("type") == "array":
        parameter |= {"style": "form", "explode": False}
    if definitions:
        parameter["schema"] = {**schema, "$defs": definitions}
    if "description" in field:
        parameter["description"] = field["description"]
    return parameter


def _request_body(route: Route, refs: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    assert route.body
    reference = refs[route.body, "validation"]
    bound = set(route.write.bound.values()) if route.write else set()
    if not bound:
        return {"required": True, "content": {"application/json": {"schema": reference}}}
    # The command has the fields of the path as well; the body has not.
    whole = definitions[reference["$ref"].rpartition("/")[2]]
    schema = {**whole, "properties": {k: v for k, v in whole["properties"].items() if k not in bound}}
    schema["required"] = [name for name in whole.get("required", []) if name not in bound]
    schema["title"] = f"{whole['title']}Body"
    definitions[schema["title"]] = schema
    content = {"application/json": {"schema": {"$ref": _REF.format(model=schema["title"])}}}
    return {"required": bool(schema["required"]), "content": content}


def _responses(route: Route, refs: Any) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, model in route.answers.items():
        response: dict[str, Any] = {"description": _describe(model, status)}
        if model:
            response["content"] = {"application/json": {"schema": refs[model, "serialization"]}}
        responses[str(status)] = response
    seed = route.path == "/api/squad"
    kind, model = ("application/json", SeedError) if seed else (CONTENT_TYPE, ProblemDetails)
    for status, codes in _problems(route).items():
        status = 400 if seed and status == 422 else status
        text = "; ".join(f"`{code}`: {TITLES[code]}" for code in codes)
        content = {kind: {"schema": refs[model, "serialization"]}}
        response = responses.setdefault(str(status), {"description": text, "content": content})
        if text not in response["description"]:
            response["description"] += f"; {text}"
            response.setdefault("content", content)
    return responses


def _problems(route: Route) -> dict[int, list[str]]:
    codes = [*route.problems, *_ON_EVERY_ROUTE]
    if route.query or route.path_types or route.body or route.path == "/api/squad":
        codes += _WITH_PARAMETERS
    if route.method in ("POST", "PUT", "PATCH", "DELETE"):
        codes += _WITH_BODY
    if route.write or route.path == "/api/squad":
        codes += _WRITES
    if route.path == "/api/squad":
        codes += ("task_not_found",)
    by_status: dict[int, list[str]] = {}
    for code in sorted(set(codes)):
        by_status.setdefault(STATUS[code], []).append(code)
    return by_status


def _describe(model: type[BaseModel] | None, status: int) -> str:
    text = (model.__doc__ or "").strip().splitlines() if model else []
    return text[0] if text else {200: "As the summary says", 503: "Not now"}.get(status, "See the summary")
