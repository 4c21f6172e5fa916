"""The export format: pinned by a golden file, read back byte for byte, and validated on import."""

from __future__ import annotations

import gzip
import json
import re
from contextlib import suppress
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume
from hypothesis import given as for_all
from hypothesis import strategies as st
from msgspec import structs

from eventstore import codec, nul, sealing
from eventstore.bounds import MAX_STORED_JSON_DEPTH
from eventstore.chain import hash_of
from eventstore.cloudevents import cloud_event_line
from eventstore.errors import ImportRefused
from eventstore.events import MessageSent
from eventstore.exchange import MAX_LINE_BYTES, end_line, event_line, header_line, key_line
from eventstore.importing import ImportedLog
from eventstore.keys import Key, StoredKey
from eventstore.recorded import EMPTY_LOG, GENESIS_HASH, Head, Recorded
from tests.support.audit import verify_in_plain_python
from tests.unit.test_bounds import nested
from tests.unit.test_chain import golden_log

if TYPE_CHECKING:
    from collections.abc import Iterable

_KEY = Key("01a20000-0000-7000-8000-000000000001", bytes(range(32)))
GOLDEN_EXPORT = Path(__file__).parent.parent / "golden" / "export.jsonl"
"""The export of the golden log when the format was decided. It must stay importable forever."""
_JSON = "application/json"
_DISTANT_DAY = (
    '{"day":"9999-12-31","starts_at":"2026-10-25T00:00:00Z","ends_at":"2026-10-26T00:00:00Z","total":5,'
    '"previous_day":null,"previous_used":0,"previous_total":0,"previous_agents":{}}'
)
_TOO_DEEP = '{"key":"a","fingerprint":"b","status":1,"body":{"a":' + "[" * 9_999 + "]" * 9_999 + "}}"


def _message(id_: str) -> str:
    """The data of the golden message, with another id."""
    return json.dumps({**json.loads(golden_log()[1].data), "message_id": id_})


def exported(log: list[Recorded]) -> bytes:
    """A log as a file."""
    squad = log[0].id if log else None
    end = Head(log[-1].position, log[-1].hash, log[-1].recorded_at) if log else EMPTY_LOG
    return b"".join([header_line(squad, EMPTY_LOG), *map(event_line, log), end_line(len(log), end)])


def imported(lines: Iterable[bytes]) -> list[Recorded]:
    """The events that are imported from lines."""
    incoming = ImportedLog()
    log = [item for item in map(incoming.validate_line, lines) if isinstance(item, Recorded)]
    incoming.finish()
    return log


def rehashed(log: list[Recorded]) -> list[Recorded]:
    """The log with the hashes that its events should have."""
    previous, result = GENESIS_HASH, []
    for recorded in log:
        previous = hash_of(previous, recorded)
        result.append(recorded._replace(hash=previous))
    return result


def refusal(lines: Iterable[bytes]) -> str:
    """Why an import is refused."""
    with pytest.raises(ImportRefused) as refused:
        imported(lines)
    return str(refused.value).removeprefix("nothing was imported: ")


def changed(number: int, **fields: Any) -> list[bytes]:
    """The golden file with other values in a line, whose hash stays as it was."""
    lines = exported(golden_log()).splitlines()
    lines[number - 1] = json.dumps({**json.loads(lines[number - 1]), **fields}).encode()
    return lines


def test_event_more_than_a_year_ahead_is_refused_with_a_workaround() -> None:
    log, before = golden_log(), 3
    incoming = ImportedLog(log[before].recorded_at - timedelta(days=367))
    for line in exported(log[:before]).splitlines()[:-1]:
        incoming.validate_line(line)
    with pytest.raises(ImportRefused, match=rf"more than a year .* export the log with --until {before}$"):
        incoming.validate_line(event_line(log[before]))


class TestFormat:
    def test_export_matches_the_golden_file(self) -> None:
        assert exported(golden_log()) == GOLDEN_EXPORT.read_bytes()

    def test_golden_file_is_imported_unchanged(self) -> None:
        assert imported(BytesIO(GOLDEN_EXPORT.read_bytes())) == golden_log()

    def test_other_key_order_and_line_endings_are_accepted(self) -> None:
        lines = [
            json.dumps(json.loads(line), sort_keys=True) + "\r\n"
            for line in GOLDEN_EXPORT.read_text().splitlines()
        ]
        assert imported(map(str.encode, lines)) == golden_log()

    def test_export_of_an_empty_log_has_two_lines(self) -> None:
        assert len(exported([]).splitlines()) == 2
        assert imported(BytesIO(exported([]))) == []

    @pytest.mark.parametrize("packed", [False, True])
    def test_script_in_the_docs_verifies_an_export(self, tmp_path: Path, *, packed: bool) -> None:
        content = GOLDEN_EXPORT.read_bytes()
        file = tmp_path / ("log.jsonl.gz" if packed else "log.jsonl")
        file.write_bytes(gzip.compress(content) if packed else content)
        last = golden_log()[-1].hash.hex()
        assert verify_in_plain_python(file) == (0, f"4 events hold, up to 4: {last}\n")


