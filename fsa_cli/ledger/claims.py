"""Claims: of all replicas exactly one gets an instant, and whoever gets it runs it.

The claim of what is due is one statement, however much is due. A UNIQUE key on (task, instant)
decides who has it, and one on `lock_key` whether the task may run now.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Connection, TextClause, literal_column, select, update
from sqlalchemy.exc import IntegrityError

from fsa_cli.ledger.dialects import Words, execute_rows, typed
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run

__all__ = [
    "EARLY_MS",
    "SCHEDULED",
    "SENT_AGAIN_MS",
    "Claimed",
    "Due",
    "Outcome",
    "Queued",
    "claim",
    "claim_queued",
    "give_back",
    "take",
    "unclaim",
    "with_row",
]

#: The slot of what the schedule starts; a manual run has its own id there.
SCHEDULED = "S"
#: How far ahead of the database's clock an instant may be claimed.
EARLY_MS = 500

#: After so long the message of a run that has not begun is sent again.
SENT_AGAIN_MS = 30_000

_LOCKED_AGAIN_MS = 200
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
    queue: str | None = None


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


def claim(
    ledger: Ledger,
    node: str,
    due: Sequence[Due],
    *,
    window_ms: int,
    hand_off: Callable[[Connection, Sequence[Claimed]], None] | None = None,
) -> Outcome:
    """Take what is *due*, as far as nobody else has it.

    Args:
        window_ms: How old an instant may be.
        hand_off: Given, an engine is to carry them: they are `handed_off`, and it is called in the
            transaction.
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
    if hand_off is not None:
        return ledger.write(lambda c: _handed_off(ledger, c, ids, given, hand_off))
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


def _handed_off(
    ledger: Ledger,
    connection: Connection,
    ids: Mapping[str, Due],
    given: dict[str, Any],
    hand_off: Callable[[Connection, Sequence[Claimed]], None],
) -> Outcome:
    values = {key: value for key, value in given.items() if key != "node"}
    connection.execute(_insert(ledger.words, "handed_off"), values)
    outcome = _unmade(ledger, connection, ids, given)
    if outcome.mine:
        hand_off(connection, outcome.mine)
    return outcome


def _contested(
    ledger: Ledger,
    connection: Connection,
    ids: Mapping[str, Due],
    made: Collection[str],
    given: dict[str, Any],
) -> Outcome:
    """What became of those that were not made at once."""
    rest = {run_id: each for run_id, each in ids.items() if run_id not in made}
    if not ledger.words.returns:
        connection.execute(_insert(ledger.words, "running"), given)
    return _unmade(ledger, connection, rest, given)


