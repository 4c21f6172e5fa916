"""email_logs: the squad's e-mails, from received to sent."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from eventstore.events import ERASED, EmailReceived, EmailStatus, EmailUpdated, SubjectForgotten
from projections.projection import MissingRow, Projection, Row, Table, key_in, keys_in, require

if TYPE_CHECKING:
    from eventstore.recorded import AnyRecorded
    from projections.projection import View


class EmailRow(Row, frozen=True):
    """An e-mail; there is one per `gmail_message_id`."""

    id: str
    gmail_message_id: str
    from_email: str
    subject: str | None
    category: str
    status: EmailStatus
    handled_by: str | None
    payload: dict[str, Any] | None
    created_at: datetime
    updated_at: datetime
    created_position: int
    position: int


EMAILS = Table[str, EmailRow](
    "email_logs",
    EmailRow,
    key=("id",),
    types=(
        "uuid",
        "text",
        "text",
        "text",
        "text",
        "text",
        "text",
        "jsonb",
        "timestamptz",
        "timestamptz",
        "bigint",
        "bigint",
    ),
    large_columns=("subject", "payload"),
)

emails = Projection("emails", (EMAILS,))


@emails.on(EmailReceived, creates=(key_in(EMAILS, "email_id"),))
def _received(view: View, event: EmailReceived, recorded: AnyRecorded) -> None:
    row = EmailRow(
        event.email_id,
        event.gmail_message_id,
        event.from_email,
        event.subject,
        event.category,
        event.status,
        event.handled_by,
        event.payload,
        recorded.recorded_at,
        recorded.recorded_at,
        recorded.position,
        recorded.position,
    )
    view.rows(EMAILS).put(event.email_id, row)


@emails.on(EmailUpdated, reads=(key_in(EMAILS, "email_id"),))
def _updated(view: View, event: EmailUpdated, recorded: AnyRecorded) -> None:
    row = require(view, EMAILS, event.email_id).replaced(
        category=event.category,
        status=event.status,
        handled_by=event.handled_by,
        payload=event.payload,
        updated_at=recorded.recorded_at,
        position=recorded.position,
    )
    view.rows(EMAILS).put(event.email_id, row)


@emails.on(SubjectForgotten, reads=(keys_in(EMAILS, "emails"),))
def _forgotten(view: View, event: SubjectForgotten, recorded: AnyRecorded) -> None:
    """Erase what is forgotten, so that the rows are the same whether it was still readable or not."""
    rows = view.rows(EMAILS)
    missing: list[str] = []
    for email_id in event.emails:
        row = rows.get(email_id)
        if row is None:
            missing.append(email_id)
            continue
        erased = row.replaced(
            from_email=ERASED,
            subject=None,
            payload=None,
            updated_at=recorded.recorded_at,
            position=recorded.position,
        )
        rows.put(email_id, erased)
    if missing:
        # Raised only after all others are erased: the decision state has only some of them.
        raise MissingRow(EMAILS, missing[0])
