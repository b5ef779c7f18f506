"""Of the runs that wait the highest goes first, those of one priority by age; none is starved."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import bindparam, event, update

from fsa_cli.ledger import candidates, tables
from fsa_cli.ledger.claim_queued import claim_queued
from fsa_cli.ledger.enqueue import write_run, write_runs
from fsa_cli.ledger.records import NewRun
from fsa_cli.ledger.store import Ledger
from support.backends import Backend
from support.ledgers import make_node, open_ledger, runs_of

LEVELS = (-100, -1, 0, 1, 100)
LOCKS: dict[str, str | None] = {"ship": None}


def wanted(priority: int = 0, **more: Any) -> NewRun:
    return NewRun.of(
        *("ship", "{}"),
        executor="local",
        queue=None,
        dispatched=False,
        priority=priority,
        **more,
    )


@pytest.fixture(autouse=True)
def same_chance() -> None:
    random.seed(20_261_128)


def test_the_highest_goes_first_and_those_of_one_priority_by_age(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "_BY_AGE", 0.0)
    node = make_node(ledger).id
    asked = [(n, level) for n in range(3) for level in LEVELS]
    ids = {write_run(ledger, wanted(level, at_ms=1000 + n)): (-level, n) for n, level in asked}
    later = {write_run(ledger, wanted(100, wait_ms=3_600_000)) for _ in range(60)}

    taken = []
    while found := claim_queued(ledger, node, LOCKS, most=1).runs:
        taken += [ids[each.run_id] for each in found]
    # The claim of one takes either of the two oldest, so that replicas do not collide.
    assert [level for level, _ in taken] == sorted(level for level, _ in ids.values())
    assert sorted(taken) == sorted(ids.values())
    assert {row.id for row in runs_of(ledger) if row.status == "queued"} == later


def test_four_workers_take_what_is_urgent_first_and_leave_nothing(ledger: Ledger) -> None:
    for level in (0, 50, 10):
        write_runs(ledger, [wanted(level) for _ in range(1700)])
    priority = {row.id: row.priority for row in runs_of(ledger)}
    taken: list[int] = []
    twice = threading.Lock()

    def work() -> None:
        node = make_node(ledger).id
        with ledger.keeping_a_connection():
            while found := claim_queued(ledger, node, LOCKS, most=10):
                if not found.runs and not found.more:
                    return
                with twice:
                    taken.extend(priority.pop(each.run_id) for each in found.runs)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()

    assert priority == {}
    # One look of ten goes by age: what is not urgent comes too, but slowly.
    assert taken[:1700].count(50) > 1200
    assert taken[:1700].count(0) > 0
    assert taken[-1000:].count(50) < 100


def test_a_priority_that_others_wrote_beyond_the_bounds_is_claimed_and_costs_no_query_of_its_own(
    ledger: Ledger,
) -> None:
    node = make_node(ledger).id
    ids = [write_run(ledger, wanted()) for _ in range(500)]
    beyond = [{"b_id": run_id, "beyond": 101 + n} for n, run_id in enumerate(ids)]
    beyond[:2] = [{**beyond[0], "beyond": 2**31 - 1}, {**beyond[1], "beyond": -(2**31)}]
    changing = update(tables.run).where(tables.run.c.id == bindparam("b_id"))
    changing = changing.values(priority=bindparam("beyond"))
    ledger.write(lambda connection: connection.execute(changing, beyond))

    sent: list[str] = []

    def note(connection: object, cursor: object, statement: str, *more: object) -> None:
        sent.append(statement)

    engine = ledger.engine if ledger.is_sqlite else ledger._single
    event.listen(engine, "before_cursor_execute", note)
    assert claim_queued(ledger, node, {"another": None}, most=10).runs == []
    assert len(sent) < 20
    event.remove(engine, "before_cursor_execute", note)
    taken = []
    while found := claim_queued(ledger, node, LOCKS, most=100).runs:
        taken += [each.run_id for each in found]
    assert sorted(taken) == sorted(ids)


def test_what_waits_for_its_time_stands_before_nobody(ledger: Ledger) -> None:
    write_runs(ledger, [wanted(100, wait_ms=3_600_000) for _ in range(500)])
    due = write_run(ledger, wanted(-100))

    (claimed,) = claim_queued(ledger, make_node(ledger).id, LOCKS, most=5).runs

    assert claimed.run_id == due


@pytest.fixture
def fresh(postgresql: Backend) -> Iterator[Ledger]:
    ledger = open_ledger(postgresql.url)
    ledger.create()
    yield ledger
    ledger.dispose()


def test_without_statistics_a_claim_reads_what_it_claims(
    fresh: Ledger, postgresql: Backend
) -> None:
    """Of 20,000 that wait, and 20,000 whose time has not come, no plan reads more than a few."""
    postgresql.execute("ALTER TABLE fsa_run SET (autovacuum_enabled = false)")
    write_runs(fresh, [wanted(1) for _ in range(20_000)])
    write_runs(fresh, [wanted(2, wait_ms=3_600_000) for _ in range(20_000)])
    write_run(fresh, wanted(0))
    node = make_node(fresh).id

    for by_age in (True, False):
        with fresh.engine.connect() as connection:
            for name, given in (("levels", {}), ("looking", {"executor": "local", "number": 50})):
                made = (
                    candidates._levels(fresh.sql)
                    if name == "levels"
                    else candidates._looking(fresh.sql, False, "" if by_age else "=")
                )
                compiled = made.compile(dialect=connection.dialect)
                values = {"namespace": fresh.namespace, "priority": 1, **given}
                plan = connection.exec_driver_sql(
                    f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {compiled}", values
                ).scalar()
                shown = plan[0]["Plan"]
                assert shown["Shared Hit Blocks"] + shown["Shared Read Blocks"] < 120, plan
    sent: list[tuple[str, Any]] = []
    event.listen(
        fresh._single, "before_cursor_execute", lambda *given: sent.append((given[2], given[3]))
    )
    assert len(claim_queued(fresh, node, LOCKS, most=50).runs) == 50
    assert len(claim_queued(fresh, node, {"ship": "shop/ship"}, most=50).runs) == 1
    updates = [each for each in sent if each[0].startswith("UPDATE")]
    assert len(updates) == 2
    with fresh.engine.connect() as connection:
        for statement, given in updates:
            plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {statement}", given).scalars())
            assert "fsa_run_pkey" in plan
            # What is claimed is named; nothing looks through all that waits.
            assert not any(f" on {name}" in plan for name in ("fsa_run_priority", "fsa_run_queue"))
            assert "Seq Scan on fsa_run" not in plan
