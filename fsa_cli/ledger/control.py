"""What a person wants of runs and tasks: cancel, pause, resume."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import BigInteger, Connection, and_, insert, literal_column, select, update
from sqlalchemy.exc import DBAPIError

from fsa_cli.ledger.dialects import is_taken
from fsa_cli.ledger.records import ClaimedRun
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import NOT_REGISTERED, run, task

__all__ = [
    "add_task",
    "cancel",
    "cancel_many",
    "cancel_requested",
    "pause",
    "paused",
    "record_attempt",
    "resume",
]

_AT_ONCE = 1000


def record_attempt(ledger: Ledger, claimed: ClaimedRun, attempt: int) -> None:
    """Write that a run is attempted again, in the process that has claimed it."""
    ours = run.c.id == claimed.run_id, run.c.claim == claimed.token
    statement = update(run).where(*ours).values(attempt=attempt)
    ledger.at_once(lambda connection: connection.execute(statement))


def cancel(ledger: Ledger, run_id: str) -> str | None:
    """Cancel a run if it is queued, or ask its process to. Its status before; None: ended."""

    now_ms = literal_column(ledger.sql.now_ms, BigInteger())
    queued = (
        update(run)
        .where(run.c.id == run_id, run.c.status.in_(("queued", "handed_off")))
        .values(status="cancelled", finished_ms=now_ms, cancel_requested_ms=now_ms, lock_key=None)
    )
    if ledger.at_once(lambda connection: connection.execute(queued).rowcount):
        return "queued"
    running = (
        update(run)
        .where(run.c.id == run_id, run.c.status == "running")
        .values(cancel_requested_ms=now_ms)
    )
    if ledger.at_once(lambda connection: connection.execute(running).rowcount):
        return "running"
    return None


def cancel_many(ledger: Ledger, run_ids: Sequence[str]) -> tuple[int, int]:
    """Cancel runs, as `cancel`: how many were queued, and how many are asked to end."""
    now_ms = literal_column(ledger.sql.now_ms, BigInteger())
    queued = running = 0
    ordered = sorted(run_ids)
    for start in range(0, len(ordered), _AT_ONCE):
        of_part = run.c.id.in_(ordered[start : start + _AT_ONCE])
        ending = (
            update(run)
            .where(of_part, run.c.status.in_(("queued", "handed_off")))
            .values(
                status="cancelled", finished_ms=now_ms, cancel_requested_ms=now_ms, lock_key=None
            )
        )
        asking = (
            update(run).where(of_part, run.c.status == "running").values(cancel_requested_ms=now_ms)
        )
        queued += ledger.at_once(lambda c, it=ending: c.execute(it).rowcount)  # type: ignore[misc]
        running += ledger.at_once(lambda c, it=asking: c.execute(it).rowcount)  # type: ignore[misc]
    return queued, running


def pause(ledger: Ledger, names: Sequence[str], by: str) -> list[str]:
    """Pause the schedules of these tasks; the names of those that were not paused."""
    return _pause(ledger, names, by, paused=True)


def resume(ledger: Ledger, names: Sequence[str]) -> list[str]:
    """Resume the schedules of these tasks; the names of those that were paused."""
    return _pause(ledger, names, None, paused=False)


def paused(connection: Connection, namespace: str) -> set[str]:
    """The tasks whose schedules are paused."""
    statement = select(task.c.name).where(
        task.c.namespace == namespace, task.c.paused_ms.is_not(None)
    )
    return set(connection.scalars(statement))


def cancel_requested(ledger: Ledger, node_id: str) -> list[str]:
    """The running runs of a node whose cancellation is requested."""
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


def add_task(ledger: Ledger, name: str) -> None:
    """Make the row of a task that no process has registered yet, unless it is there."""
    statement = insert(task).values(
        namespace=ledger.namespace,
        name=name,
        options=NOT_REGISTERED,
        watermark_ms=literal_column(ledger.sql.now_ms, BigInteger()),
        consecutive_failures=0,
    )
    try:
        ledger.at_once(lambda connection: connection.execute(statement))
    except DBAPIError as exc:
        if not is_taken(exc):
            raise


def _pause(ledger: Ledger, names: Sequence[str], by: str | None, *, paused: bool) -> list[str]:
    of_names = and_(task.c.namespace == ledger.namespace, task.c.name.in_(names))
    known, now_ms = ledger.read(
        lambda connection: (
            set(connection.scalars(select(task.c.name).where(of_names))),
            ledger.now_ms(connection),
        )
    )
    for name in sorted(set(names) - known):
        add_task(ledger, name)
    before = task.c.paused_ms.is_(None) if paused else task.c.paused_ms.is_not(None)
    asked = select(task.c.name).where(of_names, before)
    changed = ledger.read(lambda connection: list(connection.scalars(asked)))
    statement = (
        update(task)
        .where(of_names, task.c.name.in_(changed), before)
        .values(paused_ms=now_ms if paused else None, paused_by=by)
    )
    ledger.at_once(lambda connection: connection.execute(statement))
    return sorted(changed)
