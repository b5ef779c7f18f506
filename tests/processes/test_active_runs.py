"""What a process has claimed is its own from before the statement is sent, by its token."""

from __future__ import annotations

import threading
import time

from sqlalchemy import insert

from fsa_cli.ledger import maintenance, tables
from fsa_cli.ledger.claim_dispatched import claim_dispatched
from fsa_cli.ledger.claim_due import claim_due
from fsa_cli.ledger.claim_queued import claim_queued
from fsa_cli.ledger.records import ClaimedRun, Due
from fsa_cli.ledger.store import Ledger
from fsa_cli.processes.active_runs import ActiveRun, ActiveRuns
from fsa_cli.processes.pool import RunPool
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.tasks.definition import TaskDefinition
from support.ledgers import enqueue, make_node, now_ms, open_ledger, runs_of
from support.waiting import wait_until

WINDOW_MS = 60_000


def reconciled(ledger: Ledger, node: str, runs: ActiveRuns) -> list[str]:
    return maintenance.reconcile(ledger, node, runs.holds)


def test_a_claim_is_this_process_s_before_its_answer_is_here(ledger: Ledger) -> None:
    node, runs = make_node(ledger), ActiveRuns()
    due = [Due(f"task{n}", now_ms(ledger), f"{ledger.namespace}/{n}") for n in range(5)]
    queued = enqueue(ledger, "queued")

    with runs.claiming() as token:
        outcome = claim_due(ledger, node.id, due, window_ms=WINDOW_MS, token=token)
        assert reconciled(ledger, node.id, runs) == []
        active = runs.add(outcome.mine)
    with runs.claiming() as token:
        taken = claim_queued(ledger, node.id, {"queued": None}, most=5, token=token)
        assert reconciled(ledger, node.id, runs) == []
        runs.add(taken.runs)

    assert [each.run_id for each in taken.runs] == [queued]
    assert {each.claim.token for each in active} == {outcome.mine[0].token}
    assert reconciled(ledger, node.id, runs) == []
    runs.drop(active)
    assert len(reconciled(ledger, node.id, runs)) == 5
    assert {row.status for row in runs_of(ledger) if row.task != "queued"} == {"queued"}


def test_a_delivered_run_is_this_process_s_before_its_answer_is_here(ledger: Ledger) -> None:
    from fsa_cli.ledger.enqueue import NewRun, write_run

    node, runs = make_node(ledger), ActiveRuns()
    wanted = [
        NewRun.of(name, "{}", executor="celery", queue="mail", dispatched=True)
        for name in ("free", "locked")
    ]
    for each in wanted:
        write_run(ledger, each)
    locks = {"free": None, "locked": f"{ledger.namespace}/locked"}

    with runs.claiming() as token:
        taken = claim_dispatched(
            ledger, node.id, locks, [each.run_id for each in wanted], token=token
        )
        assert {each.token for each in taken} == {token}
        assert reconciled(ledger, node.id, runs) == []
    assert len(taken) == 2
    assert len(reconciled(ledger, node.id, runs)) == 2, "it was not added: it is a stray"


def test_a_claim_that_waits_for_another_transaction_is_not_queued_again(ledger: Ledger) -> None:
    """Its rows say that they began before the wait; by their age they were taken for strays."""
    if ledger.is_sqlite:
        return  # a writer there holds the whole file, so that nothing is claimed meanwhile
    node, runs = make_node(ledger), ActiveRuns()
    lock = f"{ledger.namespace}/b"
    due = [Due(name, now_ms(ledger), f"{ledger.namespace}/{name}") for name in ("a", "b", "c")]
    holds, ends = threading.Event(), threading.Event()

    def hold() -> None:
        with ledger.engine.begin() as connection:
            at_ms = now_ms(ledger)
            values = {
                "id": "held",
                "namespace": f"{ledger.namespace}x",
                "task": "b",
                "scheduled_ms": at_ms,
                "slot": "held",
                "kind": "manual",
                "status": "running",
                "arguments": "{}",
                "executor": "local",
                "attempt": 1,
                "not_before_ms": at_ms,
                "queued_ms": at_ms,
                "lock_key": lock,
            }
            connection.execute(insert(tables.run).values(**values))
            holds.set()
            ends.wait(20)
            connection.rollback()

    started: list[str] = []
    strays: list[str] = []
    reconciling = open_ledger(
        ledger.engine.url.render_as_string(hide_password=False), ledger.namespace
    )

    def reconcile_always() -> None:
        while not ends.is_set() or len(started) < len(due):
            strays.extend(reconciled(reconciling, node.id, runs))

    threads = [threading.Thread(target=target) for target in (hold, reconcile_always)]
    threads[0].start()
    assert holds.wait(10)
    threads[1].start()
    threading.Timer(1.5, ends.set).start()
    began_s = time.monotonic()
    with runs.claiming() as token:
        outcome = claim_due(ledger, node.id, due, window_ms=WINDOW_MS, token=token)
        active = runs.add(outcome.mine)
    for each in active:
        time.sleep(0.05)
        started.append(each.claim.run_id)
    for thread in threads:
        thread.join(20)
    reconciling.dispose()

    assert time.monotonic() - began_s > 1, "it did not wait"
    assert len(outcome.mine) == 3
    assert strays == []
    assert {row.status for row in runs_of(ledger)} == {"running"}


def test_a_run_that_is_claimed_a_second_time_here_leaves_the_pool_whole() -> None:
    """Its node was declared dead and has come back, while the thread of the first claim goes on."""
    go_on = threading.Event()
    ended: list[tuple[str, str]] = []

    def waits() -> None:
        go_on.wait(10)

    definition = TaskDefinition(function=waits, name="waits", commit=False)

    def result_of(run: Run) -> RunResult:
        from fsa_cli.runner.execute import failed_result

        waits()
        return failed_result(run, LookupError("no"))

    def end(active: ActiveRun, result: RunResult | None) -> None:
        assert result is not None
        ended.append((active.claim.token, result.status))

    pool = RunPool(1, lambda active: None, end)
    pool.open()
    pool.concurrency = 2
    for token in ("first", "second"):
        active = ActiveRun(ClaimedRun("run", token, "waits", 0, "manual", 1, "{}"))
        active.run = Run(task=definition, run_id="run", isolated=result_of)
        assert pool.submit(active)
    wait_until(lambda: len(pool.running) == 2)
    go_on.set()
    wait_until(lambda: len(ended) == 2)

    assert sorted(ended) == [("first", "failed"), ("second", "failed")]
    assert pool.load == 0
