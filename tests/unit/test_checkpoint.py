"""Checkpoints: they are signed as documented, and nothing else is accepted as one."""

from __future__ import annotations

import base64
import json
import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from eventstore import checkpoint
from eventstore.errors import CheckpointRefused
from eventstore.recorded import Head

if TYPE_CHECKING:
    from pathlib import Path

SQUAD = "0198c0de-0000-7000-8000-000000000001"
HEAD = Head(17, bytes(range(32)), datetime(2026, 3, 29, 1, 0, tzinfo=UTC))
NOW = datetime(2026, 3, 29, 1, 0, 0, 17, tzinfo=UTC)
KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A valid checkpoint."""
    path = tmp_path / "checkpoint.json"
    path.write_text(checkpoint.sign(KEY, SQUAD, HEAD, NOW).to_json())
    return path


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def refusal(file: Path, *keys: ed25519.Ed25519PublicKey) -> str:
    with pytest.raises(CheckpointRefused) as refused:
        checkpoint.read(file, keys)
    text = str(refused.value)
    assert "\n" not in text
    return text.removeprefix("a checkpoint or its key cannot be used: ").replace(str(file), "FILE")


def test_checkpoint_states_the_head_of_the_log(file: Path) -> None:
    read = json.loads(file.read_text())
    assert {name: read[name] for name in list(read)[:7]} == {
        "format": "squad-checkpoint",
        "version": 1,
        "squad": SQUAD,
        "position": 17,
        "hash": HEAD.hash.hex(),
        "recorded_at": "2026-03-29T01:00:00.000000Z",
        "signed_at": "2026-03-29T01:00:00.000017Z",
    }
    assert list(read)[7:] == ["public_key", "signature"]
    assert checkpoint.read(file).position == 17


def test_signature_covers_the_documented_text(file: Path) -> None:
    read = json.loads(file.read_text())
    names = ("squad", "position", "hash", "recorded_at", "signed_at", "public_key")
    text = "squad-checkpoint 1\n" + "".join(f"{read[name]}\n" for name in names)
    key = ed25519.Ed25519PublicKey.from_public_bytes(base64.b64decode(read["public_key"]))
    key.verify(base64.b64decode(read["signature"]), text.encode())
    assert key == KEY.public_key()


def test_signature_with_one_of_the_expected_keys_is_accepted(file: Path) -> None:
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    assert checkpoint.read(file, [other, KEY.public_key()]) == checkpoint.read(file)
    public = json.loads(file.read_text())["public_key"]
    assert refusal(file, other) == f"FILE is signed with another key, {public}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("squad", SQUAD.replace("1", "2")),
        ("position", 18),
        ("hash", "ab" * 32),
        ("recorded_at", "2026-03-29T01:00:00.000001Z"),
        ("signed_at", "2027-03-29T01:00:00.000017Z"),
        (
            "public_key",
            base64.b64encode(OTHER_KEY.public_key().public_bytes_raw()).decode(),
        ),
        ("public_key", base64.b64encode(bytes(32)).decode()),
        ("public_key", base64.b64encode(b"\xff" * 32).decode()),
        ("signature", base64.b64encode(bytes(64)).decode()),
        ("signature", ""),
    ],
)
def test_changed_value_does_not_match_the_signature(file: Path, name: str, value: object) -> None:
    change(file, **{name: value})
    assert refusal(file) == "the signature of FILE does not match its content"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"format": "x"}, "format: Input should be 'squad-checkpoint'"),
        ({"version": 2}, "version: Input should be 1"),
        ({"position": 0}, "position: Input should be greater than or equal to 1"),
        ({"position": "17"}, "position: Input should be a valid integer"),
        ({"hash": "AB" * 32}, "hash: String should match pattern"),
        ({"squad": "x\ny"}, "squad: String should match pattern"),
        ({"recorded_at": "2026-03-29T01:00:00.000000Z\n"}, "recorded_at: String should match pattern"),
        ({"signature": "?"}, "signature: String should match pattern"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
    ],
)
def test_invalid_field_is_named(file: Path, fields: dict[str, Any], why: str) -> None:
    change(file, **fields)
    assert refusal(file).startswith(f"FILE is not a checkpoint: {why}")


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"[1]", b"\xff\xfe", b"{" * 100, b"x" * 70_000])
def test_file_that_is_not_a_checkpoint_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert refusal(file).startswith(("FILE is not a checkpoint: ", "FILE is too large to be a checkpoint"))


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nothing") == "cannot read FILE: No such file or directory"
    assert refusal(tmp_path) == "cannot read FILE: Is a directory"


class TestKeys:
    def test_new_private_key_is_readable_only_by_its_owner_and_the_public_key_by_all(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "squad.key"
        name = checkpoint.new_key(path)
        public = tmp_path / "squad.key.pub"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(public.stat().st_mode) & 0o444 == 0o444
        made = checkpoint.sign(checkpoint.private_key(path), SQUAD, HEAD, NOW)
        assert made.public_key == name
        (tmp_path / "checkpoint.json").write_text(made.to_json())
        assert checkpoint.read(tmp_path / "checkpoint.json", [checkpoint.public_key(public)]) == made
        assert isinstance(load_pem_public_key(public.read_bytes()), ed25519.Ed25519PublicKey)

    @pytest.mark.parametrize("existing", ["squad.key", "squad.key.pub"])
    def test_new_key_does_not_overwrite_existing_files(self, tmp_path: Path, existing: str) -> None:
        (tmp_path / existing).write_text("precious")
        with pytest.raises(CheckpointRefused, match=f"cannot create .*{existing}: File exists"):
            checkpoint.new_key(tmp_path / "squad.key")
        assert [path.name for path in tmp_path.iterdir()] == [existing]
        assert (tmp_path / existing).read_text() == "precious"

    def test_new_key_in_a_missing_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointRefused, match="No such file or directory"):
            checkpoint.new_key(tmp_path / "nowhere" / "squad.key")

    @pytest.mark.parametrize("mode", [0o604, 0o666, 0o602])
    def test_private_key_that_others_may_access_is_refused(self, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "squad.key"
        checkpoint.new_key(path)
        path.chmod(mode)
        with pytest.raises(CheckpointRefused, match=r"others may access .*, with chmod 600"):
            checkpoint.private_key(path)
        path.chmod(0o640)
        checkpoint.private_key(path)

    def test_key_of_another_type_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "squad.key"
        elliptic = ec.generate_private_key(ec.SECP256R1())
        path.touch(0o600)
        path.write_bytes(elliptic.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        with pytest.raises(CheckpointRefused, match="is not an Ed25519 key"):
            checkpoint.private_key(path)
        public = elliptic.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        path.write_bytes(public)
        with pytest.raises(CheckpointRefused, match="is not an Ed25519 key"):
            checkpoint.public_key(path)
        with pytest.raises(CheckpointRefused, match="is not a private key in PEM"):
            checkpoint.private_key(path)

    def test_encrypted_key_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "squad.key"
        path.touch(0o600)
        path.write_bytes(
            KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
        )
        with pytest.raises(CheckpointRefused, match="is encrypted; an unencrypted key is needed"):
            checkpoint.private_key(path)

    def test_file_that_is_not_a_key_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "squad.key"
        path.touch(0o600)
        with pytest.raises(CheckpointRefused, match="is not a private key in PEM"):
            checkpoint.private_key(path)
        with pytest.raises(CheckpointRefused, match="is not a public key in PEM"):
            checkpoint.public_key(path)
