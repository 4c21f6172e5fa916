"""The service against its own OpenAPI document: generated requests, good and bad, for every operation."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import GenerationConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.support.process import ServiceProcess, squad_up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemathesis.schemas import BaseSchema

    from tests.support.postgres import PostgresServer

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    negative_data_rejection,
    missing_required_header,
    unsupported_method,
    allow_header_conformance,
]
SEED = 20_260_131
EXAMPLES = 12
TIMEOUT_SECONDS = 20

CONFIG = SchemathesisConfig(
    seed=SEED,
    projects=ProjectsConfig(
        default=ProjectConfig(generation=GenerationConfig(deterministic=True, database="none"))
    ),
)


@pytest.fixture(scope="module")
def process(postgres: PostgresServer, _template: str) -> Iterator[ServiceProcess]:
    """A service in a process of its own; what is generated would hold up the test's own event loop."""
    with postgres.new_database(template=_template) as dsn, asyncio.Runner() as runner:
        context = squad_up(dsn=dsn)
        process = runner.run(context.__aenter__())
        try:
            yield process
            assert runner.run(process.stop()) == 0
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """Connections that are kept for all requests."""
    with requests.Session() as session:
        yield session


@pytest.fixture(scope="module")
def document(process: ServiceProcess) -> BaseSchema:
    """The document as the service serves it."""
    return schemathesis.openapi.from_url(
        f"{process.url}/openapi.json", config=CONFIG, timeout=TIMEOUT_SECONDS
    )


# A stream never ends by itself; what it takes and gives is tested beside the other streams.
operations = schemathesis.pytest.from_fixture("document").exclude(path="/api/v1/events/stream")


@operations.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_the_service_keeps_what_its_document_promises(
    case: schemathesis.Case, session: requests.Session
) -> None:
    case.call_and_validate(checks=CHECKS, session=session, timeout=TIMEOUT_SECONDS)
