"""Tests of other folders, repeated with encrypted payloads: their results must be the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from eventstore import sealing
from tests.api.conftest import _no_settings_of_ours, api, service
from tests.integration.conftest import agents, connection, job_process, writer

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["_no_settings_of_ours", "agents", "api", "connection", "job_process", "service", "writer"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests in which there is nothing to encrypt: they would be the same tests again."""
    left_out = [item for item in items if HERE in item.path.parents and _is_marked(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _is_marked(item: pytest.Item) -> bool:
    return item.get_closest_marker("nothing_sealed") is not None


@pytest.fixture(autouse=True)
def _encrypted(_no_settings_of_ours: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Encrypt payloads; fail unless the test has written or read some that are encrypted."""
    monkeypatch.setenv("SQUAD_ENCRYPT_PAYLOADS", "true")
    used: list[str] = []
    for name in ("seal", "_unseal"):
        monkeypatch.setattr(sealing, name, _noting(name, used))
    yield
    assert used, "nothing was encrypted: mark the test with nothing_sealed"


def _noting(name: str, used: list[str]) -> Any:
    original = getattr(sealing, name)

    def note_and_call(*arguments: Any, **more: Any) -> Any:
        used.append(name)
        return original(*arguments, **more)

    return note_and_call
