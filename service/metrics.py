"""What the service counts, for Prometheus. One registry an application, so that tests do not share any."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventstore.listener import Listener
    from projections.projector import Projector
    from service.writer import Writer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters, and gauges that are read from the running parts when somebody asks."""

    def __init__(self, writer: Writer, projector: Projector, listener: Listener) -> None:
        self.registry = CollectorRegistry()
        # Counted by hand: the library's counters take a lock and a look-up each time, at every request.
        self._commands = Counter[tuple[str, str]]()
        self._requests = Counter[tuple[str, int]]()
        self.open_streams = Gauge(
            "squad_open_streams", "Event streams that are open.", registry=self.registry
        )
        self.registry.register(_Parts(writer, projector, listener))
        self.registry.register(self)

    def command(self, kind: str, outcome: str) -> None:
        """Counts a command."""
        self._commands[kind, outcome] += 1

    def request(self, route: str, status: int) -> None:
        """Counts a request."""
        self._requests[route, status] += 1

    def collect(self) -> Iterable[CounterMetricFamily]:
        """The counters, for the registry."""
        commands = CounterMetricFamily(
            "squad_commands", "Commands by type and outcome.", labels=["type", "outcome"]
        )
        for (kind, outcome), number in self._commands.items():
            commands.add_metric([kind, outcome], number)
        requests = CounterMetricFamily(
            "squad_http_requests", "HTTP requests by route and status.", labels=["route", "status"]
        )
        for (route, status), number in self._requests.items():
            requests.add_metric([route, str(status)], number)
        return commands, requests

    def render(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)


class _Parts:
    """Reads the running parts at the moment of asking."""

    def __init__(self, writer: Writer, projector: Projector, listener: Listener) -> None:
        self._writer = writer
        self._projector = projector
        self._listener = listener

    def collect(self) -> Iterable[GaugeMetricFamily]:
        head = self._writer.squad.head.position
        yield _gauge("squad_head_position", "The last position that this process knows.", head)
        yield _gauge(
            "squad_waiting_commands", "Commands that wait to be decided.", len(self._writer.waiting)
        )
        yield _gauge("squad_writer_ready", "1 where commands can be decided.", self._writer.ready)
        yield _gauge(
            "squad_log_replacements",
            "How often the log proved another than it was.",
            self._writer.replacements,
        )
        yield _gauge("squad_listener_hearing", "1 where notifications are heard.", self._listener.hearing)
        yield _gauge("squad_listener_heartbeats", "Heartbeats that came back.", self._listener.heartbeats)
        yield _gauge("squad_listener_reconnects", "Connections lost.", self._listener.reconnects)
        yield _gauge("squad_projector_active", "1 where this process projects.", self._projector.active)
        lag = GaugeMetricFamily(
            "squad_projection_lag_events", "Events that a projection is behind.", labels=["projection"]
        )
        for name, position in self._projector.positions.items() if self._projector.active else ():
            lag.add_metric([name], max(0, head - position))
        yield lag


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
