"""What SQLite does differently: a file or memory instead of a server, dbstat."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from stat import S_IMODE
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from fsa_cli.database.dialects.dialect import (
    Client,
    DatabaseDialect,
    Measured,
    Server,
    program,
    rows,
    scalar_int,
)
from fsa_cli.exceptions import UsageError

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Inspector

__all__ = ["SQLite", "file_trouble", "sqlite_file"]

_TABLES = (
    "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
)
_SIZES = """
    SELECT m.tbl_name, sum(s.pgsize) FROM dbstat s JOIN sqlite_master m ON m.name = s.name
    GROUP BY m.tbl_name
"""
_TOTAL = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
# SQLite reads the whole file to say how much of it each table has.
_MEASURED_BYTES = 256 * 1024 * 1024


def sqlite_file(url: URL) -> str | None:
    """The path of a SQLite database's file, as the URL has it; None if it is in memory."""
    from fastapi_sqlalchemy.engines.sqlite_memory import is_in_memory, is_uri_filename

    if is_in_memory(url):
        return None
    database = url.database or ""
    if is_uri_filename(url) and database.startswith("file:"):
        return unquote(urlsplit(database).path)  # https://www.sqlite.org/uri.html
    return database


def file_trouble(url: URL) -> str | None:
    """What keeps this user from reading and writing the file of a SQLite database; None: nothing.

    SQLite's own words for it name no file: it may be the one beside it, or their directory.
    """
    if not (name := sqlite_file(url)):
        return None
    file = Path(name)
    try:
        return _trouble(file)
    except OSError as exc:  # a directory that this user may not enter
        return str(exc)


def _trouble(file: Path) -> str | None:
    if file.is_symlink() and not file.exists():
        return f"{file} is a link to {file.readlink()}, which does not exist"
    if file.is_dir():
        return f"{file} is a directory"
    # Whoever opens it for reading alone makes the others with its mode, and they outlast its cure.
    beside = [Path(f"{file}{suffix}") for suffix in ("-wal", "-shm")]
    for each in (file, *beside, *(() if all(map(Path.exists, beside)) else (file.parent,))):
        if each.exists() and not _may(each, os.R_OK | os.W_OK):
            if hasattr(os, "statvfs") and os.statvfs(each).f_flag & os.ST_RDONLY:
                return f"{each} is on a file system that is read-only"
            may, mode = "written" if _may(each, os.R_OK) else "read", S_IMODE(each.stat().st_mode)
            return f"{each} may not be {may} by this user: its mode is {mode:04o}"
    return None


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


class SQLite(DatabaseDialect):
    name = "sqlite"

    def has_savepoints(self, url: URL) -> bool:
        # libSQL over HTTP has none: each statement is a request of its own.
        return url.get_driver_name() != "libsql"

    def servers(self, url: URL) -> list[Server]:
        return []

    def identity(self, url: URL) -> tuple[object, ...] | None:
        if (path := sqlite_file(url)) is not None:
            return ("file", os.path.realpath(path))
        shared = url.query.get("cache") == "shared" or url.query.get("vfs") == "memdb"
        return ("memory", url.database) if shared else None

    def database_name(self, url: URL) -> str | None:
        """The file's, without its folder."""
        return PurePath(sqlite_file(url) or url.database or "").name or None

    def address(self, url: URL) -> str:
        return f"sqlite {sqlite_file(url) or 'in memory'}"

    @contextlib.contextmanager
    def client(self, url: URL, argv: Sequence[str]) -> Iterator[Client]:
        sqlite3 = program("sqlite3", package="sqlite3")
        path = sqlite_file(url)
        if path is None:
            raise UsageError(
                "an in-memory database lives in the app's process: no client can reach it",
                hint="fsa shell",
            )
        yield Client([sqlite3, path, *argv])

    def measured(self, connection: Connection, inspector: Inspector) -> list[Measured]:
        by_table = self._sizes(connection)
        return [
            Measured(None, name, None, by_table.get(name)) for (name,) in rows(connection, _TABLES)
        ]

    def total_bytes(self, connection: Connection) -> int | None:
        return scalar_int(connection, _TOTAL)

    def _sizes(self, connection: Connection) -> dict[str, int]:
        from sqlalchemy.exc import OperationalError

        if (self.total_bytes(connection) or 0) <= _MEASURED_BYTES:
            with contextlib.suppress(OperationalError):  # built without dbstat
                return dict(rows(connection, _SIZES))
        return {}
