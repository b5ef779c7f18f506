"""The ledger's own connections."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from support.backends import Backend, read_only
from support.ledgers import open_ledger


@pytest.fixture
def _with_default_timeout() -> Iterator[None]:
    """As while Celery's worker stops."""
    socket.setdefaulttimeout(5)
    yield
    socket.setdefaulttimeout(None)


@pytest.mark.usefixtures("_with_default_timeout")
@pytest.mark.parametrize(
    ("name", "wait"), [("postgresql", "pg_sleep(0.5)"), ("mariadb", "SLEEP(0.5)")]
)
def test_a_default_timeout_of_sockets_does_not_keep_an_answer_from_being_waited_for(
    name: str, wait: str, request: pytest.FixtureRequest
) -> None:
    backend: Backend = request.getfixturevalue(name)
    ledger = open_ledger(backend.url)

    begun_s = time.monotonic()
    ledger.read(lambda connection: connection.scalar(text(f"SELECT {wait}")), attempts=1)

    assert time.monotonic() - begun_s >= 0.5
    ledger.dispose()


def test_a_thread_that_only_reads_leaves_a_server_that_refuses_another_s_write(
    postgresql: Backend,
) -> None:
    """Its connection lives. What it reads from the old server, nobody writes any more."""
    ledger = open_ledger(postgresql.url)
    kept, refused = threading.Event(), threading.Event()

    def read() -> tuple[int, int]:
        def session() -> int:
            return int(ledger.read(lambda c: c.scalar(text("SELECT pg_backend_pid()"))))

        with ledger.keeping_a_connection():
            before = session()
            kept.set()
            refused.wait(60)
            return before, session()

    def write() -> None:
        create = text("CREATE TABLE written (n INTEGER)")
        ledger.at_once(lambda connection: connection.execute(create))

    with ThreadPoolExecutor(1) as threads:
        with read_only(postgresql):
            reading = threads.submit(read)
            assert kept.wait(60)
            with pytest.raises(DBAPIError, match="read-only"):
                write()
        refused.set()
        before, after = reading.result()

    assert before != after
    write()
    ledger.dispose()
