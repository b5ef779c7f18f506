"""A database with tables and a `Database` on it; its end checks that nothing was left behind."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import Engine
from sqlalchemy.pool import QueuePool

from fastapi_sqlalchemy import Database, DBSessionMiddleware
from support.backends import Backend
from support.databases import MariaDBServer, PostgreSQLServer
from support.models import create_tables
from support.waiting import wait_until

DRIVERS = {
    "psycopg": "postgresql",
    "asyncpg": "postgresql",
    "aiomysql": "mariadb",
    "asyncmy": "mariadb",
    "aiosqlite": "sqlite",
}


@dataclass
class Store:
    """`db` is bound to `url`, which reaches `backend`; its table `users` is there, and empty."""

    db: Database
    backend: Backend
    url: str
    pools: list[QueuePool] = field(default_factory=list)

    def app(self, *, outside: Callable[[FastAPI], None] | None = None, **arguments: Any) -> FastAPI:
        """An app with `DBSessionMiddleware(**arguments)`; what `outside` adds is around that."""
        app = FastAPI()
        app.add_middleware(DBSessionMiddleware, db_url=self.url, db=self.db, **arguments)
        if outside is not None:
            outside(app)
        return app

    def configure(self, **arguments: Any) -> Database:
        self.db.configure(db_url=self.url, **arguments)
        return self.db

    def users(self) -> list[str]:
        """The names that are committed, in order."""
        return [name for (name,) in self.backend.rows("SELECT name FROM users ORDER BY id")]

    def checked_out(self) -> int:
        """How many connections are out, of all engines of `db`, those of other loops included."""
        for binding in list(self.db._bindings):
            engines = binding.engines
            made: list[Engine] = list(engines._made)
            made += [held.engine.sync_engine for held in engines._by_loop.values()]
            for engine in made:
                if isinstance(engine.pool, QueuePool) and engine.pool not in self.pools:
                    self.pools.append(engine.pool)
        return sum(pool.checkedout() for pool in self.pools)

    def assert_settled(self) -> None:
        """Wait until every connection is back in its pool, and none is in a transaction."""
        wait_until(lambda: self.checked_out() == 0, "all connections are back", within_s=20)
        self.backend.assert_no_transaction()


@contextmanager
def opened(db: Database, backend: Backend, url: str) -> Iterator[Store]:
    store = Store(db, backend, url)
    yield store
    # A connection that only the garbage collector would give back is a warning, so a failure.
    store.assert_settled()
    gc.collect()
    assert store.checked_out() == 0


@pytest.fixture(scope="session")
def _shared_postgresql(postgresql_server: PostgreSQLServer) -> Iterator[Backend]:
    with postgresql_server.database() as backend:
        # Thousands of commits: what a power cut would lose is not tested here.
        backend.execute(f"ALTER DATABASE {backend.location.database} SET synchronous_commit = off")
        yield create_tables(backend)


@pytest.fixture(scope="session")
def _shared_mariadb(mariadb_server: MariaDBServer) -> Iterator[Backend]:
    with mariadb_server.database() as backend:
        yield create_tables(backend)


@pytest.fixture
def emptied(request: pytest.FixtureRequest) -> Callable[[str], Backend]:
    """A backend by name, with empty tables; making a database for each test takes a second."""

    def get(name: str) -> Backend:
        if name == "sqlite":
            return create_tables(request.getfixturevalue("sqlite"))
        backend: Backend = request.getfixturevalue(f"_shared_{name}")
        backend.end_statements()  # the TRUNCATE would wait for what an earlier test has left
        if name == "postgresql":
            backend.execute(
                "TRUNCATE memberships, users RESTART IDENTITY;"
                "DROP FUNCTION IF EXISTS at_commit CASCADE"
            )
        else:
            backend.execute("TRUNCATE users")
        return backend

    return get


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def store(
    request: pytest.FixtureRequest, db: Database, emptied: Callable[[str], Backend]
) -> Iterator[Store]:
    """Each of the three backends."""
    backend = emptied(request.param)
    with opened(db, backend, backend.url) as store:
        yield store


@pytest.fixture
def postgresql_store(db: Database, emptied: Callable[[str], Backend]) -> Iterator[Store]:
    """PostgreSQL, whose psycopg serves both sides."""
    backend = emptied("postgresql")
    with opened(db, backend, backend.url) as store:
        yield store


@pytest.fixture
def sqlite_store(db: Database, emptied: Callable[[str], Backend]) -> Iterator[Store]:
    """A SQLite file."""
    backend = emptied("sqlite")
    with opened(db, backend, backend.url) as store:
        yield store


@pytest.fixture(params=DRIVERS)
def async_store(
    request: pytest.FixtureRequest, db: Database, emptied: Callable[[str], Backend]
) -> Iterator[Store]:
    """Each of the five async drivers."""
    backend = emptied(DRIVERS[request.param])
    with opened(db, backend, backend.with_driver(request.param)) as store:
        yield store


@pytest.fixture(params=[driver for driver, backend in DRIVERS.items() if backend != "sqlite"])
def async_server_store(
    request: pytest.FixtureRequest, db: Database, emptied: Callable[[str], Backend]
) -> Iterator[Store]:
    """The four that talk to a server, which lets several write at a time."""
    backend = emptied(DRIVERS[request.param])
    with opened(db, backend, backend.with_driver(request.param)) as store:
        yield store


@pytest.fixture(params=["psycopg", "asyncpg"])
def async_postgresql_store(
    request: pytest.FixtureRequest, db: Database, emptied: Callable[[str], Backend]
) -> Iterator[Store]:
    """PostgreSQL's two async drivers."""
    backend = emptied("postgresql")
    with opened(db, backend, backend.with_driver(request.param)) as store:
        yield store


def at_commit(backend: Backend, action: str) -> None:
    """Have PostgreSQL run `action` (PL/pgSQL) at the COMMIT of whoever has inserted a user."""
    backend.execute(
        f"""
        CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN {action}; RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON users
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION at_commit();
        """
    )


REFUSE = "RAISE EXCEPTION 'refused at commit' USING ERRCODE = 'integrity_constraint_violation'"
