"""Error messages for wrong settings, one line each, that do not disclose secrets."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from service.values import in_words

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    import pydantic_settings
    from pydantic_core import ErrorDetails

_SHOWN_CHARACTERS = 100
_PREFIX = "SQUAD_"
_MIN_SIMILARITY = 0.7
"""How similar a name must be to a setting's to be suggested; 1 is identical."""
_WITH_SECRETS = frozenset({"SQUAD_AGENTS"})


class SettingsError(Exception):
    """Settings are wrong. The message has one line for each: its name, its value and what is allowed."""


def may_hold_a_password(dsn: str) -> bool:
    """Return whether a DSN must not be shown."""
    return "@" in dsn or "pas" in dsn.lower()


def misspelt_variables(settings: Collection[str]) -> Iterator[str]:
    """Yield a line for each environment variable that is not a setting, but has a similar name.

    Agents and the service's environment may use variables with the same prefix, so none is refused.

    Args:
        settings: the names of the settings, as in the file.
    """
    for name in sorted(os.environ):
        said = name.upper().removeprefix(_PREFIX).lower()
        if not name.upper().startswith(_PREFIX) or said in settings or not os.environ[name]:
            continue
        for meant in get_close_matches(said, settings, 1, _MIN_SIMILARITY):
            yield f"{name} is not a setting and is ignored; did you mean {_PREFIX}{meant.upper()}?"


def explain_json(error: pydantic_settings.SettingsError) -> str:
    """Return the message for a variable that must be JSON and is not."""
    named = re.search(r'"(\w+)"', str(error))
    variable = f"SQUAD_{named[1].upper()}" if named else "a variable"
    shown = "not valid" if variable in _WITH_SECRETS else repr(os.environ.get(variable))
    return f"{variable} is {shown}: must be a JSON object"


def explain(error: ErrorDetails, within: str = "", settings: Collection[str] = ()) -> str:
    """Return the setting's name, its value and what is allowed.

    Args:
        error: pydantic's error.
        within: the section's name, if only a section was validated.
        settings: the valid names, to suggest one for an unknown name.
    """
    path = [*filter(None, [within]), *(str(part) for part in error["loc"])]
    if within and not error["loc"]:
        return f"{within}: {in_words(error)}"
    name = ".".join(path).removeprefix("SQUAD_").lower() if len(path) == 1 else ".".join(path)
    if error["type"] == "extra_forbidden":
        meant = get_close_matches(name, settings, 1, _MIN_SIMILARITY) if len(path) == 1 else []
        return f"{name} is not a setting" + "".join(f"; did you mean {one}?" for one in meant)
    if error["type"] == "missing":
        return f"{name} is missing"
    variable = f" (SQUAD_{name.upper()})" if len(path) == 1 and not within else ""
    return f"{name}{variable} is {_shown(path, error['input'])}: {in_words(error)}"


def _shown(path: list[str], value: Any) -> str:
    if path[-1] == "secret" or (path[0] == "agents" and isinstance(value, dict | list)):
        return "not valid"
    if path[-1].endswith("dsn") and isinstance(value, str) and may_hold_a_password(value):
        return "not valid"
    try:
        text = repr(value)
    except RecursionError:
        return "nested too deep"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
