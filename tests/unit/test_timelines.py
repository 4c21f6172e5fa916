"""A DSN without one of the servers that it names, such as an old primary."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from eventstore.timelines import without_server


@pytest.mark.parametrize(
    ("dsn", "remaining"),
    [
        ("host=db1,db2,db3 port=1,2,3", {"host": "db2,db3", "port": "2,3"}),
        ("host=db2,db1 port=2,1", {"host": "db2", "port": "2"}),
        ("host=db1,db1 port=1,2", {"host": "db1", "port": "2"}),
        ("host=db1,db2 port=1", {"host": "db2", "port": "1"}),
        ("host=db1,db2", {"host": "db2"}),
        ("hostaddr=db1,127.0.0.2 port=1,", {"hostaddr": "127.0.0.2", "port": ""}),
        ("host=x,y hostaddr=db1,127.0.0.2", {"host": "y", "hostaddr": "127.0.0.2"}),
        ("postgresql://db1:1,db2:2/", {"host": "db2", "port": "2"}),
    ],
)
def test_dsn_without_a_server_names_the_others(dsn: str, remaining: dict[str, str]) -> None:
    found = without_server(f"{dsn} dbname=squad" if "://" not in dsn else f"{dsn}squad", "db1", 1)
    assert found is not None
    assert conninfo_to_dict(found) == {**remaining, "dbname": "squad"}


@pytest.mark.parametrize(
    "dsn", ["", "host=db1", "host=db1,db1 port=1", "host=db2,db3", "host=db1,db2 port=2"]
)
def test_dsn_is_none_when_the_server_is_the_only_one_or_not_named(dsn: str) -> None:
    assert without_server(dsn, "db1", 1) is None
