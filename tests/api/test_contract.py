"""The service against its own OpenAPI document: generated requests, good and bad, for every operation."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service import reading
from service.http import auth
from service.http.routes import openapi
from tests.api.client import running_service
from tests.support.keys import make_key

if TYPE_CHECKING:
    from tests.api.client import Api, Service

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

A_LITTLE_AT_RANDOM = ("--phases=fuzzing", "--max-examples=5", "--exclude-checks=positive_data_acceptance")

ON_WHAT_IS_THERE = {
    "agents": ("put_agents_name", "post_agents_name_heartbeat", "get_agents_name_inbox"),
    "messages": ("get_messages_id", "post_messages_id_ack"),
    "operations": ("get_operations_id", "post_operations_id_heartbeat", "post_operations_id_finish"),
    "reservations": (
        "get_budget_reservations_id",
        "post_budget_reservations_id_settle",
        "delete_budget_reservations_id",
    ),
    "tasks": ("get_tasks_id", "patch_tasks_id"),
    "emails": ("get_emails_id", "patch_emails_id"),
    "jobs": ("get_jobs_name", "post_jobs_name_run", "post_jobs_name_pause", "post_jobs_name_resume"),
    "jobs to be removed": ("delete_jobs_name",),
}
"""What is asked of a thing that is there. With ids at random, nothing but 404 would come of it."""

_BY_NAME = {"agents": "ann", "jobs": "rounds", "jobs to be removed": "sweeps"}

OTHER_WRITES = (
    "patch_api_squad",
    "post_budget_check",
    "post_budget_reservations",
    "post_budget_usage",
    "post_emails",
    "post_operations_check",
    "post_subjects_forget",
    "post_tasks",
    "post_whatif",
    "put_budget",
    "put_jobs_name",
)
"""With `AT_RANDOM` and those above, all that take a body."""


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


async def test_whatever_is_written_to_things_that_are_there_is_answered_as_promised(
    database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Paths name things that the test has made; everything else is at random."""
    monkeypatch.setattr(reading, "STRICT_WAIT_SECONDS", 0.02)
    key = (await make_key(database)).text
    async with running_service(database, key_requests_per_second=0) as service:
        names = await _make_things(service.api.with_key(key))
        paths = "".join(
            _configured(operation, "name" if kind in _BY_NAME else "id", names[kind])
            for kind, operations in ON_WHAT_IS_THERE.items()
            for operation in operations
        )
        some = [*OTHER_WRITES, *(name for names in ON_WHAT_IS_THERE.values() for name in names)]
        what = (*A_LITTLE_AT_RANDOM, *(f"--include-operation-id={name}" for name in some))
        await _try(service, key, tmp_path, what, paths)
        (await service.api.get("/readyz")).expect(200)


def test_all_that_take_a_body_are_tried_at_random() -> None:
    tried = {*OTHER_WRITES, *(name for names in ON_WHAT_IS_THERE.values() for name in names)}
    tried |= {option.rpartition("=")[2] for option in AT_RANDOM}
    operations = [operation for methods in openapi()["paths"].values() for operation in methods.values()]
    assert {operation["operationId"] for operation in operations if "requestBody" in operation} <= tried


def _configured(operation: str, parameter: str, value: str) -> str:
    return (
        f'[[operations]]\ninclude-operation-id = "{operation}"\n'
        f'parameters = {{ "path.{parameter}" = "{value}" }}\n'
    )


async def _make_things(api: Api) -> dict[str, str]:
    """One thing of each kind, by the name that paths call it."""
    made = {
        "messages": await api.post("/api/v1/messages", from_agent="ann", message="hello"),
        "operations": await api.post(
            "/api/v1/operations", agent="ann", action="reply", resources={"emailId": "1"}, ttl_seconds=600
        ),
        "reservations": await api.post("/api/v1/budget/reservations", agent="ann", tokens=5),
        "tasks": await api.post("/api/v1/tasks", title="look"),
        "emails": await api.post("/api/v1/emails", gmail_message_id="g-1", from_email="a@example.org"),
    }
    for job in ("rounds", "sweeps"):
        (await api.put(f"/api/v1/jobs/{job}", agent="ann", endpoint="/work", cron="0 0 1 1 *")).expect(200)
    ids = {kind: str(answer.expect(201)["id"]) for kind, answer in made.items()}
    return {**ids, **_BY_NAME}


async def _try(
    service: Service, key: str, tmp_path: Path, what: tuple[str, ...], more_configuration: str = ""
) -> None:
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION + more_configuration)
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
        # A machine that is busy otherwise makes data slowly; how long it may take in all is bounded above.
        "--suppress-health-check=too_slow",
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
