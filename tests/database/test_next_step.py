"""What a server says is answered with what to do about it."""

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError

from fsa_cli.database.next_step import next_step
from support.backends import Backend
from support.processes import Run

APP = """
from fastapi import FastAPI
from sqlalchemy import text
from fastapi_sqlalchemy import DBSessionMiddleware, db
from fsa_cli import task

app = FastAPI()
app.add_middleware(DBSessionMiddleware, db_url="sqlite:///x.db")

@task(schedule="every 1h")
def read():
    db.session.execute(text("SELECT * FROM missing"))

@task
async def aread():
    await db.async_session.execute(text("SELECT * FROM missing"))
"""


def said(url: str, *statements: str) -> BaseException:
    """The error of a connection, or of the last of these statements."""
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
    except SQLAlchemyError as exc:
        return exc
    finally:
        engine.dispose()
    raise AssertionError("nothing failed")


def test_real_servers_are_told_apart(
    postgresql: Backend, mariadb: Backend, sqlite: Backend, tmp_path: Path
) -> None:
    def step(url: str, *statements: str) -> str:
        return next_step(said(url, *statements)) or ""

    on_postgresql = sqlalchemy.make_url(postgresql.url)
    absent = on_postgresql.set(database="h_absent").render_as_string(hide_password=False)
    assert "no such database" in step(absent)
    closed = on_postgresql.set(port=1).render_as_string(hide_password=False)
    assert "is the server running" in step(closed)
    stranger = on_postgresql.set(username="h_stranger").render_as_string(hide_password=False)
    assert "no such user" in step(stranger)
    wrong = sqlalchemy.make_url(mariadb.url).set(username="h_stranger", password="wrong")
    assert "password is wrong" in step(wrong.render_as_string(hide_password=False))
    for backend in (postgresql, mariadb, sqlite):
        assert "fsa db check" in step(backend.url, "SELECT * FROM missing")
        assert "fsa scheduler init" in step(backend.url, "SELECT * FROM fsa_run")
    made = "SET TRANSACTION READ ONLY", "CREATE TABLE made (n INTEGER)"
    assert "nothing can be written" in step(postgresql.url, *made)
    assert "directory" in step(f"sqlite:///{tmp_path}/absent/x.db")
    assert next_step(LookupError("no such user")) is None


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("database or disk is full", "the disk"),
        ('could not extend file "base/1": No space left on device', "the disk"),
        ("attempt to write a readonly database", "nothing can be written"),
        ("permission denied for table fsa_run", "GRANT"),
        ("UPDATE command denied to user 'a'@'b' for table 'c'", "GRANT"),
        ('FATAL: password authentication failed for user "a"', "password is wrong"),
        ("sorry, too many clients already", "no connection left"),
        ("port 5432 failed: SSL error: certificate verify failed", "sslrootcert"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate in chain", "sslrootcert"),
        ('certificate for "a" does not match host name "b"', "not for this host"),
        ("FATAL: connection requires a valid client certificate", "sslcert"),
        ("port 5432 failed: session is read-only", "target_session_attrs"),
        ("canceling statement due to conflict with recovery", "a standby"),
        ('prepared statement "_pg3_0" already exists', "a pooler"),
        ('schema "sales" does not exist', "CREATE SCHEMA"),
        ('could not open file "x" for reading: No such file or directory', "the server's own"),
        ('could not open file "x" for reading: Permission denied', "the server's own"),
    ],
)
def test_what_cannot_be_had_cheaply_is_known_by_its_text(text: str, step: str) -> None:
    assert step in (next_step(sqlite3.OperationalError(text)) or "")


def test_a_task_whose_table_is_missing_points_to_db_check(fsa: Run, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP)
    done = fsa("run-task", "read")
    assert done.returncode == 1
    assert "hint: fsa db check compares the database with the models" in done.stderr
    assert "fsa db create makes the tables that it lacks" in done.stderr
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "env.py").touch()
    (tmp_path / "alembic.ini").write_text("[alembic]\nscript_location = migrations\n")
    assert "fsa db upgrade migrates it" in fsa("run-task", "read").stderr
    url = "mysql+pymysql://h_stranger:s3cret@127.0.0.1:1/x"
    away = fsa("db", "show", env={"FSA_DB_URL": url})
    assert away.returncode == 4
    assert "hint: is the server running" in away.stderr


BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "without", "name", "install"),
    [
        ("mysql+pymysql", ["pymysql"], "read", "pip install pymysql"),
        ("mysql+aiomysql", ["pymysql", "MySQLdb"], "read", "pip install pymysql"),
        ("mysql+pymysql", ["aiomysql", "asyncmy"], "aread", "pip install aiomysql"),
        ("mysql+asyncmy", ["asyncmy"], "aread", "pip install asyncmy"),
        (
            "postgresql+psycopg",
            ["psycopg"],
            "read",
            "pip install 'psycopg[binary]', or write postgresql+psycopg2://",
        ),
        (
            "postgresql+psycopg2",
            ["psycopg2", "psycopg"],
            "read",
            "pip install psycopg2-binary",
        ),
        ("postgresql+asyncpg", ["asyncpg"], "aread", "pip install asyncpg"),
        ("sqlite", ["aiosqlite"], "aread", "pip install aiosqlite"),
    ],
)
def test_a_driver_that_is_missing_is_named_with_its_package(
    fsa: Run, tmp_path: Path, url: str, without: list[str], name: str, install: str
) -> None:
    (tmp_path / "main.py").write_text(APP)
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "sitecustomize.py").write_text(BLOCKER.format(names=set(without)))
    whole = f"{url}:///x.db" if url == "sqlite" else f"{url}://me:s3cret@127.0.0.1:1/x"
    env = {"FSA_DB_URL": whole, "PYTHONPATH": str(tmp_path / "block")}
    done = fsa("run-task", name, "--no-record", env=env)
    assert done.returncode == 3
    assert install in done.stderr
    assert f"in {name}\n" in done.stderr
    assert "s3cret" not in done.stderr


@pytest.mark.slow
def test_each_command_names_the_driver_that_is_missing(fsa: Run, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP)
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "sitecustomize.py").write_text(BLOCKER.format(names={"pymysql"}))
    env = {
        "FSA_DB_URL": "mysql+pymysql://me:s3cret@127.0.0.1:1/x",
        "PYTHONPATH": str(tmp_path / "block"),
    }
    for command in ("db query x", "db show", "shell -c db.session", "scheduler init", "runs"):
        done = fsa(*command.split(), env=env)
        assert done.returncode == 3, command
        assert "pip install pymysql\n" in done.stderr
    for command in ("health", "status"):
        done = fsa(command, env=env)
        assert "the ledger needs a driver that is not installed: pip install pymysql" in done.stdout


def test_a_sync_driver_that_is_missing_is_the_one_that_is_named(fsa: Run, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP)
    done = fsa("db", "show", env={"FSA_DB_URL": "mssql+pyodbc://me:s3cret@127.0.0.1/x"})
    assert done.returncode == 3
    assert "pip install pyodbc" in done.stderr
    assert "s3cret" not in done.stderr
