"""The fence: what a run commits counts only while the run is ours, and takes effect once."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from fastapi_sqlalchemy import Database
from fsa_cli.exceptions import Fenced
from fsa_cli.ledger import effects
from fsa_cli.ledger.claim_due import claim_due
from fsa_cli.ledger.finish import finish
from fsa_cli.ledger.records import ClaimedRun, Due, RunOutcome
from fsa_cli.ledger.tables import KEPT_MS
from support.backends import Backend
from support.ledgers import make_node, now_ms, open_ledger
from support.stages import Stage

INSERT = text("INSERT INTO written (n) VALUES (:n)")
PLACES = ["postgresql", "mariadb", "sqlite", "postgresql, ledger elsewhere"]


@pytest.fixture(params=PLACES)
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    name, _, elsewhere = request.param.partition(",")
    backend: Backend = request.getfixturevalue(name)
    backend.execute("CREATE TABLE written (n INTEGER)")
    beside = elsewhere or name == "sqlite"
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}" if beside else backend.url)
    ledger.create()
    db = Database("of the task")
    db.configure(db_url=backend.url)
    yield Stage(backend, ledger, db)
    db.dispose()
    ledger.dispose()


def ended(claimed: ClaimedRun, *, recorded: bool = False) -> RunOutcome:
    return RunOutcome(
        run_id=claimed.run_id,
        token=claimed.token,
        task=claimed.task,
        status="succeeded",
        started_ms=None,
        finished_ms=claimed.scheduled_ms,
        recorded=recorded,
    )


def test_the_rows_and_the_success_are_one_transaction(stage: Stage) -> None:
    claimed = stage.claim()

    def task() -> dict[str, int]:
        stage.db.session.execute(INSERT, {"n": 1})
        assert stage.written() == []
        return {"rows": 1}

    assert stage.run(claimed, task).succeeded

    assert stage.written() == [1]
    assert stage.fence.recorded is stage.together
    if stage.together:
        assert (stage.row.status, stage.row.result) == ("succeeded", '{"rows": 1}')
        finish(stage.ledger, [ended(claimed, recorded=True)])
        assert stage.row.lock_key is None
    else:
        assert stage.row.status == "running"  # the recorder's to write
        assert effects.applied(stage.ledger, stage.db, [claimed.run_id]) == {claimed.run_id}


def test_a_run_that_was_declared_dead_commits_nothing(stage: Stage) -> None:
    claimed = stage.claim()

    def task() -> None:
        stage.db.session.execute(INSERT, {"n": 1})
        stage.die()

    result = stage.run(claimed, task)

    assert isinstance(result.error, Fenced)
    assert result.at_commit
    assert stage.written() == []
    assert stage.row.status == "interrupted"


def test_its_own_commits_and_nested_scopes_commit_nothing_either(stage: Stage) -> None:
    claimed = stage.claim()
    refused = []

    def task() -> None:
        stage.die()
        with stage.db(commit_on_exit=True):
            stage.db.session.execute(INSERT, {"n": 1})

    def commits() -> None:
        stage.db.session.execute(INSERT, {"n": 2})
        stage.db.session.commit()

    for each in (task, commits):
        refused.append(stage.run(claimed, each).error)

    assert [type(error) for error in refused] == [Fenced, Fenced]
    assert stage.written() == []


def test_commits_before_the_end_are_counted(stage: Stage) -> None:
    claimed = stage.claim()

    def task() -> None:
        for n in (1, 2):
            stage.db.session.execute(INSERT, {"n": n})
            stage.db.session.commit()
        with stage.db(commit_on_exit=True):
            stage.db.session.execute(INSERT, {"n": 3})
        raise LookupError("after three commits")

    stage.run(claimed, task)

    assert stage.written() == [1, 2, 3]
    assert stage.row.commits == 3
    assert stage.row.status == "running"


def test_savepoints_are_no_commits(stage: Stage) -> None:
    claimed = stage.claim()

    def task() -> None:
        with stage.db.session.begin_nested():
            stage.db.session.execute(INSERT, {"n": 1})

    assert stage.run(claimed, task).succeeded
    assert stage.written() == [1]
    assert stage.row.commits <= 1


def test_a_task_that_only_reads_may_do_so_when_it_is_over(stage: Stage) -> None:
    claimed = stage.claim()

    assert stage.run(claimed, lambda: stage.db.session.scalar(text("SELECT 1"))).succeeded
    assert not stage.backend.idle_in_transaction()


def test_a_task_that_says_commit_false_is_not_committed_and_not_recorded(
    stage: Stage,
) -> None:
    claimed = stage.claim()

    result = stage.run(
        claimed, lambda: stage.db.session.execute(INSERT, {"n": 1}) and None, commit=False
    )

    assert result.succeeded
    assert not stage.fence.recorded
    assert stage.written() == []


def test_a_second_attempt_of_what_has_taken_effect_commits_nothing(stage: Stage) -> None:
    """Where ledger and data are two databases, a crash between the two commits leads to one."""
    claimed = stage.claim()

    def task() -> None:
        stage.db.session.execute(INSERT, {"n": 1})

    assert stage.run(claimed, task).succeeded
    second = stage.run(claimed, task)

    assert isinstance(second.error, Fenced)
    assert stage.written() == [1]


def test_an_async_task_is_fenced_as_a_sync_one(stage: Stage) -> None:
    claimed = stage.claim()

    async def task() -> int:
        await stage.db.async_session.execute(INSERT, {"n": 1})
        return 7

    assert stage.run(claimed, task).value == 7
    assert stage.written() == [1]
    assert stage.fence.recorded is stage.together

    async def dies() -> None:
        await stage.db.async_session.execute(INSERT, {"n": 2})
        await asyncio.to_thread(stage.die)

    stage.node = make_node(stage.ledger)
    finish(stage.ledger, [ended(claimed)])
    again = stage.claim()
    assert isinstance(stage.run(again, dies).error, Fenced)
    assert stage.written() == [1]


@pytest.mark.parametrize("stage", [each for each in PLACES if each != "sqlite"], indirect=True)
def test_what_a_task_writes_through_both_sessions_is_committed(stage: Stage) -> None:
    claimed = stage.claim()

    async def task() -> None:
        await stage.db.async_session.execute(INSERT, {"n": 1})
        stage.db.session.execute(INSERT, {"n": 2})

    assert stage.run(claimed, task).succeeded
    assert stage.written() == [1, 2]
    assert isinstance(stage.run(claimed, task).error, Fenced)
    assert stage.written() == [1, 2]


def test_outside_of_a_run_nothing_is_fenced(stage: Stage) -> None:
    claimed = stage.claim()
    stage.run(claimed, lambda: None)

    with stage.db(commit_on_exit=True):
        stage.db.session.execute(INSERT, {"n": 1})

    assert stage.written() == [1]


def test_marks_of_effects_are_forgotten_with_their_runs(stage: Stage) -> None:
    claimed = stage.claim()
    stage.run(claimed, lambda: stage.db.session.execute(INSERT, {"n": 1}) and None)
    if stage.together:
        effects.prune(stage.ledger, stage.db)  # there is no table
        return

    effects.prune(stage.ledger, stage.db)
    assert effects.applied(stage.ledger, stage.db, [claimed.run_id]) == {claimed.run_id}
    stage.backend.execute(f"UPDATE fsa_effect SET applied_ms = applied_ms - {KEPT_MS + 1000}")
    effects.prune(stage.ledger, stage.db)

    assert effects.applied(stage.ledger, stage.db, [claimed.run_id]) == set()


@pytest.mark.parametrize("stage", PLACES[:2], indirect=True)
def test_claims_of_other_instants_roll_back_no_transaction_of_a_task(stage: Stage) -> None:
    """In a deadlock of the two the database would choose the task's, which then runs twice."""
    names = [f"report{n}" for n in range(4)]
    locks = {name: f"{stage.ledger.namespace}/{name}" for name in names}
    first_ms, over = now_ms(stage.ledger) - 50_000, threading.Event()
    others = make_node(stage.ledger)

    def claim_others() -> None:
        for at_ms in range(first_ms, first_ms + 40_000, 7):
            if over.is_set():
                return
            due = [Due(name, at_ms, lock) for name, lock in locks.items()]
            mine = claim_due(stage.ledger, others.id, due, window_ms=60_000).mine
            finish(stage.ledger, [ended(each) for each in mine])

    rivals = [threading.Thread(target=claim_others) for _ in range(2)]
    for each in rivals:
        each.start()
    begun: Counter[str] = Counter()
    try:
        for at_ms in range(first_ms + 3, first_ms + 3003, 10):
            due = [Due(name, at_ms, lock) for name, lock in locks.items()]
            for claimed in claim_due(stage.ledger, stage.node.id, due, window_ms=60_000).mine:

                def task(run_id: str = claimed.run_id) -> None:
                    begun[run_id] += 1
                    stage.db.session.execute(INSERT, {"n": 1})

                assert stage.run(claimed, task).succeeded
                finish(stage.ledger, [ended(claimed, recorded=True)])
    finally:
        over.set()
        for each in rivals:
            each.join()

    assert set(begun.values()) == {1}
