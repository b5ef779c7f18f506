"""Claim queued runs, and runs whose message a broker has delivered; queue them again."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    TextClause,
    literal_column,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.sql.selectable import TextualSelect

from fsa_cli.ledger.dialects import DialectSQL, execute_rows, is_lock_wait, typed
from fsa_cli.ledger.records import (
    HIGHEST_PRIORITY,
    LOWEST_PRIORITY,
    SENT_AGAIN_MS,
    ClaimedRun,
    QueueClaim,
)
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run

__all__ = [
    "claim_dispatched",
    "claim_next",
    "claim_queued",
    "requeue_claimed",
    "requeue_dispatched",
]

_LOCKED_AGAIN_MS = 200
_MANY = 4
# Looks at the queue for one claim. Each but the first finds what can start; the next is needed only
# where the runs that were found share locks.
_ROUNDS = 4
# How many looks go by age alone, so that what has a low priority is not left for ever.
_BY_AGE = 0.1
_ABOVE, _BELOW = HIGHEST_PRIORITY + 1, LOWEST_PRIORITY - 1


def claim_queued(
    ledger: Ledger,
    node: str,
    locks: Mapping[str, str | None],
    *,
    most: int,
    executor: str = "local",
    dispatch: str | None = None,
    token: str | None = None,
) -> QueueClaim:
    """Claim up to *most* queued runs whose time has come and whose lock is free.

    Args:
        token: That of the claim; None: a new one.
        locks: The tasks that this process can run, and the lock of each.
        dispatch: As in `claim_due`.
    """
    token = token or uuid.uuid4().hex
    wanted, more, waits, empty = ledger.read(
        lambda connection: _candidates(ledger, connection, token, locks, most, executor)
    )
    if dispatch is None:
        taken = _take(ledger, node, wanted)
    else:
        taken = _take(ledger, None, wanted, to="handed_off", joined=dispatch)
    return QueueClaim(taken, more or len(wanted) > len(taken), waits, empty)


def claim_next(
    ledger: Ledger, node: str, locks: Mapping[str, str | None], *, most: int, token: str
) -> list[ClaimedRun]:
    """Claim up to *most* queued runs without a lock, in one statement.

    For a queue that was empty a moment ago: what waits already, and what has a lock, is left to
    `claim_queued`. It is PostgreSQL's; elsewhere nothing is claimed.
    """
    if not _updates_and_returns(ledger):
        return []
    given = {
        "namespace": ledger.namespace,
        "node": node,
        "claim": token,
        "tasks": _without_lock(locks),
        "number": most,
    }
    mine = (run.c.node == node, run.c.status == "running", run.c.claim == token)
    return _claimed_at_once(ledger, _taking_next(ledger.sql), given, token, mine)


def claim_dispatched(
    ledger: Ledger,
    node: str,
    locks: Mapping[str, str | None],
    run_ids: Collection[str],
    *,
    token: str | None = None,
) -> list[ClaimedRun]:
    """Claim delivered runs for *node*; those of them that are its own now.

    One whose lock is held goes back to the queue. One of a task that is not among *locks* is left
    for a process that knows it.

    Args:
        token: That of the claim; None: a new one.
    """
    token = token or uuid.uuid4().hex
    taken: list[ClaimedRun] = []
    if _updates_and_returns(ledger):
        taken = _take_free(ledger, node, token, locks, run_ids)
        run_ids = set(run_ids) - {each.run_id for each in taken}
    if not run_ids:
        return taken
    return [*taken, *_take_with_locks(ledger, node, token, locks, run_ids)]


def _take_free(
    ledger: Ledger,
    node: str,
    token: str,
    locks: Mapping[str, str | None],
    run_ids: Collection[str],
) -> list[ClaimedRun]:
    """Claim those without a lock, in one statement."""
    given = {
        "namespace": ledger.namespace,
        "node": node,
        "claim": token,
        "tasks": _without_lock(locks),
        "ids": json.dumps(sorted(run_ids)),
    }
    mine = (run.c.id.in_(list(run_ids)), run.c.claim == token)
    return _claimed_at_once(ledger, _taking_free(ledger.sql), given, token, mine)


def _updates_and_returns(ledger: Ledger) -> bool:
    return ledger.sql.update is not None and ledger.sql.returns


def _without_lock(locks: Mapping[str, str | None]) -> str:
    return json.dumps([name for name, lock in locks.items() if lock is None])


def _claimed_at_once(
    ledger: Ledger,
    claiming: TextClause,
    given: Mapping[str, Any],
    token: str,
    mine: Sequence[ColumnElement[bool]],
) -> list[ClaimedRun]:
    """What a statement claims that returns it; *mine* finds what it has claimed already."""
    tried = False

    def work(connection: Connection) -> list[Any]:
        nonlocal tried
        before: Sequence[Any] = ()
        if tried:  # a COMMIT whose outcome was unknown may have happened
            before = connection.execute(select(*_OF_CANDIDATES, run.c.priority).where(*mine)).all()
        tried = True
        return [*before, *connection.execute(claiming, given).all()]

    return [
        ClaimedRun(
            *(row.id, token, row.task, row.scheduled_ms, row.kind, row.attempt, row.arguments),
            queue=row.queue,
        )
        for row in sorted(ledger.at_once(work), key=_urgency)
    ]


def _urgency(row: Any) -> tuple[int, int]:
    return -row.priority, row.scheduled_ms


def _take_with_locks(
    ledger: Ledger,
    node: str,
    token: str,
    locks: Mapping[str, str | None],
    run_ids: Collection[str],
) -> list[ClaimedRun]:
    rows = ledger.read(
        lambda connection: connection.execute(
            select(*_OF_CANDIDATES, run.c.lock_key).where(
                run.c.namespace == ledger.namespace,
                run.c.id.in_(list(run_ids)),
                run.c.status == "handed_off",
            )
        ).all()
    )
    held: set[str] = set()
    wanted: list[ClaimedRun] = []
    locked: list[ClaimedRun] = []
    for row in sorted(
        rows, key=lambda each: each.lock_key is None
    ):  # a run that holds its lock goes first
        if row.task not in locks:
            continue
        lock = locks[row.task]
        given = (row.task, row.scheduled_ms, row.kind, row.attempt, row.arguments, lock, row.queue)
        (locked if lock in held else wanted).append(ClaimedRun(row.id, token, *given))
        if lock is not None:
            held.add(lock)
    taken = _take(ledger, node, wanted, since="handed_off", locked=locked)
    if locked:
        requeue_dispatched(ledger, [each.run_id for each in locked], _LOCKED_AGAIN_MS)
    return taken


def requeue_dispatched(ledger: Ledger, run_ids: Collection[str], after_ms: int = 0) -> None:
    """Queue delivered runs again that have not started, for *after_ms* later."""
    later = literal_column(ledger.sql.now_ms, BigInteger()) + after_ms
    statement = (
        update(run)
        .where(run.c.id.in_(sorted(run_ids)), run.c.status == "handed_off")
        .values(status="queued", claim=None, lock_key=None, not_before_ms=later)
    )
    ledger.at_once(lambda connection: connection.execute(statement))


def requeue_claimed(ledger: Ledger, claimed: Collection[ClaimedRun]) -> None:
    """Queue claimed runs again that have not started, for any node."""
    rows = [
        {"run_id": each.run_id, "token": each.token}
        for each in sorted(claimed, key=lambda one: one.run_id)
    ]
    statement = _requeuing(ledger.sql)
    if rows:
        ledger.at_once(lambda connection: execute_rows(connection, ledger.sql, statement, rows))


def _take(
    ledger: Ledger,
    node: str | None,
    wanted: Sequence[ClaimedRun],
    *,
    since: str = "queued",
    to: str = "running",
    joined: str = "",
    locked: list[ClaimedRun] | None = None,
) -> list[ClaimedRun]:
    """Claim *wanted* in one statement; those of them that are ours now.

    Args:
        since, to: The status before and after.
        joined: SQL that is part of the statement, as in `dialects.joining`.
        locked: Filled with those whose lock is held.
    """
    ordered = sorted(wanted, key=lambda each: each.run_id)
    values = [
        {"run_id": each.run_id, "token": each.token, "by_node": node, "lock_name": each.lock_key}
        for each in ordered
    ]
    statement = _taking(ledger.sql, since, to, joined)

    def take(connection: Connection) -> bool:
        return execute_rows(connection, ledger.sql, statement, values) == len(ordered)

    if not ordered:
        return []
    try:
        if ledger.at_once(take, waits=False):
            return ordered
    except DBAPIError as exc:  # a lock is held, or in a transaction that does not end
        if not (isinstance(exc, IntegrityError) or is_lock_wait(exc)):
            raise
        if len(ordered) == 1:
            if locked is not None:
                locked += ordered
            return []
        return [
            each
            for one in ordered
            for each in _take(ledger, node, [one], since=since, to=to, joined=joined, locked=locked)
        ]
    # By the token, because a COMMIT whose outcome was unknown may have happened.
    ids = [each.run_id for each in ordered]
    rows = ledger.read(
        lambda connection: connection.execute(
            select(run.c.id, run.c.claim).where(run.c.id.in_(ids))
        ).all()
    )
    tokens = {row.id: row.claim for row in rows}
    return [each for each in ordered if tokens.get(each.run_id) == each.token]


@lru_cache
def _taking(sql: DialectSQL, since: str, to: str, joined: str) -> TextClause:
    dispatched = to == "handed_off"
    times = (
        f"not_before_ms = {sql.now_ms} + {SENT_AGAIN_MS}, queued_ms = {sql.now_ms}"
        if dispatched
        else f"started_ms = {sql.now_ms}"
    )
    return sql.update_from_rows(
        "fsa_run",
        {"run_id": "text", "token": "text", "by_node": "text", "lock_name": "text"},
        ("id", "run_id"),
        f"status = '{to}', node = v.by_node, claim = v.token, lock_key = v.lock_name, {times}",
        f"t.status = '{since}'",
        joined=joined,
        bounds_locks=True,
    )


@lru_cache
def _requeuing(sql: DialectSQL) -> TextClause:
    return sql.update_from_rows(
        "fsa_run",
        {"run_id": "text", "token": "text"},
        ("id", "run_id"),
        "status = 'queued', node = NULL, claim = NULL, lock_key = NULL, started_ms = NULL",
        "t.claim = v.token AND t.status = 'running'",
    )


@lru_cache
def _taking_free(sql: DialectSQL) -> TextClause:
    """UPDATE of the runs in `:ids` whose task is in `:tasks`, both arrays of JSON."""
    return _starting(
        sql,
        f"""
        WHERE t.id = {_LISTED.format(":ids")} AND t.status = 'handed_off'
            AND t.namespace = :namespace AND t.task = {_LISTED.format(":tasks")}
        """,
    )


@lru_cache
def _taking_next(sql: DialectSQL) -> TextClause:
    """UPDATE of the first that nobody else is claiming, of the tasks in `:tasks`."""
    return _starting(
        sql,
        f"""
        FROM (
            SELECT q.id FROM fsa_run q
            WHERE q.namespace = :namespace AND q.status = 'queued'
                AND q.not_before_ms <= (SELECT {sql.now_ms}) AND q.executor = 'local'
                AND (q.task = {_LISTED.format(":tasks")}) IS TRUE
            ORDER BY q.priority DESC, q.not_before_ms
            LIMIT :number
            FOR UPDATE SKIP LOCKED
        ) AS next
        WHERE t.id = next.id
        """,
    )


def _starting(sql: DialectSQL, which: str) -> TextClause:
    """UPDATE of runs without a lock that are this node's from now on."""
    return typed(
        "UPDATE fsa_run AS t SET status = 'running', node = :node, claim = :claim, "
        f"lock_key = NULL, started_ms = {sql.now_ms} {which} RETURNING {_RETURNED}"
    )


