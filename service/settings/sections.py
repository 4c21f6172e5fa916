"""The sections of `squad.toml` and their fields. That of a job is in `service.job_spec`."""

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


def _refuse_conversion(value: object, kind: object) -> object:
    """Refuse what pydantic would convert: 1 to true, false to 0, and 5.0 to 5."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is bool and is_number:
        raise ValueError("must be true or false, not a number")
    if kind in (int, float) and isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    if kind is int and isinstance(value, float):
        raise ValueError("must be a whole number, without a decimal point")
    return value


def _whole(value: object) -> object:
    return _refuse_conversion(value, int)


class Section(BaseModel):
    """A section of the file, or all of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _check_kind(cls, value: object, info: ValidationInfo) -> object:
        return _refuse_conversion(value, cls.model_fields[str(info.field_name)].annotation)


class AgentSettings(Section):
    """An agent to register when the service starts."""

    role: Name
    url: Url | None = None
    priority: Priority = 0
    secret: SecretStr | None = None
    """Signs the calls to the agent; base64, usually with the prefix whsec_. Never stored in the log."""

    def registration(self, name: str, known: AgentRow | None) -> RegisterAgent:
        """Return the command that registers it; `known` is its row if it is already registered."""
        register = RegisterAgent(name=name, role=self.role, url=self.url, priority=self.priority)
        kept = {"url", "priority"} - self.model_fields_set if known else set[str]()
        # Without validation: what is in the log stays, even if it could not be registered like that today.
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
    """The budget's settings beyond single values."""

    agent_limits: dict[Name, Annotated[Tokens, BeforeValidator(_whole)]] = Field(default_factory=dict)
