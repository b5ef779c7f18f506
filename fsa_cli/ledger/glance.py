"""One look at the ledger, whoever asks: what is alive, what runs, what waits, what has failed.

`fsa status`, `fsa scheduler status`, `fsa top` and the console show what they are about from this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    CompoundSelect,
    Connection,
    Row,
    Select,
    bindparam,
    case,
    func,
    literal_column,
    select,
    union_all,
)

from fsa_cli.database.identity import file_trouble
from fsa_cli.ledger import nodes, queries, run_search, task_history
from fsa_cli.ledger.records import RunStatus
from fsa_cli.ledger.served_queues import Serving, serving
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import FINAL, node, run

__all__ = ["MOST_COUNTED", "MOST_RUNNING", "Glance", "Waiting", "executing", "glance", "waiting"]

#: So many of the runs that go on are listed.
MOST_RUNNING = 50
#: Of what waits, so many of each status are counted, those that are due first.
MOST_COUNTED = 10_000
_MOST_GROUPS = 500
_EXECUTED = tuple(each for each in FINAL if each not in (RunStatus.SKIPPED, RunStatus.MISSED))


@dataclass(frozen=True)
class Waiting:
    """The runs of one task that wait alike.

    Attributes:
        number: How many, and `later` how many of them for a time that has not come.
        more: Whether there are more of their status than were counted.
        oldest_ms: Since when the first of them waits.
        due_ms: When the time of the first of them came, or comes.
    """

    task: str
    executor: str
    queue: str | None
    status: str
    number: int
    later: int
    more: bool
    oldest_ms: int
    due_ms: int

    @property
    def due(self) -> int:
        return self.number - self.later


@dataclass(frozen=True)
class Glance:
    """The ledger at one moment: its rows, as they are.

    Attributes:
        nodes: Those that live, and those that have gone since yesterday.
        tasks: By name.
        last_runs: The last run of each task that has ended, where the look is a full one.
        last_executed: The last run of each task that was not skipped, where something went wrong.
        missed: How many instants of each task were missed since its last success.
        skipped: How many were skipped since then.
        known: The tasks that a live scheduler fires.
        elsewhere: Other namespaces of the ledger whose schedulers or workers live.
        running: The runs that go on, the longest first, with their progress and the host, pid, role
            and lease_until_ms of their nodes: at most `MOST_RUNNING`, and one more if there is one.
        waiting: What waits, the oldest first.
        serving: Who executes runs, of which queues.
        open_runs: Of each task and open status the number, where the look is a full one.
        unwritable: What keeps this user from writing it, where it is a file.
    """

    now_ms: int
    nodes: Sequence[Row[Any]]
    tasks: Sequence[Row[Any]]
    last_runs: Mapping[str, Row[Any]]
    last_executed: Mapping[str, Row[Any]]
    missed: Mapping[str, int]
    skipped: Mapping[str, int]
    known: frozenset[str]
    elsewhere: tuple[str, ...]
    running: Sequence[Row[Any]]
    waiting: Sequence[Waiting]
    serving: Serving
    open_runs: Mapping[str, Mapping[str, int]]
    unwritable: str | None


def glance(ledger: Ledger, at_ms: int | None = None, *, full: bool = False) -> Glance:
    """One look at the ledger: a few bounded statements, however many tasks there are.

    Args:
        at_ms: The database's clock, if it was asked for already.
        full: Whether it has `open_runs`, which counts all that waits, and the last run of every
            task.
    """

    def work(connection: Connection) -> Glance:
        now_ms = ledger.now_ms(connection) if at_ms is None else at_ms
        last = task_history.latest(ledger, FINAL)
        executed = task_history.latest(ledger, _EXECUTED, wrong=True)
        running = run_search.going_on(ledger, MOST_RUNNING + 1)
        return Glance(
            now_ms=now_ms,
            nodes=nodes.listed(connection, ledger, now_ms),
            tasks=connection.execute(queries.all_tasks(ledger)).all(),
            last_runs={row.task: row for row in connection.execute(last)} if full else {},
            last_executed={row.task: row for row in connection.execute(executed)},
            missed=queries.missed(connection, ledger.namespace),
            skipped=queries.missed(connection, ledger.namespace, RunStatus.SKIPPED),
            known=nodes.fired(connection, ledger, now_ms),
            elsewhere=nodes.elsewhere(connection, ledger, now_ms),
            running=connection.execute(running).all(),
            waiting=_waiting(connection, ledger, now_ms),
            serving=serving(connection, ledger, now_ms),
            open_runs=queries.open_runs(connection, ledger.namespace) if full else {},
            unwritable=file_trouble(ledger.engine.url) if ledger.is_sqlite else None,
        )

    return ledger.read(work)


def waiting(ledger: Ledger, now_ms: int) -> Sequence[Waiting]:
    """As `Glance.waiting`."""
    return ledger.read(lambda connection: _waiting(connection, ledger, now_ms))


def executing(ledger: Ledger, run_id: str) -> Row[Any] | None:
    """The node that a run is or was executed by: host, pid, role, and until when it has its lease,
    with the time that it is now; None where it is not known."""
    now_ms: Any = literal_column(ledger.sql.now_ms).label("now_ms")
    statement: Select[Any] = (
        select(node.c.host, node.c.pid, node.c.role, node.c.lease_until_ms, now_ms)
        .join(run, run.c.node == node.c.id)
        .where(run.c.id == run_id)
    )
    return ledger.read(lambda connection: connection.execute(statement).one_or_none())


def _waiting(connection: Connection, ledger: Ledger, now_ms: int) -> Sequence[Waiting]:
    given = {"of_namespace": ledger.namespace, "at_ms": now_ms}
    rows = connection.execute(_waiting_statement(), given).all()
    counted: dict[str, int] = {}
    for row in rows:
        counted[row.status] = counted.get(row.status, 0) + row.number
    found = [
        Waiting(
            row.task,
            row.executor,
            row.queue,
            row.status,
            int(row.number),
            int(row.later or 0),
            counted[row.status] >= MOST_COUNTED or len(rows) >= _MOST_GROUPS,
            int(row.oldest_ms),
            int(row.due_ms),
        )
        for row in rows
    ]
    return sorted(found, key=lambda each: (each.due_ms, each.task))


@cache  # to build it takes longer than to execute it
def _waiting_statement() -> CompoundSelect[Any]:
    parts = []
    for status in (RunStatus.QUEUED, RunStatus.DISPATCHED):
        some = (
            select(
                run.c.task,
                run.c.executor,
                run.c.queue,
                run.c.status,
                run.c.queued_ms,
                run.c.not_before_ms,
            )
            .where(
                run.c.namespace == bindparam("of_namespace", type_=run.c.namespace.type),
                run.c.status == status,
            )
            .order_by(run.c.not_before_ms)
            .limit(MOST_COUNTED)
            .subquery()
            .c
        )
        # What is dispatched waits for a worker alone.
        is_later = case((some.not_before_ms > bindparam("at_ms", type_=BigInteger), 1), else_=0)
        parts.append(
            select(
                some.task,
                some.executor,
                some.queue,
                some.status,
                func.count().label("number"),
                (func.sum(is_later) if status == RunStatus.QUEUED else func.min(0)).label("later"),
                func.min(some.queued_ms).label("oldest_ms"),
                func.min(some.not_before_ms).label("due_ms"),
            ).group_by(some.task, some.executor, some.queue, some.status)
        )
    # The oldest of each status first: there may be as many queues as runs.
    return union_all(*parts).order_by("due_ms").limit(_MOST_GROUPS)
