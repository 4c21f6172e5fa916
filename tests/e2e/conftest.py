from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.support.process import ServiceProcess, squad_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Pair = tuple[ServiceProcess, ServiceProcess]


@pytest.fixture
async def pair(database: str) -> AsyncIterator[Pair]:
    """Two service processes on one database."""
    async with squad_up(dsn=database) as first, squad_up(dsn=database) as second:
        yield first, second


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client without a limit on connections."""
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session
