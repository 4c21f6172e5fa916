"""Which servers a DSN still names without one of them."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from eventstore.timelines import without_server


@pytest.mark.parametrize(
    ("dsn", "left"),
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
def test_the_others_are_left(dsn: str, left: dict[str, str]) -> None:
    found = without_server(f"{dsn} dbname=squad" if "://" not in dsn else f"{dsn}squad", "db1", 1)
    assert found is not None
    assert conninfo_to_dict(found) == {**left, "dbname": "squad"}


@pytest.mark.parametrize(
    "dsn", ["", "host=db1", "host=db1,db1 port=1", "host=db2,db3", "host=db1,db2 port=2"]
)
def test_where_it_names_no_other_there_is_none(dsn: str) -> None:
    assert without_server(dsn, "db1", 1) is None
