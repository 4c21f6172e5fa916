"""The service's settings: read once, frozen.

Defaults, overridden by `squad.toml`, overridden by environment variables, overridden by the command line.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic_settings
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from eventstore.connection import SCHEMA_NAME
from service.commands import RegisterAgent, SetPolicy
from service.job_spec import JobSpec, merge_job, seed_jobs
from service.logs import LogFormat, LogLevel
from service.settings.errors import SettingsError, explain, explain_json, misspelt_variables
from service.settings.places import Dsn, File
from service.settings.sections import AgentSettings, BudgetSettings, Section
from service.settings.sources import Environment, TomlFile
from service.values import Name, Timezone, Tokens, Url, WindowSeconds, check_timezone

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventstore.events import JobSource
    from projections.agents import AgentRow
    from projections.budgets import PolicyRow

DEFAULT_CONFIG = Path("squad.toml")
_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_POLICY = (
    "daily_tokens",
    "reset_hour",
    "timezone",
    "conflict_window_seconds",
    "operation_timeout_seconds",
    "idle_after_minutes",
    "offline_after_minutes",
)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _split(value: object) -> object:
    """Split a comma-separated list, as it comes from the environment."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


def _networks(value: object) -> tuple[Network, ...]:
    try:
        return tuple(map(_network, _split(value)))  # type: ignore[call-overload]
    except (ValueError, TypeError) as error:
        raise ValueError("must be addresses or networks, such as 10.0.0.5 or 10.0.0.0/24") from error


def _network(text: object) -> Network:
    # The library also accepts a number as an address.
    if not isinstance(text, str):
        raise TypeError
    return ipaddress.ip_network(text)


def _check_origin(origin: str) -> str:
    if not _ORIGIN.fullmatch(origin):
        raise ValueError("must be an origin, such as https://board.example.org, without a path")
    return origin


Origin = Annotated[str, AfterValidator(_check_origin)]
"""Scheme, host and port of a web page, exactly as browsers send them."""

RequestsPerSecond = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
"""A rate; 0 means no limit."""


