"""The catalogue of events, from their classes: for docs/events.md and for the OpenAPI document.

`python -m eventstore.catalogue > docs/events.md` writes the page anew.
"""

from __future__ import annotations

import ast
import sys
from datetime import date, datetime
from functools import cache
from importlib import import_module
from inspect import getdoc, getsource
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from msgspec import NODEFAULT, Struct, structs

from eventstore.codec import EVENT_TYPES

_HEAD = """\
# Events

Every type of event in the log, with the fields of its `data`. This page is generated from the classes in
`eventstore/events`: `python -m eventstore.catalogue > docs/events.md`.

The table `events`, an export of the log and the API have `data` in this form; the columns around it are
described in [architecture.md](architecture.md#the-log). The OpenAPI document has the same as JSON schemas.

- Times are RFC 3339 in UTC, dates ISO 8601. Names of durations end with their unit.
- A stored event is never rewritten, so an old one may have a lower `schema_version` than is written now,
  and other fields than those below. `UPCASTERS` in `eventstore/codec.py` shows the difference.
- Later versions of the software may add types, and fields to a type: ignore what you do not know.
- With `encrypt_payloads`, personal data are [sealed](audit.md#forgetting-somebody) in the table and in an
  export. The API shows them decrypted. If their subject was forgotten, a text that cannot be null is
  `(erased)`, and anything else is null.
"""

_PLAIN = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "boolean",
    datetime: "time",
    date: "date",
    NoneType: "null",
    Any: "any",
}


class Field(NamedTuple):
    """A field of an event's data, or of an object in it."""

    name: str
    type: Any
    """Its Python type, resolved."""
    default: Any
    """What events that lack the field mean; `...` if all have it."""
    meaning: str


def fields_of(kind: type[Struct]) -> list[Field]:
    """Return the fields of an event's data, each with its docstring."""
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        meanings |= _docstrings(base.__module__).get(base.__name__, {})
    return [
        Field(
            field.name,
            field.type,
            ... if field.default is NODEFAULT else field.default,
            meanings.get(field.name, ""),
        )
        for field in structs.fields(kind)
    ]


@cache
def _docstrings(module: str) -> dict[str, dict[str, str]]:
    """Return the docstrings of all fields of a module's classes, which Python does not keep."""
    if not module.startswith("eventstore."):
        return {}
    try:
        tree = ast.parse(getsource(import_module(module)))
    except OSError:
        # Installed without its source.
        return {}
    return {
        node.name: {
            field.target.id: text.value.value
            for field, text in zip(node.body, node.body[1:], strict=False)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


class _Placeholder(str):
    """Stands for a field's value in the name of a stream."""

    __slots__ = ()

    def isoformat(self) -> str:
        """Return the placeholder, as a date returns its text."""
        return self


def stream_of(kind: type[Struct]) -> str:
    """Return the pattern of the streams that events of a type belong to, such as `agent-<agent>`."""
    values = {field.name: _Placeholder(f"<{field.name}>") for field in structs.fields(kind)}
    stream: str = kind(**values).stream  # type: ignore[attr-defined]
    return stream


def page() -> str:
    """Return docs/events.md."""
    sections = [_HEAD, _contents()]
    objects: dict[str, type[Struct]] = {}
    for name, kind in EVENT_TYPES.items():
        version = f", schema version {kind.schema_version}" if kind.schema_version > 1 else ""
        fields = fields_of(kind)
        objects |= {field.type.__name__: field.type for field in fields if is_struct(field.type)}
        sections.append(
            f"## {name}\n\n{getdoc(kind)}\n\nStream `{stream_of(kind)}`{version}.\n{_table(fields)}"
        )
    for name, part in objects.items():
        sections.append(f"## {name}\n\n{getdoc(part)}\n{_table(fields_of(part))}")
    return "\n".join(sections)


def _contents() -> str:
    rows = (f"| [{name}](#{name}) | {_meaning(kind)[0]} |" for name, kind in EVENT_TYPES.items())
    return "\n".join(["| type | |", "| --- | --- |", *rows, ""])


def _meaning(kind: type[Struct]) -> list[str]:
    return (getdoc(kind) or "").splitlines()


def _table(fields: list[Field]) -> str:
    if not fields:
        return "\nIt has no fields.\n"
    rows = (f"| `{field.name}` | {_in_words(field.type)} | {field.meaning} |" for field in fields)
    return "\n".join(["", "| field | type | |", "| --- | --- | --- |", *rows, ""])


def is_struct(kind: Any) -> bool:
    """Whether a field's type is an object with fields of its own."""
    return isinstance(kind, type) and issubclass(kind, Struct)


def _in_words(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if origin is UnionType:
        return " or ".join(_in_words(part) for part in parts)
    if origin is list:
        return f"list of {_in_words(parts[0])}"
    if origin is dict:
        return "object" if parts[1] is Any else f"object of {_in_words(parts[1])}"
    if is_struct(kind):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    return _PLAIN[kind]


if __name__ == "__main__":
    sys.stdout.write(page())
