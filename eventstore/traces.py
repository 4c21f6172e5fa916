"""Find what the log holds about a subject, before it is forgotten, to report what can be erased.

A subject is a message, given by its id, or a sender, given by the address.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from eventstore.events import EmailReceived, EmailUpdated, MessageSent
from eventstore.subjects import NO_TRACE, Trace, digest_of, sender
from eventstore.translation import translating

if TYPE_CHECKING:
    from eventstore.connection import Connection

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

_MESSAGE = f"""
    SELECT data #>> '{{sealed,key}}' FROM events
    WHERE stream = %s AND type = '{MessageSent.type}' ORDER BY version LIMIT 1
"""
_KEY_STATE = """
    SELECT (SELECT id::text FROM subject_keys WHERE id = %(key)s::uuid),
           (SELECT max(position) FROM events WHERE stream = 'subject-' || %(key)s)
"""
_KEY_OF_SENDER = "SELECT id::text FROM subject_keys WHERE subject = %s"

# The condition on the type is that of the index events_by_key.
_SEALED_WITH = f"""
    SELECT DISTINCT stream FROM events
    WHERE type IN ('{EmailReceived.type}', '{EmailUpdated.type}') AND data #>> '{{sealed,key}}' = %s
    ORDER BY stream
"""
_SENDERS_IN_PLAIN = f"""
    SELECT DISTINCT data ->> 'from_email' FROM events
    WHERE type = '{EmailReceived.type}' AND data -> 'sealed' IS NULL
"""
_IN_PLAIN = f"""
    SELECT count(DISTINCT stream) FROM events
    WHERE data -> 'sealed' IS NULL AND (
        (type = '{EmailReceived.type}' AND data ->> 'from_email' = ANY(%s))
        OR (type = '{EmailUpdated.type}' AND data ->> 'payload' IS NOT NULL AND stream = ANY(%s)))
"""


async def find(connection: Connection, subject: str) -> Trace:
    """Return what the log holds about a subject, as the connection sees it now."""
    with translating():
        if _UUID.fullmatch(subject):
            id_ = subject.lower()
            row = await (await connection.execute(_MESSAGE, (f"message-{id_}",))).fetchone()
            if row is not None:
                return await _of_message(connection, id_, row[0])
        row = await (await connection.execute(_KEY_OF_SENDER, (digest_of(subject),))).fetchone()
        if row is None:
            return NO_TRACE
        return Trace(row[0], tuple(await _emails(connection, row[0])))


async def in_plain(connection: Connection, subject: str) -> int:
    """Count the e-mails of a sender that are in plain text, in whole or in part: they can never be erased.

    This reads every e-mail that was logged in plain text, so it is slow in a log that has many of them.
    """
    address = sender(subject)
    with translating():
        cursor = await connection.execute(_SENDERS_IN_PLAIN)
        written = [name async for (name,) in cursor if name is not None and sender(name) == address]
        found = await find(connection, subject)
        if not written and not found.emails:
            return 0
        streams = [f"email-{email_id}" for email_id in found.emails]
        row = await (await connection.execute(_IN_PLAIN, (written, streams))).fetchone()
    assert row is not None
    return int(row[0])


async def _of_message(connection: Connection, message_id: str, key_id: str | None) -> Trace:
    if key_id is None:
        return Trace(message=message_id, in_plain=True)
    row = await (await connection.execute(_KEY_STATE, {"key": key_id})).fetchone()
    assert row is not None
    return Trace(row[0], message=message_id, forgotten_at=row[1])


async def _emails(connection: Connection, key_id: str) -> list[str]:
    cursor = await connection.execute(_SEALED_WITH, (key_id,))
    return [stream.removeprefix("email-") for (stream,) in await cursor.fetchall()]
