"""The hash chain, checked against its published formula by an independent implementation."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from eventstore import chain
from eventstore.errors import ChainBroken
from eventstore.recorded import GENESIS_HASH, Recorded

GOLDEN_LOG = Path(__file__).parent.parent / "golden" / "chain.jsonl"
"""A short log with its hashes, one event per line."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def golden_lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in GOLDEN_LOG.read_text(encoding="utf-8").splitlines()]


def golden_log() -> list[Recorded]:
    return [
        Recorded(
            **{
                **line,
                "recorded_at": datetime.fromisoformat(line["recorded_at"]),
                "hash": bytes.fromhex(line["hash"]),
            }
        )
        for line in golden_lines()
    ]


def hash_by_the_formula(previous: bytes, line: dict[str, Any]) -> str:
    moment = datetime.strptime(line["recorded_at"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    since_1970 = moment - datetime.fromtimestamp(0, UTC)
    microseconds = (since_1970.days * 86_400 + since_1970.seconds) * 1_000_000 + since_1970.microseconds
    envelope = [
        str(line["position"]),
        line["id"],
        line["stream"],
        str(line["version"]),
        line["type"],
        str(line["schema_version"]),
        line["actor"],
        "" if line["caused_by"] is None else str(line["caused_by"]),
        line["correlation_id"],
        line["idempotency_key"] or "",
        str(microseconds),
    ]
    digest = hashlib.sha256()
    digest.update(previous)
    for field in envelope:
        digest.update(field.encode("utf-8") + b"\n")
    digest.update(line["data"].encode("utf-8"))
    return digest.hexdigest()


class TestGoldenLog:
    def test_hashes_match_the_formula(self) -> None:
        previous = bytes(32)
        for line in golden_lines():
            assert hash_by_the_formula(previous, line) == line["hash"]
            previous = bytes.fromhex(line["hash"])

    def test_golden_log_is_verified(self) -> None:
        log = golden_log()
        assert chain.verify(GENESIS_HASH, log) == log[-1].hash

    def test_rest_of_the_log_is_verified_from_a_known_hash(self) -> None:
        first, *rest = golden_log()
        assert chain.verify(first.hash, rest) == rest[-1].hash

    def test_empty_log_ends_with_the_hash_it_begins_with(self) -> None:
        assert chain.verify(GENESIS_HASH, []) == GENESIS_HASH


class TestTampering:
    @pytest.mark.parametrize("index", range(4))
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("position", 99),
            ("id", "0198c0de-0000-7000-8000-0000000000ff"),
            ("stream", "agent-mallory"),
            ("version", 99),
            ("type", "agent_removed"),
            ("schema_version", 2),
            ("data", "[]"),
            ("actor", "agent:mallory"),
            ("caused_by", 77),
            ("caused_by", 0),
            ("correlation_id", "another request"),
            ("idempotency_key", "another-key"),
            ("recorded_at", _EPOCH),
            ("hash", bytes(32)),
        ],
    )
    def test_changed_field_is_detected_at_its_position(self, index: int, field: str, value: Any) -> None:
        log = golden_log()
        log[index] = log[index]._replace(**{field: value})
        with pytest.raises(ChainBroken) as broken:
            chain.verify(GENESIS_HASH, log)
        assert broken.value.position == log[index].position

    def test_missing_event_is_detected(self) -> None:
        log = golden_log()
        del log[1]
        with pytest.raises(ChainBroken):
            chain.verify(GENESIS_HASH, log)

    def test_changed_order_is_detected(self) -> None:
        first, second, *rest = golden_log()
        with pytest.raises(ChainBroken):
            chain.verify(GENESIS_HASH, [second, first, *rest])

    def test_added_white_space_in_the_data_is_detected(self) -> None:
        first, *rest = golden_log()
        with pytest.raises(ChainBroken):
            chain.verify(GENESIS_HASH, [first._replace(data=first.data + " "), *rest])


@for_all(seconds=st.integers(-(10**9), 10**10), fraction=st.integers(0, 999_999))
def test_microseconds_are_exact_where_floats_would_not_be(seconds: int, fraction: int) -> None:
    moment = _EPOCH + timedelta(seconds=seconds, microseconds=fraction)
    assert chain.microseconds(moment) == seconds * 1_000_000 + fraction
