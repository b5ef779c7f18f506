"""The mapped classes that the library's tests store, and the fixtures `db` and `tables`."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import ForeignKey, String, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fastapi_sqlalchemy import Database
from support.backends import Backend


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))


class Membership(Base):
    """Its user must exist at COMMIT, and not before. MariaDB cannot say that: not made there."""

    __tablename__ = "memberships"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(
        ForeignKey("users.id", deferrable=True, initially="DEFERRED")
    )


@pytest.fixture
def db() -> Iterator[Database]:
    """A `Database` of the test's own; its sync connections are closed when the test has ended."""
    database = Database("test")
    yield database
    database.dispose()


def create_tables(backend: Backend) -> Backend:
    """Create the tables in a backend's database, over a connection that is closed again."""
    left_out = {"memberships"} if backend.name == "mariadb" else set()
    engine = create_engine(backend.url)
    made = [table for name, table in Base.metadata.tables.items() if name not in left_out]
    Base.metadata.create_all(engine, tables=made)
    engine.dispose()
    return backend


@pytest.fixture
def tables() -> Callable[[Backend], Backend]:
    """`create_tables`."""
    return create_tables
