"""Metrics of the software itself."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from tests.api.test_metrics import scrape

if TYPE_CHECKING:
    from tests.api.client import Service


async def test_version_is_a_label_of_build_info(service: Service) -> None:
    assert (await scrape(service.api))[f"squad_build_info{{{version('squad-orchestrator')}}}"] == 1
