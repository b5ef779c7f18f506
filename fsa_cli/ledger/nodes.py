"""Nodes: processes that run tasks, each with a lease. Who has not renewed it is dead."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, insert, literal_column, select, update

from fsa_cli.ledger.dialects import insert_rows
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import FINAL, node, run, task
from fsa_cli.version import VERSION

__all__ = [
    "Died",
    "Leases",
    "Node",
    "alive",
    "leases",
    "lives",
    "reap",
    "register",
    "release",
    "renew",
    "running",
]

# A run that kills its process each time must not do so for ever.
_MOST_ATTEMPTS = 20


@dataclass(frozen=True)
class Node:
    """A process as the ledger knows it; a new one at each start, and after it was declared dead."""

    id: str
    role: str
    started_ms: int


@dataclass(frozen=True)
class Died:
    """What a dead node had claimed.

    Attributes:
        marked: Runs that are now `interrupted`.
        queued: Runs that will be made again.
        succeeded: Runs whose effects were found in the data's database.
    """

    nodes: tuple[str, ...]
    marked: tuple[str, ...]
    queued: tuple[str, ...]
    succeeded: tuple[str, ...]


@dataclass(frozen=True)
class Leases:
    """Who lives.

    Attributes:
        expired: The nodes whose lease is over.
        schedulers: How many hold one and fire the schedule.
    """

    expired: tuple[str, ...]
    schedulers: int


def register(
    ledger: Ledger, role: str, lease_ms: int, tasks: Mapping[str, str] | None = None
) -> Node:
    """Make this process a node.

    Args:
        tasks: The name of each task that it will run when its time comes, and its schedule's hash.
    """
    made = uuid.uuid4().hex

    def work(connection: Connection) -> Node:
        now_ms = ledger.now_ms(connection)
        if connection.scalar(select(node.c.id).where(node.c.id == made)) is None:
            connection.execute(
                insert(node).values(
                    id=made,
                    namespace=ledger.namespace,
                    host=socket.gethostname()[:255],
                    pid=os.getpid(),
                    version=VERSION,
                    role=role,
                    state="alive",
                    started_ms=now_ms,
                    covered_from_ms=now_ms,
                    lease_until_ms=now_ms + lease_ms,
                )
            )
            rows = [
                {"node": made, "task": name, "schedule_hash": hashed, "since_ms": now_ms}
                for name, hashed in (tasks or {}).items()
            ]
            insert_rows(connection, ledger.words, "fsa_node_task", _NODE_TASK, rows)
        return Node(made, role, now_ms)

    return ledger.write(work)


_NODE_TASK = {"node": "text", "task": "text", "schedule_hash": "text", "since_ms": "bigint"}


def renew(ledger: Ledger, node_id: str, lease_ms: int, *, draining: bool = False) -> int | None:
    """Renew the lease; the database's clock, or None if the node was declared dead meanwhile."""

    def work(connection: Connection) -> int | None:
        now_ms = ledger.now_ms(connection)
        renewed = connection.execute(
            update(node)
            .where(node.c.id == node_id, node.c.state.in_(("alive", "draining")))
            .values(
                # MySQL assigns from left to right: this one reads the old lease.
                covered_from_ms=case(
                    (node.c.lease_until_ms < now_ms, now_ms), else_=node.c.covered_from_ms
                ),
                lease_until_ms=now_ms + lease_ms,
                state="draining" if draining else "alive",
            )
        )
        return now_ms if renewed.rowcount else None

    return ledger.write(work, attempts=2)


def release(ledger: Ledger, node_id: str) -> None:
    """Say that the node has stopped. What it had claimed and not begun must be queued before."""

    def work(connection: Connection) -> None:
        now_ms = ledger.now_ms(connection)
        connection.execute(
            update(node)
            .where(node.c.id == node_id, node.c.state.in_(("alive", "draining")))
            .values(state="stopped", lease_until_ms=now_ms)
        )

    ledger.write(work)


