"""`squad keys` as users type it, with and without a running service."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
from click.testing import CliRunner

from eventstore import lookup
from service import api_keys
from service.cli import cli, main
from tests.api.client import running_service
from tests.support.command import ENDS_WITHIN_SECONDS, CommandResult, end, squad, start
from tests.support.components import connected
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

KEY = re.compile(r"squad_[2-9a-z]{10}_[0-9a-f]{64}")


async def _keys(*arguments: str) -> CommandResult:
    """Run `squad keys` in this process, which is much faster than starting another."""
    done = await asyncio.to_thread(CliRunner().invoke, cli, ("keys", *arguments))
    return CommandResult(done.exit_code, done.stdout, done.stderr)


def _key(ended: CommandResult) -> str:
    """The key, which must be all of the output."""
    assert ended.code == 0, ended
    text = ended.output.removesuffix("\n")
    assert KEY.fullmatch(text), text
    assert text not in ended.errors
    return text


async def test_created_key_is_printed_once_and_accepted_by_running_service(
    database: str, tmp_path: Path
) -> None:
    async with running_service(database) as service:
        made = await squad(tmp_path, "keys", "create", "--scope", "operator", "--dsn", database)
        text = _key(made)
        assert api_keys.id_in(text) in made.errors

        async def key_is_required() -> bool:
            return (await service.api.get("budget")).status == 401

        await eventually(key_is_required)
        (await service.api.with_key(text).get("budget")).expect(200)


async def test_json_output_describes_the_created_key(database: str) -> None:
    arguments = (
        "--scope",
        "agent",
        "--agent",
        "ada",
        "--expires-days",
        "3",
        "--note",
        "her laptop",
        "--json",
    )
    [line] = (await _keys("create", *arguments, "--dsn", database)).lines()
    made = json.loads(line)
    assert KEY.fullmatch(made["key"])
    assert (made["scope"], made["agent"], made["note"]) == ("agent", "ada", "her laptop")
    lifetime = datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["created_at"])
    assert lifetime == timedelta(days=3)
    async with connected(database) as connection:
        recorded = await lookup.read_one(connection, made["position"])
    assert recorded is not None
    assert recorded.type == "key_created"
    assert recorded.actor.startswith("cli:")


async def test_keys_are_listed_until_they_are_revoked(database: str) -> None:
    """Without a running service: what is shown comes from the log."""

    async def listed(*arguments: str) -> dict[str, str]:
        lines = (await _keys("list", "--json", *arguments, "--dsn", database)).lines()
        found = [json.loads(line) for line in lines]
        assert all("digest" not in key for key in found)
        return {key["id"]: key["state"] for key in found}

    assert await listed() == {}
    ids = []
    for scope in ("operator", "auditor"):
        made = await _keys("create", "--scope", scope, "--dsn", database)
        ids.append(api_keys.id_in(_key(made)))
    assert await listed() == dict.fromkeys(ids, "active")

    revoked = (await _keys("revoke", ids[0], "--dsn", database)).lines()
    assert json.loads(revoked[0])["id"] == ids[0]
    assert await listed() == {ids[1]: "active"}
    assert await listed("--all") == {ids[0]: "revoked", ids[1]: "active"}

    last = await _keys("revoke", ids[1], "--dsn", database)
    assert last.code == 0
    assert "That was the last key" in last.errors
    table = (await _keys("list", "--all", "--dsn", database)).lines()
    for id_ in ids:
        assert any(id_ in line and "revoked" in line for line in table)


async def test_key_can_be_revoked_by_its_whole_text(database: str) -> None:
    text = _key(await _keys("create", "--scope", "operator", "--dsn", database))
    ended = await _keys("revoke", text, "--dsn", database)
    assert ended.code == 0
    assert text[-64:] not in ended.output + ended.errors


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("create",), "--scope is required: agent, operator or auditor"),
        (("create", "--scope", "king"), "'king' is not one of 'agent', 'operator', 'auditor'"),
        (("create", "--scope", "agent"), "--scope agent requires --agent NAME"),
        (("create", "--scope", "auditor", "--agent", "ada"), "--scope agent requires --agent NAME"),
        (("create", "--scope", "operator", "--expires-days", "0"), "expires_days is 0"),
        (("create", "--scope", "agent", "--agent", " ada"), "for_agent is ' ada'"),
        (("create", "--scope", "operator", "--note", "two\nlines"), "note is 'two\\nlines'"),
        (("revoke", "2222222222"), "there is no key 2222222222"),
        (("revoke", "squad-2222222222-" + "5ec7e7" * 10), "that is not the id of a key"),
    ],
    ids=str,
)
def test_errors_are_reported_in_one_line_without_secrets(
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    complaint: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["squad", "keys", *arguments, "--dsn", database])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    printed = capsys.readouterr()
    line = CommandResult(ended.value.code, printed.out, printed.err).error_line()
    assert complaint in line
    assert "5ec7e7" not in line
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM squad.events").fetchone() == (0,)


async def test_first_key_can_be_created_before_the_first_start(empty_database: str, tmp_path: Path) -> None:
    """A service that other machines can reach does not start without a key."""
    refused = await squad(tmp_path, "up", "--host", "0.0.0.0", "--port", "0", "--dsn", empty_database)
    assert "has no keys" in refused.error_line()
    text = _key(await _keys("create", "--scope", "operator", "--dsn", empty_database))
    async with running_service(empty_database, host="0.0.0.0") as service:
        (await service.api.get("budget")).expect(401, "unauthorized")
        (await service.api.with_key(text).get("budget")).expect(200)
    status = (await squad(tmp_path, "status", "--dsn", empty_database)).lines()
    assert any("remain until" in line for line in status)


async def test_up_with_insecure_listens_on_all_addresses_with_a_warning(
    database: str, tmp_path: Path
) -> None:
    arguments = ("up", "--insecure", "--host", "0.0.0.0", "--port", "0", "--dsn", database)
    process = await start(tmp_path, *arguments)
    assert process.stdout
    line = await asyncio.wait_for(process.stdout.readline(), ENDS_WITHIN_SECONDS)
    assert b"listening on http://0.0.0.0:" in line
    process.terminate()
    ended = await end(process)
    assert ended.code == 0
    assert "anyone who can reach 0.0.0.0 may do everything" in ended.errors


async def test_concurrently_created_keys_are_all_recorded(database: str, tmp_path: Path) -> None:
    made = await asyncio.gather(
        *(squad(tmp_path, "keys", "create", "--scope", "auditor", "--dsn", database) for _ in range(4))
    )
    ids = {api_keys.id_in(_key(ended)) for ended in made}
    lines = (await squad(tmp_path, "keys", "list", "--json", "--dsn", database)).lines()
    assert {json.loads(line)["id"] for line in lines} == ids
    assert len(ids) == 4
