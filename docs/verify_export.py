"""Check a file of `squad export` with nothing but Python: python verify_export.py FILE."""

import gzip
import hashlib
import json
import sys
from datetime import datetime, timedelta, timezone

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)  # noqa: UP017 - also runs on older Pythons
STEP = timedelta(microseconds=1)
FIELDS = "position id stream version type schema_version actor caused_by correlation_id idempotency_key"


def check(name, number=1):
    """Check line by line; exit at the first invalid one, and say which it is."""
    try:
        lines = gzip.open(name) if name.endswith(".gz") else open(name, "rb")
        header = json.loads(next(lines))
        position, previous, versions = header["after"], bytes.fromhex(header["hash"]), {}
        for number, text in enumerate(lines, 2):
            line = json.loads(text)
            if line["kind"] == "event":
                time = (datetime.strptime(line["recorded_at"], "%Y-%m-%dT%H:%M:%S.%f%z") - EPOCH) // STEP
                values = [*(line[field] for field in FIELDS.split()), time, line["data"]]
                hashed = "\n".join("" if value is None else str(value) for value in values)
                previous = hashlib.sha256(previous + hashed.encode()).digest()
                position, stream = position + 1, line["stream"]
                versions[stream] = version = versions.get(stream, 0) + 1
                is_empty = "" in (line["caused_by"], line["idempotency_key"])  # and hashed like null
                if is_empty or (line["position"], line["hash"]) != (position, previous.hex()):
                    sys.exit(f"line {number}: position {position} is missing, or does not match its hash")
                if line["version"] != version and header["after"] == 0:
                    sys.exit(f"line {number}: position {position} is not version {version} of {stream}")
            elif line["kind"] == "end" and (line["position"], line["hash"]) == (position, previous.hex()):
                return f"{position - header['after']} events hold, up to {position}: {previous.hex()}"
    except OSError as error:
        sys.exit(f"{name} cannot be read: {error}")
    except Exception as error:  # noqa: BLE001 - the file is not an export
        sys.exit(f"line {number} of {name} is not a line of an export: {type(error).__name__}")
    sys.exit("the last line is missing, or does not match the one before")


if len(sys.argv) != 2:
    sys.exit("usage: python verify_export.py FILE")
print(check(sys.argv[1]))
