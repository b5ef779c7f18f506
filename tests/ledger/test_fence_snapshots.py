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
from fsa_cli.ledger import effects, maintenance
from fsa_cli.ledger.claim_due import claim_due
from fsa_cli.ledger.fence import Fence
from fsa_cli.ledger.records import Due
from fsa_cli.ledger.store import Ledger
from fsa_cli.runner.execute import execute
from fsa_cli.runner.outcome import encode_result
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.tasks.definition import TaskDefinition
from support.backends import Backend
from support.ledgers import end_lease, make_node, now_ms, open_ledger, runs_of

PLACES = [
    ("postgresql", "REPEATABLE READ"),
    ("postgresql", "SERIALIZABLE"),
    ("mariadb", "REPEATABLE READ"),
]
INSERT = text("INSERT INTO written (n) VALUES (1)")
BEGIN = text("SELECT count(*) FROM read_first")


class Stage:
    """A run that is claimed, and how often its function was called."""

    def __init__(self, backend: Backend, ledger: Ledger, db: Database) -> None:
        self.backend, self.ledger, self.db = backend, ledger, db
        self.node = make_node(ledger)
        due = [Due("report", now_ms(ledger), f"{ledger.namespace}/report")]
        (self.claimed,) = claim_due(ledger, self.node.id, due, window_ms=5000).mine
        self.calls = 0

    def run(self, function: Callable[[], Any]) -> RunResult:
        run_id, token = self.claimed.run_id, self.claimed.token
        task = TaskDefinition(name="report", function=function)
        fence = Fence(self.ledger, run_id, token, self.db, encode_result)
        return execute(Run(task=task, database=self.db, run_id=run_id, fence=fence))

    def die(self) -> None:
        end_lease(self.ledger, self.node.id)
        maintenance.reap(self.ledger, [self.node.id])

    @property
    def written(self) -> int:
        return len(self.backend.rows("SELECT n FROM written"))

    @property
    def row(self) -> Any:
        return runs_of(self.ledger)[0]


@pytest.fixture(params=PLACES, ids=" ".join)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
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
    effects.prepare(ledger, db)
    yield Stage(backend, ledger, db)
    db.dispose()
    ledger.dispose()


def test_a_block_that_commits_inside_of_a_task_does_not_end_what_the_task_has_begun(
    stage: Stage,
) -> None:
    def task() -> None:
        stage.calls += 1
        stage.db.session.scalar(BEGIN)
        for _ in range(2):
            with stage.db(commit_on_exit=True):
                stage.db.session.execute(INSERT)
        stage.db.session.execute(INSERT)

    result = stage.run(task)

    assert result.succeeded, result.error
    assert (stage.calls, stage.written) == (1, 3)
    assert (stage.row.status, stage.row.commits) == ("succeeded", 2)


def test_what_a_task_writes_through_both_sessions_is_committed(stage: Stage) -> None:
    async def task() -> None:
        stage.calls += 1
        await stage.db.async_session.execute(INSERT)
        stage.db.session.execute(INSERT)

    result = stage.run(task)

    assert result.succeeded, result.error
    assert (stage.calls, stage.written, stage.row.status) == (1, 2, "succeeded")


def test_the_commits_of_a_run_that_fails_are_counted(stage: Stage) -> None:
    def task() -> None:
        stage.db.session.execute(INSERT)
        stage.db.session.commit()
        raise ValueError

    assert not stage.run(task).succeeded

    assert (stage.written, stage.row.commits) == (1, 1)


def test_a_run_that_was_taken_from_its_process_commits_nothing(stage: Stage) -> None:
    def task() -> None:
        stage.db.session.scalar(BEGIN)
        stage.die()
        with stage.db(commit_on_exit=True):
            stage.db.session.execute(INSERT)

    assert isinstance(stage.run(task).error, Fenced)

    assert (stage.written, stage.row.status) == (0, "interrupted")