_LISTED = "ANY(ARRAY(SELECT json_array_elements_text(CAST({} AS JSON))))"
_RETURNED = "t.id, t.task, t.scheduled_ms, t.kind, t.attempt, t.arguments, t.queue, t.priority"
_OF_CANDIDATES = (
    run.c.id,
    run.c.task,
    run.c.scheduled_ms,
    run.c.kind,
    run.c.attempt,
    run.c.arguments,
    run.c.queue,
)


def _candidates(
    ledger: Ledger,
    connection: Connection,
    token: str,
    locks: Mapping[str, str | None],
    most: int,
    executor: str,
) -> tuple[list[ClaimedRun], bool, bool, bool]:
    """Runs to claim, whether there may be more, whether others wait for a lock, and whether nothing
    waits at all.

    What cannot start (its lock is held, its task is unknown here) must not stand before what can,
    however much of it there is: where it does, the tasks that can start are named to the database.
    """
    wanted: list[ClaimedRun] = []
    known: set[str] = set()
    held: set[str] = set()
    limit = max(most * _MANY, 50)
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
        # Replicas that look at once should not all try the same ones first.
        room = most - len(wanted)
        several = chosen[: most * 2]
        random.shuffle(several)
        if not by_age:
            several.sort(key=lambda each: -each[0].priority)
        for row, lock in several[:room]:
            known.add(row.id)
            given = (row.task, row.scheduled_ms, row.kind, row.attempt, row.arguments, lock)
            wanted.append(ClaimedRun(row.id, token, *given, row.queue))
        if len(wanted) == most:
            return wanted, more or len(chosen) > room, waits, empty
        if not more:
            break
        if startable is None:
            held |= _held(ledger, connection, set(locks.values()))
        startable = [name for name, lock in locks.items() if lock is None or lock not in held]
        if not startable:
            return wanted, False, waits, empty
    return wanted, more, waits, empty


