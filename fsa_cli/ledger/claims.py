"""Claims: of all replicas exactly one gets an instant, and whoever gets it runs it.

The claim of what is due is one statement, however much is due. A UNIQUE key on (task, instant)
decides who has it, and one on `lock_key` whether the task may run now.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    TextClause,
    Update,
    bindparam,
    literal_column,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from fsa_cli.ledger.dialects import Words, typed
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run

__all__ = [
    "EARLY_MS",
    "SCHEDULED",
    "Claimed",
    "Due",
    "Outcome",
    "Queued",
    "claim",
    "claim_queued",
    "unclaim",
    "with_row",
]

#: The slot of what the schedule starts; a manual run has its own id there.
SCHEDULED = "S"
#: How far ahead of the database's clock an instant may be claimed.
EARLY_MS = 500

_MANY = 4


@dataclass(frozen=True, slots=True)
class Due:
    """An instant that has come.

    Attributes:
        lock_key: What only one run may hold at a time; None where runs may overlap.
        waits: Where the lock is held: whether the run is queued. Else it is skipped.
    """

    task: str
    scheduled_ms: int
    lock_key: str | None = None
    waits: bool = False
    arguments: str = "{}"
    executor: str = "local"
    queue: str | None = None

    @property
    def key(self) -> tuple[str, int]:
        return self.task, self.scheduled_ms


@dataclass(frozen=True, slots=True)
class Claimed:
    """A run that is ours to make. Its result counts while its row carries the token."""

    run_id: str
    token: str
    task: str
    scheduled_ms: int
    kind: str
    attempt: int
    arguments: str
    lock_key: str | None = None


@dataclass
class Outcome:
    """What became of what was due.

    Attributes:
        early: Not yet, by the database's clock.
        left: The task is paused or its time is over: the sweep says what becomes of it.
    """

    mine: list[Claimed] = field(default_factory=list)
    others: list[Due] = field(default_factory=list)
    skipped: list[Due] = field(default_factory=list)
    queued: list[Due] = field(default_factory=list)
    early: list[Due] = field(default_factory=list)
    left: list[Due] = field(default_factory=list)


class Queued(NamedTuple):
    """What was taken from the queue.

    Attributes:
        more: Whether there may be more that could be taken.
        waits: Whether there are others whose lock is held.
    """

    runs: list[Claimed]
    more: bool
    waits: bool


def claim(ledger: Ledger, node: str, due: Sequence[Due], *, window_ms: int) -> Outcome:
    """Take what is *due*, as far as nobody else has it.

    Args:
        window_ms: How old an instant may be.
    """
    # In one order for all replicas: in several they deadlock.
    ordered = sorted(due, key=lambda each: (each.lock_key or "", each.task, each.scheduled_ms))
    ids = {uuid.uuid4().hex: each for each in ordered}
    token = uuid.uuid4().hex
    given: dict[str, Any] = {
        "namespace": ledger.namespace,
        "node": node,
        "claim": token,
        "early_ms": EARLY_MS,
        "window_ms": window_ms,
        "rows": _json(ids, locked=True),
    }
    outcome = Outcome()
    made: set[str] = set()
    if ledger.words.returns:
        made = ledger.at_once(
            lambda connection: set(connection.scalars(_insert(ledger.words, "running"), given))
        )
    if len(made) < len(ids):
        outcome = ledger.write(lambda connection: _contested(ledger, connection, ids, made, given))
    outcome.mine += [_claimed(run_id, token, ids[run_id]) for run_id in made]
    return outcome


def _contested(
    ledger: Ledger,
    connection: Connection,
    ids: Mapping[str, Due],
    made: Collection[str],
    given: dict[str, Any],
) -> Outcome:
    """What became of those that were not made at once."""
    outcome = Outcome()
    rest = {run_id: each for run_id, each in ids.items() if run_id not in made}
    if not ledger.words.returns:
        connection.execute(_insert(ledger.words, "running"), given)
    # A COMMIT whose answer was lost may have happened: what carries the token is ours.
    mine = set(
        connection.scalars(
            select(run.c.id).where(run.c.id.in_(list(rest)), run.c.claim == given["claim"])
        )
    )
    outcome.mine = [_claimed(run_id, given["claim"], rest[run_id]) for run_id in mine]
    rest = {run_id: each for run_id, each in rest.items() if run_id not in mine}
    if not rest:
        return outcome
    known = with_row(ledger, connection, [each.key for each in rest.values()])
    outcome.others = [each for each in rest.values() if each.key in known]
    rest = {run_id: each for run_id, each in rest.items() if each.key not in known}
    if not rest:
        return outcome
    now_ms = ledger.now_ms(connection)
    outcome.early = [e for e in rest.values() if e.scheduled_ms > now_ms + EARLY_MS // 2]
    rest = {i: e for i, e in rest.items() if e not in outcome.early}
    for status, into in (("skipped", outcome.skipped), ("queued", outcome.queued)):
        chosen = {i: e for i, e in rest.items() if e.waits is (status == "queued")}
        if chosen:
            values = {key: given[key] for key in ("namespace", "early_ms", "window_ms")}
            values["rows"] = _json(chosen, locked=False)
            connection.execute(_insert(ledger.words, status), values)
            there = with_row(ledger, connection, [each.key for each in chosen.values()])
            into += [e for e in chosen.values() if e.key in there]
            outcome.left += [e for e in chosen.values() if e.key not in there]
    return outcome


def claim_queued(
    ledger: Ledger,
    node: str,
    locks: Mapping[str, str | None],
    *,
    most: int,
    executor: str = "local",
) -> Queued:
    """Take up to *most* queued runs whose time has come and whose lock is free.

    Args:
        locks: The tasks that this process can run, and the lock of each.
    """
    candidates, held, waits = ledger.read(
        lambda connection: _queue(ledger, connection, locks, most, executor)
    )
    wanted: list[Claimed] = []
    for row in candidates:
        lock = locks[row.task]
        if len(wanted) == most:
            break
        if lock is not None and lock in held:
            waits = True
            continue
        if lock is not None:
            held.add(lock)
        given = (row.task, row.scheduled_ms, row.kind, row.attempt, row.arguments, lock)
        wanted.append(Claimed(row.id, uuid.uuid4().hex, *given))
    taken = _take(ledger, node, wanted)
    return Queued(taken, len(candidates) > len(taken), waits)


def unclaim(ledger: Ledger, claimed: Collection[Claimed]) -> None:
    """Give back what was not begun: it is queued again, for any node."""

    def work(connection: Connection) -> None:
        for each in sorted(claimed, key=lambda one: one.run_id):
            connection.execute(
                update(run)
                .where(
                    run.c.id == each.run_id, run.c.claim == each.token, run.c.status == "running"
                )
                .values(status="queued", node=None, claim=None, lock_key=None, started_ms=None)
            )

    if claimed:
        ledger.write(work)


def _take(ledger: Ledger, node: str, wanted: Sequence[Claimed]) -> list[Claimed]:
    """Those of *wanted* that are ours now."""
    ordered = sorted(wanted, key=lambda each: each.run_id)
    values = [
        {"run_id": each.run_id, "token": each.token, "by_node": node, "lock": each.lock_key}
        for each in ordered
    ]

    def work(connection: Connection) -> list[Claimed]:
        taken = connection.execute(_taking(ledger.words), values)
        if taken.rowcount == len(ordered):
            return ordered
        # By the token, because a COMMIT whose outcome was unknown may have happened.
        rows = connection.execute(
            select(run.c.id, run.c.claim).where(run.c.id.in_([each.run_id for each in ordered]))
        )
        tokens = {row.id: row.claim for row in rows}
        return [each for each in ordered if tokens.get(each.run_id) == each.token]

    if not ordered:
        return []
    try:
        return ledger.write(work)
    except IntegrityError:  # a lock was taken meanwhile: its run stays queued
        if len(ordered) == 1:
            return []
        return [each for one in ordered for each in _take(ledger, node, [one])]


@lru_cache
def _taking(words: Words) -> Update:
    return (
        update(run)
        .where(run.c.id == bindparam("run_id"), run.c.status == "queued")
        .values(
            status="running",
            node=bindparam("by_node"),
            claim=bindparam("token"),
            lock_key=bindparam("lock"),
            started_ms=literal_column(words.now_ms),
        )
    )


def _queue(
    ledger: Ledger,
    connection: Connection,
    locks: Mapping[str, str | None],
    most: int,
    executor: str,
) -> tuple[list[Any], set[str], bool]:
    """Runs that could be taken, the locks that are held, and whether others wait for these."""
    rows = connection.execute(
        select(run.c.id, run.c.task, run.c.scheduled_ms, run.c.kind, run.c.attempt, run.c.arguments)
        .where(
            run.c.namespace == ledger.namespace,
            run.c.status == "queued",
            run.c.not_before_ms <= literal_column(ledger.words.now_ms),
            run.c.executor == executor,
        )
        .order_by(run.c.not_before_ms, run.c.scheduled_ms)
        .limit(max(most * _MANY, 50))
    ).all()
    if not rows:
        return [], set(), False
    held = set(
        connection.scalars(
            select(run.c.lock_key).where(
                run.c.namespace == ledger.namespace, run.c.lock_key.is_not(None)
            )
        )
    )
    ours = [row for row in rows if row.task in locks]
    found = [row for row in ours if locks[row.task] not in held]
    # Replicas that look at once should not all try the same ones first.
    chosen = found[: most * 2]
    random.shuffle(chosen)
    return chosen, held, len(found) < len(ours)


def with_row(
    ledger: Ledger, connection: Connection, keys: Collection[tuple[str, int]]
) -> set[tuple[str, int]]:
    """Which of these instants, each a task and its milliseconds, have a row."""
    asked = json.dumps([{"task": task, "at": scheduled_ms} for task, scheduled_ms in keys])
    given = {"namespace": ledger.namespace, "rows": asked}
    rows = connection.execute(_looking(ledger.words), given)
    return {(row.task, row.scheduled_ms) for row in rows}


@lru_cache
def _looking(words: Words) -> TextClause:
    # A subquery that counts, and no join: each is looked up in the UNIQUE key, whatever the
    # database believes of the table. On a new one PostgreSQL and SQLite chose to read all of it.
    return typed(
        f"""
        SELECT v.task AS task, v.at AS scheduled_ms
        FROM {words.from_rows({"task": "text", "at": "bigint"})}
        WHERE (
            SELECT COUNT(*) FROM fsa_run t
            WHERE t.namespace = :namespace AND t.task = v.task AND t.scheduled_ms = v.at
                AND t.slot = '{SCHEDULED}'
        ) > 0
        """
    )


def _claimed(run_id: str, token: str, due: Due) -> Claimed:
    return Claimed(
        run_id, token, due.task, due.scheduled_ms, "schedule", 1, due.arguments, due.lock_key
    )


def _json(ids: Mapping[str, Due], *, locked: bool) -> str:
    return json.dumps(
        [
            {
                "id": run_id,
                "task": each.task,
                "at": each.scheduled_ms,
                "lock_name": each.lock_key if locked else None,
                "arguments": each.arguments,
                "executor": each.executor,
                "queue": each.queue,
            }
            for run_id, each in ids.items()
        ]
    )


_COLUMNS = {
    "id": "text",
    "task": "text",
    "at": "bigint",
    "lock_name": "text",
    "arguments": "text",
    "executor": "text",
    "queue": "text",
}


@lru_cache
def _insert(words: Words, status: str) -> TextClause:
    """INSERT of the rows whose instant has come, is not too old, and whose task is not paused.

    A subquery for each and no join: its plan must not depend on the statistics of new tables.
    """
    running = status == "running"
    claimed = "node, claim, started_ms," if running else ""
    values = f":node, :claim, {words.now_ms}," if running else ""
    ended = "finished_ms, error," if status == "skipped" else ""
    ending = f"{words.now_ms}, 'the run before it has not ended'," if status == "skipped" else ""
    return typed(
        f"""
        INSERT INTO fsa_run (id, namespace, task, scheduled_ms, slot, kind, status, arguments,
            executor, queue, attempt, not_before_ms, {claimed} {ended} lock_key, commits, queued_ms)
        SELECT v.id, :namespace, v.task, v.at, '{SCHEDULED}', 'schedule', '{status}', v.arguments,
            v.executor, v.queue, 1, v.at, {values} {ending} v.lock_name, 0, {words.now_ms}
        FROM {words.from_rows(_COLUMNS)}
        WHERE v.at <= {words.now_ms} + :early_ms AND v.at >= {words.now_ms} - :window_ms
            AND (
                SELECT t.paused_ms FROM fsa_task t
                WHERE t.namespace = :namespace AND t.name = v.task
            ) IS NULL
        ORDER BY v.lock_name, v.task, v.at
        {words.ignore} {"RETURNING id" if running and words.returns else ""}
        """
    )
