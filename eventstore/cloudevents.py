"""Events in the JSON format of CloudEvents 1.0, for other systems to read. They cannot be imported.

The extension attributes are strings, because CloudEvents integers are limited to 32 bits and positions are
not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from eventstore import timestamps
from eventstore.recorded import MalformedRow

if TYPE_CHECKING:
    from eventstore.recorded import Recorded


def cloud_event_line(squad: str, recorded: Recorded | MalformedRow) -> bytes:
    """Return an event as one line.

    Args:
        squad: the id of the log's first event, so that `source` is the same wherever the log is kept.
        recorded: the event, or a malformed row, whose missing fields are null.
    """
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": recorded.id,
        "source": f"urn:uuid:{squad}",
        "type": f"squad.{recorded.type}",
        "subject": recorded.stream,
        "time": recorded.recorded_at
        if isinstance(recorded, MalformedRow)
        else timestamps.to_text(recorded.recorded_at),
        "datacontenttype": "application/json",
        "dataschema": f"urn:squad:event:{recorded.type}:{recorded.schema_version}",
        "position": str(recorded.position),
        "stream": recorded.stream,
        "version": str(recorded.version),
        "actor": recorded.actor,
        "correlationid": recorded.correlation_id,
        "hash": recorded.hash and recorded.hash.hex(),
    }
    if recorded.caused_by is not None:
        event["causedby"] = str(recorded.caused_by)
    if recorded.idempotency_key is not None:
        event["idempotencykey"] = recorded.idempotency_key
    # Line feeds in stored data are whitespace between JSON tokens, where a space means the same.
    event["data"] = orjson.Fragment((recorded.data or "null").replace("\r", " ").replace("\n", " "))
    return orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)
