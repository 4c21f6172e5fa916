"""The requests that the benchmarks send succeed, and writes can be repeated."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import pytest

from benchmarks.load import NUMBER
from benchmarks.subjects import READS, WRITES

if TYPE_CHECKING:
    from tests.api.client import Service


@pytest.mark.parametrize("name", WRITES)
async def test_write_succeeds_when_repeated(service: Service, name: str) -> None:
    write = WRITES[name]
    for number in range(3):
        body = json.loads(json.dumps(write.body).replace(NUMBER, f"{number:012x}"))
        (await service.api.post(write.path, **body)).expect(201)


@pytest.mark.parametrize("name", READS)
async def test_read_succeeds(service: Service, name: str) -> None:
    path, _, query = READS[name].partition("?")
    (await service.api.get(path, **dict(parse_qsl(query)))).expect(200)
