"""A row whose change the database refuses keeps no other run from starting, and fails."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from fsa_cli.ledger import control, maintenance, queries
from fsa_cli.ledger.backfill import backfill, register_tasks
from fsa_cli.ledger.claim_dispatched import claim_dispatched
from fsa_cli.ledger.claim_queued import claim_next, claim_queued
from fsa_cli.ledger.dialects import is_lock_wait, transient
from fsa_cli.ledger.records import Due, ExpectedInstant, RegisteredTask
from fsa_cli.ledger.store import Ledger
from fsa_cli.processes.outage import is_outage
from fsa_cli.runner.retry import is_conflict
from support.ledgers import end_lease, enqueue, make_node, now_ms, runs_of

FREE: dict[str, str | None] = {"free": None}


@contextmanager
def refusing(ledger: Ledger, run_id: str, which: str = "") -> Iterator[None]:
    """A trigger of somebody's own raises when the run changes, *which* says into what."""
    kind = ledger.engine.dialect.name
    name = f"refuse_{uuid.uuid4().hex[:8]}"
    begin = f"CREATE TRIGGER {name} BEFORE UPDATE ON fsa_run FOR EACH ROW"
    when = f"NEW.id = '{run_id}' {which}"
    undo = f"DROP TRIGGER {name}"
    if kind == "postgresql":
        made = [
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'not this row'; END $$",
            f"{begin} WHEN ({when}) EXECUTE FUNCTION {name}()",
        ]
        undo = f"DROP FUNCTION {name}() CASCADE"
    elif kind == "sqlite":
        made = [f"{begin} WHEN {when} BEGIN SELECT RAISE(ABORT, 'not this row'); END"]
    else:
        raised = "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not this row'"
        made = [f"{begin} BEGIN IF {when} THEN {raised}; END IF; END"]

    def do(*statements: str) -> None:
        with ledger.engine.begin() as connection:
            for each in statements:
                connection.execute(text(each))

    do(*made)
    try:
        yield
    finally:
        do(undo)


@pytest.mark.parametrize("dispatch", [None, ""], ids=["here", "for a broker"])
def test_a_run_that_the_database_does_not_let_start_fails_and_the_others_start(
    ledger: Ledger, dispatch: str | None
) -> None:
    node = make_node(ledger).id
    poison, *free = [enqueue(ledger, "free") for _ in range(3)]
    to = "running" if dispatch is None else "handed_off"

    with refusing(ledger, poison, f"AND NEW.status = '{to}'"):
        found = claim_queued(ledger, node, FREE, most=5, dispatch=dispatch)

    assert {each.run_id for each in found.runs} == set(free)
    assert [(each.run_id, each.is_ended) for each in found.refused] == [(poison, True)]
    (row,) = [row for row in runs_of(ledger) if row.id == poison]
    assert (row.status, row.error_type) == ("failed", "ClaimRefused")
    assert "not this row" in row.error


def test_a_row_that_nobody_can_change_keeps_its_place_and_no_other_waiting(ledger: Ledger) -> None:
    node = make_node(ledger).id
    poison = enqueue(ledger, "free")

    with refusing(ledger, poison):
        assert claim_next(ledger, node, FREE, most=1, token="t") == []
        first = claim_queued(ledger, node, FREE, most=1)
        free = enqueue(ledger, "free")
        stuck = [each.run_id for each in first.refused if not each.is_ended]
        then = claim_queued(ledger, node, FREE, most=1, without=stuck)

    assert (first.runs, stuck) == ([], [poison])
    assert [each.run_id for each in then.runs] == [free]
    assert claim_queued(ledger, node, FREE, most=1).runs  # once it can be changed


def test_a_delivered_run_that_the_database_does_not_let_start_fails(ledger: Ledger) -> None:
    node = make_node(ledger).id
    poison, free = enqueue(ledger, "free"), enqueue(ledger, "free")
    claim_queued(ledger, node, FREE, most=5, dispatch="")

    with refusing(ledger, poison, "AND NEW.status = 'running'"):
        taken = claim_dispatched(ledger, node, FREE, [poison, free])

    assert [each.run_id for each in taken] == [free]
    assert {row.id: row.status for row in runs_of(ledger)}[poison] == "failed"


