"""Encrypt ("seal") the personal data of events when they are stored, and decrypt it when they are read.

A sealed event is stored with its personal fields set to null, and with one more member, the last:

    "sealed": {"key": <id of the key>, "nonce": <base64>, "box": <base64>}

The box is AES-256-GCM over the compact JSON of the personal fields; its associated data are the event's id,
stream, type, schema version and key id, each followed by a line feed, so that a box opens only in its own
event. The hash chain covers the stored text, so it can be verified with the keys, without them, and after
they were destroyed.

`reveal` is the one place that makes events readable again. If a key was destroyed, what it sealed is lost:
a field that must be a text becomes `ERASED`, every other stays null. A box that its key does not open is
not forgotten but damaged, which raises an error.
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import structs

from eventstore import codec
from eventstore.errors import UnreadableEvent
from eventstore.events import (
    ERASED,
    EmailReceived,
    EmailUpdated,
    MessageSent,
    RequestAnswered,
    SubjectForgotten,
)
from eventstore.ids import ID
from eventstore.keys import Keyring
from eventstore.nul import contains_nul

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from eventstore.connection import Connection
    from eventstore.events import AnyEvent
    from eventstore.keys import Key
    from eventstore.recorded import AnyRecorded, Recorded

NONCE_BYTES = 12
_NONCE_CHARACTERS = 16

PERSONAL: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        MessageSent.type: {"message": (), "data": ()},
        EmailReceived.type: {"from_email": (), "subject": (), "payload": ()},
        EmailUpdated.type: {"payload": ()},
        RequestAnswered.type: {"fingerprint": (), "body": ("from_email", "subject", "payload")},
    }
)
"""The personal fields of each type of event: whole fields, or the named members of one that is an object.

The names are those of the stored data at every schema version; none was renamed so far.
"""

UNUSED_BY_STATE = frozenset({MessageSent.type, RequestAnswered.type})
"""Types whose personal data the decision state does not use: it folds them without loading keys."""

_REQUIRED_TEXTS = frozenset({"message", "from_email"})
"""The personal fields that cannot be null. A fingerprint is replaced by something else, see `seal`."""

_KEY_RELATED = frozenset({*PERSONAL, SubjectForgotten.type})
_LOOKS_SEALED = '"sealed":{"key":"'


class _Seal(NamedTuple):
    """The content of `sealed`."""

    key: str
    nonce: bytes
    box: bytes


def seal(
    event: AnyEvent,
    id_: str,
    key: Key,
    nonce: bytes,
    replacements: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return the stored text of an event, sealed.

    Args:
        event: of a type in `PERSONAL`.
        id_: its id in the log.
        key: the key to seal it with.
        nonce: `NONCE_BYTES` random bytes, never used with this key before.
        replacements: by name, what to store in place of a sealed field other than null.

    Raises:
        ValueError: the event contains U+0000, which no table can hold, and which the log would refuse in
            plain text.
    """
    data = _as_json(event)
    box: dict[str, Any] = {}
    for name, members in PERSONAL[event.type].items():
        if members:
            whole = data[name]
            box[name] = {member: whole[member] for member in members if member in whole}
            whole.update(dict.fromkeys(box[name]))
        else:
            box[name] = data[name]
            data[name] = replacements.get(name)
    content = orjson.dumps(box)
    if contains_nul(content.decode()):
        raise ValueError(f"a {event.type} holds U+0000")
    envelope = _envelope(id_, event.stream, event.type, event.schema_version, key.id)
    sealed = AESGCM(key.secret).encrypt(nonce, content, envelope)
    # The length of a nonce is a multiple of three, so its base64 ends where that of the box begins.
    text = b2a_base64(nonce + sealed, newline=False).decode()
    return (
        f'{orjson.dumps(data).decode()[:-1]},{_LOOKS_SEALED}{key.id}","nonce":"{text[:_NONCE_CHARACTERS]}",'
        f'"box":"{text[_NONCE_CHARACTERS:]}"}}}}'
    )


async def reveal(
    connection: Connection,
    page: Sequence[Recorded],
    keyring: Keyring | None = None,
    *,
    erased_types: Collection[str] = (),
) -> list[Recorded]:
    """Return the same events with readable data: decrypted if the key exists, erased if it was destroyed.

    Everything but `data` is unchanged, so `hash` still covers the stored text. Events that are not sealed
    are returned as they are; a page without sealed events costs only a glance at each.

    Args:
        connection: to load keys that are not in the keyring, with one query.
        page: events as they are stored.
        keyring: a cache of keys, from which those that the page says were destroyed are removed. Without
            one, keys always come from the database, which is right for readers that do not follow the log.
        erased_types: types for which the erased form is enough.

    Raises:
        UnreadableEvent: a box does not open with its key or has unexpected content, or a seal or the
            destruction of a key is malformed.
    """
    keyring = keyring or Keyring()
    sealed: list[tuple[int, dict[str, Any], _Seal]] = []
    for index, recorded in enumerate(page):
        if recorded.type not in _KEY_RELATED:
            continue
        if recorded.type == SubjectForgotten.type:
            keyring.remove(_destroyed_key(recorded))
        elif _LOOKS_SEALED in recorded.data and (found := _unseal(recorded)):
            sealed.append((index, *found))
    shown = page if isinstance(page, list) else list(page)
    if not sealed:
        return shown
    key_ids = {seal_.key for index, _, seal_ in sealed if page[index].type not in erased_types}
    secrets = await keyring.secrets(connection, key_ids) if key_ids else {}
    shown = list(shown)
    for index, data, seal_ in sealed:
        shown[index] = _reveal(page[index], data, seal_, secrets.get(seal_.key))
    return shown


