"""Lists in an answer that can be very long: rendered a few rows at a time while they are serialized."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


FEW = 20
"""Up to this many rows are rendered at once."""


def listed(rows: Sequence[Any], show: Callable[[Any], Any]) -> list[Any] | LazyRows:
    """Return a list of each row rendered by `show`; for more than a few rows, a lazy `LazyRows`."""
    return [show(row) for row in rows] if len(rows) <= FEW else LazyRows(rows, show)


def by_name(
    rows: Sequence[Any], show: Callable[[Any], Any], name: Callable[[Any], str]
) -> dict[str, Any] | LazyRows:
    """Return an object, by name, of each row rendered by `show`; see `listed`."""
    return {name(row): show(row) for row in rows} if len(rows) <= FEW else LazyRows(rows, show, name)


class LazyRows:
    """A lazily rendered list of rows, or an object of rows by name."""

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
        """Whether it becomes a list, not an object."""
        return self._name is None

    def shown(self, start: int = 0, stop: int | None = None) -> list[Any] | dict[str, Any]:
        """Render these rows."""
        rows, show = self._rows[start:stop], self._show
        if self._name is None:
            return [show(row) for row in rows]
        return {self._name(row): show(row) for row in rows}
