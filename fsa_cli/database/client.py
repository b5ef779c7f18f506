"""Run a database's own command-line client: psql, mariadb, sqlite3.

The password goes to psql in its environment, to mariadb in a file that only this user can read:
never among the arguments, which every user of the machine can list. See `dialects`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fsa_cli.database.dialects import Client, dialect_of
from fsa_cli.database.engine_arguments import connect_args_of, engine_of

if TYPE_CHECKING:
    from sqlalchemy import URL

    from fastapi_sqlalchemy import Database


def run(database: Database, argv: Sequence[str] = ()) -> int:
    """Run the client of *database* on this terminal until it ends; its exit code.

    Args:
        argv: Arguments for the client.

    Raises:
        ConfigurationError: It is not installed, or none is known for this database; or it cannot
            be told how the app connects.
        UsageError: The database is in the memory of a process.
    """
    url = asyncio.run(_connecting(database))
    with dialect_of(url.get_backend_name()).client(url, argv) as client:
        return _run(client)


async def _connecting(database: Database) -> URL:
    """Its URL, with the app's `connect_args`. An async engine wants a loop to be made for."""
    from fastapi_sqlalchemy.engines.connect_args import connect_args_for

    url = database.url
    assert url is not None
    dialect = dialect_of(url.get_backend_name())
    if not dialect.client_driver:
        return url
    engine = engine_of(database)
    connect_args = connect_args_of(engine)
    if engine.dialect.is_async:
        words = url.set(drivername=f"{url.get_backend_name()}+{dialect.client_driver}")
        connect_args = connect_args_for(connect_args, engine.url, words)
    return dialect.with_connect_args(url, connect_args)


def _run(client: Client) -> int:
    # Ctrl-C is for the client, which ends a statement with it and goes on. Not SIG_IGN, which the
    # client would inherit.
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        return subprocess.Popen(client.command, env={**os.environ, **client.environment}).wait()
    finally:
        signal.signal(signal.SIGINT, before)
