"""The log as lines: pinned to the letter, read back to the letter, and nothing else is taken."""

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
from tests.support.audit import verdict_in_plain_python
from tests.unit.test_bounds import nested
from tests.unit.test_chain import golden_log

if TYPE_CHECKING:
    from collections.abc import Iterable

_KEY = Key("01a20000-0000-7000-8000-000000000001", bytes(range(32)))
GOLDEN_EXPORT = Path(__file__).parent.parent / "golden" / "export.jsonl"
"""What an export of the golden log was when the format was decided; it can be imported for ever."""
_JSON = "application/json"
_DAY_TO_COME = (
    '{"day":"9999-12-31","starts_at":"2026-10-25T00:00:00Z","ends_at":"2026-10-26T00:00:00Z","total":5,'
    '"previous_day":null,"previous_used":0,"previous_total":0,"previous_agents":{}}'
)
_TOO_DEEP = '{"key":"a","fingerprint":"b","status":1,"body":{"a":' + "[" * 9_999 + "]" * 9_999 + "}}"


def _message(id_: str) -> str:
    """What the golden message says, of another id."""
    return json.dumps({**json.loads(golden_log()[1].data), "message_id": id_})


def exported(log: list[Recorded]) -> bytes:
    """The file of a log."""
    squad = log[0].id if log else None
    end = Head(log[-1].position, log[-1].hash, log[-1].recorded_at) if log else EMPTY_LOG
    return b"".join([header_line(squad, EMPTY_LOG), *map(event_line, log), end_line(len(log), end)])


def taken(lines: Iterable[bytes]) -> list[Recorded]:
    """What comes in."""
    arriving = ImportedLog()
    log = [item for item in map(arriving.validate_line, lines) if isinstance(item, Recorded)]
    arriving.finish()
    return log


def hashed(log: list[Recorded]) -> list[Recorded]:
    """The log with the hashes that its events should have."""
    previous, result = GENESIS_HASH, []
    for recorded in log:
        previous = hash_of(previous, recorded)
        result.append(recorded._replace(hash=previous))
    return result


def refusal(lines: Iterable[bytes]) -> str:
    """Why a file is refused."""
    with pytest.raises(ImportRefused) as refused:
        taken(lines)
    return str(refused.value).removeprefix("nothing was imported: ")


def changed(number: int, **fields: Any) -> list[bytes]:
    """The golden file with other values in a line, which bears no new hash."""
    lines = exported(golden_log()).splitlines()
    lines[number - 1] = json.dumps({**json.loads(lines[number - 1]), **fields}).encode()
    return lines


def test_what_a_clock_recorded_that_was_more_than_a_year_ahead_is_refused_with_a_way_out() -> None:
    log, before = golden_log(), 3
    arriving = ImportedLog(log[before].recorded_at - timedelta(days=367))
    for line in exported(log[:before]).splitlines()[:-1]:
        arriving.validate_line(line)
    with pytest.raises(ImportRefused, match=rf"more than a year .* export the log with --until {before}$"):
        arriving.validate_line(event_line(log[before]))


class TestTheFormat:
    def test_is_what_it_was(self) -> None:
        assert exported(golden_log()) == GOLDEN_EXPORT.read_bytes()

    def test_comes_back_to_the_letter(self) -> None:
        assert taken(BytesIO(GOLDEN_EXPORT.read_bytes())) == golden_log()

    def test_may_be_laid_out_otherwise(self) -> None:
        lines = [
            json.dumps(json.loads(line), sort_keys=True) + "\r\n"
            for line in GOLDEN_EXPORT.read_text().splitlines()
        ]
        assert taken(map(str.encode, lines)) == golden_log()

    def test_of_an_empty_log_has_two_lines(self) -> None:
        assert len(exported([]).splitlines()) == 2
        assert taken(BytesIO(exported([]))) == []

    @pytest.mark.parametrize("packed", [False, True])
    def test_is_checked_by_plain_python(self, tmp_path: Path, *, packed: bool) -> None:
        content = GOLDEN_EXPORT.read_bytes()
        file = tmp_path / ("log.jsonl.gz" if packed else "log.jsonl")
        file.write_bytes(gzip.compress(content) if packed else content)
        last = golden_log()[-1].hash.hex()
        assert verdict_in_plain_python(file) == (0, f"4 events hold, up to 4: {last}\n")


