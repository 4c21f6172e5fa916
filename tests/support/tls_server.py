"""A Postgres that accepts only TLS, with a self-signed certificate.

It is Debian's or another installed Postgres, because the embedded one is built without TLS.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from psycopg.conninfo import make_conninfo

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "db.squad.test"
"""The host name in the certificate."""

_PASSWORD = "kept-from-others"
_SETTINGS = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
ssl = on
ssl_cert_file = 'server.crt'
ssl_key_file = 'server.key'
fsync = off
"""
_ACCESS = "hostssl all all 127.0.0.1/32 scram-sha-256\n"


class TlsServer(NamedTuple):
    """Its local port, and the certificate to verify it with."""

    port: int
    certificate: Path

    def dsn(self, **different: str) -> str:
        """A DSN that verifies the server, with these parameters added or replaced."""
        parts = {
            "host": HOST,
            "hostaddr": "127.0.0.1",
            "port": str(self.port),
            "user": "postgres",
            "password": _PASSWORD,
            "dbname": "postgres",
            "sslmode": "verify-full",
            "sslrootcert": str(self.certificate),
        }
        return make_conninfo("", **{**parts, **different})


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for `HOST`, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / f"{name}.crt", folder / f"{name}.key"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return public, private


@contextlib.contextmanager
def tls_server() -> Iterator[TlsServer]:
    """Run the server for the duration of the block; skip the test if no Postgres with TLS is installed."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = str(programs[-1]) if programs else shutil.which("initdb")
    if found is None:
        pytest.skip("no Postgres is installed that has TLS (apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="squad-tls-"))
    try:
        with _run(Path(found).parent, folder) as server:
            yield server
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _run(programs: Path, folder: Path) -> Iterator[TlsServer]:
    user, data = _user(), folder / "data"
    password = folder / "password"
    password.write_text(_PASSWORD)
    public, private = make_certificate(folder, "server")
    _give(user, folder, password)
    make = ("--username=postgres", f"--pwfile={password}", "--auth=scram-sha-256", "--encoding=UTF8")
    _as(user, programs / "initdb", f"--pgdata={data}", "--no-sync", *make)
    for path in (public, private):
        shutil.copy(path, data)
        (data / path.name).chmod(0o600)
        _give(user, data / path.name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (data / "postgresql.conf").open("a") as settings:
        settings.write(_SETTINGS.format(port=port))
    (data / "pg_hba.conf").write_text(_ACCESS)
    control = (programs / "pg_ctl", f"--pgdata={data}", "--wait")
    _as(user, *control, "start", f"--log={folder / 'data' / 'log'}")
    folder.chmod(0o755)
    try:
        server = TlsServer(port, public)
        with psycopg.connect(server.dsn()):
            yield server
    finally:
        _as(user, *control, "stop", "--mode=immediate")


def _user() -> pwd.struct_passwd:
    """The user to run Postgres as, which must not be root."""
    if os.geteuid():
        return pwd.getpwuid(os.geteuid())
    names = {entry.pw_name for entry in pwd.getpwall()}
    return pwd.getpwnam("postgres" if "postgres" in names else "nobody")


def _give(user: pwd.struct_passwd, *paths: Path) -> None:
    for path in paths:
        os.chown(path, user.pw_uid, user.pw_gid)


def _as(user: pwd.struct_passwd, *command: str | Path) -> None:
    is_root = os.geteuid() == 0
    subprocess.run(
        command,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd="/",
        user=user.pw_uid if is_root else None,
        group=user.pw_gid if is_root else None,
        extra_groups=() if is_root else None,
    )
