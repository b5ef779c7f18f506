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
from fsa_cli.ledger.claim_queued import claim_queued
from fsa_cli.ledger.records import ClaimedRun, RegisteredTask
from fsa_cli.ledger.store import Ledger
from fsa_cli.runner.run import RunResult
from support.backends import Backend
from support.ledgers import end_lease, make_node, open_ledger
from support.stages import Stage

INSERT = text("INSERT INTO written (n) VALUES (1)")


class Elsewhere(Stage):
    """Its database is not the ledger's. The process takes its lease for good, whatever happens."""

    def __init__(self, backend: Backend, ledger: Ledger, db: Database) -> None:
        super().__init__(backend, ledger, db)
        self.claimed = self.claim()

    def execute(self, function: Callable[[], Any], claimed: ClaimedRun | None = None) -> RunResult:
        return self.run(claimed or self.claimed, function, lambda: True)

    def write(self) -> None:
        self.db.session.execute(INSERT)

    def reap(self) -> maintenance.Died:
        end_lease(self.ledger, self.node.id)
        return maintenance.reap(
            self.ledger,
            [self.node.id],
            lambda claims: effects.fence_off(self.ledger, self.db, claims),
        )


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Elsewhere]:
    backend: Backend = request.getfixturevalue(request.param)
    backend.execute("CREATE TABLE written (n INTEGER)")
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.create()
    db = Database("of the task")
    waits = {"connect_args": {"timeout": 2}} if request.param == "sqlite" else None
    db.configure(db_url=backend.url, engine_args=waits)
    yield Elsewhere(backend, ledger, db)
    db.dispose()
    ledger.dispose()


def test_a_process_from_which_a_run_was_taken_commits_nothing(stage: Elsewhere) -> None:
    """Its own clock still says that the lease holds, so that it asks no ledger."""

    def task() -> None:
        assert stage.reap().marked == (stage.claimed.run_id,)
        stage.write()

    assert isinstance(stage.execute(task).error, Fenced)

    assert len(stage.written()) == 0
    assert stage.row.status == "interrupted"


def test_the_next_attempt_commits(stage: Elsewhere) -> None:
    register_tasks(stage.ledger, [RegisteredTask("report", '{"on_crash": "retry"}')])
    assert stage.reap().queued == (stage.claimed.run_id,)
    (again,), *_ = claim_queued(
        stage.ledger, make_node(stage.ledger).id, {"report": stage.lock}, most=1
    )

    assert stage.execute(stage.write, again).succeeded
    assert isinstance(stage.execute(stage.write).error, Fenced)

    assert len(stage.written()) == 1


@pytest.mark.parametrize("outcome", ["commit", "rollback"])
def test_a_commit_that_is_under_way_is_waited_for(stage: Elsewhere, outcome: str) -> None:
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
        assert (found[0].succeeded, len(stage.written())) == ((stage.claimed.run_id,), 1)
    else:
        assert (found[0].marked, len(stage.written())) == ((stage.claimed.run_id,), 0)


def test_a_transaction_that_stands_still_keeps_nobody_waiting(stage: Elsewhere) -> None:
    under_way = stage.db.engine.connect()
    leave_mark(stage, under_way)

    assert stage.reap().marked == (stage.claimed.run_id,)

    under_way.rollback()
    under_way.close()


def leave_mark(stage: Elsewhere, connection: Connection) -> None:
    connection.execute(INSERT)
    effects.mark(stage.ledger, connection, stage.claimed.run_id, stage.claimed.token)
