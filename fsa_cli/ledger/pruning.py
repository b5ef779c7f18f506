"""Delete the rows of runs that ended long enough ago, and of what people did a year ago.

A run is looked for by an index, in the order of time, and deleted by its id: nothing that goes on
is locked. The row of an instant stays until its task's watermark has passed it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Column, ColumnElement, Select, and_, delete, exists, func, select

from fsa_cli.ledger.records import SCHEDULED, RunStatus
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import (
    FINAL,
    activity,
    attempt,
    audit,
    key,
    node,
    node_task,
    progress,
    run,
    task,
)
from fsa_cli.ledger.values import options_in
from fsa_cli.project.settings import Settings
from fsa_cli.schedules.durations import kept_ms

__all__ = ["NEEDS_A_LOOK", "Pruning"]

#: The states for which `keep_failed` counts.
NEEDS_A_LOOK = frozenset(
    (RunStatus.FAILED, RunStatus.TIMED_OUT, RunStatus.INTERRUPTED, RunStatus.MISSED)
)

_AT_ONCE = 1000
_DAY_MS = 24 * 3600 * 1000
#: Who did what is asked for later than what ran; never less long than runs are kept.
_AUDIT_MS = 365 * _DAY_MS


@dataclass
class Pruning:
    """What is kept for how long, in milliseconds after its end, and how far it was looked at.

    Attributes:
        keep_ms, keep_failed_ms: For runs of tasks that do not say it themselves.
    """

    keep_ms: int = 30 * _DAY_MS
    keep_failed_ms: int = 30 * _DAY_MS
    # A task may keep its runs for longer than others: they are not read again each time.
    _looked_at: dict[str, int] = field(default_factory=dict)
    _forget_ms: int = 0

    @classmethod
    def of(cls, settings: Settings) -> Pruning:
        keep = kept_ms(settings.keep) or 30 * _DAY_MS
        failed = settings.keep_failed
        return cls(keep, keep if failed is None else kept_ms(failed) or keep)

    def prune(self, ledger: Ledger) -> int:
        """Delete some of the rows whose time is over; how many runs.

        Where it is more than 0, there may be more.
        """
        now_ms = ledger.read(ledger.now_ms)
        if now_ms >= self._forget_ms:  # a run that had waited for long was passed by
            self._forget_ms = now_ms + _DAY_MS
            self._looked_at.clear()
        own = _own(ledger)
        number = 0
        for name, statement, by, before_ms in self._searches(ledger, own, now_ms):
            since_ms = self._looked_at.get(name, 0)
            some = statement.where(by < before_ms, by >= since_ms).order_by(by).limit(_AT_ONCE)
            found = ledger.read(lambda c, it=some: list(c.scalars(it)))  # type: ignore[misc]
            _delete_runs(ledger, found)
            number += len(found)
            if len(found) < _AT_ONCE:
                self._looked_at[name] = before_ms - _DAY_MS
        longest_ms = max(self.keep_ms, self.keep_failed_ms)
        _delete_nodes(ledger, now_ms - longest_ms)
        _delete_audit(ledger, now_ms - max(_AUDIT_MS, longest_ms, *own.values()))
        return number

    def _searches(
        self, ledger: Ledger, own: Mapping[str, int], now_ms: int
    ) -> Iterator[tuple[str, Select[tuple[str]], Column[int], int]]:
        """Each search: its name, the statement, and before which instant they began."""
        for status in FINAL:
            before_ms = now_ms - (self.keep_failed_ms if status in NEEDS_A_LOOK else self.keep_ms)
            found = _ended(ledger, now_ms, before_ms).where(run.c.status == status)
            if own:
                found = found.where(run.c.task.not_in(list(own)))
            yield status, found, run.c.not_before_ms, before_ms  # fsa_run_queue
        for name, keep in own.items():
            found = _ended(ledger, now_ms, now_ms - keep).where(
                run.c.task == name, run.c.status.in_(FINAL)
            )
            yield f"task {name}", found, run.c.scheduled_ms, now_ms - keep  # fsa_run_history


def _own(ledger: Ledger) -> dict[str, int]:
    """The tasks that say for how long their runs are kept, also those of other processes."""
    said = select(task.c.name, task.c.options).where(
        task.c.namespace == ledger.namespace, task.c.options.like('%"keep_ms"%')
    )
    rows = ledger.read(lambda connection: connection.execute(said).all())
    found = ((row.name, options_in(row.options).get("keep_ms")) for row in rows)
    return {name: keep for name, keep in found if isinstance(keep, int) and keep > 0}


def _ended(ledger: Ledger, now_ms: int, before_ms: int) -> Select[tuple[str]]:
    ended_ms = func.coalesce(run.c.finished_ms, run.c.scheduled_ms)
    has_key = exists().where(key.c.run == run.c.id, ended_ms + key.c.kept_ms > now_ms)
    return select(run.c.id).where(
        run.c.namespace == ledger.namespace,
        ended_ms < before_ms,
        ~_may_be_expected(),
        ~has_key,
    )


def _may_be_expected() -> ColumnElement[bool]:
    """Whether it is the row of an instant that a scheduler may still look for."""
    return and_(
        run.c.slot == SCHEDULED,
        exists().where(
            task.c.namespace == run.c.namespace,
            task.c.name == run.c.task,
            task.c.schedule_hash.is_not(None),
            task.c.watermark_ms < run.c.scheduled_ms,
        ),
    )


def _delete_runs(ledger: Ledger, ids: list[str]) -> None:
    # What refers to a row goes first: a process that ends in between leaves the row to the next.
    for statement in (
        delete(progress).where(progress.c.run.in_(ids)),
        delete(key).where(key.c.run.in_(ids)),
        delete(activity).where(activity.c.run.in_(ids)),
        delete(attempt).where(attempt.c.run.in_(ids)),
        delete(run).where(run.c.id.in_(ids)),
    ):
        if ids:
            ledger.at_once(lambda connection, it=statement: connection.execute(it))  # type: ignore[misc]


def _delete_nodes(ledger: Ledger, before_ms: int) -> None:
    old = (
        select(node.c.id)
        .where(
            node.c.namespace == ledger.namespace,
            node.c.state.in_(("stopped", "dead")),
            node.c.lease_until_ms < before_ms,
        )
        .limit(_AT_ONCE)
    )
    gone = ledger.read(lambda connection: list(connection.scalars(old)))
    for statement in (
        delete(node_task).where(node_task.c.node.in_(gone)),
        delete(node).where(node.c.id.in_(gone)),
    ):
        if gone:
            ledger.at_once(lambda connection, it=statement: connection.execute(it))  # type: ignore[misc]


def _delete_audit(ledger: Ledger, before_ms: int) -> None:
    old = (
        select(audit.c.id)
        .where(audit.c.namespace == ledger.namespace, audit.c.at_ms < before_ms)
        .order_by(audit.c.at_ms)
        .limit(_AT_ONCE)
    )
    gone = ledger.read(lambda connection: list(connection.scalars(old)))
    if gone:
        statement = delete(audit).where(audit.c.id.in_(gone))
        ledger.at_once(lambda connection: connection.execute(statement))