class Settings(BaseSettings, Section):
    """All settings; the README has a table of them."""

    model_config = SettingsConfigDict(
        env_prefix="SQUAD_",
        extra="forbid",
        frozen=True,
        env_ignore_empty=True,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    dsn: Dsn | None = None
    listen_dsn: Dsn | None = None
    squad_schema: Annotated[str, Field(pattern=f"^{SCHEMA_NAME.pattern}$", alias="SQUAD_SCHEMA")] = "squad"
    data: File = Path(".squad")
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=3001, ge=0, le=65_535)
    agents_url: Url = "http://localhost:3002"
    daily_tokens: Tokens = 100_000
    reset_hour: int = Field(default=0, ge=0, le=23)
    timezone: Timezone = "UTC"
    conflict_window_seconds: WindowSeconds = 30.0
    operation_timeout_seconds: WindowSeconds = 60.0
    idle_after_minutes: float = Field(default=10.0, gt=0, le=1_000_000)
    offline_after_minutes: float = Field(default=60.0, gt=0, le=1_000_000)
    encrypt_payloads: bool = False
    """Whether personal data in messages and e-mails is stored encrypted, so that it can be forgotten."""
    seed_jobs: bool = True
    """Whether to define the seed's seven jobs and their agents by default."""
    checkpoint_key: File | None = None
    """Signs the checkpoints of `squad checkpoint`."""
    insecure: bool = False
    """Whether to serve a squad without keys to other machines."""
    key_requests_per_second: RequestsPerSecond = 1_000.0
    address_requests_per_second: RequestsPerSecond = 1_000.0
    max_streams: int = Field(default=2_000, ge=1, le=100_000)
    max_streams_per_key: int = Field(default=1_000, ge=1, le=100_000)
    cors_origins: Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(_split)] = ()
    """The origins of web pages that may use the API."""
    trusted_proxies: Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_networks)] = ()
    """The proxies whose X-Forwarded-For is trusted."""
    log_format: LogFormat = "console"
    log_level: LogLevel = "info"
    budget: BudgetSettings = BudgetSettings()
    agents: dict[Name, AgentSettings] = Field(default_factory=dict)
    jobs: dict[Name, dict[str, Any]] = Field(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources by priority: flags, then the environment, then the file."""
        del env_settings, dotenv_settings, file_secret_settings
        return init_settings, Environment(settings_cls), TomlFile(settings_cls, _config.path)

    def policy(self) -> SetPolicy:
        """Return the policy settings that were given. The others stay as they are in the log."""
        named: dict[str, Any] = {
            name: getattr(self, name) for name in _POLICY if name in self.model_fields_set
        }
        if "agent_limits" in self.budget.model_fields_set:
            named["agent_limits"] = dict(self.budget.agent_limits)
        return SetPolicy(**named)

    def job_specs(self, policy: PolicyRow | None = None) -> dict[str, tuple[JobSource, JobSpec]]:
        """Return the seed's jobs and the squad's own, which override them.

        Args:
            policy: the squad's policy, for the reset hour and the default time zone; None for the
            settings'.

        Raises:
            SettingsError: the definition of a job is not valid.
        """
        reset_hour, timezone = self.reset_hour, self.timezone
        if policy:
            # A time zone that this machine does not know cannot be used to define jobs.
            with suppress(ValueError):
                reset_hour, timezone = policy.reset_hour, check_timezone(policy.timezone)
        seeds = seed_jobs(reset_hour, timezone) if self.seed_jobs else {}
        specs: dict[str, tuple[JobSource, JobSpec]] = {}
        faults: list[str] = []
        for name in [*seeds, *(name for name in self.jobs if name not in seeds)]:
            own = self.jobs.get(name)
            merged = merge_job(seeds.get(name, {"timezone": timezone}), own or {})
            try:
                specs[name] = ("default" if own is None else "settings", JobSpec.model_validate(merged))
            except ValidationError as error:
                faults += [explain(item, f"jobs.{name}") for item in error.errors()]
        if faults:
            raise SettingsError("\n".join(faults))
        return specs

    def secrets(self) -> dict[str, str]:
        """Return the agents' secrets, by name."""
        return {
            name: agent.secret.get_secret_value() for name, agent in self.agents.items() if agent.secret
        }

    def registrations(self, known: Callable[[str], AgentRow | None]) -> list[RegisterAgent]:
        """Return commands to register the settings' agents. Known ones keep what is not set."""
        return [agent.registration(name, known(name)) for name, agent in self.agents.items()]


class _Config:
    """The file to read: pydantic-settings has no other way to pass it to its sources."""

    path: Path | None = None


_config = _Config()


def read(config: Path | None = None, **flags: Any) -> Settings:
    """Read the settings.

    Args:
        config: the file; by default `SQUAD_CONFIG`, otherwise `./squad.toml` if it exists.
        flags: the command line's settings; None if not given.

    Raises:
        SettingsError: a setting is wrong, or the file cannot be read.
    """
    named = config or (Path(os.environ["SQUAD_CONFIG"]) if os.environ.get("SQUAD_CONFIG") else None)
    if named and not _exists(named):
        raise SettingsError(f"the configuration file {named} does not exist")
    _config.path = named or (DEFAULT_CONFIG if _exists(DEFAULT_CONFIG) else None)
    given = {name: value for name, value in flags.items() if value is not None}
    if "data" in given and "dsn" not in given:
        # --data means the database in that folder, whatever else is set.
        given |= {"dsn": None, "listen_dsn": None}
    try:
        settings = Settings(**given)
    except RecursionError as error:
        raise SettingsError("a setting is nested too deep") from error
    except pydantic_settings.SettingsError as error:
        raise SettingsError(explain_json(error)) from error
    except ValidationError as error:
        raise SettingsError(
            "\n".join(explain(item, settings=_names()) for item in error.errors())
        ) from error
    finally:
        # `Settings` that are created directly, as in tests, read no file.
        _config.path = None
    settings.job_specs()
    return settings


def misspelt() -> list[str]:
    """Return a line for each environment variable that looks like a misspelt setting."""
    return list(misspelt_variables(_names() | {"config", "squad_schema"}))


def _names() -> set[str]:
    """Return the names of the settings in the file."""
    return {name.removeprefix("squad_") for name in Settings.model_fields}


def _exists(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise SettingsError(f"the configuration file {path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        # Reading a pipe without a writer would block forever.
        raise SettingsError(f"the configuration file {path} is not a regular file")
    return True
