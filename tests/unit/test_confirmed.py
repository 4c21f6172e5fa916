"""What was only read is confirmed before it is answered, once, and its want is told by what is wanting."""

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
    """A server that is asked to confirm, and what it takes and says."""

    def __init__(self) -> None:
        self.asked = 0
        self.now = 1_000.0
        self.takes = 0.0
        self.says: Exception | None = None

    async def confirm(self, connection: Connection) -> None:
        del connection
        self.asked += 1
        self.now += self.takes
        if self.says:
            raise self.says


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(standby, "confirm", server.confirm)
    monkeypatch.setattr(module, "monotonic", lambda: server.now)
    return server


async def test_each_position_is_confirmed_once(server: Server) -> None:
    confirmed = ConfirmedPosition()
    asked = []
    for position in (5, 5, 4, 6, 6):
        await confirmed.ensure(CONNECTION, position)
        asked.append(server.asked)
    assert asked == [1, 1, 1, 2, 2]


async def test_what_a_commit_of_our_own_followed_needs_no_question(server: Server) -> None:
    confirmed = ConfirmedPosition()
    confirmed.record_append(7)
    await confirmed.ensure(CONNECTION, 7)
    assert server.asked == 0
    await confirmed.ensure(CONNECTION, 8)
    assert server.asked == 1


async def test_of_another_server_everything_is_asked_anew(server: Server) -> None:
    confirmed = ConfirmedPosition()
    confirmed.record_append(7)
    confirmed.reset()
    await confirmed.ensure(CONNECTION, 1)
    assert server.asked == 1


async def test_what_could_not_be_confirmed_is_asked_again(server: Server) -> None:
    confirmed = ConfirmedPosition()
    server.says = StoreBusy("locked")
    with pytest.raises(StoreBusy, match="another session holds the log's lock"):
        await confirmed.ensure(CONNECTION, 5)
    server.says = None
    await confirmed.ensure(CONNECTION, 5)
    assert server.asked == 2


@pytest.mark.parametrize(
    ("takes", "error", "said"),
    [
        (STUCK_AFTER_SECONDS - 0.1, StoreUnavailable, "cut"),
        (STUCK_AFTER_SECONDS, StoreBusy, "no synchronous standby confirms"),
    ],
)
async def test_a_connection_that_breaks_is_no_standby_that_keeps_silent(
    server: Server, takes: float, error: type[Exception], said: str
) -> None:
    server.takes, server.says = takes, StoreUnavailable("cut")
    with pytest.raises(error, match=said):
        await ConfirmedPosition().ensure(CONNECTION, 5)
