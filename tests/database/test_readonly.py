"""Read-only by the database's own word, on every backend and driver, in a process of its own."""

import json
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from fsa_cli.database.read_statements import check_reads
from fsa_cli.exceptions import StatementFailed

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
APP = """
    import os
    from fastapi import FastAPI
    from fastapi_sqlalchemy import DBSessionMiddleware

    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url=os.environ["DB"])
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
        "set fsa.ro = '1'",
        "set local app.x = '1'; commit; begin read write; insert into things values (6); commit",
        "commit; insert into things values (3)",
        "with x as (delete from things returning a) select * from x",
        "set transaction read write; insert into things values (4)",
        "commit; begin read write; insert into things values (5); commit",
        "select 1 /* ; */; commit; begin read write; insert into things values (5); commit",
        r"select '\'; commit; begin read write; insert into things values (5); commit; --'",
        r"select e'\''; commit; begin read write; insert into things values (5); commit; --'",
        "select $a$ ' $a$; commit; begin read write; insert into things values (5); commit; --'",
        "select 1 /* /* */ ; commit; begin read write; insert into things values (5) --*/",
        "do $$ begin commit; set transaction read write; insert into things values (5); end $$",
        "set session characteristics as transaction read write",
        "set transaction isolation level serializable, read write",
        "select set_config('default_transaction_read_only', 'off', false)",
        "select lo_create(4711)",
        "select lo_from_bytea(4712, 'abc')",
        "select 1 --\r; commit; begin read write; insert into things values (5); commit; --",
        "select 1 as €$a$; commit; begin read write; insert into things values (5); commit;"
        " select 1 as €$a$",
        "select $€$ ' $€$; commit; begin read write; insert into things values (5); commit; --'",
        "select $\u0661$ ' $\u0661$; commit; begin read write;"
        " insert into things values (5); commit; --'",
        "select e'a'\n'\\'' as x, '\\' as y; commit; begin read write;"
        " insert into things values (5); commit; --'",
        "set names 'SJIS'",
        "copy things to '{outside}'",
        "copy (select 1) to program 'touch {outside}'",
    ],
    "mariadb": [
        "set transaction read write",
        "set session transaction read write",
        "begin not atomic commit; set session transaction read write;"
        " start transaction; insert into things values (5); commit; end",
        "if 1 then commit; set session transaction read write; delete from things; end if",
        "/*! set session transaction read write */",
        "/*M! set session transaction read write */",
        "set session transaction read write, @a = 1",
        "set @@session.tx_read_only = 0",
        "set @a = 1, session tx_read_only = 0",
        "set @a = @@session.tx_read_only := 0",
        "set names utf8mb4, tx_read_only = 0",
        "set global max_connections = 151",
        "set statement tx_read_only = 0 for insert into things values (5)",
        "flush tables",
        "select 1 into outfile '{outside}'",
        "select 1 into\noutfile '{outside}'",
        "select 1 from things union select 1/**/into/**/dumpfile '{outside}'",
        "(select 1 into outfile '{outside}')",
        r"select '\' into outfile '{outside}' -- '",
        "select (1)into outfile '{outside}'",
        "values(1)into outfile '{outside}'",
        "select 1.into outfile '{outside}'",
        "select 1.5into outfile '{outside}'",
        "select 1e0into outfile '{outside}'",
        "select 1 --\x7f' \n into outfile '{outside}' -- '",
        "select 1 --\xa0 into outfile '{outside}' from (select 1 as \xa0) t",
        "set sql_mode = 'ANSI_QUOTES'",
        """select 1 as "\\" , '\\'' as x into outfile '{outside}' -- ' " #\"""",
        "set names gbk",
        "execute immediate 'set session transaction read write'",
        "prepare a from 'set session transaction read write'",
        "commit and chain",
        "start transaction read write",
        "lock tables things write",
        "create user fsa_test_nobody",
    ],
    "sqlite": [
        "pragma query_only = off",
        "pragma journal_mode = delete",
        "pragma journal_mode(delete)",
        "pragma user_version = 7",
        "pragma wal_checkpoint(truncate)",
        "pragma writable_schema = 1",
        "attach '{outside}' as other",
        "vacuum",
        "vacuum into '{outside}'",
        "select load_extension('{outside}')",
    ],
}
READ = "select count(*) from things"


