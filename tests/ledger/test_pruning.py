"""Ended runs go when their time is over, as their task or the settings say, and lock nobody."""

from __future__ import annotations

import dataclasses
import json

from sqlalchemy import insert, text, update

from fsa_cli.ledger import audit, pruning, tables
from fsa_cli.ledger.backfill import register_tasks
from fsa_cli.ledger.pruning import Pruning
from fsa_cli.ledger.records import RegisteredTask
from fsa_cli.ledger.store import Ledger
from support.ledgers import now_ms, runs_of

DAY_MS = 24 * 3600 * 1000
KEPT = Pruning(10 * DAY_MS, 40 * DAY_MS)


def put(ledger: Ledger, name: str, days: float, status: str = "succeeded", **more: object) -> None:
    """A run of the task *name*, as old as that."""
    then_ms = now_ms(ledger) - round(days * DAY_MS)
    run_id = f"{name}-{status}-{days}-{more.get('slot', '')}"
    row = {
        **dict.fromkeys(("scheduled_ms", "not_before_ms", "queued_ms", "finished_ms"), then_ms),
        "id": run_id,
        "slot": run_id,
        "namespace": ledger.namespace,
        "task": name,
        "kind": "manual",
        "status": status,
        "arguments": "{}",
        "executor": "local",
        "attempt": 1,
        **more,
    }
    ledger.write(lambda connection: connection.execute(insert(tables.run).values(row)))


def left(ledger: Ledger) -> set[str]:
    return {f"{row.task} {row.status}" for row in runs_of(ledger)}


def prune(ledger: Ledger, how: Pruning = KEPT) -> int:
    return dataclasses.replace(how).prune(ledger)


def test_a_task_goes_before_the_settings_and_failures_are_kept_for_longer(ledger: Ledger) -> None:
    said = {"short": {"keep_ms": DAY_MS}, "long": {"keep_ms": 90 * DAY_MS}, "plain": {}}
    # By what another process has registered: this one may not have these tasks.
    register_tasks(ledger, [RegisteredTask(n, json.dumps(each)) for n, each in said.items()])
    for name, days in (("short", 2), ("plain", 20), ("long", 60), ("gone", 20)):
        put(ledger, name, days)
        put(ledger, name, days, "failed")
        put(ledger, name, days, "queued")
        put(ledger, name, 0.5)
    put(ledger, "plain", 50, "missed")
    put(ledger, "plain", 50, "running", finished_ms=None)
    put(ledger, "waited", 50, "cancelled", finished_ms=now_ms(ledger))  # it ended just now

    assert prune(ledger) == 5

    kept = runs_of(ledger)
    of_status = {s: {row.task for row in kept if row.status == s} for s in ("failed", "queued")}
    assert of_status["failed"] == {"plain", "gone", "long"}
    assert of_status["queued"] == {"short", "plain", "long", "gone"}
    assert left(ledger) >= {"long succeeded", "waited cancelled", "plain running"}
    assert "plain missed" not in left(ledger)
    old = [row for row in kept if row.status == "succeeded" and "0.5" not in row.id]
    assert [row.task for row in old] == ["long"]


def test_the_row_of_an_instant_stays_until_no_scheduler_can_look_for_it(ledger: Ledger) -> None:
    register_tasks(ledger, [RegisteredTask("nightly", "{}", "hash")])
    mark_ms = now_ms(ledger) - 30 * DAY_MS
    ledger.write(
        lambda c: c.execute(
            update(tables.task)
            .where(tables.task.c.namespace == ledger.namespace)
            .values(watermark_ms=mark_ms)
        )
    )
    put(ledger, "nightly", 20, slot="S", kind="schedule")
    put(ledger, "nightly", 35, "skipped", slot="S", kind="schedule")
    put(ledger, "nightly", 20, "discarded")  # nothing has scheduled it

    assert prune(ledger) == 2
    assert left(ledger) == {"nightly succeeded"}


def test_more_than_one_look_takes_is_taken_by_the_next(ledger: Ledger) -> None:
    how = dataclasses.replace(KEPT)
    at_once, pruning._AT_ONCE = pruning._AT_ONCE, 2
    try:
        for n in range(5):
            put(ledger, "ship", 20 + n)
        assert [how.prune(ledger) for _ in range(4)] == [2, 2, 1, 0]
        # What was passed by, because it had not ended then, is found a day later.
        put(ledger, "late", 30)
        assert how.prune(ledger) == 0
        how._forget_ms = 0
        assert how.prune(ledger) == 1
    finally:
        pruning._AT_ONCE = at_once
    assert runs_of(ledger) == []


def test_it_waits_for_no_row_that_somebody_holds(ledger: Ledger) -> None:
    if ledger.is_sqlite:
        return  # a writer there waits for the writer before it
    register_tasks(ledger, [RegisteredTask("ship", "{}")])
    put(ledger, "ship", 20)
    put(ledger, "ship", 20, "running", finished_ms=None)
    with ledger.engine.connect() as other:
        for statement in (
            f"UPDATE fsa_run SET commits = 1 WHERE status = 'running' "
            f"AND namespace = '{ledger.namespace}'",
            f"UPDATE fsa_task SET paused_ms = 1 WHERE namespace = '{ledger.namespace}'",
        ):
            other.execute(text(statement))
        assert prune(ledger) == 1
        other.rollback()
    assert left(ledger) == {"ship running"}


def test_what_people_did_is_kept_for_a_year_and_as_long_as_any_run(ledger: Ledger) -> None:
    def put_audit(days: int) -> None:
        assert audit.begin(ledger, f"{days:032}", "ann", "pause", "tea", "")
        then_ms = now_ms(ledger) - days * DAY_MS
        ledger.write(
            lambda connection: connection.execute(
                update(tables.audit).where(tables.audit.c.id == f"{days:032}").values(at_ms=then_ms)
            )
        )

    def kept() -> list[int]:
        return [int(row.id) for row in audit.latest(ledger, None, 10)]

    for days in (1, 364, 366, 500, 900):
        put_audit(days)
    assert prune(ledger, Pruning(10 * DAY_MS, 800 * DAY_MS)) == 0
    assert kept() == [1, 364, 366, 500]
    register_tasks(ledger, [RegisteredTask("long", json.dumps({"keep_ms": 450 * DAY_MS}))])
    assert prune(ledger) == 0
    assert kept() == [1, 364, 366]
