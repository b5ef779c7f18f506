"""`fsa_effect`: the marks of runs that have committed in a database that is not the ledger's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import (
    URL,
    BigInteger,
    delete,
    literal_column,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError

from fsa_cli.ledger import dialects
from fsa_cli.ledger.location import access_of, shares
from fsa_cli.ledger.reach import probe, refused
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import KEPT_MS, effect, effects, run

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database

__all__ = ["applied", "prepare", "prune"]


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
        reach = probe(ledger, connection)
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