class TestWhatPlainPythonRefuses:
    """With one line, whatever file it is shown."""

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
    def test_a_line_that_no_export_has(self, tmp_path: Path, fields: dict[str, Any], number: int) -> None:
        assert _told_in_plain_python(tmp_path, b"\n".join(changed(number, **fields))).startswith("line ")

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
    def test_a_file_that_is_no_export(self, tmp_path: Path, content: bytes, name: str) -> None:
        _told_in_plain_python(tmp_path, content, name)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        code, words = verdict_in_plain_python(tmp_path / "nowhere")
        assert (code, words.count("\n")) == (1, 1)
        assert "nowhere cannot be read: [Errno 2] No such file or directory: " in words


def _told_in_plain_python(folder: Path, content: bytes, name: str = "log") -> str:
    """The one line with which a file is turned away."""
    file = folder / name
    file.write_bytes(content)
    code, words = verdict_in_plain_python(file)
    assert (code, words.count("\n")) == (1, 1), words
    return words


class TestWhatIsNotAWholeLog:
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
    def test_is_refused_with_its_line(self, number: int, fields: dict[str, Any], why: str) -> None:
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
                {"type": "budget_day_reset", "stream": "budget-9999-12-31", "data": _DAY_TO_COME},
                "line 5: it names the day 9999-12-31, more than a year from when it is recorded",
            ),
            (
                3,
                {
                    "type": "budget_day_reset",
                    "stream": "budget-2026-10-25",
                    "data": _DAY_TO_COME.replace("9999-12-31", "2026-10-25").replace(
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
    def test_is_refused_even_if_its_hashes_fit(
        self, index: int, different: dict[str, Any], why: str
    ) -> None:
        log = golden_log()
        log[index] = log[index]._replace(**different)
        assert refusal(BytesIO(exported(hashed(log)))).startswith(why)

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
    def test_is_sealed_and_not_fit_to_be_read(
        self, inside: dict[str, Any], secret: bytes, why: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever has the keys would stop there, and they come in the same file."""
        log = golden_log()
        sent = codec.decode(log[1])
        assert isinstance(sent, MessageSent)
        with monkeypatch.context() as careless:
            careless.setattr(nul, "_contains_nul", lambda _: False)
            data = sealing.seal(structs.replace(sent, **inside), log[1].id, _KEY, b"twelve bytes")
        log[1] = log[1]._replace(data=data)
        header, *rest = exported(hashed(log)).splitlines(keepends=True)
        key = key_line(StoredKey(_KEY.id, None, secret, log[0].recorded_at))
        assert refusal([header, key, *rest]).startswith(f"line 4: {why}")
        # Without its key nobody ever reads it.
        assert len(taken([header, *rest])) == len(log)

    def test_is_not_one_that_was_filed_elsewhere_by_an_earlier_version(self) -> None:
        log = golden_log()
        data = json.dumps({"first_event_id": log[0].id, "events": 1})
        log[2] = log[2]._replace(type="append_abandoned", schema_version=1, data=data, stream="log")
        assert len(taken(BytesIO(exported(hashed(log))))) == len(log)
        log[2] = log[2]._replace(stream="logs")
        assert refusal(BytesIO(exported(hashed(log)))).startswith("line 4: it is in the stream 'logs'")

    @pytest.mark.parametrize("line", [b"", b"\n", b"  \n"])
    def test_is_an_empty_line(self, line: bytes) -> None:
        lines = exported(golden_log()).splitlines()
        assert refusal([*lines[:2], line, *lines[2:]]) == "line 3: it is empty"

    @pytest.mark.parametrize(
        "line", [b"{", b"null", b"[]", b"1", b"\xff", b'{"kind":1}', b'{"a":"\\ud800"}']
    )
    def test_is_what_is_no_object_of_ours(self, line: bytes) -> None:
        assert refusal([line]).startswith("line 1: ")

    def test_is_an_object_of_others(self) -> None:
        assert refusal([b'{"how": 1}']) == "line 1: it has no kind, as each line of squad export has"

    def test_is_a_file_without_a_header(self) -> None:
        lines = exported(golden_log()).splitlines()
        assert refusal(lines[1:]) == "line 1: the header must be the first line, and no other"

    def test_is_a_file_with_two_headers(self) -> None:
        lines = exported(golden_log()).splitlines()
        assert refusal([lines[0], *lines]) == "line 2: the header must be the first line, and no other"

    def test_is_a_file_that_goes_on_after_its_end(self) -> None:
        lines = exported(golden_log()).splitlines()
        assert refusal([*lines, lines[-1]]) == "line 7: it follows the end line"

    @pytest.mark.parametrize("lines", range(6))
    def test_is_a_file_that_was_cut_off(self, lines: int) -> None:
        kept = exported(golden_log()).splitlines()[:lines]
        assert refusal(kept) == f"the file is truncated: it has no end line after line {lines}"

    def test_is_a_header_alone_with_an_end(self) -> None:
        lines = [header_line(golden_log()[0].id, EMPTY_LOG), end_line(0, EMPTY_LOG)]
        assert refusal(lines) == "line 2: the header names a first event, and there is none"

    def test_is_a_line_that_fills_the_memory(self) -> None:
        assert refusal([b" " * MAX_LINE_BYTES + b"{}"]).startswith("line 1: it is longer than 67,108,864")


_FILE = exported(golden_log())
_place = st.integers(0, len(_FILE) - 1)


def _means_the_same_or_is_refused(content: bytes) -> None:
    with suppress(ImportRefused):
        assert taken(BytesIO(content)) == golden_log()


class TestAnyDamage:
    @for_all(_place, st.integers(0, 255))
    def test_by_another_byte_is_refused_or_means_the_same(self, place: int, byte: int) -> None:
        assume(_FILE[place] != byte)
        _means_the_same_or_is_refused(_FILE[:place] + bytes([byte]) + _FILE[place + 1 :])

    @for_all(_place, st.integers(0, 7))
    def test_by_a_flipped_bit_is_refused_or_means_the_same(self, place: int, bit: int) -> None:
        _means_the_same_or_is_refused(
            _FILE[:place] + bytes([_FILE[place] ^ (1 << bit)]) + _FILE[place + 1 :]
        )

    @for_all(_place, st.integers(1, 300))
    def test_by_missing_bytes_is_refused_or_means_the_same(self, place: int, size: int) -> None:
        _means_the_same_or_is_refused(_FILE[:place] + _FILE[place + size :])

    @for_all(_place, st.binary(min_size=1, max_size=8))
    def test_by_bytes_too_many_is_refused_or_means_the_same(self, place: int, more: bytes) -> None:
        _means_the_same_or_is_refused(_FILE[:place] + more + _FILE[place:])

    @for_all(st.permutations(_FILE.splitlines()))
    def test_of_the_order_is_refused(self, lines: list[bytes]) -> None:
        assume(lines != _FILE.splitlines())
        refusal(lines)


class TestCloudEvents:
    def test_have_what_the_specification_asks_for(self) -> None:
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

    def test_have_attributes_that_are_strings_with_legal_names(self) -> None:
        for recorded in golden_log():
            event = json.loads(cloud_event_line(recorded.id, recorded))
            del event["data"]
            for name, value in event.items():
                assert re.fullmatch(r"[a-z0-9]{1,20}", name)
                assert isinstance(value, str)
                assert value

    def test_are_one_line_each_whatever_the_layout_of_their_data(self) -> None:
        spaced = golden_log()[0]._replace(data='{\r\n  "a": "b\\n",\n "n": 1.0e400 }')
        line = cloud_event_line(spaced.id, spaced)
        assert line.count(b"\n") == line.count(b"\r") + 1 == 1
        assert b'"data":{    "a": "b\\n",  "n": 1.0e400 }' in line
