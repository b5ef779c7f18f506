"""The databases as a page shows them: tables, sizes, pool, migrations; all of it is only read."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi_sqlalchemy.exceptions import DBSessionError
from fsa_cli.console.source import Source
from fsa_cli.database import catalog
from fsa_cli.database.catalog import TableSummary
from fsa_cli.database.connections import driver_message
from fsa_cli.database.identity import address
from fsa_cli.exceptions import FsaError
from fsa_cli.project import loader

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database

__all__ = ["DatabaseSummary", "summaries"]

_KEPT_S = 30.0
_MOST_TABLES = 300
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class DatabaseSummary:
    """One of the app's databases.

    Attributes:
        address: Without its password.
        tables: The largest first, at most 300.
        pool: Of this process, by side.
        schema: The state of its migrations; None: there are none, or they are not looked at here.
        problem: Why there is nothing to show.
    """

    name: str
    address: str
    tables: Sequence[TableSummary]
    more: int
    size_bytes: int | None
    pool: Mapping[str, Mapping[str, int]]
    schema: str | None
    problem: str | None


_kept: dict[int, tuple[float, list[DatabaseSummary]]] = {}


def summaries(source: Source) -> list[DatabaseSummary]:
    """The app's databases. It is looked at twice a minute, whoever asks: it reads the catalogue."""
    with _lock:
        kept = _kept.get(id(source))
        if kept is None or time.monotonic() - kept[0] > _KEPT_S:
            found = [_summary(name, db, source) for name, db in source.databases.items()]
            kept = _kept[id(source)] = time.monotonic(), found
        return kept[1]


def _summary(name: str, database: Database, source: Source) -> DatabaseSummary:
    tables: list[TableSummary] = []
    size: int | None = None
    problem = None
    try:
        with database.engine.connect() as connection:
            tables, size = catalog.tables(connection), catalog.total_bytes(connection)
    except DBSessionError:
        problem = "it has an async driver alone: fsa db show looks at it"
    except Exception as exc:  # whatever a driver raises
        problem = driver_message(exc)
    return DatabaseSummary(
        name=name,
        address=address(database.url),
        tables=tables[:_MOST_TABLES],
        more=max(len(tables) - _MOST_TABLES, 0),
        size_bytes=size,
        pool=database.pool_status(),
        schema=_schema(source) if problem is None and name == source.settings.database else None,
        problem=problem,
    )


def _schema(source: Source) -> str | None:
    current = loader.current()
    if current is None:
        return None
    from fsa_cli.migrations import is_at_head

    try:
        state = is_at_head(*current)
    except FsaError as exc:
        return exc.message
    return None if state is None else str(state)
