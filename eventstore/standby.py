"""Synchronous standbys: do not rely on a commit before a standby has confirmed it.

If `synchronous_standby_names` is set, a commit is acknowledged once a standby has it too, and survives the
loss of the primary. But events can be visible in the log and on no standby yet: after a restart of a server
that was killed while their commit waited, or when the wait was aborted because the connection ended or the
statement was canceled. If the standby takes over then, they are lost. So a process that finds events in the
log, instead of receiving the acknowledgment of their commit, has them confirmed first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore.errors import StoreUnavailable
from eventstore.translation import translating

if TYPE_CHECKING:
    from psycopg.errors import Diagnostic

    from eventstore.connection import Connection

# Nobody reads the message: the transaction must write something, or its commit does not wait. The lock
# limits those that wait here to one per squad, however often a writer gives up and reconnects.
_CONFIRM = """
    SELECT lock_log(), pg_logical_emit_message(true, 'squad', 'seen'::text)
    WHERE current_setting('synchronous_standby_names') <> ''
"""

_WAITS_FOR_STANDBYS = "SyncRepWaitForLSN"
"""The server's function that waits. It identifies the server's warnings in any language."""


async def confirm(connection: Connection) -> None:
    """Wait until everything that this connection could see before is on a synchronous standby.

    Standbys receive the write-ahead log in order, so waiting for a later record is enough. Without
    synchronous standbys, this is one round trip that does nothing.

    Args:
        connection: in autocommit mode, outside a transaction.

    Raises:
        StoreBusy: another connection holds the log's lock, perhaps because no standby answers.
        StoreUnavailable: the connection broke, or the wait was canceled.
    """
    with translating(), requiring_standby_confirmation(connection):
        await connection.execute(_CONFIRM, prepare=True)


class requiring_standby_confirmation:  # noqa: N801 - a context manager, and written as one where it is used
    """Rejects commits in the block for which the server stopped waiting for its standby.

    If a statement is canceled while it waits, by hand or by a tool, the server reports success, with a
    warning.

    Raises:
        StoreUnavailable: the server issued the warning; the commit may not survive a failover.
    """

    __slots__ = ("_connection", "_warning")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._warning: str | None = None

    def __enter__(self) -> None:
        self._connection.add_notice_handler(self._on_notice)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._connection.remove_notice_handler(self._on_notice)
        if self._warning is not None and error is None:
            raise StoreUnavailable(f"no standby has confirmed the commit: {self._warning}")

    def _on_notice(self, notice: Diagnostic) -> None:
        if notice.source_function == _WAITS_FOR_STANDBYS:
            self._warning = notice.message_primary or ""
