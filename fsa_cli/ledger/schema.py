"""Create the ledger's tables, or print the SQL for a person who may."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from sqlalchemy import MetaData
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable

from fastapi_sqlalchemy.exceptions import DBSessionError
from fsa_cli.database.connections import driver_message
from fsa_cli.database.identity import address
from fsa_cli.ledger import dialects, effects, tables, upgrade
from fsa_cli.ledger.access import reached
from fsa_cli.ledger.location import shares
from fsa_cli.ledger.store import Ledger

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database

__all__ = ["create", "ledger_statements", "statements"]


def create(ledger: Ledger, databases: Iterable[Database], warn: Callable[[str], None]) -> bool:
    """Create the missing tables, in the apps' databases too; False if all existed.

    Raises:
        LedgerUnusable: They cannot be created.
        DatabaseUnreachable: The ledger's database is away.
    """
    try:
        with reached(ledger):
            created = ledger.create()
            if not created:
                ledger.check_keys()
        for database in databases:
            try:
                effects.prepare(ledger, database)
            except (SQLAlchemyError, DBSessionError) as exc:
                warn(f"fsa_effect cannot be created in {database.name!r}: {driver_message(exc)}")
    finally:
        ledger.dispose()
    return created


def statements(ledger: Ledger, databases: Iterable[Database]) -> Iterator[str]:
    """The SQL, a statement at a time, in the ledger's dialect. Nothing is connected.

    The statements for an app's database that is another one follow.
    """
    yield f"-- {ledger.where}"
    yield from ledger_statements(ledger.engine.dialect)
    for database in databases:
        url = database.url
        if url is None or shares(ledger, url):
            continue
        if dialects.holds_ledger(url.get_backend_name()):
            yield f"-- {address(url)}"
            yield from _of(tables.effects, url.get_dialect()())


def ledger_statements(dialect: Dialect) -> Iterator[str]:
    """As `statements`, of the ledger alone."""
    yield from _of(tables.metadata, dialect)
    yield from upgrade.by_hand(dialect)


def _of(metadata: MetaData, dialect: Dialect) -> Iterator[str]:
    for table in metadata.sorted_tables:
        created: list[CreateTable | CreateIndex] = [CreateTable(table)]
        created += [CreateIndex(index) for index in tables.indexes_of(table, dialect)]
        for each in created:
            lines = str(each.compile(dialect=dialect)).strip().splitlines()
            yield "\n".join(line.rstrip() for line in lines) + ";"
