"""How events are encoded, decoded and upcast."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given as for_all

from eventstore import codec
from eventstore.errors import UnknownEventType, UnreadableEvent
from eventstore.events import AnyEvent, JobDefined, OrchestratorStarted, RunFinished, TaskCreated
from eventstore.recorded import Recorded
from tests.unit import strategies
from tests.unit.examples import EXAMPLES as OTHER_EXAMPLES
from tests.unit.job_examples import JOB_EXAMPLES
from tests.unit.key_examples import KEY_EXAMPLES
from tests.unit.stories import START

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = (*OTHER_EXAMPLES, *JOB_EXAMPLES, *KEY_EXAMPLES)
GOLDEN = Path(__file__).parent.parent / "golden" / "events"
"""`<type>.v<schema version>.json`: the stored text and a line feed. Files are only added, never changed."""


def recorded(data: str, type_: str, schema_version: int = 1) -> Recorded:
    return Recorded(
        1, "an id", "a stream", 1, type_, schema_version, data, "x", None, "x", None, START, bytes(32)
    )


def golden_file(kind: type[AnyEvent]) -> Path:
    return GOLDEN / f"{kind.type}.v{kind.schema_version}.json"


def golden_events() -> Iterator[Recorded]:
    for path in sorted(GOLDEN.iterdir()):
        type_, version, _ = path.name.split(".")
        yield recorded(path.read_text(encoding="utf-8").removesuffix("\n"), type_, int(version[1:]))


class TestGoldenFiles:
    @pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.type)
    def test_pin_the_stored_bytes(self, event: AnyEvent) -> None:
        stored = golden_file(type(event)).read_bytes()
        assert codec.encode(event).encode() + b"\n" == stored

    @pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.type)
    def test_decode_to_the_event(self, event: AnyEvent) -> None:
        stored = golden_file(type(event)).read_text(encoding="utf-8").removesuffix("\n")
        assert codec.decode(recorded(stored, event.type, event.schema_version)) == event

    def test_cover_every_kind_of_event(self) -> None:
        assert {type(event) for event in EXAMPLES} == set(codec.EVENT_TYPES.values())
        assert len(EXAMPLES) == len(codec.EVENT_TYPES)

    @pytest.mark.parametrize("stored", list(golden_events()), ids=lambda stored: stored.type)
    def test_can_be_decoded_in_every_version(self, stored: Recorded) -> None:
        assert codec.decode(stored).type == stored.type

    def test_exist_for_every_version(self) -> None:
        names = {path.name for path in GOLDEN.iterdir()}
        assert names == {
            f"{kind.type}.v{version}.json"
            for kind in codec.EVENT_TYPES.values()
            for version in range(1, kind.schema_version + 1)
        }


class TestRoundTrip:
    @for_all(event=strategies.events)
    def test_returns_the_same_event(self, event: AnyEvent) -> None:
        stored = codec.encode(event)
        again = codec.decode(recorded(stored, event.type, event.schema_version))
        assert again == event
        assert codec.encode(again) == stored

    @for_all(event=strategies.events)
    def test_uses_no_control_characters(self, event: AnyEvent) -> None:
        """Exported logs are JSON Lines, and a batch is sent as text separated by control characters."""
        assert not any(character < " " for character in codec.encode(event))


class TestDecoding:
    def test_unknown_type_fails_with_its_name_and_position(self) -> None:
        with pytest.raises(UnknownEventType, match="rockets_launched v1 at position 1"):
            codec.decode(recorded("{}", "rockets_launched"))

    def test_newer_version_fails(self) -> None:
        with pytest.raises(UnknownEventType, match="orchestrator_started v2"):
            codec.decode(recorded("{}", "orchestrator_started", 2))

    @pytest.mark.parametrize(
        "data", ["", "{", "[]", "null", '{"agent": "ann", "surplus": 1}', "{}", '{"agent": 1}']
    )
    def test_data_that_does_not_fit_the_type_fails(self, data: str) -> None:
        with pytest.raises(UnreadableEvent, match="agent_heartbeat_recorded at position 1"):
            codec.decode(recorded(data, "agent_heartbeat_recorded"))

    @pytest.mark.parametrize("name", ["job_defined", "job_removed", "run_finished", "agent_status_changed"])
    @pytest.mark.parametrize("data", ["[]", "null", '"x"', "1", '{"definition": null, "agent": 1}'])
    def test_data_that_does_not_fit_an_earlier_version_fails(self, name: str, data: str) -> None:
        with pytest.raises(UnreadableEvent, match=f"{name} at position 1"):
            codec.decode(recorded(data, name, 1))

    def test_extremely_nested_data_fails(self) -> None:
        data = '{"data":{"a":' + "[" * 100_000 + "]" * 100_000 + "}}"
        with pytest.raises(UnreadableEvent, match="message_sent at position 1"):
            codec.decode(recorded(data, "message_sent"))


class TestUpcasting:
    @pytest.fixture
    def _third_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As if tasks had first had a name, then a title without a priority."""

        def rename(data: dict[str, Any]) -> dict[str, Any]:
            return {"title" if name == "name" else name: value for name, value in data.items()}

        monkeypatch.setattr(TaskCreated, "schema_version", 3)
        monkeypatch.setitem(codec._DECODE, ("task_created", 3), codec._DECODE["task_created", 1])
        monkeypatch.delitem(codec._DECODE, ("task_created", 1))
        monkeypatch.setitem(codec.UPCASTERS, ("task_created", 1), rename)
        monkeypatch.setitem(codec.UPCASTERS, ("task_created", 2), lambda data: {**data, "priority": "low"})

    @pytest.mark.usefixtures("_third_version")
    @pytest.mark.parametrize(
        ("version", "fields"),
        [(1, '"name":"look"'), (2, '"title":"look"'), (3, '"title":"look","priority":"low"')],
    )
    def test_old_versions_are_upcast_step_by_step(self, version: int, fields: str) -> None:
        data = (
            '{"task_id":"t","description":null,"status":"new","assigned_agent":null,"deliverable_url":null,'
            f"{fields}}}"
        )
        assert codec.decode(recorded(data, "task_created", version)) == TaskCreated(
            task_id="t",
            title="look",
            description=None,
            status="new",
            assigned_agent=None,
            priority="low",
            deliverable_url=None,
        )

    @pytest.mark.parametrize(
        ("name", "added"),
        [
            ("job_removed", {"source": "settings"}),
            ("run_skipped", {}),
            ("tokens_settled", {"input_tokens": None, "output_tokens": None, "model": None}),
            ("run_started", {"operation_id": None}),
            ("run_retried", {"operation_id": None}),
            ("run_finished", {"answered": False}),
        ],
    )
    def test_new_fields_are_added_and_the_stored_ones_kept(self, name: str, added: dict[str, Any]) -> None:
        stored = next(item for item in golden_events() if (item.type, item.schema_version) == (name, 1))
        upcast = orjson.loads(codec.encode(codec.decode(stored)))
        assert upcast == {**orjson.loads(stored.data), **added}

    def test_old_job_has_no_resources(self) -> None:
        stored = next(item for item in golden_events() if item.type == "job_defined")
        event = codec.decode(stored)
        assert stored.schema_version == 1
        assert isinstance(event, JobDefined)
        assert event.definition.resources is None

    @pytest.mark.parametrize(
        ("agent", "outcome", "answered"),
        [("ann", "succeeded", True), ("ann", "failed", False), (None, "succeeded", False)],
    )
    def test_old_run_counts_as_answered_when_its_agent_succeeded(
        self, agent: str | None, outcome: str, answered: bool
    ) -> None:
        data = {"run_id": "r", "job": "j", "agent": agent, "outcome": outcome, "attempts": 1}
        stored = orjson.dumps({**data, "reason": None, "tokens_used": None}).decode()
        event = codec.decode(recorded(stored, "run_finished", 1))
        assert isinstance(event, RunFinished)
        assert event.answered is answered

    def test_missing_upcaster_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(OrchestratorStarted, "schema_version", 2)
        monkeypatch.delitem(codec._DECODE, ("orchestrator_started", 1))
        with pytest.raises(UnreadableEvent):
            codec.decode(recorded("{}", "orchestrator_started", 1))


def test_stored_type_names_match_the_class_names() -> None:
    for name, kind in codec.EVENT_TYPES.items():
        assert "".join(word.capitalize() for word in name.split("_")) == kind.__name__
