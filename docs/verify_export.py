"""Checks a file of `squad export` with nothing but Python: python verify_export.py FILE."""

import gzip
import hashlib
import json
import sys
from datetime import datetime, timedelta, timezone

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)  # noqa: UP017 - older Pythons can run this too
FIELDS = "position id stream version type schema_version actor caused_by correlation_id idempotency_key"


def check(lines):
    """Goes from line to line; ends at the first one that does not fit, and says which it is."""
    header = json.loads(next(lines))
    position, previous, versions = header["after"], bytes.fromhex(header["hash"]), {}
    for number, text in enumerate(lines, 2):
        line = json.loads(text)
        if line["kind"] == "event":
            moment = datetime.strptime(line["recorded_at"], "%Y-%m-%dT%H:%M:%S.%f%z")
            microseconds = (moment - EPOCH) // timedelta(microseconds=1)
            values = [line[name] for name in FIELDS.split()] + [microseconds, line["data"]]
            hashed = "\n".join("" if value is None else str(value) for value in values)
            previous = hashlib.sha256(previous + hashed.encode()).digest()
            position, stream = position + 1, line["stream"]
            versions[stream] = versions.get(stream, 0) + 1
            if (line["position"], line["hash"]) != (position, previous.hex()):
                sys.exit(f"line {number}: position {position} is missing, or not what was hashed")
            if line["version"] != versions[stream] and header["after"] == 0:
                sys.exit(
                    f"line {number}: position {position} is not version {versions[stream]} of {stream}"
                )
        elif line["kind"] == "end" and (line["position"], line["hash"]) == (position, previous.hex()):
            print(f"{position - header['after']} events hold, up to {position}: {previous.hex()}")
            return
    sys.exit("the last line is missing, or does not fit to the one before")


with gzip.open(sys.argv[1]) if sys.argv[1].endswith(".gz") else open(sys.argv[1], "rb") as file:
    check(iter(file))
