"""The ledger's tables: epoch milliseconds, text and integers, ids made by the writer of a row.

An app's Alembic can import `metadata`, or leave the tables to `fsa scheduler init`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Dialect,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    literal_column,
)
from sqlalchemy import UniqueConstraint as Unique
from sqlalchemy.types import TypeDecorator, TypeEngine

from fsa_cli.ledger.records import RunStatus
from fsa_cli.project.settings import NAMESPACE_LENGTH

__all__ = [
    "FINAL",
    "KEPT_MS",
    "KEY_LENGTH",
    "NAME_LENGTH",
    "NOT_REGISTERED",
    "QUEUE_LENGTH",
    "activity",
    "attempt",
    "audit",
    "effect",
    "effects",
    "indexes_of",
    "key",
    "metadata",
    "node",
    "node_task",
    "progress",
    "run",
    "schema",
    "task",
]

NAME_LENGTH = 190
QUEUE_LENGTH = 100
KEY_LENGTH = 190
_ID_LENGTH = 36

#: The states in which a run has ended for good.
FINAL = tuple(status for status in RunStatus if status.is_final)

#: The options of a task whose row was made before a process has registered it.
NOT_REGISTERED = "{}"

#: For how long a run is kept where nothing else is said.
KEPT_MS = 30 * 24 * 3600 * 1000

metadata = MetaData()
#: `fsa_effect` is created in the data's database, if that is not the ledger's.
effects = MetaData()


class _AnyText(TypeDecorator[str]):
    """Text of SQLite's, which keeps in a column whatever somebody puts there."""

    impl = String
    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], str | None]:
        return _any_text


class _AnyLongText(_AnyText):
    impl = Text
    cache_ok = True


class _AnyInteger(TypeDecorator[int]):
    """A number of SQLite's; 0 where somebody has put something else."""

    impl = BigInteger
    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], int | None]:
        return _any_integer


class _AnySmallInteger(_AnyInteger):
    impl = Integer  # type: ignore[assignment]
    cache_ok = True


# Not `process_result_value`, which SQLAlchemy calls by a function of its own: a page of the console
# reads thousands of cells.
def _any_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _any_integer(value: Any) -> int | None:
    if value is None or isinstance(value, int):
        return value
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return 0


def _text(length: int) -> TypeEngine[str]:
    # MySQL's other collations take "Report" and "report " for one name, and its database's own
    # character set may hold no such text.
    binary = String(length, collation="utf8mb4_bin")
    text = String(length).with_variant(_AnyText(length), "sqlite")
    return text.with_variant(binary, "mysql", "mariadb")


def _only_on(dialects: tuple[str, ...], index: Index, where: str | None = None) -> Index:
    index.info.update(dialects=dialects, where=where)
    return index.ddl_if(callable_=lambda *_, dialect, **__: _is_on(index, dialect))


def _is_on(index: Index, dialect: Dialect) -> bool:
    if dialect.name not in index.info.get("dialects", (dialect.name,)):
        return False
    if where := index.info.get("where"):
        # Given where it is declared it would import the dialects of all databases.
        index.dialect_options[dialect.name]["where"] = literal_column(where)
    return True


def indexes_of(table: Table, dialect: Dialect) -> list[Index]:
    """The indexes of *table* on *dialect*, by name."""
    there = [each for each in table.indexes if _is_on(each, dialect)]
    return sorted(there, key=lambda each: str(each.name))


_ID = _text(_ID_LENGTH)
_NAME = _text(NAME_LENGTH)
_KEY = _text(KEY_LENGTH)
_NAMESPACE = _text(NAMESPACE_LENGTH)
_LOCK = _text(NAMESPACE_LENGTH + NAME_LENGTH + 1)
# LONGTEXT there; its own name would import the whole dialect, which `fsa run-task` pays for.
_LONG = (
    Text()
    .with_variant(Text(2**32 - 1, collation="utf8mb4_bin"), "mysql", "mariadb")
    .with_variant(_AnyLongText(), "sqlite")
)
_BIG = BigInteger().with_variant(_AnyInteger(), "sqlite")
_INTEGER = Integer().with_variant(_AnySmallInteger(), "sqlite")

#: One row: which version of these tables is here. A version only adds to the one before.
schema = Table(
    "fsa_schema",
    metadata,
    Column("id", _INTEGER, primary_key=True, autoincrement=False),  # 1
    Column("version", _INTEGER, nullable=False),
    # The oldest version whose processes may work with these tables.
    Column("oldest", _INTEGER, nullable=False),
)

node = Table(
    "fsa_node",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("namespace", _NAMESPACE, nullable=False),
    Column("host", _text(255), nullable=False),
    Column("pid", _INTEGER, nullable=False),
    Column("version", _text(50), nullable=False),
    Column("role", _text(20), nullable=False),  # scheduler, worker, command
    Column("state", _text(20), nullable=False),  # alive, draining, stopped, dead
    Column("started_ms", _BIG, nullable=False),
    # Since when its lease has held without a gap: it stood for every instant from there on.
    Column("covered_from_ms", _BIG, nullable=False),
    Column("lease_until_ms", _BIG, nullable=False),
    Index("fsa_node_state", "namespace", "state"),
)

node_task = Table(
    "fsa_node_task",
    metadata,
    Column("node", _ID, primary_key=True),
    Column("task", _NAME, primary_key=True),
    Column("schedule_hash", _text(64), nullable=False),
    Column("since_ms", _BIG, nullable=False),
)

