"""The authenticator on its own: which requests it admits, given a state and settings."""

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
from tests.unit.stories import START, Story, given

if TYPE_CHECKING:
    from aiohttp import web

    from service.clock import DatabaseClock
    from service.http.ended_keys import EndedKeys
    from service.writing.writer import Writer

KEY = api_keys.make()
REMOTE = "203.0.113.7"


@dataclass
class Clock:
    """A clock that stands still until a test moves it."""

    at: datetime = START

    def now(self) -> datetime:
        return self.at


@dataclass
class StubWriter:
    """A writer that only keeps the requests it is given."""

    squad: Squad
    submitted: list[Request] = field(default_factory=list)

    async def submit(self, request: Request) -> None:
        self.submitted.append(request)
        raise Unavailable


@dataclass
class StubEndedKeys:
    """Keeps what it is asked to look up."""

    checked: list[tuple[str, str]] = field(default_factory=list)

    def check(self, text: str, address: str) -> None:
        self.checked.append((text, address))


@dataclass
class StubConnection:
    """A connection from an address."""

    peername: tuple[str, int] | None


@dataclass
class StubRequest:
    """A request, as far as the authenticator looks at it."""

    protocol: StubConnection
    headers: CIMultiDictProxy[str]
    method: str = "GET"


@dataclass
class Setup:
    """An authenticator and everything that it depends on."""

    story: Story
    settings: Settings = field(default_factory=Settings)
    clock: Clock = field(default_factory=Clock)
    has_full_access: bool | None = None
    """Whether the last request, if to a public route, came from a caller that may see everything."""

    def __post_init__(self) -> None:
        self.writer = StubWriter(self.story.squad)
        self.ended_keys = StubEndedKeys()
        self.authenticator = Authenticator(
            self.settings,
            cast("Writer", self.writer),
            cast("DatabaseClock", self.clock),
            cast("EndedKeys", self.ended_keys),
        )

    def authenticate(
        self,
        scope: Scope = Scope.READ,
        *,
        key: str | None = None,
        address: str | None = "127.0.0.1",
        method: str = "GET",
        **headers: str,
    ) -> Caller | str | None:
        """Return the caller that was admitted, or the code of the problem it was rejected with."""
        sent = CIMultiDict({"Host": "127.0.0.1:3001"})
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        sent.update({name.replace("_", "-"): value for name, value in headers.items()})
        peer = StubConnection((address, 5_555) if address is not None else None)
        request = cast("web.Request", StubRequest(peer, CIMultiDictProxy(sent), method))
        try:
            found = self.authenticator.authenticate(request, scope)
        except Problem as problem:
            return problem.code
        self.has_full_access = (
            self.authenticator.has_full_access(request) if scope is Scope.PUBLIC else None
        )
        return found


@pytest.fixture(autouse=True)
async def _event_loop() -> None:
    """The authenticator submits first uses in tasks, which need a running event loop."""


def squad_with_key(**fields: Any) -> Story:
    values = {"key_id": KEY.id, "digest": KEY.digest, "scope": "operator", **fields}
    return given(CreateKey(**values))


