"""A process that does so many things at a time keeps their connections, and opens no more."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from fastapi_sqlalchemy import Database
from fastapi_sqlalchemy.engines.kept_connections import keep
from support.backends import Backend

ROUNDS = 3
AT_A_TIME = 7


def connects(db: Database) -> int:
    """How many connections rounds of work open, each by so many threads at once."""
    opened: list[Any] = []
    db.on_connect(lambda connection, record: opened.append(record))
    all_hold_one = threading.Barrier(AT_A_TIME, timeout=60)

    def work() -> None:
        with db():
            db.session.scalar(select(1))
            all_hold_one.wait()

    with ThreadPoolExecutor(AT_A_TIME) as threads:
        for _ in range(ROUNDS):
            for each in [threads.submit(work) for _ in range(AT_A_TIME)]:
                each.result()
    return len(opened)


async def aconnects(db: Database) -> int:
    """As `connects`, of tasks."""
    opened: list[Any] = []
    db.on_connect(lambda connection, record: opened.append(record))

    async def work(hold_one: list[None], all_hold_one: asyncio.Event) -> None:
        async with db():
            await db.async_session.scalar(select(1))
            hold_one.append(None)
            if len(hold_one) == AT_A_TIME:
                all_hold_one.set()
            await all_hold_one.wait()

    for _ in range(ROUNDS):
        hold_one: list[None] = []
        all_hold_one = asyncio.Event()
        await asyncio.gather(*(work(hold_one, all_hold_one) for _ in range(AT_A_TIME)))
    return len(opened)


async def test_connections_are_kept(backend: Backend, db: Database) -> None:
    db.configure(backend.url)
    assert connects(db) > AT_A_TIME
    assert await aconnects(db) > AT_A_TIME
    await db.adispose()

    db.keep_connections(AT_A_TIME)  # of the sync engine, which is made
    assert connects(db) == AT_A_TIME
    db.dispose()
    assert connects(db) == AT_A_TIME
    await db.adispose()


async def test_connections_of_engines_that_are_made_later_are_kept(
    backend: Backend, db: Database
) -> None:
    db.configure(backend.url)
    db.keep_connections(AT_A_TIME)
    assert connects(db) == AT_A_TIME
    assert await aconnects(db) == AT_A_TIME
    assert db.pool_status()["async"]["size"] == AT_A_TIME
    await db.adispose()


def test_no_more_are_opened_than_before(postgresql: Backend, db: Database) -> None:
    db.configure(postgresql.url, engine_args={"max_overflow": 3, "pool_timeout": 0.1})
    for count in (7, 100):
        db.keep_connections(count)
        with ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(db())
                db.session.scalar(select(1))
            with pytest.raises(PoolTimeout), db():
                db.session.scalar(select(1))
        assert db.pool_status()["sync"] == {
            "size": min(count, 8),
            "checked_in": min(count, 8),
            "checked_out": 0,
            "overflow": 0,
        }


@pytest.mark.parametrize(
    "own",
    [
        lambda url: {"db_url": url, "engine_args": {"pool_size": 5}},
        lambda url: {"custom_engine": create_engine(url)},
    ],
    ids=["pool_size", "custom_engine"],
)
def test_a_size_of_ones_own_holds(
    postgresql: Backend, db: Database, own: Callable[[Any], dict[str, Any]]
) -> None:
    db.configure(**own(postgresql.with_driver("psycopg")))
    db.keep_connections(AT_A_TIME)
    assert connects(db) > AT_A_TIME
    assert db.pool_status()["sync"]["size"] == 5
    db.engine.dispose()


@pytest.mark.parametrize(
    ("max_overflow", "size", "left"), [(10, 8, 7), (2, 7, 0), (0, 5, 0), (-1, 8, -1)]
)
def test_sqlalchemys_pool_can_still_be_widened(max_overflow: int, size: int, left: int) -> None:
    pool = QueuePool(lambda: None, pool_size=5, max_overflow=max_overflow)  # type: ignore[arg-type, return-value]
    keep(pool, 8)
    keep(pool, 3)
    assert (pool.size(), pool._max_overflow, pool.checkedout()) == (size, left, 0)
