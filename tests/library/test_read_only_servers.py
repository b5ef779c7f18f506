"""A server that takes no writes, as one that has become a standby: its connections are not kept.

What a driver is told of a standby, it is told of a database whose transactions are read-only, too.
"""

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

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
