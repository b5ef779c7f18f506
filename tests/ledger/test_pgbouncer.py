"""The ledger behind PgBouncer in transaction mode, where a session is everybody's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from fastapi_sqlalchemy import Database
from fsa_cli.ledger import nodes
from fsa_cli.ledger.backfill import backfill, register_tasks
from fsa_cli.ledger.claim_due import claim_due
from fsa_cli.ledger.claim_queued import claim_queued
from fsa_cli.ledger.finish import finish
from fsa_cli.ledger.location import ledger_of
from fsa_cli.ledger.records import Due, ExpectedInstant, RegisteredTask, RunOutcome
from fsa_cli.ledger.store import Ledger
from fsa_cli.project.settings import read
from support.ledgers import enqueue, make_node, now_ms, runs_of
from support.pgbouncer import PgBouncer


@pytest.fixture
def pooled(
    pgbouncer: PgBouncer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ledger]:
    """A ledger behind the pooler, as the tool opens it."""
    monkeypatch.chdir(tmp_path)
    db = Database("pooled")
    db.configure(db_url=pgbouncer.url)
    ledger = ledger_of({"default": db}, read())
    ledger.create()
    yield ledger
    ledger.dispose()
    db.dispose()


def use(ledger: Ledger, name: str) -> None:
    """Every kind of statement that a scheduler sends."""
    node = make_node(ledger, name)
    register_tasks(ledger, [RegisteredTask(name, "{}", "hash")])
    for n in range(8):  # psycopg prepares what it has executed five times
        due = Due(name, now_ms(ledger) - n, f"{ledger.namespace}/{name}")
        claimed = claim_due(ledger, node.id, [due], window_ms=60_000).mine
        enqueue(ledger, name)
        claimed += claim_queued(ledger, node.id, {name: None}, most=5).runs
        at_ms = now_ms(ledger)
        ended = [
            RunOutcome(
                run_id=each.run_id,
                token=each.token,
                task=name,
                status="succeeded",
                started_ms=at_ms,
                finished_ms=at_ms,
            )
            for each in claimed
        ]
        assert finish(ledger, ended) == set()
        expected = ExpectedInstant(Due(name, now_ms(ledger) - 1000 - n))
        backfill(ledger, node.id, [expected], at_ms, {name: "hash"})
        assert nodes.renew(ledger, node.id, 20_000) is not None


def test_nothing_of_a_session_is_needed_and_nothing_is_left_in_one(
    pooled: Ledger, pgbouncer: PgBouncer
) -> None:
    ready = threading.Barrier(6)

    def one(n: int) -> None:
        ready.wait()
        use(pooled, f"task{n}")

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(one, range(6)))

    assert {row.status for row in runs_of(pooled)} <= {"succeeded", "queued", "missed"}
    for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        assert pgbouncer.settings(name) == {"0"}


def test_a_statement_of_another_client_is_not_ended_by_the_ledgers_limits(
    pooled: Ledger, pgbouncer: PgBouncer
) -> None:
    make_node(pooled)
    pooled.write(lambda connection: connection.execute(text("SELECT 1")))

    assert pgbouncer.settings("transaction_isolation") == {"read committed"}
    assert pgbouncer.settings("statement_timeout") == {"0"}


def test_transactions_of_several_statements_are_bounded(pooled: Ledger) -> None:
    found = pooled.write(
        lambda connection: [
            connection.scalar(text(f"SHOW {name}"))
            for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        ]
    )

    assert found == ["15s", "14s", "4s"]


def test_a_ledger_on_the_apps_server_is_connected_as_the_app_is(
    pgbouncer: PgBouncer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ledger_url` has no `connect_args` of its own: TLS and time limits are the app engine's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSA_LEDGER_URL", pgbouncer.backend.url)
    db = Database("app")
    wanted = {"application_name": "as the app", "connect_timeout": 7}
    db.configure(db_url=pgbouncer.backend.url, engine_args={"connect_args": wanted})

    ledger = ledger_of({"default": db}, read())
    with ledger.engine.connect() as connection:
        inner = connection.connection.driver_connection
        assert isinstance(inner, psycopg.Connection)
        assert inner.info.get_parameters()["application_name"] == "as the app"
        assert inner.info.get_parameters()["connect_timeout"] == "7"
        assert inner.prepare_threshold is None
    ledger.dispose()