def _queued(
    ledger: Ledger,
    connection: Connection,
    executor: str,
    limit: int,
    tasks: Sequence[str] | None,
    *,
    by_age: bool,
) -> list[Any]:
    """Queued runs whose time has come, the first to claim first; None: of whatever tasks.

    Args:
        by_age: The oldest first, whatever their priority.
    """
    given = {"namespace": ledger.namespace, "executor": executor, "number": limit}
    if tasks is not None:
        given["rows"] = json.dumps([{"task": name} for name in tasks])
    is_filtered = tasks is not None
    found = list(connection.execute(_looking(ledger.sql, is_filtered, ""), given))
    if by_age:
        return sorted(found, key=_age)
    if len(found) < limit:  # all that wait
        return sorted(found, key=_rank)
    levels = list(connection.scalars(_levels(ledger.sql), {"namespace": ledger.namespace}))
    if len(levels) <= 1:
        return sorted(found, key=_rank)
    found = []
    for level in sorted(levels, reverse=True):
        given |= {"priority": level, "number": limit - len(found)}
        sign = ">=" if level == _ABOVE else "<=" if level == _BELOW else "="
        found += connection.execute(_looking(ledger.sql, is_filtered, sign), given)
        if len(found) == limit:
            break
    return sorted(found, key=_rank)


