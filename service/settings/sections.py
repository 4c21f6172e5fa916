"""The sections of `squad.toml`: what its tables may hold. A job's is `service.job_spec`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from service.commands import RegisterAgent
from service.scheduling.calls import decode_secret
from service.values import Name, Priority, Tokens, Url

if TYPE_CHECKING:
    from projections.agents import AgentRow


def _as_written(value: object, kind: object) -> object:
    """Refuses what pydantic takes for something else: 1 for true, false for 0, and 5.0 for 5."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is bool and is_number:
        raise ValueError("must be true or false, not a number")
    if kind in (int, float) and isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    if kind is int and isinstance(value, float):
        raise ValueError("must be a whole number, written without a point")
    return value


def _whole(value: object) -> object:
    return _as_written(value, int)


class Section(BaseModel):
    """A section of the file, or all of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _check_kind(cls, value: object, info: ValidationInfo) -> object:
        return _as_written(value, cls.model_fields[str(info.field_name)].annotation)


class AgentSettings(Section):
    """An agent that is registered when the service starts."""

    role: Name
    url: Url | None = None
    priority: Priority = 0
    secret: SecretStr | None = None
    """Signs the calls to the agent; base64, as a rule with the prefix whsec_. Never in the log."""

    def registration(self, name: str, known: AgentRow | None) -> RegisterAgent:
        """The command to register it, where it is `known` by what was registered before."""
        register = RegisterAgent(name=name, role=self.role, url=self.url, priority=self.priority)
        kept = {"url", "priority"} - self.model_fields_set if known else set[str]()
        # As it is in the log, also where nobody could register it like that today.
        return register.model_copy(update={field: getattr(known, field) for field in kept})

    @field_validator("secret")
    @classmethod
    def _is_base64(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is None:
            return None
        try:
            key = decode_secret(secret.get_secret_value())
        except ValueError:
            key = b""
        if not key:
            raise ValueError("must be base64, with or without the prefix whsec_")
        return secret


class BudgetSettings(Section):
    """What the budget needs beyond single values."""

    agent_limits: dict[Name, Annotated[Tokens, BeforeValidator(_whole)]] = Field(default_factory=dict)
