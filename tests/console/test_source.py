"""What the pages are made from."""

from __future__ import annotations

import time
from pathlib import Path

from sqlalchemy import QueuePool, text

from fastapi_sqlalchemy import Database
from fsa_cli.console.source import Source, _has_free_place
from fsa_cli.ledger.activity import write_activity
from fsa_cli.ledger.enqueue import insert_running
from fsa_cli.project import environments
from fsa_cli.project.settings import read
from support.backends import Backend
from support.ledgers import make_node, open_ledger
from support.proxy import proxy_to


def test_a_page_takes_no_connection_that_the_app_has_to_wait_for(tmp_path: Path) -> None:
    database = Database("busy")
    arguments = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 1}
    database.configure(db_url=f"sqlite:///{tmp_path}/shop.db", engine_args=arguments)
    assert _has_free_place(database)
    with database.engine.connect():
        assert not _has_free_place(database)
        with database.engine.connect():
            assert not _has_free_place(database)
    assert _has_free_place(database)
    database.engine.dispose()


def test_a_page_does_not_wait_for_a_database_of_the_app_that_says_nothing(
    postgresql: Backend, tmp_path: Path
) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.create()
    run = insert_running(ledger, make_node(ledger).id, "ship", "{}")
    assert run is not None
    write_activity(ledger, {run.run_id: ("", [1])})
    database = Database("silent")
    settings = read(directory=tmp_path)
    with proxy_to(postgresql.url) as proxy:
        database.configure(db_url=proxy.url(postgresql.url))
        with database.engine.connect() as connection:  # and stays in the pool
            connection.execute(text("SELECT 1"))
        proxy.silent.set()
        source = Source(ledger, {"default": database}, settings, environments.of(settings))
        of = source.fingerprint()
        for _ in range(2):
            begun_s = time.monotonic()
            seen = source.look(of, 20_000, "1h", 10)
            assert [each.id for each in seen.overview.running] == [run.run_id]
            assert seen.doing == {}
            assert time.monotonic() - begun_s < 10
        proxy.drop_all()
        proxy.silent.clear()
        source._asks.acquire(timeout=10)
        source._asks.release()
        assert source.look(of, 20_000, "1h", 10).doing[run.run_id].waits_for == ""
    database.dispose()
    ledger.dispose()
