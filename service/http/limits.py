"""Rate limits: token buckets in bounded memory.

A bucket is one number, the time at which it will be full again; full buckets are not kept. When the number
of buckets reaches its limit, further names share one bucket, so using ever new names gains nothing.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_NAMES = 10_000
"""How many buckets are kept at once."""

_SWEEP_SECONDS = 1.0
_OTHERS = object()


class Buckets:
    """Buckets of one size, by name."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._interval_seconds = 1.0 / per_second
        self._tolerance_seconds = (burst - 1.0) * self._interval_seconds
        self._full_at: dict[object, float] = {}
        self._swept_at = 0.0

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, name: object, now: float) -> float:
        """Take a token if there is one.

        Args:
            name: the bucket's name.
            now: monotonic seconds.

        Returns:
            0 if one was taken, otherwise the number of seconds until there is one.
        """
        full_at = self._full_at.get(name, 0.0)
        if not full_at and len(self._full_at) >= MAX_NAMES:
            name, full_at = self._bucket_for_new(name, now)
        from_now = max(full_at - now, 0.0)
        if from_now > self._tolerance_seconds:
            return from_now - self._tolerance_seconds
        self._full_at[name] = now + from_now + self._interval_seconds
        return 0.0

    def _bucket_for_new(self, name: object, now: float) -> tuple[object, float]:
        """Return a free place for a new name, or the bucket that all names without one share."""
        if now - self._swept_at >= _SWEEP_SECONDS:
            self._swept_at = now
            self._full_at = {known: at for known, at in self._full_at.items() if at > now}
        if len(self._full_at) < MAX_NAMES:
            return name, 0.0
        return _OTHERS, self._full_at.get(_OTHERS, 0.0)


class Networks:
    """A set of networks; a single address is a network of one."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = tuple(networks)
        self.contains = lru_cache(maxsize=MAX_NAMES)(self._contains)
        """Return whether an address is in one of them."""

    def _contains(self, address: str) -> bool:
        return is_address(address) and any(_parsed(address) in network for network in self._networks)


def is_address(text: str) -> bool:
    """Return whether a text is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def address_in(hop: str) -> str | None:
    """Return the address in an X-Forwarded-For entry, if it is one; some proxies append a port."""
    if is_address(hop):
        return hop
    name, _, port = hop.rpartition(":") if not hop.endswith("]") else (hop, "", "0")
    is_bracketed = name.startswith("[") and name.endswith("]")
    # Without brackets it must be IPv4: the port of an IPv6 address would be ambiguous.
    address = name[1:-1] if is_bracketed else name
    return (
        address if port.isdecimal() and is_address(address) and (":" in address) is is_bracketed else None
    )


def _parsed(address: str) -> Address:
    """Parse an address; an IPv4-mapped IPv6 address becomes the IPv4 address."""
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed


@lru_cache(maxsize=MAX_NAMES)
def is_loopback(address: str) -> bool:
    """Return whether an address is a loopback address."""
    return is_address(address) and _parsed(address).is_loopback


@lru_cache(maxsize=MAX_NAMES)
def client_network(address: str) -> str:
    """Return what counts as one address; for IPv6 the /64 network, the least that one customer has."""
    if not is_address(address):
        return ""
    parsed = _parsed(address)
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return str(ipaddress.ip_network((int(parsed), 64), strict=False))


@lru_cache(maxsize=1_000)
def is_local_host(host: str) -> bool:
    """Return whether a Host header can only mean this machine: no page of another site has such a name."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    name = name.removeprefix("[").removesuffix("]").rstrip(".").lower()
    return name == "localhost" or name.endswith(".localhost") or is_loopback(name)
