"""The composition root: which parts there are, and the order in which they start and stop.

Address, database, schema, parts, first commands, HTTP server; and in reverse when the service stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from eventstore import connection, schema, sealing
from eventstore.keys import Keyring
from eventstore.listener import Listener
from projections.projector import Projector
from service.apply_settings import apply_settings
from service.arrivals import Arrivals
from service.background import background
from service.channels import Channels
from service.clock import DatabaseClock
from service.database import StartFailed, check_same_log, database, resolve_session_dsn
from service.decide.access import is_key_required
from service.http.auth import Authenticator
from service.http.context import Services
from service.http.cors import Cors
from service.http.ended_keys import EndedKeys
from service.http.limits import is_loopback
from service.http.open_streams import OpenStreams
from service.http.routes import application
from service.http.server import Runner
from service.listening import bound, listen
from service.metrics import Metrics
from service.reading import ReadTables
from service.scheduling.calls import AgentClient
from service.scheduling.scheduler import Scheduler
from service.scheduling.timekeeper import watch_time
from service.snapshotter import Snapshotter
from service.tail import Tail
from service.writing.writer import Writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from eventstore.recorded import Recorded
    from service.embedded import EmbeddedPostgres
    from service.settings import Settings

READ_CONNECTIONS = 8
"""How many reads run at once; further ones wait."""

START_SECONDS = 60.0
"""How long restoring the state may take."""

DRAIN_SECONDS = 2.5
"""How long answering the waiting commands may take when the service stops."""

CLOSE_SECONDS = 1.0
"""How long open connections may then take to end by themselves."""
_log = logging.getLogger(__name__)


@asynccontextmanager
async def parts(settings: Settings, dsn: str) -> AsyncIterator[tuple[Services, list[asyncio.Task[None]]]]:
    """Run all parts on a database; yield them, ready for commands, and the tasks that must not end."""
    squad_schema = settings.squad_schema
    session_dsn = await resolve_session_dsn(settings, dsn)
    if settings.listen_dsn:
        await check_same_log(settings, dsn, settings.listen_dsn)
    await schema.apply(session_dsn, squad_schema)
    async with await connection.connect(session_dsn, squad_schema, name="squad service") as probe:
        await schema.check_may_append(probe)
    clock = DatabaseClock()
    listener = Listener(settings.listen_dsn or dsn, squad_schema)
    keyring = Keyring()
    projector = Projector(session_dsn, squad_schema, listener.events, keyring=keyring)
    writer = Writer(
        dsn, squad_schema, clock, listener.events, keyring=keyring, encrypt=settings.encrypt_payloads
    )
    client = AgentClient(settings.agents_url, settings.secrets())
    scheduler = Scheduler(writer, clock, client, _runner_name())
    snapshotter = Snapshotter(session_dsn, squad_schema, writer)
    writer.on_known.append(projector.observe)
    writer.observers += [scheduler.observe, snapshotter.observe]
    writer.on_replaced += [projector.reset, scheduler.cancel_lost_runs, snapshotter.reschedule]
    async with (
        client,
        connection.pool(dsn, squad_schema, name="squad reader", size=READ_CONNECTIONS) as pool,
        background(
            listener.run(), projector.run(), writer.run(), watch_time(writer, clock), snapshotter.run()
        ) as tasks,
    ):
        tables = ReadTables(pool, listener.projections, projector, writer)

        async def reveal(page: Sequence[Recorded]) -> list[Recorded]:
            async with tables.connection() as reading:
                return await sealing.reveal(reading, page, keyring)

        tail = Tail(reveal)
        channels, arrivals = Channels(tail), Arrivals()
        writer.observers += [channels.extend, arrivals.observe]
        writer.on_replaced += [tables.reset, channels.reset, arrivals.reset]
        services = Services(
            settings=settings,
            writer=writer,
            tables=tables,
            tail=tail,
            channels=channels,
            arrivals=arrivals,
            clock=clock,
            listener=listener,
            projector=projector,
            scheduler=scheduler,
            snapshotter=snapshotter,
            metrics=Metrics(writer, projector, listener, clock),
            authenticator=Authenticator(settings, writer, clock, EndedKeys(tables, clock)),
            cors=Cors(settings.cors_origins) if settings.cors_origins else None,
            streams=OpenStreams(settings.max_streams, settings.max_streams_per_key),
        )
        await wait_until_ready(writer)
        yield services, tasks


@asynccontextmanager
async def serving(
    settings: Settings, embedded: EmbeddedPostgres | None = None
) -> AsyncIterator[tuple[str, list[asyncio.Task[None]]]]:
    """Run the whole service; yield its base URL, and the tasks that must not end.

    Args:
        settings: the service's settings.
        embedded: as for `database`.

    Raises:
        StartFailed: the address is in use, or the squad may not be exposed on it.
        EmbeddedPostgresError, EventStoreError: the database cannot be used.
    """
    async with AsyncExitStack() as stack:
        # Whatever can refuse the start comes before the settings: they change the squad, and a process that
        # lacks the squad's settings file would withdraw its jobs.
        sockets = await stack.enter_async_context(bound(settings.host, settings.port))
        dsn = await stack.enter_async_context(database(settings, embedded))
        services, tasks = await stack.enter_async_context(parts(settings, dsn))
        _check_exposure(settings, services.writer, sockets)
        runner = Runner(application(services), shutdown_timeout=CLOSE_SECONDS)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await apply_settings(settings, services.writer)
        await listen(runner, sockets, settings.host, settings.port)
        # Jobs start last: a process that cannot serve must not claim what is due.
        scheduling = await stack.enter_async_context(background(services.scheduler.run()))
        host, port = runner.addresses[0][:2]
        try:
            yield f"http://{f'[{host}]' if ':' in host else host}:{port}", [*tasks, *scheduling]
        finally:
            await _stop(services, runner)


def _check_exposure(settings: Settings, writer: Writer, sockets: Sequence[socket.socket]) -> None:
    """Check that a squad without keys is served only to this machine, unless `insecure` is set.

    Raises:
        StartFailed: the squad has no keys, and other machines could reach it.
    """
    if is_key_required(writer.squad):
        _log.info("every request requires a key")
        return
    if settings.insecure:
        _log.warning("no key is required: anyone who can reach %s may do everything", settings.host)
        return
    if not all(is_loopback(each.getsockname()[0]) for each in sockets):
        raise StartFailed(
            f"the squad has no keys, and other machines could reach it on {settings.host}: create a key"
            " with `squad keys create --scope operator`, or allow access without keys with --insecure"
        )


async def _stop(services: Services, runner: Runner) -> None:
    """Refuse new requests, answer waiting ones, close streams."""
    services.stopping = True
    for site in list(runner.sites):
        await site.stop()
    await services.scheduler.stop()
    services.tables.release_waiters()
    services.arrivals.reset()
    services.streams.end()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            await services.writer.drain()
    # Fail the rest while their callers are still connected.
    services.writer.fail_waiting()


def _runner_name() -> str:
    """Return the name of this process in the log: host, process id, and a unique suffix."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{uuid4().hex[:8]}"


async def wait_until_ready(writer: Writer) -> None:
    """Wait until a writer that runs in the background accepts commands.

    Raises:
        StartFailed: it has a problem, or is not ready within `START_SECONDS`.
    """
    try:
        async with asyncio.timeout(START_SECONDS):
            while not writer.ready:
                if writer.problem:
                    raise StartFailed(writer.problem)
                await asyncio.sleep(0.01)
    except TimeoutError as error:
        raise StartFailed(f"the state was not restored within {START_SECONDS:.0f} seconds") from error
