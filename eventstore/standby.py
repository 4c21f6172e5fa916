"""Synchronous standbys: what a server has committed alone is not believed before a standby has it as well.

Where `synchronous_standby_names` is set, a commit is answered when a standby has it too, and what was
answered outlives the server. But events can be in the log and on no standby yet: a server that was killed
while their commit waited shows them after its restart, and so does one that was made to give up waiting, by
the end of the connection or by somebody who cancelled it. If the standby takes over then, they are gone. So
whoever finds events, instead of having been told of their commit, has them confirmed first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore.errors import StoreUnavailable
from eventstore.translation import translating

if TYPE_CHECKING:
    from psycopg.errors import Diagnostic

    from eventstore.connection import Connection

# The message is nobody's: it is what this transaction writes, and without writing no commit waits. The lock
# keeps those who wait here to one a squad, however often a writer gives up and comes back.
_CONFIRM = """
    SELECT lock_log(), pg_logical_emit_message(true, 'squad', 'seen'::text)
    WHERE current_setting('synchronous_standby_names') <> ''
"""

_WAITS_FOR_STANDBYS = "SyncRepWaitForLSN"
"""The server's function that waits, by which its warnings are known in every language."""


async def confirm(connection: Connection) -> None:
    """Returns when everything that this connection could see before is on a synchronous standby.

    Standbys receive the log of the server in order, so that it is enough to wait for something later. Where
    no standby is waited for, it is one round trip that does nothing.

    Args:
        connection: in autocommit mode, outside a transaction.

    Raises:
        StoreBusy: somebody else holds the log's lock, perhaps because no standby answers.
        StoreUnavailable: the connection broke, or the wait was cut short.
    """
    with translating(), waiting_to_the_end(connection):
        await connection.execute(_CONFIRM, prepare=True)


class waiting_to_the_end:  # noqa: N801 - a context manager, and written as one where it is used
    """What is committed inside is not believed where the server did not wait for its standby to the end.

    Whoever cancels a statement that waits, by hand or by a tool, makes the server answer that it is
    committed, with a warning beside it.

    Raises:
        StoreUnavailable: the server warned so; what was committed may or may not outlive it.
    """

    __slots__ = ("_connection", "_warning")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._warning: str | None = None

    def __enter__(self) -> None:
        self._connection.add_notice_handler(self._hear)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._connection.remove_notice_handler(self._hear)
        if self._warning is not None and error is None:
            raise StoreUnavailable(f"no standby has confirmed the commit: {self._warning}")

    def _hear(self, notice: Diagnostic) -> None:
        if notice.source_function == _WAITS_FOR_STANDBYS:
            self._warning = notice.message_primary or ""
