"""Nodes and their leases: who is alive, and what becomes of the runs of the dead."""

from __future__ import annotations

import pytest

from fsa_cli.ledger import maintenance, nodes
from fsa_cli.ledger.backfill import register_tasks
from fsa_cli.ledger.claim_due import claim_due
from fsa_cli.ledger.claim_queued import claim_queued
from fsa_cli.ledger.finish import finish
from fsa_cli.ledger.nodes import Leases
from fsa_cli.ledger.records import ClaimedRun, Due, RegisteredTask, RunOutcome
from fsa_cli.ledger.store import Ledger
from support.ledgers import LEASE_MS, end_lease, make_node, now_ms, runs_of


def claimed_by(ledger: Ledger, node_id: str, name: str = "report") -> ClaimedRun:
    due = Due(name, now_ms(ledger), f"{ledger.namespace}/{name}")
    (mine,) = claim_due(ledger, node_id, [due], window_ms=5000).mine
    return mine


def test_a_node_lives_as_long_as_it_renews_its_lease(ledger: Ledger) -> None:
    node = make_node(ledger)
    assert nodes.alive(ledger) == [node.id]

    end_lease(ledger, node.id)
    assert nodes.alive(ledger) == []
    assert nodes.leases(ledger) == Leases((node.id,), schedulers=0)

    at_ms = nodes.renew(ledger, node.id, LEASE_MS)
    assert at_ms is not None
    assert abs(at_ms - now_ms(ledger)) < 5000
    assert nodes.alive(ledger) == [node.id]


def test_who_was_declared_dead_cannot_renew(ledger: Ledger) -> None:
    node = make_node(ledger)
    end_lease(ledger, node.id)

    maintenance.reap(ledger, [node.id])

    assert nodes.renew(ledger, node.id, LEASE_MS) is None
    assert nodes.leases(ledger).expired == ()


def test_a_node_that_has_renewed_meanwhile_is_not_declared_dead(ledger: Ledger) -> None:
    node = make_node(ledger)
    running = claimed_by(ledger, node.id)

    died = maintenance.reap(ledger, [node.id])

    assert (died.marked, died.queued) == ((), ())
    assert runs_of(ledger)[0].claim == running.token
    assert nodes.alive(ledger) == [node.id]


def test_a_dead_nodes_run_is_interrupted_unless_its_task_may_be_repeated(ledger: Ledger) -> None:
    register_tasks(
        ledger,
        [
            RegisteredTask("once", '{"on_crash": "mark"}'),
            RegisteredTask("again", '{"on_crash": "retry"}'),
        ],
    )
    node, other = make_node(ledger), make_node(ledger)
    once, again = claimed_by(ledger, node.id, "once"), claimed_by(ledger, node.id, "again")
    end_lease(ledger, node.id)

    died = maintenance.reap(ledger, [node.id])
    twice = maintenance.reap(ledger, [node.id])

    assert (died.marked, died.queued) == ((once.run_id,), (again.run_id,))
    assert (twice.marked, twice.queued) == ((), ())
    rows = {row.task: row for row in runs_of(ledger)}
    assert (rows["once"].status, rows["once"].lock_key) == ("interrupted", None)
    assert rows["once"].finished_ms is not None
    assert (rows["again"].status, rows["again"].attempt) == ("queued", 2)
    (taken,), *_ = claim_queued(ledger, other.id, {"again": again.lock_key}, most=1)
    assert (taken.run_id, taken.attempt) == (again.run_id, 2)


def test_the_end_that_a_dead_node_reports_does_not_count(ledger: Ledger) -> None:
    node = make_node(ledger)
    running = claimed_by(ledger, node.id)
    end_lease(ledger, node.id)
    maintenance.reap(ledger, [node.id])

    lost = finish(
        ledger,
        [
            RunOutcome(
                run_id=running.run_id,
                token=running.token,
                task="report",
                status="succeeded",
                started_ms=1,
                finished_ms=2,
            )
        ],
    )

    assert lost == {running.run_id}
    assert runs_of(ledger)[0].status == "interrupted"


def test_a_run_that_has_taken_effect_elsewhere_has_succeeded(ledger: Ledger) -> None:
    node = make_node(ledger)
    running = claimed_by(ledger, node.id)
    end_lease(ledger, node.id)
    assert maintenance.left_running(ledger, [node.id]) == [running.run_id]

    died = maintenance.reap(ledger, [node.id], lambda claims: set(claims))

    assert died.succeeded == (running.run_id,)
    assert runs_of(ledger)[0].status == "succeeded"


def test_a_run_that_ends_its_process_each_time_is_not_executed_for_ever(ledger: Ledger) -> None:
    register_tasks(ledger, [RegisteredTask("poison", '{"on_crash": "retry"}')])
    statuses = []
    claimed_by(ledger, make_node(ledger).id, "poison")
    for _ in range(25):
        row = runs_of(ledger)[0]
        statuses.append(row.status)
        if row.status == "queued":
            node = make_node(ledger)
            claim_queued(ledger, node.id, {"poison": None}, most=1)
        else:
            end_lease(ledger, row.node)
            maintenance.reap(ledger, [row.node])

    for _ in range(25):
        row = runs_of(ledger)[0]
        if row.status == "queued":
            claim_queued(ledger, make_node(ledger).id, {"poison": None}, most=1)
        elif row.status == "running":
            end_lease(ledger, row.node)
            maintenance.reap(ledger, [row.node])
    assert runs_of(ledger)[0].status == "interrupted"
    assert runs_of(ledger)[0].attempt == 20


