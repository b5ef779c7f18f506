"""A MariaDB server of the test run's own, where the program is installed and no server answers."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pymysql
from sqlalchemy import URL

from support.backends import connect_mariadb
from support.waiting import wait_until


def program(name: str) -> str:
    """Where *name* is installed; FileNotFoundError where it is not."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])
    if found := shutil.which(name, path=path):
        return found
    raise FileNotFoundError(f"{name} is not installed")


@contextlib.contextmanager
def private_server(directory: Path, *more_options: str) -> Iterator[URL]:
    """Run a server in *directory*; FileNotFoundError where MariaDB is not installed."""
    install, server = program("mariadb-install-db"), program("mariadbd")
    temporary = (
        directory / "tmp"
    )  # a server that starts removes the temporary tables of all in /tmp
    temporary.mkdir()
    options = [
        "--no-defaults",
        f"--datadir={directory / 'data'}",
        f"--tmpdir={temporary}",
        f"--user={getpass.getuser()}",
    ]
    installed = subprocess.run(
        [install, *options, "--auth-root-authentication-method=normal", "--skip-test-db"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert installed.returncode == 0, installed.stdout
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address = [f"--socket={directory / 'socket'}", "--bind-address=127.0.0.1", f"--port={port}"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [server, *options, *address, *more_options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    url = URL.create("mysql", "root", host="127.0.0.1", port=port)

    def answers() -> bool:
        assert process.poll() is None, (directory / "log").read_text()
        try:
            connect_mariadb(url).close()
        except pymysql.err.OperationalError:
            return False
        return True

    try:
        wait_until(answers, "MariaDB answers")
        yield url
    finally:
        process.terminate()
        process.wait(60)
