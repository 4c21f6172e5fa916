"""Tests of other folders, repeated with encrypted payloads: their results must be the same."""

from __future__ import annotations

import pytest

from tests.api.conftest import _no_settings_of_ours, api, service
from tests.integration.conftest import agents, connection, job_process, writer

__all__ = ["_no_settings_of_ours", "agents", "api", "connection", "job_process", "service", "writer"]


@pytest.fixture(autouse=True)
def _encrypted(_no_settings_of_ours: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUAD_ENCRYPT_PAYLOADS", "true")
