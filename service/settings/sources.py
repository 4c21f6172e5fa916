"""The sources of settings: `squad.toml` and the environment."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic_settings import EnvSettingsSource, TomlConfigSettingsSource

from service.settings.errors import SettingsError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable
    from pathlib import Path

_SERVICE_LINK = re.compile(r"[a-z]+://.+:[0-9]+")


class TomlFile(TomlConfigSettingsSource):
    """`squad.toml`. Its `schema` is renamed, because pydantic models reserve that name."""

    def __call__(self) -> dict[str, Any]:
        """Return the settings in the file."""
        values = super().__call__()
        if "schema" in values:
            values["SQUAD_SCHEMA"] = values.pop("schema")
        return values

    def _read_file(self, file_path: Path | Traversable) -> dict[str, Any]:
        try:
            return super()._read_file(file_path)
        except OSError as error:
            raise SettingsError(f"{file_path} cannot be read: {error.strerror}") from error
        except RecursionError as error:
            raise SettingsError(f"{file_path} is nested too deep") from error
        except ValueError as error:
            raise SettingsError(f"{file_path} is not valid TOML: {error}") from error


class Environment(EnvSettingsSource):
    """The variables, except the `SQUAD_PORT` that Kubernetes sets for a service named `squad`."""

    def __call__(self) -> dict[str, Any]:
        """Return the settings in the environment."""
        values = super().__call__()
        if _SERVICE_LINK.fullmatch(values.get("port", "")):
            del values["port"]
        return values
