"""Runs whose process has died or lost them, and rows that are old enough to delete."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Connection,
    and_,
    delete,
    select,
    update,
)

from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import FINAL, KEPT_MS, node, node_task, progress, run, task
from fsa_cli.ledger.values import options_in

__all__ = ["Died", "prune", "reap", "reconcile", "running"]


_PRUNED = 1000
# A run that kills its process each time must not do so for ever.
_MOST_ATTEMPTS = 20


def reconcile(ledger: Ledger, node_id: str, held: set[str], before_ms: int) -> list[str]:
    """Queue runs again that are this node's by their rows, and that it does not run.

    Args:
        held: The runs that it has, read after the rows' claims were known to it.
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


def prune(ledger: Ledger) -> int:
    """Delete some of the runs that ended more than 30 days ago; how many."""

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


@dataclass(frozen=True)
class Died:
    """The runs that dead nodes had claimed.

    Attributes:
        marked: Runs that are now `interrupted`.
        queued: Runs that will be executed again.
        succeeded: Runs whose effects were found in the data's database.
    """

    nodes: tuple[str, ...]
    marked: tuple[str, ...]
    queued: tuple[str, ...]
    succeeded: tuple[str, ...]


def running(ledger: Ledger, node_ids: Sequence[str]) -> list[str]:
    """The runs that these nodes have claimed and not finished."""
    return ledger.read(
        lambda connection: list(
            connection.scalars(
                select(run.c.id).where(run.c.node.in_(node_ids), run.c.status == "running")
            )
        )
    )


def reap(ledger: Ledger, dead: Sequence[str], applied: Iterable[str] = ()) -> Died:
    """Declare nodes dead and decide their runs. Several processes may do so at once.

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
    return options_in(options).get("on_crash") == "retry"


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
