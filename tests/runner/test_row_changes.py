"""What statements change: read off their words, counted by the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection, bindparam, delete, insert, select, text, update
from sqlalchemy.orm import Session

from fastapi_sqlalchemy import Database
from fsa_cli.runner.row_changes import RowChanges, statement_changes
from support.backends import Backend
from support.models import User


@pytest.mark.parametrize(
    ("sql", "kind", "what"),
    [
        ("INSERT INTO users (a) VALUES (1)", "inserted", "users"),
        ("insert or ignore into users values (1)", "inserted", "users"),
        ("INSERT OR REPLACE INTO users VALUES (1)", "inserted or updated", "users"),
        ("REPLACE INTO users VALUES (1)", "inserted or updated", "users"),
        ("INSERT INTO a.users VALUES (1) ON CONFLICT DO NOTHING", "inserted", "a.users"),
        (
            "INSERT INTO users VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 2",
            "inserted or updated",
            "users",
        ),
        ('UPDATE "my users" SET a = 1', "updated", "myusers"),
        ("UPDATE ONLY users SET a = 'DELETE FROM x'", "updated", "users"),
        ("DELETE FROM `users` WHERE a = 1", "deleted", "users"),
        ("/* why */ DELETE FROM users -- all", "deleted", "users"),
        ("WITH old AS (SELECT 1) DELETE FROM users", "deleted", "users"),
        ("COPY users (a) FROM '/x'", "inserted", "users"),
        ("CREATE TABLE x (n INTEGER)", "schema", "CREATE TABLE x (n INTEGER)"),
        ("DROP INDEX x", "schema", "DROP INDEX x"),
        ("TRUNCATE users", "uncounted", "TRUNCATE users"),
        ("CALL rebuild()", "uncounted", "CALL rebuild()"),
        ("MERGE INTO users USING x ON 1 = 1", "uncounted", "MERGE INTO users USING x ON 1 = 1"),
        ("DELETE u FROM users u JOIN x", "uncounted", "DELETE u FROM users u JOIN x"),
    ],
)
def test_what_a_statement_changes_is_read_off_its_words(sql: str, kind: str, what: str) -> None:
    assert statement_changes(sql) == [(kind, what)]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM users FOR UPDATE",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "SAVEPOINT a",
        "BEGIN",
        "SET x = 1",
        "PRAGMA foreign_keys",
        "COPY users TO '/x'",
        "VALUES (1)",
    ],
)
def test_what_only_reads_changes_nothing(sql: str) -> None:
    assert statement_changes(sql) == []


def test_what_a_cursor_cannot_count_is_said() -> None:
    assert statement_changes("WITH gone AS (DELETE FROM a RETURNING x) INSERT INTO b SELECT x") == [
        ("uncounted", "DELETE FROM a RETURNING x"),
        ("inserted", "b"),
    ]
    assert statement_changes("INSERT INTO a VALUES (1); DELETE FROM b") == [
        ("uncounted", "INSERT INTO a VALUES (1)"),
        ("uncounted", "DELETE FROM b"),
    ]
    assert statement_changes("REPLACE INTO a VALUES (1)", "mysql") == [
        ("uncounted", "REPLACE INTO a VALUES ()".replace("()", "(1)"))
    ]
    assert len(statement_changes("TRUNCATE " + "x" * 500)[0].what) == 72


@pytest.fixture
def seen(
    backend: Backend, tables: Callable[[Backend], Backend], db: Database
) -> Iterator[Callable[[], dict[str, int]]]:
    """A sandbox with a session, on each database; gives what was changed in `users`."""
    tables(backend).execute("INSERT INTO users (name) VALUES ('ann'), ('bob')")
    db.configure(backend.url)
    watched: list[RowChanges] = []

    def watch(connection: Connection) -> None:
        watched.append(RowChanges(connection, "default"))

    def found() -> dict[str, int]:
        rows = watched[0].rows()
        assert rows.keys() <= {"users"}
        return {str(kind): count for kind, count in rows.get("users", {}).items()}

    with db.sandbox(watch), db():
        yield found
    assert [name for (name,) in backend.rows("SELECT name FROM users ORDER BY id")] == [
        "ann",
        "bob",
    ]


Seen = Callable[[], dict[str, int]]


def orm(session: Session) -> None:
    session.add_all([User(name=f"user {n}") for n in range(2500)])
    session.flush()
    for user in session.scalars(select(User).limit(3)):
        user.name += "!"
    session.delete(session.scalars(select(User)).first())


def core(session: Session) -> None:
    session.execute(insert(User), [{"name": "a"}, {"name": "b"}, {"name": "c"}])
    session.execute(insert(User).values([{"name": "d"}, {"name": "e"}]))
    session.execute(update(User).where(User.name.in_(["a", "b"])).values(name="x"))
    session.execute(delete(User).where(User.name == "x"))


def core_many(session: Session) -> None:
    connection = session.connection()
    connection.execute(
        update(User.__table__).where(User.__table__.c.name == bindparam("old")),  # type: ignore[arg-type]
        [{"old": "ann", "name": "a"}, {"old": "bob", "name": "b"}, {"old": "nobody", "name": "n"}],
    )


def raw(session: Session) -> None:
    session.execute(text("INSERT INTO users (name) VALUES ('a'), ('b')"))
    session.execute(text("INSERT INTO users (name) VALUES (:name)"), [{"name": "c"}, {"name": "d"}])
    session.connection().exec_driver_sql("DELETE FROM users WHERE name = 'nobody'")
    session.connection().exec_driver_sql("UPDATE users SET name = 'z'")


def savepoints(session: Session) -> None:
    session.add(User(name="kept"))
    with session.begin_nested():
        session.add(User(name="kept too"))
    nested = session.begin_nested()
    session.add(User(name="gone"))
    session.flush()
    with session.begin_nested():
        session.add(User(name="gone too"))
    nested.rollback()
    session.execute(text("SAVEPOINT mine"))
    session.execute(delete(User))
    session.execute(text("ROLLBACK TO SAVEPOINT mine"))
    session.execute(update(User).where(User.name == "kept").values(name="k"))
    session.execute(text("RELEASE SAVEPOINT mine"))


def commits_and_rollbacks(session: Session) -> None:
    session.add(User(name="committed"))
    session.commit()
    session.add(User(name="gone"))
    session.flush()
    session.rollback()
    session.execute(delete(User).where(User.name == "ann"))
    session.commit()
    session.execute(delete(User))
    session.rollback()


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (orm, {"inserted": 2500, "updated": 3, "deleted": 1}),
        (core, {"inserted": 5, "updated": 2, "deleted": 2}),
        (core_many, {"updated": 2}),
        (raw, {"inserted": 4, "updated": 6}),
        (savepoints, {"inserted": 2, "updated": 1}),
        (commits_and_rollbacks, {"inserted": 1, "deleted": 1}),
    ],
)
def test_rows_are_counted_as_the_database_counts_them(
    work: Callable[[Session], None], expected: dict[str, int], seen: Seen, db: Database
) -> None:
    work(db.session)
    db.session.flush()

    assert seen() == expected


def test_returning_is_counted_whether_or_not_its_rows_are_fetched(
    seen: Seen, db: Database, backend: Backend
) -> None:
    several = insert(User).values([{"name": "a"}, {"name": "b"}, {"name": "c"}]).returning(User.id)
    db.session.execute(several).all()
    db.session.execute(several).first()
    db.session.scalar(several)
    expected = {"inserted": 9}
    if backend.name != "mariadb":  # has no UPDATE ... RETURNING
        everyone = update(User).values(name="x").returning(User.id)
        assert len(db.session.execute(everyone).all()) == 11
        expected["updated"] = 11

    assert seen() == expected
