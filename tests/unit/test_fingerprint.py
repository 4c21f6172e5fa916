"""The fingerprint changes with the code that folds, and with nothing else."""

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
PRINT_FINGERPRINT = (
    "from service.history.snapshots import FOLD; import service; print(FOLD, service.__file__)"
)


def _fingerprint_in_a_process(where: Path) -> tuple[str, str]:
    """The fingerprint that a new process prints, and the file from which it imported the code."""
    finished = subprocess.run(
        [sys.executable, "-c", PRINT_FINGERPRINT],
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


def test_fingerprint_is_the_same_in_every_process_wherever_the_code_is(copy: Path, tmp_path: Path) -> None:
    assert fold_fingerprint() == FOLD
    name, origin = _fingerprint_in_a_process(copy)
    assert (name, Path(origin).is_relative_to(copy)) == (FOLD, True)
    archive = tmp_path / "squad.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in copy.rglob("*.py"):
            packed.write(path, path.relative_to(copy))
    name, origin = _fingerprint_in_a_process(archive)
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
def test_fingerprint_changes_with_each_module_that_takes_part(copy: Path, module: str) -> None:
    path = copy / module
    path.write_bytes(path.read_bytes().replace(b"\n\n\n", b"\n\n\n\n", 1))
    assert _fingerprint_in_a_process(copy)[0] != FOLD


def test_fingerprint_changes_with_a_new_module(copy: Path) -> None:
    (copy / "projections" / "moods.py").write_text("")
    assert _fingerprint_in_a_process(copy)[0] != FOLD


def test_fingerprint_does_not_change_with_a_module_that_takes_no_part(copy: Path) -> None:
    (copy / "service" / "scheduling" / "scheduler.py").write_text("")
    assert _fingerprint_in_a_process(copy)[0] == FOLD


def test_fingerprint_changes_when_text_moves_between_modules() -> None:
    assert name_of([("a", b"one"), ("b", b"two")]) != name_of([("a", b"onetwo"), ("b", b"")])
    assert name_of([("a", b"one")]) != name_of([("b", b"one")])


def test_missing_module_is_an_error_and_not_an_empty_module() -> None:
    with pytest.raises(ModuleNotFoundError):
        fingerprint.source("service.nowhere")


def test_unreadable_code_has_a_unique_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(module: str) -> bytes:
        raise FileNotFoundError(module)

    monkeypatch.setattr(fingerprint, "source", unreadable)
    assert len({fold_fingerprint(), fold_fingerprint(), FOLD}) == 3
