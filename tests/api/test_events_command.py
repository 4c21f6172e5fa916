"""`squad events` between two times."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from click.testing import CliRunner

from service.cli import cli

if TYPE_CHECKING:
    from click.testing import Result

    from tests.api.client import Service


async def _events(dsn: str, *arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, cli, ("events", *arguments, "--dsn", dsn))


async def _printed(dsn: str, *arguments: str) -> list[int]:
    """Return the positions of the events that the command prints."""
    ended = await _events(dsn, *arguments)
    assert ended.exit_code == 0, ended.output
    return [int(line.split()[0]) for line in ended.output.splitlines()]


async def test_events_end_before_a_time_when_it_is_given_as_until(service: Service) -> None:
    for text in ("one", "two", "three"):
        (await service.api.post("messages", from_agent="ada", message=text)).expect(201)
    sent = (await service.api.get("events", type="message_sent")).expect(200)["items"]
    first, second, third = [event["position"] for event in sent]
    at_second, at_third = sent[1]["recorded_at"], sent[2]["recorded_at"]
    messages = ("--type", "message_sent")
    assert await _printed(service.dsn, *messages, "--until", at_third) == [first, second]
    assert await _printed(service.dsn, *messages, "--since", at_second, "--until", at_third) == [second]
    assert await _printed(service.dsn, *messages, "--until", "1h") == []
    whole = await _printed(service.dsn)
    assert await _printed(service.dsn, "--until", at_third) == whole[: whole.index(third)]


async def test_until_is_refused_when_new_events_are_waited_for(database: str) -> None:
    ended = await _events(database, "--follow", "--until", "1h")
    assert ended.exit_code == 2
    assert "cannot be combined with --until" in ended.stderr