class TestWithKeys:
    async def test_valid_key_is_accepted_from_any_address(self) -> None:
        setup = Setup(squad_with_key())
        for address in ("127.0.0.1", REMOTE, "2001:db8::1"):
            found = setup.authenticate(key=KEY.text, address=address, Host="squad.example.org")
            assert found == Caller("operator", KEY.id)

    async def test_verified_key_is_cached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        setup = Setup(squad_with_key())
        setup.authenticate(key=KEY.text)
        monkeypatch.delattr(api_keys, "digest_of")
        assert setup.authenticate(key=KEY.text) == Caller("operator", KEY.id)

    async def test_revoked_key_leaves_the_cache_at_once(self) -> None:
        setup = Setup(squad_with_key())
        assert isinstance(setup.authenticate(key=KEY.text), Caller)
        setup.story.given(CreateKey(key_id="2222222222", digest="0" * 64, scope="operator"))
        setup.story.given(RevokeKey(key_id=KEY.id))
        assert setup.authenticate(key=KEY.text) == "unauthorized"
        assert not setup.authenticator._verified_keys

    async def test_expired_key_is_rejected_before_its_expiry_is_recorded(self) -> None:
        setup = Setup(squad_with_key(expires_days=1))
        setup.clock.at = START + timedelta(days=1, microseconds=-1)
        known = setup.authenticate(key=KEY.text)
        assert isinstance(known, Caller)
        assert setup.authenticator.is_still_allowed(known)
        setup.clock.at = START + timedelta(days=1)
        assert setup.authenticate(key=KEY.text) == "unauthorized"
        assert not setup.authenticator.is_still_allowed(known)

    @pytest.mark.parametrize(
        ("scheme", "found"), [("bearer ", Caller("operator", KEY.id)), ("digest ", "unauthorized")]
    )
    async def test_key_is_accepted_with_the_bearer_scheme_only(
        self, scheme: str, found: Caller | str
    ) -> None:
        assert Setup(squad_with_key()).authenticate(Authorization=scheme + KEY.text) == found

    async def test_key_opens_only_the_routes_of_its_scope(self) -> None:
        setup = Setup(squad_with_key(scope="auditor"))
        assert setup.authenticate(Scope.AUDIT, key=KEY.text) == Caller("auditor", KEY.id)
        assert setup.authenticate(Scope.ACT, key=KEY.text) == "not_allowed"
        assert setup.authenticate(Scope.OPERATE, key=KEY.text) == "not_allowed"

    async def test_key_is_rate_limited_across_addresses(self) -> None:
        setup = Setup(squad_with_key(), Settings(key_requests_per_second=0.01))
        assert isinstance(setup.authenticate(key=KEY.text), Caller)
        assert setup.authenticate(key=KEY.text, address=REMOTE) == "rate_limited"

    async def test_invalid_key_is_not_cached(self) -> None:
        setup = Setup(squad_with_key())
        for number in range(50):
            setup.authenticate(key=f"squad_{KEY.id}_{number:064x}", address=f"198.51.100.{number}")
        assert isinstance(setup.authenticate(key=KEY.text), Caller)
        assert len(setup.authenticator._verified_keys) == 1

    async def test_cache_of_verified_keys_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(auth, "_MAX_CACHED_KEYS", 3)
        setup = Setup(squad_with_key())
        # The same key in many different headers.
        for spaces in range(20):
            assert isinstance(setup.authenticate(key=" " * spaces + KEY.text), Caller)
            assert len(setup.authenticator._verified_keys) <= 3

    async def test_requests_are_rejected_as_unavailable_while_the_state_is_read(self) -> None:
        """It is not known then whether a key is required either."""
        setup = Setup(squad_with_key())
        known = setup.authenticate(key=KEY.text)
        assert isinstance(known, Caller)
        setup.writer.squad = Squad()
        assert setup.authenticate(key=KEY.text) == "unavailable"
        assert setup.authenticate() == "unavailable"
        assert setup.authenticate(Scope.PUBLIC) is None
        # Open streams are kept: there is nothing to send until the state has been read.
        assert setup.authenticator.is_still_allowed(known)

    async def test_first_use_of_a_key_is_submitted_until_it_is_recorded(self) -> None:
        setup = Setup(squad_with_key())

        async def submitted_so_far() -> list[Request]:
            await asyncio.gather(*setup.authenticator._recording.values())
            return setup.writer.submitted

        for _ in range(3):
            setup.authenticate(key=KEY.text)
        [request] = await submitted_so_far()
        assert request.command == NoteKeyUse(key_id=KEY.id)
        assert request.actor == f"operator key:{KEY.id}"
        # It could not be recorded, so the next use submits it again.
        setup.authenticate(key=KEY.text)
        assert len(await submitted_so_far()) == 2
        setup.story.given(NoteKeyUse(key_id=KEY.id))
        setup.authenticate(key=KEY.text)
        assert len(await submitted_so_far()) == 2
        assert setup.authenticator._recording == {}

    async def test_foreign_host_needs_a_key_too(self) -> None:
        setup = Setup(squad_with_key())
        assert setup.authenticate(Host="evil.example") == "unauthorized"

    async def test_insecure_setting_is_ignored_once_keys_exist(self) -> None:
        setup = Setup(squad_with_key(), Settings(insecure=True))
        assert setup.authenticate() == "unauthorized"


