"""Run a database's own command-line client: psql, mariadb, sqlite3.

The password goes to psql in its environment, to mariadb in a file that only this user can read:
never among the arguments, which every user of the machine can list. See `dialects`.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fsa_cli.database.dialects import Client, dialect_of

if TYPE_CHECKING:
    from sqlalchemy import URL


def run(url: URL, argv: Sequence[str] = ()) -> int:
    """Run the client of *url*'s database on this terminal until it ends; its exit code.

    Args:
        argv: Arguments for the client.

    Raises:
        ConfigurationError: It is not installed, or none is known for this database.
        UsageError: The database is in the memory of a process.
    """
    with dialect_of(url.get_backend_name()).client(url, argv) as client:
        return _run(client)


def _run(client: Client) -> int:
    # Ctrl-C is for the client, which ends a statement with it and goes on. Not SIG_IGN, which the
    # client would inherit.
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        return subprocess.Popen(client.command, env={**os.environ, **client.environment}).wait()
    finally:
        signal.signal(signal.SIGINT, before)
