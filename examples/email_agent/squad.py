"""A client for the part of the orchestrator's API that the agent needs."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

import aiohttp
from pydantic import BaseModel, ConfigDict, ValidationError

if TYPE_CHECKING:
    from examples.email_agent.settings import Settings

CURRENT_RUN: ContextVar[str | None] = ContextVar("run", default=None)
"""The current run. Requests carry it as correlation id, so the log ties them to the run."""

_TIMEOUT = aiohttp.ClientTimeout(total=15, connect=5)


class SquadError(Exception):
    """The orchestrator cannot be reached or cannot answer now. A retry may help."""


class SquadRefusal(SquadError):
    """The orchestrator refused. A retry would not help."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"the orchestrator answered {status} {code}: {detail}")
        self.status = status
        self.code = code


class Email(BaseModel):
    """An e-mail in the orchestrator's log."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    from_email: str
    subject: str | None
    category: str
    status: Literal["unread", "classified", "draft_created", "sent", "archived"]
    payload: dict[str, Any] | None
    position: int
    """That of its last change."""


class Squad:
    """The orchestrator, over HTTP."""

    def __init__(self, settings: Settings, http: aiohttp.ClientSession) -> None:
        self._url = f"{settings.squad_url}/api/v1"
        self._http = http
        self._headers = {"User-Agent": settings.name}
        if settings.squad_api_key:
            self._headers["Authorization"] = f"Bearer {settings.squad_api_key.get_secret_value()}"
        self._written = 0

    async def log_email(self, fields: dict[str, Any]) -> bool:
        """Log an e-mail; return False if it is already known.

        Raises:
            SquadError: it was not logged.
        """
        try:
            await self._call("POST", "/emails", fields)
        except SquadRefusal as refusal:
            if refusal.code == "email_exists":
                return False
            raise
        return True

    async def email(self, email_id: str) -> Email:
        """An e-mail in its current state, which includes all our own writes.

        Raises:
            SquadError: it cannot be read.
        """
        answer = await self._call("GET", f"/emails/{email_id}?min_position={self._written}")
        try:
            return Email.model_validate(answer)
        except ValidationError as error:
            raise SquadError(f"the orchestrator's answer for e-mail {email_id} is invalid") from error

    async def update_email(self, email: Email, changes: dict[str, Any]) -> bool:
        """Change fields of an e-mail; return False instead if it has changed since it was read.

        Raises:
            SquadError: they were not changed, or it is unknown whether they were.
        """
        try:
            await self._call("PATCH", f"/emails/{email.id}", {**changes, "if_position": email.position})
        except SquadRefusal as refusal:
            if refusal.code == "changed":
                return False
            raise
        return True

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        run = CURRENT_RUN.get()
        headers = {**self._headers, "X-Correlation-Id": run} if run else self._headers
        try:
            async with self._http.request(
                method,
                self._url + path,
                json=body,
                headers=headers,
                timeout=_TIMEOUT,
                allow_redirects=False,
            ) as response:
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise SquadError(f"the orchestrator at {self._url} cannot be reached: {error!r}") from error
        except ValueError as error:
            raise SquadError(f"the orchestrator at {self._url} did not answer in JSON") from error
        if not isinstance(answer, dict):
            raise SquadError(f"the orchestrator at {self._url} did not answer with a JSON object")
        if response.status >= 300:
            refusal = SquadRefusal(
                response.status, str(answer.get("code")), str(answer.get("detail", ""))[:300]
            )
            # A timeout, a rate limit or a server error is temporary.
            if response.status in (408, 429) or response.status >= 500:
                raise SquadError(str(refusal))
            raise refusal
        if isinstance(position := answer.get("position"), int) and method != "GET":
            self._written = max(self._written, position)
        return answer
