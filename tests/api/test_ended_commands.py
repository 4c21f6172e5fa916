"""Commands that are told to end before they have: what they made for themselves goes with them."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.command import end, squad_command
from tests.support.embedded import new_data_folder, postmaster_pid
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOR_LONG = ("bench", "--seconds", "60")


@pytest.fixture
def folder() -> Iterator[Path]:
    with new_data_folder() as made:
        yield made


async def test_the_embedded_postgres_is_stopped(folder: Path, tmp_path: Path) -> None:
    async with squad_command(*FOR_LONG, "--data", str(folder), cwd=tmp_path) as process:
        await eventually(lambda: postmaster_pid(folder), within_seconds=60)
        process.send_signal(signal.SIGINT)
        assert (await end(process)).code == 128 + signal.SIGINT
    assert postmaster_pid(folder) is None
