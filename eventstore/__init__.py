"""The log: every fact that the squad ever agreed on, in one total order, on Postgres.

What it promises, and how:

- **Positions are gapless from 1 and never move.** Appending takes one lock, compares the head with the
  position that the caller decided at, and numbers the rows itself. Whoever reads by position can remember
  the last one and will never miss an event that was committed late.
- **Nothing changes afterwards.** Triggers refuse UPDATE, DELETE and TRUNCATE, also to the table's owner,
  and each event's hash covers the one before it (`chain`), so what a superuser does against that shows.
- **Decided at the head, or not appended.** An append names the head it was decided at. If somebody was
  faster, `HeadMoved` is raised and nothing is stored (`log.append`); decide again, or do so holding the
  lock (`log.lock_and_read`).
- **A notification is a hint.** `listener` says when to look; `subscription` reads by position, looks by
  itself when nothing was heard, and so can be slow but never wrong.
- **Stored bytes are kept.** The text of an event is stored as it was written and hashed as it is stored.
  Old shapes are brought up to date when they are read (`codec`), never where they lie.

- **Anyone can check it.** `verification` reads the log and believes nothing else, `checkpoint` says under a
  signature how far it was, `transfer` writes it to a file that needs nothing of ours to be verified.

The package knows Postgres and the vocabulary of events, and no policy at all.
"""

from eventstore.events import AnyEvent, Event
from eventstore.lookup import Filter
from eventstore.recorded import GENESIS_HASH, Head, NewEvent, Recorded

__all__ = ["GENESIS_HASH", "AnyEvent", "Event", "Filter", "Head", "NewEvent", "Recorded"]