class TestScriptInTheDocs:
    """docs/verify_export.py rejects each of these files with one line of output."""

    @pytest.mark.parametrize(
        ("fields", "number"),
        [
            ({"idempotency_key": ""}, 3),
            ({"caused_by": ""}, 2),
            ({"recorded_at": "yesterday"}, 3),
            ({"position": "2"}, 3),
            ({"stream": []}, 3),
            ({"data": "\ud800"}, 3),
            ({"hash": "none"}, 1),
            ({"after": "0"}, 1),
        ],
        ids=str,
    )
    def test_script_rejects_an_invalid_line_by_its_number(
        self, tmp_path: Path, fields: dict[str, Any], number: int
    ) -> None:
        assert _refusal_of_the_script(tmp_path, b"\n".join(changed(number, **fields))).startswith("line ")

    @pytest.mark.parametrize(
        ("content", "name"),
        [
            (b"\xff\xfe", "log"),
            (b"[]", "log"),
            (b"7", "log"),
            (b"[" * 100_000, "log"),
            (b"", "log"),
            (b"no gzip", "log.gz"),
            (gzip.compress(GOLDEN_EXPORT.read_bytes())[:-20], "log.gz"),
            (gzip.compress(b"x" * 1_000)[:12] + b"\xff" * 9, "log.gz"),
        ],
        ids=range(8),
    )
    def test_script_rejects_a_file_that_is_no_export(
        self, tmp_path: Path, content: bytes, name: str
    ) -> None:
        _refusal_of_the_script(tmp_path, content, name)

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"\n".join(changed(1, version=2)), "line 1 is not the header of an export"),
            (exported([]).replace(b"null", b'"%s"' % golden_log()[0].id.encode(), 1), "the header names"),
            (exported(golden_log()) + b"\n", "line 7 follows the end line"),
            (exported(golden_log()) + b"{}\n", "line 7 follows the end line"),
            (exported(golden_log()) + exported(golden_log()), "line 7 follows the end line"),
            (exported(golden_log()).replace(b"\n", b"\n" + exported([]), 1), "line 2 is another header"),
            (
                b"\n".join(changed(1, squad=golden_log()[1].id)),
                f"line 2: the header names another squad: its first event is not {golden_log()[1].id}",
            ),
            (b"\n".join(changed(1, squad=None)), "line 2: the header names another squad"),
            (b"\n".join(changed(6, events=5)), "the last line is missing, or does not match"),
        ],
        ids=[
            "another version",
            "no first event",
            "empty line after the end",
            "after the end",
            "twice",
            "two headers",
            "another squad",
            "no squad",
            "another number",
        ],
    )
    def test_script_rejects_what_the_import_refuses(
        self, tmp_path: Path, content: bytes, says: str
    ) -> None:
        assert _refusal_of_the_script(tmp_path, content).startswith(says)
        refusal(BytesIO(content))

    def test_script_accepts_a_file_that_holds_the_event_of_a_checkpoint(self, tmp_path: Path) -> None:
        log = golden_log()
        file = tmp_path / "log"
        file.write_bytes(exported(log))
        for event in log:
            code, output = verify_in_plain_python(file, str(event.position), event.hash.hex())
            assert (code, output) == (0, f"4 events hold, up to 4: {log[-1].hash.hex()}\n")

    def test_script_rejects_a_file_that_was_cut_off_before_a_checkpoint(self, tmp_path: Path) -> None:
        log = golden_log()
        content, last = exported(log[:3]), log[-1].hash.hex()
        says = _refusal_of_the_script(tmp_path, content, checkpoint=("4", last))
        assert says == "the checkpoint's position 4 is not in the file, which ends at 3\n"

    def test_script_rejects_a_file_that_was_rewritten_before_a_checkpoint(self, tmp_path: Path) -> None:
        log = golden_log()
        forged = rehashed([log[0]._replace(actor="somebody else"), *log[1:]])
        says = _refusal_of_the_script(tmp_path, exported(forged), checkpoint=("3", log[2].hash.hex()))
        assert says == f"position 3 has another hash than the checkpoint: {forged[2].hash.hex()}\n"

    def test_script_reports_a_missing_file(self, tmp_path: Path) -> None:
        code, output = verify_in_plain_python(tmp_path / "nowhere")
        assert (code, output.count("\n")) == (1, 1)
        assert "nowhere cannot be read: [Errno 2] No such file or directory: " in output


