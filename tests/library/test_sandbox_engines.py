"""What passes through an engine inside a sandbox: it is held, or it is refused."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, insert, inspect, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from fastapi_sqlalchemy import Database
from fastapi_sqlalchemy.exceptions import SandboxError
from support.backends import Backend
from support.models import User
from support.stores import Store
from support.web import Serve

users = User.__table__


class Routed(Session):
    """A replica or tenant router."""

    engine: Engine

    def get_bind(self, *args: Any, **kwargs: Any) -> Any:
        return type(self).engine


def session_on_the_engine(db: Database) -> None:
    with Session(db.engine) as session:
        session.add(User(name="written"))
        session.commit()


def engine_begin(db: Database) -> None:
    with db.engine.begin() as connection:
        connection.execute(insert(users).values(name="written"))


def engine_connect(db: Database) -> None:
    with db.engine.connect() as connection:
        connection.execute(text("INSERT INTO users (name) VALUES ('written')"))
        connection.commit()
        with connection.begin_nested() as nested:
            connection.execute(text("INSERT INTO users (name) VALUES ('lost')"))
            nested.rollback()


def two_phases(db: Database) -> None:
    with Session(db.engine, twophase=True) as session:
        session.add(User(name="written"))
        session.prepare()
        session.commit()
        session.add(User(name="lost"))
        session.flush()
        session.rollback()


def two_at_once(db: Database) -> None:
    """Two connections of the engine, which end in the order in which they began."""
    first, second = db.engine.connect(), db.engine.connect()
    first.execute(insert(users).values(name="written"))
    second.execute(insert(users).values(name="lost"))
    second.rollback()
    first.commit()
    first.close()
    second.close()


@pytest.mark.parametrize(
    "write", [session_on_the_engine, engine_begin, engine_connect, two_at_once, two_phases]
)
def test_what_is_written_over_the_engine_is_seen_and_rolled_back(
    store: Store, write: Callable[[Database], None]
) -> None:
    db = store.configure()
    with db.sandbox():
        with db():
            db.session.add(User(name="before"))
            db.session.commit()
            write(db)
            assert [user.name for user in db.session.query(User)] == ["before", "written"]
        assert store.backend.name == "sqlite" or store.users() == []
        assert "users" in inspect(db.engine).get_table_names()
    assert store.users() == []
    without = {two_at_once: ["sqlite"], two_phases: ["sqlite", "postgresql"]}
    if store.backend.name not in without.get(write, []):  # one writer; no prepared transactions
        write(db)
        assert store.users() == ["written"]


@pytest.mark.parametrize("over", ["an engine of db", "an engine of its own"])
@pytest.mark.parametrize("side", ["sync", "async"])
async def test_a_session_class_that_chooses_its_engine_is_held(
    store: Store, side: str, over: str
) -> None:
    class Router(Routed):
        pass

    own = create_engine(store.url)
    db = store.configure(
        session_args={"class_": Router}, async_session_args={"sync_session_class": Router}
    )
    Router.engine = db.engine if over == "an engine of db" else own
    async with db.sandbox():
        async with db(commit_on_exit=True):
            if side == "sync":
                db.session.add(User(name="ann"))
                db.session.flush()
                db.session.execute(insert(users).values(name="bob"))
            else:
                db.async_session.add(User(name="ann"))
                await db.async_session.flush()
                await db.async_session.execute(insert(users).values(name="bob"))
        with db():
            assert {user.name for user in db.session.query(User)} == {"ann", "bob"}
    assert store.users() == []
    own.dispose()
    await db.adispose()


async def test_a_sync_session_class_that_chooses_an_async_engine_is_held(
    async_store: Store,
) -> None:
    class Router(Routed):
        pass

    own = create_async_engine(async_store.url)
    db = async_store.configure(async_session_args={"sync_session_class": Router})
    Router.engine = own.sync_engine
    async with db.sandbox():
        async with db(commit_on_exit=True):
            db.async_session.add(User(name="ann"))
    assert async_store.users() == []
    with db.sandbox():
        with pytest.raises(SandboxError, match=r"async with db\.sandbox"):
            async with db():
                await db.async_session.execute(insert(users).values(name="ann"))
    assert async_store.users() == []
    await own.dispose()
    await db.adispose()


def test_sessions_with_binds_are_held(store: Store) -> None:
    own = create_engine(store.url)
    db = store.configure(session_args={"binds": {User: own}})
    with db.sandbox():
        with db(commit_on_exit=True):
            db.session.add(User(name="ann"))
        with db():
            assert [user.name for user in db.session.query(User)] == ["ann"]
    assert store.users() == []
    own.dispose()


def test_what_goes_past_connect_is_refused(store: Store) -> None:
    db = store.configure()
    past: list[Callable[[], Any]] = [
        lambda: db.engine.raw_connection(),
        lambda: db.engine.pool.connect(),
        lambda: db.engine.execution_options(isolation_level="AUTOCOMMIT").connect(),
    ]
    with db.sandbox():
        for take in past:
            with pytest.raises(SandboxError, match="past the sandbox"):
                take()
        with db.engine.connect() as connection:
            with pytest.raises(SandboxError, match="would end the transaction"):
                connection.connection.commit()
            with pytest.raises(SandboxError, match="would end the transaction"):
                connection.execute(text("COMMIT"))
        with db():
            with pytest.raises(SandboxError, match="would end the transaction"):
                db.session.connection().connection.commit()
    for take in past:
        take().close()


def test_what_goes_past_connect_is_refused_after_a_lifespan_too(serve: Serve, store: Store) -> None:
    """Its end disposes of the engines, and each has another pool."""
    db = store.configure()
    before = db.engine.execution_options(isolation_level="AUTOCOMMIT")
    with db.sandbox():
        with serve(store.app()):
            pass
        for engine in (db.engine.execution_options(isolation_level="AUTOCOMMIT"), before):
            with pytest.raises(SandboxError, match="past the sandbox"):
                engine.connect()
        session_on_the_engine(db)
    assert store.users() == []
    with before.begin() as connection:
        connection.execute(insert(users).values(name="outside"))
    assert store.users() == ["outside"]


@pytest.mark.parametrize("side", ["sync", "async"])
async def test_a_session_that_is_told_another_engine_for_its_connection_is_held(
    store: Store, side: str
) -> None:
    own = create_engine(store.url)
    db = store.configure()
    arguments = {"bind": own}
    write = insert(users).values(name="ann")
    async with db.sandbox():
        async with db():
            if side == "sync":
                db.session.connection(bind_arguments=arguments).execute(write)
                db.session.commit()
            else:
                connection = await db.async_session.connection(bind_arguments=arguments)
                await connection.execute(write)
                await db.async_session.commit()
    assert arguments == {"bind": own}
    assert store.users() == []
    own.dispose()
    await db.adispose()


def test_a_session_that_was_opened_before_is_refused(store: Store) -> None:
    db = store.configure()
    with db():
        db.session.add(User(name="ann"))
        with pytest.raises(SandboxError, match="has opened its sessions already"):
            with db.sandbox():
                pass
    with db(), db.sandbox():
        db.session.add(User(name="ann"))
        db.session.commit()
    assert store.users() == []


def test_a_database_that_is_configured_inside_is_held_too(
    store: Store, emptied: Callable[[str], Backend]
) -> None:
    db = store.db
    with db.sandbox():
        db.configure(store.url)
        session_on_the_engine(db)
    assert store.users() == []
