"""A server that accepts connections and says nothing keeps the ledger for a bounded time."""

from __future__ import annotations

import socket
import time
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from fastapi_sqlalchemy import Database
from fsa_cli.ledger import location
from fsa_cli.ledger.store import Ledger
from fsa_cli.project import settings
from support.backends import Backend

PLACES = ["the app's database", "ledger_url"]


def ledger_at(url: str, place: str) -> Ledger:
    if place == "ledger_url":
        return location.ledger_of({}, replace(settings.read(), ledger_url=url))
    database = Database("shop")
    database.configure(url)
    return location.ledger_of({"default": database}, settings.read())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2", "mysql+pymysql"])
def test_a_connection_to_a_server_that_says_nothing_is_given_up_once(
    driver: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(driver.partition("+")[2])
    monkeypatch.delenv("PGCONNECT_TIMEOUT", raising=False)
    monkeypatch.setattr(location, "CONNECT_S", 3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        port = server.getsockname()[1]
        ledger = ledger_at(f"{driver}://me@127.0.0.1:{port}/shop", place)
        begun_s = time.monotonic()
        with pytest.raises(OperationalError, match=r"timeout expired|timed out"):
            ledger.read(ledger.now_ms)
        assert time.monotonic() - begun_s < 2 * location.CONNECT_S


@pytest.mark.parametrize("place", PLACES)
def test_a_statement_may_take_longer_than_the_greeting(
    place: str, mariadb: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location, "CONNECT_S", 1)
    ledger = ledger_at(mariadb.url, place)

    assert ledger.read(lambda connection: connection.scalar(text("SELECT SLEEP(2)"))) == 0
    ledger.dispose()
