"""Nodes: processes that run tasks, each with a lease. One that has not renewed it is dead."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    case,
    func,
    insert,
    literal_column,
    select,
    update,
)

from fsa_cli.ledger.dialects import insert_rows
from fsa_cli.ledger.records import OPEN_STATES, NodeState
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import node, node_task
from fsa_cli.version import VERSION

__all__ = [
    "Leases",
    "RegisteredNode",
    "alive",
    "elsewhere",
    "fired",
    "leases",
    "listed",
    "lives",
    "namespaces_beside",
    "register",
    "release",
    "renew",
]

_NAMED = 5
_LISTED = 50
_DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True)
class RegisteredNode:
    """A process as the ledger knows it; a new one at each start, and after it was declared dead."""

    id: str
    role: str
    started_ms: int


@dataclass(frozen=True)
class Leases:
    """The leases at one moment.

    Attributes:
        expired: The nodes whose lease is over.
        schedulers: How many nodes hold one and fire the schedule.
    """

    expired: tuple[str, ...]
    schedulers: int


def register(
    ledger: Ledger, role: str, lease_ms: int, tasks: Mapping[str, str] | None = None
) -> RegisteredNode:
    """Register this process as a node.

    Args:
        tasks: The name of each task whose schedule it fires, and the schedule's hash.
    """
    node_id = uuid.uuid4().hex

    def work(connection: Connection) -> RegisteredNode:
        now_ms = ledger.now_ms(connection)
        if connection.scalar(select(node.c.id).where(node.c.id == node_id)) is None:
            connection.execute(
                insert(node).values(
                    id=node_id,
                    namespace=ledger.namespace,
                    host=socket.gethostname()[:255],
                    pid=os.getpid(),
                    version=VERSION,
                    role=role,
                    state=NodeState.ALIVE,
                    started_ms=now_ms,
                    covered_from_ms=now_ms,
                    lease_until_ms=now_ms + lease_ms,
                )
            )
            rows = [
                {"node": node_id, "task": name, "schedule_hash": hashed, "since_ms": now_ms}
                for name, hashed in (tasks or {}).items()
            ]
            insert_rows(connection, ledger.sql, "fsa_node_task", _NODE_TASK, rows)
        return RegisteredNode(node_id, role, now_ms)

    return ledger.write(work)


_NODE_TASK = {"node": "text", "task": "text", "schedule_hash": "text", "since_ms": "bigint"}


def renew(ledger: Ledger, node_id: str, lease_ms: int, *, draining: bool = False) -> int | None:
    """Renew the lease; the database's clock, or None if the node was declared dead meanwhile."""
    now_ms = ledger.read(ledger.now_ms, attempts=2)
    statement = (
        update(node)
        .where(node.c.id == node_id, node.c.state.in_(OPEN_STATES))
        .values(
            # MySQL assigns from left to right: this one reads the old lease.
            covered_from_ms=case(
                (node.c.lease_until_ms < now_ms, now_ms), else_=node.c.covered_from_ms
            ),
            lease_until_ms=now_ms + lease_ms,
            state=NodeState.DRAINING if draining else NodeState.ALIVE,
        )
    )
    renewed = ledger.at_once(lambda connection: connection.execute(statement).rowcount, attempts=2)
    return now_ms if renewed else None


def release(ledger: Ledger, node_id: str) -> None:
    """Mark the node as stopped. Claimed runs that have not started must be queued again before."""
    statement = (
        update(node)
        .where(node.c.id == node_id, node.c.state.in_(OPEN_STATES))
        .values(state=NodeState.STOPPED, lease_until_ms=literal_column(ledger.sql.now_ms))
    )
    ledger.at_once(lambda connection: connection.execute(statement))