def _age(row: Any) -> tuple[int, int]:
    return row.not_before_ms, row.scheduled_ms


def _rank(row: Any) -> tuple[int, int, int]:
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
        SELECT t.id, t.task, t.scheduled_ms, t.kind, t.attempt, t.arguments, t.queue,
            t.priority, t.not_before_ms
        FROM fsa_run t
        WHERE t.namespace = :namespace AND t.status = 'queued'
            AND t.not_before_ms <= (SELECT {sql.now_ms}) AND t.executor = :executor
            {f"AND t.priority {sign} :priority" if sign else ""}
            {sql.readable} {filtered if is_filtered else ""}
        ORDER BY t.not_before_ms
        LIMIT :number
        """,
        **({"priority": BigInteger} if sign else {}),
    ).columns(*_OF_CANDIDATES, run.c.priority, run.c.not_before_ms)  # SQLite's rows hold anything


def _held(ledger: Ledger, connection: Connection, locks: Collection[str | None]) -> set[str]:
    """Which of these locks are held; each is looked up in its UNIQUE key."""
    asked = [{"lock_name": lock} for lock in sorted(lock for lock in locks if lock is not None)]
    if not asked:
        return set()
    return set(connection.scalars(_holding(ledger.sql), {"rows": json.dumps(asked)}))


@lru_cache
def _holding(sql: DialectSQL) -> TextClause:
    # A subquery that counts, as in `instants`: without statistics, `lock_key IS NOT NULL` read all.
    return typed(
        f"""
        SELECT v.lock_name FROM {sql.from_rows({"lock_name": "text"})}
        WHERE (SELECT COUNT(*) FROM fsa_run t WHERE t.lock_key = v.lock_name) > 0
        """
    )
