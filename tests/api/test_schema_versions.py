"""Commands on a database whose schema has another version: each reports that, and does nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import psycopg
import pytest

from eventstore import checkpoint
from eventstore.connection import session_options
from eventstore.schema import SCHEMA_VERSION
from service.cli import main
from tests.support.command import CommandResult
from tests.support.components import SCHEMA

FIRST_SCHEMA = Path(__file__).parent.parent / "golden" / "schema.v1.sql"


@pytest.mark.parametrize(
    "command",
    [
        *("status", "state", "events", "verify", "verify --no-tables", "explain 1", "replay", "export -"),
        *("whatif --daily-tokens 1", "keys list", "forget a@example.org", "checkpoint --key squad.key"),
    ],
)
def test_other_schema_version_is_reported_in_one_line(
    empty_database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint.new_key(Path("squad.key"))

    def error_line() -> str:
        monkeypatch.setattr(sys, "argv", ["squad", *command.split(), "--dsn", empty_database])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return CommandResult(ended.value.code, *capsys.readouterr()).error_line()

    with psycopg.connect(empty_database, autocommit=True, options=session_options(SCHEMA)) as connection:
        connection.execute("CREATE SCHEMA squad")
        connection.execute(FIRST_SCHEMA.read_bytes())
        connection.execute("INSERT INTO schema_info (version) VALUES (1)")
        assert error_line() == (
            "the database's schema is older than this version of the software: version 1, and"
            f" {SCHEMA_VERSION} is needed: start the service once, or have the owner run"
            " `squad schema apply`"
        )
        connection.execute("UPDATE schema_info SET version = 99")
        assert error_line() == (
            "the database's schema is newer than this version of the software: version 99, this software"
            f" knows up to {SCHEMA_VERSION}"
        )
