"""The OpenAPI 3.1 document, generated from the route table and the models that the code itself uses."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from service.http.answers import ProblemDetails
from service.http.openapi_text import DESCRIPTION, EXAMPLES, KEYS_OF_SCOPE, PATH_PARAMETERS, TAGS
from service.http.problems import CONTENT_TYPE, KINDS
from service.http.route import Media
from service.http.schemas import Schemas, models_of
from service.http.scope import Scope
from service.http.seed import SeedError
from service.http.webhooks import webhooks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from service.http.route import Route, Shape

SEED_PATH = "/api/squad"

_ON_EVERY_ROUTE = ("bad_request", "internal_error", "rate_limited")
_WITH_PARAMETERS = ("validation_failed",)
_WITH_BODY = ("malformed_json", "payload_too_large", "unsupported_media_type", "request_timeout")
_WITH_A_KEY = ("unauthorized", "not_allowed", "misdirected", "unavailable")
_WRITES = ("queue_full", "outcome_unknown", "idempotency_mismatch")
_RETRYABLE = frozenset({409, 429, 503})

_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A request repeated with the same key and body gets the first answer again, with the"
    " header Idempotent-Replayed (except in a batch): it says what was true then, so a claim in it may have"
    " been lost since. With another"
    " body it is refused. Keys never expire. A refusal that is in the log, such as that of a claim or of"
    " tokens, is an answer too: to try again later, use another key. A request that leaves no trace in the"
    " log, such as one with a wrong field, does not use up its key.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[\\x21-\\x7e]+$"},
}
_CORRELATION = {
    "name": "X-Correlation-Id",
    "in": "header",
    "required": False,
    "description": "The caller's own id for this request, carried by its events and log lines.",
    "schema": {"type": "string"},
}
_LAST_EVENT_ID = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "Resume after this position, in preference to `after`; browsers send it by themselves.",
    "schema": {"type": "string", "pattern": "^[0-9]{1,19}$"},
}
_CORRELATION_HEADER = {
    "X-Correlation-Id": {
        "description": "The id that this request's events and log lines carry.",
        "schema": {"type": "string"},
    }
}
_SECURITY_SCHEMES = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key, as `squad keys create` shows it. A squad without keys needs none.",
    }
}
_CHALLENGE_HEADER = {
    "WWW-Authenticate": {"description": "How to authenticate.", "schema": {"type": "string"}}
}
_REPLAYED_HEADER = {
    "Idempotent-Replayed": {
        "description": "`true` if an earlier request with the same Idempotency-Key got this answer"
        " first; it says what was true then. Otherwise absent.",
        "schema": {"const": "true"},
    }
}
_RETRY_HEADER = {
    "Retry-After": {
        "description": "How many seconds to wait before a retry, if known.",
        "schema": {"type": "integer", "minimum": 1},
    }
}


def document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """Return the document for these routes."""
    routes = list(routes)
    schemas = Schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.plain_path, {})[route.method.lower()] = _operation(route, schemas)
    schemas.remove_unused({route.body.__name__ for route in routes if _bound(route) and route.body})  # type: ignore[union-attr]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Squad orchestrator",
            "version": version,
            "description": DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "The service that this document was loaded from."}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "webhooks": webhooks(schemas),
        "components": {
            "schemas": dict(sorted(schemas.definitions.items())),
            "securitySchemes": _SECURITY_SCHEMES,
        },
    }


def _operation(route: Route, schemas: Schemas) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "description": _description(route),
        "tags": [route.tag],
        "operationId": route.name,
        "parameters": _parameters(route),
        "responses": _responses(route, schemas),
    }
    if route.body:
        operation["requestBody"] = _request_body(route, schemas)
    shown = {key: value for key, value in operation.items() if value}
    return {**shown, "security": [] if route.scope is Scope.PUBLIC else [{"key": []}]}


def _description(route: Route) -> str:
    text = KEYS_OF_SCOPE[route.scope]
    return (
        f"{text} Not allowed in a batch: {route.not_batchable_because}."
        if route.not_batchable_because
        else text
    )


def _changes_something(route: Route) -> bool:
    return route.method != "GET" and not route.path.endswith(("/check", "/whatif"))


def _is_seed(route: Route) -> bool:
    return route.path == SEED_PATH


def _bound(route: Route) -> set[str]:
    return set(route.write.bound.values()) if route.write else set()


# Requests -----------------------------------------------------------------------------------------


def _parameters(route: Route) -> list[dict[str, Any]]:
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": PATH_PARAMETERS[name],
            "schema": TypeAdapter(kind).json_schema(),
        }
        for name, kind in route.path_types.items()
    ]
    if route.query:
        schema = route.query.model_json_schema(by_alias=True)
        for name, field in schema["properties"].items():
            parameters.append(_query_parameter(name, field, schema.get("$defs", {})))
    if _changes_something(route):
        parameters.append(_KEY)
    parameters.append(_CORRELATION)
    if route.path.endswith("/stream"):
        parameters.append(_LAST_EVENT_ID)
    return parameters


def _query_parameter(name: str, field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    # A query expresses null by omitting the parameter.
    choices = [choice for choice in field.get("anyOf", [{}]) if choice.get("type") != "null"]
    whole = {key: value for key, value in field.items() if key not in ("anyOf", "title", "description")}
    schema = {**whole, **choices[0]} if len(choices) == 1 else {**whole, "anyOf": choices}
    if schema.get("default", ...) is None:
        del schema["default"]
    parameter = {"name": name, "in": "query", "required": False, "schema": schema}
    if schema.get("type") == "array":
        parameter |= {"style": "form", "explode": False}
    if definitions:
        parameter["schema"] = {**schema, "$defs": definitions}
    if "description" in field:
        parameter["description"] = field["description"]
    return parameter


def _request_body(route: Route, schemas: Schemas) -> dict[str, Any]:
    assert route.body
    bound = _bound(route)
    # The command also has the path parameters as fields; the body does not.
    schema = (
        schemas.without(models_of(route.body)[0], bound) if bound else schemas.of(route.body, "validation")
    )
    if route.method == "PATCH":
        schemas.remove_defaults(schema)
    named = schemas.definitions.get(schema.get("$ref", "").rpartition("/")[2])
    required = named is None or bool(named.keys() & {"anyOf"} or named.get("required"))
    content = {"schema": schema, "example": EXAMPLES[route.method, route.path]}
    return {"required": required, "content": {"application/json": content}}


# Responses ---------------------------------------------------------------------------------------


def _responses(route: Route, schemas: Schemas) -> dict[str, Any]:
    responses = {str(status): _answer(shape, schemas) for status, shape in route.answers.items()}
    kind, model = ("application/json", SeedError) if _is_seed(route) else (CONTENT_TYPE, ProblemDetails)
    for status, codes in problems(route).items():
        text = "; ".join(f"`{code}`: {KINDS[code].title}" for code in codes)
        response = responses.setdefault(str(status), {"description": "", "content": {}})
        response["description"] = "; ".join(filter(None, (response["description"], text)))
        response["content"].setdefault(kind, {"schema": schemas.of(model, "serialization")})
        if status in _RETRYABLE:
            response["headers"] = _RETRY_HEADER
        if status == HTTPStatus.UNAUTHORIZED:
            response["headers"] = _CHALLENGE_HEADER
    # Each result of a batch is replayed by itself, and has no headers.
    if _changes_something(route) and route.name != "send_batch":
        for status in {*route.answers, *(KINDS[code].status for code in route.problems)}:
            response = responses[str(status)]
            response["headers"] = {**response.get("headers", {}), **_REPLAYED_HEADER}
    for response in responses.values():
        response["headers"] = {**response.get("headers", {}), **_CORRELATION_HEADER}
    return dict(sorted(responses.items()))


def _answer(shape: Shape | Media, schemas: Schemas) -> dict[str, Any]:
    if isinstance(shape, Media):
        schema = {"type": "object"} if shape.content_type == "application/json" else {"type": "string"}
        return {"description": shape.description, "content": {shape.content_type: {"schema": schema}}}
    text = " Or: ".join((model.__doc__ or "").strip().splitlines()[0] for model in models_of(shape))
    return {
        "description": text,
        "content": {"application/json": {"schema": schemas.of(shape, "serialization")}},
    }


def problems(route: Route) -> Mapping[int, list[str]]:
    """Return the codes of all problems that a route may answer with, by status."""
    codes = [*route.problems, *_ON_EVERY_ROUTE]
    if route.scope is not Scope.PUBLIC:
        codes += _WITH_A_KEY
    if route.scope is Scope.ACT:
        codes.append("wrong_agent")
    if not route.while_stopping:
        codes.append("stopping")
    if route.query or route.path_types or route.body or _is_seed(route):
        codes += _WITH_PARAMETERS
    if route.method != "GET":
        codes += _WITH_BODY
    if _changes_something(route):
        codes += _WRITES
    by_status: dict[int, list[str]] = {}
    for code in sorted(set(codes)):
        status = 400 if _is_seed(route) and code == "validation_failed" else KINDS[code].status
        by_status.setdefault(status, []).append(code)
    return by_status