class TestWithoutKeys:
    async def test_loopback_addresses_are_admitted(self) -> None:
        setup = Setup(given())
        for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
            assert setup.authenticate(address=address) == ANYBODY
            assert setup.authenticate(Scope.OPERATE, address=address, method="PUT") == ANYBODY

    async def test_other_addresses_are_admitted_to_public_routes_only(self) -> None:
        setup = Setup(given())
        for address in (REMOTE, "2001:db8::1", None):
            assert setup.authenticate(address=address) == "not_allowed"
            assert setup.authenticate(Scope.PUBLIC, address=address) is None

    async def test_foreign_host_is_rejected_as_misdirected(self) -> None:
        """DNS rebinding: a page of evil.example, whose name now resolves to this machine."""
        setup = Setup(given())
        for host in ("evil.example", "evil.example:3001", ""):
            assert setup.authenticate(Host=host) == "misdirected"
        assert setup.authenticate(Host="localhost:3001") == ANYBODY

    @pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:5173"])
    async def test_writes_from_a_foreign_origin_are_rejected(self, origin: str) -> None:
        setup = Setup(given())
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert setup.authenticate(Scope.ACT, method=method, Origin=origin) == "not_allowed"
        # Reads are admitted, but the browser does not show the page the answer.
        assert setup.authenticate(Origin=origin) == ANYBODY

    async def test_writes_from_an_allowed_origin_are_admitted(self) -> None:
        setup = Setup(given(), Settings(cors_origins=("http://localhost:5173",)))
        assert setup.authenticate(Scope.ACT, method="POST", Origin="http://localhost:5173") == ANYBODY
        assert setup.authenticate(Scope.ACT, method="POST", Origin="http://localhost:5174") == "not_allowed"

    async def test_insecure_setting_admits_every_request(self) -> None:
        setup = Setup(given(), Settings(insecure=True))
        assert (
            setup.authenticate(address=REMOTE, Host="evil.example", method="POST", Origin="null") == ANYBODY
        )

    async def test_first_key_ends_anonymous_access(self) -> None:
        setup = Setup(given())
        assert setup.authenticator.is_still_allowed(ANYBODY)
        setup.story.given(CreateKey(key_id=KEY.id, digest=KEY.digest, scope="operator"))
        assert not setup.authenticator.is_still_allowed(ANYBODY)


