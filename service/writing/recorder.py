"""Give decided events their place in the log: number, seal, hash-chain and fold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore import codec
from eventstore.chain import link, microseconds
from eventstore.recorded import recorded_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from eventstore.keys import Key
    from eventstore.recorded import NewEvent
    from service.memory.draft import Draft
    from service.writing.batch import Batch


class Recorder:
    """Gives decided events their place in the log, and folds them into the draft."""

    def __init__(
        self,
        draft: Draft,
        batch: Batch,
        now: datetime,
        ids: Callable[[], str],
    ) -> None:
        self.draft = draft
        self.batch = batch
        self.now = now
        self.ids = ids
        self.now_microseconds = microseconds(now)
        self.sealer = batch.sealer
        self.size = 0
        self._savepoint = 0

    def set_savepoint(self) -> None:
        """Set a savepoint: what was recorded so far stays, whatever becomes of the next command."""
        self.draft.set_savepoint()
        self._savepoint = len(self.batch.recorded)

    def roll_back(self) -> None:
        """Undo what was recorded since the last savepoint."""
        self.draft.roll_back()
        del self.batch.recorded[self._savepoint :], self.batch.events[self._savepoint :]

    def record(
        self,
        events: Iterable[NewEvent],
        actor: str,
        correlation_id: str,
        idempotency_key: str | None = None,
        *,
        key: Key | None = None,
        bare_fingerprint: str = "",
    ) -> None:
        """Number, seal and chain events after the draft's head, and fold them.

        Args:
            events: what was decided.
            actor: who asked for it.
            correlation_id: ties them to the request.
            idempotency_key: the request's, if the events keep its answer.
            key: seals all of them; None to choose a key for each event.
            bare_fingerprint: see `Sealer.seal`.
        """
        draft = self.draft
        for new in events:
            event, caused_by = new.event, new.caused_by
            id_, stream = self.ids(), event.stream
            if self.sealer and (sealing_key := key or self.sealer.key_of(draft, event)):
                data = self.sealer.seal(event, id_, sealing_key, bare_fingerprint)
            else:
                data = codec.encode(event)
            position, version = draft.head.position + 1, draft.next_version(stream)
            digest = link(
                draft.head.hash,
                position=position,
                id=id_,
                stream=stream,
                version=version,
                type=event.type,
                schema_version=event.schema_version,
                actor=actor,
                caused_by=caused_by,
                correlation_id=correlation_id,
                idempotency_key=idempotency_key,
                recorded_at_microseconds=self.now_microseconds,
                data=data,
            )
            recorded = recorded_of(
                (
                    position,
                    id_,
                    stream,
                    version,
                    event.type,
                    event.schema_version,
                    data,
                    actor,
                    caused_by,
                    correlation_id,
                    idempotency_key,
                    self.now,
                    digest,
                )
            )
            draft.fold(event, recorded)
            self.batch.recorded.append(recorded)
            self.batch.events.append(event)
            self.size += len(data)
