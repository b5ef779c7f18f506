"""Runs whose process has died or lost them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, and_, or_, select, update
from sqlalchemy.exc import DBAPIError

from fsa_cli.ledger.attempts import write_lost_attempt
from fsa_cli.ledger.dialects import refuses_row
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import FINAL, node, run, task
from fsa_cli.ledger.values import options_in

__all__ = ["Died", "free_left_locks", "left_running", "reap", "reconcile"]


_AT_ONCE = 1000
# A run that kills its process each time must not do so for ever.
_MOST_ATTEMPTS = 20


def reconcile(ledger: Ledger, node_id: str, holds: Callable[[str, str | None], bool]) -> list[str]:
    """Queue runs again that are this node's by their rows, and that it does not have.

    Args:
        holds: Whether this node has a run, by its id and its claim's token. It is asked after the
            rows were read: a claim is known to it before it is sent, and until its end is written.
    """
    rows = ledger.read(
        lambda connection: connection.execute(
            select(run.c.id, run.c.claim).where(run.c.node == node_id, run.c.status == "running")
        ).all()
    )
    strays = [row for row in rows if not holds(row.id, row.claim)]
    for row in strays:
        _change_running(
            ledger, row, status="queued", node=None, claim=None, lock_key=None, started_ms=None
        )
    return [row.id for row in strays]


def _change_running(ledger: Ledger, row: Any, **values: Any) -> int:
    """Change a run that is running under the claim of *row*; how many rows that were."""
    statement = (
        update(run)
        .where(run.c.id == row.id, run.c.claim == row.claim, run.c.status == "running")
        .values(**values)
    )
    return ledger.at_once(lambda connection: connection.execute(statement).rowcount)


@dataclass(frozen=True)
class Died:
    """The runs that dead nodes had claimed.

    Attributes:
        nodes: Those that were declared dead, or whose runs were decided, here.
        marked: Runs that are now `interrupted`.
        queued: Runs that will be executed again.
        succeeded: Runs whose effects were found in the data's database.
        refused: Why the database did not let one of them be decided.
    """

    nodes: tuple[str, ...]
    marked: tuple[str, ...]
    queued: tuple[str, ...]
    succeeded: tuple[str, ...]
    refused: Exception | None = None


def left_running(ledger: Ledger, dead: Sequence[str] = ()) -> list[str]:
    """The running runs whose nodes run nothing any more.

    Args:
        dead: Nodes whose lease has expired, besides those that are declared dead or have stopped.
    """
    statement = (
        select(run.c.id)
        .outerjoin(node, node.c.id == run.c.node)
        .where(
            run.c.namespace == ledger.namespace,
            run.c.status == "running",
            or_(node.c.id.is_(None), node.c.state.in_(("dead", "stopped")), node.c.id.in_(dead)),
        )
        .order_by(run.c.id)
    )
    return ledger.read(lambda connection: list(connection.scalars(statement)))


def reap(
    ledger: Ledger,
    dead: Sequence[str],
    fence_off: Callable[[Mapping[str, str | None]], AbstractSet[str]] = lambda claims: frozenset(),
    *,
    left: Sequence[str] | None = None,
) -> Died:
    """Declare nodes dead and decide their runs. Several processes may do so at once.

    A run whose task allows it (`on_crash="retry"`) is queued again, any other is `interrupted`.
    Each statement is a transaction of its own: where one process is cut off, the next goes on.

    Args:
        fence_off: Called with runs and the tokens of their claims: which of them have taken effect
            in another database, and so have succeeded. The others can no longer.
        left: The runs from `left_running`; None: all of them.
    """
    now_ms = ledger.read(ledger.now_ms)
    died = [each for each in dead if _declare_dead(ledger, each, now_ms)]
    if dead:
        free_left_locks(ledger)
    ids = left_running(ledger) if left is None else left
    outcome: dict[str, list[str]] = {"interrupted": [], "queued": [], "succeeded": []}
    nodes = dict.fromkeys(died)
    refused: Exception | None = None
    rows = _left_rows(ledger, ids)
    applied = fence_off({row.id: row.claim for row in rows})
    for row in rows:
        if row.id in applied:
            status = "succeeded"
        elif _retried(row.options) and row.attempt < _MOST_ATTEMPTS:
            status = "queued"
            ledger.write(lambda c, it=row: write_lost_attempt(c, ledger.sql, it, now_ms))  # type: ignore[misc]
        else:
            status = "interrupted"
        try:
            changed = _change_running(ledger, row, **_after_crash(status, row.attempt, now_ms))
        except DBAPIError as exc:
            if not refuses_row(exc):
                raise
            refused = exc
            continue
        if changed:
            outcome[status].append(row.id)
            nodes[row.node] = None
    return Died(
        tuple(each for each in nodes if each is not None),  # a row may name none
        tuple(outcome["interrupted"]),
        tuple(outcome["queued"]),
        tuple(outcome["succeeded"]),
        refused,
    )


def _declare_dead(ledger: Ledger, node_id: str, now_ms: int) -> bool:
    """Whether it is dead by this: another process may have been first, or its lease was renewed."""
    statement = (
        update(node)
        .where(
            node.c.id == node_id,
            node.c.state.in_(("alive", "draining")),
            node.c.lease_until_ms < now_ms,
        )
        .values(state="dead")
    )
    return ledger.at_once(lambda connection: connection.execute(statement).rowcount) == 1


def free_left_locks(ledger: Ledger) -> None:
    """Free the locks of runs that had timed out, and did not return before their process ended."""
    held = select(run.c.id, run.c.node, run.c.status).where(
        run.c.namespace == ledger.namespace, run.c.lock_key.is_not(None)
    )
    rows = ledger.read(lambda connection: connection.execute(held).all())
    ended = [row for row in rows if row.status in FINAL]
    if not ended:
        return
    over = select(node.c.id).where(
        node.c.id.in_({row.node for row in ended}), node.c.state.in_(("dead", "stopped"))
    )
    freed = (
        update(run)
        .where(
            run.c.id.in_([row.id for row in ended]),
            run.c.status.in_(FINAL),
            run.c.node.in_(over),
        )
        .values(lock_key=None)
    )
    ledger.at_once(lambda connection: connection.execute(freed))


def _left_rows(ledger: Ledger, ids: Sequence[str]) -> Sequence[Row[Any]]:
    """Those of the runs *ids* whose nodes are dead by now, or have stopped."""
    found: list[Row[Any]] = []
    for start in range(0, len(ids), _AT_ONCE):
        statement = (
            select(run.c.id, run.c.claim, run.c.node, run.c.attempt, task.c.options)
            .outerjoin(node, node.c.id == run.c.node)
            .outerjoin(task, and_(task.c.namespace == run.c.namespace, task.c.name == run.c.task))
            .where(
                run.c.id.in_(ids[start : start + _AT_ONCE]),
                run.c.status == "running",
                or_(node.c.id.is_(None), node.c.state.in_(("dead", "stopped"))),
            )
            .order_by(run.c.id)
        )
        found += ledger.read(lambda connection, it=statement: connection.execute(it).all())  # type: ignore[misc]
    return found


def _retried(options: str | None) -> bool:
    """Whether the task may run again; not if its options cannot be read."""
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
