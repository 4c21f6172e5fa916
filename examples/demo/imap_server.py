r"""An IMAP server for the demo, on this machine only: Dovecot if it is installed, otherwise pymap.

pymap is an IMAP server in Python that keeps its mail in memory. Dovecot runs as the user who runs the demo,
from a single folder ("rootless"). It serves no mail to root, and its configuration language changed with
2.4, so pymap is also used for root and with other versions of Dovecot.
"""

from __future__ import annotations

import asyncio
import grp
import imaplib
import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.demo.processes import DemoFailed

if TYPE_CHECKING:
    from collections.abc import Iterable

HOST = "127.0.0.1"
USER = "shop"
PASSWORD = "demo"  # noqa: S105 - of a server that lives for a minute and listens on this machine only
_DOVECOT_VERSION = "2.3."
_DOVECOT_FOLDERS = ("/usr/lib/dovecot", "/usr/libexec/dovecot", "/usr/local/libexec/dovecot")
_TIMEOUT_SECONDS = 5.0

_DOVECOT_CONFIGURATION = r"""
protocols = imap
listen = {host}
base_dir = {folder}/run
state_dir = {folder}/state
log_path = /dev/stderr
ssl = no
disable_plaintext_auth = no
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
mail_location = maildir:{folder}/mail
first_valid_uid = {uid}
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={folder}/home
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
namespace inbox {{
  inbox = yes
  separator = /
  mailbox Drafts {{
    auto = create
    special_use = \Drafts
  }}
}}
"""


@dataclass(frozen=True)
class ImapServer:
    """The server: its name, its command line and its port."""

    name: str
    command: tuple[str, ...]
    port: int

    async def is_open(self) -> bool:
        """Whether the server accepts logins. If so, this has created the folder for drafts."""
        return await asyncio.to_thread(self._try_to_open)

    def deliver(self, letters: Iterable[bytes]) -> None:
        """Put letters into the mailbox.

        Raises:
            DemoFailed: the server does not accept them.
        """
        # imaplib takes None for "no date", though typeshed's stubs do not know it.
        nothing: Any = None
        try:
            with self._session() as imap:
                for letter in letters:
                    status, said = imap.append("INBOX", nothing, nothing, letter)
                    if status != "OK":
                        raise DemoFailed(f"the IMAP server ({self.name}) rejected a letter: {said!r}")
        except (OSError, imaplib.IMAP4.error) as error:
            raise DemoFailed(f"the IMAP server ({self.name}) cannot be used: {error}") from error

    def _try_to_open(self) -> bool:
        try:
            with self._session() as imap:
                # If the folder exists already, the server answers NO; both are fine.
                imap.create("Drafts")
        except (OSError, imaplib.IMAP4.error):
            return False
        return True

    def _session(self) -> imaplib.IMAP4:
        imap = imaplib.IMAP4(HOST, self.port, timeout=_TIMEOUT_SECONDS)
        imap.login(USER, PASSWORD)
        return imap


def choose(folder: Path, port: int) -> ImapServer:
    """The best server available. It keeps its data in the folder.

    Raises:
        DemoFailed: no server is available.
    """
    dovecot = _dovecot()
    if dovecot:
        return ImapServer("dovecot", (dovecot, "-F", "-c", str(_configure(folder, port))), port)
    if importlib.util.find_spec("pymap") is None:
        raise DemoFailed("no IMAP server found: run `make install`, or install dovecot or pymap")
    # pymap has no `python -m pymap`.
    script = "import sys; from pymap.main import main; sys.exit(main())"
    where = ("--host", HOST, "--port", str(port), "--no-tls")
    mail = ("dict", "--demo-user", USER, "--demo-password", PASSWORD)
    return ImapServer("pymap", (sys.executable, "-c", script, *where, *mail), port)


def _dovecot() -> str | None:
    program = shutil.which("dovecot", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    # Debian packages the server and its IMAP part separately.
    speaks_imap = any(Path(folder, "imap-login").exists() for folder in _DOVECOT_FOLDERS)
    if program is None or not speaks_imap or os.geteuid() == 0:
        return None
    result = subprocess.run(  # noqa: S603 - found on the system's own path
        [program, "--version"], capture_output=True, text=True, check=False, timeout=10
    )
    return program if result.stdout.startswith(_DOVECOT_VERSION) else None


def _configure(folder: Path, port: int) -> Path:
    for name in ("run", "state", "mail", "home"):
        (folder / name).mkdir(parents=True)
    uid, gid = os.geteuid(), os.getegid()
    configuration = folder / "dovecot.conf"
    configuration.write_text(
        _DOVECOT_CONFIGURATION.format(
            host=HOST,
            port=port,
            folder=folder,
            password=PASSWORD,
            uid=uid,
            gid=gid,
            user=pwd.getpwuid(uid).pw_name,
            group=grp.getgrgid(gid).gr_name,
        )
    )
    return configuration
