"""Making the ledger, and the SQL for whoever may make it where `fsa` may not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from sqlalchemy import MetaData
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable

from fastapi_sqlalchemy.exceptions import DBSessionError
from fsa_cli.database.connections import address, driver_message
from fsa_cli.ledger import dialects, effects, tables
from fsa_cli.ledger.access import reached
from fsa_cli.ledger.location import shares
from fsa_cli.ledger.store import Ledger

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database

__all__ = ["create", "statements"]


def create(ledger: Ledger, databases: Iterable[Database], warn: Callable[[str], None]) -> bool:
    """Make what is missing of its tables, in the apps' databases too; False if all was there.

    Raises:
        LedgerUnusable: They cannot be made.
        DatabaseUnreachable: The ledger's database is away.
    """
    try:
        with reached(ledger):
            made = ledger.create()
    finally:
        ledger.dispose()
    for database in databases:
        try:
            effects.prepare(ledger, database)
        except (SQLAlchemyError, DBSessionError) as exc:
            warn(f"fsa_effect cannot be made in {database.name!r}: {driver_message(exc)}")
    return made


def statements(ledger: Ledger, databases: Iterable[Database]) -> Iterator[str]:
    """The SQL, a statement at a time, in the words of the ledger's database. Nothing is connected.

    Where an app's database is another one, what it needs follows.
    """
    yield f"-- {ledger.where}"
    yield from _of(tables.metadata, ledger.engine.dialect)
    for database in databases:
        url = database.url
        if url is None or shares(ledger, url):
            continue
        if url.get_backend_name().replace("mariadb", "mysql") in dialects.SUPPORTED:
            yield f"-- {address(url)}"
            yield from _of(tables.effects, url.get_dialect()())


def _of(metadata: MetaData, dialect: Dialect) -> Iterator[str]:
    for table in metadata.sorted_tables:
        made: list[CreateTable | CreateIndex] = [CreateTable(table)]
        made += [
            CreateIndex(index) for index in sorted(table.indexes, key=lambda one: str(one.name))
        ]
        for each in made:
            lines = str(each.compile(dialect=dialect)).strip().splitlines()
            yield "\n".join(line.rstrip() for line in lines) + ";"
