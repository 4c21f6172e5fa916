"""A squad's state in memory as plain values, for comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.memory.squad import Squad


def contents(squad: Squad) -> dict[str, Any]:
    """Everything that a squad holds, except when it last checked the clock."""
    return {
        **squad.tables,
        "head": squad.head,
        "versions": squad.versions,
        "holders": squad.holders,
        "gmail ids": squad.gmail_ids,
        "absent": squad.absent,
    }
