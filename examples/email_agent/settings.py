"""The agent's settings: environment variables `EMAIL_AGENT_...`, explained in `docs/email-agent.md`."""

from __future__ import annotations

import base64
import binascii
import ipaddress
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "EMAIL_AGENT_"


class SettingsError(Exception):
    """Settings are wrong. One line for each, with the variable and what is allowed, never a secret."""


def _is_webhook_secret(value: SecretStr) -> SecretStr:
    key = value.get_secret_value()
    try:
        decoded = base64.b64decode(key.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if not decoded:
        raise ValueError("must be base64, usually with the prefix whsec_")
    return value


Line = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""A single line of text, safe in IMAP commands and headers."""

BaseUrl = Annotated[
    str, StringConstraints(pattern=r"^https?://[^\s?#]+$"), AfterValidator(lambda url: url.rstrip("/"))
]
"""An http or https URL that paths are appended to."""


class Settings(BaseSettings):
    """All settings."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, hide_input_in_errors=True
    )

    host: Line = "127.0.0.1"
    port: int = Field(default=3002, ge=0, le=65_535)
    name: Line = "email_agent"
    webhook_secret: Annotated[SecretStr, AfterValidator(_is_webhook_secret)] | None = None

    squad_url: BaseUrl = Field(
        default="http://127.0.0.1:3001", validation_alias=AliasChoices(f"{PREFIX}SQUAD_URL", "SQUAD_URL")
    )
    squad_api_key: SecretStr | None = None

    imap_host: Line = "127.0.0.1"
    imap_port: int = Field(default=993, ge=1, le=65_535)
    imap_security: Literal["tls", "starttls", "none"] = "tls"
    imap_user: Line
    imap_password: SecretStr
    imap_mailbox: Line = "INBOX"
    imap_timeout_seconds: float = Field(default=20.0, gt=0, le=300)
    bootstrap_messages: int = Field(default=50, ge=0, le=1_000)
    poll_messages: int = Field(default=50, ge=1, le=1_000)
    message_bytes: int = Field(default=262_144, ge=4_096, le=10_000_000)

    save_drafts: bool = False
    drafts_mailbox: Line | None = None

    signature: str = Field(default="Kind regards\nThe team", max_length=1_000)
    persona: str = Field(default="a friendly, concise member of a small shop's staff", max_length=1_000)

    llm_base_url: BaseUrl | None = None
    llm_model: Line | None = None
    llm_api_key: SecretStr | None = None
    llm_timeout_seconds: float = Field(default=20.0, gt=0, le=300)

    @model_validator(mode="after")
    def _check_combinations(self) -> Settings:
        if self.imap_security == "none" and not is_loopback(self.imap_host):
            raise ValueError(
                f"{PREFIX}IMAP_SECURITY=none would send the password in clear to {self.imap_host}: "
                "it is only allowed for a server on this machine"
            )
        if (self.llm_base_url is None) != (self.llm_model is None):
            raise ValueError(f"{PREFIX}LLM_BASE_URL and {PREFIX}LLM_MODEL must be set together")
        return self


def is_loopback(host: str) -> bool:
    """Whether a host is always this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read() -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: a setting is wrong or missing.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError("\n".join(map(_explain, error.errors()))) from error


def _explain(error: object) -> str:
    assert isinstance(error, dict)
    message = str(error["msg"]).removeprefix("Value error, ")
    path = [str(part) for part in error["loc"]]
    if not path:
        return message
    name = path[0] if path[0].isupper() else PREFIX + path[0].upper()
    return f"{name}: {message[0].lower()}{message[1:]}"
