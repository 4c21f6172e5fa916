"""Invalid bodies for every route that takes one, with the field and the error code to expect."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from service.http.openapi import SEED_PATH
from service.http.openapi_text import EXAMPLES
from service.http.routes import ROUTES

if TYPE_CHECKING:
    from collections.abc import Iterator

UNKNOWN_ID = "00000000-0000-7000-8000-000000000000"
MEBIBYTE = 1024 * 1024


LISTS = (
    "agents",
    "messages",
    "agents/ada/inbox",
    "operations",
    "operations?state=active",
    "conflicts",
    "budget/reservations",
    "tasks",
    "emails",
    "events",
    "jobs",
    "runs",
)
READS = (
    *LISTS,
    "budget",
    "budget/days",
    "budget/usage",
    "agents/ada",
    "events/1",
    "explain/1",
    "state",
    "state?at=1",
)


class Target(NamedTuple):
    """A route that takes a body, and a valid body for it."""

    method: str
    path: str
    body: dict[str, Any]

    @property
    def is_facade(self) -> bool:
        return self.path == SEED_PATH

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class InvalidBody(NamedTuple):
    """A body that must be rejected."""

    label: str
    body: bytes
    code: str
    field: str | None = None


def targets() -> list[Target]:
    """All routes that take a body."""
    filled = [(route, route.path.replace("{id}", UNKNOWN_ID)) for route in ROUTES if route.body]
    return [
        Target(route.method, path.replace("{name}", "ada"), dict(EXAMPLES[route.method, route.path]))
        for route, path in filled
    ]


_NOT_JSON: dict[str, bytes] = {
    "truncated object": b'{"a":',
    "single quotes": b"{'a': 1}",
    "trailing comma": b'{"a": 1,}',
    "two values": b"{} {}",
    "only whitespace": b"   ",
    "NaN": b'{"tokens": NaN}',
    "infinity": b'{"tokens": -Infinity}',
    "number out of range": b'{"tokens": 1e400}',
    "lone high surrogate": rb'{"message": "\ud800"}',
    "lone low surrogate": rb'{"message": "\udc00 x"}',
    "invalid UTF-8": b'{"message": "\xff"}',
    "surrogate in UTF-8": b'{"message": "\xed\xa0\x80"}',
    "UTF-16": '{"message": "x"}'.encode("utf-16"),
    "raw control character": b'{"message": "\x01"}',
    "arrays nested 10,000 deep": b'{"data":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "objects nested 10,000 deep": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "unclosed brackets": b"[" * 1_000_000,
}

_NOT_OBJECTS: dict[str, bytes] = {
    "array": b"[]",
    "array of objects": b'[{"a": 1}]',
    "text": b'"text"',
    "number": b"7",
    "null": b"null",
    "true": b"true",
}

WRONG_VALUES: dict[str, list[Any]] = {
    "text": [7, True, [], {}, None, "", "\x00", "a\x00b", "x" * 200_000],
    "name": ["x" * 10_000, "\x07", "line\nbreak", " padded ", "\x7f", "\t"],
    "tokens": [-1, 1.5, "5", True, None, 10**30, 10**13, [], {}],
    "object": [7, "text", [], True],
    "position": [None, 0, -1, 1.5, "5", True, 2**63],
}
"""Values that are not a valid text, name, number of tokens, object, or position."""

WRONG_AUTHORITIES = (
    *("http://x:65536", "http://x:0", "http://x:1x", "http://x:1:2", "http://:80"),
    *("http://[::1", "http://::1", "http://[zz]", "http://a@", "http://a@b@c", "http://x\\y"),
)
"""URLs with an invalid authority."""

_FIELDS: dict[str, dict[str, list[Any]]] = {
    "PUT /api/v1/agents/ada": {
        "role": [*WRONG_VALUES["text"], *WRONG_VALUES["name"]],
        "url": [
            *("ftp://x", "http://", "nowhere", 7, "http://a b", "http://x\x00", "http://" + "x" * 3_000),
            *WRONG_AUTHORITIES,
        ],
        "priority": [1_001, -1_001, 1.5, "1", True, None, 10**30],
    },
    "POST /api/v1/agents/ada/heartbeat": {"status": ["asleep", 7, "", "ACTIVE"]},
    "POST /api/v1/messages": {
        "from_agent": [*WRONG_VALUES["text"], *WRONG_VALUES["name"]],
        "to_agent": [7, "", "x" * 101],
        "message": WRONG_VALUES["text"],
        "task_id": ["", 7, "x" * 256, "\x00"],
        "data": [
            *WRONG_VALUES["object"],
            {"a": "\x00"},
            {"\x00": 1},
            {"a": [{"b": "\x00"}]},
            {"a": 10**30},
            {"a": -(10**30)},
            {"a": 1e300},
        ],
    },
    f"POST /api/v1/messages/{UNKNOWN_ID}/ack": {"agent": [*WRONG_VALUES["text"], *WRONG_VALUES["name"]]},
    "POST /api/v1/operations/check": {
        "agent": WRONG_VALUES["name"],
        "resources": [*WRONG_VALUES["object"], {}, {"": "x"}, {"a": ""}, {"a": 7}, {"a": "\x00"}],
    },
    "POST /api/v1/operations": {
        "agent": WRONG_VALUES["name"],
        "action": [*WRONG_VALUES["text"], *WRONG_VALUES["name"]],
        "resources": [
            *WRONG_VALUES["object"],
            {},
            {"": "x"},
            {"a": ""},
            {"a": None},
            {"a": 7},
            {"a": "\x00"},
            {"\n": "x"},
            {"a": "x" * 501},
            {"x" * 101: "a"},
            {f"kind-{n}": "x" for n in range(51)},
        ],
        "ttl_seconds": [0, -1, 604_801, "5", True, 10**30],
    },
    f"POST /api/v1/operations/{UNKNOWN_ID}/finish": {
        "outcome": ["done", 7, "", None],
        "tokens_used": [-1, 1.5, "5", 10**30, True],
        "output_tokens": [-1, 1.5, "5", 10**30],
        "model": ["", "x" * 101],
    },
    "PUT /api/v1/budget": {
        "daily_tokens": [-1, 1.5, "5", 10**30, True],
        "agent_limits": [
            *WRONG_VALUES["object"],
            {"ada": -1},
            {"ada": "5"},
            {"ada": None},
            {"": 5},
            {"\x00": 5},
            {"x" * 101: 5},
            {f"agent-{n}": 5 for n in range(1_001)},
            {f"agent-{n}": -5 for n in range(1_000)},
        ],
    },
    "POST /api/v1/budget/check": {"agent": WRONG_VALUES["name"], "tokens": [0, *WRONG_VALUES["tokens"]]},
    "POST /api/v1/budget/reservations": {
        "agent": [*WRONG_VALUES["text"], *WRONG_VALUES["name"]],
        "tokens": [0, *WRONG_VALUES["tokens"]],
        "ttl_seconds": [0, -5, 604_801, "5"],
    },
    f"POST /api/v1/budget/reservations/{UNKNOWN_ID}/settle": {
        "tokens_used": [value for value in WRONG_VALUES["tokens"] if value is not None],
        "input_tokens": [-1, 1.5, "5", 10**30],
        "model": ["", "x" * 101],
    },
    "POST /api/v1/budget/usage": {
        "agent": WRONG_VALUES["name"],
        "input_tokens": [-1, 1.5, "5", 10**30],
        "model": ["", "x" * 101],
        "operation_id": ["7", "", 7],
    },
    "POST /api/v1/tasks": {
        "title": [*WRONG_VALUES["text"], "line\nbreak", "x" * 1_001],
        "description": [7, "\x00", "x" * 100_001],
        "status": ["done", "", 7, None],
        "priority": ["asap", 1, None],
        "assigned_agent": WRONG_VALUES["name"],
        "deliverable_url": ["nowhere", "javascript:alert(1)", 7, *WRONG_AUTHORITIES],
    },
    f"PATCH /api/v1/tasks/{UNKNOWN_ID}": {
        "title": [None, "", 7],
        "status": ["done", None],
        "priority": [None, "asap"],
        "if_position": WRONG_VALUES["position"],
    },
    "POST /api/v1/emails": {
        "gmail_message_id": ["", 7, None, "\x00", "x" * 256],
        "from_email": ["", 7, None, "\x00", "x" * 1_001],
        "category": WRONG_VALUES["name"],
        "status": ["read", 7, None],
        "payload": [*WRONG_VALUES["object"], {"a": "\x00"}, {"a": 10**30}],
    },
    f"PATCH /api/v1/emails/{UNKNOWN_ID}": {
        "category": [None, "", 7],
        "status": ["read", None],
        "if_position": WRONG_VALUES["position"],
    },
    "PUT /api/v1/jobs/ada": {"endpoint": ["x", "", "/a b", "//a", "/../a", "/a\n", "/a?b\n", "/\n"]},
    "POST /api/v1/whatif": {
        "daily_tokens": WRONG_VALUES["tokens"][:4],
        "agent_limits": [
            *WRONG_VALUES["object"],
            {"ada": -1},
            {"ada": "5"},
            {"": 5},
            {"\x00": 5},
            {f"agent-{n}": 5 for n in range(1_001)},
        ],
        "conflict_window_seconds": [0, -1, 604_801, "5", True, 10**30],
        "operation_timeout_seconds": [0, -1, 604_801, "5", True, 10**30],
        "warning_percents": [7, "50", [0], [101], ["50"], [50.5], list(range(1, 22))],
        "since": [7, "", "yesterday", "2026-01-31", "2026-13-31T00:00:00Z", "2026-01-31T00:00:00", []],
        "until": [7, "1969-12-31T00:00:00Z", "9999-01-01T00:00:00Z", {}],
    },
    "POST /api/v1/batch": {"commands": [None, 7, {}, [], [7], [{}], [None] * 2_000]},
}


def invalid_bodies(target: Target) -> Iterator[InvalidBody]:
    """All bodies that this route must reject."""
    for label, raw in _NOT_JSON.items():
        yield InvalidBody(label, raw, "malformed_json")
    for label, raw in _NOT_OBJECTS.items():
        yield InvalidBody(label, raw, "validation_failed", "body")
    yield InvalidBody(
        "one byte too large", json.dumps(target.body).encode().ljust(MEBIBYTE + 1), "payload_too_large"
    )
    if not target.is_facade:
        yield _with_field(target, "no_such_field", "x")
        yield _with_field(target, "x" * 10_000, "x", field="x" * 199 + "…")
    for field in _required_fields(target):
        rest = {name: value for name, value in target.body.items() if name != field}
        yield InvalidBody(f"no {field}", json.dumps(rest).encode(), "validation_failed", field)
    for field, values in _FIELDS.get(str(target), {}).items():
        for value in values:
            yield _with_field(target, field, value)


def _with_field(target: Target, name: str, value: object, *, field: str | None = None) -> InvalidBody:
    body = json.dumps({**target.body, name: value}).encode()
    return InvalidBody(f"{name[:30]}={str(value)[:30]!r}", body, "validation_failed", field or name)


def _required_fields(target: Target) -> list[str]:
    return {
        "PUT /api/v1/agents/ada": ["role"],
        "POST /api/v1/messages": ["from_agent", "message"],
        f"POST /api/v1/messages/{UNKNOWN_ID}/ack": ["agent"],
        "POST /api/v1/operations/check": ["agent", "action", "resources"],
        "POST /api/v1/operations": ["agent", "action", "resources"],
        f"POST /api/v1/operations/{UNKNOWN_ID}/finish": ["outcome"],
        "POST /api/v1/budget/check": ["agent", "tokens"],
        "POST /api/v1/budget/reservations": ["agent", "tokens"],
        "POST /api/v1/budget/usage": ["agent"],
        "POST /api/v1/tasks": ["title"],
        "POST /api/v1/emails": ["gmail_message_id", "from_email"],
        "POST /api/v1/batch": ["commands"],
        "PATCH /api/squad": ["id"],
    }.get(str(target), [])
