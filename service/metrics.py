"""Metrics for Prometheus. One registry per application, so that tests do not share one.

Every label has a bounded set of values: types of commands and events, codes, routes, names of projections.
None of them is chosen by callers.
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from time import monotonic
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, Info, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.utils import floatToGoString

from projections.jobs import JOBS
from projections.keys import KEYS
from service.scheduling.timekeeper import standstill_seconds
from service.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric

    from eventstore.listener import Listener
    from projections.projector import Projector
    from service.clock import DatabaseClock
    from service.writing.stats import Distribution
    from service.writing.writer import Writer

NO_ROUTE = "unmatched"
"""The route label of a request that matches no route."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters, and gauges that are read from the running parts at each scrape."""

    def __init__(
        self, writer: Writer, projector: Projector, listener: Listener, clock: DatabaseClock
    ) -> None:
        self._registry = CollectorRegistry()
        # Counted here: the library's counters take a lock and a look-up at every request.
        self._requests = Counter[tuple[str, int]]()
        self.open_streams = Gauge(
            "squad_open_streams",
            "Open event streams, and requests that wait for a message.",
            registry=self._registry,
        )
        build = Info("squad_build", "The software's version.", registry=self._registry)
        build.info({"version": VERSION})
        self._registry.register(_PartsCollector(writer, projector, listener, clock))
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def request(self, route: str, status: int) -> None:
        """Count an answered request; `route` is one of the routing table's, or `NO_ROUTE`."""
        self._requests[route, status] += 1

    def collect(self) -> Iterable[Metric]:
        """Yield the counters, for the registry."""
        requests = [((route, str(status)), number) for (route, status), number in self._requests.items()]
        yield _counters("squad_http_requests", "HTTP requests.", ("route", "status"), requests)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _PartsCollector:
    """Reads the running parts at each scrape."""

    def __init__(
        self, writer: Writer, projector: Projector, listener: Listener, clock: DatabaseClock
    ) -> None:
        self._writer = writer
        self._projector = projector
        self._listener = listener
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        yield from self._writer_metrics()
        yield from self._listener_metrics()
        yield from self._projector_metrics()
        yield from self._budget_metrics()
        yield from self._job_metrics()
        yield from self._key_metrics()

    def _writer_metrics(self) -> Iterable[Metric]:
        writer, seen = self._writer, self._writer.stats
        yield _counters(
            "squad_commands", "Commands by outcome.", ("type", "outcome"), seen.commands.items()
        )
        events = [((kind,), number) for kind, number in seen.events.items()]
        yield _counters("squad_events", "Events that this process appended.", ("type",), events)
        runs = [((outcome,), number) for outcome, number in seen.runs.items()]
        yield _counters("squad_job_runs", "Ticks of jobs that this process ended.", ("outcome",), runs)
        yield _histogram("squad_batch_commands", "Commands in a batch.", seen.batch_commands)
        yield _histogram("squad_batch_events", "Events in a batch.", seen.batch_events)
        yield _histogram(
            "squad_commit_seconds",
            "Duration of the round trip that appends and commits a batch.",
            seen.commit_seconds,
        )
        yield _histogram("squad_lock_wait_seconds", "Waits for the log's lock.", seen.lock_wait_seconds)
        yield _gauge(
            "squad_head_position", "The last position that this process knows.", writer.squad.head.position
        )
        yield _gauge("squad_waiting_commands", "Commands that wait to be decided.", len(writer.queue))
        yield _gauge("squad_waiting_bytes", "Memory held by waiting commands.", writer.queue.bytes)
        yield _gauge("squad_writer_ready", "1 if commands can be decided.", writer.ready)
        yield _gauge("squad_writer_held_up", "1 if commands wait without progress.", writer.is_stalled)
        yield _counter(
            "squad_log_replacements", "How often the log was found to be replaced.", writer.replacements
        )
        yield _gauge(
            "squad_standstill_seconds",
            "How far the database's clock is behind the log.",
            standstill_seconds(writer.squad, self._clock),
        )
        yield _gauge("squad_writer_contended", "1 if other processes write too.", writer.contended)

    def _listener_metrics(self) -> Iterable[Metric]:
        listener = self._listener
        yield _gauge("squad_listener_hearing", "1 if notifications are received.", listener.hearing)
        yield _counter("squad_listener_heartbeats", "Heartbeats that came back.", listener.heartbeats)
        yield _counter(
            "squad_listener_reconnects", "Lost connections of the listener.", listener.reconnects
        )
        rescues = [
            (("writer",), self._writer.stats.poll_rescues),
            (("projector",), self._projector.poll_rescues),
        ]
        yield _counters(
            "squad_poll_rescues",
            "Polls of the log that found events which no notification had announced.",
            ("part",),
            rescues,
        )

    def _projector_metrics(self) -> Iterable[Metric]:
        projector, head = self._projector, self._writer.squad.head.position
        yield _gauge(
            "squad_projector_active", "1 if this process is the active projector.", projector.active
        )
        yield _gauge("squad_projections_stopped", "Projections that stopped.", len(projector.failed))
        events = GaugeMetricFamily(
            "squad_projection_lag_events", "Events that a projection is behind.", labels=["projection"]
        )
        seconds = GaugeMetricFamily(
            "squad_projection_lag_seconds",
            "How long a projection has been behind the log.",
            labels=["projection"],
        )
        now = monotonic()
        for name, position in projector.positions.items() if projector.active else ():
            behind = max(0, head - position)
            events.add_metric([name], behind)
            seconds.add_metric([name], now - projector.caught_up_at.get(name, now) if behind else 0.0)
        yield events
        yield seconds

    def _budget_metrics(self) -> Iterable[Metric]:
        day = self._writer.squad.day
        if day is None:
            return
        remaining = day.total - day.used - day.reserved
        yield _gauge("squad_budget_total_tokens", "The day's budget.", day.total)
        yield _gauge("squad_budget_used_tokens", "Tokens of the day's budget that are used.", day.used)
        yield _gauge("squad_budget_reserved_tokens", "Tokens of it that are reserved.", day.reserved)
        yield _gauge("squad_budget_remaining_tokens", "Tokens of it that are left.", remaining)

    def _job_metrics(self) -> Iterable[Metric]:
        paused = sum(job.enabled and job.paused for job in self._writer.squad.all(JOBS))
        yield _gauge("squad_jobs_paused", "Enabled jobs that are paused.", paused)

    def _key_metrics(self) -> Iterable[Metric]:
        expiries = [key.expires_at for key in self._writer.squad.all(KEYS) if key.expires_at]
        if expiries:
            yield _gauge(
                "squad_next_key_expiry_seconds",
                "How long until the first of the API keys expires.",
                (min(expiries) - self._clock.now()).total_seconds(),
            )


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)


def _counters(
    name: str, text: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def _histogram(name: str, text: str, seen: Distribution) -> HistogramMetricFamily:
    bounds = [*map(floatToGoString, seen.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(seen.counts), strict=True))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=seen.sum)
