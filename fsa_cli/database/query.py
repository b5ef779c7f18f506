"""One SQL statement that reads, and its rows as they come.

The database keeps it from writing (see `readonly`). On PostgreSQL that takes one thing more: its
drivers send several statements at once if the text holds several, and `COMMIT; BEGIN READ WRITE;
DELETE ...` would leave the read-only transaction. So the text goes in as a value, and the server
opens a cursor for it, which it does for a single statement that gives rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi_sqlalchemy import Database
from fsa_cli.database import readonly
from fsa_cli.database.connections import connected

if TYPE_CHECKING:
    from sqlalchemy import Connection

T = TypeVar("T")
Rows = Iterable[Sequence[Any]]

_BATCH = 500
_OPEN = """
    DO $fsa$
    DECLARE rows refcursor := 'fsa';
    BEGIN OPEN rows FOR EXECUTE current_setting('fsa.query'); END
    $fsa$
"""


def run(db: Database, statement: str, receive: Callable[[list[str], Rows], T]) -> T:
    """The value of *receive*, called with the columns and the rows of *statement*.

    From here on this process can only read. A statement without rows has no columns.
    """
    readonly.enforce()

    def work(connection: Connection) -> T:
        raw = connection.execution_options(no_parameters=True)
        if connection.dialect.name == "postgresql":
            return _by_cursor(raw, statement, receive)
        result = raw.exec_driver_sql(statement)
        if not result.returns_rows:
            return receive([], [])
        return receive(unique(result.keys()), iter(result))

    return connected(db, work)


def unique(names: Iterable[str]) -> list[str]:
    """*names* with `_2`, `_3` behind those that were there already."""
    taken: dict[str, None] = {}
    for name in names:
        spellings = itertools.chain([name], (f"{name}_{n}" for n in itertools.count(2)))
        taken[next(each for each in spellings if each not in taken)] = None
    return list(taken)


def value(cell: object) -> object:
    """A cell as it is shown: bytes as hexadecimal digits, numbers that JSON lacks as text."""
    match cell:
        case bytes() | bytearray() | memoryview():
            return "\\x" + bytes(cell).hex()
        case float() if not math.isfinite(cell):
            return str(cell)
    return cell


def _read_any_date(driver: Any) -> None:
    """Have psycopg give as text what Python's dates cannot hold: `infinity`, and dates of BC.

    https://www.psycopg.org/psycopg3/docs/basic/adapt.html#date-time-types-adaptation
    """
    from psycopg import DataError
    from psycopg.types import datetime

    def reading(kind: Any) -> Any:
        def load(self: Any, data: Any) -> Any:
            try:
                return kind.load(self, data)
            except DataError:
                return bytes(data).decode()

        return type(kind.__name__, (kind,), {"load": load})

    driver.adapters.register_loader("date", reading(datetime.DateLoader))
    driver.adapters.register_loader("timestamp", reading(datetime.TimestampLoader))
    driver.adapters.register_loader("timestamptz", reading(datetime.TimestamptzLoader))


def _by_cursor(
    connection: Connection, statement: str, receive: Callable[[list[str], Rows], T]
) -> T:
    from sqlalchemy import func, select

    connection = readonly.own(connection)
    if connection.dialect.driver == "psycopg":
        _read_any_date(connection.connection.driver_connection)
    connection.execute(select(func.set_config("fsa.query", statement, True)))
    connection.exec_driver_sql(_OPEN)
    first = connection.exec_driver_sql(f"FETCH {_BATCH} FROM fsa")

    def rows() -> Iterator[Sequence[Any]]:
        batch = first.all()
        while batch:
            yield from batch
            batch = connection.exec_driver_sql(f"FETCH {_BATCH} FROM fsa").all()

    return receive(unique(first.keys()), rows())
