"""What to do about an error of a database, by what its server said."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from fsa_cli.terminal.user_code import chain_of

__all__ = ["disk_is_full", "next_step", "refuses", "schema_is_missing"]

_FULL = "the disk of the database is full: make room there, nothing here repairs it"
_FAILS = "the disk under the database's file is full, or fails: df says which"
_READ_ONLY = (
    "nothing can be written there: a read-only file or folder, a standby, or a user who may only "
    "read"
)
_DAMAGED = "the file is no SQLite database, or a damaged one: name another, or take its backup"
_FORBIDDEN = "the database's user may not do that: GRANT it, or use another user"
_NO_SCHEMA = (
    'the database has no such schema: op.execute("CREATE SCHEMA NAME") makes it in a migration'
)

_COMPARE = "fsa db check compares the database with the models"
_MISSING = f"{_COMPARE}, fsa db upgrade migrates it"
_CREATE = f"{_COMPARE}, fsa db create makes the tables that it lacks"

# The first that fits counts. Of PostgreSQL's, MySQL's, MariaDB's and SQLite's own texts.
_STEPS = (
    (
        r"certificate.verify.failed|not match host name|root certificate file"
        r"|self-signed certificate",
        "the server's certificate is not of the authority in sslrootcert (ssl_ca), or not for this "
        "host: fsa config says where the URL is from",
    ),
    (
        r"requires a valid client certificate",
        "the server asks for a client's certificate: sslcert and sslkey in the URL",
    ),
    (
        r"session is (not )?read-only|target attribute requirement",
        "no server of the URL is one that target_session_attrs asks for",
    ),
    (
        r"password authentication failed|access denied for user|no password supplied",
        "the user or the password is wrong: fsa config says where the URL is from",
    ),
    (
        r'role ".*" does not exist',
        "the server has no such user: CREATE ROLE, or another in the URL",
    ),
    (
        r'database ".*" does not exist|unknown database',
        "the server has no such database: create it, or correct the name in the URL",
    ),
    (
        r'schema ".*" does not exist',
        _NO_SCHEMA,
    ),
    (
        r"too many connections|too many clients|remaining connection slots",
        "the server has no connection left: smaller pools (fsa docs configuring), or a pooler",
    ),
    (
        r"no space left|disk is full|disk full|disk quota|could not extend file|table .* is full",
        _FULL,
    ),
    (r"disk i/o error", _FAILS),
    (r"file is not a database|file is encrypted|disk image is malformed", _DAMAGED),
    (
        r"unable to open database file",
        "does the directory of the file exist, and may this user read and write in it?",
    ),
    (
        r"conflict with recovery",
        "a standby ends what reads rows that its primary has done away with: try again, or ask the "
        "primary",
    ),
    (
        r"prepared statement \S+ (already exists|does not exist)",
        "a pooler stands between, whose sessions are everybody's: fsa docs configuring says what "
        "its clients are told",
    ),
    (
        r"readonly database|read-only|read only",
        _READ_ONLY,
    ),
    (
        r"could not (open|stat|access|read|write) (file|directory)",
        "that is a file of the server's own, which its user must be able to open",
    ),
    (
        r"permission denied|command denied|insufficient privilege|must be owner",
        _FORBIDDEN,
    ),
    (
        r"lock timeout|lock wait timeout",
        "a transaction that has not ended, perhaps the caller's own, holds what this waits for: "
        "commit it first",
    ),
    (r"statement timeout", "the server ended what took longer than it may: is it busy?"),
    (r"database is locked", "another process writes to the file: try again when it has ended"),
    (
        r"no such table: (\w+\.)?fsa_|relation \"(\w+\.)?fsa_\w+\" does not exist"
        r"|table '[^']*\.fsa_\w+' doesn't exist",
        "fsa scheduler init creates the tables of the ledger",
    ),
    (
        r"no such (table|column)|(relation|column|table) \S+ (of relation \S+ )?does not exist"
        r"|table '.*' doesn't exist|unknown column",
        _MISSING,
    ),
    (
        r"could not translate host name|name or service not known|getaddrinfo|unknown .*host",
        "the host's name is not known here: is it right in the URL, and this the right network?",
    ),
    (
        r"connection refused|can't connect|timed? ?out|timeout expired|is the server running"
        r"|no such file or directory",
        "is the server running, and are the host and the port right?",
    ),
)
_COMPILED = tuple((re.compile(pattern), step) for pattern, step in _STEPS)
_LOOKED_AT = 2000


def next_step(
    error: BaseException | None, *, migrates: Callable[[], bool] = lambda: True
) -> str | None:
    """What to do about *error*; None if what the server said is not known here.

    Args:
        migrates: Whether the project has migrations; asked where a table or a column is missing.
    """
    for text in _texts(error):
        for pattern, step in _COMPILED:
            if pattern.search(text):
                return step if step != _MISSING or migrates() else _CREATE
    return None


def refuses(error: BaseException | None) -> bool:
    """Whether the database was there, and has said that it cannot do or does not allow this.

    SQLite says so already when its file is opened.
    """
    return next_step(error) in (_FULL, _FAILS, _DAMAGED, _READ_ONLY, _FORBIDDEN)


def schema_is_missing(error: BaseException | None) -> bool:
    """Whether a table's schema is not there, which nobody creates by the way."""
    return next_step(error) == _NO_SCHEMA


def disk_is_full(error: BaseException | None) -> bool:
    """Whether the database has no room left."""
    return next_step(error) == _FULL


def _texts(error: BaseException | None) -> Iterator[str]:
    """What the driver said, of the error and of those that it came from."""
    for each in chain_of(error):
        with contextlib.suppress(Exception):  # its __str__ may be anybody's
            yield str(getattr(each, "orig", None) or each)[:_LOOKED_AT].lower()
