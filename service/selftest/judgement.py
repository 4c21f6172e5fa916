"""What the figures mean, in sentences. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.selftest.measurements import Figures

_FAR_MS = 1.0
"""A database round trip above this means that a single caller mostly waits for the network."""

_SLOW_DISK_MS = 2.0
_BUSY_CPU = 0.85
_SLOW_NOTIFICATION_MS = 5.0


def judge(figures: Figures) -> list[str]:
    """Return sentences on what to expect and what the bottlenecks are, the most important first."""
    fewest, most = min(figures.commands), max(figures.commands)
    alone, together = figures.commands[fewest], figures.commands[most]
    sentences = [
        f"Expect about {together.per_second:,.0f} commands per second with many concurrent callers,"
        f" and {alone.per_second:,.0f} with a single caller that sends one after the other."
    ]
    if not figures.durable:
        sentences.append(
            "This server does not wait for its disk (fsync or synchronous_commit is off): what it"
            " has acknowledged can be lost in a crash. Do not run a squad on it."
        )
    sentences.append(_limit_of_one(figures))
    sentences.append(_limit_of_many(figures))
    if figures.notification.p50_ms > _SLOW_NOTIFICATION_MS:
        sentences.append(
            f"Notifications take {figures.notification.p50_ms:.1f} ms: the tables will lag behind the log."
            " If this connection goes through a pooler, name a direct one with SQUAD_LISTEN_DSN."
        )
    return sentences


def _limit_of_one(figures: Figures) -> str:
    flush_ms = max(0.0, figures.commit.p50_ms - figures.commit_unflushed.p50_ms)
    if figures.round_trip.p50_ms > _FAR_MS and figures.round_trip.p50_ms > flush_ms:
        return (
            "A single caller is limited by the round trip to the database,"
            f" {figures.round_trip.p50_ms:.1f} ms: run the service closer to it."
        )
    if flush_ms > _SLOW_DISK_MS:
        return (
            f"A single caller is limited by the database's disk, which takes {flush_ms:.1f} ms to make a"
            " commit durable."
        )
    return "A single caller is limited by the service's own processing: nothing stands out."


def _limit_of_many(figures: Figures) -> str:
    together = figures.commands[max(figures.commands)]
    if together.cpu > _BUSY_CPU:
        return (
            f"Many callers are limited by this process, which used {together.cpu:.0%} of a core: a second"
            " process on another core helps a little, a faster core more."
        )
    return f"Many callers are limited by the database: this process used only {together.cpu:.0%} of a core."
