"""Looking into the ledger of an app in a test's directory, from outside."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from support.backends import Backend

HEAD = """
import asyncio, pathlib, sys, time
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from fastapi_sqlalchemy import DBSessionMiddleware, db
from fsa_cli import TaskContext, task

app = FastAPI()
app.add_middleware(DBSessionMiddleware, db_url={url!r})
INSERT = text("INSERT INTO written (n) VALUES (:n)")
"""


class Shop:
    """An app with tasks on a backend, and the rows of its ledger."""

    def __init__(self, directory: Path, backend: Backend) -> None:
        self.directory = directory
        self.backend = backend
        backend.execute("CREATE TABLE written (n INTEGER)")

    def write(self, source: str) -> None:
        """The app's tasks."""
        main = HEAD.format(url=self.backend.url) + dedent(source)
        (self.directory / "main.py").write_text(main)

    def written(self) -> list[int]:
        """What its tasks have committed."""
        return [n for (n,) in self.backend.rows("SELECT n FROM written")]

    def ledger(self, sql: str) -> list[Any]:
        """The rows of a SELECT on the ledger."""
        if self.backend.name != "sqlite":
            return list(self.backend.rows(sql))
        (file,) = self.directory.glob("*-ledger.db")
        with closing(sqlite3.connect(file, timeout=10)) as connection:
            return connection.execute(sql).fetchall()

    def runs(self) -> list[tuple[str, str]]:
        """The task and the status of each run."""
        rows = self.ledger("SELECT task, status FROM fsa_run ORDER BY scheduled_ms")
        return [(task, status) for task, status in rows]


@pytest.fixture(params=["postgresql", "sqlite"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    """An app without tasks yet, in the test's directory."""
    return Shop(tmp_path, request.getfixturevalue(request.param))


@pytest.fixture
def small_shop(sqlite: Backend, tmp_path: Path) -> Shop:
    """The same, on SQLite only."""
    return Shop(tmp_path, sqlite)
