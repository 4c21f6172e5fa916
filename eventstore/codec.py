"""Encode events to stored text, and decode them.

`encode` decides the bytes that are stored and hashed, so it is pinned by golden files. `decode` looks up
the type, upcasts an older schema version to the current one step by step, and validates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

import msgspec
import orjson

from eventstore.errors import UnknownEventType, UnreadableEvent
from eventstore.events import AnyEvent, Event

if TYPE_CHECKING:
    from eventstore.recorded import AnyRecorded

EVENT_TYPES: dict[str, type[AnyEvent]] = {kind.type: kind for kind in get_args(AnyEvent)}
"""Every known type of event, by its stored name."""

_encoder = msgspec.json.Encoder()
_DECODE = {
    (name, kind.schema_version): msgspec.json.Decoder(kind).decode for name, kind in EVENT_TYPES.items()
}
"""The decoders of each type at its current schema version."""

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]


def _adding(**fields: Any) -> Upcaster:
    return lambda data: {**data, **fields}


def _without_resources(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "definition": {**data["definition"], "resources": None}}


def _answered_if_succeeded(data: dict[str, Any]) -> dict[str, Any]:
    called = data["agent"] is not None
    return {**data, "answered": called and data["outcome"] == "succeeded"}


UPCASTERS: dict[tuple[str, int], Upcaster] = {
    # Version 2 of these only adds a reason.
    ("agent_status_changed", 1): _adding(),
    ("run_skipped", 1): _adding(),
    # Version 2 only adds fields that have a default.
    ("tokens_settled", 1): _adding(),
    ("job_defined", 1): _without_resources,
    # Version 1 did not record who removed it. What the settings removed returns when they name it again.
    ("job_removed", 1): _adding(source="settings"),
    ("run_started", 1): _adding(operation_id=None),
    ("run_retried", 1): _adding(operation_id=None),
    ("run_finished", 1): _answered_if_succeeded,
}
"""Functions that upcast data from (type, schema version) to the next version."""


def encode(event: Event) -> str:
    """Return the stored text: compact JSON, with the fields in the order of the class."""
    return _encoder.encode(event).decode()


def decode(recorded: AnyRecorded) -> AnyEvent:
    """Return the event that a row of the log holds.

    Raises:
        UnknownEventType: the type or its schema version comes from a newer version of the software.
        UnreadableEvent: the data do not match the type and schema version.
    """
    decode_current = _DECODE.get((recorded.type, recorded.schema_version))
    try:
        return decode_current(recorded.data) if decode_current else _decode_older(recorded)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UnreadableEvent(
            f"{recorded.type} at position {recorded.position}", recorded.position
        ) from error


def _decode_older(recorded: AnyRecorded) -> AnyEvent:
    kind = EVENT_TYPES.get(recorded.type)
    if kind is None or recorded.schema_version > kind.schema_version:
        raise UnknownEventType(
            f"{recorded.type} v{recorded.schema_version} at position {recorded.position}", recorded.position
        )
    return msgspec.convert(_upcast(kind, recorded.schema_version, orjson.loads(recorded.data)), kind)


def _upcast(kind: type[AnyEvent], version: int, data: dict[str, Any]) -> dict[str, Any]:
    for step in range(version, kind.schema_version):
        data = UPCASTERS[kind.type, step](data)
    return data