def _unmade(
    ledger: Ledger, connection: Connection, rest: Mapping[str, Due], given: dict[str, Any]
) -> Outcome:
    """What became of rows that somebody has tried to insert."""
    outcome = Outcome()
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
    hand_off: Callable[[Connection, Sequence[Claimed]], None] | None = None,
) -> Queued:
    """Take up to *most* queued runs whose time has come and whose lock is free.

    Args:
        locks: The tasks that this process can run, and the lock of each.
        hand_off: As in `claim`.
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
        wanted.append(Claimed(row.id, uuid.uuid4().hex, *given, row.queue))
    if hand_off is None:
        taken = _take(ledger, node, wanted)
    else:
        taken = _take(ledger, None, wanted, to="handed_off", then=hand_off)
    return Queued(taken, len(candidates) > len(taken), waits)


def take(
    ledger: Ledger, node: str, locks: Mapping[str, str | None], run_ids: Collection[str]
) -> list[Claimed]:
    """Those of the runs whose messages have come that are now *node*'s to make.

    One whose lock is held goes back to the queue. One of a task that is not among *locks* stays for
    a process that has it.
    """
    taken: list[Claimed] = []
    if ledger.words.update is not None and ledger.words.returns:
        taken = _take_free(ledger, node, locks, run_ids)
        run_ids = set(run_ids) - {each.run_id for each in taken}
    return [*taken, *_take_with_locks(ledger, node, locks, run_ids)] if run_ids else taken


def _take_free(
    ledger: Ledger, node: str, locks: Mapping[str, str | None], run_ids: Collection[str]
) -> list[Claimed]:
    """Those that lock nothing, in one statement."""
    token = uuid.uuid4().hex
    given = {
        "namespace": ledger.namespace,
        "node": node,
        "claim": token,
        "tasks": json.dumps([name for name, lock in locks.items() if lock is None]),
        "ids": json.dumps(sorted(run_ids)),
    }
    tried = False

    def work(connection: Connection) -> list[Any]:
        nonlocal tried
        before: Sequence[Any] = ()
        if tried:  # a COMMIT whose outcome was unknown may have happened
            mine = select(*_OF_CANDIDATES).where(run.c.id.in_(list(run_ids)), run.c.claim == token)
            before = connection.execute(mine).all()
        tried = True
        return [*before, *connection.execute(_taking_free(ledger.words), given).all()]

    return [
        Claimed(
            *(row.id, token, row.task, row.scheduled_ms, row.kind, row.attempt, row.arguments),
            queue=row.queue,
        )
        for row in ledger.at_once(work)
    ]


def _take_with_locks(
    ledger: Ledger, node: str, locks: Mapping[str, str | None], run_ids: Collection[str]
) -> list[Claimed]:
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
    wanted: list[Claimed] = []
    locked: list[Claimed] = []
    for row in sorted(rows, key=lambda each: each.lock_key is None):  # who holds a lock goes first
        if row.task not in locks:
            continue
        lock = locks[row.task]
        given = (row.task, row.scheduled_ms, row.kind, row.attempt, row.arguments, lock, row.queue)
        (locked if lock in held else wanted).append(Claimed(row.id, uuid.uuid4().hex, *given))
        if lock is not None:
            held.add(lock)
    taken = _take(ledger, node, wanted, since="handed_off", locked=locked)
    if locked:
        give_back(ledger, [each.run_id for each in locked], _LOCKED_AGAIN_MS)
    return taken


def give_back(ledger: Ledger, run_ids: Collection[str], after_ms: int = 0) -> None:
    """Queue runs again whose messages have come and which are not begun, for so much later."""
    later = literal_column(ledger.words.now_ms, BigInteger()) + after_ms
    statement = (
        update(run)
        .where(run.c.id.in_(sorted(run_ids)), run.c.status == "handed_off")
        .values(status="queued", claim=None, lock_key=None, not_before_ms=later)
    )
    ledger.write(lambda connection: connection.execute(statement))


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


def _take(
    ledger: Ledger,
    node: str | None,
    wanted: Sequence[Claimed],
    *,
    since: str = "queued",
    to: str = "running",
    then: Callable[[Connection, Sequence[Claimed]], None] | None = None,
    locked: list[Claimed] | None = None,
) -> list[Claimed]:
    """Those of *wanted* that are ours now.

    Args:
        since, to: What their status was, and what it becomes.
        then: Called in the transaction, with those that are ours.
        locked: Given those whose lock is held.
    """
    ordered = sorted(wanted, key=lambda each: each.run_id)
    values = [
        {"run_id": each.run_id, "token": each.token, "by_node": node, "lock_name": each.lock_key}
        for each in ordered
    ]

    def work(connection: Connection) -> list[Claimed]:
        statement = _taking(ledger.words, since, to)
        ours = ordered
        if execute_rows(connection, ledger.words, statement, values) < len(ordered):
            # By the token, because a COMMIT whose outcome was unknown may have happened.
            rows = connection.execute(
                select(run.c.id, run.c.claim).where(run.c.id.in_([each.run_id for each in ordered]))
            )
            tokens = {row.id: row.claim for row in rows}
            ours = [each for each in ordered if tokens.get(each.run_id) == each.token]
        if then is not None and ours:
            then(connection, ours)
        return ours

    if not ordered:
        return []
    try:
        return ledger.write(work) if then is not None else ledger.at_once(work)
    except IntegrityError:  # a lock is held
        if len(ordered) == 1:
            if locked is not None:
                locked += ordered
            return []
        return [
            each
            for one in ordered
            for each in _take(ledger, node, [one], since=since, to=to, then=then, locked=locked)
        ]


@lru_cache
def _taking(words: Words, since: str, to: str) -> TextClause:
    handed_off = to == "handed_off"
    times = (
        f"not_before_ms = {words.now_ms} + {SENT_AGAIN_MS}, queued_ms = {words.now_ms}"
        if handed_off
        else f"started_ms = {words.now_ms}"
    )
    return words.update_from_rows(
        "fsa_run",
        {"run_id": "text", "token": "text", "by_node": "text", "lock_name": "text"},
        ("id", "run_id"),
        f"status = '{to}', node = v.by_node, claim = v.token, lock_key = v.lock_name, {times}",
        f"t.status = '{since}'",
    )


@lru_cache
def _taking_free(words: Words) -> TextClause:
    """UPDATE of the runs in `:ids` whose task is in `:tasks`, both arrays of JSON."""
    listed = "ANY(ARRAY(SELECT json_array_elements_text(CAST({} AS JSON))))"
    return typed(
        f"""
        UPDATE fsa_run AS t
        SET status = 'running', node = :node, claim = :claim, lock_key = NULL,
            started_ms = {words.now_ms}
        WHERE t.id = {listed.format(":ids")} AND t.status = 'handed_off'
            AND t.namespace = :namespace AND t.task = {listed.format(":tasks")}
        RETURNING t.id, t.task, t.scheduled_ms, t.kind, t.attempt, t.arguments, t.queue
        """
    )


_OF_CANDIDATES = (
    run.c.id,
    run.c.task,
    run.c.scheduled_ms,
    run.c.kind,
    run.c.attempt,
    run.c.arguments,
    run.c.queue,
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
        select(*_OF_CANDIDATES)
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
        *(run_id, token, due.task, due.scheduled_ms, "schedule", 1, due.arguments, due.lock_key),
        due.queue,
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
    running, handed_off = status == "running", status == "handed_off"
    claimed = "node, claim, started_ms," if running else "claim," if handed_off else ""
    values = f":node, :claim, {words.now_ms}," if running else ":claim," if handed_off else ""
    not_before = f"{words.now_ms} + {SENT_AGAIN_MS}" if handed_off else "v.at"
    ended = "finished_ms, error," if status == "skipped" else ""
    ending = f"{words.now_ms}, 'the run before it has not ended'," if status == "skipped" else ""
    return typed(
        f"""
        INSERT INTO fsa_run (id, namespace, task, scheduled_ms, slot, kind, status, arguments,
            executor, queue, attempt, not_before_ms, {claimed} {ended} lock_key, commits, queued_ms)
        SELECT v.id, :namespace, v.task, v.at, '{SCHEDULED}', 'schedule', '{status}', v.arguments,
            v.executor, v.queue, 1, {not_before}, {values} {ending} v.lock_name, 0, {words.now_ms}
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
