"""The service against its own OpenAPI document: generated requests for every operation."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from service import reading
from service.http import auth
from service.http.routes import openapi
from service.http.v1 import inbox
from tests.api.client import running_service
from tests.support.keys import make_key

if TYPE_CHECKING:
    from tests.api.client import Api, Service

ENDS_WITHIN_SECONDS = 300

CONFIGURATION = """\
[checks]
# test_keys.py tests who may access which object. What is deleted is a reservation, which remains known: the
# log has its history.
object_level_authorization.enabled = false
use_after_free.enabled = false
ensure_resource_availability.enabled = false
# A request that waits for a position is answered with 504 if the position is not reached in time.
not_a_server_error.expected-statuses = ["2xx", "4xx", "504"]
# Valid requests may name objects that are unknown, have ended, or are in conflict.
positive_data_acceptance.expected-statuses = ["2xx", "404", "409", "410", "429", "504"]
# A text that is too long can also make the whole body too long.
negative_data_rejection.expected-statuses = ["400", "401", "404", "405", "409", "413", "415", "422", "429"]

[[operations]]
# The document cannot express that two numbers must add up to a third.
include-operation-id = "record_usage"
checks.positive_data_acceptance.enabled = false

[[operations]]
include-operation-id = "settle_reservation"
checks.positive_data_acceptance.enabled = false

[[operations]]
include-operation-id = "finish_operation"
checks.positive_data_acceptance.enabled = false

[[operations]]
# Nor what the cursor of a page is.
include-operation-id = "list_token_usage"
checks.positive_data_acceptance.enabled = false

[[operations]]
# Nor what a valid cron expression is, and which time zones and agents exist.
include-operation-id = "define_job"
checks.positive_data_acceptance.enabled = false
"""

BOUNDARY_VALUES = ("--phases=examples,coverage",)
"""Requests with values on both sides of each bound of each field."""

RANDOM_VALUES = (
    "--phases=fuzzing",
    "--max-examples=15",
    *(
        f"--include-operation-id={name}"
        for name in ("command_squad", "send_message", "start_operation", "send_batch", "list_events")
    ),
    "--exclude-checks=positive_data_acceptance",
)
"""Random requests, for the operations with the most varied input.

Whether valid requests are accepted is not checked, because Hypothesis, unlike the service, takes 5.0 for an
integer.
"""

FEW_RANDOM_VALUES = ("--phases=fuzzing", "--max-examples=5", "--exclude-checks=positive_data_acceptance")

ON_EXISTING_OBJECTS = {
    "agents": ("register_agent", "send_heartbeat", "list_inbox"),
    "messages": ("get_message", "acknowledge_message"),
    "operations": ("get_operation", "renew_operation", "finish_operation"),
    "reservations": (
        "get_reservation",
        "settle_reservation",
        "release_reservation",
    ),
    "tasks": ("get_task", "update_task"),
    "emails": ("get_email", "update_email"),
    "jobs": ("get_job", "run_job", "pause_job", "resume_job"),
    "jobs to delete": ("remove_job",),
}
"""Operations on one object. With random ids, they would only ever be answered with 404."""

_BY_NAME = {"agents": "ann", "jobs": "rounds", "jobs to delete": "sweeps"}

OTHER_WRITES = (
    "check_budget",
    "check_operation",
    "create_task",
    "define_job",
    "forget_subject",
    "log_email",
    "record_usage",
    "reserve_tokens",
    "set_budget",
    "try_rules",
    "update_squad_task",
)
"""Together with `RANDOM_VALUES` and `ON_EXISTING_OBJECTS`, all operations that take a body."""


@pytest.fixture(autouse=True)
def _answers_come_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests that may wait for something wait hardly at all."""
    monkeypatch.setattr(reading, "STRICT_WAIT_SECONDS", 0.02)
    monkeypatch.setattr(inbox, "monotonic", lambda: 1_000 * monotonic())
    monkeypatch.setattr(inbox, "POLL_SECONDS", 0.02)


@pytest.fixture(autouse=True)
def _wrong_keys_are_not_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schemathesis tries wrong keys on every route."""
    monkeypatch.setattr(auth, "FAILED_TRIES_PER_MINUTE", 1_000_000)


@pytest.mark.parametrize(
    "options", [BOUNDARY_VALUES, RANDOM_VALUES], ids=["boundary values", "random values"]
)
async def test_service_conforms_to_its_openapi_document(
    database: str, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Load the document from the service, and send it thousands of requests generated from the document."""
    key = (await make_key(database)).text
    async with running_service(database, key_requests_per_second=0) as service:
        assert (await service.api.get("/openapi.json")).expect(200) == openapi()
        await _run_schemathesis(service, key, tmp_path, options)
        (await service.api.get("/readyz")).expect(200)


async def test_requests_for_existing_objects_conform_to_openapi_document(
    database: str, tmp_path: Path
) -> None:
    """The paths name objects that the test has created; everything else is random."""
    key = (await make_key(database)).text
    async with running_service(database, key_requests_per_second=0) as service:
        names = await _create_objects(service.api.with_key(key))
        paths = "".join(
            _configured(operation, "name" if kind in _BY_NAME else "id", names[kind])
            for kind, operations in ON_EXISTING_OBJECTS.items()
            for operation in operations
        )
        operations = [*OTHER_WRITES, *(name for names in ON_EXISTING_OBJECTS.values() for name in names)]
        options = (*FEW_RANDOM_VALUES, *(f"--include-operation-id={name}" for name in operations))
        await _run_schemathesis(service, key, tmp_path, options, paths)
        (await service.api.get("/readyz")).expect(200)


def test_every_operation_with_a_body_is_tested_with_random_values() -> None:
    tested = {*OTHER_WRITES, *(name for names in ON_EXISTING_OBJECTS.values() for name in names)}
    tested |= {option.rpartition("=")[2] for option in RANDOM_VALUES}
    operations = [operation for methods in openapi()["paths"].values() for operation in methods.values()]
    assert {operation["operationId"] for operation in operations if "requestBody" in operation} <= tested


def _configured(operation: str, parameter: str, value: str) -> str:
    return (
        f'[[operations]]\ninclude-operation-id = "{operation}"\n'
        f'parameters = {{ "path.{parameter}" = "{value}" }}\n'
    )


async def _create_objects(api: Api) -> dict[str, str]:
    """Create one object of each kind; return the ids or names by which paths refer to them."""
    created = {
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
    ids = {kind: str(answer.expect(201)["id"]) for kind, answer in created.items()}
    return {**ids, **_BY_NAME}


async def _run_schemathesis(
    service: Service, key: str, tmp_path: Path, options: tuple[str, ...], more_configuration: str = ""
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
        # A stream never ends by itself; test_stream.py tests it.
        "--exclude-path=/api/v1/events/stream",
        *options,
        # Several workers would be threads, and CPython 3.11 does not compile reliably in several threads.
        "--workers=1",
        "--generation-deterministic",
        "--request-timeout=20",
        # A busy machine generates values slowly; `ENDS_WITHIN_SECONDS` bounds the total time.
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
