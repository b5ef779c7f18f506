"""The ledger's tables: epoch milliseconds, text and integers, ids made by the writer of a row.

An app's Alembic can import `metadata`, or leave the tables to `fsa scheduler init`.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, String, Table, Text
from sqlalchemy import UniqueConstraint as Unique
from sqlalchemy.types import TypeEngine

from fsa_cli.ledger.records import RunStatus
from fsa_cli.project.settings import NAMESPACE_LENGTH

__all__ = [
    "FINAL",
    "KEPT_MS",
    "NAME_LENGTH",
    "QUEUE_LENGTH",
    "effect",
    "effects",
    "metadata",
    "node",
    "node_task",
    "progress",
    "run",
    "task",
]

NAME_LENGTH = 190
QUEUE_LENGTH = 100
_ID_LENGTH = 36

#: The states in which a run has ended for good.
FINAL = tuple(status for status in RunStatus if status.is_final)

#: For how long after its instant a run is kept.
KEPT_MS = 30 * 24 * 3600 * 1000

metadata = MetaData()
#: `fsa_effect` is created in the data's database, if that is not the ledger's.
effects = MetaData()


def _text(length: int) -> TypeEngine[str]:
    # MySQL's other collations take "Report" and "report " for one name.
    return String(length).with_variant(String(length, collation="utf8mb4_bin"), "mysql", "mariadb")


_ID = _text(_ID_LENGTH)
_NAME = _text(NAME_LENGTH)
_NAMESPACE = _text(NAMESPACE_LENGTH)
_LOCK = _text(NAMESPACE_LENGTH + NAME_LENGTH + 1)
# LONGTEXT there; its own name would import the whole dialect, which `fsa run-task` pays for.
_LONG = Text().with_variant(Text(2**32 - 1), "mysql", "mariadb")

node = Table(
    "fsa_node",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("namespace", _NAMESPACE, nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", String(50), nullable=False),
    Column("role", String(20), nullable=False),  # scheduler, worker, command
    Column("state", String(20), nullable=False),  # alive, draining, stopped, dead
    Column("started_ms", BigInteger, nullable=False),
    # Since when its lease has held without a gap: it stood for every instant from there on.
    Column("covered_from_ms", BigInteger, nullable=False),
    Column("lease_until_ms", BigInteger, nullable=False),
    Index("fsa_node_state", "namespace", "state"),
)

node_task = Table(
    "fsa_node_task",
    metadata,
    Column("node", _ID, primary_key=True),
    Column("task", _NAME, primary_key=True),
    Column("schedule_hash", String(64), nullable=False),
    Column("since_ms", BigInteger, nullable=False),
)

task = Table(
    "fsa_task",
    metadata,
    Column("namespace", _NAMESPACE, primary_key=True),
    Column("name", _NAME, primary_key=True),
    Column("options", _LONG, nullable=False),  # JSON: the schedule, the zone, the policies
    Column("schedule_hash", String(64)),  # None: it has no schedule
    Column("paused_ms", BigInteger),
    Column("paused_by", String(255)),
    Column("watermark_ms", BigInteger, nullable=False),
    Column("last_success_ms", BigInteger),
    Column("consecutive_failures", Integer, nullable=False, server_default="0"),
)

run = Table(
    "fsa_run",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("namespace", _NAMESPACE, nullable=False),
    Column("task", _NAME, nullable=False),
    Column("scheduled_ms", BigInteger, nullable=False),
    Column("slot", _ID, nullable=False),  # "S", or the own id of a run that nothing scheduled
    Column("kind", String(20), nullable=False),  # schedule, catch_up, manual
    Column("status", String(20), nullable=False),
    Column("arguments", _LONG, nullable=False),  # JSON
    Column("executor", String(50), nullable=False),
    Column("queue", String(QUEUE_LENGTH)),
    Column("attempt", Integer, nullable=False),
    Column("not_before_ms", BigInteger, nullable=False),
    Column("node", _ID),
    Column("claim", _ID),
    Column("lock_key", _LOCK),
    Column("commits", Integer, nullable=False, server_default="0"),
    Column("cancel_requested_ms", BigInteger),
    Column("queued_ms", BigInteger, nullable=False),
    Column("started_ms", BigInteger),
    Column("finished_ms", BigInteger),
    Column("error_type", String(255)),
    Column("error", _LONG),
    Column("traceback", _LONG),
    Column("result", _LONG),  # JSON
    Column("requested_by", String(255)),
    # In this order, so that it serves the list of the latest runs too, and grows at its end.
    Unique("namespace", "scheduled_ms", "task", "slot", name="fsa_run_instant"),
    Unique("lock_key", name="fsa_run_lock"),
    Index("fsa_run_queue", "namespace", "status", "not_before_ms"),
    Index("fsa_run_node", "node", "status"),
    Index("fsa_run_history", "namespace", "task", "scheduled_ms"),
)

progress = Table(
    "fsa_progress",
    metadata,
    Column("run", _ID, primary_key=True),
    Column("done", BigInteger, nullable=False),
    Column("total", BigInteger),
    Column("text", _LONG, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
)

effect = Table(
    "fsa_effect",
    effects,
    Column("run_id", _ID, primary_key=True),
    Column("applied_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,  # one page less for each COMMIT
)
