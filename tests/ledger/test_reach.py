"""The fence, where the task's transaction is not what the ledger's own sessions are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Connection, NullPool, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError, PendingRollbackError
from sqlalchemy.ext.asyncio import create_async_engine

from fastapi_sqlalchemy import Database
from fsa_cli.database.identity import same_database
from fsa_cli.ledger import effects, fence, queries
from fsa_cli.ledger.enqueue import insert_run
from fsa_cli.ledger.location import shares
from fsa_cli.ledger.reach import Asking, probe
from fsa_cli.ledger.records import ClaimedRun, NewRun
from fsa_cli.runner.run import RunResult
from support.backends import Backend
from support.ledgers import open_ledger, runs_of
from support.stages import Stage

OTHER = {
    "SET LOCAL search_path": "SET LOCAL search_path TO tenant_1",
    "SET search_path to nothing": "SET LOCAL search_path TO ''",
    "a table of that name comes first": "SET LOCAL search_path TO decoy, public",
}


@pytest.fixture(autouse=True)
def _as_never_warned() -> None:
    fence._warn_once.cache_clear()


class Reaching(Stage):
    def execute(self, function: Callable[..., Any], claimed: ClaimedRun | None = None) -> RunResult:
        return self.run(claimed or self.claim(), function)

    def sql(self, *statements: str) -> None:
        for each in statements:
            self.db.session.execute(text(each))


def stage_on(backend: Backend, url: str | None = None, ledger_url: str | None = None) -> Reaching:
    ledger = open_ledger(ledger_url or backend.url)
    ledger.create()
    db = Database("of the task")
    db.configure(db_url=url or backend.url)
    return Reaching(backend, ledger, db)


@pytest.fixture
def stage(postgresql: Backend) -> Iterator[Reaching]:
    postgresql.execute(
        "CREATE TABLE written (n INTEGER); CREATE SCHEMA tenant_1; CREATE SCHEMA decoy;"
        "CREATE TABLE decoy.fsa_run (id TEXT, claim TEXT)"
    )
    made = stage_on(postgresql)
    yield made
    made.db.dispose()
    made.ledger.dispose()


@pytest.fixture
def on_mariadb(mariadb: Backend) -> Iterator[Reaching]:
    mariadb.execute("CREATE TABLE written (n INTEGER)")
    made = stage_on(mariadb)
    yield made
    made.db.dispose()
    made.ledger.dispose()


@pytest.fixture
def tenant(postgresql: Backend) -> Iterator[str]:
    """A role that may write `written`, and nothing of the ledger's."""
    name = f"{postgresql.location.database}_tenant"
    postgresql.execute(f"CREATE ROLE {name} LOGIN")
    try:
        yield name
    finally:
        postgresql.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.mark.parametrize("setting", OTHER.values(), ids=OTHER)
def test_another_search_path_does_not_hide_the_ledger(stage: Reaching, setting: str) -> None:
    def task() -> int:
        stage.sql("INSERT INTO public.written VALUES (1)", setting)
        return 5

    result = stage.execute(task)

    assert result.succeeded, result.error
    assert stage.fence.recorded
    assert stage.written() == [1]
    assert [(row.status, row.result) for row in runs_of(stage.ledger)] == [("succeeded", "5")]


def test_an_async_task_with_another_search_path_is_recorded_as_well(stage: Reaching) -> None:
    async def task() -> None:
        await stage.db.async_session.execute(text("INSERT INTO public.written VALUES (1)"))
        await stage.db.async_session.execute(text("SET LOCAL search_path TO tenant_1"))

    assert stage.execute(task).succeeded
    assert stage.fence.recorded


def test_a_report_in_a_read_only_transaction_succeeds(
    stage: Reaching, on_mariadb: Reaching
) -> None:
    def report() -> object:
        stage.sql("SET TRANSACTION READ ONLY")
        return stage.db.session.scalar(text("SELECT count(*) FROM written"))

    def report_on_mariadb() -> object:
        connection = on_mariadb.db.session.connection()
        connection.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("BEGIN")
        try:
            return on_mariadb.db.session.scalar(text("SELECT count(*) FROM written"))
        finally:
            connection.exec_driver_sql("SET SESSION TRANSACTION READ WRITE")

    for each, function in ((stage, report), (on_mariadb, report_on_mariadb)):
        result = each.execute(function)
        assert (result.error, result.value) == (None, 0)
        assert not each.fence.recorded  # the completer's to write


