"""A unique key: of all who ask for it at once one gets a run, and the others that run."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event, select, text, update
from sqlalchemy.exc import DBAPIError

from fsa_cli.exceptions import LedgerUnusable
from fsa_cli.ledger import tables
from fsa_cli.ledger.access import reached
from fsa_cli.ledger.claim_queued import claim_queued
from fsa_cli.ledger.dialects import WAIT_S, transient
from fsa_cli.ledger.enqueue import insert_run, write_run, write_runs
from fsa_cli.ledger.finish import finish
from fsa_cli.ledger.pruning import Pruning
from fsa_cli.ledger.records import NewRun, RunOutcome
from fsa_cli.ledger.store import Ledger
from support.ledgers import make_node, now_ms, open_ledger, runs_of

PROCESSES, EACH = 8, 125


def wanted(name: str = "order:17", kept_ms: int | None = None, task: str = "ship") -> NewRun:
    return NewRun.of(
        *(task, "{}"),
        executor="local",
        queue=None,
        dispatched=False,
        unique=name,
        kept_ms=kept_ms,
    )


def ask(url: str, namespace: str, own: bool, told: Any) -> None:
    """Ask for one key again and again; every fifth transaction of the app's is rolled back."""
    ledger = open_ledger(url, namespace)
    got: set[str] = set()
    for n in range(EACH):
        if own:
            got.add(write_run(ledger, wanted()))
            continue
        with ledger.engine.connect() as connection:
            try:
                run_id = insert_run(ledger, connection, wanted()).run_id
            except DBAPIError as exc:  # InnoDB: those who wait for one that is rolled back
                if not transient(exc):
                    raise
                continue
            if n % 5 == 0:
                connection.rollback()
            else:
                connection.commit()
                got.add(run_id)
    ledger.dispose()
    told.put(got)


def test_a_thousand_requests_of_one_key_from_eight_processes_make_one_run(ledger: Ledger) -> None:
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    url = ledger.engine.url.render_as_string(hide_password=False)
    ledger.dispose()
    # SQLite's ledger is never part of a transaction of the app's.
    asking = [
        context.Process(target=ask, args=(url, ledger.namespace, ledger.is_sqlite or n % 2, told))
        for n in range(PROCESSES)
    ]
    for each in asking:
        each.start()
    got = [told.get(timeout=300) for _ in asking]
    for each in asking:
        each.join()

    assert [each.exitcode for each in asking] == [0] * PROCESSES
    (row,) = runs_of(ledger)
    assert set().union(*got) == {row.id}


def end(ledger: Ledger, status: str = "succeeded") -> None:
    """Execute what waits, and have it ended a second ago."""
    (claimed,) = claim_queued(ledger, make_node(ledger).id, {"ship": None}, most=1).runs
    ended_ms = now_ms(ledger) - 1000
    told = RunOutcome(
        run_id=claimed.run_id,
        token=claimed.token,
        task=claimed.task,
        status=status,
        started_ms=ended_ms,
        finished_ms=ended_ms,
    )
    assert finish(ledger, [told]) == set()


def test_a_run_has_its_key_until_its_end_and_for_as_long_as_was_asked(ledger: Ledger) -> None:
    first = write_run(ledger, wanted())
    assert write_run(ledger, wanted()) == first
    assert write_run(ledger, wanted("another")) not in (first, None)
    assert write_run(ledger, wanted(task="other")) != first
    claim_queued(ledger, make_node(ledger).id, {"other": None}, most=1)
    ledger.write(
        lambda c: c.execute(
            update(tables.run)
            .where(tables.run.c.namespace == ledger.namespace, tables.run.c.id != first)
            .values(status="cancelled", finished_ms=1)
        )
    )

    end(ledger)  # and no process has freed the key
    second = write_run(ledger, wanted(kept_ms=3_600_000))
    assert second != first
    end(ledger, "failed")
    assert write_run(ledger, wanted()) == second

    ledger.write(
        lambda c: c.execute(
            update(tables.run).where(tables.run.c.id == second).values(finished_ms=5)
        )
    )
    assert write_run(ledger, wanted()) not in (first, second)


