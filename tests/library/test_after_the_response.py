"""What a background task of a response may still do, and which scopes are let go."""

import asyncio
import gc
import weakref
from typing import Any

import pytest
from fastapi.responses import JSONResponse
from sqlalchemy import func, select
from starlette.background import BackgroundTask

from support.models import User
from support.stores import Store
from support.web import Serve, client_of


@pytest.mark.parametrize("expire_on_commit", [False, True])
def test_a_background_task_of_an_error_reads_what_the_route_has_loaded(
    serve: Serve, async_store: Store, expire_on_commit: bool
) -> None:
    async_store.backend.execute("INSERT INTO users (name) VALUES ('ann')")
    db = async_store.db
    seen: list[str] = []
    app = async_store.app(
        commit_on_exit=True, async_session_args={"expire_on_commit": expire_on_commit}
    )

    @app.get("/{side}")
    async def route(side: str) -> JSONResponse:
        if side == "async":
            user: Any = await db.async_session.get(User, 1)
        else:
            user = await asyncio.to_thread(lambda: db.session.get(User, 1))
        return JSONResponse({}, 403, background=BackgroundTask(lambda: seen.append(user.name)))

    with client_of(serve, app) as client:
        for side in ("async", "sync"):
            assert client.get(f"/{side}").status_code == 403
            async_store.assert_settled()
    assert seen == ["ann", "ann"]


@pytest.mark.parametrize("pending", [False, True], ids=["executed", "pending"])
def test_an_error_after_a_write_is_still_rolled_back(
    serve: Serve, store: Store, pending: bool
) -> None:
    db = store.db
    app = store.app(commit_on_exit=True)

    @app.get("/")
    def route() -> JSONResponse:
        db.session.add(User(name="ann"))
        if not pending:
            db.session.flush()
        return JSONResponse({}, 403)

    with client_of(serve, app) as client:
        assert client.get("/").status_code == 403
    store.assert_settled()
    assert store.users() == []


def test_a_function_that_writes_is_rolled_back_with_an_error(
    serve: Serve, postgresql_store: Store
) -> None:
    store = postgresql_store
    store.backend.execute(
        "CREATE OR REPLACE FUNCTION make_user() RETURNS int LANGUAGE sql AS"
        " $$ INSERT INTO users (name) VALUES ('made') RETURNING id $$"
    )
    app = store.app(commit_on_exit=True)

    @app.get("/")
    def route() -> JSONResponse:
        store.db.session.execute(select(func.make_user())).all()
        return JSONResponse({}, 403)

    with client_of(serve, app) as client:
        assert client.get("/").status_code == 403
    store.assert_settled()
    assert store.users() == []
    store.backend.execute("DROP FUNCTION make_user()")


async def test_scopes_that_each_start_the_next_are_let_go(sqlite_store: Store) -> None:
    db = sqlite_store.configure()
    sessions: weakref.WeakSet[Any] = weakref.WeakSet()
    ended = asyncio.Event()

    async def start(left: int) -> None:
        async with db():
            sessions.add(db.session)
            if left:
                tasks[:] = [asyncio.create_task(start(left - 1))]
                await asyncio.sleep(0)
            else:
                ended.set()

    tasks: list[asyncio.Task[None]] = []
    await start(50)
    await ended.wait()
    await tasks[0]
    gc.collect()
    assert len(sessions) <= 2


async def test_an_outer_scope_is_current_again_also_after_the_ones_between_have_ended(
    sqlite_store: Store,
) -> None:
    db = sqlite_store.configure()
    between_ended = asyncio.Event()

    async def inner() -> Any:
        async with db():
            await between_ended.wait()
        return db.session

    async with db():
        outermost = db.session
        async with db():
            task = asyncio.create_task(inner())
            await asyncio.sleep(0)
        between_ended.set()
        assert await task is outermost