class TestRateLimits:
    @pytest.fixture(autouse=True)
    def _stopped_clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Limits recover with time, of which a test may take any amount."""
        monkeypatch.setattr(auth, "monotonic", lambda: 1_000.0)

    async def test_addresses_are_limited_except_loopback(self) -> None:
        settings = Settings(address_requests_per_second=0.01, key_requests_per_second=0)
        setup = Setup(squad_with_key(), settings)
        assert isinstance(setup.authenticate(key=KEY.text, address=REMOTE), Caller)
        assert setup.authenticate(key=KEY.text, address=REMOTE) == "rate_limited"
        assert setup.authenticate(Scope.PUBLIC, address=REMOTE) == "rate_limited"
        assert isinstance(setup.authenticate(key=KEY.text, address="203.0.113.8"), Caller)
        for _ in range(50):
            assert isinstance(setup.authenticate(key=KEY.text), Caller)

    async def test_public_request_counts_once_even_if_its_key_is_checked(self) -> None:
        settings = Settings(address_requests_per_second=1, key_requests_per_second=0)
        setup = Setup(squad_with_key(), settings)
        for _ in range(2):
            assert setup.authenticate(Scope.PUBLIC, key=KEY.text, address=REMOTE) is None
            assert setup.has_full_access
        assert setup.authenticate(Scope.PUBLIC, key=KEY.text, address=REMOTE) == "rate_limited"
        assert setup.authenticate(Scope.PUBLIC, address="203.0.113.8") is None
        assert not setup.has_full_access

    async def test_loopback_is_not_limited_while_no_key_exists(self) -> None:
        setup = Setup(given(), Settings(address_requests_per_second=0.01, key_requests_per_second=0.01))
        for _ in range(50):
            assert setup.authenticate() == ANYBODY

    async def test_limit_of_zero_means_no_limit(self) -> None:
        settings = Settings(address_requests_per_second=0, key_requests_per_second=0)
        setup = Setup(squad_with_key(), settings)
        for _ in range(5_000):
            assert isinstance(setup.authenticate(key=KEY.text, address=REMOTE), Caller)

    async def test_invalid_keys_are_limited_by_address(self) -> None:
        setup = Setup(squad_with_key())
        invalid_key = f"squad_{KEY.id}_{0:064x}"
        found = [
            setup.authenticate(key=invalid_key, address=REMOTE)
            for _ in range(auth.FAILED_TRIES_PER_MINUTE + 1)
        ]
        assert found == ["unauthorized"] * auth.FAILED_TRIES_PER_MINUTE + ["rate_limited"]
        # Nor are more of them looked up.
        assert setup.ended_keys.checked == [(invalid_key, REMOTE)] * auth.FAILED_TRIES_PER_MINUTE
        assert setup.authenticate(key=invalid_key, address="203.0.113.8") == "unauthorized"
        assert isinstance(setup.authenticate(key=KEY.text, address=REMOTE), Caller)

    async def test_too_many_invalid_keys_are_logged_once_without_the_keys(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        setup = Setup(squad_with_key())
        for number in range(100):
            setup.authenticate(key=f"squad_{KEY.id}_{number:064x}", address=REMOTE)
        [record] = caplog.records
        assert record.getMessage() == f"too many invalid keys from {REMOTE}"


class TestBehindProxies:
    PROXIES = Settings(trusted_proxies=("10.0.0.0/24", "127.0.0.1"), address_requests_per_second=0.01)

    def are_one_client(self, peer: str, forwarded: str, forwarded_next: str) -> bool:
        """Return whether two requests count as coming from one address."""
        setup = Setup(squad_with_key(), self.PROXIES)
        first = setup.authenticate(key=KEY.text, address=peer, X_Forwarded_For=forwarded)
        assert isinstance(first, Caller)
        return (
            setup.authenticate(key=KEY.text, address=peer, X_Forwarded_For=forwarded_next) == "rate_limited"
        )

    async def test_client_address_comes_from_the_trusted_proxies(self) -> None:
        assert self.are_one_client("10.0.0.1", REMOTE, REMOTE)
        assert not self.are_one_client("10.0.0.1", REMOTE, "203.0.113.8")
        assert self.are_one_client("127.0.0.1", f"{REMOTE}, 10.0.0.7", REMOTE)

    async def test_entries_forged_by_the_client_are_ignored(self) -> None:
        assert self.are_one_client("10.0.0.1", f"1.1.1.1, {REMOTE}", f"2.2.2.2, {REMOTE}")
        assert self.are_one_client("10.0.0.1", f"127.0.0.1, {REMOTE}", f"nonsense, {REMOTE}")

    async def test_header_from_an_untrusted_peer_is_ignored(self) -> None:
        assert self.are_one_client(REMOTE, "1.1.1.1", "2.2.2.2")

    async def test_unparsable_header_is_ignored(self) -> None:
        assert self.are_one_client("10.0.0.1", "nonsense", "other nonsense")
        assert self.are_one_client("10.0.0.1", "", " , ,")

    @pytest.mark.parametrize("port", [":52011", ":80"])
    async def test_port_after_the_address_is_ignored(self, port: str) -> None:
        assert self.are_one_client("10.0.0.1", f"{REMOTE}{port}", REMOTE)
        assert not self.are_one_client("10.0.0.1", f"{REMOTE}{port}", "203.0.113.8")
        assert self.are_one_client("10.0.0.1", f"[2001:db8::1]{port}", "[2001:db8::2]")
        assert not self.are_one_client("10.0.0.1", f"[2001:db8::1]{port}", "2001:db8:1::1")
        assert self.are_one_client("10.0.0.1", f"{REMOTE}, 10.0.0.7{port}", REMOTE)

    @pytest.mark.parametrize(
        "forwarded", ["unknown", "_hidden", f"{REMOTE}:http", f"[{REMOTE}]:80", f"{REMOTE}:80"]
    )
    async def test_client_without_a_loopback_address_is_not_taken_for_local(self, forwarded: str) -> None:
        setup = Setup(given(), self.PROXIES)
        assert setup.authenticate(address="127.0.0.1", X_Forwarded_For=forwarded) == "not_allowed"

    async def test_remote_client_behind_a_local_proxy_is_not_taken_for_local(self) -> None:
        setup = Setup(given(), self.PROXIES)
        assert setup.authenticate(address="127.0.0.1", X_Forwarded_For=REMOTE) == "not_allowed"
        assert setup.authenticate(address="127.0.0.1") == ANYBODY


def test_actor_names_the_scope_and_the_key_of_the_caller() -> None:
    assert Caller("agent", "2222222222", "ann").actor("ann") == "agent:ann key:2222222222"
    assert Caller("operator", "2222222222").actor("ann") == "operator key:2222222222"
    assert ANYBODY.actor("ann") == "agent:ann"
    assert ANYBODY.actor() == "anonymous"