def _refusal_of_the_script(
    folder: Path, content: bytes, name: str = "log", checkpoint: tuple[str, ...] = ()
) -> str:
    """The one line with which docs/verify_export.py rejects a file."""
    file = folder / name
    file.write_bytes(content)
    code, output = verify_in_plain_python(file, *checkpoint)
    assert (code, output.count("\n")) == (1, 1), output
    return output


class TestInvalidImport:
    @pytest.mark.parametrize(
        ("number", "fields", "why"),
        [
            (1, {"format": "squad-snapshot"}, "line 1: format: input should be 'squad-log'"),
            (1, {"version": 2}, "line 1: version: input should be 1"),
            (1, {"squad": "me"}, "line 1: squad: string should match pattern"),
            (1, {"squad": golden_log()[1].id}, "line 2: the header names another first event"),
            (1, {"after": 7}, "line 1: the file begins after position 7, an import needs the whole log"),
            (1, {"hash": "1" * 64}, "line 1: the hash before the first event must be all zeros"),
            (1, {"kind": "event"}, "line 1: position: field required"),
            (2, {"kind": "header"}, "line 2: format: field required"),
            (3, {"kind": "secret"}, "line 3: input tag 'secret' found using 'kind' does not match"),
            (3, {"position": 3}, "line 3: position 3 cannot follow position 1"),
            (3, {"position": "2"}, "line 3: position: input should be a valid integer"),
            (3, {"position": 2.0}, "line 3: position: input should be a valid integer"),
            (3, {"position": True}, "line 3: position: input should be a valid integer"),
            (3, {"position": 2**70}, "line 3: position: "),
            (3, {"id": golden_log()[1].id.upper()}, "line 3: id: string should match pattern"),
            (3, {"version": 0}, "line 3: version: input should be greater than or equal to 1"),
            (3, {"schema_version": 0}, "line 3: schema_version: input should be greater than or equal to"),
            (3, {"caused_by": 0}, "line 3: caused_by: input should be greater than or equal to 1"),
            (3, {"actor": None}, "line 3: actor: input should be a valid string"),
            (
                3,
                {"idempotency_key": ""},
                "line 3: idempotency_key: string should have at least 1 character",
            ),
            (3, {"note": 1}, "line 3: note: extra inputs are not permitted"),
            (3, {"recorded_at": "yesterday"}, "line 3: 'yesterday' is not a time like 2026-"),
            (3, {"recorded_at": "2026-13-29T01:00:00.000000Z"}, "line 3: month must be in 1..12"),
            (3, {"recorded_at": "2026-03-29T01:00:00Z"}, "line 3: '2026-03-29T01:00:00Z' is not a time"),
            (3, {"actor": "mallory"}, "line 3: its hash does not match its content"),
            (3, {"data": "{}"}, "line 3: its hash does not match its content"),
            (3, {"hash": golden_log()[1].hash.hex().upper()}, "line 3: its hash does not match"),
            (6, {"events": 5}, "line 6: it says that 5 events end at position 4, and they do not"),
            (6, {"position": 5}, "line 6: it says that 4 events end at position 5, and they do not"),
            (6, {"hash": "0" * 64}, "line 6: it says that 4 events end at position 4, and they do not"),
        ],
        ids=str,
    )
    def test_invalid_line_is_refused_with_its_number(
        self, number: int, fields: dict[str, Any], why: str
    ) -> None:
        assert refusal(changed(number, **fields)).startswith(why)

    @pytest.mark.parametrize(
        ("index", "different", "why"),
        [
            (
                2,
                {"recorded_at": golden_log()[0].recorded_at - timedelta(microseconds=1)},
                "line 4: it is rec",
            ),
            (2, {"caused_by": 3}, "line 4: its cause does not precede it"),
            (
                2,
                {"type": "from_the_future"},
                "line 4: the log holds an event that this version of the softw",
            ),
            (
                2,
                {"schema_version": 9},
                "line 4: the log holds an event that this version of the software doe",
            ),
            (
                1,
                {"data": _message("m-1"), "stream": "message-m-1"},
                "line 3: its message_id is beyond what the tables can hold",
            ),
            (
                2,
                {"data": "[]"},
                "line 4: a stored event does not match its type and schema ver",
            ),
            (
                2,
                {"data": "{"},
                "line 4: a stored event does not match its type and schema ver",
            ),
            (
                2,
                {"stream": "request-another"},
                "line 4: it is in the stream 'request-another', but belongs to 'request-4f9a-key'",
            ),
            (
                2,
                {"data": _TOO_DEEP},
                "line 4: a stored event does not match its type and schema ver",
            ),
            (
                3,
                {"type": "budget_day_reset", "stream": "budget-9999-12-31", "data": _DISTANT_DAY},
                "line 5: it names the day 9999-12-31, more than a year from when it is recorded",
            ),
            (
                3,
                {
                    "type": "budget_day_reset",
                    "stream": "budget-2026-10-25",
                    "data": _DISTANT_DAY.replace("9999-12-31", "2026-10-25").replace(
                        "2026-10-26", "0001-01-02"
                    ),
                },
                "line 5: it names the day 0001-01-02, more than a year from when it is recorded",
            ),
            (
                2,
                {"type": "job_removed", "data": "[]"},
                "line 4: a stored event does not match its type and schema ver",
            ),
        ],
    )
    def test_invalid_event_is_refused_even_if_its_hash_matches(
        self, index: int, different: dict[str, Any], why: str
    ) -> None:
        log = golden_log()
        log[index] = log[index]._replace(**different)
        assert refusal(BytesIO(exported(rehashed(log)))).startswith(why)

    @pytest.mark.parametrize(
        ("inside", "secret", "why"),
        [
            (
                {"data": {"a": nested(MAX_STORED_JSON_DEPTH)}},
                _KEY.secret,
                "its data is beyond what the tables can hold",
            ),
            ({"message": "a\0b"}, _KEY.secret, "it contains U+0000, which no table can hold"),
            ({}, bytes(32), "a stored event does not match its type"),
        ],
        ids=["too deep", "U+0000", "another key"],
    )
    def test_invalid_sealed_event_is_refused_when_its_key_is_imported(
        self, inside: dict[str, Any], secret: bytes, why: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every reader with the key would stop at this event, and the key is in the same file."""
        log = golden_log()
        sent = codec.decode(log[1])
        assert isinstance(sent, MessageSent)
        with monkeypatch.context() as careless:
            careless.setattr(nul, "_contains_nul", lambda _: False)
            data = sealing.seal(structs.replace(sent, **inside), log[1].id, _KEY, b"twelve bytes")
        log[1] = log[1]._replace(data=data)
        header, *rest = exported(rehashed(log)).splitlines(keepends=True)
        key = key_line(StoredKey(_KEY.id, None, secret, log[0].recorded_at))
        assert refusal([header, key, *rest]).startswith(f"line 4: {why}")
        # Without the key, nobody can read it.
        assert len(imported([header, *rest])) == len(log)

    def test_event_in_the_stream_of_an_earlier_version_is_accepted(self) -> None:
        log = golden_log()
        data = json.dumps({"first_event_id": log[0].id, "events": 1})
        log[2] = log[2]._replace(type="append_abandoned", schema_version=1, data=data, stream="log")
        assert len(imported(BytesIO(exported(rehashed(log))))) == len(log)
        log[2] = log[2]._replace(stream="logs")
        assert refusal(BytesIO(exported(rehashed(log)))).startswith("line 4: it is in the stream 'logs'")

    @pytest.mark.parametrize("line", [b"", b"\n", b"  \n"])
    def test_empty_line_is_refused(self, line: bytes) -> None:
        lines = exported(golden_log()).splitlines()
        assert refusal([*lines[:2], line, *lines[2:]]) == "line 3: it is empty"

    @pytest.mark.parametrize(
        "line", [b"{", b"null", b"[]", b"1", b"\xff", b'{"kind":1}', b'{"a":"\\ud800"}']
    )
    def test_line_that_is_no_object_of_an_export_is_refused(self, line: bytes) -> None:
        assert refusal([line]).startswith("line 1: ")

    def test_object_without_kind_is_refused(self) -> None:
        assert refusal([b'{"how": 1}']) == "line 1: it has no kind, as each line of squad export has"

    def test_file_without_header_is_refused(self) -> None:
        lines = exported(golden_log()).splitlines()
        assert refusal(lines[1:]) == "line 1: the header must be the first line, and no other"

    def test_file_with_two_headers_is_refused(self) -> None:
        lines = exported(golden_log()).splitlines()
        assert refusal([lines[0], *lines]) == "line 2: the header must be the first line, and no other"

    def test_line_after_the_end_line_is_refused(self) -> None:
        lines = exported(golden_log()).splitlines()
        assert refusal([*lines, lines[-1]]) == "line 7: it follows the end line"

    @pytest.mark.parametrize("lines", range(6))
    def test_truncated_file_is_refused(self, lines: int) -> None:
        kept = exported(golden_log()).splitlines()[:lines]
        assert refusal(kept) == f"the file is truncated: it has no end line after line {lines}"

    def test_header_that_names_a_first_event_is_refused_without_events(self) -> None:
        lines = [header_line(golden_log()[0].id, EMPTY_LOG), end_line(0, EMPTY_LOG)]
        assert refusal(lines) == "line 2: the header names a first event, and there is none"

    def test_oversized_line_is_refused(self) -> None:
        assert refusal([b" " * MAX_LINE_BYTES + b"{}"]).startswith("line 1: it is longer than 67,108,864")


_FILE = exported(golden_log())
_place = st.integers(0, len(_FILE) - 1)


def _assert_harmless_or_refused(content: bytes) -> None:
    with suppress(ImportRefused):
        assert imported(BytesIO(content)) == golden_log()


class TestDamage:
    @for_all(_place, st.integers(0, 255))
    def test_changed_byte_is_refused_or_harmless(self, place: int, byte: int) -> None:
        assume(_FILE[place] != byte)
        _assert_harmless_or_refused(_FILE[:place] + bytes([byte]) + _FILE[place + 1 :])

    @for_all(_place, st.integers(0, 7))
    def test_flipped_bit_is_refused_or_harmless(self, place: int, bit: int) -> None:
        _assert_harmless_or_refused(_FILE[:place] + bytes([_FILE[place] ^ (1 << bit)]) + _FILE[place + 1 :])

    @for_all(_place, st.integers(1, 300))
    def test_missing_bytes_are_refused_or_harmless(self, place: int, size: int) -> None:
        _assert_harmless_or_refused(_FILE[:place] + _FILE[place + size :])

    @for_all(_place, st.binary(min_size=1, max_size=8))
    def test_extra_bytes_are_refused_or_harmless(self, place: int, more: bytes) -> None:
        _assert_harmless_or_refused(_FILE[:place] + more + _FILE[place:])

    @for_all(st.permutations(_FILE.splitlines()))
    def test_reordered_lines_are_refused(self, lines: list[bytes]) -> None:
        assume(lines != _FILE.splitlines())
        refusal(lines)


class TestCloudEvents:
    def test_cloud_events_have_the_attributes_of_the_specification(self) -> None:
        squad = golden_log()[0].id
        for recorded in golden_log():
            event = json.loads(cloud_event_line(squad, recorded))
            assert (event["specversion"], event["id"], event["source"]) == (
                "1.0",
                recorded.id,
                f"urn:uuid:{squad}",
            )
            assert (event["type"], event["subject"]) == (f"squad.{recorded.type}", recorded.stream)
            assert (event["datacontenttype"], event["data"]) == (_JSON, json.loads(recorded.data))
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event["time"])
            assert event["position"] == str(recorded.position)
            assert ("causedby" in event) == (recorded.caused_by is not None)
            assert ("idempotencykey" in event) == (recorded.idempotency_key is not None)

    def test_attributes_are_strings_with_legal_names(self) -> None:
        for recorded in golden_log():
            event = json.loads(cloud_event_line(recorded.id, recorded))
            del event["data"]
            for name, value in event.items():
                assert re.fullmatch(r"[a-z0-9]{1,20}", name)
                assert isinstance(value, str)
                assert value

    def test_each_cloud_event_is_one_line_whatever_the_layout_of_its_data(self) -> None:
        spaced = golden_log()[0]._replace(data='{\r\n  "a": "b\\n",\n "n": 1.0e400 }')
        line = cloud_event_line(spaced.id, spaced)
        assert line.count(b"\n") == line.count(b"\r") + 1 == 1
        assert b'"data":{    "a": "b\\n",  "n": 1.0e400 }' in line