def leases(ledger: Ledger) -> Leases:
    """The leases of all nodes that are not declared dead."""
    is_over = node.c.lease_until_ms < literal_column(ledger.sql.now_ms)
    statement = (
        select(node.c.id, node.c.role, is_over.label("is_over"))
        .where(node.c.namespace == ledger.namespace, node.c.state.in_(OPEN_STATES))
        .order_by(node.c.id)
    )
    rows = ledger.read(lambda connection: connection.execute(statement).all())
    return Leases(
        tuple(row.id for row in rows if row.is_over),
        sum(row.role == "scheduler" for row in rows if not row.is_over),
    )


def lives() -> ColumnElement[bool]:
    """The condition that a row of `fsa_node` holds a lease, of `of_namespace` and at `at_ms`."""
    return and_(
        node.c.namespace == bindparam("of_namespace"),
        node.c.state.in_(OPEN_STATES),
        node.c.lease_until_ms >= bindparam("at_ms"),
    )


def fired(
    connection: Connection, ledger: Ledger, now_ms: int, name: str | None = None
) -> frozenset[str]:
    """The tasks that a live scheduler fires.

    Args:
        name: This one alone, if it is one of them.
    """
    given = {"of_namespace": ledger.namespace, "at_ms": now_ms, "of_task": name}
    return frozenset(connection.scalars(_fired(name is not None), given))


@cache  # to build it takes as long as to execute it
def _fired(of_one: bool) -> Select[tuple[str]]:
    statement = (
        select(node_task.c.task)
        .join(node, node.c.id == node_task.c.node)
        .where(lives(), node.c.role == "scheduler")
        .distinct()
    )
    return statement.where(node_task.c.task == bindparam("of_task")) if of_one else statement


def alive(ledger: Ledger, role: str | None = None) -> list[str]:
    """The nodes that hold a lease now."""

    def work(connection: Connection) -> list[str]:
        given = {"of_namespace": ledger.namespace, "at_ms": ledger.now_ms(connection)}
        statement = select(node.c.id).where(lives())
        if role is not None:
            statement = statement.where(node.c.role == role)
        return list(connection.scalars(statement, given))

    return ledger.read(work)


def listed(connection: Connection, ledger: Ledger, now_ms: int) -> Sequence[Row[Any]]:
    """The nodes that live, and those that have gone since yesterday: at most 50, the living ones
    first, then the latest. `services` has a line for each queue that a worker says it serves."""
    given = {"of_namespace": ledger.namespace, "at_ms": now_ms, "since_ms": now_ms - _DAY_MS}
    return connection.execute(_listed(), given).all()


@cache
def _listed() -> Select[Any]:
    services = (
        select(func.aggregate_strings(node_task.c.task, "\n"))
        .where(node_task.c.node == node.c.id, node_task.c.task.like("@%"))
        .scalar_subquery()
    )
    return (
        select(node, services.label("services"))
        .where(
            node.c.namespace == bindparam("of_namespace"),
            node.c.lease_until_ms >= bindparam("since_ms"),
        )
        .order_by(case((lives(), 0), else_=1), node.c.started_ms.desc(), node.c.id)
        .limit(_LISTED)
    )


def namespaces_beside(ledger: Ledger) -> tuple[str, ...]:
    """The other namespaces for which a process fires schedules or executes runs now."""
    return ledger.read(lambda connection: elsewhere(connection, ledger, ledger.now_ms(connection)))


def elsewhere(connection: Connection, ledger: Ledger, now_ms: int) -> tuple[str, ...]:
    """As `namespaces_beside`, at a moment."""
    given = {"of_namespace": ledger.namespace, "at_ms": now_ms}
    return tuple(connection.scalars(_elsewhere(), given))


@cache
def _elsewhere() -> Select[tuple[str]]:
    return (
        select(node.c.namespace)
        .where(
            node.c.namespace != bindparam("of_namespace"),
            node.c.state.in_(OPEN_STATES),
            node.c.lease_until_ms >= bindparam("at_ms"),
            node.c.role.in_(("scheduler", "worker")),
        )
        .distinct()
        .order_by(node.c.namespace)
        .limit(_NAMED)
    )
