"""The schemas of events' data, for the OpenAPI document."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model

from eventstore.catalogue import fields_of, is_struct
from eventstore.codec import EVENT_TYPES
from service.http.answers import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from msgspec import Struct
    from pydantic import BaseModel


@cache
def data_model(kind: type[Struct]) -> type[BaseModel]:
    """Return the model of the data of one type of event, or of an object in it."""
    fields: dict[str, Any] = {
        field.name: (
            data_model(field.type) if is_struct(field.type) else field.type,
            Field(default=field.default, description=field.meaning),
        )
        for field in fields_of(kind)
    }
    return create_model(f"{kind.__name__}Data", __base__=Answer, __doc__=kind.__doc__, **fields)


def data_models() -> list[type[BaseModel]]:
    """Return the models of the data of all events."""
    return [data_model(kind) for kind in EVENT_TYPES.values()]


def rules(reference: Callable[[type[BaseModel]], dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the schemas that say which data each type of event has.

    They bind only the types and schema versions that this software writes. The log may have older ones, and
    later software others, so a client that knows a `oneOf` of them would fail on some events.

    Args:
        reference: returns the reference to a model's schema.
    """
    return [
        {
            "if": {
                "properties": {"type": {"const": name}, "schema_version": {"const": kind.schema_version}}
            },
            "then": {"properties": {"data": reference(data_model(kind))}},
        }
        for name, kind in EVENT_TYPES.items()
    ]
