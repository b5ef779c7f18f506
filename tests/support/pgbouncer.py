"""`pgbouncer`: PostgreSQL behind a real PgBouncer in transaction mode, on a port of its own.

Where the program is not installed (Debian's package `pgbouncer`), the test is skipped; named in
`FSA_TEST_REQUIRE`, it fails.
"""

import getpass
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from support import databases
from support.backends import Backend
from support.mariadb_server import program
from support.waiting import wait_until

_CONFIGURATION = """
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = 500
default_pool_size = {sessions}
server_idle_timeout = 2
server_login_retry = 1
"""


#: What the manual says to give an engine behind a pooler.
UNPREPARED: Mapping[str, object] = {"connect_args": {"prepare_threshold": None}}


@dataclass(frozen=True)
class PgBouncer:
    """A database, and the address of the same behind the pooler.

    Attributes:
        url: Through the pooler.
        sessions: How many of the server's sessions its clients share.
    """

    backend: Backend
    url: str
    sessions: int

    def settings(self, name: str) -> set[str]:
        """The values of a setting in all of the pooler's sessions."""
        return self.answers(f"SHOW {name}")

    def answers(self, sql: str) -> set[str]:
        """What all of the pooler's sessions answer, each asked by a transaction."""
        found = set()
        clients = [psycopg.connect(_plain(self.url)) for _ in range(self.sessions)]
        try:
            for each in clients:  # each holds one: its transaction stays open
                found.add(str(each.execute(sql.encode()).fetchall()[0][0]))
        finally:
            for each in clients:
                each.close()
        return found


@pytest.fixture
def pgbouncer(postgresql: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PgBouncer]:
    """A fresh database, behind a PgBouncer that lends ten sessions of the server's."""
    with pgbouncer_of(postgresql, tmp_path_factory) as pooler:
        yield pooler


@contextmanager
def pgbouncer_of(
    postgresql: Backend, tmp_path_factory: pytest.TempPathFactory, sessions: int = 10
) -> Iterator[PgBouncer]:
    """*postgresql* behind a PgBouncer of its own, while inside."""
    try:
        command = program("pgbouncer")
    except FileNotFoundError as exc:
        databases.skip("pgbouncer", str(exc))
    directory = tmp_path_factory.mktemp("pgbouncer")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    location = postgresql.location
    configuration = directory / "pgbouncer.ini"
    configuration.write_text(
        _CONFIGURATION.format(
            host=location.host,
            port=location.port or 5432,
            user=location.username,
            own_port=port,
            sessions=sessions,
        )
    )
    options = []
    if os.geteuid() == 0:  # as which it does not run
        options = ["-u", "nobody"]
        for each in (configuration, *_own_parents(directory)):
            each.chmod(0o755 if each.is_dir() else 0o644)
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [command, *options, configuration], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    url = make_url(postgresql.url).set(host="127.0.0.1", port=port)
    text = url.render_as_string(hide_password=False)

    def answers() -> bool:
        assert process.poll() is None, (directory / "log").read_text()
        try:
            psycopg.connect(_plain(text)).close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        wait_until(answers, "PgBouncer answers")
        databases.found["pgbouncer"] = f"{command} ({getpass.getuser()})"
        yield PgBouncer(postgresql, text, sessions)
    finally:
        process.kill()
        process.wait(60)


def _own_parents(directory: Path) -> list[Path]:
    """The directory and those above it that pytest has made."""
    return [directory, *(each for each in directory.parents if "pytest-" in each.name)]


def _plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