def needs_revealing(page: Sequence[AnyRecorded]) -> bool:
    """Whether `reveal` would have anything to do."""
    for recorded in page:
        if recorded.type in _KEY_RELATED and (
            _LOOKS_SEALED in recorded.data or recorded.type == SubjectForgotten.type
        ):
            return True
    return False


def may_be_sealed(recorded: Recorded) -> bool:
    """Whether an event may be sealed, by a cheap test: False for nearly all that are not."""
    return recorded.type in PERSONAL and _LOOKS_SEALED in recorded.data


def reveal_event(recorded: Recorded, secrets: Mapping[str, bytes]) -> Recorded:
    """Return one event with readable data.

    Args:
        recorded: the event as it is stored.
        secrets: the keys by id.

    Raises:
        UnreadableEvent: as `reveal`.
    """
    found = _unseal(recorded) if recorded.type in PERSONAL else None
    if found is None:
        return recorded
    return _reveal(recorded, *found, secrets.get(found[1].key))


def key_of(recorded: Recorded) -> str | None:
    """Return the id of the key that an event is sealed with; None if it is stored in plain text."""
    found = _unseal(recorded) if recorded.type in PERSONAL else None
    return found[1].key if found else None


def _destroyed_key(recorded: Recorded) -> str:
    """Return the id of the key that a `subject_forgotten` event destroyed."""
    data = _parsed(recorded)
    key_id = data.get("key_id") if isinstance(data, dict) else None
    if not isinstance(key_id, str):
        raise _unreadable(recorded, recorded.type)
    return key_id


def _parsed(recorded: Recorded) -> Any:
    try:
        return orjson.loads(recorded.data)
    except ValueError as error:
        raise _unreadable(recorded, recorded.type) from error


def _unreadable(recorded: Recorded, what: str) -> UnreadableEvent:
    return UnreadableEvent(f"{what} at position {recorded.position}", recorded.position)


def _unseal(recorded: Recorded) -> tuple[dict[str, Any], _Seal] | None:
    """Return the stored data without their seal, and the seal; None if there is none."""
    data = _parsed(recorded)
    # An event that is not sealed may have a member of that name further down, in what a client sent.
    if not isinstance(data, dict) or "sealed" not in data:
        return None
    try:
        value = data.pop("sealed")
        seal_ = _Seal(value["key"], a2b_base64(value["nonce"]), a2b_base64(value["box"]))
        is_named = bool(ID.fullmatch(seal_.key))
    except (KeyError, TypeError, ValueError, Base64Error):
        is_named = False
    if not is_named:
        raise _unreadable(recorded, f"the seal of {recorded.type}")
    return data, seal_


def _reveal(recorded: Recorded, data: dict[str, Any], seal_: _Seal, secret: bytes | None) -> Recorded:
    if secret is None:
        _erase(recorded.type, data)
    else:
        envelope = _envelope(
            recorded.id, recorded.stream, recorded.type, recorded.schema_version, seal_.key
        )
        try:
            box = orjson.loads(AESGCM(secret).decrypt(seal_.nonce, seal_.box, envelope))
        except (InvalidTag, ValueError) as error:
            raise _unreadable(recorded, f"the box of {recorded.type}") from error
        if not _is_expected(recorded.type, box):
            raise _unreadable(recorded, f"the box of {recorded.type}")
        for name, value in box.items():
            # A field that was sealed as a whole is null now, one sealed in part is an object.
            if isinstance(left := data.get(name), dict):
                left.update(value)
            else:
                data[name] = value
    return recorded._replace(data=orjson.dumps(data).decode())


def _is_expected(type_: str, box: Any) -> bool:
    """Whether a box holds only what `seal` puts into one, and no field that is stored in plain text."""
    personal = PERSONAL[type_]
    return (
        isinstance(box, dict)
        and box.keys() <= personal.keys()
        and all(
            isinstance(inside, dict) and inside.keys() <= set(personal[name])
            for name, inside in box.items()
            if personal[name]
        )
    )


def _erase(type_: str, data: dict[str, Any]) -> None:
    for name, members in PERSONAL[type_].items():
        place = data.get(name) if members else data
        for text in _REQUIRED_TEXTS.intersection(members or (name,)):
            if isinstance(place, dict) and text in place:
                place[text] = ERASED


def _as_json(event: AnyEvent) -> dict[str, Any]:
    """Return the data of an event as a new dict."""
    if isinstance(event, RequestAnswered):
        # Its body is any answer, which may contain moments.
        data: dict[str, Any] = orjson.loads(codec.encode(event))
        return data
    # The others contain only JSON types.
    return structs.asdict(event)


def _envelope(id_: str, stream: str, type_: str, schema_version: int, key_id: str) -> bytes:
    return f"{id_}\n{stream}\n{type_}\n{schema_version}\n{key_id}\n".encode()
