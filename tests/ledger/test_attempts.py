"""The attempts before the last of a run: written once each, and what became of them."""

from __future__ import annotations

from sqlalchemy import select, update

from fsa_cli.ledger import maintenance, tables
from fsa_cli.ledger.attempts import attempts_of, write_attempts
from fsa_cli.ledger.backfill import register_tasks
from fsa_cli.ledger.claim_queued import claim_queued
from fsa_cli.ledger.finish import finish
from fsa_cli.ledger.pruning import Pruning
from fsa_cli.ledger.records import ClaimedRun, RegisteredTask, RunOutcome
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.time import instant_of
from fsa_cli.runs.run_pages import run_detail
from support.ledgers import end_lease, enqueue, make_node, runs_of


def claim(ledger: Ledger, node_id: str) -> ClaimedRun:
    (mine,) = claim_queued(ledger, node_id, {"ship": None}, most=1).runs
    return mine


def outcome(claimed: ClaimedRun, status: str, error: str | None = None) -> RunOutcome:
    return RunOutcome(
        run_id=claimed.run_id,
        token=claimed.token,
        task="ship",
        status=status,
        started_ms=1_000,
        finished_ms=3_000,
        error_type="LookupError" if error else None,
        error=error,
    )


def test_each_attempt_before_the_last_is_kept_with_its_error_and_its_node(ledger: Ledger) -> None:
    register_tasks(ledger, [RegisteredTask("ship", '{"on_crash": "retry"}')])
    run_id = enqueue(ledger, "ship")
    first, second, third = (make_node(ledger) for _ in range(3))
    failed = outcome(claim(ledger, first.id), "failed", "no tea\nat all")._replace(
        retry_in_ms=-5000
    )

    write_attempts(ledger, [failed])  # and the process was cut off before the run was queued again
    assert attempts_of(ledger, run_id) == []
    assert finish(ledger, [failed]) == set()
    assert finish(ledger, [failed]) == set()  # as after a COMMIT whose answer was lost
    claim(ledger, second.id)
    end_lease(ledger, second.id)
    assert maintenance.reap(ledger, [second.id]).queued == (run_id,)
    last = claim(ledger, third.id)
    assert finish(ledger, [outcome(last, "succeeded")]) == set()

    kept = attempts_of(ledger, run_id)
    assert [(e.number, e.status, e.node, e.error_type, e.error) for e in kept] == [
        (1, "failed", first.id, "LookupError", "no tea"),
        (2, "interrupted", second.id, "Interrupted", "the process that ran it has died"),
    ]
    assert (kept[0].started_ms, kept[0].finished_ms, kept[0].role) == (1000, 3000, "scheduler")
    assert kept[0].pid is not None
    (row,) = runs_of(ledger)
    assert (row.attempt, row.status, row.error) == (3, "succeeded", None)
    detail = run_detail(ledger, run_id, instant_of(row.finished_ms))
    assert detail is not None
    shown = [(each.number, each.duration_ms, each.said) for each in detail.attempts]
    assert shown[0] == (1, 2000, "LookupError: no tea")


def test_a_task_that_asks_for_ever_to_be_executed_again_fills_no_table(ledger: Ledger) -> None:
    run_id = enqueue(ledger, "ship")
    node = make_node(ledger)
    for _ in range(103):
        again = outcome(claim(ledger, node.id), "failed")._replace(retry_in_ms=-5000, counts=False)
        assert finish(ledger, [again]) == set()

    assert {each.number for each in attempts_of(ledger, run_id)} == {1}
    assert len(attempts_of(ledger, run_id)) == 100


def test_old_attempts_go_with_their_runs(ledger: Ledger) -> None:
    run_id = enqueue(ledger, "ship")
    node = make_node(ledger)
    finish(ledger, [outcome(claim(ledger, node.id), "failed")._replace(retry_in_ms=-5000)])
    finish(ledger, [outcome(claim(ledger, node.id), "failed")])
    assert len(attempts_of(ledger, run_id)) == 1

    old = update(tables.run).where(tables.run.c.id == run_id)
    old = old.values(scheduled_ms=1, not_before_ms=1, finished_ms=1)
    ledger.write(lambda connection: connection.execute(old))
    assert Pruning().prune(ledger) == 1

    left = select(tables.attempt).where(tables.attempt.c.run == run_id)
    assert ledger.read(lambda connection: connection.execute(left).all()) == []
