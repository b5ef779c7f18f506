"""A statement that waits for a lock which its own request or block holds, on PostgreSQL.

What is not ended runs into the suite's time limit.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator

import httpx
import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import PlainTextResponse
from sqlalchemy import text, update

from fastapi_sqlalchemy import Database
from fastapi_sqlalchemy.exceptions import ConcurrentUseError
from support.backends import Backend
from support.models import User
from support.stores import Store, opened
from support.web import Serve, client_of

logger = logging.getLogger("fastapi_sqlalchemy")
WRITE = update(User).values(name=User.name + "!")


class Warned(logging.Handler):
    """Whether it was said that something waits."""

    said = False

    def emit(self, record: logging.LogRecord) -> None:
        self.said = self.said or "waits for a lock" in record.getMessage()


@pytest.fixture(params=["psycopg", "asyncpg"])
def store(
    request: pytest.FixtureRequest, db: Database, emptied: Callable[[str], Backend]
) -> Iterator[Store]:
    """PostgreSQL with one user; psycopg2 and asyncpg go together."""
    backend = emptied("postgresql")
    backend.execute("INSERT INTO users (name) VALUES ('Ann')")
    with opened(db, backend, backend.with_driver(request.param)) as store:
        yield store


@pytest.fixture
def client(store: Store, serve: Serve) -> Iterator[httpx.Client]:
    with client_of(serve, routes(store)) as client:
        yield client


def routes(store: Store) -> FastAPI:
    """Each route writes twice to one row, and answers 409 with the refusal; what it is called says
    by which session, or in which block."""
    app, db = store.app(commit_on_exit=True), store.db

    @app.exception_handler(ConcurrentUseError)
    async def refused(request: object, exc: ConcurrentUseError) -> PlainTextResponse:
        return PlainTextResponse(str(exc), 409)

    async def write(side: str, how: str = "execute") -> None:
        if side == "session":
            if how == "execute":
                db.session.execute(WRITE)
            else:
                db.session.get_one(User, 1).name += "!"
                db.session.flush()
        elif how == "execute":
            await db.async_session.execute(WRITE)
        else:
            (await db.async_session.get_one(User, 1)).name += "!"
            await db.async_session.flush()

    @app.post("/both/{first}/{second}/{how}")
    async def both(first: str, second: str, how: str, commits: bool = False) -> None:
        await write(first, how)
        if commits:
            db.session.commit()
            await db.async_session.commit()
        await write(second, how)

    @app.post("/block/{side}")
    async def block(side: str) -> None:
        await write(side)
        async with db(commit_on_exit=True):
            await write(side, "flush")

    @app.post("/thread")
    def thread() -> None:
        db.session.execute(WRITE)
        with db(commit_on_exit=True):
            db.session.execute(WRITE)

    lock, child = text("SELECT * FROM users FOR UPDATE"), text("INSERT INTO children VALUES (1)")

    @app.post("/deferred/thread")
    def deferred_in_thread() -> None:
        db.session.execute(lock)
        with db(commit_on_exit=True):
            db.session.execute(child)

    @app.post("/deferred/block")
    async def deferred_in_block() -> None:
        await db.async_session.execute(lock)
        async with db(commit_on_exit=True):
            await db.async_session.execute(child)

    @app.post("/deferred/both")
    async def deferred_by_both() -> None:
        await db.async_session.execute(lock)
        await asyncio.to_thread(lambda: db.session.execute(child))

    def seen() -> None:
        db.session.execute(WRITE)

    @app.post("/dependency", dependencies=[Depends(seen)])
    async def dependency() -> None:
        await write("async_session")

    @app.post("/later")
    async def later(until_warned: bool) -> None:
        """Its child waits for the request, which goes on."""
        warned = Warned()

        async def in_a_block() -> None:
            async with db(commit_on_exit=True):
                await write("async_session")

        await write("async_session")
        child = asyncio.create_task(in_a_block())
        if until_warned:
            logger.addHandler(warned)
            while not warned.said:
                await asyncio.sleep(0.05)
            logger.removeHandler(warned)
        else:
            await asyncio.sleep(1.5)
        await db.async_session.commit()
        await child

    return app


@pytest.mark.parametrize("how", ["execute", "flush"])
@pytest.mark.parametrize("first", ["session", "async_session"])
def test_what_waits_for_the_other_session_of_its_request_is_refused(
    store: Store, client: httpx.Client, first: str, how: str
) -> None:
    second = "session" if first == "async_session" else "async_session"

    answer = client.post(f"/both/{first}/{second}/{how}")

    assert answer.status_code == 409
    assert answer.text.startswith(f"db.{second} waits for a lock that db.{first} of the same")
    assert store.users() == ["Ann"]
    assert client.post(f"/both/{first}/{second}/{how}?commits=1").status_code == 200
    assert store.users() == ["Ann!!"]


@pytest.mark.parametrize("side", ["session", "async_session"])
def test_what_waits_for_the_request_around_its_block_is_refused(
    store: Store, client: httpx.Client, side: str
) -> None:
    answer = client.post(f"/block/{side}")

    assert answer.status_code == 409
    assert f"db.{side} of POST /block/{{side}} around it" in answer.text
    assert store.users() == ["Ann"]


def test_what_waits_in_a_thread_is_refused(store: Store, client: httpx.Client) -> None:
    answer = client.post("/thread")

    assert answer.status_code == 409
    assert "db.session of POST /thread around it" in answer.text


def test_what_waits_for_a_dependency_in_a_thread_is_refused(
    store: Store, client: httpx.Client
) -> None:
    answer = client.post("/dependency")

    assert answer.status_code == 409
    assert answer.text.startswith("db.async_session waits for a lock that db.session of the same")


@pytest.mark.parametrize("path", ["/deferred/thread", "/deferred/block", "/deferred/both"])
def test_a_commit_that_waits_for_the_request_around_it_is_refused(
    store: Store, client: httpx.Client, path: str
) -> None:
    """A deferred foreign key is looked at by the COMMIT."""
    store.backend.execute(
        "CREATE TABLE children (parent int REFERENCES users DEFERRABLE INITIALLY DEFERRED)"
    )
    try:
        answer = client.post(path)
    finally:
        store.backend.execute("DROP TABLE children")
    assert answer.status_code == 409
    assert "waits for a lock that db." in answer.text


@pytest.mark.parametrize("until_warned", [False, True])
def test_what_another_task_of_the_request_will_commit_is_waited_for(
    store: Store, client: httpx.Client, until_warned: bool
) -> None:
    answer = client.post("/later", params={"until_warned": until_warned})

    assert answer.status_code == 200
    assert store.users() == ["Ann!!"]
