"""Standard Webhooks: authenticates the caller and the body.

The caller signs `id.timestamp.body` with HMAC-SHA256; the key is the base64 after `whsec_`. The headers are
`webhook-id`, `webhook-timestamp` (Unix seconds) and `webhook-signature`, which may hold several signatures
(`v1,<base64>`, separated by spaces) while a secret is being rotated.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

TOLERANCE_SECONDS = 300
"""How far a timestamp may be from our clock. An older call may be a replay attack."""


class BadSignature(Exception):
    """The signature is missing, wrong or too old."""


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    content = b"%s.%d.%s" % (message_id.encode("utf-8", "surrogateescape"), timestamp, body)
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


def verify(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> None:
    """Check that a call was signed with the secret, recently.

    Raises:
        BadSignature: it was not.
    """
    try:
        message_id, timestamp, signatures = (
            headers[f"webhook-{name}"] for name in ("id", "timestamp", "signature")
        )
    except KeyError as error:
        raise BadSignature(f"the header {error.args[0]} is missing") from error
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        raise BadSignature("webhook-timestamp is not a number of seconds")
    if abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        raise BadSignature("webhook-timestamp is too far from now")
    expected = sign(secret, message_id, int(timestamp), body).encode()
    given = signatures.encode("utf-8", "surrogateescape").split(b" ")
    if not any(hmac.compare_digest(expected, signature) for signature in given):
        raise BadSignature("webhook-signature does not match")
