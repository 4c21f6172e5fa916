"""What commands report about spent tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pydantic import model_validator

from service.commands.base import Command
from service.values import Name, Tokens

if TYPE_CHECKING:
    from typing import Self


class Usage(NamedTuple):
    """Spent tokens: all of them and, as far as reported, the input, the output and the model."""

    tokens_used: int
    input_tokens: int | None = None
    output_tokens: int | None = None
    model: str | None = None


def usage_of(
    name: str, total: int | None, input_tokens: int | None, output_tokens: int | None, model: str | None
) -> Usage:
    """Return what was spent: `total`, called `name`, or the sum of its parts, or both.

    Raises:
        ValueError: neither the total nor both parts are given, or they do not add up.
    """
    parts = (input_tokens, output_tokens)
    if total is None and None in parts:
        raise ValueError(f"name {name}, or both input_tokens and output_tokens")
    known = sum(part or 0 for part in parts)
    rest = 0 if total is None else total - known
    if rest < 0 or (rest > 0 and None not in parts):
        raise ValueError(f"{name} must be the sum of input_tokens and output_tokens")
    return Usage(known + rest, input_tokens, output_tokens, model)


class UsageReport(Command):
    """A command that can report spent tokens: `tokens_used`, or input and output tokens, or both."""

    tokens_used: Tokens | None = None
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    model: Name | None = None
    """The model that they were spent on."""

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        _ = self.usage
        return self

    @property
    def usage(self) -> Usage | None:
        """What was spent, whichever way it was given; None if it was not."""
        counts = (self.tokens_used, self.input_tokens, self.output_tokens)
        return None if counts == (None, None, None) else usage_of("tokens_used", *counts, self.model)
