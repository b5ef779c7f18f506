"""`fsa_effect`: the marks of runs that have committed in a database that is not the ledger's.

A transaction of a run leaves two: the run's id, by which a second attempt cannot commit, and one of
its claim. Who takes the run from a process that is taken for dead writes that one before: what the
process is about to commit is refused, or is there already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from typing import TYPE_CHECKING

from sqlalchemy import (
    URL,
    BigInteger,
    Connection,
    TextClause,
    delete,
    literal_column,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError

from fsa_cli.ledger import dialects
from fsa_cli.ledger.dialects import DialectSQL, typed
from fsa_cli.ledger.location import access_of, shares
from fsa_cli.ledger.reach import Asking, execute, probe, refused
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import KEPT_MS, effect, effects, run

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database

__all__ = ["applied", "fence_off", "mark", "prepare", "prune"]


def prepare(ledger: Ledger, database: Database) -> bool:
    """Create `fsa_effect` in *database*, if its commits cannot contain the ledger's rows.

    Returns:
        Whether what is committed there can be fenced.

    Raises:
        SQLAlchemyError: The database refused, or is away.
    """
    url = database.url
    if url is None:
        return False
    if shares(ledger, url) and (_same_access(ledger.engine.url, url) or _writes(ledger, database)):
        _ = ledger.schema  # looked up here, where no event loop waits
        return True
    if not dialects.holds_ledger(url.get_backend_name()):
        return False
    with database.engine.begin() as connection:
        effects.create_all(connection)
        schema = connection.scalar(text(dialects.dialect_sql(connection.dialect).schema_of_effects))
    if schema is not None:
        ledger.effect_schemas[access_of(url)] = str(schema)
    return True


def _has_marks(ledger: Ledger, url: URL | None) -> bool:
    return (
        url is not None
        and not shares(ledger, url)
        and dialects.holds_ledger(url.get_backend_name())
    )


def _same_access(ledgers: URL, url: URL) -> bool:
    """Whether both URLs begin a session as the same user with the same settings."""
    return (ledgers.username, ledgers.query) == (url.username, url.query)


def _writes(ledger: Ledger, database: Database) -> bool:
    """Whether a session of *database* may write the ledger's tables, which are on its server."""
    with database.engine.connect() as connection:
        with closing(Asking(connection)) as asking:
            reach = probe(ledger, asking)
        if reach is not None:
            is_allowed = reach.writes
        else:
            table = ledger.qualified(run.name)
            try:
                connection.execute(text(f"UPDATE {table} SET commits = commits WHERE 1 = 0"))
                is_allowed = True
            except DBAPIError as exc:
                if not refused(exc):
                    raise
                is_allowed = False
    if not is_allowed:
        ledger.apart.add(access_of(database.engine.url))
    return is_allowed


def applied(ledger: Ledger, database: Database, run_ids: Sequence[str]) -> set[str]:
    """Which of these runs have taken effect in *database*, by the marks that they left there.

    Raises:
        SQLAlchemyError: The database is away.
    """
    if not run_ids or not _has_marks(ledger, database.url):
        return set()
    with database.engine.connect() as connection:
        if not connection.dialect.has_table(connection, effect.name):
            return set()
        return set(connection.scalars(select(effect.c.run_id).where(effect.c.run_id.in_(run_ids))))


def mark(ledger: Ledger, connection: Connection, run_id: str, token: str) -> None:
    """Leave the marks of a run in its transaction.

    Raises:
        IntegrityError: The run has taken effect, or was taken from this claim.
        DBAPIError: The transaction may not.
    """
    table = _table(ledger, connection)
    statement = _marking(dialects.dialect_sql(connection.dialect), table)
    execute(connection, statement, {"run_id": run_id, "claim": _claim_mark(run_id, token)})


def fence_off(ledger: Ledger, database: Database, claims: Mapping[str, str | None]) -> set[str]:
    """Which of these runs have taken effect in *database*: the others can no longer.

    A transaction that is open, with its mark, is waited for: `LOCK_S`, on SQLite as long as the
    app's own connections wait. After that its run has taken no effect yet, and still may.

    Args:
        claims: Runs, and the tokens under which processes that are dead by now had them.

    Raises:
        SQLAlchemyError: The database is away.
    """
    if not claims or not _has_marks(ledger, database.url):
        return set()
    with database.engine.connect() as connection:
        if connection.dialect.name in ("mysql", "mariadb"):
            connection.detach()  # what is set lasts as long as the connection
        try:
            _take(ledger, connection, claims)
        except DBAPIError as exc:  # no table either: then nothing has left a mark there
            if exc.connection_invalidated:
                raise
    return applied(ledger, database, list(claims))


def _take(ledger: Ledger, connection: Connection, claims: Mapping[str, str | None]) -> None:
    marks = sorted(_claim_mark(run_id, token) for run_id, token in claims.items() if token)
    sql, table = dialects.dialect_sql(connection.dialect), _table(ledger, connection)
    for limit in sql.brief_waits:
        connection.exec_driver_sql(limit)
    for each in marks:
        execute(connection, _taking(sql, table), {"claim": each})
    connection.commit()


def _table(ledger: Ledger, connection: Connection) -> str:
    schema = ledger.effect_schemas.get(access_of(connection.engine.url))
    quote = connection.dialect.identifier_preparer.quote
    return f"{quote(schema)}.fsa_effect".replace(":", "\\:") if schema else "fsa_effect"


def _claim_mark(run_id: str, token: str) -> str:
    # Several runs are claimed under one token.
    return hashlib.sha256(f"{run_id} {token}".encode()).hexdigest()[:32]


@lru_cache
def _marking(sql: DialectSQL, table: str) -> TextClause:
    return typed(
        f"INSERT INTO {table} (run_id, applied_ms) "
        f"VALUES (:run_id, {sql.now_ms}), (:claim, {sql.now_ms})"
    )


@lru_cache
def _taking(sql: DialectSQL, table: str) -> TextClause:
    ignore = sql.ignore.replace("fsa_run.id", "fsa_effect.run_id")
    return typed(f"INSERT INTO {table} (run_id, applied_ms) VALUES (:claim, {sql.now_ms}) {ignore}")


def prune(ledger: Ledger, database: Database) -> None:
    """Delete the marks of runs that the ledger has pruned.

    Raises:
        SQLAlchemyError: The database refused, or is away.
    """
    if not _has_marks(ledger, database.url):
        return
    with database.engine.begin() as connection:
        if connection.dialect.has_table(connection, effect.name):
            sql = dialects.dialect_sql(connection.dialect)
            before_ms = literal_column(sql.now_ms, BigInteger()) - KEPT_MS
            connection.execute(delete(effect).where(effect.c.applied_ms < before_ms))