def test_a_key_goes_with_the_run_that_is_pruned(ledger: Ledger) -> None:
    first = write_run(ledger, wanted(kept_ms=10**13))
    old = {"status": "succeeded", "not_before_ms": 1, "finished_ms": 1}
    ledger.write(
        lambda c: c.execute(update(tables.run).where(tables.run.c.id == first).values(**old))
    )

    assert Pruning().prune(ledger) == 0  # it has its key until then
    ledger.write(lambda c: c.execute(update(tables.key).values(kept_ms=5)))
    assert Pruning().prune(ledger) == 1
    keys = select(tables.key.c.run).where(tables.key.c.namespace == ledger.namespace)
    assert ledger.read(lambda c: list(c.scalars(keys))) == []


def test_what_a_transaction_of_the_app_sees_may_be_older_than_the_end_of_the_run(
    ledger: Ledger,
) -> None:
    """MySQL's REPEATABLE READ, and PostgreSQL's: the key is free all the same."""
    if ledger.is_sqlite:
        return
    first = write_run(ledger, wanted())
    with ledger.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        assert connection.scalar(text("SELECT COUNT(*) FROM fsa_run")) is not None
        end(ledger)
        second = insert_run(ledger, connection, wanted()).run_id
        assert second != first
        assert insert_run(ledger, connection, wanted()).run_id == second
        connection.rollback()
    assert [row.id for row in runs_of(ledger)] == [first]
    assert write_run(ledger, wanted()) not in (first, second)


def test_a_key_that_an_open_transaction_has_taken_is_waited_for_no_longer_than_a_row(
    ledger_on_postgresql: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be that of the very request that asks again."""
    ledger = ledger_on_postgresql
    assert ledger.sql.limits is not None
    limits = ledger.sql.limits.replace(f"'{WAIT_S}s'", "'1s'")
    monkeypatch.setattr(ledger, "sql", replace(ledger.sql, limits=limits))
    monkeypatch.setattr("fsa_cli.ledger.enqueue.WAIT_S", 1)

    with ledger.engine.begin() as connection:
        first = insert_run(ledger, connection, wanted()).run_id
        tried: list[str] = []
        event.listen(ledger.engine, "before_cursor_execute", lambda *given: tried.append(given[2]))
        with pytest.raises(LedgerUnusable, match="refuses") as caught, reached(ledger):
            write_run(ledger, wanted())
        assert sum("fsa_key (" in each for each in tried) == 1

    assert caught.value.hint is not None
    assert "commit it first" in caught.value.hint
    assert write_run(ledger, wanted()) == first


def test_many_keys_are_taken_at_once_and_each_decides_for_itself(ledger: Ledger) -> None:
    ended, waits = write_run(ledger, wanted("a", kept_ms=1)), wanted("b")
    end(ledger)
    write_run(ledger, waits)
    asked = [wanted(name) for name in ("d", "a", "c", "b", "d")]
    sent: list[str] = []

    def note(*given: Any) -> None:
        if "fsa_key" in given[2] and given[2].startswith("INSERT"):
            sent.append(given[2])

    for engine in (ledger.engine, ledger._single):
        event.listen(engine, "before_cursor_execute", note)
    got = write_runs(ledger, asked)

    assert got == [asked[0].run_id, asked[1].run_id, asked[2].run_id, waits.run_id, asked[0].run_id]
    assert len(sent) <= 2  # the second for the key of a run that has ended
    there = {row.id for row in runs_of(ledger)}
    assert there == {ended, waits.run_id, *(each.run_id for each in asked[:3])}


def ask_for_many(url: str, namespace: str, turn: int, told: Any) -> None:
    """Ask for many keys in an order of its own."""
    ledger = open_ledger(url, namespace)
    names = [f"order:{n}" for n in range(200)]
    asked = [wanted(name) for name in (names if turn % 2 else names[::-1])]
    told.put(dict(zip((each.unique for each in asked), write_runs(ledger, asked), strict=True)))
    ledger.dispose()


def test_many_keys_of_several_processes_have_one_run_each(ledger: Ledger) -> None:
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    url = ledger.engine.url.render_as_string(hide_password=False)
    ledger.dispose()
    asking = [
        context.Process(target=ask_for_many, args=(url, ledger.namespace, n, told))
        for n in range(4)
    ]
    for each in asking:
        each.start()
    got = [told.get(timeout=300) for _ in asking]
    for each in asking:
        each.join()

    assert [each.exitcode for each in asking] == [0] * 4
    assert got[0] == got[1] == got[2] == got[3]
    assert {row.id for row in runs_of(ledger)} == set(got[0].values())
