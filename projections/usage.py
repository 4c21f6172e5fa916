"""token_usage: what the tokens of a day were spent on, by agent and by model."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

from eventstore.events import TokensSettled, TokensUsed
from projections.projection import Projection, Row, RowsRead, Table

if TYPE_CHECKING:
    from eventstore.recorded import AnyRecorded
    from projections.projection import View


class UsageRow(Row, frozen=True):
    """Tokens that an agent spent on one model; `model` is empty where none was named.

    Input and output are what was reported as such, and can be less than all tokens.
    """

    day: date
    agent: str
    model: str
    tokens: int
    input_tokens: int
    output_tokens: int
    position: int


TOKEN_USAGE = Table[tuple[date, str, str], UsageRow](
    "token_usage",
    UsageRow,
    key=("day", "agent", "model"),
    types=("date", "text", "text", "bigint", "bigint", "bigint", "bigint"),
)

usage = Projection("usage", (TOKEN_USAGE,))


def _key(event: TokensUsed | TokensSettled) -> tuple[date, str, str]:
    return event.day, event.agent, event.model or ""


@usage.on(TokensUsed, TokensSettled, reads=(RowsRead(TOKEN_USAGE, _key),))
def _spent(view: View, event: TokensUsed | TokensSettled, recorded: AnyRecorded) -> None:
    tokens = event.tokens if isinstance(event, TokensUsed) else event.tokens_used
    if not tokens:
        return
    rows, key = view.rows(TOKEN_USAGE), _key(event)
    row = rows.get(key) or UsageRow(*key, 0, 0, 0, 0)
    rows.put(
        key,
        UsageRow(
            *key,
            row.tokens + tokens,
            row.input_tokens + (event.input_tokens or 0),
            row.output_tokens + (event.output_tokens or 0),
            recorded.position,
        ),
    )
