"""The name of the fold changes with the code that folds, and with nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import service
from service.history import fingerprint
from service.history.fingerprint import fold_fingerprint, name_of
from service.history.snapshots import FOLD

REPOSITORY = Path(service.__file__).parent.parent
PACKAGES = ("eventstore", "projections", "service")
NAMED = "from service.history.snapshots import FOLD; import service; print(FOLD, service.__file__)"


def _named(where: Path) -> tuple[str, str]:
    """The name that the code there has in a process of its own, and from where that took it."""
    finished = subprocess.run(
        [sys.executable, "-c", NAMED],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(where), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    name, origin = finished.stdout.split()
    return name, origin


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages as a wheel would install them."""
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / package, tmp_path / "site" / package, ignore=ignored)
    return tmp_path / "site"


def test_it_is_the_same_in_every_process_wherever_the_code_lies(copy: Path, tmp_path: Path) -> None:
    assert fold_fingerprint() == FOLD
    name, origin = _named(copy)
    assert (name, Path(origin).is_relative_to(copy)) == (FOLD, True)
    archive = tmp_path / "squad.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in copy.rglob("*.py"):
            packed.write(path, path.relative_to(copy))
    name, origin = _named(archive)
    assert (name, origin.startswith(str(archive))) == (FOLD, True)


@pytest.mark.parametrize(
    "module",
    [
        "projections/budgets.py",
        "projections/projection.py",
        "eventstore/events/jobs.py",
        "eventstore/codec.py",
        "service/memory/squad.py",
        "service/memory/state.py",
        "service/memory/draft.py",
        "service/memory/residence.py",
        "service/history/snapshots.py",
    ],
)
def test_it_changes_with_every_module_that_takes_part(copy: Path, module: str) -> None:
    path = copy / module
    path.write_bytes(path.read_bytes().replace(b"\n\n\n", b"\n\n\n\n", 1))
    assert _named(copy)[0] != FOLD


def test_it_changes_with_a_module_that_is_new(copy: Path) -> None:
    (copy / "projections" / "moods.py").write_text("")
    assert _named(copy)[0] != FOLD


def test_it_does_not_change_with_what_has_no_part_in_it(copy: Path) -> None:
    (copy / "service" / "scheduling" / "scheduler.py").write_text("")
    assert _named(copy)[0] == FOLD


def test_text_cannot_move_from_one_module_to_the_next_unseen() -> None:
    assert name_of([("a", b"one"), ("b", b"two")]) != name_of([("a", b"onetwo"), ("b", b"")])
    assert name_of([("a", b"one")]) != name_of([("b", b"one")])


def test_a_module_that_is_not_there_is_no_module_without_text() -> None:
    with pytest.raises(ModuleNotFoundError):
        fingerprint.source("service.nowhere")


def test_code_that_cannot_be_read_is_like_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(module: str) -> bytes:
        raise FileNotFoundError(module)

    monkeypatch.setattr(fingerprint, "source", unreadable)
    assert len({fold_fingerprint(), fold_fingerprint(), FOLD}) == 3
