"""Positions that were only read are confirmed by the standby before they are answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from eventstore import standby
from eventstore.errors import StoreBusy, StoreUnavailable
from service.history.folding import STUCK_AFTER_SECONDS
from service.writing import confirmed as module
from service.writing.confirmed import ConfirmedPosition

if TYPE_CHECKING:
    from eventstore.connection import Connection

CONNECTION = cast("Connection", None)


class Server:
    """A server that counts confirmations; a test sets how long they take and how they fail."""

    def __init__(self) -> None:
        self.confirmations = 0
        self.now = 1_000.0
        self.seconds = 0.0
        self.error: Exception | None = None

    async def confirm(self, connection: Connection) -> None:
        del connection
        self.confirmations += 1
        self.now += self.seconds
        if self.error:
            raise self.error


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(standby, "confirm", server.confirm)
    monkeypatch.setattr(module, "monotonic", lambda: server.now)
    return server


async def test_each_position_is_confirmed_once(server: Server) -> None:
    confirmed = ConfirmedPosition()
    counts = []
    for position in (5, 5, 4, 6, 6):
        await confirmed.ensure(CONNECTION, position)
        counts.append(server.confirmations)
    assert counts == [1, 1, 1, 2, 2]


async def test_position_of_an_own_append_needs_no_confirmation(server: Server) -> None:
    confirmed = ConfirmedPosition()
    confirmed.record_append(7)
    await confirmed.ensure(CONNECTION, 7)
    assert server.confirmations == 0
    await confirmed.ensure(CONNECTION, 8)
    assert server.confirmations == 1


async def test_everything_is_confirmed_again_after_a_reset(server: Server) -> None:
    confirmed = ConfirmedPosition()
    confirmed.record_append(7)
    confirmed.reset()
    await confirmed.ensure(CONNECTION, 1)
    assert server.confirmations == 1


async def test_failed_confirmation_is_tried_again(server: Server) -> None:
    confirmed = ConfirmedPosition()
    server.error = StoreBusy("locked")
    with pytest.raises(StoreBusy, match="another session holds the log's lock"):
        await confirmed.ensure(CONNECTION, 5)
    server.error = None
    await confirmed.ensure(CONNECTION, 5)
    assert server.confirmations == 2


@pytest.mark.parametrize(
    ("seconds", "error", "message"),
    [
        (STUCK_AFTER_SECONDS - 0.1, StoreUnavailable, "cut"),
        (STUCK_AFTER_SECONDS, StoreBusy, "no synchronous standby confirms"),
    ],
)
async def test_broken_connection_is_blamed_on_the_standby_only_after_a_long_wait(
    server: Server, seconds: float, error: type[Exception], message: str
) -> None:
    server.seconds, server.error = seconds, StoreUnavailable("cut")
    with pytest.raises(error, match=message):
        await ConfirmedPosition().ensure(CONNECTION, 5)
