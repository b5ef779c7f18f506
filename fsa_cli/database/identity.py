"""Which database a URL means: one answer for the ledger, the guard of migrations, and messages.

What each database says of itself in a URL is in `dialects`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsa_cli.database.dialects import Server, dialect_of
from fsa_cli.database.dialects.postgresql import HOST_AND_PORT
from fsa_cli.database.dialects.sqlite import file_trouble, sqlite_file

if TYPE_CHECKING:
    from sqlalchemy import URL

__all__ = [
    "Server",
    "address",
    "database_name",
    "file_trouble",
    "hosts",
    "identity",
    "same_database",
    "same_server",
    "servers",
    "sqlite_file",
]


def same_database(one: URL | None, other: URL | None) -> bool:
    """Whether two URLs mean one database, whatever their drivers, users and parameters.

    "No" where it cannot be known: a socket and a host name, a private in-memory database and any.
    """
    if one is None or other is None:
        return False
    mine = identity(one)
    return mine is not None and mine == identity(other)


def same_server(one: URL | None, other: URL | None) -> bool:
    """Whether two URLs mean databases of one server; SQLite has none."""
    if one is None or other is None:
        return False
    mine, others = (dialect_of(each.get_backend_name()).places(each) for each in (one, other))
    return bool(mine[1]) and mine == others


def identity(url: URL) -> tuple[object, ...] | None:
    """What distinguishes a database from every other; None if nothing names it."""
    return dialect_of(url.get_backend_name()).identity(url)


def servers(url: URL) -> list[Server]:
    """The servers of a URL, in its order; SQLite has none."""
    return dialect_of(url.get_backend_name()).servers(url)


def hosts(url: URL) -> list[str]:
    """Every host that a URL names, also one that another parameter overrides."""
    stated = url.query.get("host", ())
    texts = [stated] if isinstance(stated, str) else list(stated)
    parts = [part for text in texts for part in text.split(",")]
    named = [each.host for each in servers(url)]
    matches = [(HOST_AND_PORT.fullmatch(part), part) for part in parts]
    named += [url.host, *(match["host"] if match else part for match, part in matches)]
    return [host for host in dict.fromkeys(named) if host]


def address(url: URL | None) -> str:
    """The address of a database for a person, without its password."""
    if url is None:
        return "not configured"
    before, at, host = (url.host or "").rpartition("@")
    if before:  # the end of a password that is not encoded, in a URL of the app's own
        url = url.set(host=f"***{at}{host}")
    return dialect_of(url.get_backend_name()).address(url)


def database_name(url: URL | None) -> str:
    """The name to type for confirmation: the database's; a SQLite file's without its folder."""
    if url is None:
        return "default"
    return dialect_of(url.get_backend_name()).database_name(url) or "default"
