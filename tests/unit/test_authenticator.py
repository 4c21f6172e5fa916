"""The door by itself: a state, requests, and who is let in."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from service import api_keys
from service.callers import ANYBODY, Caller
from service.commands import CreateKey, NoteKeyUse, RevokeKey
from service.http import auth
from service.http.auth import Authenticator
from service.http.problems import Problem
from service.http.scope import Scope
from service.memory.squad import Squad
from service.requests import Request, Unavailable
from service.settings import Settings
from tests.unit.support import START, Story, given

if TYPE_CHECKING:
    from aiohttp import web

    from service.clock import DatabaseClock
    from service.writing.writer import Writer

KEY = api_keys.make()
REMOTE = "203.0.113.7"


@dataclass
class Clock:
    """Stands still."""

    at: datetime = START

    def now(self) -> datetime:
        return self.at


@dataclass
class Pen:
    """A writer that only notes what it is asked."""

    squad: Squad
    asked: list[Request] = field(default_factory=list)

    async def submit(self, request: Request) -> None:
        self.asked.append(request)
        raise Unavailable


@dataclass
class Peer:
    """A connection."""

    peername: tuple[str, int] | None


@dataclass
class Asked:
    """A request, as far as the door looks at it."""

    protocol: Peer
    headers: CIMultiDictProxy[str]
    method: str = "GET"


@dataclass
class Entrance:
    """A door with all that is around it."""

    story: Story
    settings: Settings = field(default_factory=Settings)
    clock: Clock = field(default_factory=Clock)
    knows: bool | None = None
    """Whether whoever asked last for what anybody may see may see everything."""

    def __post_init__(self) -> None:
        self.pen = Pen(self.story.squad)
        self.authenticator = Authenticator(
            self.settings, cast("Writer", self.pen), cast("DatabaseClock", self.clock)
        )

    def ask(
        self,
        scope: Scope = Scope.READ,
        *,
        by: str | None = None,
        address: str | None = "127.0.0.1",
        method: str = "GET",
        **headers: str,
    ) -> Caller | str | None:
        """Who was let in, or the code of the problem that it was told."""
        sent = CIMultiDict({"Host": "127.0.0.1:3001"})
        if by is not None:
            sent["Authorization"] = f"Bearer {by}"
        sent.update({name.replace("_", "-"): value for name, value in headers.items()})
        peer = Peer((address, 5_555) if address is not None else None)
        request = cast("web.Request", Asked(peer, CIMultiDictProxy(sent), method))
        try:
            found = self.authenticator.authenticate(request, scope)
        except Problem as problem:
            return problem.code
        self.has_full_access = (
            self.authenticator.has_full_access(request) if scope is Scope.PUBLIC else None
        )
        return found


@pytest.fixture(autouse=True)
async def _in_a_loop() -> None:
    """The door notes first uses in tasks of its own."""


def a_key(**fields: Any) -> Story:
    made = {"key_id": KEY.id, "digest": KEY.digest, "scope": "operator", **fields}
    return given(CreateKey(**made))


class TestWithKeys:
    async def test_one_that_is_right_is_let_in_from_anywhere(self) -> None:
        entrance = Entrance(a_key())
        for address in ("127.0.0.1", REMOTE, "2001:db8::1"):
            found = entrance.ask(by=KEY.text, address=address, Host="squad.example.org")
            assert found == Caller("operator", KEY.id)

    async def test_the_second_time_it_is_verified_keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        entrance = Entrance(a_key())
        entrance.ask(by=KEY.text)
        monkeypatch.delattr(api_keys, "digest_of")
        assert entrance.ask(by=KEY.text) == Caller("operator", KEY.id)

    async def test_what_is_remembered_is_forgotten_at_once_when_the_key_is_revoked(self) -> None:
        entrance = Entrance(a_key())
        assert isinstance(entrance.ask(by=KEY.text), Caller)
        entrance.story.given(CreateKey(key_id="2222222222", digest="0" * 64, scope="operator"))
        entrance.story.given(RevokeKey(key_id=KEY.id))
        assert entrance.ask(by=KEY.text) == "unauthorized"
        assert not entrance.authenticator._verified_keys

    async def test_one_that_has_run_out_opens_nothing_whether_the_log_says_so_or_not(self) -> None:
        entrance = Entrance(a_key(expires_days=1))
        entrance.clock.at = START + timedelta(days=1, microseconds=-1)
        known = entrance.ask(by=KEY.text)
        assert isinstance(known, Caller)
        assert entrance.authenticator.is_still_allowed(known)
        entrance.clock.at = START + timedelta(days=1)
        assert entrance.ask(by=KEY.text) == "unauthorized"
        assert not entrance.authenticator.is_still_allowed(known)

    @pytest.mark.parametrize(
        ("scheme", "found"), [("bearer ", Caller("operator", KEY.id)), ("digest ", "unauthorized")]
    )
    async def test_one_is_taken_by_its_scheme_only(self, scheme: str, found: Caller | str) -> None:
        assert Entrance(a_key()).ask(Authorization=scheme + KEY.text) == found

    async def test_one_opens_what_it_is_for_and_nothing_more(self) -> None:
        entrance = Entrance(a_key(scope="auditor"))
        assert entrance.ask(Scope.AUDIT, by=KEY.text) == Caller("auditor", KEY.id)
        assert entrance.ask(Scope.ACT, by=KEY.text) == "not_allowed"
        assert entrance.ask(Scope.OPERATE, by=KEY.text) == "not_allowed"

    async def test_one_is_taken_as_often_as_was_set_wherever_it_comes_from(self) -> None:
        entrance = Entrance(a_key(), Settings(key_requests_per_second=0.01))
        assert isinstance(entrance.ask(by=KEY.text), Caller)
        assert entrance.ask(by=KEY.text, address=REMOTE) == "rate_limited"

    async def test_one_that_is_wrong_is_not_verified_keys(self) -> None:
        entrance = Entrance(a_key())
        for number in range(50):
            entrance.ask(by=f"squad_{KEY.id}_{number:064x}", address=f"198.51.100.{number}")
        assert isinstance(entrance.ask(by=KEY.text), Caller)
        assert len(entrance.authenticator._verified_keys) == 1

    async def test_no_more_are_remembered_than_there_is_room_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(auth, "_MAX_CACHED_KEYS", 3)
        entrance = Entrance(a_key())
        # A header may be written in many ways.
        for spaces in range(20):
            assert isinstance(entrance.ask(by=" " * spaces + KEY.text), Caller)
            assert len(entrance.authenticator._verified_keys) <= 3

    async def test_nobody_is_let_in_while_nothing_is_known(self) -> None:
        """The state was lost and is being read again: whether a key is needed is not known either."""
        entrance = Entrance(a_key())
        known = entrance.ask(by=KEY.text)
        assert isinstance(known, Caller)
        entrance.pen.squad = Squad()
        assert entrance.ask(by=KEY.text) == "unavailable"
        assert entrance.ask() == "unavailable"
        assert entrance.ask(Scope.PUBLIC) is None
        # Whoever follows a stream is told nothing meanwhile, but for what has become of the log.
        assert entrance.authenticator.is_still_allowed(known)

    async def test_its_first_use_is_noted_until_that_is_a_fact(self) -> None:
        entrance = Entrance(a_key())

        async def noted() -> list[Request]:
            await asyncio.gather(*entrance.authenticator._recording.values())
            return entrance.pen.asked

        for _ in range(3):
            entrance.ask(by=KEY.text)
        [request] = await noted()
        assert request.command == NoteKeyUse(key_id=KEY.id)
        assert request.actor == f"operator key:{KEY.id}"
        # That could not be stored, so the next use tries again.
        entrance.ask(by=KEY.text)
        assert len(await noted()) == 2
        entrance.story.given(NoteKeyUse(key_id=KEY.id))
        entrance.ask(by=KEY.text)
        assert len(await noted()) == 2
        assert entrance.authenticator._recording == {}

    async def test_a_page_of_another_name_gets_no_further_with_a_key_than_without(self) -> None:
        entrance = Entrance(a_key())
        assert entrance.ask(Host="evil.example") == "unauthorized"

    async def test_insecure_is_about_squads_without_keys(self) -> None:
        entrance = Entrance(a_key(), Settings(insecure=True))
        assert entrance.ask() == "unauthorized"


class TestWithoutKeys:
    async def test_this_machine_is_let_in(self) -> None:
        entrance = Entrance(given())
        for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
            assert entrance.ask(address=address) == ANYBODY
            assert entrance.ask(Scope.OPERATE, address=address, method="PUT") == ANYBODY

    async def test_nobody_else_is(self) -> None:
        entrance = Entrance(given())
        for address in (REMOTE, "2001:db8::1", None):
            assert entrance.ask(address=address) == "not_allowed"
            assert entrance.ask(Scope.PUBLIC, address=address) is None

    async def test_a_name_that_was_led_here_is_not(self) -> None:
        """DNS rebinding: a page of evil.example, whose name now has the address of this machine."""
        entrance = Entrance(given())
        for host in ("evil.example", "evil.example:3001", ""):
            assert entrance.ask(Host=host) == "misdirected"
        assert entrance.ask(Host="localhost:3001") == ANYBODY

    @pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:5173"])
    async def test_a_web_page_changes_nothing_blindly(self, origin: str) -> None:
        entrance = Entrance(given())
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert entrance.ask(Scope.ACT, method=method, Origin=origin) == "not_allowed"
        # It may ask, but a browser shows it no answer.
        assert entrance.ask(Origin=origin) == ANYBODY

    async def test_a_web_page_that_was_allowed_does(self) -> None:
        entrance = Entrance(given(), Settings(cors_origins=("http://localhost:5173",)))
        assert entrance.ask(Scope.ACT, method="POST", Origin="http://localhost:5173") == ANYBODY
        assert entrance.ask(Scope.ACT, method="POST", Origin="http://localhost:5174") == "not_allowed"

    async def test_insecure_lets_everybody_in(self) -> None:
        entrance = Entrance(given(), Settings(insecure=True))
        assert entrance.ask(address=REMOTE, Host="evil.example", method="POST", Origin="null") == ANYBODY

    async def test_whoever_was_let_in_is_out_with_the_first_key(self) -> None:
        entrance = Entrance(given())
        assert entrance.authenticator.is_still_allowed(ANYBODY)
        entrance.story.given(CreateKey(key_id=KEY.id, digest=KEY.digest, scope="operator"))
        assert not entrance.authenticator.is_still_allowed(ANYBODY)


class TestTooOften:
    async def test_an_address_is_limited_and_this_machine_is_not(self) -> None:
        settings = Settings(address_requests_per_second=0.01, key_requests_per_second=0)
        entrance = Entrance(a_key(), settings)
        assert isinstance(entrance.ask(by=KEY.text, address=REMOTE), Caller)
        assert entrance.ask(by=KEY.text, address=REMOTE) == "rate_limited"
        assert entrance.ask(Scope.PUBLIC, address=REMOTE) == "rate_limited"
        assert isinstance(entrance.ask(by=KEY.text, address="203.0.113.8"), Caller)
        for _ in range(50):
            assert isinstance(entrance.ask(by=KEY.text), Caller)

    async def test_a_request_counts_once_also_where_more_is_shown_to_some(self) -> None:
        settings = Settings(address_requests_per_second=1, key_requests_per_second=0)
        entrance = Entrance(a_key(), settings)
        for _ in range(2):
            assert entrance.ask(Scope.PUBLIC, by=KEY.text, address=REMOTE) is None
            assert entrance.has_full_access
        assert entrance.ask(Scope.PUBLIC, by=KEY.text, address=REMOTE) == "rate_limited"
        assert entrance.ask(Scope.PUBLIC, address="203.0.113.8") is None
        assert not entrance.has_full_access

    async def test_a_squad_without_keys_is_not_limited_at_home(self) -> None:
        entrance = Entrance(
            given(), Settings(address_requests_per_second=0.01, key_requests_per_second=0.01)
        )
        for _ in range(50):
            assert entrance.ask() == ANYBODY

    async def test_no_limit_is_one_of_nothing(self) -> None:
        settings = Settings(address_requests_per_second=0, key_requests_per_second=0)
        entrance = Entrance(a_key(), settings)
        for _ in range(5_000):
            assert isinstance(entrance.ask(by=KEY.text, address=REMOTE), Caller)

    async def test_wrong_keys_are_limited_by_address(self) -> None:
        entrance = Entrance(a_key())
        invalid_field = f"squad_{KEY.id}_{0:064x}"
        found = [
            entrance.ask(by=invalid_field, address=REMOTE) for _ in range(auth.FAILED_TRIES_PER_MINUTE + 1)
        ]
        assert found == ["unauthorized"] * auth.FAILED_TRIES_PER_MINUTE + ["rate_limited"]
        assert entrance.ask(by=invalid_field, address="203.0.113.8") == "unauthorized"
        assert isinstance(entrance.ask(by=KEY.text, address=REMOTE), Caller)

    async def test_that_too_many_wrong_keys_come_is_said_once_and_without_them(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        entrance = Entrance(a_key())
        for number in range(100):
            entrance.ask(by=f"squad_{KEY.id}_{number:064x}", address=REMOTE)
        [record] = caplog.records
        assert record.getMessage() == f"too many invalid keys from {REMOTE}"


class TestBehindProxies:
    PROXIES = Settings(trusted_proxies=("10.0.0.0/24", "127.0.0.1"), address_requests_per_second=0.01)

    def limited(self, peer: str, forwarded: str, again: str) -> bool:
        """Whether two requests count as those of one address."""
        entrance = Entrance(a_key(), self.PROXIES)
        first = entrance.ask(by=KEY.text, address=peer, X_Forwarded_For=forwarded)
        assert isinstance(first, Caller)
        return entrance.ask(by=KEY.text, address=peer, X_Forwarded_For=again) == "rate_limited"

    async def test_the_address_is_the_one_that_they_say(self) -> None:
        assert self.limited("10.0.0.1", REMOTE, REMOTE)
        assert not self.limited("10.0.0.1", REMOTE, "203.0.113.8")
        assert self.limited("127.0.0.1", f"{REMOTE}, 10.0.0.7", REMOTE)

    async def test_what_the_client_wrote_itself_counts_for_nothing(self) -> None:
        assert self.limited("10.0.0.1", f"1.1.1.1, {REMOTE}", f"2.2.2.2, {REMOTE}")
        assert self.limited("10.0.0.1", f"127.0.0.1, {REMOTE}", f"nonsense, {REMOTE}")

    async def test_others_are_not_believed(self) -> None:
        assert self.limited(REMOTE, "1.1.1.1", "2.2.2.2")

    async def test_nonsense_is_taken_for_nothing(self) -> None:
        assert self.limited("10.0.0.1", "nonsense", "other nonsense")
        assert self.limited("10.0.0.1", "", " , ,")

    @pytest.mark.parametrize("port", [":52011", ":80"])
    async def test_a_port_behind_the_address_is_passed_over(self, port: str) -> None:
        assert self.limited("10.0.0.1", f"{REMOTE}{port}", REMOTE)
        assert not self.limited("10.0.0.1", f"{REMOTE}{port}", "203.0.113.8")
        assert self.limited("10.0.0.1", f"[2001:db8::1]{port}", "[2001:db8::2]")
        assert not self.limited("10.0.0.1", f"[2001:db8::1]{port}", "2001:db8:1::1")
        assert self.limited("10.0.0.1", f"{REMOTE}, 10.0.0.7{port}", REMOTE)

    @pytest.mark.parametrize(
        "named", ["unknown", "_hidden", f"{REMOTE}:http", f"[{REMOTE}]:80", f"{REMOTE}:80"]
    )
    async def test_whoever_is_not_named_by_an_address_is_not_at_home(self, named: str) -> None:
        entrance = Entrance(given(), self.PROXIES)
        assert entrance.ask(address="127.0.0.1", X_Forwarded_For=named) == "not_allowed"

    async def test_whoever_comes_from_afar_is_not_at_home_because_the_proxy_is(self) -> None:
        entrance = Entrance(given(), self.PROXIES)
        assert entrance.ask(address="127.0.0.1", X_Forwarded_For=REMOTE) == "not_allowed"
        assert entrance.ask(address="127.0.0.1") == ANYBODY


def test_a_caller_is_named_by_its_key_and_by_what_it_is() -> None:
    assert Caller("agent", "2222222222", "ann").actor("ann") == "agent:ann key:2222222222"
    assert Caller("operator", "2222222222").actor("ann") == "operator key:2222222222"
    assert ANYBODY.actor("ann") == "agent:ann"
    assert ANYBODY.actor() == "anonymous"
