"""Reports what happens in plain words, from the orchestrator's event stream."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from rich.cells import set_cell_size

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_STREAM = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=45)
_COLUMN_CHARACTERS = 46
_LINE_BYTES = 2**22


async def follow(
    http: aiohttp.ClientSession, squad_url: str, key: str | None = None
) -> AsyncIterator[dict[str, Any]]:
    """The events of the log from its beginning, read from the stream of server-sent events."""
    async with http.get(
        f"{squad_url}/api/v1/events/stream?after=0",
        headers={"Authorization": f"Bearer {key}"} if key else None,
        timeout=_STREAM,
        read_bufsize=_LINE_BYTES,
    ) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data:"):
                yield json.loads(line.removeprefix(b"data:"))


@dataclass
class Narrator:
    """Turns events into lines, and counts what happened."""

    subjects: dict[str, str] = field(default_factory=dict)
    categories: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    example: str | None = None
    """The id of the first e-mail that got a draft."""

    @property
    def drafted(self) -> int:
        """The number of drafts."""
        return self.statuses["draft_created"]

    @property
    def settled(self) -> int:
        """The number of e-mails that the agent is done with."""
        return self.drafted + self.statuses["archived"]

    def tell(self, event: dict[str, Any]) -> str | None:
        """The line to print for an event; None for most events."""
        data = event["data"]
        match event["type"]:
            case "email_received":
                return self._received(data)
            case "email_updated":
                return self._updated(data)
            case "run_finished":
                self.runs[data["job"]] += 1
                if data["outcome"] != "succeeded":
                    return f"!  {data['job']} {data['outcome']}: {_short(data['reason'] or '', 120)}"
            case "run_attempt_failed":
                return f"!  {data['job']} failed and is retried: {_short(data['reason'], 120)}"
            case "budget_threshold_crossed":
                return f"!  {data['percent']}% of the day's tokens used"
            case _:
                pass
        return None

    def summary(self) -> str:
        """Return totals of e-mails, categories and runs."""
        received = len(self.subjects)
        lines = [
            f"{received} e-mails received, {sum(self.categories.values())} classified, "
            f"{self.drafted} drafted, {self.statuses['archived']} archived without an answer.",
            "  " + ", ".join(f"{name} {count}" for name, count in self.categories.most_common()),
        ]
        if self.runs:
            lines.append("Runs: " + ", ".join(f"{job} {n}" for job, n in sorted(self.runs.items())))
        return "\n".join(line for line in lines if line.strip())

    def _received(self, data: dict[str, Any]) -> str:
        subject = self.subjects[data["email_id"]] = data["subject"] or "(no subject)"
        return f"<- e-mail    {_column(subject)}  from {data['from_email']}"

    def _updated(self, data: dict[str, Any]) -> str | None:
        subject = _column(self.subjects.get(data["email_id"], data["email_id"]))
        line = None
        if "category" in data["changed"]:
            self.categories[data["category"]] += 1
            line = f"   sorted    {subject}  {data['category']}"
        if "status" in data["changed"]:
            self.statuses[data["status"]] += 1
            if data["status"] == "draft_created":
                self.example = self.example or data["email_id"]
                line = f"-> drafted   {subject}  {_opening(data)}"
            elif data["status"] == "archived":
                line = f"   archived  {subject}  no answer needed"
        return line


def _opening(data: dict[str, Any]) -> str:
    """The first sentence of a draft after its greeting."""
    text = (data.get("payload") or {}).get("draft", {}).get("text", "")
    return f"“{_short(' '.join(text.split()), 60)}”"


def _column(text: str) -> str:
    """A table column of constant width on the screen, in any script."""
    return set_cell_size(_short(text, _COLUMN_CHARACTERS), _COLUMN_CHARACTERS)


def _short(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
