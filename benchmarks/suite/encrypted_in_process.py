"""What encryption costs: messages appended with encrypted payloads, compared with plain ones.

Each message gets a key of its own, which is made durable first, and is encrypted with AES-256-GCM. Both
writers are in this process, on the same Postgres, each in a schema of its own. The plain one is measured
twice a round: the difference between the two is the noise of the machine.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from benchmarks import stage
from benchmarks.harness import Benchmark, Contender
from benchmarks.suite.appends_in_process import _measure, _submitting
from eventstore import schema
from eventstore.listener import Hints
from service.background import background
from service.clock import DatabaseClock
from service.commands import SetPolicy
from service.requests import Request
from service.writing.writer import Writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from benchmarks.harness import Plan

CALLERS = (64, 512)
PLAIN, ENCRYPTED, AGAIN = "plain", "encrypted", "plain again"


def _preparing(callers: int) -> Callable[[Plan], AbstractAsyncContextManager[Sequence[Contender]]]:
    @asynccontextmanager
    async def prepare(_: Plan) -> AsyncIterator[Sequence[Contender]]:
        async with AsyncExitStack() as stack:
            dsn = await stack.enter_async_context(stage.postgres())
            plain = await stack.enter_async_context(_writer(dsn, "squad_plain", encrypt=False))
            encrypted = await stack.enter_async_context(_writer(dsn, "squad_encrypted", encrypt=True))
            yield (
                Contender(PLAIN, _measure(_submitting(plain, callers))),
                Contender(ENCRYPTED, _measure(_submitting(encrypted, callers))),
                Contender(AGAIN, _measure(_submitting(plain, callers))),
            )

    return prepare


@asynccontextmanager
async def _writer(dsn: str, squad_schema: str, *, encrypt: bool) -> AsyncIterator[Writer]:
    await schema.apply(dsn, squad_schema)
    writer = Writer(dsn, squad_schema, DatabaseClock(), Hints(), encrypt=encrypt)
    async with background(writer.run()):
        await writer.submit(Request(SetPolicy(daily_tokens=0), "system:benchmark", "benchmark"))
        yield writer


BENCHMARKS = tuple(
    Benchmark(
        name=f"encrypted-{callers}-callers",
        title=f"Messages of 200 bytes, payloads encrypted or not, {callers} callers in process",
        figure="per_second",
        baseline=PLAIN,
        best_of={},
        prepare=_preparing(callers),
    )
    for callers in CALLERS
)