def test_a_lock_that_is_waited_for_in_vain_is_no_refusal(ledger: Ledger) -> None:
    """PyMySQL gives a SQLSTATE beside the number, which says nothing of it."""
    if ledger.is_sqlite:
        pytest.skip("SQLite locks no rows")
    run_id = enqueue(ledger, "free")
    shorter = "SET lock_timeout = '1s'"
    if ledger.engine.dialect.name != "postgresql":
        shorter = "SET innodb_lock_wait_timeout = 1"
    update = text("UPDATE fsa_run SET queue = 'x' WHERE id = :id").bindparams(id=run_id)
    with ledger.engine.begin() as holder, ledger.engine.connect() as other:
        holder.execute(update)
        other.execute(text(shorter))
        with pytest.raises(DBAPIError) as raised:
            other.execute(update)
        other.rollback()
        other.invalidate()

    assert is_lock_wait(raised.value)
    assert transient(raised.value)
    assert is_outage(raised.value)
    assert is_conflict(raised.value) is (ledger.engine.dialect.name != "postgresql")


def test_a_database_that_is_read_only_is_an_outage(ledger: Ledger) -> None:
    """As after a failover: what is sent again is taken."""
    if ledger.is_sqlite:
        pytest.skip("its file is what it is")
    run_id = enqueue(ledger, "free")
    read_only = "SET TRANSACTION READ ONLY"
    if ledger.engine.dialect.name != "postgresql":
        read_only = "START TRANSACTION READ ONLY"
    with ledger.engine.connect() as connection:
        connection.exec_driver_sql(read_only)
        with pytest.raises(DBAPIError) as raised:
            connection.execute(text(f"UPDATE fsa_run SET queue = 'x' WHERE id = '{run_id}'"))
        connection.invalidate()

    assert is_outage(raised.value)


@contextmanager
def checking(ledger: Ledger, table: str, column: str, name: str) -> Iterator[None]:
    """A CHECK of somebody's own refuses the rows of the task *name*."""
    constraint = f"check_{uuid.uuid4().hex[:8]}"
    with ledger.engine.begin() as connection:
        check = f"ADD CONSTRAINT {constraint} CHECK ({column} <> '{name}')"
        connection.execute(text(f"ALTER TABLE {table} {check}"))
    try:
        yield
    finally:
        with ledger.engine.begin() as connection:
            connection.execute(text(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}"))


def test_a_task_that_the_database_refuses_is_said_and_not_registered_for_ever(
    ledger: Ledger,
) -> None:
    if ledger.is_sqlite:
        pytest.skip("SQLite adds no CHECK to a table")
    name = f"refused_{uuid.uuid4().hex[:8]}"
    with checking(ledger, "fsa_task", "name", name):
        with pytest.raises(DBAPIError):
            register_tasks(ledger, [RegisteredTask(name, "{}", "hash")])
        with pytest.raises(DBAPIError):
            control.pause(ledger, [name], "me")


def test_an_instant_whose_row_is_refused_keeps_no_other_from_its_row(ledger: Ledger) -> None:
    if ledger.is_sqlite:
        pytest.skip("SQLite adds no CHECK to a table")
    node = make_node(ledger).id
    name = f"refused_{uuid.uuid4().hex[:8]}"
    hashes = {name: "hash", "report": "hash", "ship": "hash"}
    marks = register_tasks(ledger, [RegisteredTask(each, "{}", "hash") for each in hashes])
    at_ms = now_ms(ledger)
    expected = [ExpectedInstant(Due(each, at_ms)) for each in hashes]
    refused: dict[tuple[str, int], Exception] = {}

    with checking(ledger, "fsa_run", "task", name):
        backfill(ledger, node, expected, at_ms + 1, hashes, refused)

    assert sorted(row.task for row in runs_of(ledger)) == ["report", "ship"]
    assert list(refused) == [(name, at_ms)]
    rows = {row.name: row.watermark_ms for row in queries.tasks(ledger)}
    assert rows == {name: marks[name], "report": at_ms + 1, "ship": at_ms + 1}


def test_a_run_of_a_dead_node_that_cannot_be_decided_keeps_no_other_from_it(
    ledger: Ledger,
) -> None:
    node = make_node(ledger).id
    ids = sorted(enqueue(ledger, "free") for _ in range(3))
    claim_queued(ledger, node, FREE, most=5)
    end_lease(ledger, node)

    with refusing(ledger, ids[0]):
        died = maintenance.reap(ledger, [node])

    assert sorted(died.marked) == ids[1:]
    assert "not this row" in str(died.refused)
    assert maintenance.reap(ledger, []).marked == (ids[0],)
