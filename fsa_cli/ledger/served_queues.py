"""Whether a queue has somebody who serves it: what each worker has said when it joined.

A worker writes what it serves beside its node, in `fsa_node_task`. One that has written nothing (of
the version before, or a broker's own worker that a team starts) may serve everything.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache

from sqlalchemy import Connection, Select, and_, func, select

from fsa_cli.ledger.nodes import lives
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import NOT_REGISTERED, node, node_task, run, task

__all__ = ["Serving", "Unserved", "is_registered", "service", "serving", "unserved"]

_LOCAL = "local"


def service(executor: str, queue: str | None = None) -> str:
    """How a worker writes that it serves a queue of an executor; no task has such a name."""
    return f"@{executor}/{'' if executor == _LOCAL else queue or ''}"


@dataclass(frozen=True)
class Serving:
    """Who executes runs at one moment.

    Attributes:
        schedulers: How many processes live that execute what waits in the ledger.
        workers: What each live worker serves; nothing: perhaps everything.
    """

    schedulers: int
    workers: Sequence[Collection[str]]

    @property
    def executing(self) -> int:
        """How many processes live that execute runs."""
        return self.schedulers + len(self.workers)

    def has(self, executor: str, queue: str | None) -> bool:
        """Whether somebody serves this queue."""
        if executor == _LOCAL and self.schedulers:
            return True
        wanted = service(executor, queue)
        return any(not each or wanted in each for each in self.workers)


@dataclass(frozen=True)
class Unserved:
    """Runs whose time has come, and that wait for nobody.

    Attributes:
        since_ms: Since when the oldest was queued.
    """

    executor: str
    queue: str | None
    status: str
    number: int
    since_ms: int


def serving(connection: Connection, ledger: Ledger, now_ms: int) -> Serving:
    """Who executes runs now."""
    given = {"of_namespace": ledger.namespace, "at_ms": now_ms}
    rows = connection.execute(_serving(), given).all()
    workers: dict[str, set[str]] = {row.id: set() for row in rows if row.role == "worker"}
    for row in rows:
        if row.role == "worker" and row.task is not None:
            workers[row.id].add(row.task)
    schedulers = {row.id for row in rows if row.role == "scheduler"}
    return Serving(len(schedulers), list(workers.values()))


@cache  # to build it takes as long as to execute it
def _serving() -> Select[tuple[str, str, str]]:
    said = and_(node_task.c.node == node.c.id, node_task.c.task.like("@%"))
    return (
        select(node.c.id, node.c.role, node_task.c.task)
        .outerjoin(node_task, said)
        .where(lives(), node.c.role.in_(("scheduler", "worker")))
    )


def is_registered(connection: Connection, ledger: Ledger, name: str) -> bool:
    """Whether a process has joined, be it that it has gone since, that executes this task."""
    statement = select(task.c.name).where(
        task.c.namespace == ledger.namespace,
        task.c.name == name,
        task.c.options != NOT_REGISTERED,
    )
    return connection.scalar(statement) is not None


def unserved(connection: Connection, ledger: Ledger, now_ms: int) -> list[Unserved]:
    """The runs that wait for nobody, by executor, queue and status; the oldest first."""
    since_ms = func.min(run.c.queued_ms)
    statement = (
        select(run.c.executor, run.c.queue, run.c.status, func.count(), since_ms)
        .where(
            run.c.namespace == ledger.namespace,
            run.c.status.in_(("queued", "handed_off")),
            # The message of a dispatched one is sent again at that time.
            (run.c.status == "handed_off") | (run.c.not_before_ms <= now_ms),
        )
        .group_by(run.c.executor, run.c.queue, run.c.status)
        .order_by(since_ms)
    )
    waiting = [Unserved(*row) for row in connection.execute(statement)]
    served = serving(connection, ledger, now_ms) if waiting else None
    return [each for each in waiting if served and not served.has(each.executor, each.queue)]
