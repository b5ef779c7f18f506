"""What cannot start does not stand before what can, however much of it there is."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from fsa_cli.ledger import dialects, queries
from fsa_cli.ledger.backfill import backfill, register_tasks
from fsa_cli.ledger.claim_due import claim_due
from fsa_cli.ledger.claim_queued import claim_queued
from fsa_cli.ledger.records import Due, ExpectedInstant, RegisteredTask
from fsa_cli.ledger.store import Ledger
from support.backends import Backend
from support.ledgers import enqueue, make_node, now_ms, open_ledger, runs_of

BIGINTS = ["scheduled_ms", "attempt", "not_before_ms", "commits", "queued_ms"]
TEXTS = ["id", "namespace", "task", "slot", "kind", "status", "arguments", "executor", "queue"]
COLUMNS = {**dict.fromkeys(BIGINTS, "bigint"), **dict.fromkeys(TEXTS, "text")}
MANY = 20_000
"""Of blocked runs; 100,000 on PostgreSQL."""
_ALL = text("SELECT max(arguments) FROM fsa_run")
_READS = 100
"""How long a claim may take, in times of `_ALL`: to look through all for each took thousands."""


def fill(ledger: Ledger, number: int, **values: Any) -> None:
    """Rows that stand before those of now."""
    at_ms = now_ms(ledger) - 1_000_000
    rows = []
    for n in range(number):
        run_id = uuid.uuid4().hex
        row = {
            "id": run_id,
            "namespace": ledger.namespace,
            "task": "blocked",
            "scheduled_ms": at_ms + n,
            "slot": run_id,
            "kind": "manual",
            "status": "queued",
            "arguments": "{}",
            "executor": "local",
            "queue": None,
            "attempt": 1,
            "not_before_ms": at_ms + n,
            "commits": 0,
            "queued_ms": at_ms,
        }
        rows.append({**row, **values})
    ledger.write(
        lambda connection: dialects.insert_rows(connection, ledger.sql, "fsa_run", COLUMNS, rows)
    )


def locks_of(ledger: Ledger) -> dict[str, str | None]:
    return {
        "blocked": f"{ledger.namespace}/blocked",
        **{f"group{n}": f"{ledger.namespace}/group" for n in range(3)},
        "free": None,
    }


def hold(ledger: Ledger, node: str) -> None:
    """A run of the task that is blocked goes on."""
    due = Due("blocked", now_ms(ledger), f"{ledger.namespace}/blocked")
    assert claim_due(ledger, node, [due], window_ms=60_000).mine


BLOCKED: dict[str, dict[str, Any]] = {
    "its lock is held": {},
    "its task is unknown here": {"task": "gone"},
    "another executor has it": {"executor": "celery"},
    "its time has not come": {"not_before_ms": 4_000_000_000_000},
}


@pytest.mark.slow
@pytest.mark.parametrize("values", BLOCKED.values(), ids=BLOCKED)
def test_a_free_run_starts_as_if_alone(ledger: Ledger, values: dict[str, Any]) -> None:
    """Here, and for a broker: what is blocked is read a few times, and not once for each other."""
    node = make_node(ledger).id
    hold(ledger, node)
    fill(ledger, 100_000 if ledger.engine.dialect.name == "postgresql" else MANY, **values)
    for dispatch in (None, ""):
        ratios: list[float] = []
        while not ratios or (ratios[-1] >= _READS and len(ratios) < 5):  # others may have the cores
            free = enqueue(ledger, "free")
            begun_s = time.monotonic()
            found = claim_queued(ledger, node, locks_of(ledger), most=5, dispatch=dispatch)
            claimed_s = time.monotonic()
            ledger.read(lambda connection: connection.scalar(_ALL))
            ratios.append((claimed_s - begun_s) / (time.monotonic() - claimed_s))
            assert [each.run_id for each in found.runs] == [free]
            assert found.waits is (not values)
        assert min(ratios) < _READS, ratios


def test_of_a_group_one_starts_and_keeps_no_other_task_waiting(ledger: Ledger) -> None:
    node = make_node(ledger).id
    for n in range(3):
        fill(ledger, 200, task=f"group{n}")
    free = enqueue(ledger, "free")

    found = claim_queued(ledger, node, locks_of(ledger), most=5)

    tasks = [each.task for each in found.runs]
    assert len(tasks) == 2
    assert free in [each.run_id for each in found.runs]
    assert found.waits


def test_of_runs_that_share_a_lock_the_oldest_is_first(ledger: Ledger) -> None:
    node = make_node(ledger).id
    fill(ledger, 20)

    (first,) = claim_queued(ledger, node, locks_of(ledger), most=5).runs

    assert first.scheduled_ms == min(row.scheduled_ms for row in runs_of(ledger))


def test_all_of_a_task_without_a_lock_are_claimed(ledger: Ledger) -> None:
    node = make_node(ledger).id
    hold(ledger, node)
    fill(ledger, 100)
    runs = {enqueue(ledger, "free") for _ in range(30)}

    claimed: set[str] = set()
    for _ in range(10):
        found = claim_queued(ledger, node, locks_of(ledger), most=7)
        assert len(found.runs) == min(7, 30 - len(claimed))
        claimed |= {each.run_id for each in found.runs}
        if not found.more:
            break

    assert claimed == runs


Work = Callable[[Ledger, str], object]


def _claim_queued(ledger: Ledger, node: str) -> object:
    enqueue(ledger, "free")
    fill(ledger, 60)
    hold(ledger, node)
    return claim_queued(ledger, node, locks_of(ledger), most=5)


def _backfill(ledger: Ledger, node: str) -> object:
    register_tasks(ledger, [RegisteredTask("free", "{}", "hash")])
    expected = [ExpectedInstant(Due("free", now_ms(ledger) - 1000))]
    return backfill(ledger, node, expected, now_ms(ledger), {"free": "hash"})


WORK: list[Work] = [
    _claim_queued,
    _backfill,
    lambda ledger, node: queries.find(ledger, enqueue(ledger, "free")[:8]),
    lambda ledger, node: queries.find(ledger, enqueue(ledger, "free")),
    lambda ledger, node: queries.vitals(ledger),
    lambda ledger, node: claim_due(
        ledger, node, [Due("free", now_ms(ledger) - k) for k in (0, 1)], window_ms=60_000
    ),
]


@pytest.fixture
def without_statistics(postgresql: Backend) -> Iterator[Ledger]:
    """A ledger as after a bulk load, pg_upgrade or a restore: many rows, and no statistics."""
    ledger = open_ledger(postgresql.url)
    ledger.create()
    postgresql.execute("ALTER TABLE fsa_run SET (autovacuum_enabled = false)")
    fill(ledger, 30_000, status="succeeded", task="free")
    yield ledger
    ledger.dispose()


def test_without_statistics_no_query_of_the_queue_reads_the_whole_table(
    without_statistics: Ledger,
) -> None:
    ledger = without_statistics
    node = make_node(ledger).id
    sent: list[tuple[str, Any]] = []

    def note(connection: Connection, cursor: Any, statement: str, values: Any, *_: Any) -> None:
        if "fsa_run" in statement and not statement.startswith("EXPLAIN"):
            sent.append((statement, values))

    for engine in (ledger.engine, ledger._single):
        event.listen(engine, "before_cursor_execute", note)
    for work in WORK:
        work(ledger, node)

    assert len(sent) > 10
    with ledger.engine.connect() as connection:
        for statement, values in list(sent):
            explained = connection.exec_driver_sql(f"EXPLAIN {statement}", values)
            plan = "\n".join(explained.scalars())
            assert "Seq Scan on fsa_run" not in plan, f"{statement}\n{plan}"


def test_an_id_is_found_by_its_beginning_whatever_was_typed(ledger: Ledger) -> None:
    run_id = enqueue(ledger, "free")

    for prefix in (run_id, run_id[:1], run_id[:8]):
        assert run_id in [row.id for row in queries.find(ledger, prefix)]
    for prefix in ("%", "_", f"{run_id}0", "x", "\u00e9"):
        assert queries.find(ledger, prefix) == []
