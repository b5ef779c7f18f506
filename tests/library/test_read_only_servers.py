"""A server that takes no writes, as one that has become a standby: its connections are not kept.

What a driver is told of a standby, it is told of a database whose transactions are read-only, too.
"""

from typing import Any

import pytest
from pymysql.err import OperationalError, raise_mysql_exception
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from fastapi_sqlalchemy.engines.read_only_servers import refuses_writes
from support.backends import Backend, read_only

PID = text("SELECT pg_backend_pid()")
WRITE = text("CREATE TABLE written (n INTEGER)")


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_what_was_opened_while_the_server_took_no_writes_is_replaced_after_the_first_that_fails(
    db: Any, postgresql: Backend, driver: str
) -> None:
    db.configure(db_url=postgresql.with_driver(driver))
    with read_only(postgresql):
        for each in [db.engine.connect() for _ in range(3)]:
            each.close()

    with pytest.raises(DBAPIError, match="read-only"), db():
        db.session.execute(WRITE)

    with db(commit_on_exit=True):
        db.session.execute(WRITE)
    assert postgresql.rows("SELECT * FROM written") == []


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_the_async_side_does_the_same(db: Any, postgresql: Backend, driver: str) -> None:
    db.configure(db_url=postgresql.with_driver(driver))
    with read_only(postgresql):
        for each in [await db.async_engine.connect() for _ in range(3)]:
            await each.close()

    with pytest.raises(DBAPIError, match="read-only"):
        async with db():
            await db.async_session.execute(WRITE)

    async with db(commit_on_exit=True):
        await db.async_session.execute(WRITE)
    assert postgresql.rows("SELECT * FROM written") == []
    await db.adispose()


def test_a_transaction_that_was_begun_as_read_only_costs_no_connection(
    db: Any, postgresql: Backend
) -> None:
    db.configure(db_url=postgresql.url)
    with pytest.raises(DBAPIError, match="read-only"), db():
        before = db.session.scalar(PID)
        db.session.execute(text("SET TRANSACTION READ ONLY"))
        db.session.execute(WRITE)

    with db():
        assert db.session.scalar(PID) == before


@pytest.mark.parametrize(
    ("option", "expected"), [("--read-only", True), ("--skip-grant-tables", False)]
)
def test_what_pymysql_says_of_a_read_only_server_is_understood(option: str, expected: bool) -> None:
    """It has a SQLSTATE beside the number, HY000, which says nothing."""
    said = f"The MariaDB server is running with the {option} option so it cannot execute this"
    packet = b"\xff" + (1290).to_bytes(2, "little") + b"#HY000" + said.encode()
    with pytest.raises(OperationalError) as refused:
        raise_mysql_exception(packet)
    assert refuses_writes(refused.value) is expected
