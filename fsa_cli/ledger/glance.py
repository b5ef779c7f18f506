"""One look at the ledger: what is alive, what runs, and what waits for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from fsa_cli.ledger import queries
from fsa_cli.ledger.queries import Overview
from fsa_cli.ledger.records import RunStatus
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import node, progress, run

__all__ = ["Glance", "executing", "glance"]

_SHOWN = 20


@dataclass(frozen=True)
class Glance:
    """The ledger at one look.

    Attributes:
        running: The runs that go on, the oldest first, each with its progress and with the host,
            pid, role and lease_until_ms of its node.
        waiting: As returned by `queries.waiting_runs`.
    """

    overview: Overview
    running: Sequence[Row[Any]]
    waiting: Sequence[Row[Any]]


def glance(ledger: Ledger) -> Glance:
    """One look at the ledger."""
    seen = queries.overview(ledger)
    waiting = queries.waiting_runs(ledger)
    mine = run.c.namespace == ledger.namespace
    running = (
        _with_node()
        .where(mine, run.c.status == RunStatus.RUNNING)
        .order_by(run.c.started_ms, run.c.id)
        .limit(_SHOWN)
    )

    def work(connection: Connection) -> Glance:
        return Glance(seen, connection.execute(running).all(), waiting)

    return ledger.read(work)


def executing(ledger: Ledger, run_id: str) -> Row[Any] | None:
    """The node that a run is or was executed by: host, pid, role; None where it is not known."""
    statement = _with_node().where(run.c.id == run_id, node.c.id.is_not(None))
    return ledger.read(lambda connection: connection.execute(statement).one_or_none())


def _with_node() -> Any:
    return (
        select(
            run,
            progress.c.done,
            progress.c.total,
            progress.c.text,
            node.c.host,
            node.c.pid,
            node.c.role,
            node.c.lease_until_ms,
        )
        .outerjoin(progress, progress.c.run == run.c.id)
        .outerjoin(node, node.c.id == run.c.node)
    )
