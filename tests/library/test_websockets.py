"""WebSockets have a scope that connects when it is used, and that is never committed."""

from contextlib import ExitStack

import pytest
from fastapi import WebSocket
from sqlalchemy import select
from websockets.sync.client import connect

from support.models import User
from support.stores import Store
from support.web import Serve


def test_50_idle_websockets_hold_no_connection(serve: Serve, postgresql_store: Store) -> None:
    store, db = postgresql_store, postgresql_store.db
    store.backend.execute("INSERT INTO users (name) VALUES ('ann')")
    app = store.app(engine_args={"pool_size": 1, "max_overflow": 0})

    @app.websocket("/")
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        async for side in websocket.iter_text():
            async with db():
                if side == "sync":
                    name = db.session.scalars(select(User.name)).one()
                else:
                    name = (await db.async_session.scalars(select(User.name))).one()
            await websocket.send_text(name)

    with serve(app) as served, ExitStack() as stack:
        url = served.base_url.replace("http", "ws")
        clients = [stack.enter_context(connect(url)) for _ in range(50)]
        assert store.checked_out() == 0
        for client in clients:
            for side in ("sync", "async"):
                client.send(side)
                assert client.recv(60) == "ann"
        store.assert_settled()


@pytest.mark.parametrize("ending", ["returns", "client leaves", "fails"])
def test_a_websockets_writes_are_rolled_back_unless_committed_in_a_scope(
    serve: Serve, store: Store, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    db = store.db
    app = store.app(commit_on_exit=True)

    @app.websocket("/chat")
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        async with db(commit_on_exit=True):
            db.async_session.add(User(name="kept"))
        db.async_session.add(User(name="lost"))
        await db.async_session.flush()
        await websocket.send_text("written")
        if ending == "fails":
            raise LookupError
        if ending == "client leaves":
            await websocket.receive_text()

    with (
        serve(app, log_level="critical") as served,
        connect(served.base_url.replace("http", "ws") + "/chat") as client,
    ):
        assert client.recv(60) == "written"
        if ending == "client leaves":
            client.close()
        store.assert_settled()
    assert store.users() == ["kept"]
    warned = "WebSocket /chat wrote to the database without a commit" in caplog.text
    assert warned == (ending != "fails")


def test_a_websocket_can_use_its_session_for_as_long_as_it_is_open(
    serve: Serve, async_store: Store
) -> None:
    db = async_store.db
    app = async_store.app()

    @app.websocket("/")
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        async for name in websocket.iter_text():
            db.async_session.add(User(name=name))
            await db.async_session.commit()
            names = await db.async_session.scalars(select(User.name).order_by(User.id))
            await websocket.send_text(" ".join(names))
            await db.async_session.commit()
            assert not db.uncommitted

    with serve(app) as served, connect(served.base_url.replace("http", "ws")) as client:
        client.send("ann")
        assert client.recv(60) == "ann"
        client.send("bob")
        assert client.recv(60) == "ann bob"
    async_store.assert_settled()


def test_a_websocket_that_uses_the_sync_session_is_warned_about_once(
    serve: Serve, sqlite_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    db = sqlite_store.db
    app = sqlite_store.app()

    @app.websocket("/{room}")
    async def talk(websocket: WebSocket, room: str) -> None:
        await websocket.accept()
        db.session.scalars(select(User.name)).all()
        await websocket.send_text(room)

    with serve(app) as served:
        for room in ("one", "two"):
            with connect(f"{served.base_url.replace('http', 'ws')}/{room}") as client:
                assert client.recv(60) == room
    assert caplog.text.count("on the event loop's thread") == 1
    assert "WebSocket /{room} uses db.session" in caplog.text
