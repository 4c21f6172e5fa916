"""Lists in an answer that can be very long: made a few rows at a time while they are written as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


FEW = 20
"""So many rows are shown at once."""


def listed(rows: Sequence[Any], show: Callable[[Any], Any]) -> list[Any] | Many:
    """What is shown of each row, in a list; of more than a few, a `Many`, made when it is written."""
    return [show(row) for row in rows] if len(rows) <= FEW else Many(rows, show)


def by_name(
    rows: Sequence[Any], show: Callable[[Any], Any], name: Callable[[Any], str]
) -> dict[str, Any] | Many:
    """What is shown of each row, in an object by name; see `listed`."""
    return {name(row): show(row) for row in rows} if len(rows) <= FEW else Many(rows, show, name)


class Many:
    """A list of what is shown of each row, or an object by name, that is yet to be made."""

    __slots__ = ("_name", "_rows", "_show")

    def __init__(
        self,
        rows: Sequence[Any],
        show: Callable[[Any], Any],
        name: Callable[[Any], str] | None = None,
    ) -> None:
        self._rows = rows
        self._show = show
        self._name = name

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def is_list(self) -> bool:
        """Whether it becomes a list."""
        return self._name is None

    def shown(self, start: int = 0, stop: int | None = None) -> list[Any] | dict[str, Any]:
        """What is shown of these rows."""
        rows, show = self._rows[start:stop], self._show
        if self._name is None:
            return [show(row) for row in rows]
        return {self._name(row): show(row) for row in rows}
