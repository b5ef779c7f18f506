"""Whatever an `AsyncSession` or an async engine does outside a sandbox, it does inside: each way is
taken outside and inside, on every async driver, and inside leaves nothing."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import product
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import bindparam, delete, func, insert, literal, select, text, union, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import aliased

from fastapi_sqlalchemy import Database
from support.models import User
from support.stores import Store

users = User.__table__
Way = Callable[[Database], Awaitable[Any]]
WAYS: dict[str, tuple[Way, Any]] = {}


def way(expected: Any) -> Callable[[Way], Way]:
    """Register a way, and what it returns where `users` holds ann and bob."""

    def register(function: Way) -> Way:
        WAYS[function.__name__] = (function, expected)
        return function

    return register


NAMES = ["ann", "bob"]


@way([(1,)])
async def text_rows(db: Database) -> Any:
    return [tuple(row) for row in (await db.async_session.execute(text("SELECT 1"))).all()]


@way(NAMES)
async def text_scalars(db: Database) -> Any:
    return (await db.async_session.scalars(text("SELECT name FROM users ORDER BY name"))).all()


@way([{"name": "ann"}, {"name": "bob"}])
async def mappings(db: Database) -> Any:
    result = await db.async_session.execute(select(users.c.name).order_by(users.c.name))
    return [dict(row) for row in result.mappings()]


@way([("ann",), ("bob",)])
async def table_fetched_in_parts(db: Database) -> Any:
    result = await db.async_session.execute(select(users.c.name).order_by(users.c.name))
    return [tuple(result.fetchone() or ()), *map(tuple, result.fetchmany(5))]


@way("ann")
async def first_of_a_table(db: Database) -> Any:
    result = await db.async_session.execute(select(users.c.name).order_by(users.c.name))
    row = result.first()
    return row and row.name


@way(NAMES)
async def entities(db: Database) -> Any:
    return [user.name for user in await db.async_session.scalars(select(User).order_by(User.name))]


@way(2)
async def scalar_function(db: Database) -> Any:
    return await db.async_session.scalar(select(func.count()).select_from(User))


@way([1, 2])
async def compound(db: Database) -> Any:
    statement = union(select(literal(1).label("n")), select(literal(2).label("n"))).order_by("n")
    return list((await db.async_session.execute(statement)).scalars())


@way(NAMES)
async def from_statement(db: Database) -> Any:
    statement = select(User).from_statement(text("SELECT * FROM users ORDER BY name"))
    return [user.name for user in (await db.async_session.scalars(statement)).all()]


@way(NAMES)
async def alias(db: Database) -> Any:
    other = aliased(User)
    result = await db.async_session.execute(select(other).order_by(other.name))
    return [user.name for user in result.unique().scalars()]


@way(NAMES)
async def stream(db: Database) -> Any:
    result = await db.async_session.stream(select(users.c.name).order_by(users.c.name))
    return [row.name async for row in result]


@way(NAMES)
async def stream_scalars_in_parts(db: Database) -> Any:
    result = await db.async_session.stream_scalars(select(User.name).order_by(User.name))
    return [name async for part in result.partitions(1) for name in part]


@way(1)
async def rows_of_an_update(db: Database) -> Any:
    statement = update(users).where(users.c.name == "ann").values(name="amy")
    result: Any = await db.async_session.execute(statement)
    await db.async_session.commit()
    return result.rowcount


@way(1)
async def orm_delete(db: Database) -> Any:
    result: Any = await db.async_session.execute(delete(User).where(User.name == "ann"))
    await db.async_session.commit()
    return result.rowcount


@way(4)
async def many_at_once(db: Database) -> Any:
    await db.async_session.execute(insert(users), [{"name": "cat"}, {"name": "dan"}])
    await db.async_session.commit()
    return await scalar_function(db)


@way("ann")
async def connection_of_the_session(db: Database) -> Any:
    connection = await db.async_session.connection()
    assert isinstance(connection, AsyncConnection)
    statement = select(users.c.name).where(users.c.name == bindparam("name"))
    return (await connection.execute(statement, {"name": "ann"})).scalar_one()


@way([2, 2, NAMES, NAMES])
async def more_of_its_connection(db: Database) -> Any:
    connection = await db.async_session.connection()
    count = await connection.scalar(text("SELECT count(*) FROM users"))
    driver = await connection.exec_driver_sql("SELECT count(*) FROM users")
    names = (await connection.scalars(select(users.c.name).order_by(users.c.name))).all()
    async with connection.stream(select(users.c.name).order_by(users.c.name)) as result:
        return [count, driver.scalar(), names, [row.name async for row in result]]


@way(["ann", "bob", "cat"])
async def run_sync_on_both(db: Database) -> Any:
    await db.async_session.run_sync(lambda session: session.add(User(name="cat")))
    await db.async_session.commit()
    connection = await db.async_session.connection()
    return await connection.run_sync(
        lambda sync: list(sync.scalars(select(users.c.name).order_by(users.c.name)))
    )


@way(["ann", "bob", "kept"])
async def savepoints(db: Database) -> Any:
    session = db.async_session
    async with session.begin_nested():
        session.add(User(name="kept"))
    nested = await session.begin_nested()
    session.add(User(name="lost"))
    await session.flush()
    await nested.rollback()
    await session.commit()
    return await entities(db)


@way(["ann", "bob", "cat"])
async def a_block_of_its_own(db: Database) -> Any:
    async with db(commit_on_exit=True):
        async with db.async_session.begin():
            db.async_session.add(User(name="cat"))
    return await entities(db)


@way(["ann", "bob", "cat"])
async def refreshed(db: Database) -> Any:
    user = User(name="cat")
    db.async_session.add(user)
    await db.async_session.commit()
    await db.async_session.refresh(user)
    assert (await db.async_session.get_one(User, user.id)) is user
    await db.async_session.merge(user)
    return await entities(db)


@way(["ann", "bob", "cat"])
async def engine_begin(db: Database) -> Any:
    async with db.async_engine.begin() as connection:
        await connection.execute(insert(users).values(name="cat"))
    return await entities(db)


@way([2, NAMES])
async def engine_connect(db: Database) -> Any:
    async with db.async_engine.connect() as connection:
        await connection.execute(insert(users).values(name="lost"))
        await connection.rollback()
        result = await connection.execute(text("SELECT count(*) FROM users"))
        names = await connection.stream_scalars(select(users.c.name).order_by(users.c.name))
        return [result.scalar(), [name async for name in names]]


@way(["ann", "bob", "cat"])
async def session_on_the_engine(db: Database) -> Any:
    async with AsyncSession(db.async_engine) as session:
        session.add(User(name="cat"))
        await session.commit()
    async with AsyncSession(db.async_engine) as session:
        session.add(User(name="lost"))
        await session.flush()
    return await entities(db)


@way(NAMES)
async def connection_with_a_level(db: Database) -> Any:
    level = {"isolation_level": "SERIALIZABLE"}
    connection = await db.async_session.connection(execution_options=level)
    return list(await connection.scalars(text("SELECT name FROM users ORDER BY name")))


@way(NAMES)
async def engine_connection_with_a_level(db: Database) -> Any:
    async with db.async_engine.connect() as connection:
        await connection.execution_options(isolation_level="SERIALIZABLE")
        return list(await connection.scalars(text("SELECT name FROM users ORDER BY name")))


@way(NAMES)
async def on_its_bind(db: Database) -> Any:
    bind: Any = db.async_session.bind
    async with AsyncExitStack() as stack:
        if isinstance(bind, AsyncEngine):
            bind = await stack.enter_async_context(bind.connect())
        return list(await bind.scalars(text("SELECT name FROM users ORDER BY name")))


@way([NAMES, NAMES])
async def gathered(db: Database) -> Any:
    return await db.gather(text_scalars(db), entities(db))


async def test_each_way_works_outside_and_inside(async_store: Store) -> None:
    db, backend = async_store.configure(), async_store.backend
    for (name, (function, expected)), inside in product(WAYS.items(), (False, True)):
        backend.execute("DELETE FROM users")
        backend.execute("INSERT INTO users (name) VALUES ('ann'), ('bob')")
        async with AsyncExitStack() as stack:
            if inside:
                await stack.enter_async_context(db.sandbox())
            await stack.enter_async_context(db())
            try:
                found = await function(db)
            except Exception as exc:
                exc.add_note(f"{name}, inside: {inside}")
                raise
        assert found == expected, (name, inside)
        if inside:
            assert async_store.users() == NAMES, name
    await db.adispose()


async def test_each_way_works_on_an_async_engine_alone(
    async_postgresql_store: Store, db: Database
) -> None:
    """There is no sync side: the sandbox's connection is an async one."""
    from sqlalchemy.ext.asyncio import create_async_engine

    store = async_postgresql_store
    store.backend.execute("INSERT INTO users (name) VALUES ('ann'), ('bob')")
    engine = create_async_engine(store.url)
    db.configure(custom_async_engine=engine)
    for function, expected in WAYS.values():
        async with db.sandbox():
            async with db():
                assert await function(db) == expected
        assert store.users() == NAMES
    await engine.dispose()


def test_requests_with_core_statements_work_under_a_sandbox(async_store: Store) -> None:
    db = async_store.configure()
    app = async_store.app(commit_on_exit=True)

    @app.get("/{name}")
    async def route(name: str) -> list[str]:
        await db.async_session.execute(insert(users).values(name=name))
        connection = await db.async_session.connection()
        await connection.execute(insert(users).values(name=f"{name} again"))
        return list((await db.async_session.scalars(text("SELECT name FROM users"))).all())

    with db.sandbox():
        with TestClient(app) as client:
            assert client.get("/ann").json() == ["ann", "ann again"]
    assert async_store.users() == []
