"""The ledger's own connections."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from support.backends import Backend
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
