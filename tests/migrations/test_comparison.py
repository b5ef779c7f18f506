"""`fsa db check`: what Alembic's comparison finds between the models and a database."""

import json

import pytest

MODELS = """
    import enum
    import uuid
    from datetime import date, datetime, timedelta
    from decimal import Decimal
    from typing import Any

    from fastapi import FastAPI
    from fastapi_sqlalchemy import DBSessionMiddleware
    from sqlalchemy import *
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

    class Base(DeclarativeBase): ...

    class Kind(enum.Enum):
        BIG = "big"
        SMALL = "small"

    class User(Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(80), index=True)
        mail: Mapped[str] = mapped_column(String(80), unique=True, comment="where to write")
        note: Mapped[str | None] = mapped_column(Text)

    class Thing(Base):
        __tablename__ = "things"
        id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
        user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
        kind: Mapped[Kind]
        is_good: Mapped[bool] = mapped_column(default=True, server_default=true())
        price: Mapped[Decimal] = mapped_column(Numeric(10, 2))
        weight: Mapped[float]
        many: Mapped[int] = mapped_column(BigInteger)
        born: Mapped[date]
        seen: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
        took: Mapped[timedelta]
        data: Mapped[dict[str, Any]] = mapped_column(JSON)
        blob: Mapped[bytes]
        __table_args__ = (
            UniqueConstraint("user_id", "born", name="once_a_day"),
            CheckConstraint("price > 0", name="price_positive"),
            Index("by_kind", "kind", "born"),
            Index("latest", desc("born"), "seen"),
            Index("heaviest", text("weight DESC"), "user_id", unique=True),
        )

    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")
"""
#: As an earlier release had it: another type, a column that may be null, no index, no constraints.
BEFORE = {
    "postgresql": "id serial primary key, name text, mail varchar(80) not null, note text",
    "mariadb": "id int auto_increment primary key, name text, mail varchar(80) not null, note text",
    "sqlite": "id integer not null primary key, name text, mail varchar(80) not null, note text",
}


@pytest.fixture
def project(write_app, tmp_path, backend):
    write_app(tmp_path, main=MODELS)
    return {"FSA_DB_URL": backend.url}


def test_what_db_create_has_made_is_the_same(fsa, project, backend) -> None:
    assert fsa("db", "create", env=project).returncode == 0
    backend.execute("CREATE TABLE other (id integer)")
    backend.execute(
        "CREATE INDEX of_the_dba ON users (note)"
        if backend.name != "mariadb"
        else "CREATE INDEX of_the_dba ON users (note(10))"
    )
    backend.execute("CREATE TABLE fsa_mine (id integer)")

    done = fsa("db", "check", env=project)

    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    assert "with types and indexes" in done.stderr
    assert fsa("db", "check", "--sql", env=project).stdout == ""


def test_an_index_in_an_order_of_its_own_is_compared_by_its_columns(fsa, project, backend) -> None:
    assert fsa("db", "create", env=project).returncode == 0
    on = " ON things" if backend.name == "mariadb" else ""
    backend.execute(f"DROP INDEX latest{on}")
    backend.execute("CREATE INDEX latest ON things (born DESC, took)")

    done = fsa("db", "check", env=project)

    assert (done.returncode, done.stdout.count("missing index")) == (5, 1), done.stdout


def test_types_nullability_indexes_and_constraints_are_compared_and_repaired(
    fsa, project, backend
) -> None:
    backend.execute(f"CREATE TABLE users ({BEFORE[backend.name]})")

    wrong = fsa("db", "check", "--json", env=project)

    assert wrong.returncode == 5
    found = {
        (each["what"], each["table"], each["column"])
        for each in json.loads(wrong.stdout)["differences"]
    }
    assert {
        ("missing table", "things", None),
        ("other type", "users", "name"),
        ("other nullability", "users", "name"),
        ("missing index", "users", None),
    } <= found
    unique = {"missing unique", "missing unique index"}
    assert unique & {what for what, table, _ in found if table == "users"}
    repair = fsa("db", "check", "--sql", env=project)
    assert repair.returncode == 0, repair.stderr
    assert "DROP" not in repair.stdout
    if backend.name == "sqlite":
        assert "-- users.name: other type" in repair.stdout
        return
    backend.execute(repair.stdout)
    done = fsa("db", "check", env=project)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_unique_index_and_a_foreign_key_that_no_model_has_are_named(
    fsa, project, backend
) -> None:
    assert fsa("db", "create", env=project).returncode == 0
    backend.execute("CREATE UNIQUE INDEX one_name ON users (name)")

    wrong = fsa("db", "check", env=project)

    assert (wrong.returncode, wrong.stdout.splitlines()[1:]) == (
        5,
        ["unknown unique index\tusers\t\tone_name (name)"],
    )


LOW = "__table_args__ = (Index('low', text('lower(word)')),)"
#: What each database has another name for, or nothing that tells it from another.
OTHER_NAMES = {
    "postgresql": "",
    "mariadb": "plan = mapped_column(Text(1000000)); scan = mapped_column(LargeBinary(2000000))",
    "sqlite": "plan = mapped_column(Text(1000000)); key = mapped_column(BINARY(16))",
}


def test_what_a_database_calls_by_another_name_is_the_same(
    fsa, write_app, tmp_path, backend
) -> None:
    """Neither `db check` nor a migration that is written sees a change; nothing warns."""
    models = MODELS.replace(
        "    app = FastAPI()",
        f"""
    class Sized(Base):
        __tablename__ = "sized"
        id: Mapped[int] = mapped_column(primary_key=True)
        precise = mapped_column(Float(53))
        rough = mapped_column(Float(24))
        {OTHER_NAMES[backend.name]}
        {LOW if backend.name != "mariadb" else ""}
        word = mapped_column(String(20))

    app = FastAPI()""",
    )
    write_app(tmp_path, main=models)
    env = {"FSA_DB_URL": backend.url}
    assert fsa("db", "create", env=env).returncode == 0

    done = fsa("db", "check", env=env)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    assert "Warning" not in done.stderr
    assert fsa("db", "check", "--sql", env=env).stdout == ""
    nothing = fsa("db", "revision", "--autogenerate", "--json", env=env)
    assert json.loads(nothing.stdout) == {"revision": None, "changes": []}, nothing.stdout
    assert "Warning" not in nothing.stderr

    kind = "TEXT" if backend.name == "sqlite" else "int"
    backend.execute("ALTER TABLE sized DROP COLUMN precise")
    backend.execute(f"ALTER TABLE sized ADD COLUMN precise {kind}")
    wrong = fsa("db", "check", env=env)
    assert wrong.returncode == 5
    assert "other type\tsized\tprecise" in wrong.stdout
