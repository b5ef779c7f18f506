"""Read-only by the database's own word, on every backend and driver, in a process of its own."""

import json

PROGRAM = """
import asyncio, json, sys
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from fsa_cli.database import readonly

url, async_url, *statements = sys.argv[1:]
held = create_engine(url)  # an app that connects while it is imported
opened = held.connect()
opened.execute(text("select 1"))
opened.rollback()
readonly.enforce()
outcomes = []

def note(name, work):
    try:
        outcomes.append([name, work()])
    except Exception as exc:
        outcomes.append([name, type(getattr(exc, "orig", exc)).__name__])

def attempt(connection, statement):
    try:
        result = connection.execute(text(statement))
        rows = [list(row) for row in result] if result.returns_rows else "done"
        connection.commit()
        return rows
    except BaseException:
        connection.rollback()
        raise

for mode in ({}, {"isolation_level": "AUTOCOMMIT"}):
    engine = create_engine(url, **mode)
    for statement in statements:
        with engine.connect() as connection:
            note(statement, lambda: attempt(connection, statement))
    with engine.connect() as connection:
        for statement in statements:
            note(statement, lambda: attempt(connection, statement))
    raw = engine.raw_connection()
    note("raw", lambda: raw.cursor().execute("insert into things values (9)") and None)
    raw.close()

for statement in statements:
    note(statement, lambda: attempt(opened, statement))

async def on_the_other_side():
    engine = create_async_engine(async_url)
    for statement in statements:
        async with engine.connect() as connection:
            try:
                await connection.run_sync(lambda inner: note(
                    statement, lambda: attempt(inner, statement)))
            except Exception:
                pass
    await engine.dispose()

asyncio.run(on_the_other_side())
print(json.dumps(outcomes))
"""
WRITES = [
    "insert into things values (1)",
    "update things set a = 2",
    "delete from things",
    "create table more (a int)",
    "drop table things",
]
# Each backend's way to talk a session, or a transaction, out of being read-only.
PERSUASIONS = {
    "postgresql": [
        "set transaction read write",
        "set default_transaction_read_only = off",
        "commit; insert into things values (3)",
        "with x as (delete from things returning a) select * from x",
        "set transaction read write; insert into things values (4)",
    ],
    "mariadb": ["set transaction read write", "set session transaction read write"],
    "sqlite": ["pragma query_only = off"],
}
READ = "select count(*) from things"


def test_nothing_is_written_whatever_is_tried(python, backend) -> None:
    backend.execute("create table things (a int)")
    backend.execute("insert into things values (7)")
    statements = [*PERSUASIONS[backend.name], *WRITES, READ]

    done = python("-c", PROGRAM, backend.url, backend.async_url, *statements)

    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    said = [outcome for name, outcome in outcomes if name in WRITES or name == "raw"]
    assert len(said) == 6 * len(WRITES) + 2
    assert not [outcome for outcome in said if outcome in ("done", None)], outcomes
    assert [outcome for name, outcome in outcomes if name == READ] == [[[1]]] * 6
    assert backend.rows("select a from things") == [(7,)]


def test_nothing_is_left_in_the_session_that_a_pooler_gives_to_others(python, postgresql) -> None:
    """A pooler shows its clients another process number; here a driver is made to show one."""
    postgresql.execute("create table things (a int)")
    program = """
import sys
import psycopg
from sqlalchemy import create_engine, text
from fsa_cli.database import readonly
psycopg.ConnectionInfo.backend_pid = property(lambda self: 1)
readonly.enforce()
engine = create_engine(sys.argv[1])
with engine.connect() as connection:
    connection.execute(text("select 1"))
    with connection.connection.cursor() as cursor:
        print(cursor.execute("show default_transaction_read_only").fetchone()[0])
        print(cursor.execute("show transaction_read_only").fetchone()[0])
autocommitting = create_engine(sys.argv[1], isolation_level="AUTOCOMMIT")
try:
    autocommitting.connect().execute(text("insert into things values (1)"))
except Exception as exc:
    print(exc.orig)
"""

    done = python("-c", program, postgresql.url)

    assert done.stdout.splitlines() == [
        "off",
        "on",
        "cannot execute INSERT in a read-only transaction",
    ], done.stderr