def test_a_gap_in_a_lease_is_remembered(ledger: Ledger) -> None:
    """What came in the gap was covered by nobody; what came before and after was."""
    from sqlalchemy import select

    from fsa_cli.ledger.tables import node as table

    node = make_node(ledger)

    def covered_from() -> int:
        value = ledger.read(
            lambda c: c.scalar(select(table.c.covered_from_ms).where(table.c.id == node.id))
        )
        assert value is not None
        return value

    nodes.renew(ledger, node.id, LEASE_MS)
    assert covered_from() == node.started_ms
    end_lease(ledger, node.id)
    renewed_ms = nodes.renew(ledger, node.id, LEASE_MS)
    assert covered_from() == renewed_ms


def test_rows_that_a_node_does_not_know_of_are_queued_again(ledger: Ledger) -> None:
    node = make_node(ledger)
    known, stray = claimed_by(ledger, node.id, "known"), claimed_by(ledger, node.id, "stray")

    ours = {(known.run_id, known.token)}
    strays = maintenance.reconcile(ledger, node.id, lambda *key: key in ours)

    assert strays == [stray.run_id]
    assert {row.task: row.status for row in runs_of(ledger)} == {
        "known": "running",
        "stray": "queued",
    }


@pytest.mark.parametrize("state", ["stopped", "dead"])
def test_a_node_that_has_left_is_not_alive(ledger: Ledger, state: str) -> None:
    node = make_node(ledger)
    if state == "stopped":
        nodes.release(ledger, node.id)
    else:
        end_lease(ledger, node.id)
        maintenance.reap(ledger, [node.id])

    assert nodes.alive(ledger) == []
    assert nodes.leases(ledger).expired == ()


def test_a_run_that_was_broken_off_began_when_it_was_claimed(ledger: Ledger) -> None:
    mine = claimed_by(ledger, make_node(ledger).id)
    (claimed,) = runs_of(ledger)

    end = RunOutcome(
        run_id=mine.run_id,
        token=mine.token,
        task="report",
        status="cancelled",
        started_ms=None,
        finished_ms=claimed.started_ms + 5000,
    )
    assert finish(ledger, [end]) == set()

    (row,) = runs_of(ledger)
    assert (row.status, row.started_ms) == ("cancelled", claimed.started_ms)
    assert row.finished_ms == claimed.started_ms + 5000


def test_a_run_of_a_node_that_has_stopped_is_reaped_too(ledger: Ledger) -> None:
    node = make_node(ledger)
    left = claimed_by(ledger, node.id)
    living = claimed_by(ledger, make_node(ledger).id, "living")
    assert maintenance.left_running(ledger) == []
    nodes.release(ledger, node.id)

    ids = maintenance.left_running(ledger)
    died = maintenance.reap(ledger, [], left=ids)

    assert ids == [left.run_id]
    assert (died.nodes, died.marked) == ((node.id,), (left.run_id,))
    assert maintenance.left_running(ledger) == []
    rows = {row.id: row for row in runs_of(ledger)}
    assert (rows[left.run_id].status, rows[left.run_id].lock_key) == ("interrupted", None)
    assert rows[living.run_id].status == "running"


def test_a_reaper_that_was_cut_off_leaves_the_rest_to_the_next(ledger: Ledger) -> None:
    """It has declared the node dead, and nothing more."""
    from sqlalchemy import update

    from fsa_cli.ledger.tables import node as table

    node = make_node(ledger)
    left = claimed_by(ledger, node.id)
    dead = update(table).where(table.c.id == node.id).values(state="dead")
    ledger.write(lambda connection: connection.execute(dead))

    assert nodes.leases(ledger).expired == ()
    died = maintenance.reap(ledger, [], left=maintenance.left_running(ledger))

    assert died.marked == (left.run_id,)


def test_the_lock_of_a_time_out_is_free_when_its_process_has_ended(ledger: Ledger) -> None:
    node = make_node(ledger)
    late = claimed_by(ledger, node.id)
    end = RunOutcome(
        run_id=late.run_id,
        token=late.token,
        task="report",
        status="timed_out",
        started_ms=None,
        finished_ms=now_ms(ledger),
        keeps_lock=True,
    )
    finish(ledger, [end])
    maintenance.free_left_locks(ledger)
    assert runs_of(ledger)[0].lock_key is not None, "its thread goes on"

    nodes.release(ledger, node.id)
    maintenance.free_left_locks(ledger)

    assert runs_of(ledger)[0].lock_key is None


@pytest.mark.parametrize("options", ["", "no json", "[1]", "null", '"retry"'])
def test_options_that_cannot_be_read_make_no_run_a_retry(ledger: Ledger, options: str) -> None:
    register_tasks(ledger, [RegisteredTask("report", options)])
    node = make_node(ledger)
    left = claimed_by(ledger, node.id)
    end_lease(ledger, node.id)

    assert maintenance.reap(ledger, [node.id]).marked == (left.run_id,)
