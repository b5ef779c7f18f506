"""A ledger in another database: what a process commits while its run is taken from it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from fastapi_sqlalchemy import Database
from fsa_cli.exceptions import Fenced
from fsa_cli.ledger import effects, maintenance
from fsa_cli.ledger.backfill import register_tasks
from fsa_cli.ledger.claim_due import claim_due
from fsa_cli.ledger.claim_queued import claim_queued
from fsa_cli.ledger.fence import Fence
from fsa_cli.ledger.records import ClaimedRun, Due, RegisteredTask
from fsa_cli.ledger.store import Ledger
from fsa_cli.runner.execute import execute
from fsa_cli.runner.outcome import encode_result
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.tasks.definition import TaskDefinition
from support.backends import Backend
from support.ledgers import end_lease, make_node, now_ms, open_ledger, runs_of

INSERT = text("INSERT INTO written (n) VALUES (1)")


class Stage:
    """A run that is claimed, whose database is not the ledger's."""

    def __init__(self, backend: Backend, ledger: Ledger, db: Database) -> None:
        self.backend, self.ledger, self.db = backend, ledger, db
        self.lock = f"{ledger.namespace}/report"
        effects.prepare(ledger, db)
        self.node = make_node(ledger)
        due = [Due("report", now_ms(ledger), self.lock)]
        (self.claimed,) = claim_due(ledger, self.node.id, due, window_ms=5000).mine

    def run(self, function: Callable[[], Any], claimed: ClaimedRun | None = None) -> RunResult:
        """Run it in a process that takes its lease for good, whatever the others say."""
        claimed = claimed or self.claimed
        fence = Fence(
            self.ledger, claimed.run_id, claimed.token, self.db, encode_result, lambda: True
        )
        task = TaskDefinition(name="report", function=function)
        return execute(Run(task=task, database=self.db, run_id=claimed.run_id, fence=fence))

    def write(self) -> None:
        self.db.session.execute(INSERT)

    def reap(self) -> maintenance.Died:
        end_lease(self.ledger, self.node.id)
        return maintenance.reap(
            self.ledger,
            [self.node.id],
            lambda claims: effects.fence_off(self.ledger, self.db, claims),
        )

    @property
    def written(self) -> int:
        return len(self.backend.rows("SELECT n FROM written"))


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    backend: Backend = request.getfixturevalue(request.param)
    backend.execute("CREATE TABLE written (n INTEGER)")
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.create()
    db = Database("of the task")
    waits = {"connect_args": {"timeout": 2}} if request.param == "sqlite" else None
    db.configure(db_url=backend.url, engine_args=waits)
    yield Stage(backend, ledger, db)
    db.dispose()
    ledger.dispose()


def test_a_process_from_which_a_run_was_taken_commits_nothing(stage: Stage) -> None:
    """Its own clock still says that the lease holds, so that it asks no ledger."""

    def task() -> None:
        assert stage.reap().marked == (stage.claimed.run_id,)
        stage.write()

    assert isinstance(stage.run(task).error, Fenced)

    assert stage.written == 0
    assert runs_of(stage.ledger)[0].status == "interrupted"


def test_the_next_attempt_commits(stage: Stage) -> None:
    register_tasks(stage.ledger, [RegisteredTask("report", '{"on_crash": "retry"}')])
    assert stage.reap().queued == (stage.claimed.run_id,)
    (again,), *_ = claim_queued(
        stage.ledger, make_node(stage.ledger).id, {"report": stage.lock}, most=1
    )

    assert stage.run(stage.write, again).succeeded
    assert isinstance(stage.run(stage.write).error, Fenced)

    assert stage.written == 1


@pytest.mark.parametrize("outcome", ["commit", "rollback"])
def test_a_commit_that_is_under_way_is_waited_for(stage: Stage, outcome: str) -> None:
    under_way = stage.db.engine.connect()
    leave_mark(stage, under_way)
    found: list[maintenance.Died] = []
    reaping = threading.Thread(target=lambda: found.append(stage.reap()))
    reaping.start()
    reaping.join(0.5)
    assert reaping.is_alive()

    getattr(under_way, outcome)()
    under_way.close()
    reaping.join()

    if outcome == "commit":
        assert (found[0].succeeded, stage.written) == ((stage.claimed.run_id,), 1)
    else:
        assert (found[0].marked, stage.written) == ((stage.claimed.run_id,), 0)


def test_a_transaction_that_stands_still_keeps_nobody_waiting(stage: Stage) -> None:
    under_way = stage.db.engine.connect()
    leave_mark(stage, under_way)

    assert stage.reap().marked == (stage.claimed.run_id,)

    under_way.rollback()
    under_way.close()


def leave_mark(stage: Stage, connection: Connection) -> None:
    connection.execute(INSERT)
    effects.mark(stage.ledger, connection, stage.claimed.run_id, stage.claimed.token)
