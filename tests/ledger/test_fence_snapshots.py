"""Transactions that fail at a row which has changed since they began: the run's own among them.

REPEATABLE READ and SERIALIZABLE of PostgreSQL; `innodb_snapshot_isolation` of MariaDB, by default
ON since 11.6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text

from fastapi_sqlalchemy import Database
from fsa_cli.exceptions import Fenced
from fsa_cli.ledger.store import Ledger
from fsa_cli.runner.run import RunResult
from support.backends import Backend
from support.ledgers import open_ledger
from support.stages import Stage

PLACES = [
    ("postgresql", "REPEATABLE READ"),
    ("postgresql", "SERIALIZABLE"),
    ("mariadb", "REPEATABLE READ"),
]
INSERT = text("INSERT INTO written (n) VALUES (1)")
BEGIN = text("SELECT count(*) FROM read_first")


class Snapshots(Stage):
    """A run that is claimed, and how often its function was called."""

    def __init__(self, backend: Backend, ledger: Ledger, db: Database) -> None:
        super().__init__(backend, ledger, db)
        self.claimed = self.claim()
        self.calls = 0

    def execute(self, function: Callable[[], Any]) -> RunResult:
        return self.run(self.claimed, function)


@pytest.fixture(params=PLACES, ids=" ".join)
def stage(request: pytest.FixtureRequest) -> Iterator[Snapshots]:
    name, level = request.param
    backend: Backend = request.getfixturevalue(name)
    backend.execute("CREATE TABLE written (n INTEGER)")
    backend.execute("CREATE TABLE read_first (n INTEGER)")
    ledger = open_ledger(backend.url)
    ledger.create()
    arguments: dict[str, Any] = {"isolation_level": level}
    if backend.rows("SELECT version() LIKE '%MariaDB%'") == [(1,)]:
        arguments["connect_args"] = {"init_command": "SET innodb_snapshot_isolation = ON"}
    db = Database("of the task")
    db.configure(db_url=backend.url, engine_args=arguments)
    yield Snapshots(backend, ledger, db)
    db.dispose()
    ledger.dispose()


def test_a_block_that_commits_inside_of_a_task_does_not_end_what_the_task_has_begun(
    stage: Snapshots,
) -> None:
    def task() -> None:
        stage.calls += 1
        stage.db.session.scalar(BEGIN)
        for _ in range(2):
            with stage.db(commit_on_exit=True):
                stage.db.session.execute(INSERT)
        stage.db.session.execute(INSERT)

    result = stage.execute(task)

    assert result.succeeded, result.error
    assert (stage.calls, len(stage.written())) == (1, 3)
    assert (stage.row.status, stage.row.commits) == ("succeeded", 2)


def test_what_a_task_writes_through_both_sessions_is_committed(stage: Snapshots) -> None:
    async def task() -> None:
        stage.calls += 1
        await stage.db.async_session.execute(INSERT)
        stage.db.session.execute(INSERT)

    result = stage.execute(task)

    assert result.succeeded, result.error
    assert (stage.calls, len(stage.written()), stage.row.status) == (1, 2, "succeeded")


def test_the_commits_of_a_run_that_fails_are_counted(stage: Snapshots) -> None:
    def task() -> None:
        stage.db.session.execute(INSERT)
        stage.db.session.commit()
        raise ValueError

    assert not stage.execute(task).succeeded

    assert (len(stage.written()), stage.row.commits) == (1, 1)


def test_a_run_that_was_taken_from_its_process_commits_nothing(stage: Snapshots) -> None:
    def task() -> None:
        stage.db.session.scalar(BEGIN)
        stage.die()
        with stage.db(commit_on_exit=True):
            stage.db.session.execute(INSERT)

    assert isinstance(stage.execute(task).error, Fenced)

    assert (len(stage.written()), stage.row.status) == (0, "interrupted")
