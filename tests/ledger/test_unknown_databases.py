"""An app on a database that cannot hold the ledger, as DuckDB, CockroachDB, Oracle, Snowflake."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

DIALECT = """
    from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

    class Odd(SQLiteDialect_pysqlite):
        name = "odd"
        driver = "odd"
        supports_statement_cache = True
"""
MAIN = """
    from fastapi import FastAPI
    from fastapi_sqlalchemy import DBSessionMiddleware
    from sqlalchemy.dialects import registry
    registry.register("odd", "odd_dialect", "Odd")
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="odd:///shop.db")
"""
TASKS = """
    from sqlalchemy import text
    from fastapi_sqlalchemy import db
    from fsa_cli import task

    @task(schedule="@yearly")
    def add() -> int:
        db.session.execute(text("insert into t values (1)"))
        return 1
"""


@pytest.fixture
def project(write_app, tmp_path) -> Path:
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.execute("create table t (n integer)")
    return write_app(tmp_path, odd_dialect=DIALECT, main=MAIN, tasks=TASKS)


def rows(project: Path) -> int:
    with closing(sqlite3.connect(project / "shop.db")) as connection:
        return int(connection.execute("select count(*) from t").fetchone()[0])


def test_what_needs_a_ledger_is_refused_and_names_ledger_url(fsa, project, tmp_path) -> None:
    env = {"FSA_STATE_DIR": str(tmp_path / "state")}

    for command in (["start"], ["init"], ["tick"], ["trigger", "add"], ["status"]):
        done = fsa("scheduler", *command, env=env)
        assert done.returncode == 3, (command, done.stderr)
        assert "the app's database cannot hold the ledger of runs: it is odd" in done.stderr
        assert "ledger_url" in done.stderr
    assert not list(tmp_path.glob("state/**/*.db"))
    alone = fsa("run-task", "add", env=env)
    assert (alone.returncode, "not recorded" in alone.stderr, rows(project)) == (0, False, 1)


def test_with_a_ledger_url_its_tasks_run_and_write(fsa, project, backend) -> None:
    env = {"FSA_LEDGER_URL": backend.url}

    assert fsa("scheduler", "init", env=env).returncode == 0
    assert fsa("scheduler", "trigger", "add", env=env).returncode == 0
    tick = fsa("scheduler", "tick", env=env)
    assert tick.returncode == 0, tick.stderr
    (run,) = json.loads(fsa("runs", "--json", env=env).stdout)
    assert (run["status"], rows(project)) == ("succeeded", 1)
