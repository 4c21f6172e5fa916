"""The settings of the embedded server: a small server for one application."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FILE = "squad.conf"
"""Included at the end of postgresql.conf."""

_SETTINGS = """\
# Written by squad at each start. To change a setting use ALTER SYSTEM, which overrides this file.
listen_addresses = ''
port = {port}
unix_socket_directories = {socket_folder}
unix_socket_permissions = 0700

# What was acknowledged is durable.
fsync = on
synchronous_commit = on
full_page_writes = on

max_connections = 200
shared_buffers = '256MB'
max_wal_size = '2GB'
random_page_cost = 1.1
# The statements are short: compiling one takes longer than running it.
jit = off

timezone = 'UTC'
log_timezone = 'UTC'
# Seven files, one for each day of the week, so that the log never fills the disk.
logging_collector = on
log_directory = 'log'
log_filename = 'postgres-%a.log'
log_truncate_on_rotation = on
log_rotation_age = '1d'
log_rotation_size = 0
log_checkpoints = off
log_lock_waits = on
"""


def text(port: int, socket_folder: Path) -> str:
    """Return the content of `FILE` for a server with its socket in that folder."""
    # Quoted twice: as an element of a list, and the list as a value.
    quoted = "'\"{}\"'".format(str(socket_folder).replace("'", "''"))
    return _SETTINGS.format(port=port, socket_folder=quoted)
