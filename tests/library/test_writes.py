"""What counts as written: for the warning of lost writes, and for a fence."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import (
    Dialect,
    Executable,
    Integer,
    Sequence,
    TypeDecorator,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    select,
    text,
    union,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from fastapi_sqlalchemy.sessions.writes import locks_rows, looks_like_read, surely_reads
from support.models import User
from support.stores import Store
from support.web import Serve, client_of

users = User.__table__
values = insert(users).values(name="x").returning(users.c.id)


@pytest.mark.parametrize(
    "statement",
    [
        select(User),
        select(User).where(func.lower(User.name) == "update"),
        select(User).with_for_update(),
        select(User).from_statement(text("SELECT * FROM users")),
        select(func.count()).select_from(User),
        exists(select(User)).select(),
        union(select(literal(1)), select(literal(2))),
        func.now(),
        text("SELECT 1").columns(id=Integer),
        text("-- a comment; delete\nSELECT 1"),
        text("/* insert */ (SELECT 1) UNION (SELECT 2)"),
        text("SELECT 'update users', \"delete\", `insert` FROM x"),
        text("SELECT update_time, count(*) FROM x WHERE id IN (1) FOR UPDATE"),
        text("WITH x AS (SELECT 1) SELECT * FROM x"),
        text("SHOW TABLES"),
    ],
    ids=lambda statement: " ".join(str(statement).split())[:40],
)
def test_what_only_reads_is_a_read(statement: Executable) -> None:
    assert looks_like_read(statement)
    assert surely_reads(statement)


@pytest.mark.parametrize(
    "statement",
    [
        select(User).with_for_update(),
        select(User).suffix_with("FOR UPDATE"),
        select(User).with_statement_hint("LOCK IN SHARE MODE"),
        text("SELECT 1 FOR SHARE"),
    ],
    ids=str,
)
def test_what_locks_rows_is_seen_however_it_is_written(statement: Executable) -> None:
    assert locks_rows(statement)
    assert not locks_rows(select(User).suffix_with("LIMIT 1").with_hint(User, "USE INDEX (x)"))


@pytest.mark.parametrize(
    "statement",
    [
        values,
        update(users),
        delete(User),
        select(values.cte("made")),
        select(User).where(User.id.in_(select(values.cte("made").c.id))),
        select(User).from_statement(values),
        text("INSERT INTO users VALUES (1)"),
        text("-- a comment\nUPDATE users SET name = 'x'"),
        text("WITH x AS (DELETE FROM users RETURNING *) SELECT * FROM x"),
        text("SELECT * INTO copied FROM users"),
        text("SELECT 1; DELETE FROM users"),
        text("EXPLAIN ANALYZE INSERT INTO users VALUES (1)"),
        text("CALL make_users()"),
        text("CREATE TABLE x (id int)"),
    ],
    ids=lambda statement: " ".join(str(statement).split())[:40],
)
def test_what_writes_is_a_write(statement: Executable) -> None:
    assert not looks_like_read(statement)
    assert not surely_reads(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 'a\\'; INSERT INTO users VALUES (1) --'",
        "SELECT 'a\\' , '; INSERT INTO users VALUES (1) --'",
        'SELECT "a\\"; INSERT INTO users VALUES (1) --"',
        "SELECT 5--'\n; INSERT INTO users VALUES (1); -- '",
        "SELECT 5 -- x\r; INSERT INTO users VALUES (1)",
        "SELECT 5 # '\n; INSERT INTO users VALUES (1) # '",
        "SELECT $$'$$; INSERT INTO users VALUES (1); SELECT $a$'$a$",
        "SELECT 1 /* /* */ ' */; INSERT INTO users VALUES (1) --'",
        "SELECT ['] FROM x; INSERT INTO users VALUES (1); SELECT [']",
        "SELECT `'`; INSERT INTO users VALUES (1); SELECT `'`",
        "SELECT 1 /*M!; INSERT INTO users VALUES (1) */",
        'SELECT "make_user"()',
        "SELECT mine . lower('x')",
        "SELECT make$lower('x')",
        select(literal_column("nextval('made')")),
        select(text("1; DELETE FROM users")),
    ],
    ids=lambda statement: " ".join(str(statement).split())[:40],
)
def test_what_one_database_could_read_otherwise_is_no_certain_read(statement: Any) -> None:
    assert not surely_reads(text(statement) if isinstance(statement, str) else statement)


@pytest.mark.parametrize(
    "statement",
    [
        select(func.make_user("x")),
        func.make_user("x"),
        select(func.nextval("x")),
        select(text("make_user('x')")),
        Sequence("x"),
        text("SELECT make_user('x')"),
        text("SET search_path = x"),
        text("RESET ROLE"),
        text("USE shop"),
        text("LOCK TABLE users IN SHARE MODE"),
        text("DECLARE held CURSOR FOR SELECT 1"),
        text("FETCH 1 FROM held"),
        text("PRAGMA user_version = 3"),
        text("EXPLAIN SELECT 1"),
    ],
    ids=lambda statement: " ".join(str(statement).split())[:40],
)
def test_what_may_write_is_no_sure_read_and_no_reason_for_a_warning(statement: Executable) -> None:
    assert looks_like_read(statement)
    assert not surely_reads(statement)


def bulk_insert(session: Session) -> None:
    session.bulk_insert_mappings(User.__mapper__, [{"name": "x"}])


def bulk_save(session: Session) -> None:
    session.bulk_save_objects([User(name="x")])


def bulk_update(session: Session) -> None:
    session.bulk_update_mappings(User.__mapper__, [{"id": 1, "name": "y"}])


def on_the_connection(session: Session) -> None:
    session.connection().execute(insert(users).values(name="x"))


def driver_sql(session: Session) -> None:
    session.connection().exec_driver_sql("INSERT INTO users (name) VALUES ('x')")


def in_a_select(session: Session) -> None:
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(values.cte("made")))
    else:
        session.execute(insert(users).values(name="x"))


def driver_cursor(session: Session) -> None:
    cursor: Any = session.connection().connection.cursor()
    cursor.execute("INSERT INTO users (name) VALUES ('x')")
    cursor.close()


DOORS = [bulk_insert, bulk_save, bulk_update, on_the_connection, driver_sql, in_a_select]


@pytest.mark.parametrize("write", [*DOORS, driver_cursor], ids=lambda write: write.__name__)
def test_whatever_writes_may_have_written(store: Store, write: Callable[[Session], None]) -> None:
    store.backend.execute("INSERT INTO users (name) VALUES ('ann')")
    db = store.configure()
    with db():
        write(db.session)
        activity: Any = db.session.fsa_activity  # type: ignore[attr-defined]
        assert activity.may_have_written
        assert activity.has_written or write is driver_cursor
        db.session.rollback()
        assert not activity.may_have_written
        db.session.scalars(select(User)).all()
        assert not activity.may_have_written


def test_a_write_that_failed_in_a_savepoint_is_no_lost_write(postgresql_store: Store) -> None:
    postgresql_store.backend.execute("INSERT INTO users (id, name) VALUES (1, 'ann')")
    again = insert(users).values(id=1, name="eve").returning(users.c.id)
    db = postgresql_store.configure()
    with db():
        with contextlib.suppress(IntegrityError), db.session.begin_nested():
            db.session.execute(select(again.cte("again")))
        assert not db.uncommitted
        assert db.session.fsa_activity.may_have_written  # type: ignore[attr-defined]


class Context:
    """A value with the attributes by which a result is asked for its statement."""

    raw: Any = None
    context = "not to be referred to weakly"


class Contexts(TypeDecorator[Context]):
    impl = Integer
    cache_ok = True

    def process_result_value(self, value: int | None, dialect: Dialect) -> Context:
        return Context()


def test_a_value_is_not_taken_for_a_result(store: Store) -> None:
    db = store.configure()
    with db():
        assert isinstance(db.session.scalar(select(literal(1, Contexts()))), Context)
        assert not db.session.fsa_activity.may_have_written  # type: ignore[attr-defined]


@pytest.mark.parametrize("write", DOORS, ids=lambda write: write.__name__)
def test_writes_that_a_request_does_not_commit_are_warned_of(
    serve: Serve, store: Store, caplog: pytest.LogCaptureFixture, write: Callable[[Session], None]
) -> None:
    store.backend.execute("INSERT INTO users (name) VALUES ('ann')")
    app = store.app()

    @app.get("/write")
    def route() -> None:
        write(store.db.session)

    @app.get("/read")
    def read() -> None:
        session = store.db.session
        session.scalar(func.now() if store.backend.name != "sqlite" else select(func.count()))
        session.scalars(select(User).from_statement(text("-- all\nSELECT * FROM users"))).all()
        session.connection().exec_driver_sql("SELECT 'update'")

    with client_of(serve, app) as client:
        assert client.get("/read").status_code == 200
        assert client.get("/write").status_code == 200
    assert store.users() == ["ann"]
    warnings = [record.getMessage().split(":")[0] for record in caplog.records]
    assert warnings == ["GET /write wrote to the database without a commit"]


def test_what_autocommit_has_kept_is_not_said_to_be_rolled_back(
    serve: Serve, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    app = store.app(engine_args={"isolation_level": "AUTOCOMMIT"})

    @app.get("/write")
    def write() -> bool:
        store.db.session.add(User(name="kept"))
        store.db.session.flush()
        return store.db.uncommitted

    with client_of(serve, app) as client:
        assert client.get("/write").json() is False
    assert store.users() == ["kept"]
    assert caplog.records == []
