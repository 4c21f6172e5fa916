"""TLS to the database is used as the DSN requires, on every connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import psycopg

from tests.support.process import failed_start_output, squad_up
from tests.support.tls_server import make_certificate, tls_server
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

APPLICATION_NAMES = {"squad writer", "squad projector", "squad listener", "squad reader"}


async def test_all_connections_are_encrypted_and_unverified_servers_are_refused(tmp_path: Path) -> None:
    with tls_server() as server:
        async with squad_up(dsn=server.dsn()) as service:
            await eventually(service.is_ready)
            body = {"from_agent": "ada", "message": "over the wire"}
            async with aiohttp.request("POST", f"{service.url}/api/v1/messages", json=body) as response:
                assert response.status == 201
            async with aiohttp.request("GET", f"{service.url}/api/v1/messages") as response:
                assert len((await response.json())["items"]) == 1
            assert await service.metric("squad_listener_hearing") == 1
            with psycopg.connect(server.dsn()) as connection:
                found = connection.execute(
                    "SELECT DISTINCT application_name, ssl FROM pg_stat_activity"
                    " JOIN pg_stat_ssl USING (pid) WHERE application_name LIKE 'squad %'"
                ).fetchall()
            assert {name for name, _ in found} >= APPLICATION_NAMES
            assert all(is_encrypted for _, is_encrypted in found), found

        stranger, _ = make_certificate(tmp_path, "stranger")
        output = await failed_start_output(dsn=server.dsn(sslrootcert=str(stranger)))
        assert "certificate verify failed" in output
        output = await failed_start_output(dsn=server.dsn(host="another.squad.test"))
        assert 'does not match host name "another.squad.test"' in output
        output = await failed_start_output(dsn=server.dsn(sslmode="disable", sslrootcert=""))
        assert "no encryption" in output
