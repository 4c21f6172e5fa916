"""The models' JSON schemas, for the OpenAPI document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic.json_schema import JsonSchemaMode, models_json_schema

from service.http import event_schemas, webhooks
from service.http.answers import ProblemDetails
from service.http.route import Media
from service.http.seed import SeedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import BaseModel

    from service.http.route import Route, Shape

_REFERENCE = "#/components/schemas/{model}"

_EITHER: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "SetBudget": {"SetDailyTokens": ("daily_tokens",), "SetAgentLimits": ("agent_limits",)},
    "RecordUsage": {
        "RecordTokens": ("tokens",),
        "RecordInputAndOutput": ("input_tokens", "output_tokens"),
    },
    "SettleReservationBody": {
        "SettleTokens": ("tokens_used",),
        "SettleInputAndOutput": ("input_tokens", "output_tokens"),
    },
}
"""The alternative forms of a command or of its body, and the fields that each requires."""


class Schemas:
    """The models' schemas, by name."""

    def __init__(self, routes: Iterable[Route]) -> None:
        models: list[tuple[type[BaseModel], JsonSchemaMode]] = [
            (ProblemDetails, "serialization"),
            (SeedError, "serialization"),
            *((model, "serialization") for model in (*event_schemas.data_models(), *webhooks.MODELS)),
        ]
        for route in routes:
            for answer in route.answers.values():
                if not isinstance(answer, Media):
                    models += [(model, "serialization") for model in models_of(answer)]
            if route.body:
                models += [(model, "validation") for model in models_of(route.body)]
        self._references, definitions = models_json_schema(models, ref_template=_REFERENCE)
        self.definitions: dict[str, Any] = definitions["$defs"]
        for name in _EITHER.keys() & self.definitions.keys():
            self._add_forms(name, _EITHER[name])
        self.definitions["LoggedEvent"]["allOf"] = event_schemas.rules(
            lambda model: self.of(model, "serialization")
        )
        _close_maps(self.definitions)

    def of(self, shape: Shape, mode: JsonSchemaMode) -> dict[str, Any]:
        """Return a reference to a model's schema, or to one of several."""
        references = [dict(self._references[model, mode]) for model in models_of(shape)]
        return references[0] if len(references) == 1 else {"anyOf": references}

    def without(self, model: type[BaseModel], fields: set[str]) -> dict[str, Any]:
        """Return a reference to a model's schema without some of its fields."""
        name = self.of(model, "validation")["$ref"].rpartition("/")[2]
        whole = self.definitions[name]
        schema = {
            **whole,
            "title": f"{name}Body",
            "properties": {key: value for key, value in whole["properties"].items() if key not in fields},
            "required": [key for key in whole.get("required", []) if key not in fields],
        }
        self.definitions[schema["title"]] = schema
        if forms := _EITHER.get(schema["title"]):
            self._add_forms(schema["title"], forms)
        return {"$ref": _REFERENCE.format(model=schema["title"])}

    def remove_defaults(self, reference: Mapping[str, Any]) -> None:
        """Remove the defaults from the schema of a change: a field left out keeps its value."""
        name = reference["$ref"].rpartition("/")[2]
        fields = self.definitions[name]["properties"]
        bare = {field: _without(schema, "default") for field, schema in fields.items()}
        self.definitions[name] = {**self.definitions[name], "properties": bare}

    def _add_forms(self, name: str, variants: Mapping[str, tuple[str, ...]]) -> None:
        """Define each form as a complete schema, which client generators need."""
        whole = self.definitions[name]
        for title, needed in variants.items():
            self.definitions[title] = {
                **whole,
                "title": title,
                "properties": {
                    field: _without_null(schema) if field in needed else schema
                    for field, schema in whole["properties"].items()
                },
                "required": [*whole.get("required", []), *needed],
            }
        references = [{"$ref": _REFERENCE.format(model=title)} for title in variants]
        self.definitions[name] = {
            "title": name,
            "description": whole["description"],
            "anyOf": references,
        }

    def remove_unused(self, unused: set[str]) -> None:
        """Remove schemas that nothing refers to any more."""
        for name in unused:
            self.definitions.pop(name, None)


def _without(schema: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in keys}


def _without_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a nullable field without null."""
    [choice] = [choice for choice in schema["anyOf"] if choice != {"type": "null"}]
    return {**_without(schema, "anyOf", "default"), **choice}


def _close_maps(schema: Any) -> None:
    """Require every key of a map to match its pattern; pydantic's schema only constrains those that do."""
    if isinstance(schema, dict):
        if patterns := schema.pop("patternProperties", None):
            [(pattern, values)] = patterns.items()
            schema["propertyNames"] = {**schema.get("propertyNames", {}), "pattern": pattern}
            schema["additionalProperties"] = values
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            _close_maps(part)


def models_of(shape: Shape) -> tuple[type[BaseModel], ...]:
    """Return the alternatives of a shape."""
    return shape if isinstance(shape, tuple) else (shape,)
