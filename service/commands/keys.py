"""Commands about API keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from eventstore.events import KeyScope
from service.api_keys import DIGEST_PATTERN, ID_PATTERN
from service.commands.base import Command
from service.values import Name, ShortText

KeyId = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
Days = Annotated[int, Field(ge=1, le=36_500)]


class CreateKey(Command):
    """Register a key by its digest; only the caller has the key itself."""

    key_id: KeyId
    digest: Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]
    scope: KeyScope
    for_agent: Name | None = None
    """The agent whose key it is; the key can act only as that agent."""
    note: ShortText | None = None
    expires_days: Days | None = None

    @model_validator(mode="after")
    def _check_agent(self) -> CreateKey:
        if (self.scope == "agent") != (self.for_agent is not None):
            raise ValueError("an agent's key needs an agent, and no other key has one")
        return self


class NoteKeyUse(Command):
    """Record that a key was used for the first time."""

    key_id: KeyId


class RevokeKey(Command):
    """Revoke a key; from now on it is not accepted."""

    key_id: KeyId
