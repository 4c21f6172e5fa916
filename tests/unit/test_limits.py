"""Token buckets, and how addresses, Host headers and networks are classified."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from service.http import limits
from service.http.limits import Buckets, Networks, client_network, is_local_host, is_loopback


class TestBuckets:
    def test_bucket_allows_a_burst_and_then_its_rate(self) -> None:
        buckets = Buckets(per_second=2, burst=3)
        assert [buckets.take("ann", 100.0) for _ in range(4)] == [0, 0, 0, 0.5]
        assert buckets.take("ann", 100.4) == pytest.approx(0.1)
        assert buckets.take("ann", 100.5) == 0
        assert buckets.take("ann", 100.5) == pytest.approx(0.5)
        assert [buckets.take("ann", 200.0) for _ in range(4)] == [0, 0, 0, 0.5]

    def test_each_name_has_its_own_bucket(self) -> None:
        buckets = Buckets(per_second=1, burst=1)
        assert buckets.take("ann", 5.0) == 0
        assert buckets.take("ann", 5.0) > 0
        assert buckets.take("bob", 5.0) == 0

    def test_refused_requests_take_no_tokens(self) -> None:
        buckets = Buckets(per_second=1, burst=1)
        buckets.take("ann", 5.0)
        waits = {buckets.take("ann", 5.5) for _ in range(100)}
        assert waits == {0.5}

    @for_all(
        st.lists(st.floats(0, 5, allow_nan=False), min_size=1, max_size=200),
        st.sampled_from((0.5, 1.0, 7.0)),
        st.sampled_from((1.0, 2.0, 10.0)),
    )
    def test_bucket_never_allows_more_than_burst_and_rate(
        self, pauses: list[float], per_second: float, burst: float
    ) -> None:
        buckets, now, let_through = Buckets(per_second, burst), 1_000.0, list[float]()
        for pause in pauses:
            now += pause
            wait = buckets.take("ann", now)
            if not wait:
                let_through.append(now)
        for first in range(len(let_through)):
            for last in range(first, len(let_through)):
                seconds = let_through[last] - let_through[first]
                assert last - first + 1 <= burst + seconds * per_second + 1e-6

    def test_number_of_buckets_is_limited_however_many_names_come(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_NAMES", 10)
        buckets = Buckets(per_second=1, burst=1)
        refused = sum(buckets.take(f"name {number}", 1.0) > 0 for number in range(1_000))
        assert len(buckets) <= 11
        # All names beyond the limit share one bucket, so a new name gains nothing.
        assert refused == 1_000 - 10 - 1

    def test_full_buckets_make_room_for_new_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "MAX_NAMES", 10)
        buckets = Buckets(per_second=1, burst=1)
        for number in range(20):
            buckets.take(f"name {number}", 1.0)
        assert [buckets.take(f"later {number}", 10.0) for number in range(10)] == [0.0] * 10
        assert len(buckets) <= 11

    def test_buckets_are_swept_at_most_once_a_second(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "MAX_NAMES", 10)
        buckets = Buckets(per_second=2, burst=1)
        for number in range(11):
            buckets.take(f"name {number}", 100.0)
        buckets_before = buckets._full_at
        for now in (100.2, 100.4):
            assert buckets.take("later", now) > 0
            assert buckets._full_at is buckets_before
        assert buckets.take("later", 101.0) == 0
        assert buckets._full_at is not buckets_before

    def test_known_names_keep_their_buckets_when_the_limit_is_reached(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_NAMES", 2)
        buckets = Buckets(per_second=1, burst=2)
        for name in ("ann", "bob", "eve", "eve", "ann"):
            assert buckets.take(name, 1.0) == 0
        assert buckets.take("ann", 1.0) > 0


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("fe80::1%eth0", False),
        ("", False),
        ("localhost", False),
    ],
)
def test_only_loopback_addresses_count_as_loopback(address: str, *, expected: bool) -> None:
    assert is_loopback(address) is expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST:3001", True),
        ("localhost.:3001", True),
        ("board.localhost:80", True),
        ("127.0.0.1:3001", True),
        ("127.0.0.1", True),
        ("[::1]:3001", True),
        ("[::1]", True),
        ("evil.example", False),
        ("evil.example:3001", False),
        ("localhost.evil.example", False),
        ("evillocalhost", False),
        ("127.0.0.1.evil.example", False),
        ("10.0.0.1:3001", False),
        ("0.0.0.0:3001", False),
        ("", False),
        (":3001", False),
        ("[", False),
        ("localhost:3001:3001", False),
    ],
)
def test_only_localhost_names_and_loopback_addresses_are_local_hosts(host: str, *, expected: bool) -> None:
    assert is_local_host(host) is expected


@pytest.mark.parametrize(
    ("address", "counts_as"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("x" * 9_000, ""),
    ],
)
def test_ipv6_addresses_of_one_64_network_count_as_one_client(address: str, counts_as: str) -> None:
    assert client_network(address) == counts_as


def test_networks_contain_addresses_however_they_are_written() -> None:
    networks = Networks([ipaddress.ip_network("10.0.0.0/24"), ipaddress.ip_network("2001:db8::/32")])
    for address in ("10.0.0.9", "::ffff:10.0.0.9", "2001:db8::1"):
        assert networks.contains(address)
    for address in ("10.0.1.9", "2001:db9::1", "", "nonsense", "10.0.0.9:80"):
        assert not networks.contains(address)
