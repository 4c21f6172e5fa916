"""A fingerprint of the folding code, which changes whenever that code does.

A stored result of folding, such as a snapshot, is valid only for the code that produced it. Nobody has to
remember to bump a version: the fingerprint is the SHA-256 of the source of every module that takes part,
and of some that do not, because folding again is better than trusting a stale result.
"""

from __future__ import annotations

import pkgutil
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from importlib.machinery import SourceFileLoader

PACKAGES = ("eventstore", "projections", "service.memory", "service.history")


def fold_fingerprint() -> str:
    """Return the fingerprint of the code on disk, which is the code in memory only just after startup.

    If the code cannot be read, return a value that no other process has.
    """
    try:
        return name_of((name, source(name)) for name in sorted(_in_packages()))
    except OSError:
        return f"unreadable {uuid4()}"


def name_of(sources: Iterable[tuple[str, bytes]]) -> str:
    """Hash modules, given as pairs of name and source in a stable order."""
    digest = sha256()
    for name, text in sources:
        digest.update(f"{name}\n{len(text)}\n".encode())
        digest.update(text)
    return digest.hexdigest()


def source(module: str) -> bytes:
    """Return a module's source, wherever it is installed; its bytecode if there is no source."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    return cast("SourceFileLoader", spec.loader).get_data(spec.origin)


def _in_packages() -> Iterator[str]:
    for package in PACKAGES:
        yield package
        path = import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            yield module.name
