"""The ledger of a process that has no database of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.processes import Run, run

PROGRAM = """
import sys
searched = []
sys.addaudithook(lambda event, _: event == "gc.get_objects" and searched.append(event))
from fastapi import FastAPI
from fastapi_sqlalchemy import DBSessionMiddleware
from fsa_cli.runs.enqueue import enqueuer_here

first = enqueuer_here()
assert len(searched) >= 1
searched.clear()
assert enqueuer_here() is enqueuer_here() is first
assert searched == []
app = FastAPI()
app.add_middleware(DBSessionMiddleware, db_url="sqlite:///app.db")
app.build_middleware_stack()
assert enqueuer_here() is not first
"""


@pytest.mark.slow
def test_a_process_without_a_database_does_not_search_its_memory_for_one_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSA_LEDGER_URL", f"sqlite:///{tmp_path}/ledger.db")

    subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, check=True)


OWN_ENGINE = """
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from fsa_cli import task

engine = create_engine("sqlite:///shop.db")
SessionLocal = sessionmaker(engine)

@task
def ship(item: str) -> str:
    return item
"""
ASKS = """
from fastapi_sqlalchemy import db
from own import SessionLocal, ship
from sqlalchemy import text

ship.enqueue("tea")
with SessionLocal() as session:
    session.execute(text("CREATE TABLE orders (id INTEGER)"))
    ship.using(session=session).enqueue("salt")
    session.commit()
    ship.using(session=session).enqueue("rice")
    session.rollback()
assert not db.is_configured
"""


@pytest.mark.parametrize("named", ["pyproject.toml", "FSA_DB_URL"])
def test_a_web_process_asks_for_runs_on_the_database_that_the_settings_name(
    fsa: Run, tmp_path: Path, named: str
) -> None:
    """As `fsa` does: the app has an engine, and its own code gives `db` nothing."""
    (tmp_path / "own.py").write_text(f"from fastapi import FastAPI\napp = FastAPI()\n{OWN_ENGINE}")
    setting = '\ndatabase = "own:engine"' if named == "pyproject.toml" else ""
    (tmp_path / "pyproject.toml").write_text(f'[tool.fsa]\napp = "own:app"{setting}\n')
    env = {} if setting else {"FSA_DB_URL": "sqlite:///shop.db"}
    made = fsa("scheduler", "init", env=env)
    assert made.returncode == 0, made.stderr

    done = run(sys.executable, "-c", ASKS, cwd=tmp_path, env=env)

    assert done.returncode == 0, done.stderr
    listed = json.loads(fsa("runs", "--json", env=env).stdout)
    assert sorted(each["arguments"]["item"] for each in listed) == ["salt", "tea"]