def test_a_role_without_rights_on_the_ledger_commits_and_is_said_once(
    stage: Reaching, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage.backend.execute(f"GRANT SELECT, INSERT ON written TO {tenant}")

    def task() -> None:
        stage.sql(f"SET LOCAL ROLE {tenant}", "INSERT INTO written VALUES (1)")

    first = stage.claim()
    for _ in range(2):
        assert stage.execute(task, first).error is None
        assert not stage.fence.recorded

    assert stage.written() == [1, 1]
    (said,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert tenant in said.getMessage()
    assert "public.fsa_run" in said.getMessage()


def test_a_role_without_rights_is_fenced_all_the_same(stage: Reaching, tenant: str) -> None:
    stage.backend.execute(f"GRANT SELECT, INSERT ON written TO {tenant}")

    def task() -> None:
        stage.sql(f"SET LOCAL ROLE {tenant}", "INSERT INTO written VALUES (1)")
        stage.backend.execute("UPDATE fsa_run SET claim = 'of another'")

    assert type(stage.execute(task).error).__name__ == "Fenced"
    assert stage.written() == []


def test_a_role_that_row_security_hides_the_run_from_commits(stage: Reaching, tenant: str) -> None:
    stage.backend.execute(
        f"GRANT SELECT, INSERT ON written TO {tenant};"
        f"GRANT SELECT, INSERT, UPDATE ON fsa_run TO {tenant};"
        "ALTER TABLE fsa_run ENABLE ROW LEVEL SECURITY"
    )

    result = stage.execute(
        lambda: stage.sql(f"SET LOCAL ROLE {tenant}", "INSERT INTO written VALUES (1)")
    )

    assert result.succeeded, result.error
    assert stage.written() == [1]


def test_use_of_another_database_does_not_hide_the_ledger(on_mariadb: Reaching) -> None:
    name = on_mariadb.backend.location.database

    def task() -> None:
        on_mariadb.sql("USE information_schema", f"INSERT INTO {name}.written VALUES (1)")

    try:
        result = on_mariadb.execute(task)
    finally:
        on_mariadb.db.dispose()

    assert result.succeeded, result.error
    assert on_mariadb.fence.recorded
    assert on_mariadb.written() == [1]


def test_a_ledger_in_a_schema_of_its_own_is_written_with_the_tasks_rows(
    postgresql: Backend,
) -> None:
    postgresql.execute("CREATE TABLE written (n INTEGER); CREATE SCHEMA ops")
    stage = stage_on(postgresql, ledger_url=f"{postgresql.url}?options=-csearch_path%3Dops")

    result = stage.execute(lambda: stage.sql("INSERT INTO written VALUES (1)"))

    assert result.succeeded, result.error
    assert stage.fence.recorded
    assert postgresql.rows("SELECT status FROM ops.fsa_run") == [("succeeded",)]
    assert postgresql.rows("SELECT to_regclass('public.fsa_effect')") == [(None,)]


def test_a_ledger_of_another_user_is_as_one_in_another_database(
    postgresql: Backend, tenant: str
) -> None:
    postgresql.execute(
        f"CREATE TABLE written (n INTEGER); GRANT ALL ON written TO {tenant};"
        f"GRANT CREATE ON SCHEMA public TO {tenant}; CREATE SCHEMA ops"
    )
    url = make_url(postgresql.url).set(username=tenant).render_as_string(hide_password=False)
    stage = stage_on(postgresql, url, f"{postgresql.url}?options=-csearch_path%3Dops")
    assert not shares(stage.ledger, stage.db.url)

    claimed = stage.claim()
    assert stage.execute(lambda: stage.sql("INSERT INTO written VALUES (1)"), claimed).succeeded

    assert not stage.fence.recorded
    assert effects.applied(stage.ledger, stage.db, [claimed.run_id]) == {claimed.run_id}
    stage.db.dispose()


def test_the_mark_in_another_database_is_left_whatever_the_search_path(
    postgresql: Backend, tmp_path: Path
) -> None:
    postgresql.execute("CREATE TABLE written (n INTEGER); CREATE SCHEMA tenant_1")
    stage = stage_on(postgresql, ledger_url=f"sqlite:///{tmp_path / 'ledger.db'}")
    claimed = stage.claim()

    def task() -> None:
        stage.sql("INSERT INTO written VALUES (1)", "SET LOCAL search_path TO tenant_1")

    assert stage.execute(task, claimed).error is None
    assert effects.applied(stage.ledger, stage.db, [claimed.run_id]) == {claimed.run_id}
    stage.db.dispose()
    stage.ledger.dispose()


def test_a_process_that_has_prepared_nothing_leaves_the_mark_too(
    postgresql: Backend, tmp_path: Path
) -> None:
    """As that of a run with `isolation="process"`."""
    postgresql.execute("CREATE TABLE written (n INTEGER)")
    stage = stage_on(postgresql, ledger_url=f"sqlite:///{tmp_path / 'ledger.db'}")
    claimed = stage.claim()
    stage.ledger.dispose()
    stage.ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", stage.ledger.namespace)

    assert stage.execute(lambda: stage.sql("INSERT INTO written VALUES (1)"), claimed).error is None
    assert effects.applied(stage.ledger, stage.db, [claimed.run_id]) == {claimed.run_id}
    stage.db.dispose()
    stage.ledger.dispose()


def test_a_run_is_enqueued_in_a_transaction_with_another_search_path(stage: Reaching) -> None:
    new_run = NewRun.of("report", "{}", executor="local", queue=None, dispatched=False)

    with stage.db(commit_on_exit=True):
        stage.sql("SET LOCAL search_path TO tenant_1")
        assert insert_run(stage.ledger, stage.db.session.connection(), new_run).how == "alone"

    assert [row.id for row in queries.find(stage.ledger, new_run.run_id)] == [new_run.run_id]


def test_a_run_is_not_enqueued_by_a_role_that_may_not(stage: Reaching, tenant: str) -> None:
    new_run = NewRun.of("report", "{}", executor="local", queue=None, dispatched=False)

    with stage.db(commit_on_exit=True):
        stage.sql(f"SET LOCAL ROLE {tenant}")
        assert insert_run(stage.ledger, stage.db.session.connection(), new_run).how == "not"


REFUSING = {
    "a role without rights": "SET ROLE {tenant}",
    "read only": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "no such table": "ALTER TABLE fsa_run RENAME TO fsa_run_elsewhere",
}


def test_a_connection_that_was_lost_is_asked_no_more(stage: Reaching) -> None:
    engine = create_engine(stage.backend.url, poolclass=NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        stage.backend.execute(f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(OperationalError) as lost:
            probe(stage.ledger, Asking(connection))
        assert lost.value.connection_invalidated
        with pytest.raises(PendingRollbackError):
            probe(stage.ledger, Asking(connection))


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg"])
@pytest.mark.parametrize("setting", REFUSING.values(), ids=REFUSING)
def test_a_session_that_may_not_goes_on_and_only_the_first_one_finds_out_by_trying(
    stage: Reaching, tenant: str, driver: str, setting: str
) -> None:
    """A pool's `checkout` sets the role, say: nothing was sent in the transaction yet."""
    url = make_url(stage.backend.url).set(drivername=f"postgresql+{driver}")
    stage.backend.execute(f"GRANT INSERT ON written TO {tenant}")
    assert stage.ledger.schema == "public"
    new_runs = [
        NewRun.of("report", "{}", executor="local", queue=None, dispatched=False) for _ in range(2)
    ]
    sent: list[str] = []

    def use(connection: Connection) -> list[str]:
        connection.exec_driver_sql(setting.format(tenant=tenant))
        connection.commit()
        event.listen(connection, "before_cursor_execute", lambda *given: sent.append(given[2]))
        found = []
        for new_run in new_runs:
            found.append(insert_run(stage.ledger, connection, new_run).how)
            if "READ ONLY" not in setting:
                connection.exec_driver_sql("INSERT INTO written VALUES (1)")
            connection.commit()
        return found

    if driver == "asyncpg":
        found = asyncio.run(_aconnected(url, use))
    else:
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect() as connection:
            found = use(connection)

    assert found == ["not", "not"]
    assert [each.split()[0] for each in sent if "written" not in each] == ["INSERT"]
    assert len(stage.written()) == (0 if "READ ONLY" in setting else 2)


async def _aconnected(url: URL, use: Callable[[Connection], list[str]]) -> list[str]:
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.connect() as connection:
        return await connection.run_sync(use)


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("postgresql://u@/shop?host=db1&port=5432", "postgresql+psycopg://u@db1/shop", True),
        ("postgresql://u@/shop?host=db1&port=5433", "postgresql://u@/shop?host=db1", False),
        ("postgresql://u@/shop?host=db1", "postgresql://u@/shop?host=db2", False),
        ("postgresql://u@/shop?host=/cloudsql/a", "postgresql://u@/shop?host=/cloudsql/b", False),
        ("postgresql://u@localhost/shop", "postgresql://u@127.0.0.1:5432/shop", True),
        ("mysql+pymysql://u@/shop?unix_socket=/a", "mysql://u@/shop?unix_socket=/b", False),
        ("mysql+pymysql://u@db1/shop", "mariadb+pymysql://u@db1:3306/shop", True),
    ],
)
def test_a_database_is_the_same_however_it_is_written(
    first: str, second: str, is_same: bool
) -> None:
    assert same_database(make_url(first), make_url(second)) is is_same
