"""The service against its own OpenAPI document: generated requests, good and bad, for every operation."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service import reading
from service.http import auth
from service.http.table import openapi
from tests.api.client import running_service
from tests.support.keys import make_key

if TYPE_CHECKING:
    from tests.api.client import Service

ENDS_WITHIN_SECONDS = 150

CONFIGURATION = """\
[checks]
# Whose things are whose is tried beside the keys; and what is deleted is a reservation, of which the log
# keeps the story.
object_level_authorization.enabled = false
use_after_free.enabled = false
ensure_resource_availability.enabled = false
# A position that has not come is answered with 504: it is the one thing that is asked to take long.
not_a_server_error.expected-statuses = ["2xx", "4xx", "504"]
# What is over is gone.
positive_data_acceptance.expected-statuses = ["2xx", "404", "409", "410", "429", "504"]

[[operations]]
# No document can say that two numbers must add up to a third.
include-operation-id = "post_budget_usage"
checks.positive_data_acceptance.enabled = false

[[operations]]
# Nor what a cron expression is, which time zones there are, and which agents.
include-operation-id = "put_jobs_name"
checks.positive_data_acceptance.enabled = false
"""

EVERY_EDGE = ("--phases=examples,coverage",)
"""A request for each bound of each field, on either side of it."""

AT_RANDOM = (
    "--phases=fuzzing",
    "--max-examples=15",
    *(
        f"--include-operation-id={name}"
        for name in ("post_api_squad", "post_messages", "post_operations", "post_batch", "get_events")
    ),
    "--exclude-checks=positive_data_acceptance",
)
"""Whatever hypothesis thinks of, where it has most to think of. Only to it 5.0 is an integer."""


@pytest.mark.parametrize("what", [EVERY_EDGE, AT_RANDOM], ids=["every edge", "at random"])
async def test_the_service_keeps_what_its_document_promises(
    database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: tuple[str, ...]
) -> None:
    """Loads the document from the service, and sends it thousands of requests made from it."""
    monkeypatch.setattr(reading, "STRICT_WAIT_SECONDS", 0.02)
    # It tries wrong keys on every route.
    monkeypatch.setattr(auth, "FAILED_TRIES_PER_MINUTE", 1_000_000)
    key = (await make_key(database)).text
    async with running_service(database, key_requests_per_second=0) as service:
        assert (await service.api.get("/openapi.json")).expect(200) == openapi()
        await _try(service, key, tmp_path, what)
        (await service.api.get("/readyz")).expect(200)


async def _try(service: Service, key: str, tmp_path: Path, what: tuple[str, ...]) -> None:
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        "--no-color",
        f"--config-file={configuration}",
        "run",
        f"{service.url}/openapi.json",
        f"--header=Authorization: Bearer {key}",
        # A stream never ends by itself; what it takes and gives is tested beside the other streams.
        "--exclude-path=/api/v1/events/stream",
        *what,
        # Several would be threads, and CPython 3.11 cannot compile in several threads without fail.
        "--workers=1",
        "--generation-deterministic",
        "--request-timeout=20",
        "--continue-on-failure",
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(ENDS_WITHIN_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.communicate()
        raise
    assert process.returncode == 0, output.decode()
