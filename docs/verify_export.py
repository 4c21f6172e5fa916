"""Check a file of `squad export` with nothing but Python: python verify_export.py FILE [POSITION HASH].

POSITION and HASH are those of a checkpoint whose signature holds. Without them, nothing shows whether the
file was cut off, or rewritten as a whole.
"""

import gzip
import hashlib
import json
import sys
from datetime import datetime, timedelta, timezone

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)  # noqa: UP017 - also runs on older Pythons
STEP = timedelta(microseconds=1)
FIELDS = "position id stream version type schema_version actor caused_by correlation_id idempotency_key"


def check(name, checkpoint=None, number=1):
    """Check line by line; exit at the first invalid one, and say which it is."""
    try:
        lines = gzip.open(name) if name.endswith(".gz") else open(name, "rb")
        header = json.loads(next(lines))
        if (header["kind"], header["format"], header["version"]) != ("header", "squad-log", 1):
            sys.exit("line 1 is not the header of an export")
        after = position = header["after"]
        previous, squad, versions, ended = bytes.fromhex(header["hash"]), header["squad"], {}, False
        seen = previous.hex() if checkpoint and position == checkpoint[0] else None  # the hash there
        for number, text in enumerate(lines, 2):
            if ended:
                sys.exit(f"line {number} follows the end line")
            line = json.loads(text)
            if line["kind"] == "header":
                sys.exit(f"line {number} is another header")
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
                if line["version"] != version and after == 0:
                    sys.exit(f"line {number}: position {position} is not version {version} of {stream}")
                if position == 1 and line["id"] != squad:
                    sys.exit(
                        f"line {number}: the header names another squad: its first event is not {squad}"
                    )
                if checkpoint and position == checkpoint[0]:
                    seen = previous.hex()
            elif line["kind"] == "end":
                values = (line["events"], line["position"], line["hash"])
                ended = values == (position - after, position, previous.hex())
                if not ended:
                    break
    except OSError as error:
        sys.exit(f"{name} cannot be read: {error}")
    except Exception as error:  # noqa: BLE001 - the file is not an export
        sys.exit(f"line {number} of {name} is not a line of an export: {type(error).__name__}")
    if not ended:
        sys.exit("the last line is missing, or does not match the one before")
    if position == 0 and squad:
        sys.exit(f"the header names the first event {squad}, and there is none")
    if checkpoint and seen is None:
        sys.exit(f"the checkpoint's position {checkpoint[0]} is not in the file, which ends at {position}")
    if checkpoint and seen != checkpoint[1]:
        sys.exit(f"position {checkpoint[0]} has another hash than the checkpoint: {seen}")
    return f"{position - after} events hold, up to {position}: {previous.hex()}"


arguments = sys.argv[1:]
if len(arguments) == 3 and arguments[1].isdecimal():
    print(check(arguments[0], (int(arguments[1]), arguments[2].lower())))
elif len(arguments) == 1:
    print(check(arguments[0]))
else:
    sys.exit("usage: python verify_export.py FILE [POSITION HASH]")
