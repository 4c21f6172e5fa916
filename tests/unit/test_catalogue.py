"""The catalogue of events: docs/events.md, and the schemas of events' data in the OpenAPI document."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import orjson
import pytest

from eventstore import catalogue, codec
from service.http.routes import openapi
from tests.unit.examples import EXAMPLES
from tests.unit.job_examples import JOB_EXAMPLES
from tests.unit.key_examples import KEY_EXAMPLES

if TYPE_CHECKING:
    from eventstore.events import AnyEvent

PAGE = Path(__file__).parent.parent.parent / "docs" / "events.md"
EVENTS = (*EXAMPLES, *JOB_EXAMPLES, *KEY_EXAMPLES)
LOGGED_EVENT = jsonschema_rs.Draft202012Validator(
    {"$ref": "#/components/schemas/LoggedEvent", "components": openapi()["components"]}
)


def _name(event: AnyEvent) -> str:
    return event.type


def _logged(event: AnyEvent, **changes: Any) -> dict[str, Any]:
    """An event as the API shows it."""
    return {
        "position": 7,
        "id": "01932b5c-5a3e-7c11-9d0a-4f2f6e1f0a11",
        "stream": event.stream,
        "version": 1,
        "type": event.type,
        "schema_version": event.schema_version,
        "data": orjson.loads(codec.encode(event)),
        "actor": "ada",
        "caused_by": None,
        "correlation_id": "c-1",
        "idempotency_key": None,
        "recorded_at": "2026-01-31T09:00:00Z",
        "hash": "00" * 32,
        **changes,
    }


def test_page_of_events_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == catalogue.page(), (
        "run: python -m eventstore.catalogue > docs/events.md"
    )


@pytest.mark.parametrize("kind", codec.EVENT_TYPES.values(), ids=lambda kind: kind.type)
def test_field_of_an_event_has_a_meaning(kind: type[AnyEvent]) -> None:
    assert [field.name for field in catalogue.fields_of(kind) if not field.meaning] == []


@pytest.mark.parametrize("event", EVENTS, ids=_name)
def test_stream_is_described_as_events_have_it(event: AnyEvent) -> None:
    stream = catalogue.stream_of(type(event))
    for field in catalogue.fields_of(type(event)):
        stream = stream.replace(f"<{field.name}>", str(getattr(event, field.name)))
    assert stream == event.stream


@pytest.mark.parametrize("event", EVENTS, ids=_name)
def test_event_fits_its_schema(event: AnyEvent) -> None:
    assert not list(LOGGED_EVENT.iter_errors(_logged(event)))


@pytest.mark.parametrize("event", EVENTS, ids=_name)
def test_event_does_not_fit_its_schema_when_a_field_is_wrong_or_unknown(event: AnyEvent) -> None:
    data = orjson.loads(codec.encode(event))
    for wrong in (*({**data, name: [[]]} for name in data), {**data, "other": 1}):
        assert not LOGGED_EVENT.is_valid(_logged(event, data=wrong))


def test_event_fits_with_any_data_when_its_type_or_version_is_not_the_one_written_now() -> None:
    [event] = (event for event in EVENTS if event.type == "job_defined")
    for changes in ({"type": "job_praised"}, {"schema_version": 1}, {"schema_version": 3}):
        assert LOGGED_EVENT.is_valid(_logged(event, data={"any": 1}, **changes))
