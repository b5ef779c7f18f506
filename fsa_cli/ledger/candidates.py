"""Which queued runs can start now, and in which order."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Connection, Result, TextClause
from sqlalchemy.sql.selectable import TextualSelect

from fsa_cli.ledger.dialects import DialectSQL, typed
from fsa_cli.ledger.records import HIGHEST_PRIORITY, LOWEST_PRIORITY, ClaimedRun, QueueClaim
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run

__all__ = ["CLAIMED_COLUMNS", "RETURNED", "QueuedRow", "candidates"]

#: What a `ClaimedRun` is made of.
CLAIMED_COLUMNS = (
    run.c.id,
    run.c.task,
    run.c.scheduled_ms,
    run.c.kind,
    run.c.attempt,
    run.c.arguments,
    run.c.queue,
)
#: The same in SQL, of the table `t`, and by what it is put in order.
RETURNED = ", ".join(f"t.{column.name}" for column in (*CLAIMED_COLUMNS, run.c.priority))

_MANY = 4
# Looks at the queue for one claim. Each but the first finds what can start; the next is needed only
# where the runs that were found share locks.
_ROUNDS = 4
# How many looks go by age alone, so that what has a low priority is not left for ever.
_BY_AGE = 0.1
_ABOVE, _BELOW = HIGHEST_PRIORITY + 1, LOWEST_PRIORITY - 1


class QueuedRow(NamedTuple):
    """A row that may be claimed: `CLAIMED_COLUMNS`, and what puts it in order, if that is read.

    A look reads several rows for each run that it claims, and SQLAlchemy's rows look up each of
    their attributes by its name.
    """

    id: str
    task: str
    scheduled_ms: int
    kind: str
    attempt: int
    arguments: str
    queue: str | None
    priority: int = 0
    not_before_ms: int = 0

    @classmethod
    def each_of(cls, found: Result[Any]) -> list[QueuedRow]:
        rows: Sequence[Any] = found.all()
        return [cls(*row) for row in rows]

    def claimed(self, token: str, lock: str | None = None) -> ClaimedRun:
        """The run, claimed by *token* with *lock*."""
        given = (self.task, self.scheduled_ms, self.kind, self.attempt, self.arguments)
        return ClaimedRun(self.id, token, *given, lock, self.queue)


def candidates(
    ledger: Ledger,
    connection: Connection,
    token: str,
    locks: Mapping[str, str | None],
    most: int,
    executor: str,
    without: Collection[str] = (),
    *,
    spare: bool = False,
) -> QueueClaim:
    """The runs to claim, up to *most*, and what else a look at the queue has shown.

    What cannot start (its lock is held, its task is unknown here) must not stand before what can,
    however much of it there is: where it does, the tasks that can start are named to the database.

    Args:
        without: Runs that are passed by, by their ids.
        spare: Whether there may be more, in their order, if none of them has a lock: for a
            statement that passes over those which another process is claiming.
    """
    wanted: list[ClaimedRun] = []
    known = set(without)
    held: set[str] = set()
    limit = max(most * _MANY, 50) + len(known)
    by_age = random.random() < _BY_AGE
    startable: list[str] | None = None
    waits = more = empty = False
    for _ in range(_ROUNDS):
        rows = _queued(ledger, connection, executor, limit, startable, by_age=by_age)
        more = len(rows) == limit
        if startable is None:
            empty = not rows
            held = _held(ledger, connection, {locks.get(row.task) for row in rows})
        chosen = []
        for row in rows:
            lock = locks.get(row.task)
            if row.task not in locks or row.id in known:
                continue
            if lock is not None and lock in held:
                waits = True
                continue
            if lock is not None:  # of those that share it the oldest
                held.add(lock)
            chosen.append((row, lock))
        if spare and not wanted and len(chosen) > most and all(lock is None for _, lock in chosen):
            return QueueClaim([row.claimed(token) for row, _ in chosen], True, waits, empty)
        # Replicas that look at once should not all try the same ones first.
        room = most - len(wanted)
        several = chosen[: most * 2]
        random.shuffle(several)
        if not by_age:
            several.sort(key=lambda each: -each[0].priority)
        for row, lock in several[:room]:
            known.add(row.id)
            wanted.append(row.claimed(token, lock))
        if len(wanted) == most:
            return QueueClaim(wanted, more or len(chosen) > room, waits, empty)
        if not more:
            break
        if startable is None:
            held |= _held(ledger, connection, set(locks.values()))
        startable = [name for name, lock in locks.items() if lock is None or lock not in held]
        if not startable:
            return QueueClaim(wanted, False, waits, empty)
    return QueueClaim(wanted, more, waits, empty)


def _queued(
    ledger: Ledger,
    connection: Connection,
    executor: str,
    limit: int,
    tasks: Sequence[str] | None,
    *,
    by_age: bool,
) -> list[QueuedRow]:
    """Queued runs whose time has come, the first to claim first; None: of whatever tasks.

    Args:
        by_age: The oldest first, whatever their priority.
    """
    given = {"namespace": ledger.namespace, "executor": executor, "number": limit}
    if tasks is not None:
        given["rows"] = json.dumps([{"task": name} for name in tasks])
    is_filtered = tasks is not None
    found = QueuedRow.each_of(connection.execute(_looking(ledger.sql, is_filtered, ""), given))
    if by_age:
        return sorted(found, key=_age)
    if len(found) < limit:  # all that wait
        return sorted(found, key=_rank)
    levels = connection.scalars(_levels(ledger.sql), {"namespace": ledger.namespace}).all()
    if len(levels) <= 1:
        return sorted(found, key=_rank)
    found = []
    for level in sorted(levels, reverse=True):
        given |= {"priority": level, "number": limit - len(found)}
        sign = ">=" if level == _ABOVE else "<=" if level == _BELOW else "="
        found += QueuedRow.each_of(
            connection.execute(_looking(ledger.sql, is_filtered, sign), given)
        )
        if len(found) == limit:
            break
    return sorted(found, key=_rank)


def _age(row: QueuedRow) -> tuple[int, int]:
    return row.not_before_ms, row.scheduled_ms


def _rank(row: QueuedRow) -> tuple[int, int, int]:
    return -row.priority, row.not_before_ms, row.scheduled_ms


@lru_cache
def _levels(sql: DialectSQL) -> TextualSelect:
    """The priorities of which a run waits whose time has come. Each is looked up in the index.

    All that others have written above the highest are one, and all below the lowest.
    """
    # By ORDER BY and LIMIT: without statistics PostgreSQL reads all rows for a MIN. MySQL reads
    # the queue in its order, for each priority to its end.
    index = "" if sql.skips else "FORCE INDEX (fsa_run_priority)"
    first = (
        f"SELECT t.{{0}} FROM fsa_run t {index} "
        "WHERE t.namespace = :namespace AND t.status = 'queued' {1} ORDER BY t.{0} LIMIT 1"
    )
    up_to = f"AND t.priority <= {HIGHEST_PRIORITY}"
    lowest = first.format("priority", f"AND t.priority >= {LOWEST_PRIORITY} {up_to}")
    next_one = first.format("priority", f"AND t.priority > level.priority {up_to}")
    oldest = first.format("not_before_ms", "AND t.priority = level.priority")
    levels = f"""
        WITH RECURSIVE level (priority) AS (
            SELECT ({lowest})
            UNION ALL
            SELECT ({next_one}) FROM level WHERE level.priority IS NOT NULL
        )
        """
    if not sql.skips:
        every = " UNION ALL SELECT ".join(map(str, range(LOWEST_PRIORITY, HIGHEST_PRIORITY + 1)))
        levels = f"WITH level (priority) AS (SELECT {every})"
    beyond = "".join(
        f" UNION ALL SELECT x.beyond FROM (SELECT {level} AS beyond) AS x WHERE EXISTS ("
        "SELECT 1 FROM fsa_run t WHERE t.namespace = :namespace AND t.status = 'queued' "
        f"AND t.priority {sign} {level})"
        for sign, level in ((">=", _ABOVE), ("<=", _BELOW))
    )
    return typed(
        f"{levels} SELECT priority FROM level WHERE ({oldest}) <= {sql.now_ms} {beyond}"
    ).columns(run.c.priority)


@lru_cache
def _looking(sql: DialectSQL, is_filtered: bool, sign: str) -> TextualSelect:
    # By `IS TRUE` the tasks are no join and no key of an index: whatever the database believes of
    # the table, it reads the queue in its order until it has found enough.
    filtered = f"AND (t.task IN (SELECT v.task FROM {sql.from_rows({'task': 'text'})})) IS TRUE"
    return typed(
        f"""
        SELECT {RETURNED}, t.not_before_ms
        FROM fsa_run t
        WHERE t.namespace = :namespace AND t.status = 'queued'
            AND t.not_before_ms <= (SELECT {sql.now_ms}) AND t.executor = :executor
            {f"AND t.priority {sign} :priority" if sign else ""}
            {sql.readable} {filtered if is_filtered else ""}
        ORDER BY t.not_before_ms
        LIMIT :number
        """,
        **({"priority": BigInteger} if sign else {}),
    ).columns(*CLAIMED_COLUMNS, run.c.priority, run.c.not_before_ms)  # SQLite's rows hold anything


def _held(ledger: Ledger, connection: Connection, locks: Collection[str | None]) -> set[str]:
    """Which of these locks are held; each is looked up in its UNIQUE key."""
    asked = [{"lock_name": lock} for lock in sorted(lock for lock in locks if lock is not None)]
    if not asked:
        return set()
    return set(connection.scalars(_holding(ledger.sql), {"rows": json.dumps(asked)}).all())


@lru_cache
def _holding(sql: DialectSQL) -> TextClause:
    # A subquery that counts, as in `instants`: without statistics, `lock_key IS NOT NULL` read all.
    return typed(
        f"""
        SELECT v.lock_name FROM {sql.from_rows({"lock_name": "text"})}
        WHERE (SELECT COUNT(*) FROM fsa_run t WHERE t.lock_key = v.lock_name) > 0
        """
    )
