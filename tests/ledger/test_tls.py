"""The ledger's connections have the TLS that the app's `connect_args` ask for."""

import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from fastapi_sqlalchemy import Database
from fsa_cli.exceptions import LedgerUnusable
from fsa_cli.executors.procrastinate import Procrastinate
from fsa_cli.ledger.location import ledger_of
from fsa_cli.ledger.store import Ledger
from fsa_cli.project.settings import read
from fsa_cli.runs.executor import Surroundings
from support.backends import PostgreSQL
from support.tls import Certificates, TLSProxy, tls_proxy


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def proxy(postgresql: PostgreSQL, certificates: Certificates) -> Iterator[TLSProxy]:
    url = make_url(postgresql.url)
    assert url.host is not None
    with tls_proxy((url.host, url.port or 5432), certificates) as proxy:
        yield proxy


@pytest.fixture
def url(postgresql: PostgreSQL, proxy: TLSProxy) -> URL:
    return make_url(postgresql.url).set(host="localhost", port=proxy.port)


def ledger_for(database: Database, ledger_url: URL | None = None) -> Ledger:
    text = ledger_url.render_as_string(hide_password=False) if ledger_url else None
    settings = read()
    return ledger_of(
        {"default": database},
        replace(settings, ledger_url=text, sources={**settings.sources, "ledger_url": "the test"}),
    )


def refuses(ledger: Ledger) -> None:
    with pytest.raises(OperationalError, match="certificate verify failed"):
        ledger.engine.connect()
    ledger.dispose()


def verified(authority: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority)


def test_a_context_of_asyncpgs_that_psycopg_cannot_be_told_leaves_no_ledger(
    url: URL, proxy: TLSProxy, certificates: Certificates, db: Database
) -> None:
    connect_args = {"ssl": verified(certificates.other_authority)}
    asyncpg = url.set(drivername="postgresql+asyncpg")
    db.configure(asyncpg, engine_args={"connect_args": connect_args})
    with pytest.raises(LedgerUnusable, match="cannot be opened") as refusal:
        ledger_for(db)
    assert "'ssl'" in str(refusal.value.details)
    with pytest.raises(LedgerUnusable):
        ledger_for(db, url)
    db.configure(custom_engine=create_async_engine(asyncpg, connect_args=connect_args))
    with pytest.raises(LedgerUnusable):
        ledger_for(db)
    assert proxy.seen == []

    refuses(
        ledger_for(
            db,
            url.set(query={"sslmode": "verify-full", "sslrootcert": certificates.other_authority}),
        )
    )
    assert set(proxy.seen) <= {"refused"}


def test_an_async_engine_that_is_all_there_is_says_tls_to_the_ledger(
    url: URL, proxy: TLSProxy, db: Database
) -> None:
    engine = create_async_engine(
        url.set(drivername="postgresql+asyncpg"), connect_args={"ssl": "require"}
    )
    db.configure(custom_engine=engine)
    ledger = ledger_for(db)
    with ledger.engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert proxy.seen == ["TLSv1.3"]
    ledger.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize("ledgers", ["postgresql", "postgresql+psycopg", "postgresql+psycopg2"])
def test_connect_args_reach_a_ledger_url_of_another_driver(
    url: URL,
    proxy: TLSProxy,
    certificates: Certificates,
    db: Database,
    driver: str,
    ledgers: str,
) -> None:
    connect_args: dict[str, Any] = {
        "sslmode": "verify-full",
        "sslrootcert": certificates.other_authority,
    }
    db.configure(
        url.set(drivername=f"postgresql+{driver}"), engine_args={"connect_args": connect_args}
    )
    refuses(ledger_for(db, url.set(drivername=ledgers)))
    assert set(proxy.seen) <= {"refused"}


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_procrastinates_worker_connects_as_the_ledger_does(
    url: URL, certificates: Certificates, db: Database, driver: str
) -> None:
    connect_args = {"sslmode": "verify-ca", "sslrootcert": certificates.authority}
    db.configure(
        url.set(drivername=f"postgresql+{driver}"), engine_args={"connect_args": connect_args}
    )
    ledger = ledger_for(db)
    executor = Procrastinate(Surroundings(ledger, read()))
    assert executor._connecting().items() >= connect_args.items()
    ledger.dispose()
