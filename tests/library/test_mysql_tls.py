"""The TLS that is asked for is in force on both sides, on a MariaDB that speaks it."""

import asyncio
import gc
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import OperationalError

from fastapi_sqlalchemy import Database
from fastapi_sqlalchemy.sessions import handles
from support.databases import skip
from support.mariadb_server import private_server
from support.proxy import Proxy, proxy_to
from support.tls import KEY_PASSWORD, Certificates

pytestmark = pytest.mark.slow

CIPHER = text(
    "SELECT variable_value FROM information_schema.session_status"
    " WHERE variable_name = 'Ssl_cipher'"
)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[URL]:
    directory = tmp_path_factory.mktemp("mariadb")
    try:
        with private_server(directory, *certificates.mariadb_options()) as url:
            yield url.set(host="localhost", database="mysql")
    except FileNotFoundError as exc:
        skip("mariadb", str(exc))


def ciphers(db: Database) -> tuple[str, str]:
    """What each side's connection is encrypted with."""

    async def asked() -> str:
        async with db():
            return str(await db.async_session.scalar(CIPHER))

    with db():
        return str(db.session.scalar(CIPHER)), asyncio.run(asked())


def refused_by_both(db: Database) -> None:
    with db(), pytest.raises(OperationalError, match="2003"):
        db.session.scalar(CIPHER)
    refused_by_async(db)


def refused_by_async(db: Database) -> None:
    async def ask() -> None:
        async with db():
            await db.async_session.scalar(CIPHER)

    with pytest.raises(OperationalError, match="2003"):
        asyncio.run(ask())


@pytest.mark.parametrize("driver", ["aiomysql", "asyncmy"])
@pytest.mark.parametrize(
    "connect_args",
    [
        {"ssl": {"ca": "other", "verify_mode": "optional", "check_hostname": False}},
        {"ssl": {"ca": "other", "verify_mode": ssl.CERT_REQUIRED}},
        {"ssl_verify_identity": True},
        {"ssl_verify_cert": True},
    ],
    ids=str,
)
def test_a_server_of_another_authority_is_refused_by_the_async_side(
    server: URL,
    certificates: Certificates,
    db: Database,
    driver: str,
    connect_args: dict[str, Any],
) -> None:
    if "ssl" in connect_args:
        connect_args = {"ssl": {**connect_args["ssl"], "ca": certificates.other_authority}}
    db.configure(
        server.set(drivername="mysql+pymysql"),
        async_db_url=server.set(drivername=f"mysql+{driver}"),
        engine_args={"connect_args": connect_args},
    )
    refused_by_async(db)


@pytest.mark.parametrize(
    "connect_args",
    [
        {"ssl_ca": "authority", "ssl_cert": "client", "ssl_key": "client_key"},
        {"ssl": {"ca": "authority", "cert": "client", "key": "client_key"}},
    ],
    ids=["arguments", "dictionary"],
)
def test_the_password_of_a_clients_key_reaches_both_sides(
    server: URL, certificates: Certificates, db: Database, connect_args: dict[str, Any]
) -> None:
    def filled(names: dict[str, str]) -> dict[str, str]:
        return {name: getattr(certificates, value) for name, value in names.items()}

    if "ssl" in connect_args:
        given: dict[str, Any] = {"ssl": {**filled(connect_args["ssl"]), "password": KEY_PASSWORD}}
    else:
        given = {**filled(connect_args), "ssl_key_password": KEY_PASSWORD}
    db.configure(server.set(drivername="mysql+pymysql"), engine_args={"connect_args": given})
    assert all(ciphers(db))


@pytest.mark.parametrize("driver", ["pymysql", "aiomysql", "asyncmy"])
def test_a_url_says_tls_to_each_driver(
    server: URL, certificates: Certificates, db: Database, driver: str
) -> None:
    url = server.set(drivername=f"mysql+{driver}")
    db.configure(url.set(query={"ssl_ca": certificates.authority}))
    assert all(ciphers(db))
    db.configure(url.set(query={"ssl_ca": certificates.other_authority}))
    refused_by_both(db)
    db.configure(url.set(host="127.0.0.1", query={"ssl_ca": certificates.authority}))
    refused_by_both(db)  # it is not the name in the certificate


@pytest.mark.parametrize("driver", ["pymysql", "aiomysql", "asyncmy"])
def test_an_option_file_says_tls_to_each_driver(
    server: URL, certificates: Certificates, db: Database, driver: str, tmp_path: Path
) -> None:
    def of(authority: str) -> URL:
        file = tmp_path / f"{Path(authority).stem}.cnf"
        file.write_text(f"[client]\nssl-ca={authority}\n")
        return server.set(drivername=f"mysql+{driver}", query={"read_default_file": str(file)})

    db.configure(of(certificates.authority))
    assert all(ciphers(db))
    db.configure(of(certificates.other_authority))
    refused_by_both(db)


@contextmanager
def proxied(db: Database, server: URL, certificates: Certificates, driver: str) -> Iterator[Proxy]:
    """A proxy that *db* connects through, over TLS."""
    with proxy_to(str(server)) as proxy:
        url = server.set(drivername=f"mysql+{driver}", port=proxy.port)
        db.configure(url.set(query={"ssl_ca": certificates.authority}))
        yield proxy


@pytest.mark.parametrize("driver", ["aiomysql", "asyncmy"])
def test_a_loop_ends_although_the_server_does_not_answer_the_goodbye(
    server: URL, certificates: Certificates, db: Database, driver: str
) -> None:
    """TLS waits for it: the transport would be left open, and a ResourceWarning ends this test."""
    with proxied(db, server, certificates, driver) as proxy:

        async def ask() -> None:
            async with db():
                assert await db.async_session.scalar(CIPHER)
            proxy.silent.set()

        asyncio.run(ask())
        gc.collect()


@pytest.mark.parametrize("driver", ["aiomysql", "asyncmy"])
def test_a_connection_that_is_thrown_away_leaves_nothing_open_at_the_end_of_its_loop(
    server: URL,
    certificates: Certificates,
    db: Database,
    driver: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handles, "ROLLBACK_TIMEOUT_S", 0.3)
    with proxied(db, server, certificates, driver) as proxy:

        async def ask() -> None:
            async with db():
                assert await db.async_session.scalar(CIPHER)
                proxy.silent.set()

        asyncio.run(ask())
        gc.collect()