task = Table(
    "fsa_task",
    metadata,
    Column("namespace", _NAMESPACE, primary_key=True),
    Column("name", _NAME, primary_key=True),
    Column("options", _LONG, nullable=False),  # JSON: the schedule, the zone, the policies
    Column("schedule_hash", _text(64)),  # None: it has no schedule
    Column("paused_ms", _BIG),
    Column("paused_by", _text(255)),
    Column("watermark_ms", _BIG, nullable=False),
    Column("last_success_ms", _BIG),
    Column("consecutive_failures", _INTEGER, nullable=False, server_default="0"),
)

run = Table(
    "fsa_run",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("namespace", _NAMESPACE, nullable=False),
    Column("task", _NAME, nullable=False),
    Column("scheduled_ms", _BIG, nullable=False),
    Column("slot", _ID, nullable=False),  # "S", or the own id of a run that nothing scheduled
    Column("kind", _text(20), nullable=False),  # schedule, catch_up, manual
    Column("status", _text(20), nullable=False),
    Column("arguments", _LONG, nullable=False),  # JSON
    Column("executor", _text(50), nullable=False),
    Column("queue", _text(QUEUE_LENGTH)),
    Column("attempt", _INTEGER, nullable=False),
    Column("not_before_ms", _BIG, nullable=False),
    Column("node", _ID),
    Column("claim", _ID),
    Column("lock_key", _LOCK),
    Column("commits", _INTEGER, nullable=False, server_default="0"),
    Column("cancel_requested_ms", _BIG),
    Column("queued_ms", _BIG, nullable=False),
    Column("started_ms", _BIG),
    Column("finished_ms", _BIG),
    Column("error_type", _text(255)),
    Column("error", _LONG),
    Column("traceback", _LONG),
    Column("result", _LONG),  # JSON
    Column("requested_by", _text(255)),
    # Of those that wait the highest goes first. Version 2; what knows only version 1 writes none.
    Column("priority", _INTEGER, nullable=False, server_default="0"),
    # In this order, so that it serves the list of the latest runs too, and grows at its end.
    Unique("namespace", "scheduled_ms", "task", "slot", name="fsa_run_instant"),
    Unique("lock_key", name="fsa_run_lock"),
    Index("fsa_run_queue", "namespace", "status", "not_before_ms"),
    Index("fsa_run_node", "node", "status"),
    Index("fsa_run_history", "namespace", "task", "scheduled_ms"),
    # A partial one does not make every change of a status dearer; MySQL and MariaDB have none.
    _only_on(
        ("postgresql", "sqlite"),
        Index("fsa_run_priority", "namespace", "priority", "not_before_ms"),
        where="status = 'queued'",
    ),
    _only_on(
        ("mysql", "mariadb"),
        Index("fsa_run_priority", "namespace", "status", "priority", "not_before_ms"),
    ),
)

#: Which run has a key that its caller asked to be unique. What becomes of the run frees the key: an
#: old process, which does not know this table, leaves none behind that would be held for ever.
key = Table(
    "fsa_key",
    metadata,
    Column("namespace", _NAMESPACE, primary_key=True),
    Column("task", _NAME, primary_key=True),
    Column("name", _KEY, primary_key=True),
    Column("run", _ID, nullable=False),
    Column("kept_ms", _BIG),  # for how long after the end of its run; None: not at all
    Index("fsa_key_run", "run"),
)

progress = Table(
    "fsa_progress",
    metadata,
    Column("run", _ID, primary_key=True),
    Column("done", _BIG, nullable=False),
    Column("total", _BIG),
    Column("text", _LONG, nullable=False),
    Column("updated_ms", _BIG, nullable=False),
)

#: What a run that goes on for long does, so that another process can show it.
activity = Table(
    "fsa_activity",
    metadata,
    Column("run", _ID, primary_key=True),
    Column("place", _LONG, nullable=False),
    Column("sessions", _text(255), nullable=False),  # numbers, as the task's database knows them
    Column("updated_ms", _BIG, nullable=False),
)

#: The attempts of a run that others followed; `fsa_run` has the last one.
attempt = Table(
    "fsa_attempt",
    metadata,
    Column("run", _ID, primary_key=True),
    Column("claim", _ID, primary_key=True),
    # A command retries under one claim, and what a task asks for by `Retry` is not counted.
    Column("number", _INTEGER, primary_key=True, autoincrement=False),
    Column("status", _text(20), nullable=False),
    Column("node", _ID),
    Column("started_ms", _BIG),
    Column("finished_ms", _BIG, nullable=False),
    Column("error_type", _text(255)),
    Column("error", _LONG),  # its first line
)

audit = Table(
    "fsa_audit",
    metadata,
    Column("id", _ID, primary_key=True),  # the request's own: what is sent twice is done once
    Column("namespace", _NAMESPACE, nullable=False),
    Column("at_ms", _BIG, nullable=False),
    Column("person", _text(255), nullable=False),
    Column("action", _text(20), nullable=False),  # run, retry, cancel, pause, resume
    Column("target", _text(255), nullable=False),  # a task's name, a run's id
    Column("detail", _LONG, nullable=False),
    Column("outcome", _LONG),  # None: its process ended before it was done
    Index("fsa_audit_time", "namespace", "at_ms"),
)

effect = Table(
    "fsa_effect",
    effects,
    Column("run_id", _ID, primary_key=True),
    Column("applied_ms", _BIG, nullable=False),
    sqlite_with_rowid=False,  # one page less for each COMMIT
)
