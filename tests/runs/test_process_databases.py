"""The ledger of a process that has no database of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
