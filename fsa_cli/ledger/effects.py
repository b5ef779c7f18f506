"""`fsa_effect`: the marks of runs that have committed in a database that is not the ledger's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import (
    BigInteger,
    delete,
    literal_column,
    select,
)

from fsa_cli.ledger import dialects
from fsa_cli.ledger.location import shares
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import KEPT_MS, effect, effects

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database

__all__ = ["applied", "prepare", "prune"]


def prepare(ledger: Ledger, database: Database) -> bool:
    """Create `fsa_effect` in *database*, if the ledger is in another one.

    Returns:
        Whether what is committed there can be fenced.

    Raises:
        SQLAlchemyError: The database refused, or is away.
    """
    if shares(ledger, database.url):
        return True
    if database.url is None:
        return False
    if database.url.get_backend_name().replace("mariadb", "mysql") not in dialects.SUPPORTED:
        return False
    effects.create_all(database.engine)
    return True


def applied(ledger: Ledger, database: Database, run_ids: Sequence[str]) -> set[str]:
    """Which of these runs have taken effect in *database*, by the marks that they left there.

    Raises:
        SQLAlchemyError: The database is away.
    """
    if not run_ids or database.url is None or shares(ledger, database.url):
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
    if database.url is None or shares(ledger, database.url):
        return
    with database.engine.begin() as connection:
        if connection.dialect.has_table(connection, effect.name):
            sql = dialects.dialect_sql(connection.dialect)
            before_ms = literal_column(sql.now_ms, BigInteger()) - KEPT_MS
            connection.execute(delete(effect).where(effect.c.applied_ms < before_ms))
