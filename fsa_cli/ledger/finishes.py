"""How runs end: written in batches, and only while the run's row still carries its claim."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, case, select, update

from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run, task

__all__ = ["Finish", "finish"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The end of one attempt.

    Attributes:
        started_ms, finished_ms: By the database's clock, as far as this process knows it.
        result: JSON.
        retry_in_ms: Not None: it is queued again, for so much later.
        keeps_lock: A time-out whose thread goes on: `free` gives the lock back.
        recorded: The row is written already, in the task's own transaction.
    """

    run_id: str
    token: str
    task: str
    status: str
    started_ms: int
    finished_ms: int
    result: str | None = None
    error_type: str | None = None
    error: str | None = None
    traceback: str | None = None
    retry_in_ms: int | None = None
    keeps_lock: bool = False
    recorded: bool = False


def finish(ledger: Ledger, ends: Sequence[Finish]) -> set[str]:
    """Write *ends*; the ids of those that did not count, because the run was no longer ours."""
    ordered = sorted(ends, key=lambda each: each.run_id)
    unwritten = [each for each in ordered if not each.recorded]
    ended = [each for each in unwritten if each.retry_in_ms is None]
    again = [each for each in unwritten if each.retry_in_ms is not None]

    def work(connection: Connection) -> set[str]:
        written = 0
        for statement, values in (
            (_ENDED, [_ended(each) for each in ended if not each.keeps_lock]),
            (_ENDED_LOCKED, [_ended(each) for each in ended if each.keeps_lock]),
            (_AGAIN, [_again(each) for each in again]),
        ):
            if values:
                written += connection.execute(statement, values).rowcount
        lost = set() if written == len(unwritten) else _lost(connection, unwritten)
        _count(connection, ledger.namespace, [each for each in ordered if each.run_id not in lost])
        return lost

    return ledger.write(work)


def free(ledger: Ledger, run_id: str, token: str) -> None:
    """Give back the lock of a run that had timed out and has now returned."""

    def work(connection: Connection) -> None:
        connection.execute(
            update(run).where(run.c.id == run_id, run.c.claim == token).values(lock_key=None)
        )

    ledger.write(work)


def _lost(connection: Connection, ends: Sequence[Finish]) -> set[str]:
    """Which were not ours any more. After a COMMIT of unknown outcome they may be written."""
    rows = connection.execute(
        select(run.c.id, run.c.claim, run.c.status, run.c.attempt).where(
            run.c.id.in_([each.run_id for each in ends])
        )
    )
    now = {row.id: row for row in rows}
    return {
        each.run_id
        for each in ends
        if each.run_id not in now
        or not (
            (each.retry_in_ms is not None and now[each.run_id].status == "queued")
            or (now[each.run_id].claim == each.token and now[each.run_id].status == each.status)
        )
    }


def _count(connection: Connection, namespace: str, ends: Sequence[Finish]) -> None:
    """Keep each task's last success, and its failures since."""
    successes: dict[str, int] = {}
    failures: dict[str, int] = defaultdict(int)
    for each in ends:
        if each.retry_in_ms is not None:
            continue
        if each.status == "succeeded":
            successes[each.task] = max(each.finished_ms, successes.get(each.task, 0))
            failures[each.task] = 0
        else:
            failures[each.task] += 1
    values = [
        {
            "in_namespace": namespace,
            "task_name": name,
            "success_ms": successes.get(name, 0),
            "more": failures[name],
        }
        for name in sorted(failures)
    ]
    if values:
        connection.execute(_COUNTED, values)


def _ended(each: Finish) -> dict[str, Any]:
    return {
        "run_id": each.run_id,
        "token": each.token,
        "to_status": each.status,
        "began_ms": each.started_ms,
        "ended_ms": each.finished_ms,
        "to_result": each.result,
        "to_error_type": each.error_type,
        "to_error": each.error,
        "to_traceback": each.traceback,
    }


def _again(each: Finish) -> dict[str, Any]:
    values = _ended(each)
    for name in ("to_status", "began_ms", "to_result"):
        del values[name]
    return {**values, "again_ms": each.finished_ms + (each.retry_in_ms or 0)}


_MINE = (
    run.c.id == bindparam("run_id"),
    run.c.claim == bindparam("token"),
    run.c.status == "running",
)
_SAID: dict[str, Any] = {
    "error_type": bindparam("to_error_type"),
    "error": bindparam("to_error"),
    "traceback": bindparam("to_traceback"),
}
_ENDED_LOCKED = (
    update(run)
    .where(*_MINE)
    .values(
        status=bindparam("to_status"),
        started_ms=bindparam("began_ms"),
        finished_ms=bindparam("ended_ms"),
        result=bindparam("to_result"),
        **_SAID,
    )
)
_ENDED = _ENDED_LOCKED.values(lock_key=None)
_AGAIN = (
    update(run)
    .where(*_MINE)
    .values(
        status="queued",
        node=None,
        claim=None,
        lock_key=None,
        attempt=run.c.attempt + 1,
        not_before_ms=bindparam("again_ms"),
        finished_ms=bindparam("ended_ms"),
        **_SAID,
    )
)
_COUNTED = (
    update(task)
    .where(task.c.namespace == bindparam("in_namespace"), task.c.name == bindparam("task_name"))
    .values(
        consecutive_failures=case(
            (bindparam("success_ms", type_=task.c.watermark_ms.type) > 0, 0),
            else_=task.c.consecutive_failures,
        )
        + bindparam("more"),
        last_success_ms=case(
            (
                bindparam("success_ms", type_=task.c.watermark_ms.type) > 0,
                bindparam("success_ms", type_=task.c.watermark_ms.type),
            ),
            else_=task.c.last_success_ms,
        ),
    )
)
