"""The events of subjects: those whose payloads are sealed."""

from __future__ import annotations

from typing import ClassVar

from eventstore.events.base import Event


class SubjectForgotten(Event, frozen=True, kw_only=True):
    """A subject's key was destroyed: by this event, in the transaction that appended it.

    It lists what was sealed with the key and is now unreadable, but not whose key it was. A long list is
    split over several events.
    """

    type: ClassVar[str] = "subject_forgotten"
    key_id: str
    """The id of the key that was destroyed."""
    emails: list[str]
    """The ids of e-mails."""
    messages: list[str]
    """The ids of messages."""
    in_plain: int
    """How many of the sender's e-mails are in the log in plain text, in whole or in part."""

    @property
    def stream(self) -> str:
        """One stream per key, so that its end can be found from the messages or e-mails that name it."""
        return self.stream_of(self.key_id)

    @classmethod
    def stream_of(cls, key_id: str) -> str:
        """Return the stream with the event that destroyed a key."""
        return f"subject-{key_id}"
