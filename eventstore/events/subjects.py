"""What happens to those whose payloads are sealed."""

from __future__ import annotations

from typing import ClassVar

from eventstore.events.base import Event


class SubjectForgotten(Event, frozen=True, kw_only=True):
    """Somebody's key was destroyed: by this event, in the transaction that appended it.

    It says what was sealed with the key, which nobody can read any more, and not whose key it was. Where
    that is much, several events share it.
    """

    type: ClassVar[str] = "subject_forgotten"
    key_id: str
    emails: list[str]
    messages: list[str]
    in_plain: int
    """How many of the sender's e-mails are in the log, in whole or in part, as they were before sealing."""

    @property
    def stream(self) -> str:
        """One stream a key, so that the message or the e-mails that name it lead to its end."""
        return self.stream_of(self.key_id)

    @classmethod
    def stream_of(cls, key_id: str) -> str:
        """The stream that tells of the end of a key."""
        return f"subject-{key_id}"
