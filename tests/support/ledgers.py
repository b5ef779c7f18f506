"""`ledger`: an empty ledger, a namespace of its own, on each of the three backends."""

import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Connection, Row, select, text

from fsa_cli.ledger import nodes, tables
from fsa_cli.ledger.enqueue import write_run
from fsa_cli.ledger.records import NewRun
from fsa_cli.ledger.store import Ledger
from support.databases import MariaDBServer, PostgreSQLServer

#: Longer than a busy machine stands still in the middle of a test.
LEASE_MS = 300_000
OLD_INSERT = """
    INSERT INTO fsa_run (attempt, commits, queued_ms, id, namespace, task, slot, kind, arguments,
        scheduled_ms, status, executor, queue, not_before_ms)
    SELECT 1, 0, {now}, 'old', '{namespace}', 'ship', 'old', 'manual', '{{}}', {now}, 'queued',
        'local', NULL, {now}
    """


def open_ledger(url: str, namespace: str | None = None) -> Ledger:
    """A ledger on its own engine, as another process would have it."""
    options: dict[str, Any] = {"connect_args": {"check_same_thread": False}}
    if not url.startswith("sqlite"):
        options = {"isolation_level": "READ COMMITTED"}
    engine = sqlalchemy.create_engine(url, pool_size=8, **options)
    single = None
    if not url.startswith("sqlite"):
        single = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    return Ledger(engine, namespace or uuid.uuid4().hex, "here", single)


def make_like_before(ledger: Ledger) -> None:
    """Create its tables as the version before has made them, with a run that waits."""
    ledger.create()
    on = " ON fsa_run" if ledger.engine.dialect.name in ("mysql", "mariadb") else ""
    for statement in (
        f"DROP INDEX fsa_run_priority{on}",
        "ALTER TABLE fsa_run DROP COLUMN priority",
        "DROP TABLE fsa_key",
        "DROP TABLE fsa_attempt",
        "DROP TABLE fsa_schema",
    ):
        ledger.write(partial(Connection.execute, statement=text(statement)))
    insert_as_before(ledger)


def insert_as_before(ledger: Ledger) -> None:
    """Insert a run that is asked for, as the version before does."""
    statement = OLD_INSERT.format(now=ledger.sql.now_ms, namespace=ledger.namespace)
    ledger.write(lambda connection: connection.execute(text(statement)))


def create_tables(url: str) -> None:
    ledger = open_ledger(url)
    ledger.create()
    ledger.dispose()


def runs_of(ledger: Ledger) -> list[Row[Any]]:
    """Every run of its namespace, by task and instant."""
    return ledger.read(
        lambda connection: list(
            connection.execute(
                select(tables.run)
                .where(tables.run.c.namespace == ledger.namespace)
                .order_by(tables.run.c.task, tables.run.c.scheduled_ms)
            )
        )
    )


def now_ms(ledger: Ledger) -> int:
    return ledger.read(ledger.now_ms)


def make_node(ledger: Ledger, *tasks: str, lease_ms: int = LEASE_MS) -> nodes.RegisteredNode:
    return nodes.register(ledger, "scheduler", lease_ms, dict.fromkeys(tasks, "hash"))


def enqueue(ledger: Ledger, task: str, arguments: str = "{}", by: str | None = None) -> str:
    """Queue a run for any process; its id."""
    wanted = NewRun.of(task, arguments, executor="local", queue=None, dispatched=False, by=by)
    write_run(ledger, wanted)
    return wanted.run_id


def end_lease(ledger: Ledger, node_id: str) -> None:
    """Have a node's lease end a second ago, as if it had died before."""

    def work(connection: sqlalchemy.Connection) -> None:
        connection.execute(
            sqlalchemy.update(tables.node)
            .where(tables.node.c.id == node_id)
            .values(lease_until_ms=ledger.now_ms(connection) - 1000)
        )

    ledger.write(work)


@pytest.fixture(scope="session")
def _ledger_on_postgresql(postgresql_server: PostgreSQLServer) -> Iterator[str]:
    with postgresql_server.database() as backend:
        create_tables(backend.url)
        yield backend.url


@pytest.fixture(scope="session")
def _ledger_on_mariadb(mariadb_server: MariaDBServer) -> Iterator[str]:
    with mariadb_server.database() as backend:
        create_tables(backend.url)
        yield backend.url


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    """Each of the three backends; the namespace is the test's own."""
    if request.param == "sqlite":
        made = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
        made.create()
    else:
        made = open_ledger(request.getfixturevalue(f"_ledger_on_{request.param}"))
    yield made
    dispose(made)


@pytest.fixture
def ledger_on_postgresql(_ledger_on_postgresql: str) -> Iterator[Ledger]:
    made = open_ledger(_ledger_on_postgresql)
    yield made
    dispose(made)


def dispose(ledger: Ledger) -> None:
    for engine in (ledger.engine, ledger._single):
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    ledger.dispose()
