"""Read the ledger: runs, tasks, nodes, and whether the schedule is kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, bindparam, func, select

from fsa_cli.ledger.nodes import elsewhere
from fsa_cli.ledger.records import OPEN_STATES, RunStatus
from fsa_cli.ledger.served_queues import Unserved, service, serving, unserved
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import key, node, progress, run, task
from fsa_cli.ledger.values import is_run_id

__all__ = [
    "Vitals",
    "all_tasks",
    "find",
    "get",
    "holder",
    "missed",
    "open_runs",
    "runs",
    "tasks",
    "vitals",
    "waiting_runs",
]

_NODES = 50
_MISSED = 300
_RUNNING = 50
_OPEN = ("queued", "running", "handed_off")


@dataclass(frozen=True)
class Vitals:
    """Whether the schedule is kept.

    Attributes:
        nodes: Those that keep it, the longest lease first: role, lease_until_ms, is_open.
        failures: Each task that is not paused, and how often it has failed since its last success.
        missed: How many instants of each of these were missed since then.
        unserved: What waits for nobody: no process that lives serves its queue.
        elsewhere: Other namespaces of the ledger whose schedulers or workers live.
        waiting: As returned by `waiting_runs`.
        executing: How many processes live that execute runs.
        takers: How many of them take what waits in the ledger.
        running: Runs that go on: id, task and executor, at most 50.
        paused: The tasks that are paused, and by whom.
    """

    now_ms: int
    nodes: Sequence[Row[Any]]
    failures: Mapping[str, int]
    missed: Mapping[str, int]
    unserved: Sequence[Unserved]
    elsewhere: tuple[str, ...]
    waiting: Sequence[Row[Any]]
    executing: int
    takers: int
    running: Sequence[Row[Any]]
    paused: Mapping[str, str | None]


def holder(ledger: Ledger, lock_key: str) -> Row[Any] | None:
    """The run that holds a lock, and the node that executes it; None: it is free."""
    statement = (
        select(run, node.c.host, node.c.pid)
        .outerjoin(node, node.c.id == run.c.node)
        .where(run.c.lock_key == lock_key)
    )
    return ledger.read(lambda connection: connection.execute(statement).one_or_none())


def _whole() -> Select[Any]:
    """Runs, each with its progress and the unique key that it has."""
    # No join: of a run that two keys name, as somebody else may write it, two rows would come.
    unique_key = select(func.min(key.c.name)).where(key.c.run == run.c.id).scalar_subquery()
    columns = (run, progress.c.done, progress.c.total, progress.c.text)
    return select(*columns, unique_key.label("unique_key")).outerjoin(
        progress, progress.c.run == run.c.id
    )


def get(ledger: Ledger, run_id: str) -> Row[Any] | None:
    """The run with this id, with its progress and its unique key."""
    if not is_run_id(run_id):
        return None
    statement = _whole().where(run.c.namespace == ledger.namespace, run.c.id == run_id)
    return ledger.read(lambda connection: connection.execute(statement).one_or_none())


def find(ledger: Ledger, prefix: str) -> list[Row[Any]]:
    """The runs whose id begins with *prefix*, at most two, each with its progress."""
    if not is_run_id(prefix):
        return []

    def work(connection: Connection) -> list[Row[Any]]:
        return list(
            connection.execute(
                _whole()
                .where(
                    run.c.namespace == ledger.namespace,
                    run.c.id.startswith(prefix, autoescape=True),
                    # LIKE alone reads the whole table on PostgreSQL and SQLite. Ids are
                    # hexadecimal: in every collation what begins with the prefix is between these.
                    run.c.id.between(prefix, f"{prefix}zz"),
                )
                .limit(2)
            )
        )

    return ledger.read(work)


def runs(
    ledger: Ledger,
    *,
    names: Collection[str] | None = None,
    statuses: Sequence[str] = (),
    since_ms: int | None = None,
    queue: str | None = None,
    unique: str | None = None,
    limit: int = 20,
) -> list[Row[Any]]:
    """The latest runs, the newest first.

    Args:
        names: Of tasks; None: of whatever tasks.
        unique: The unique key that they have.
    """

    def work(connection: Connection) -> list[Row[Any]]:
        statement = (
            _whole()
            .where(run.c.namespace == ledger.namespace)
            .order_by(run.c.scheduled_ms.desc(), run.c.id)
            .limit(limit)
        )
        if names is not None:
            statement = statement.where(run.c.task.in_(sorted(names)))
        if queue is not None:
            statement = statement.where(run.c.queue == queue)
        if unique is not None:
            with_key = key.c.namespace == ledger.namespace, key.c.name == unique
            statement = statement.where(run.c.id.in_(select(key.c.run).where(*with_key)))
        if statuses:
            statement = statement.where(run.c.status.in_(statuses))
        if since_ms is not None:
            statement = statement.where(run.c.scheduled_ms >= since_ms)
        return list(connection.execute(statement))

    return ledger.read(work)


def tasks(ledger: Ledger) -> list[Row[Any]]:
    """The tasks that it knows, by name."""
    return ledger.read(lambda connection: list(connection.execute(all_tasks(ledger))))


def all_tasks(ledger: Ledger) -> Select[Any]:
    """The rows of `tasks`."""
    return select(task).where(task.c.namespace == ledger.namespace).order_by(task.c.name)


def open_runs(connection: Connection, namespace: str) -> dict[str, dict[str, int]]:
    """How many runs of each task are in which status that is not final."""
    found: dict[str, dict[str, int]] = {}
    statement = (
        select(run.c.task, run.c.status, func.count().label("number"))
        .where(run.c.namespace == namespace, run.c.status.in_(_OPEN))
        .group_by(run.c.task, run.c.status)
    )
    for row in connection.execute(statement):
        found.setdefault(row.task, {})[row.status] = row.number
    return found


def vitals(ledger: Ledger) -> Vitals:
    """Whether the schedule is kept, by a few small queries."""

    def work(connection: Connection) -> Vitals:
        keepers = (
            select(
                node.c.role,
                node.c.lease_until_ms,
                node.c.state.in_(OPEN_STATES).label("is_open"),
            )
            .where(node.c.namespace == ledger.namespace, node.c.role.in_(("scheduler", "tick")))
            .order_by(node.c.lease_until_ms.desc())
            .limit(_NODES)
        )
        rows = connection.execute(
            select(
                task.c.name, task.c.consecutive_failures, task.c.paused_ms, task.c.paused_by
            ).where(task.c.namespace == ledger.namespace)
        ).all()
        failures = {row.name: row.consecutive_failures for row in rows if row.paused_ms is None}
        paused = {row.name: row.paused_by for row in rows if row.paused_ms is not None}
        of_missed = missed(connection, ledger.namespace)
        now_ms = ledger.now_ms(connection)
        going_on: Select[Any] = (
            select(run.c.id, run.c.task, run.c.executor)
            .where(run.c.namespace == ledger.namespace, run.c.status == RunStatus.RUNNING)
            .limit(_RUNNING)
        )
        who = serving(connection, ledger, now_ms)
        return Vitals(
            now_ms=now_ms,
            nodes=connection.execute(keepers).all(),
            failures=failures,
            missed={name: number for name, number in of_missed.items() if name in failures},
            unserved=unserved(connection, ledger, now_ms),
            elsewhere=elsewhere(connection, ledger, now_ms),
            waiting=_waiting(connection, ledger, now_ms),
            executing=who.executing,
            takers=who.schedulers + sum(service("local") in each for each in who.workers),
            running=connection.execute(going_on).all(),
            paused=paused,
        )

    return ledger.read(work)


def waiting_runs(ledger: Ledger) -> Sequence[Row[Any]]:
    """Of each task and status (`queued`, `handed_off`) the number of runs whose time has come, and
    since_ms, when that of the oldest had; the oldest first."""

    def work(connection: Connection) -> Sequence[Row[Any]]:
        return _waiting(connection, ledger, ledger.now_ms(connection))

    return ledger.read(work)


def _waiting(connection: Connection, ledger: Ledger, now_ms: int) -> Sequence[Row[Any]]:
    since_ms = func.min(run.c.not_before_ms)
    statement = (
        select(run.c.task, run.c.status, func.count().label("number"), since_ms.label("since_ms"))
        .where(
            run.c.namespace == ledger.namespace,
            run.c.status.in_(("queued", "handed_off")),
            run.c.not_before_ms <= now_ms,
        )
        .group_by(run.c.task, run.c.status)
        .order_by(since_ms)
    )
    return connection.execute(statement).all()


def missed(
    connection: Connection, namespace: str, status: str = RunStatus.MISSED
) -> dict[str, int]:
    """How many instants of each task were missed, or have another *status*, since its last
    success; of all the latest 300 are counted."""
    rows = connection.execute(_missed(status), {"of_namespace": namespace})
    return {row.task: row.number for row in rows}


@cache  # to build it takes as long as to execute it
def _missed(status: str) -> Select[tuple[str, int]]:
    namespace = bindparam("of_namespace", type_=run.c.namespace.type)
    some = (
        select(run.c.task, run.c.scheduled_ms)
        .where(run.c.namespace == namespace, run.c.status == status)
        .order_by(run.c.not_before_ms.desc())
        .limit(_MISSED)
        .subquery()
        .c
    )
    return (
        select(some.task, func.count().label("number"))
        .join(task, and_(task.c.namespace == namespace, task.c.name == some.task))
        .where(some.scheduled_ms > func.coalesce(task.c.last_success_ms, 0))
        .group_by(some.task)
    )
