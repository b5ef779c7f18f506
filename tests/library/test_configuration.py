"""What is given to `db.configure()` and to `DBSessionMiddleware`, and what each then does."""

from typing import Any

import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient
from sqlalchemy import make_url

from fastapi_sqlalchemy import Database, DBSessionMiddleware
from fastapi_sqlalchemy.engines.sqlite_memory import is_in_memory
from fastapi_sqlalchemy.engines.urls import masked
from support.models import Base, User
from support.stores import Store


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ({}, ["201", "409"]),
        ({"commit_on_exit": False}, []),
        ({"commit_on_exit": False, "rollback_from_status": 400}, []),
        ({"rollback_from_status": 400}, ["201"]),
        ({"rollback_from_status": None}, ["201", "409"]),
        ({"commit_on_exit": True}, ["201", "409"]),
    ],
    ids=str,
)
def test_an_argument_of_the_middleware_counts_also_if_it_equals_the_default(
    sqlite_store: Store, given: dict[str, Any], rows: list[str]
) -> None:
    db = sqlite_store.configure(commit_on_exit=True, rollback_from_status=None)
    app = sqlite_store.app(**given)
    del app.user_middleware[0].kwargs["db_url"]

    @app.get("/{status}")
    def write(status: int) -> None:
        db.session.add(User(name=str(status)))
        raise HTTPException(status)

    with TestClient(app) as client:
        client.get("/201")
        client.get("/409")
    assert sqlite_store.users() == rows


def test_session_args_of_a_middleware_without_a_url_hold(sqlite_store: Store) -> None:
    db = sqlite_store.configure()
    middleware = DBSessionMiddleware(sqlite_store.app(), session_args={"autoflush": False}, db=db)
    assert middleware.binding.url.render_as_string() == sqlite_store.url
    assert middleware.binding.open_session({}).autoflush is False
    unchanged = DBSessionMiddleware(sqlite_store.app(), db=db)
    assert unchanged.binding is not middleware.binding


def test_a_misspelt_argument_is_refused(sqlite_store: Store) -> None:
    """In the words of what was called, for a middleware 0.2.1's."""
    unexpected = r"\(\) got an unexpected keyword argument 'rollback_from_state'$"
    with pytest.raises(TypeError, match=r"^Database\.configure" + unexpected):
        sqlite_store.configure(rollback_from_state=400)
    with pytest.raises(TypeError, match=r"^DBSessionMiddleware\.__init__" + unexpected):
        DBSessionMiddleware(sqlite_store.app(), sqlite_store.url, rollback_from_state=400)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("url", "in_memory"),
    [
        ("sqlite://", True),
        ("sqlite:///:memory:", True),
        ("sqlite:///file:shop?vfs=memdb&uri=true", True),
        ("sqlite:///file:/shop?vfs=memdb&uri=true", True),
        ("sqlite:///file:shop?mode=memory&uri=true", True),
        ("sqlite:///file:shop?mode=memory&cache=shared&uri=1", True),
        ("sqlite:///file::memory:?uri=true", True),
        ("sqlite:///file::memory:?cache=shared&uri=true", True),
        ("sqlite:///file:shop.db?uri=true", False),
        ("sqlite:///file:shop.db?mode=rwc&uri=true", False),
        ("sqlite:///shop.db?mode=memory", False),
        ("sqlite:///shop.db", False),
        ("postgresql://localhost/:memory:", False),
    ],
)
def test_which_sqlite_is_in_memory(url: str, in_memory: bool) -> None:
    assert is_in_memory(make_url(url)) is in_memory


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///file:shop?vfs=memdb&uri=true",
        "sqlite:///file:/named-shop?vfs=memdb&uri=true",
        "sqlite:///file:shop?mode=memory&uri=true",
        "sqlite:///file::memory:?uri=true",
        "sqlite:///file::memory:?cache=shared&uri=true",
    ],
)
async def test_every_in_memory_database_is_one_for_all_sessions(url: str, db: Database) -> None:
    db.configure(url)
    Base.metadata.create_all(db.engine)
    with db(commit_on_exit=True):
        db.session.add(User(name="ann"))
    async with db():
        assert (await db.async_session.get_one(User, 1)).name == "ann"
    await db.adispose()


@pytest.mark.parametrize(
    "parameter",
    ["api_key", "apikey", "apiKey", "access_key", "private-key", "accountKey", "sig", "passphrase"],
)
def test_keys_in_a_url_are_masked(parameter: str) -> None:
    url = make_url(f"driver://user@host/shop?{parameter}=hidden&keepalives=1&sslkey=client.key")
    assert "hidden" not in masked(url)
    assert f"{parameter}=***" in masked(url)
    assert "keepalives=1" in masked(url)
    assert "sslkey=client.key" in masked(url)
