"""In-memory SQLite, as one database that every connection of the process sees."""

from __future__ import annotations

import sqlite3
import uuid
import weakref

from sqlalchemy import URL

from ..exceptions import ConfigurationError

__all__ = ["MemoryDatabase", "is_in_memory", "is_uri_filename"]


def is_in_memory(url: URL) -> bool:
    """Whether `url` is an SQLite database that vanishes with its last connection."""
    return url.get_backend_name() == "sqlite" and (_is_private(url) or _is_named(url))


def is_uri_filename(url: URL) -> bool:
    """Whether SQLite reads the database of `url` as a URI: `?uri=true`."""
    return str(url.query.get("uri", "")).strip().lower() in ("true", "1", "yes", "on", "t", "y")


class MemoryDatabase:
    """An in-memory SQLite database, which lives as long as its one anchor connection.

    A plain `:memory:` is another database in every connection, and so is a named one without
    `cache=shared`. It gets another name instead: every connection of the process, sync or async,
    sees the same tables and has its own transaction. One that SQLite shares by the name that the
    user gave it (`file:shop?mode=memory&cache=shared&uri=true`) keeps it.
    https://www.sqlite.org/src/file?name=src/memdb.c
    """

    def __init__(self, url: URL) -> None:
        self._is_ours = _is_private(url)
        if self._is_ours and sqlite3.sqlite_version_info < (3, 36):
            raise ConfigurationError(
                "An in-memory SQLite database that threads share needs SQLite 3.36; this Python "
                f"has {sqlite3.sqlite_version}. Use a file: sqlite:///app.db"
            )
        self._name = f"file:/fsa-{uuid.uuid4().hex}"
        dialect = self.url(url).set(drivername="sqlite").get_dialect()()
        (filename,), _ = dialect.create_connect_args(self.url(url))
        self._anchor = sqlite3.connect(filename, uri=True, check_same_thread=False)
        # From Python 3.13 on, sqlite3 warns of a connection that is open when the process exits.
        self._close = weakref.finalize(self, self._anchor.close)

    def url(self, url: URL) -> URL:
        """`url` of this database, as a connection says it."""
        if not self._is_ours:
            return url
        query = {name: url.query[name] for name in url.query if name not in ("mode", "cache")}
        return url.set(database=self._name, query={**query, "vfs": "memdb", "uri": "true"})

    def close(self) -> None:
        """Let it vanish, once its other connections are closed too."""
        self._close()


def _is_private(url: URL) -> bool:
    """Whether each connection of `url` would be a database of its own.

    SQLite shares one that has a name and says so: `cache=shared`, or memdb with a leading slash.
    https://www.sqlite.org/inmemorydb.html https://www.sqlite.org/src/file?name=src/memdb.c
    """
    if url.database in (None, "", ":memory:"):
        return True
    if not _is_named(url):
        return False
    path = _path(url)
    if url.query.get("vfs") == "memdb":
        return not path.startswith(("/", "\\"))
    return url.query.get("cache") != "shared"


def _is_named(url: URL) -> bool:
    """Whether `url` is a URI filename, as SQLite reads them, of a database in memory."""
    if not is_uri_filename(url):
        return False
    return (
        url.query.get("mode") == "memory"
        or url.query.get("vfs") == "memdb"
        or _path(url) == ":memory:"
    )


def _path(url: URL) -> str:
    path = str(url.database).removeprefix("file:")
    return "/" + path[2:].partition("/")[2] if path.startswith("//") else path
