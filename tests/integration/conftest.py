from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.agents import Agents, running_agents
from tests.support.jobs import Member, running_member

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def agents() -> AsyncIterator[Agents]:
    """Agents that do as they are told."""
    async with running_agents() as running:
        yield running


@pytest.fixture
async def member(database: str, agents: Agents) -> AsyncIterator[Member]:
    """A process that has these agents do the squad's jobs."""
    async with running_member(database, agents.url) as running:
        yield running
