"""Rows that hold what nobody of ours wrote, and tables that have lost a key."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import update

from fsa_cli.console.source import Source
from fsa_cli.exceptions import ArgumentError, CheckFailed, LedgerUnusable
from fsa_cli.health import scheduler_checks
from fsa_cli.ledger import glance, maintenance, queries, tables
from fsa_cli.ledger.access import require
from fsa_cli.ledger.backfill import register_tasks
from fsa_cli.ledger.claim_due import claim_due
from fsa_cli.ledger.records import Due, RegisteredTask
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.time import instant_of
from fsa_cli.ledger.values import arguments_in, options_in
from fsa_cli.project.environments import Environment
from fsa_cli.project.settings import read
from fsa_cli.runs import scheduler_view
from fsa_cli.runs.task_problems import problems
from support.backends import Backend
from support.ledgers import end_lease, enqueue, make_node, now_ms, open_ledger, runs_of

MALFORMED = ["", "{", "[1, 2]", "null", "7", '"text"', "NaN", "[" * 100_000, "9" * 5000, "\x00"]


@pytest.mark.parametrize("text", MALFORMED, ids=range(len(MALFORMED)))
def test_arguments_that_are_no_json_object_are_an_error_of_that_run(text: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        arguments_in(text, "0123456789abcdef")

    assert "run 01234567" in raised.value.message
    assert len(raised.value.message) < 200


@pytest.mark.parametrize("text", MALFORMED, ids=range(len(MALFORMED)))
def test_options_that_are_no_json_object_are_none(text: str) -> None:
    assert options_in(text) == {}
    assert options_in('{"on_crash": "retry"}') == {"on_crash": "retry"}


@pytest.mark.parametrize("ms", [2**63 - 1, -(2**63), 10**15])
def test_an_instant_out_of_range_is_the_nearest_that_there_is(ms: int) -> None:
    edge = (datetime.max if ms > 0 else datetime.min).replace(tzinfo=UTC)
    assert instant_of(ms) == edge


@pytest.mark.parametrize("ms", [2**63 - 1, -(2**63)])
def test_times_out_of_range_are_shown_and_end_no_report(ledger: Ledger, ms: int) -> None:
    node = make_node(ledger)
    run_id = enqueue(ledger, "report")
    for table, id_column, values in (
        (tables.run, tables.run.c.id == run_id, {"not_before_ms": ms, "queued_ms": ms}),
        (tables.node, tables.node.c.id == node.id, {"lease_until_ms": ms, "started_ms": ms}),
    ):
        changing = update(table).where(id_column).values(**values)
        ledger.write(lambda connection, it=changing: connection.execute(it))  # type: ignore[misc]

    seen = glance.glance(ledger)
    if ms > 0:
        (shown,) = scheduler_view.node_rows(seen)
        assert str(shown["lease"]).startswith("1067")
        return
    assert [each for each in problems(seen) if "1067" in each.said]
    with pytest.raises(CheckFailed, match="the oldest for 1067"):
        scheduler_checks.queue(queries.vitals(ledger), {"report"})


def test_a_dead_nodes_run_is_decided_whatever_its_tasks_options_are(ledger: Ledger) -> None:
    node = make_node(ledger)
    register_tasks(ledger, [RegisteredTask("report", "{", "hash")])
    claim_due(ledger, node.id, [Due("report", now_ms(ledger))], window_ms=5000)
    end_lease(ledger, node.id)

    maintenance.reap(ledger, [node.id])

    assert [row.status for row in runs_of(ledger)] == ["interrupted"]


def test_a_running_row_without_a_node_is_reaped_and_names_no_node(ledger: Ledger) -> None:
    node = make_node(ledger)
    claim_due(ledger, node.id, [Due("report", now_ms(ledger))], window_ms=5000)
    forgetting = update(tables.run).values(node=None)
    forgetting = forgetting.where(tables.run.c.namespace == ledger.namespace)
    ledger.write(lambda connection: connection.execute(forgetting))

    died = maintenance.reap(ledger, [])

    assert [row.status for row in runs_of(ledger)] == ["interrupted"]
    assert (died.nodes, len(died.marked)) == ((), 1)


@pytest.mark.parametrize("mark_ms", [2**63 - 1, -(2**63)])
def test_a_watermark_out_of_range_keeps_no_instant_from_being_run(
    ledger: Ledger, mark_ms: int
) -> None:
    known = [RegisteredTask("report", "{}", "hash")]
    register_tasks(ledger, known)
    statement = (
        update(tables.task)
        .where(tables.task.c.namespace == ledger.namespace)
        .values(watermark_ms=mark_ms)
    )
    ledger.write(lambda connection: connection.execute(statement))

    assert 0 <= register_tasks(ledger, known)["report"] <= now_ms(ledger)


DROPPED = {
    "postgresql": "ALTER TABLE fsa_run DROP CONSTRAINT {}",
    "mariadb": "ALTER TABLE fsa_run DROP INDEX {}",
}


@pytest.mark.parametrize("name", DROPPED)
@pytest.mark.parametrize("key", ["fsa_run_instant", "fsa_run_lock"])
def test_a_key_that_was_dropped_is_noticed(
    name: str, key: str, request: pytest.FixtureRequest
) -> None:
    backend: Backend = request.getfixturevalue(name)
    ledger = open_ledger(backend.url)
    ledger.create()
    ledger.check_keys()
    backend.execute(DROPPED[name].format(key))

    with pytest.raises(LedgerUnusable, match=key):
        ledger.check_keys()
    ledger.dispose()


def test_the_keys_of_sqlite_are_found(sqlite: Backend) -> None:
    ledger = open_ledger(sqlite.url)
    ledger.create()
    ledger.check_keys()
    ledger.dispose()


def test_a_table_that_was_dropped_is_named_and_is_not_a_ledger_that_never_was(
    tmp_path: Path,
) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    with pytest.raises(LedgerUnusable, match="there is no ledger of runs yet"):
        require(ledger)
    ledger.create()
    require(ledger)
    ledger.write(lambda connection: connection.exec_driver_sql("DROP TABLE fsa_run"))

    with pytest.raises(LedgerUnusable, match="the ledger has no table fsa_run") as caught:
        require(ledger)

    assert "fsa scheduler init" in (caught.value.hint or "")
    source = Source(ledger, {}, read(directory=tmp_path), Environment())
    with pytest.raises(LedgerUnusable, match="the ledger has no table fsa_run"):
        source.is_there()  # the console says so too
    ledger.dispose()
