"""The name of the code that folds: it changes by itself when the code does.

What was folded earlier and put away, such as a snapshot, is worth something only to the same folds. Nobody
has to remember to raise a number: the name is the SHA-256 over the source of every module that takes part,
and of some that do not, because it is better to fold once more than to believe what is no longer true.
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
    """The name of the code on disk. It is that of the code in memory only soon after a start.

    Where the code cannot be read, nobody can say what it is: then no other process has the name.
    """
    try:
        return name_of((name, source(name)) for name in sorted(_in_packages()))
    except OSError:
        return f"unreadable {uuid4()}"


def name_of(sources: Iterable[tuple[str, bytes]]) -> str:
    """The name of these modules, each given by its name and source, in an order that is always the same."""
    digest = sha256()
    for name, text in sources:
        digest.update(f"{name}\n{len(text)}\n".encode())
        digest.update(text)
    return digest.hexdigest()


def source(module: str) -> bytes:
    """A module's source, wherever it was installed from; its byte code where there is no source."""
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
