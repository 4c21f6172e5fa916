"""What every command has in common."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Command(BaseModel):
    """An intent."""

    # What is personal in a command must not get into log lines by way of an exception's text.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    personal: ClassVar[frozenset[str]] = frozenset()
    """The fields that can hold something personal."""

    @property
    def acting_agent(self) -> str | None:
        """The agent that asks, where the command names one."""
        return getattr(self, "agent", None)


def named_fields(command: Command, *but: str) -> dict[str, Any]:
    """The fields that somebody named, those in `but` apart."""
    return {name: getattr(command, name) for name in command.model_fields_set if name not in but}
