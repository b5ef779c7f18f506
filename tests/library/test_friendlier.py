"""Errors that say what to write, and hooks that reach both sides."""

from typing import Any

import pytest
from sqlalchemy import make_url, text

from fastapi_sqlalchemy import MissingSessionError
from fastapi_sqlalchemy.engines import urls
from fastapi_sqlalchemy.exceptions import ConfigurationError
from support.stores import Store


def test_a_session_that_autocommits_is_refused_when_it_is_configured(sqlite_store: Store) -> None:
    for name in ("session_args", "async_session_args"):
        with pytest.raises(ConfigurationError, match=f"{name} has autocommit"):
            sqlite_store.configure(**{name: {"autocommit": True}})


async def test_one_listener_hears_the_connections_of_both_sides(store: Store) -> None:
    heard: list[Any] = []
    store.db.on_connect(lambda connection, record: heard.append(connection))
    db = store.configure()
    async with db():
        db.session.execute(text("SELECT 1"))
        assert len(heard) == 1
        await db.async_session.execute(text("SELECT 1"))
    assert len(heard) == 2
    await db.adispose()

    @db.on_connect
    def later(connection: Any, record: Any) -> None:
        heard.append("later")

    async with db():
        await db.async_session.execute(text("SELECT 1"))
    assert heard[-1] == "later"
    await db.adispose()


def test_the_async_engine_at_import_is_told_what_to_do(sqlite_store: Store) -> None:
    db = sqlite_store.configure()
    with pytest.raises(RuntimeError, match=r"none runs here.*db\.on_connect"):
        _ = db.async_engine


def test_a_missing_session_names_what_runs_around_the_middleware(sqlite_store: Store) -> None:
    db = sqlite_store.configure()
    with pytest.raises(MissingSessionError, match="added after it, and an exception handler for"):
        _ = db.session


def test_a_driver_that_is_installed_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    there = urls._is_installed
    monkeypatch.setattr(urls, "_is_installed", lambda module: module == "psycopg2" or there(module))
    error = urls.missing_driver(make_url("postgresql+psycopg://h/d"), "sync")
    assert "pip install 'psycopg[binary]', or write postgresql+psycopg2://" in str(error)
