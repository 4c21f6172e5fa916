"""Which commands and values are accepted, and which are rejected before anything is decided."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from eventstore import codec
from eventstore.events import MessageSent
from service import commands as do
from service.commands import AnyCommand, Command
from service.job_spec import JobSpec
from service.values import (
    MAX_JSON_DEPTH,
    MAX_NAME_CHARACTERS,
    MAX_RESOURCES,
    MAX_TEXT_CHARACTERS,
    MAX_TOKENS,
    MAX_TTL_SECONDS,
    ExternalId,
    Id,
    JsonObject,
    Name,
    PositiveTokens,
    Priority,
    Resources,
    ShortText,
    Text,
    Timezone,
    Tokens,
    TtlSeconds,
    Url,
)
from tests.unit.stories import UNKNOWN_ID

JOB = JobSpec(agent="ann", endpoint="/work", every=60.0).definition()

REQUIRED_VALUES: dict[type[Command], dict[str, Any]] = {
    do.RegisterAgent: {"name": "ann", "role": "support"},
    do.Heartbeat: {"agent": "ann"},
    do.SendMessage: {"from_agent": "ann", "message": "hello"},
    do.AcknowledgeMessage: {"message_id": UNKNOWN_ID, "agent": "ann"},
    do.StartOperation: {"agent": "ann", "action": "answer", "resources": {"emailId": "e-1"}},
    do.CheckOperation: {"agent": "ann", "action": "answer", "resources": {"emailId": "e-1"}},
    do.RenewOperation: {"operation_id": UNKNOWN_ID},
    do.FinishOperation: {"operation_id": UNKNOWN_ID, "outcome": "succeeded"},
    do.SetPolicy: {},
    do.SetBudget: {"daily_tokens": 1},
    do.CheckBudget: {"agent": "ann", "tokens": 1},
    do.ReserveTokens: {"agent": "ann", "tokens": 1},
    do.SettleReservation: {"reservation_id": UNKNOWN_ID, "tokens_used": 0},
    do.ReleaseReservation: {"reservation_id": UNKNOWN_ID},
    do.RecordUsage: {"agent": "ann", "tokens": 0},
    do.CreateTask: {"title": "look"},
    do.UpdateTask: {"task_id": UNKNOWN_ID},
    do.LogEmail: {"gmail_message_id": "g-1", "from_email": "customer@example.org"},
    do.UpdateEmail: {"email_id": UNKNOWN_ID},
    do.ForgetSubject: {"subject": "customer@example.org"},
    do.DefineJob: {"name": "poll", "source": "api", "definition": JOB},
    do.RemoveJob: {"name": "poll"},
    do.WithdrawJob: {"name": "poll"},
    do.PauseJob: {"name": "poll"},
    do.ResumeJob: {"name": "poll"},
    do.RunJob: {"name": "poll"},
    do.ClaimTick: {"name": "poll", "runner": "process-1"},
    do.TakeUpRun: {"run_id": UNKNOWN_ID, "runner": "process-1"},
    do.RenewRun: {"run_id": UNKNOWN_ID, "runner": "process-1"},
    do.EndAttempt: {
        "run_id": UNKNOWN_ID,
        "runner": "process-1",
        "attempt": 1,
        "succeeded": True,
        "report": "done",
    },
    do.CreateKey: {"key_id": "7f3k9q2m4x", "digest": "0" * 64, "scope": "operator"},
    do.NoteKeyUse: {"key_id": "7f3k9q2m4x"},
    do.RevokeKey: {"key_id": "7f3k9q2m4x"},
    do.StartOrchestrator: {},
    do.StopOrchestrator: {},
    do.PassTime: {},
}
"""The required fields of each command, and no others."""

KINDS = sorted(REQUIRED_VALUES, key=lambda kind: kind.__name__)
REQUIRED_FIELDS = [
    (kind, field)
    for kind in KINDS
    for field in REQUIRED_VALUES[kind]
    # Usage can be given in two ways; `succeeded` is the only required boolean.
    if kind is not do.RecordUsage and field != "succeeded"
]


def rejection(value_type: Any, value: Any) -> str:
    """Return why a value is rejected."""
    with pytest.raises(ValidationError) as error:
        TypeAdapter(value_type).validate_python(value, strict=True)
    return str(error.value)


def taken(value_type: Any, value: Any) -> Any:
    return TypeAdapter(value_type).validate_python(value, strict=True)


def nested(levels: int) -> dict[str, Any]:
    """Alternating objects and arrays, nested this many levels deep."""
    value: Any = {} if levels % 2 else []
    for level in range(levels - 1):
        value = {"": value} if isinstance(value, list) else [value]
        del level
    return {"": value} if isinstance(value, list) else dict(value)


class TestEveryCommand:
    def test_has_an_example_here(self) -> None:
        assert set(get_args(AnyCommand)) <= set(REQUIRED_VALUES)

    @pytest.mark.parametrize("kind", KINDS)
    def test_accepts_its_required_fields(self, kind: type[Command]) -> None:
        command = kind.model_validate(REQUIRED_VALUES[kind])
        assert {name: getattr(command, name) for name in REQUIRED_VALUES[kind]} == REQUIRED_VALUES[kind]

    @pytest.mark.parametrize(("kind", "field"), REQUIRED_FIELDS)
    def test_rejects_a_missing_field(self, kind: type[Command], field: str) -> None:
        fields = {name: value for name, value in REQUIRED_VALUES[kind].items() if name != field}
        with pytest.raises(ValidationError):
            kind.model_validate(fields)

    @pytest.mark.parametrize(
        ("kind", "field"), [pair for pair in REQUIRED_FIELDS if pair != (do.SetBudget, "daily_tokens")]
    )
    def test_rejects_null_for_a_required_field(self, kind: type[Command], field: str) -> None:
        with pytest.raises(ValidationError, match=field):
            kind.model_validate({**REQUIRED_VALUES[kind], field: None})

    @pytest.mark.parametrize("kind", KINDS)
    def test_rejects_an_unknown_field(self, kind: type[Command]) -> None:
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            kind.model_validate({**REQUIRED_VALUES[kind], "surplus": 1})

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("body", [None, [], "text", 1, True])
    def test_rejects_a_body_that_is_not_an_object(self, kind: type[Command], body: Any) -> None:
        with pytest.raises(ValidationError):
            kind.model_validate(body)

    @pytest.mark.parametrize("kind", [kind for kind in KINDS if REQUIRED_VALUES[kind]])
    def test_is_immutable(self, kind: type[Command]) -> None:
        command = kind.model_validate(REQUIRED_VALUES[kind])
        with pytest.raises(ValidationError, match="frozen"):
            setattr(command, next(iter(REQUIRED_VALUES[kind])), "other")

    @pytest.mark.parametrize(("kind", "field"), REQUIRED_FIELDS)
    @pytest.mark.parametrize("nonsense", [1.5, True, b"bytes", ["list"], {"a": {"b": 1}}, object()])
    def test_rejects_any_value_of_a_wrong_type(
        self, kind: type[Command], field: str, nonsense: Any
    ) -> None:
        with pytest.raises(ValidationError, match=field):
            kind.model_validate({**REQUIRED_VALUES[kind], field: nonsense})


class TestText:
    @pytest.mark.parametrize("kind", [Name, ShortText, Text, ExternalId, Url, Id, Timezone])
    @pytest.mark.parametrize("value", ["nul\x00", "half a pair \ud800", "\udfff"])
    def test_characters_that_cannot_be_stored_are_rejected(self, kind: Any, value: str) -> None:
        rejection(kind, value)

    @pytest.mark.parametrize("kind", [Name, ShortText, ExternalId])
    @pytest.mark.parametrize("value", ["two\nlines", "tab\t", "unit\x1fseparator", "delete\x7f", ""])
    def test_single_line_with_control_characters_is_rejected(self, kind: Any, value: str) -> None:
        rejection(kind, value)

    @pytest.mark.parametrize("value", ["", "two\nlines", "tab\t", "unit\x1fseparator", "🦉", "\u2028"])
    def test_long_text_may_have_control_characters(self, value: str) -> None:
        assert taken(Text, value) == value

    @pytest.mark.parametrize(
        ("kind", "longest"),
        [(Name, MAX_NAME_CHARACTERS), (ShortText, 1_000), (ExternalId, 255), (Text, MAX_TEXT_CHARACTERS)],
    )
    def test_length_is_bounded(self, kind: Any, longest: int) -> None:
        assert taken(kind, "ü" * longest) == "ü" * longest
        assert f"at most {longest} characters" in rejection(kind, "ü" * (longest + 1))

    @pytest.mark.parametrize("value", [" ann", "ann ", " ", "\u00a0ann"])
    def test_name_with_surrounding_white_space_is_rejected(self, value: str) -> None:
        rejection(Name, value)

    @pytest.mark.parametrize("value", ["ann", "Zoë 2", "email_agent", "a-b.c/d", "agent's"])
    def test_ordinary_name_is_accepted(self, value: str) -> None:
        assert taken(Name, value) == value

    @pytest.mark.parametrize("value", [1, 1.0, True, None, b"ann", ["ann"]])
    def test_name_that_is_not_text_is_rejected(self, value: Any) -> None:
        rejection(Name, value)

    def test_agent_name_of_ten_thousand_characters_is_rejected(self) -> None:
        for kind in (do.RegisterAgent, do.Heartbeat):
            field = "name" if kind is do.RegisterAgent else "agent"
            with pytest.raises(ValidationError, match="at most 100 characters"):
                kind.model_validate({**REQUIRED_VALUES[kind], field: "a" * 10_000})


class TestId:
    def test_uuid_is_converted_to_lower_case(self) -> None:
        assert taken(Id, UNKNOWN_ID.upper()) == UNKNOWN_ID

    @pytest.mark.parametrize(
        "value",
        ["", "1", UNKNOWN_ID + "0", UNKNOWN_ID[:-1] + "g", UNKNOWN_ID.replace("-", ""), f"{UNKNOWN_ID}\n"],
    )
    def test_anything_else_is_rejected(self, value: str) -> None:
        rejection(Id, value)


class TestUrl:
    @pytest.mark.parametrize(
        "value", ["http://localhost:3002", "https://a.example/path?x=1#y", "http://[::1]:80/"]
    )
    def test_http_and_https_are_accepted(self, value: str) -> None:
        assert taken(Url, value) == value

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "localhost",
            "ftp://a.example",
            "javascript:alert(1)",
            "http://",
            "http:///path",
            "http://a b",
            "http://a\n",
        ],
    )
    def test_anything_else_is_rejected(self, value: str) -> None:
        rejection(Url, value)


class TestNumbers:
    @pytest.mark.parametrize("kind", [Tokens, PositiveTokens, Priority])
    @pytest.mark.parametrize("value", ["1", 1.0, 1.5, True, None, [1], float("nan"), float("inf")])
    def test_number_that_is_not_an_integer_is_rejected(self, kind: Any, value: Any) -> None:
        rejection(kind, value)

    @pytest.mark.parametrize("value", [-1, -(10**30), MAX_TOKENS + 1, 2**63, 10**400])
    def test_negative_or_huge_token_count_is_rejected(self, value: int) -> None:
        rejection(Tokens, value)

    def test_bounds_of_token_counts_are_inclusive(self) -> None:
        assert (taken(Tokens, 0), taken(Tokens, MAX_TOKENS)) == (0, MAX_TOKENS)
        assert "greater than or equal to 1" in rejection(PositiveTokens, 0)

    @pytest.mark.parametrize(
        "value",
        [0, -1, -0.0, float("nan"), float("inf"), 1e308, MAX_TTL_SECONDS + 1, 10**400, "60", True, None],
    )
    def test_ttl_that_is_not_between_zero_and_a_week_is_rejected(self, value: Any) -> None:
        rejection(TtlSeconds, value)

    @pytest.mark.parametrize("value", [1, 0.5, MAX_TTL_SECONDS])
    def test_ttl_may_be_fractional(self, value: float) -> None:
        assert taken(TtlSeconds, value) == value

    @pytest.mark.parametrize("value", [-1, 24, 1.0, "0", True])
    def test_invalid_reset_hour_is_rejected(self, value: Any) -> None:
        with pytest.raises(ValidationError, match="reset_hour"):
            do.SetPolicy.model_validate({"reset_hour": value})


class TestTimezone:
    @pytest.mark.parametrize("value", ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires"])
    def test_iana_name_is_accepted(self, value: str) -> None:
        assert taken(Timezone, value) == value

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "Mars/Olympus",
            "Europe",
            "../../etc/passwd",
            "/etc/localtime",
            "UTC\n",
            "U" * 65,
            "+01:00",
            "localtime",
            "Factory",
        ],
    )
    def test_anything_else_is_rejected(self, value: str) -> None:
        rejection(Timezone, value)


class TestResources:
    @pytest.mark.parametrize(
        "value",
        [
            {},
            {"": "e-1"},
            {"emailId": ""},
            {"emailId": 1},
            {"emailId": None},
            {"emailId": "\x00"},
            {"emailId": "a" * 501},
            {"k" * 101: "v"},
            {"k\n": "v"},
            {"\ud800": "v"},
            [["emailId", "e-1"]],
            {f"kind {number}": "v" for number in range(MAX_RESOURCES + 1)},
        ],
    )
    def test_invalid_resources_are_rejected(self, value: Any) -> None:
        rejection(Resources, value)

    def test_maximum_number_of_resources_is_accepted(self) -> None:
        many = {f"kind {number}": "v" for number in range(MAX_RESOURCES)}
        assert taken(Resources, many) == many


_short = st.text(max_size=5)
_any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _short,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_short, inner, max_size=3),
    max_leaves=6,
)


class TestJson:
    @pytest.mark.parametrize(
        "value",
        [
            "nul \x00",
            "half a pair \ud800",
            float("nan"),
            float("inf"),
            -float("inf"),
            2**64,
            -(2**63) - 1,
            10**400,
            float(2**64),
            float(-(2**63)),
            1e300,
        ],
    )
    def test_value_that_would_not_be_read_back_unchanged_is_rejected(self, value: Any) -> None:
        for document in ({"a": value}, {"a": [1, {"b": value}]}):
            rejection(JsonObject, document)

    @pytest.mark.parametrize("key", ["\x00", "\ud800"])
    def test_key_that_cannot_be_stored_is_rejected(self, key: str) -> None:
        rejection(JsonObject, {"a": {key: 1}})

    @pytest.mark.parametrize(
        "value", [0, -(2**63), 2**64 - 1, True, False, None, 0.1, 5e-324, 1.8e19, "", "🦉\n\x1f", [], {}]
    )
    def test_any_other_value_is_accepted(self, value: Any) -> None:
        assert taken(JsonObject, {"a": value}) == {"a": value}

    @pytest.mark.parametrize("value", [None, [], "text", 1, True])
    def test_value_that_is_not_an_object_is_rejected(self, value: Any) -> None:
        rejection(JsonObject, value)

    def test_depth_is_bounded(self) -> None:
        assert taken(JsonObject, nested(MAX_JSON_DEPTH - 1))
        assert f"deeper than {MAX_JSON_DEPTH} levels" in rejection(JsonObject, nested(MAX_JSON_DEPTH + 2))

    def test_depth_of_ten_thousand_levels_is_rejected(self) -> None:
        rejection(JsonObject, nested(10_000))

    @for_all(document=st.dictionaries(_short, _any_json, max_size=3))
    def test_accepted_document_is_read_back_unchanged(self, document: dict[str, Any]) -> None:
        try:
            taken(JsonObject, document)
        except ValidationError:
            return
        message = MessageSent(
            message_id="m", agent="ann", to_agent=None, message="hello", task_id=None, data=document
        )
        assert json.loads(codec.encode(message))["data"] == document


class TestSingleCommands:
    def test_empty_message_is_rejected(self) -> None:
        with pytest.raises(ValidationError, match="message"):
            do.SendMessage(from_agent="ann", message="")

    def test_usage_is_a_total_or_input_and_output_or_both_if_they_agree(self) -> None:
        assert do.RecordUsage(agent="ann", tokens=5).usage.tokens_used == 5
        assert do.RecordUsage(agent="ann", input_tokens=3, output_tokens=2).usage.tokens_used == 5
        assert do.RecordUsage(agent="ann", tokens=5, input_tokens=3, output_tokens=2).usage.tokens_used == 5

    @pytest.mark.parametrize(
        "usage",
        [
            {},
            {"input_tokens": 3},
            {"output_tokens": 3},
            {"tokens": None},
            {"tokens": 6, "input_tokens": 3, "output_tokens": 2},
            {"tokens": 2, "input_tokens": 3},
        ],
    )
    def test_usage_that_does_not_add_up_is_rejected(self, usage: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match="tokens"):
            do.RecordUsage.model_validate({"agent": "ann", **usage})

    @pytest.mark.parametrize(
        "body", [{}, {"daily_tokens": None}, {"daily_tokens": None, "agent_limits": None}]
    )
    def test_budget_without_any_value_is_rejected(self, body: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match="daily_tokens, agent_limits, or both"):
            do.SetBudget.model_validate(body)

    def test_budget_with_more_than_a_thousand_limits_is_rejected(self) -> None:
        limits = {f"agent {number}": 1 for number in range(1_001)}
        with pytest.raises(ValidationError, match="agent_limits"):
            do.SetBudget(agent_limits=limits)

    @pytest.mark.parametrize("field", ["title", "status", "priority"])
    def test_required_field_of_a_task_cannot_be_set_to_null(self, field: str) -> None:
        with pytest.raises(ValidationError, match=field):
            do.UpdateTask.model_validate({"task_id": UNKNOWN_ID, field: None})

    @pytest.mark.parametrize("field", ["category", "status"])
    def test_required_field_of_an_email_cannot_be_set_to_null(self, field: str) -> None:
        with pytest.raises(ValidationError, match=field):
            do.UpdateEmail.model_validate({"email_id": UNKNOWN_ID, field: None})

    @pytest.mark.parametrize(
        ("kind", "field"),
        [
            (do.CreateTask, "status"),
            (do.CreateTask, "priority"),
            (do.LogEmail, "status"),
            (do.Heartbeat, "status"),
        ],
    )
    def test_unknown_status_or_priority_is_rejected(self, kind: type[Command], field: str) -> None:
        with pytest.raises(ValidationError, match=field):
            kind.model_validate({**REQUIRED_VALUES[kind], field: "elsewhere"})

    def test_changes_are_the_fields_that_were_given(self) -> None:
        command = do.UpdateTask(task_id=UNKNOWN_ID, status="completed", description=None)
        assert command.changes == {"status": "completed", "description": None}
        email = do.UpdateEmail(email_id=UNKNOWN_ID, payload=None)
        assert email.changes == {"payload": None}

    def test_acting_agent_is_the_one_that_the_command_names(self) -> None:
        assert do.SendMessage(from_agent="ann", message="hello").acting_agent == "ann"
        assert do.ReserveTokens(agent="ann", tokens=1).acting_agent == "ann"
        assert do.StopOrchestrator().acting_agent is None
