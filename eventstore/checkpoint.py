"""Signed checkpoints: the position and hash of the log's head, under an Ed25519 signature.

Kept where nobody who can write to the database can write, a checkpoint shows what the chain alone cannot:
that the log was truncated, or rewritten with matching hashes. The signed text is seven lines, each ended by
a line feed, so that any tool can reproduce it from the file:

    squad-checkpoint 1
    squad: the id of the first event
    position
    hash, in hexadecimal
    recorded_at: the time of the event at that position
    signed_at: the database's clock at the signing
    public_key, in base64

The public key in the file only says who claims to have signed. To be sure, name the key that you expect:
whoever rewrites a log can as easily sign it again with a key of their own.
"""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Annotated, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eventstore import timestamps
from eventstore.errors import CheckpointRefused
from eventstore.ids import ID

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path

    from eventstore.recorded import Head

PUBLIC_KEY_SUFFIX = ".pub"
_MAX_FILE_BYTES = 65_536
_OTHERS = 0o007
_TIME = Annotated[str, Field(pattern=timestamps.PATTERN)]


class Checkpoint(BaseModel):
    """A signed position and hash of the log."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["squad-checkpoint"] = "squad-checkpoint"
    version: Literal[1] = 1
    squad: Annotated[str, Field(pattern=f"^{ID.pattern}$")]
    """The id of the first event, which identifies the squad."""
    position: Annotated[int, Field(ge=1, lt=2**63)]
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    recorded_at: _TIME
    """The time of the event at that position."""
    signed_at: _TIME
    """The database's clock at the signing."""
    public_key: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{43}=$")]
    signature: Annotated[str, Field(pattern=r"^([A-Za-z0-9+/]{86}==)?$")] = ""

    @property
    def signed_text(self) -> bytes:
        """The text that the signature covers."""
        lines = (
            f"{self.format} {self.version}",
            self.squad,
            str(self.position),
            self.hash,
            self.recorded_at,
            self.signed_at,
            self.public_key,
        )
        return "".join(f"{line}\n" for line in lines).encode()

    def to_json(self) -> str:
        """Return the content of the file, as indented JSON."""
        return self.model_dump_json(indent=2) + "\n"


def sign(key: Ed25519PrivateKey, squad: str, head: Head, now: datetime) -> Checkpoint:
    """Return a signed checkpoint of a non-empty log that has been verified up to this head."""
    assert head.recorded_at is not None
    unsigned = Checkpoint(
        squad=squad,
        position=head.position,
        hash=head.hash.hex(),
        recorded_at=timestamps.to_text(head.recorded_at),
        signed_at=timestamps.to_text(now),
        public_key=_base64(key.public_key()),
    )
    signature = base64.b64encode(key.sign(unsigned.signed_text)).decode()
    return unsigned.model_copy(update={"signature": signature})


def read(path: Path, expected: Sequence[Ed25519PublicKey] = ()) -> Checkpoint:
    """Read a checkpoint and verify its signature.

    Args:
        path: its file.
        expected: the keys that may have signed it; if empty, any key.

    Raises:
        CheckpointRefused: it cannot be read, is not a checkpoint, or its signature is not valid.
    """
    try:
        checkpoint = Checkpoint.model_validate_json(_read_bytes(path))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise CheckpointRefused(f"{path} is not a checkpoint: {where or 'it'}: {fault['msg']}") from error
    if expected and checkpoint.public_key not in {_base64(key) for key in expected}:
        raise CheckpointRefused(f"{path} is signed with another key, {checkpoint.public_key}")
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(checkpoint.public_key))
    try:
        key.verify(base64.b64decode(checkpoint.signature), checkpoint.signed_text)
    except InvalidSignature as error:
        raise CheckpointRefused(f"the signature of {path} does not match its content") from error
    return checkpoint


def new_key(path: Path) -> str:
    """Create a key pair: the private key in a file for its owner alone, the public one in `path` + `.pub`.

    Returns:
        The public key as checkpoints have it.

    Raises:
        CheckpointRefused: one of the files exists already or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    made: list[Path] = []
    try:
        for file, content, mode in ((public_key_path(path), public, 0o644), (path, private, 0o600)):
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            made.append(file)
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(content)
    except OSError as error:
        for file in made:
            file.unlink(missing_ok=True)
        raise CheckpointRefused(f"cannot create {error.filename or path}: {error.strerror}") from error
    return _base64(key.public_key())


def public_key_path(path: Path) -> Path:
    """Return the path of the public key that belongs to the private key in `path`."""
    return path.with_name(path.name + PUBLIC_KEY_SUFFIX)


def private_key(path: Path) -> Ed25519PrivateKey:
    """Read the key to sign with.

    Raises:
        CheckpointRefused: it cannot be read, is not a private Ed25519 key, or others may access it.
    """
    content = _read_bytes(path)
    if path.stat().st_mode & _OTHERS:
        raise CheckpointRefused(f"others may access {path}: restrict it to its owner, with chmod 600")
    key = _load_key(path, "private", lambda: load_pem_private_key(content, password=None))
    if not isinstance(key, Ed25519PrivateKey):
        raise CheckpointRefused(f"{path} is not an Ed25519 key")
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """Read a key that checkpoints are expected to be signed with.

    Raises:
        CheckpointRefused: it cannot be read, or is not a public Ed25519 key.
    """
    content = _read_bytes(path)
    key = _load_key(path, "public", lambda: load_pem_public_key(content))
    if not isinstance(key, Ed25519PublicKey):
        raise CheckpointRefused(f"{path} is not an Ed25519 key")
    return key


def _load_key(path: Path, kind: str, load: Callable[[], object]) -> object:
    try:
        return load()
    except TypeError as error:
        raise CheckpointRefused(f"{path} is encrypted; an unencrypted key is needed") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CheckpointRefused(f"{path} is not a {kind} key in PEM") from error


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CheckpointRefused(f"cannot read {path}: {error.strerror}") from error
    if len(content) > _MAX_FILE_BYTES:
        raise CheckpointRefused(f"{path} is too large to be a checkpoint or a key")
    return content


def _base64(key: Ed25519PublicKey) -> str:
    return base64.b64encode(key.public_bytes_raw()).decode()