def test_nothing_is_written_whatever_is_tried(python, backend) -> None:
    backend.execute("create table things (a int)")
    backend.execute("insert into things values (7)")
    if backend.name == "sqlite":
        backend.execute("pragma journal_mode = wal")
    # Where a server could write as well.
    outside = Path(tempfile.gettempdir(), f"fsa-outside-{uuid.uuid4().hex}")
    persuasions = [each.replace("{outside}", str(outside)) for each in PERSUASIONS[backend.name]]
    statements = [*persuasions, *WRITES, READ]

    done = python("-c", PROGRAM, backend.url, backend.async_url, *statements)

    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    said = [outcome for name, outcome in outcomes if name in WRITES or name == "raw"]
    assert len(said) == 6 * len(WRITES) + 2
    assert not [outcome for outcome in said if outcome in ("done", None)], outcomes
    assert [outcome for name, outcome in outcomes if name == READ] == [[[1]]] * 6
    assert backend.rows("select a from things") == [(7,)]
    assert not outside.exists()
    if backend.name == "sqlite":
        assert backend.rows("pragma journal_mode") == [("wal",)]
        assert backend.rows("pragma user_version") == [(0,)]
    if backend.name == "postgresql":
        assert backend.rows("select oid from pg_largeobject_metadata") == []
    if backend.name == "mariadb":
        assert backend.rows("select user from mysql.user where user = 'fsa_test_nobody'") == []


@pytest.mark.parametrize("statement", PERSUASIONS["postgresql"] + PERSUASIONS["mariadb"])
def test_the_query_command_writes_nothing_either(
    statement: str, backend, write_app, tmp_path, fsa
) -> None:
    """Whatever is meant for one database is tried on each."""
    backend.execute("create table things (a int)")
    outside = Path(tempfile.gettempdir(), f"fsa-outside-{uuid.uuid4().hex}")
    write_app(tmp_path, main=APP)
    statement = statement.replace("{outside}", str(outside))

    fsa("db", "query", statement, cwd=tmp_path, env={"DB": backend.url})

    assert backend.rows("select count(*) from things") == [(0,)]
    assert not outside.exists()


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
@pytest.mark.parametrize(
    "statement",
    [
        "select 1;",
        "select 1 ; -- that is all",
        "SELECT ';', \"a;b\" /* ; */",
        "(select 1) union (select 2)",
        "with a as (select 1) select * from a",
        "values (1), (2)",
        "explain select 1",
        "select 'it''s' as into_it",
        "savepoint a",
        "rollback to savepoint a",
        "release savepoint a",
        "set time_zone = '+00:00'",
        "set names 'utf8'",
        "select 1--1",
        "start transaction read only",
    ],
)
def test_what_reads_is_sent(statement: str, dialect: str) -> None:
    check_reads(statement, dialect)


LISTENING = """
    import os
    from fastapi import FastAPI
    from fastapi_sqlalchemy import DBSessionMiddleware
    from sqlalchemy import Engine, event

    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url=os.environ["DB"])

    @event.listens_for(Engine, "begin")
    def set_tenant(connection):
        connection.exec_driver_sql(os.environ["SET"])
"""


@pytest.mark.parametrize(
    ("kind", "statement"),
    [
        ("postgresql", "SET LOCAL app.tenant = 'x'"),
        ("postgresql", "set rls.tenant_id to 5"),
        ("mariadb", "SET @tenant = 'x'"),
    ],
)
def test_a_listener_sets_what_row_level_security_reads(
    kind: str, statement: str, emptied, write_app, tmp_path, fsa
) -> None:
    write_app(tmp_path, main=LISTENING)
    env = {"DB": emptied(kind).url, "SET": statement}

    queried = fsa("db", "query", "select 41 + 1 as x", cwd=tmp_path, env=env)
    code = "print(session.scalar(text('select 41 + 1')))"
    shell = fsa("shell", "--read-only", "-c", code, cwd=tmp_path, env=env)

    assert "42" in queried.stdout, queried.stderr
    assert "42" in shell.stdout, shell.stderr


@pytest.mark.parametrize("dialect", ["mysql", "postgresql"])
@pytest.mark.parametrize("opening", ["/*", "/*!", "/* '", "(/*", "/*$a$"])
def test_comments_that_do_not_end_are_refused_at_once(dialect: str, opening: str) -> None:
    begun_s = time.monotonic()
    with pytest.raises(StatementFailed):
        check_reads("select 1 " + opening * 50_000, dialect)
    assert time.monotonic() - begun_s < 3


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
