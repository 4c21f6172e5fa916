"""Docstrings name exceptions that exist. (What they say of parameters is checked by ruff.)"""

from __future__ import annotations

import ast
import builtins
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PACKAGES = ("eventstore", "projections", "service", "benchmarks", "examples")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

_RAISES = re.compile(r"^Raises:\n((?: {4}.*\n?|\n)*)", re.MULTILINE)
_NAMED = re.compile(r"^ {4}([\w., ]+):", re.MULTILINE)


def test_exceptions_in_docstrings_exist() -> None:
    trees = {path: ast.parse(path.read_text()) for path in MODULES}
    known = {*dir(builtins), *(name for tree in trees.values() for name in _known(tree))}
    unknown = {
        f"{path.relative_to(ROOT)}: {name}"
        for path, tree in trees.items()
        for name in _raised(tree)
        if not known.intersection((name, name.partition(".")[0]))
    }
    assert not unknown


def _raised(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for section in _RAISES.findall(ast.get_docstring(node) or ""):
                for names in _NAMED.findall(section):
                    yield from re.split(r"[, ]+", names)


def _known(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (item.asname or item.name for item in node.names)
