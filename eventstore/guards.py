"""Check that the guards in the database are in place and work.

Triggers refuse every change of an event, unique keys refuse duplicates, one trigger destroys the keys of
subjects that are forgotten, and the column `agent` is generated from an event's data. The table's owner or
a superuser can remove each of these, or leave only its name in place. `definitions` checks what they rely
on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, LiteralString, NamedTuple

import psycopg

from eventstore.definitions import is_same_function, wrong_definitions

if TYPE_CHECKING:
    from eventstore.connection import Connection

# Of pg_trigger.tgtype.
_EACH_ROW, _BEFORE, _INSERT, _DELETE, _UPDATE, _TRUNCATE = 1, 2, 4, 8, 16, 32


class _Trigger(NamedTuple):
    kind: int
    function: str
    condition: str | None = None
    """As Postgres prints it."""


_REFUSING = {
    "events_are_immutable": _Trigger(_EACH_ROW | _BEFORE | _UPDATE | _DELETE, "refuse_change"),
    "events_are_not_updated": _Trigger(_BEFORE | _UPDATE | _DELETE, "refuse_change"),
    "events_are_never_truncated": _Trigger(_BEFORE | _TRUNCATE, "refuse_change"),
}
_DESTROYING = {
    "events_destroy_keys": _Trigger(
        _EACH_ROW | _INSERT, "destroy_key", "(new.type = 'subject_forgotten'::text)"
    )
}
_TRIGGERS: LiteralString = (
    "SELECT tgname, tgtype, proname, tgenabled = 'A',"
    " substring(pg_get_triggerdef(t.oid) FROM ' WHEN \\((.*)\\) EXECUTE FUNCTION '),"
    " tgattr = '' AND tgnargs = 0 AND pronamespace = relnamespace"
    " AND (proowner = relowner OR NOT prosecdef), pg_get_functiondef(p.oid), prosrc"
    " FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid JOIN pg_proc p ON p.oid = tgfoid"
    " WHERE tgrelid = 'events'::regclass AND NOT tgisinternal"
)

# Whatever runs before or instead of an insert can change or drop what is appended.
_INSERT_INTERCEPTORS: LiteralString = (
    "SELECT format('the trigger %s', tgname) FROM pg_trigger WHERE tgrelid = 'events'::regclass"
    f" AND NOT tgisinternal AND tgtype & {_BEFORE} > 0 AND tgtype & {_INSERT} > 0"
    " UNION ALL SELECT format('the rule %s', rulename) FROM pg_rewrite WHERE ev_class = 'events'::regclass"
)
# Whatever runs before or instead of a delete can prevent it.
_DELETE_INTERCEPTORS: LiteralString = (
    "SELECT format('the trigger %s of %s', tgname, tgrelid::regclass) FROM pg_trigger"
    " WHERE tgrelid IN (to_regclass('subject_keys'), to_regclass('snapshots'))"
    f" AND NOT tgisinternal AND tgtype & {_BEFORE} > 0"
    " UNION ALL SELECT format('the rule %s of %s', rulename, ev_class::regclass) FROM pg_rewrite"
    " WHERE ev_class IN (to_regclass('subject_keys'), to_regclass('snapshots'))"
)

_UNIQUE_KEYS = ("position", "id", "stream, version")
_VALID_KEYS: LiteralString = (
    "SELECT (SELECT string_agg(attname, ', ' ORDER BY attname) FROM pg_attribute"
    " WHERE attrelid = indrelid AND attnum = ANY (indkey)) FROM pg_index"
    " WHERE indrelid = 'events'::regclass AND indisunique AND indisvalid AND indisready AND indpred IS NULL"
)

_UNIQUE = {
    "events_idempotency_key": "events UNIQUE btree (idempotency_key) WHERE (idempotency_key IS NOT NULL)",
    "events_gmail_message_id": "events UNIQUE btree (((data ->> 'gmail_message_id'::text)))"
    " WHERE (type = 'email_received'::text)",
    "subject_keys_pkey": "subject_keys UNIQUE btree (id)",
    "subject_keys_subject": "subject_keys UNIQUE btree (subject) WHERE (subject IS NOT NULL)",
}
"""The table and the definition of each index, as Postgres prints them."""
_SEALED = "(data #>> '{sealed,key}'::text[])"
_SEARCHED = {
    "events_by_type": 'events btree (type, "position")',
    "events_by_agent": 'events btree (agent, "position") WHERE (agent IS NOT NULL)',
    "events_by_key": f"events btree (({_SEALED})) WHERE ((type = ANY (ARRAY['email_received'::text,"
    f" 'email_updated'::text])) AND ({_SEALED} IS NOT NULL))",
}
_VALID_INDEXES: LiteralString = (
    "SELECT concat(indrelid::regclass, ' ', CASE WHEN indisunique THEN 'UNIQUE ' END,"
    " substring(pg_get_indexdef(indexrelid) FROM ' USING (.*)')) FROM pg_index"
    " WHERE indrelid IN ('events'::regclass, to_regclass('subject_keys')) AND indisvalid AND indisready"
)

_AGENT: LiteralString = (
    "COALESCE((data ->> 'agent'::text), (data ->> 'assigned_agent'::text), (data ->> 'handled_by'::text))"
)
_WRONGLY_COMPUTED: LiteralString = (
    f"SELECT min(position), count(*) FROM events WHERE agent IS DISTINCT FROM {_AGENT}"
)
_COMPUTED: LiteralString = (
    "SELECT pg_get_expr(adbin, adrelid) FROM pg_attribute"
    " JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum"
    " WHERE attrelid = 'events'::regclass AND attname = 'agent' AND attgenerated = 's'"
)


async def missing_guards(connection: Connection) -> list[str]:
    """Return the guards that are missing or differ from `schema.sql`, one line each."""
    return [
        *await _triggers(connection),
        *(
            f"{what} can change or drop what is appended, and is not from schema.sql"
            for what in await _column(connection, _INSERT_INTERCEPTORS)
        ),
        *(
            f"{what} can keep what must be destroyed, and is not from schema.sql"
            for what in await _column(connection, _DELETE_INTERCEPTORS)
        ),
        *await _unique_keys(connection),
        *(
            f"the unique index {name} is missing or not valid"
            for name in await _missing(connection, _UNIQUE)
        ),
        *await _computed_column(connection),
        *await wrong_definitions(connection),
    ]


async def missing_indexes(connection: Connection) -> list[str]:
    """Return missing indexes that guard nothing, but without which searches scan the whole log."""
    return await _missing(connection, _SEARCHED)


async def _triggers(connection: Connection) -> list[str]:
    cursor = await connection.execute(_TRIGGERS)
    found = {name: rest for name, *rest in await cursor.fetchall()}
    faults: list[str] = []
    for name, wanted in {**_REFUSING, **_DESTROYING}.items():
        does = "destroy" if name in _DESTROYING else "refuse"
        kind, function, is_always_enabled, condition, is_plain, definition, body = found.get(
            name, [None] * 7
        )
        if not is_always_enabled:
            faults.append(f"the trigger {name} is missing, or not always enabled")
        elif (
            (kind, function, condition) != (wanted.kind, wanted.function, wanted.condition)
            or not is_plain
            or not is_same_function(definition, body, wanted.function)
        ):
            faults.append(f"the trigger {name} does not {does} what it should {does}")
    return faults


async def _unique_keys(connection: Connection) -> list[str]:
    found = await _column(connection, _VALID_KEYS)
    return [
        f"the unique key on ({key}) is missing or not valid" for key in _UNIQUE_KEYS if key not in found
    ]


async def _missing(connection: Connection, wanted: dict[str, str]) -> list[str]:
    found = await _column(connection, _VALID_INDEXES)
    return [name for name, definition in wanted.items() if definition not in found]


async def _computed_column(connection: Connection) -> list[str]:
    if await _column(connection, _COMPUTED) == [_AGENT]:
        return []
    return ["the column agent is not generated from the event's data"]


async def wrongly_computed(connection: Connection) -> tuple[int | None, int]:
    """Return the first event whose column `agent` does not match its data, and the number of such events.

    Only a role that may change the catalog can have caused one. No hash covers the column.
    """
    try:
        async with connection.transaction():
            row = await (await connection.execute(_WRONGLY_COMPUTED)).fetchone()
    except psycopg.DataError:
        # An event's data are such that the column cannot be computed.
        return None, 1
    assert row is not None
    return row[0], row[1]


async def _column(connection: Connection, query: LiteralString) -> list[object]:
    return [value for (value,) in await (await connection.execute(query)).fetchall()]
