"""The log: every fact that the squad ever agreed on, in one total order, on Postgres.

What it guarantees, and how:

- **Positions are gapless from 1 and never move.** An append takes one lock, compares the head with the
  position that the caller decided at, and numbers the rows itself. A reader that remembers the last
  position it has read never misses an event that was committed late.
- **Events are immutable.** Triggers refuse UPDATE, DELETE and TRUNCATE, even for the table's owner, and
  each event's hash covers the previous one (`chain`), so tampering by a superuser shows.
- **Decided at the head, or not appended.** An append names the head it was decided at. If another writer
  was faster, `HeadMoved` is raised and nothing is stored (`log.append`); the caller decides again, or does
  so while holding the lock (`log.lock_and_read`).
- **A notification is a hint.** `listener` says when to look; `subscription` reads by position and polls
  when it hears nothing, so it can be slow but never wrong.
- **Stored bytes are kept.** The text of an event is stored as it was written and hashed as it is stored.
  Old schema versions are upcast when they are read (`codec`), never in place.
- **Anyone can verify it.** `verification` reads the log and trusts nothing else, `checkpoint` signs its
  head, and `transfer` exports it to a file that can be verified without this code.

The package knows Postgres and the vocabulary of events, and no policy.
"""

from eventstore.events import AnyEvent, Event
from eventstore.lookup import Filter
from eventstore.recorded import GENESIS_HASH, Head, NewEvent, Recorded

__all__ = ["GENESIS_HASH", "AnyEvent", "Event", "Filter", "Head", "NewEvent", "Recorded"]
