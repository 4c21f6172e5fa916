"""Values that no table could hold are found before they are in the log, which cannot be changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec.structs import asdict

from eventstore import codec
from eventstore.bounds import MAX_STORED_JSON_DEPTH, out_of_bounds
from service.values import MAX_JSON_DEPTH, MAX_TOKENS, check_json
from tests.unit.test_codec import EXAMPLES

if TYPE_CHECKING:
    from eventstore.events import AnyEvent


def example_with(type_: str, **fields: Any) -> AnyEvent:
    """The example event of a type with other values, as if it were read from the log."""
    example = next(event for event in EXAMPLES if event.type == type_)
    kind = codec.EVENT_TYPES[type_]
    return msgspec.convert({**msgspec.to_builtins(asdict(example)), **fields}, kind)


def nested(levels: int) -> Any:
    """JSON that is nested this many levels deep."""
    value: Any = 1
    for level in range(levels):
        value = {"a": value} if level % 2 else [value]
    return value


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.type)
def test_every_example_event_is_within_bounds(event: AnyEvent) -> None:
    assert out_of_bounds(event) is None


@pytest.mark.parametrize(
    ("type_", "fields"),
    [
        ("tokens_used", {"tokens": MAX_TOKENS, "input_tokens": None, "output_tokens": 2**53 - 1}),
        ("tokens_denied", {"remaining": -(2**63)}),
        ("agent_registered", {"priority": -(2**31)}),
        ("tick_buffered", {"tick": "9999-12-31T23:59:59.999999Z"}),
        ("tick_buffered", {"tick": "0001-01-01T00:00:00+00:00"}),
        ("run_started", {"runner": None, "lease_expires_at": None}),
        ("run_started", {"reservation_id": None, "operation_id": None}),
        ("message_sent", {"task_id": "PROJ-1"}),
        (
            "message_sent",
            {"task_id": "\U0001f63a" * 255, "to_agent": "\U0001f63a" * 100, "message": "x" * 9_999},
        ),
        ("policy_set", {"idle_after_minutes": 1_000_000, "offline_after_minutes": 10**9}),
        ("tokens_used", {"task_id": "PROJ-1"}),
        ("message_sent", {"data": {"x": [2**64 - 1, -(2**63), 1e300]}}),
        ("message_sent", {"data": check_json({"a": nested(MAX_JSON_DEPTH - 1)})}),
        ("message_sent", {"data": {str(n): [] for n in range(MAX_STORED_JSON_DEPTH * 2)}}),
        ("request_answered", {"body": {"email": {"payload": {"a": nested(MAX_JSON_DEPTH - 1)}}}}),
    ],
    ids=str,
)
def test_values_that_the_service_accepts_are_within_bounds(type_: str, fields: dict[str, Any]) -> None:
    assert out_of_bounds(example_with(type_, **fields)) is None


@pytest.mark.parametrize(
    ("type_", "fields", "name"),
    [
        ("tokens_used", {"tokens": 2**53}, "tokens"),
        ("tokens_used", {"input_tokens": 2**53}, "input_tokens"),
        ("tokens_settled", {"output_tokens": 2**53}, "output_tokens"),
        ("tokens_denied", {"remaining": -(2**63) - 1}, "remaining"),
        ("agent_registered", {"priority": 2**31}, "priority"),
        ("policy_set", {"agent_limits": {"ada": 1, "bob": 2**64}}, "agent_limits"),
        ("policy_set", {"warning_percents": [80, 2**31]}, "warning_percents"),
        ("policy_set", {"reset_hour": 24}, "reset_hour"),
        ("policy_set", {"reset_hour": -1}, "reset_hour"),
        ("run_finished", {"attempts": 1_001}, "attempts"),
        ("message_sent", {"data": {"x": 2**64}}, "data"),
        ("message_sent", {"data": {"x": [{"y": [-(2**63) - 1]}]}}, "data"),
        ("message_sent", {"data": {"a": nested(MAX_STORED_JSON_DEPTH)}}, "data"),
        ("message_sent", {"data": {"a": nested(400)}}, "data"),
        ("email_received", {"payload": {"x": 2**64}}, "payload"),
        ("request_answered", {"body": {"x": 2**64}}, "body"),
        ("operation_started", {"expires_at": "2026-01-01T00:00:00"}, "expires_at"),
        ("operation_renewed", {"blocks_until": "9999-12-31T23:59:59-14:00"}, "blocks_until"),
        ("tick_buffered", {"tick": "0001-01-01T00:00:00+00:01"}, "tick"),
        ("run_started", {"lease_expires_at": "2026-01-01T00:00:00"}, "lease_expires_at"),
        ("policy_set", {"idle_after_minutes": 1e300}, "idle_after_minutes"),
        ("policy_set", {"conflict_window_seconds": -0.1}, "conflict_window_seconds"),
        ("operation_started", {"ttl_seconds": 1.1e9}, "ttl_seconds"),
        ("message_sent", {"to_agent": "ü" * 1_001}, "to_agent"),
        ("message_sent", {"task_id": "x" * 2_001}, "task_id"),
        ("email_received", {"category": "x" * 2_001}, "category"),
        ("run_started", {"job": "x" * 2_001}, "job"),
        ("tokens_used", {"model": "x" * 2_001}, "model"),
        ("agent_registered", {"agent_id": "ada"}, "agent_id"),
        ("conflict_detected", {"conflict_id": ""}, "conflict_id"),
        ("email_received", {"email_id": "e-1"}, "email_id"),
        ("message_acknowledged", {"message_id": "0198C0DE-0000-7000-8000-00000000000B"}, "message_id"),
        ("operation_expired", {"operation_id": "{0198c0de-0000-7000-8000-00000000000b}"}, "operation_id"),
        ("run_started", {"reservation_id": "0198c0de-0000-7000-8000-00000000000b\n"}, "reservation_id"),
        ("run_finished", {"run_id": "1"}, "run_id"),
        ("task_created", {"task_id": "t-1"}, "task_id"),
        ("subject_forgotten", {"emails": ["e-1"]}, "emails"),
        ("subject_forgotten", {"messages": ["m-1"]}, "messages"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_field_that_is_out_of_bounds_is_named(type_: str, fields: dict[str, Any], name: str) -> None:
    assert out_of_bounds(example_with(type_, **fields)) == name


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"retries": 2**31}, "retries"),
        ({"cron": None, "every_seconds": None}, "cron"),
        ({"cron": "* * * * *", "every_seconds": 60.0}, "cron"),
        ({"cron": None, "every_seconds": 0.05}, "every_seconds"),
    ],
)
def test_field_that_is_out_of_bounds_is_named_inside_a_job_definition(
    fields: dict[str, Any], name: str
) -> None:
    definition = msgspec.to_builtins(example_with("job_defined"))["definition"]
    event = example_with("job_defined", definition={**definition, **fields})
    assert out_of_bounds(event) == f"definition.{name}"
