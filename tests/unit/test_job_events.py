"""How events about jobs are stored: pinned for ever by golden files, one for each kind and version."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventstore import codec
from eventstore.events import AnyEvent
from eventstore.events import jobs as vocabulary
from eventstore.recorded import Recorded
from tests.unit.job_examples import JOB_EXAMPLES
from tests.unit.support import START

GOLDEN = Path(__file__).parent.parent / "golden" / "events"


def golden_text(kind: type[AnyEvent]) -> str:
    return (GOLDEN / f"{kind.type}.v{kind.schema_version}.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("event", JOB_EXAMPLES, ids=lambda event: event.type)
def test_golden_files_pin_the_stored_bytes(event: AnyEvent) -> None:
    assert codec.encode(event) + "\n" == golden_text(type(event))


@pytest.mark.parametrize("event", JOB_EXAMPLES, ids=lambda event: event.type)
def test_golden_files_are_read_back_as_the_event(event: AnyEvent) -> None:
    stored = Recorded(
        1,
        "an id",
        event.stream,
        1,
        event.type,
        event.schema_version,
        golden_text(type(event)).removesuffix("\n"),
        "x",
        None,
        "x",
        None,
        START,
        bytes(32),
    )
    assert codec.decode(stored) == event


def test_golden_files_cover_every_kind_of_event_about_jobs() -> None:
    kinds = {kind for kind in codec.EVENT_TYPES.values() if kind.__module__ == vocabulary.__name__}
    assert {type(event) for event in JOB_EXAMPLES} == kinds
