"""Fixtures of the integration tests: connections, writers, fake agents, and a process that runs jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.agents import Agents, running_agents
from tests.support.components import connected, running_writer
from tests.support.jobs import JobProcess, running_job_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from eventstore.connection import Connection
    from service.writing.writer import Writer


@pytest.fixture
async def connection(database: str) -> AsyncIterator[Connection]:
    """A connection for inspecting the test's squad."""
    async with connected(database) as opened:
        yield opened


@pytest.fixture
async def writer(database: str) -> AsyncIterator[Writer]:
    """A writer that is ready, in a squad with a policy."""
    async with running_writer(database) as running:
        yield running


@pytest.fixture
async def agents() -> AsyncIterator[Agents]:
    """Fake agents that answer as the test configures them."""
    async with running_agents() as running:
        yield running


@pytest.fixture
async def job_process(database: str, agents: Agents) -> AsyncIterator[JobProcess]:
    """A process that runs the squad's jobs on these agents."""
    async with running_job_process(database, agents.url) as running:
        yield running
