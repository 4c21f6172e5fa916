from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.api.client import Api, Service, running_service
from tests.support.agents import Agents, running_agents

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.postgres import PostgresServer


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore the settings of the developer's own squad."""
    for name in os.environ:
        if name.startswith("SQUAD_") and not name.startswith("SQUAD_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture
async def service(database: str) -> AsyncIterator[Service]:
    """The whole service in this process."""
    async with running_service(database) as running:
        yield running


@pytest.fixture
def api(service: Service) -> Api:
    """A client of the service."""
    return service.api


@pytest.fixture
async def agents() -> AsyncIterator[Agents]:
    """Fake agents that answer as a test configures them."""
    async with running_agents() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_service(postgres: PostgresServer, _template: str) -> AsyncIterator[Service]:
    """One service for all tests of a module, none of which depends on what is in it."""
    with postgres.new_database(template=_template) as dsn:
        async with running_service(dsn) as running:
            yield running
