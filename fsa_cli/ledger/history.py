"""What ran and what is asked for: reading the ledger, and writing what a person wants of it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, case, delete, exists, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from fsa_cli.ledger.claims import Claimed
from fsa_cli.ledger.nodes import lives
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import FINAL, KEPT_MS, node, node_task, progress, run, task

__all__ = [
    "Overview",
    "Vitals",
    "attempted",
    "begin",
    "cancel",
    "cancel_requested",
    "find",
    "holder",
    "overview",
    "pause",
    "prune",
    "reconcile",
    "resume",
    "retry",
    "runs",
    "tasks",
    "vitals",
    "write_progress",
]

_DAY_MS = 24 * 3600 * 1000
_NODES = 50
_PRUNED = 1000
_OPEN = ("queued", "running", "handed_off")


@dataclass(frozen=True)
class Overview:
    """The ledger at a glance: its rows, as they are."""

    now_ms: int
    nodes: Sequence[Row[Any]]
    tasks: Sequence[Row[Any]]
    open_runs: Mapping[str, Mapping[str, int]]
    last_runs: Mapping[str, Row[Any]]
    missed: Mapping[str, int]
    """How many instants of each task were missed since its last success."""
    known: frozenset[str]
    """The tasks that a live scheduler fires."""


@dataclass(frozen=True)
class Vitals:
    """Whether the schedule is kept.

    Attributes:
        nodes: Those that keep it, the longest lease first: role, lease_until_ms, is_open.
        failures: Each task that is not paused, and how often it has failed since its last success.
        missed: How many instants of each of these were missed since then.
        stranded_ms: When the oldest run was handed to an engine that no live worker has taken; None
            where there is none, or a worker lives.
    """

    now_ms: int
    nodes: Sequence[Row[Any]]
    failures: Mapping[str, int]
    missed: Mapping[str, int]
    stranded_ms: int | None


def begin(
    ledger: Ledger,
    node_id: str,
    name: str,
    arguments: str,
    *,
    lock_key: str | None = None,
    by: str | None = None,
    attempt: int = 1,
) -> Claimed | None:
    """Write down a run that a person starts here and now; None if its lock is held."""
    made, token = uuid.uuid4().hex, uuid.uuid4().hex

    def work(connection: Connection) -> int:
        now_ms = ledger.now_ms(connection)
        if connection.scalar(select(run.c.id).where(run.c.id == made)) is None:
            connection.execute(
                insert(run).values(
                    **_manual(ledger, made, name, arguments, now_ms, by),
                    status="running",
                    executor="local",
                    node=node_id,
                    claim=token,
                    lock_key=lock_key,
                    started_ms=now_ms,
                )
            )
        return now_ms

    try:
        now_ms = ledger.write(work)
    except IntegrityError:
        return None
    return Claimed(made, token, name, now_ms, "manual", attempt, arguments, lock_key)


def attempted(ledger: Ledger, claimed: Claimed, attempt: int) -> None:
    """Write down that a run is made again, in the process that has it."""
    ours = run.c.id == claimed.run_id, run.c.claim == claimed.token
    ledger.write(
        lambda connection: connection.execute(update(run).where(*ours).values(attempt=attempt))
    )


def holder(ledger: Ledger, lock_key: str) -> Row[Any] | None:
    """The run that holds a lock, and the node that makes it; None: it is free."""
    statement = (
        select(run, node.c.host, node.c.pid)
        .outerjoin(node, node.c.id == run.c.node)
        .where(run.c.lock_key == lock_key)
    )
    return ledger.read(lambda connection: connection.execute(statement).one_or_none())


def cancel(ledger: Ledger, run_id: str) -> str | None:
    """Cancel a run: at once if it is queued, else ask its process to. What it was; None: ended."""

    def work(connection: Connection) -> str | None:
        now_ms = ledger.now_ms(connection)
        queued = connection.execute(
            update(run)
            .where(run.c.id == run_id, run.c.status.in_(("queued", "handed_off")))
            .values(
                status="cancelled", finished_ms=now_ms, cancel_requested_ms=now_ms, lock_key=None
            )
        )
        if queued.rowcount:
            return "queued"
        running = connection.execute(
            update(run)
            .where(run.c.id == run_id, run.c.status == "running")
            .values(cancel_requested_ms=now_ms)
        )
        return "running" if running.rowcount else None

    return ledger.write(work)


def retry(ledger: Ledger, run_id: str, *, by: str | None = None) -> str | None:
    """Queue a new run with the arguments of one that has ended; None if it has not."""
    made = uuid.uuid4().hex

    def work(connection: Connection) -> str | None:
        before = connection.execute(
            select(run.c.task, run.c.arguments, run.c.executor, run.c.queue).where(
                run.c.id == run_id, run.c.status.in_(FINAL)
            )
        ).one_or_none()
        if before is None:
            return None
        if connection.scalar(select(run.c.id).where(run.c.id == made)) is None:
            now_ms = ledger.now_ms(connection)
            connection.execute(
                insert(run).values(
                    **_manual(ledger, made, before.task, before.arguments, now_ms, by),
                    status="queued",
                    executor=before.executor,
                    queue=before.queue,
                )
            )
        return made

    return ledger.write(work)


def pause(ledger: Ledger, names: Sequence[str], by: str) -> list[str]:
    """Have these tasks no longer run by schedule; those that did until now."""
    return _pause(ledger, names, by, paused=True)


def resume(ledger: Ledger, names: Sequence[str]) -> list[str]:
    """Have these tasks run by schedule again; those that were paused."""
    return _pause(ledger, names, None, paused=False)


def find(ledger: Ledger, prefix: str) -> list[Row[Any]]:
    """The runs whose id begins with *prefix*, at most two, each with its progress."""

    def work(connection: Connection) -> list[Row[Any]]:
        return list(
            connection.execute(
                select(run, progress.c.done, progress.c.total, progress.c.text)
                .outerjoin(progress, progress.c.run == run.c.id)
                .where(
                    run.c.namespace == ledger.namespace,
                    run.c.id.startswith(prefix, autoescape=True),
                )
                .limit(2)
            )
        )

    return ledger.read(work)


def runs(
    ledger: Ledger,
    *,
    name: str | None = None,
    statuses: Sequence[str] = (),
    since_ms: int | None = None,
    limit: int = 20,
) -> list[Row[Any]]:
    """The latest runs, the newest first."""

    def work(connection: Connection) -> list[Row[Any]]:
        statement = (
            select(run, progress.c.done, progress.c.total, progress.c.text)
            .outerjoin(progress, progress.c.run == run.c.id)
            .where(run.c.namespace == ledger.namespace)
            .order_by(run.c.scheduled_ms.desc(), run.c.id)
            .limit(limit)
        )
        if name is not None:
            statement = statement.where(run.c.task == name)
        if statuses:
            statement = statement.where(run.c.status.in_(statuses))
        if since_ms is not None:
            statement = statement.where(run.c.scheduled_ms >= since_ms)
        return list(connection.execute(statement))

    return ledger.read(work)


def tasks(ledger: Ledger) -> list[Row[Any]]:
    """The tasks that it knows, by name."""
    statement = select(task).where(task.c.namespace == ledger.namespace).order_by(task.c.name)
    return ledger.read(lambda connection: list(connection.execute(statement)))


def overview(ledger: Ledger) -> Overview:
    """Who runs tasks, which tasks there are, and how they fare."""
    mine = run.c.namespace == ledger.namespace

    def work(connection: Connection) -> Overview:
        open_runs: dict[str, dict[str, int]] = {}
        for row in connection.execute(
            select(run.c.task, run.c.status, func.count().label("number"))
            .where(mine, run.c.status.in_(_OPEN))
            .group_by(run.c.task, run.c.status)
        ):
            open_runs.setdefault(row.task, {})[row.status] = row.number
        tasks = connection.execute(
            select(task).where(task.c.namespace == ledger.namespace).order_by(task.c.name)
        ).all()
        last_runs = {}
        for each in tasks:
            last = connection.execute(
                select(run)
                .where(mine, run.c.task == each.name, run.c.status.in_(FINAL))
                .order_by(run.c.scheduled_ms.desc())
                .limit(1)
            ).one_or_none()
            if last is not None:
                last_runs[each.name] = last
        now_ms = ledger.now_ms(connection)
        lives = and_(
            node.c.namespace == ledger.namespace,
            node.c.state.in_(("alive", "draining")),
            node.c.lease_until_ms >= now_ms,
        )
        known = (
            select(node_task.c.task)
            .join(node, node.c.id == node_task.c.node)
            .where(lives, node.c.role == "scheduler")
            .distinct()
        )
        return Overview(
            now_ms=now_ms,
            nodes=connection.execute(
                select(node)
                .where(
                    node.c.namespace == ledger.namespace,
                    node.c.lease_until_ms >= now_ms - _DAY_MS,
                )
                .order_by(case((lives, 0), else_=1), node.c.started_ms.desc())
                .limit(_NODES)
            ).all(),
            tasks=tasks,
            open_runs=open_runs,
            last_runs=last_runs,
            missed=_missed(connection, ledger.namespace),
            known=frozenset(connection.scalars(known)),
        )

    return ledger.read(work)


def vitals(ledger: Ledger) -> Vitals:
    """Whether the schedule is kept, by a few small questions."""

    def work(connection: Connection) -> Vitals:
        keepers = (
            select(
                node.c.role,
                node.c.lease_until_ms,
                node.c.state.in_(("alive", "draining")).label("is_open"),
            )
            .where(node.c.namespace == ledger.namespace, node.c.role.in_(("scheduler", "tick")))
            .order_by(node.c.lease_until_ms.desc())
            .limit(_NODES)
        )
        rows = connection.execute(
            select(task.c.name, task.c.consecutive_failures).where(
                task.c.namespace == ledger.namespace, task.c.paused_ms.is_(None)
            )
        ).all()
        failures = {row.name: row.consecutive_failures for row in rows}
        missed = _missed(connection, ledger.namespace)
        now_ms = ledger.now_ms(connection)
        a_worker_lives = exists().where(lives(ledger, now_ms), node.c.role == "worker")
        stranded = select(func.min(run.c.queued_ms)).where(
            run.c.namespace == ledger.namespace,
            run.c.status == "handed_off",
            ~a_worker_lives,
        )
        return Vitals(
            now_ms=now_ms,
            nodes=connection.execute(keepers).all(),
            failures=failures,
            missed={name: number for name, number in missed.items() if name in failures},
            stranded_ms=connection.scalar(stranded),
        )

    return ledger.read(work)


def cancel_requested(ledger: Ledger, node_id: str) -> list[str]:
    """The running runs of a node that somebody wants cancelled."""
    return ledger.read(
        lambda connection: list(
            connection.scalars(
                select(run.c.id).where(
                    run.c.node == node_id,
                    run.c.status == "running",
                    run.c.cancel_requested_ms.is_not(None),
                )
            )
        )
    )


def reconcile(ledger: Ledger, node_id: str, held: set[str], before_ms: int) -> list[str]:
    """Queue again what the rows say this node runs, and it does not.

    Args:
        held: What it does run, read after the rows' claims were known to it.
        before_ms: Younger claims are left: they may not be known here yet.
    """

    def work(connection: Connection) -> list[str]:
        rows = connection.execute(
            select(run.c.id, run.c.claim).where(
                run.c.node == node_id, run.c.status == "running", run.c.started_ms < before_ms
            )
        ).all()
        strays = [row for row in rows if row.id not in held]
        for row in strays:
            connection.execute(
                update(run)
                .where(run.c.id == row.id, run.c.claim == row.claim, run.c.status == "running")
                .values(status="queued", node=None, claim=None, lock_key=None)
            )
        return [row.id for row in strays]

    return ledger.write(work)


def write_progress(ledger: Ledger, told: Mapping[str, tuple[int, int | None, str]]) -> None:
    """How far these runs have come: done, total, text."""

    def work(connection: Connection) -> None:
        now_ms = ledger.now_ms(connection)
        for run_id, (done, total, text) in sorted(told.items()):
            values = {"done": done, "total": total, "text": text, "updated_ms": now_ms}
            changed = connection.execute(
                update(progress).where(progress.c.run == run_id).values(**values)
            )
            if not changed.rowcount:
                connection.execute(insert(progress).values(run=run_id, **values))

    ledger.write(work)


def prune(ledger: Ledger) -> int:
    """Delete what ended more than 30 days ago, some of it; how many runs."""

    def work(connection: Connection) -> int:
        before_ms = ledger.now_ms(connection) - KEPT_MS
        old = list(
            connection.scalars(
                select(run.c.id)
                .where(
                    run.c.namespace == ledger.namespace,
                    run.c.scheduled_ms < before_ms,
                    run.c.status.in_(FINAL),
                )
                .limit(_PRUNED)
            )
        )
        connection.execute(delete(progress).where(progress.c.run.in_(old)))
        connection.execute(delete(run).where(run.c.id.in_(old)))
        gone = list(
            connection.scalars(
                select(node.c.id)
                .where(
                    node.c.namespace == ledger.namespace,
                    node.c.state.in_(("stopped", "dead")),
                    node.c.lease_until_ms < before_ms,
                )
                .limit(_PRUNED)
            )
        )
        connection.execute(delete(node_task).where(node_task.c.node.in_(gone)))
        connection.execute(delete(node).where(node.c.id.in_(gone)))
        return len(old)

    return ledger.write(work)


def _missed(connection: Connection, namespace: str) -> dict[str, int]:
    """How many instants of each task were missed since its last success."""
    rows = connection.execute(
        select(run.c.task, func.count().label("number"))
        .join(task, and_(task.c.namespace == run.c.namespace, task.c.name == run.c.task))
        .where(
            run.c.namespace == namespace,
            run.c.status == "missed",
            run.c.scheduled_ms > func.coalesce(task.c.last_success_ms, 0),
        )
        .group_by(run.c.task)
    )
    return {row.task: row.number for row in rows}


def _manual(
    ledger: Ledger, run_id: str, name: str, arguments: str, now_ms: int, by: str | None
) -> dict[str, object]:
    return {
        "id": run_id,
        "namespace": ledger.namespace,
        "task": name,
        "scheduled_ms": now_ms,
        "slot": run_id,
        "kind": "manual",
        "arguments": arguments,
        "attempt": 1,
        "not_before_ms": now_ms,
        "commits": 0,
        "queued_ms": now_ms,
        "requested_by": by,
    }


def _pause(ledger: Ledger, names: Sequence[str], by: str | None, *, paused: bool) -> list[str]:
    def work(connection: Connection) -> list[str]:
        now_ms = ledger.now_ms(connection)
        of_names = and_(task.c.namespace == ledger.namespace, task.c.name.in_(names))
        known = set(connection.scalars(select(task.c.name).where(of_names)))
        for name in sorted(set(names) - known):
            connection.execute(
                insert(task).values(
                    namespace=ledger.namespace,
                    name=name,
                    options="{}",
                    watermark_ms=now_ms,
                    consecutive_failures=0,
                )
            )
        before = task.c.paused_ms.is_(None) if paused else task.c.paused_ms.is_not(None)
        changed = list(connection.scalars(select(task.c.name).where(of_names, before)))
        connection.execute(
            update(task)
            .where(of_names, task.c.name.in_(changed))
            .values(paused_ms=now_ms if paused else None, paused_by=by)
        )
        return sorted(changed)

    return ledger.write(work)
