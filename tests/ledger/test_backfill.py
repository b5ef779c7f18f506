"""The sweep: every instant gets a row, and the row says why nothing ran."""

from __future__ import annotations

import pytest

from fsa_cli.ledger import control, nodes
from fsa_cli.ledger.backfill import backfill, register_tasks
from fsa_cli.ledger.records import CatchUp, Due, ExpectedInstant, RegisteredTask
from fsa_cli.ledger.store import Ledger
from support.ledgers import end_lease, make_node, now_ms, runs_of


def expected(*at_ms: int, catch_up: CatchUp = "latest", passed: int = 0) -> list[ExpectedInstant]:
    return [ExpectedInstant(Due("report", at), catch_up, passed) for at in at_ms]


def statuses(ledger: Ledger) -> list[tuple[str, str]]:
    return [(row.kind, row.status) for row in runs_of(ledger)]


def test_what_came_while_a_node_knew_the_task_is_queued(ledger: Ledger) -> None:
    node = make_node(ledger, "report")
    at_ms = node.started_ms

    counts = backfill(ledger, node.id, expected(at_ms, at_ms + 1), at_ms + 1, {})

    assert counts == {"queued": 2}
    assert statuses(ledger) == [("schedule", "queued")] * 2
    assert backfill(ledger, node.id, expected(at_ms, at_ms + 1), at_ms + 1, {}) == {}
    assert len(runs_of(ledger)) == 2


@pytest.mark.parametrize(
    ("catch_up", "found"),
    [
        ("latest", [("schedule", "missed"), ("schedule", "missed"), ("catch_up", "queued")]),
        ("all", [("catch_up", "queued")] * 3),
        ("none", [("schedule", "missed")] * 3),
    ],
)
def test_what_came_while_nobody_did_is_missed_but_for_what_catch_up_says(
    ledger: Ledger, catch_up: CatchUp, found: list[tuple[str, str]]
) -> None:
    node = make_node(ledger, "report")
    before = [node.started_ms - minute * 60_000 for minute in (3, 2, 1)]

    backfill(ledger, node.id, expected(*before, catch_up=catch_up), node.started_ms, {})

    assert statuses(ledger) == found
    missed = [row for row in runs_of(ledger) if row.status == "missed"]
    assert all(
        row.error == "no scheduler was running and in touch with the ledger" for row in missed
    )


def test_what_is_older_than_the_window_is_one_row_that_says_how_many(ledger: Ledger) -> None:
    node = make_node(ledger, "report")

    backfill(ledger, node.id, expected(node.started_ms - 10**8, passed=400), node.started_ms, {})

    (row,) = runs_of(ledger)
    assert (row.status, row.error) == (
        "missed",
        "no scheduler was running and in touch with the ledger, for this and 399 more instants",
    )


def test_a_dead_nodes_instants_were_its_own_until_its_lease_ended(ledger: Ledger) -> None:
    """It knew the task, and did not live to claim: the instant is made up for, not missed."""
    dead = make_node(ledger, "report")
    at_ms = dead.started_ms
    end_lease(ledger, dead.id)  # a second ago
    node = make_node(ledger, "report")
    in_lease, after = at_ms - 2000, at_ms - 500
    end_at = [in_lease, after]
    _cover_from(ledger, dead.id, at_ms - 5000)

    backfill(ledger, node.id, expected(*end_at, catch_up="none"), node.started_ms, {})

    assert statuses(ledger) == [("schedule", "queued"), ("schedule", "missed")]


def test_a_node_that_did_not_know_the_task_covers_nothing(ledger: Ledger) -> None:
    other = make_node(ledger, "another")
    _cover_from(ledger, other.id, other.started_ms - 60_000)
    node = make_node(ledger, "report")

    backfill(
        ledger, node.id, expected(node.started_ms - 30_000, catch_up="none"), node.started_ms, {}
    )

    assert statuses(ledger) == [("schedule", "missed")]


def test_a_paused_tasks_instants_are_skipped_and_say_so(ledger: Ledger) -> None:
    node = make_node(ledger, "report")
    control.pause(ledger, ["report"], "ann")

    backfill(ledger, node.id, expected(node.started_ms), node.started_ms, {})

    (row,) = runs_of(ledger)
    assert (row.status, row.error) == ("skipped", "the task is paused")
    assert control.resume(ledger, ["report"]) == ["report"]
    assert control.resume(ledger, ["report"]) == []


def test_a_watermark_rises_and_belongs_to_the_schedule(ledger: Ledger) -> None:
    node = make_node(ledger, "report")
    began_ms = now_ms(ledger)
    first = register_tasks(ledger, [RegisteredTask("report", "{}", "hash-1")])["report"]
    assert first >= began_ms

    backfill(ledger, node.id, [], first + 50_000, {"report": "hash-1"})
    backfill(ledger, node.id, [], first + 40_000, {"report": "hash-1"})  # a replica that is behind
    backfill(
        ledger, node.id, [], first + 90_000, {"report": "hash-2"}
    )  # one that has another schedule

    assert (
        register_tasks(ledger, [RegisteredTask("report", "{}", "hash-1")])["report"]
        == first + 50_000
    )
    changed = register_tasks(ledger, [RegisteredTask("report", "{}", "hash-2")])["report"]
    assert first <= changed < first + 40_000, "a changed schedule begins now"


def test_ten_thousand_tasks_can_be_registered_and_backfilled(ledger: Ledger) -> None:
    names = [f"task{n}" for n in range(10_000)]
    known = [RegisteredTask(name, "{}", name) for name in names]
    node = nodes.register(ledger, "scheduler", 20_000, {name: name for name in names})

    register_tasks(ledger, known)
    rows = [ExpectedInstant(Due(name, node.started_ms)) for name in names[:3000]]
    counts = backfill(ledger, node.id, rows, node.started_ms, {name: name for name in names})

    assert counts == {"queued": 3000}
    assert len(register_tasks(ledger, known)) == 10_000


def _cover_from(ledger: Ledger, node_id: str, at_ms: int) -> None:
    from sqlalchemy import update

    from fsa_cli.ledger.tables import node

    ledger.write(
        lambda connection: connection.execute(
            update(node).where(node.c.id == node_id).values(covered_from_ms=at_ms)
        )
    )
