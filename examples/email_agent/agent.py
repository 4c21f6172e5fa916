"""The agent's three jobs."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from examples.email_agent import drafts, mailbox, rules
from examples.email_agent.llm import ModelError, Usage
from examples.email_agent.squad import SquadRefusal

if TYPE_CHECKING:
    from examples.email_agent.drafts import Draft
    from examples.email_agent.llm import Model
    from examples.email_agent.mailbox import Bookmark, Found
    from examples.email_agent.settings import Settings
    from examples.email_agent.squad import Email, Squad

_log = logging.getLogger(__name__)

UNCLASSIFIED = "unclassified"
"""The category of a new e-mail."""

_REMEMBERED_FENCES = 10_000

Report = dict[str, Any]
"""A job's answer to the orchestrator, with the tokens it used."""


class StaleCall(Exception):
    """The call belongs to a claim that has since been superseded."""


class Agent:
    """The jobs that the orchestrator can call.

    The agent may lose everything it remembers, such as the mailbox's bookmark: the orchestrator's log knows
    every e-mail by its id, and accepts none twice.
    """

    def __init__(self, settings: Settings, squad: Squad, model: Model | None) -> None:
        self._settings = settings
        self._squad = squad
        self._model = model
        self._bookmark: Bookmark | None = None
        self._polling = asyncio.Lock()
        self._fences: OrderedDict[str, int] = OrderedDict()

    def check_fencing_token(self, email_id: str, fencing_token: int | None) -> None:
        """Check a call's fencing token, and remember it as the newest one for its e-mail.

        Raises:
            StaleCall: a newer claim on the same e-mail has been seen.
        """
        if fencing_token is None:
            return
        newest = self._fences.get(email_id, fencing_token)
        if fencing_token < newest:
            raise StaleCall(f"fencing token {fencing_token} is older than {newest}")
        self._fences[email_id] = fencing_token
        self._fences.move_to_end(email_id)
        if len(self._fences) > _REMEMBERED_FENCES:
            self._fences.popitem(last=False)

    async def poll(self) -> Report:
        """Log new mail. The bookmark moves only when all of it is in the log.

        Raises:
            MailboxError: the mailbox cannot be read.
            SquadError: the orchestrator cannot be reached.
        """
        async with self._polling:
            page = await asyncio.to_thread(mailbox.read_new, self._settings, self._bookmark)
            counts = {"new": 0, "known": 0, "refused": 0}
            for found in page.messages:
                counts[await self._log_email(found)] += 1
            self._bookmark = page.bookmark
        return {"found": len(page.messages), **counts, "more": page.more, "tokens_used": 0}

    async def classify(self, email_id: str) -> Report:
        """Give an e-mail a category, by the language model if one is set, otherwise by the rules.

        Raises:
            SquadError: the orchestrator cannot be reached, or does not know the e-mail.
        """
        email = await self._squad.email(email_id)
        if email.category != UNCLASSIFIED:
            return _unchanged(email)
        payload = email.payload or {}
        subject, text = email.subject or "", str(payload.get("text") or "")
        verdict = rules.classify(
            subject, text, bulk=bool(payload.get("bulk")), automatic=bool(payload.get("automatic"))
        )
        category, reason, by, usage = verdict.category, verdict.reason, "rules", Usage()
        # Mail that declares itself automatic needs no model.
        if self._model and not payload.get("automatic"):
            try:
                category, reason, usage = await self._model.classify(subject, text)
                by = self._model.name
            except ModelError as error:
                usage = error.usage
                _log.warning("e-mail %s is classified by the rules: %s", email_id, error)
        changes = {
            "category": category,
            # A person may have archived or answered it before it had a category.
            "status": "classified" if email.status == "unread" else email.status,
            "handled_by": self._settings.name,
            "payload": {**payload, "classified": {"by": by, "reason": reason}},
        }
        if not await self._squad.update_email(email, changes):
            return self._passed_over(email_id, usage)
        return {
            "email_id": email_id,
            "category": category,
            "reason": reason,
            "by": by,
            **self._spent(usage),
        }

    async def respond(self, email_id: str) -> Report:
        """Draft an answer to an e-mail, or archive it if it needs none. Nothing is sent.

        Raises:
            SquadError: the orchestrator cannot be reached, or does not know the e-mail.
        """
        email = await self._squad.email(email_id)
        if email.status != "classified":
            return _unchanged(email)
        payload = email.payload or {}
        if not drafts.wanted(email.category, payload, email.from_email):
            archived = {"status": "archived", "handled_by": self._settings.name}
            if not await self._squad.update_email(email, archived):
                return self._passed_over(email_id, Usage())
            return {"email_id": email_id, "status": "archived", "tokens_used": 0}
        draft, usage = await self._draft(email, payload)
        changes = {
            "status": "draft_created",
            "handled_by": self._settings.name,
            "payload": {**payload, "draft": draft.payload()},
        }
        if not await self._squad.update_email(email, changes):
            return self._passed_over(email_id, usage)
        # Only now, so that none is left in the mailbox for an e-mail that somebody else has dealt with.
        saved = await self._save(email_id, draft) if self._settings.save_drafts else None
        report = {
            "email_id": email_id,
            "status": "draft_created",
            "by": draft.written_by,
            **self._spent(usage),
        }
        return report if saved is None else {**report, "saved_to_mailbox": saved}

    async def _log_email(self, found: Found) -> str:
        fields = {
            "gmail_message_id": found.external_id,
            "from_email": found.mail.from_email,
            "subject": found.mail.subject,
            "payload": found.mail.payload(truncated=found.truncated),
        }
        try:
            return "new" if await self._squad.log_email(fields) else "known"
        except SquadRefusal as refusal:
            # The agent lacks access: no message is at fault, so none may be skipped.
            if refusal.status in (401, 403, 404):
                raise
            _log.warning("message %d was not logged: %s", found.uid, refusal)
            return "refused"

    async def _draft(self, email: Email, payload: dict[str, Any]) -> tuple[Draft, Usage]:
        subject, text = email.subject or "", str(payload.get("text") or "")
        usage = Usage()
        written, by = "", "template"
        if self._model:
            try:
                written, usage = await self._model.draft(email.category, subject, text)
                by = self._model.name
            except ModelError as error:
                usage = error.usage
                _log.warning("e-mail %s gets a template: %s", email.id, error)
        if not written:
            written = drafts.from_template(email.category, subject, text, self._settings.signature)
        return drafts.assemble(email.from_email, subject, payload, written, by), usage

    async def _save(self, email_id: str, draft: Draft) -> bool:
        """Save the draft in the mailbox. A failure is only logged: the e-mail log has the draft anyway."""
        message_id = f"<draft-{email_id}@{self._settings.name}.invalid>"
        try:
            raw = draft.as_mime(message_id)
            await asyncio.to_thread(mailbox.save_draft, self._settings, raw, message_id)
        except (mailbox.MailboxError, ValueError) as error:
            _log.warning("the draft for e-mail %s was not saved in the mailbox: %s", email_id, error)
            return False
        return True

    def _passed_over(self, email_id: str, usage: Usage) -> Report:
        """The answer if somebody changed the e-mail during the work on it: their change stands."""
        return {"email_id": email_id, "passed_over": "it was changed meanwhile", **self._spent(usage)}

    def _spent(self, usage: Usage) -> Report:
        """What the work cost: the tokens, and the model that they were spent on."""
        spent: Report = {"usage": asdict(usage)}
        return {**spent, "model": self._model.name} if self._model and usage != Usage() else spent


def _unchanged(email: Email) -> Report:
    """The answer if the work is already done, by an earlier call or by a person."""
    return {"email_id": email.id, "status": email.status, "category": email.category, "tokens_used": 0}