def leases(ledger: Ledger) -> Leases:
    """The leases of all whom nobody has declared dead."""
    is_over = node.c.lease_until_ms < literal_column(ledger.words.now_ms)
    statement = (
        select(node.c.id, node.c.role, is_over.label("is_over"))
        .where(node.c.namespace == ledger.namespace, node.c.state.in_(("alive", "draining")))
        .order_by(node.c.id)
    )
    rows = ledger.read(lambda connection: connection.execute(statement).all())
    return Leases(
        tuple(row.id for row in rows if row.is_over),
        sum(row.role == "scheduler" for row in rows if not row.is_over),
    )


def lives(ledger: Ledger, now_ms: int) -> ColumnElement[bool]:
    """That a row of `fsa_node` is one of a node that holds a lease."""
    return and_(
        node.c.namespace == ledger.namespace,
        node.c.state.in_(("alive", "draining")),
        node.c.lease_until_ms >= now_ms,
    )


def alive(ledger: Ledger, role: str | None = None) -> list[str]:
    """The nodes that hold a lease now."""

    def work(connection: Connection) -> list[str]:
        now_ms = ledger.now_ms(connection)
        statement = select(node.c.id).where(lives(ledger, now_ms))
        if role is not None:
            statement = statement.where(node.c.role == role)
        return list(connection.scalars(statement))

    return ledger.read(work)


def running(ledger: Ledger, node_ids: Sequence[str]) -> list[str]:
    """The runs that these nodes have claimed and not ended."""
    return ledger.read(
        lambda connection: list(
            connection.scalars(
                select(run.c.id).where(run.c.node.in_(node_ids), run.c.status == "running")
            )
        )
    )


def reap(ledger: Ledger, dead: Sequence[str], applied: Iterable[str] = ()) -> Died:
    """Declare *dead* nodes dead and say what becomes of their runs. Several may do so at once.

    A run whose task allows it (`on_crash="retry"`) is queued again, any other is `interrupted`.

    Args:
        applied: Runs whose effects are committed in another database: they have succeeded.
    """
    has_effect = set(applied)

    def work(connection: Connection) -> Died:
        now_ms = ledger.now_ms(connection)
        # Their leases may have been renewed meanwhile: then they live.
        connection.execute(
            update(node)
            .where(
                node.c.id.in_(dead),
                node.c.state.in_(("alive", "draining")),
                node.c.lease_until_ms < now_ms,
            )
            .values(state="dead")
        )
        rows = connection.execute(
            select(run.c.id, run.c.claim, run.c.task, run.c.attempt, task.c.options)
            .join(node, node.c.id == run.c.node)
            .outerjoin(task, and_(task.c.namespace == run.c.namespace, task.c.name == run.c.task))
            .where(node.c.id.in_(dead), node.c.state == "dead", run.c.status == "running")
            .order_by(run.c.id)
        ).all()
        # A task that had timed out and did not return has held its lock beyond its end.
        connection.execute(
            update(run)
            .where(run.c.node.in_(dead), run.c.lock_key.is_not(None), run.c.status.in_(FINAL))
            .values(lock_key=None)
        )
        outcome: dict[str, list[str]] = {"interrupted": [], "queued": [], "succeeded": []}
        for row in rows:
            if row.id in has_effect:
                status = "succeeded"
            elif _retried(row.options) and row.attempt < _MOST_ATTEMPTS:
                status = "queued"
            else:
                status = "interrupted"
            changed = connection.execute(
                update(run)
                .where(run.c.id == row.id, run.c.claim == row.claim, run.c.status == "running")
                .values(**_after_crash(status, row.attempt, now_ms))
            )
            if changed.rowcount:
                outcome[status].append(row.id)
        return Died(
            tuple(dead),
            tuple(outcome["interrupted"]),
            tuple(outcome["queued"]),
            tuple(outcome["succeeded"]),
        )

    return ledger.write(work)


def _retried(options: str | None) -> bool:
    return options is not None and json.loads(options).get("on_crash") == "retry"


def _after_crash(status: str, attempt: int, now_ms: int) -> dict[str, Any]:
    freed: dict[str, Any] = {"status": status, "lock_key": None}
    if status == "queued":
        return {
            **freed,
            "node": None,
            "claim": None,
            "attempt": attempt + 1,
            "not_before_ms": now_ms,
        }
    if status == "interrupted":
        freed["error_type"] = "Interrupted"
        freed["error"] = "the process that ran it has died"
    return {**freed, "finished_ms": now_ms}
