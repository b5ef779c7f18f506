"""Runs by filter, a page at a time: bounded, by key, and without the texts that nobody sees."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    case,
    func,
    or_,
    select,
    union_all,
)

from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import node, progress, run

__all__ = [
    "FAILED",
    "SAID_LENGTH",
    "Drawn",
    "Place",
    "RunFilter",
    "drawn",
    "failed",
    "going_on",
    "head",
    "one",
    "running",
    "search",
    "tail",
]

#: The ends of runs that somebody has to look at.
FAILED = ("failed", "timed_out", "interrupted", "missed")

#: Of an error, a result, or a progress in a list.
SAID_LENGTH = 300

#: A row of `drawn`: task, status, number, cell_ms, id, scheduled_ms, started_ms, finished_ms,
#: last_ms. The garbage collector looks through thousands of rows with names, and not of tuples.
Drawn = tuple[str, str, int, int, str, int, int | None, int | None, int]
#: The place of a run in a list: `place_ms`, and its id.
Place = tuple[int, str]
# PostgreSQL takes 3 to 6 microseconds for each.
_SCANNED = 3000
_Columns = list[ColumnElement[Any]]


@dataclass(frozen=True)
class RunFilter:
    """Which runs.

    Attributes:
        statuses: None of them: all.
        since_ms, until_ms: Of their instants, or of the time at which they were due last.
        error_type: The class of the exception.
        queue: The name of a broker's queue, or of the executor where there is none.
    """

    task: str | None = None
    statuses: tuple[str, ...] = ()
    since_ms: int | None = None
    until_ms: int | None = None
    error_type: str | None = None
    queue: str | None = None


def search(
    ledger: Ledger, wanted: RunFilter, after: Place | None, limit: int
) -> tuple[list[Row[Any]], Place | None]:
    """The latest runs that match, the newest first, each with its `place_ms` in that order; and the
    place up to which was looked, None: to the end.

    By status they are in the order of the index of statuses: an index of all runs by status would
    be written at each claim, and to look for a rare status in a list of all reads it whole. What no
    index serves is looked for in a few thousand runs at a time.

    Args:
        after: `place_ms` and the id of the last run that was seen; None: from the newest.
    """
    if wanted.statuses:
        searches = [
            (run.c.not_before_ms, [run.c.status == status])
            for status in dict.fromkeys(wanted.statuses)
        ]
    else:
        searches = [(run.c.scheduled_ms, [])]
    is_rare = wanted.error_type is not None or wanted.queue is not None
    is_rare = is_rare or (wanted.task is not None and bool(wanted.statuses))

    def work(connection: Connection) -> tuple[list[Row[Any]], list[Place]]:
        rows: list[Row[Any]] = []
        ends = []
        for place, conditions in searches:
            indexed = [*conditions, *_indexed(ledger, wanted, place, after, in_order=not is_rare)]
            if not is_rare:
                rows += connection.execute(_page(indexed, wanted, place, limit)).all()
                continue
            last = select(place, run.c.id).where(*indexed).order_by(place.desc(), run.c.id)
            end = connection.execute(last.offset(_SCANNED - 1).limit(1)).one_or_none()
            if end is not None:
                ends.append((end[0], end[1]))
                indexed += [place >= end[0], or_(place > end[0], run.c.id <= end[1])]
            rows += connection.execute(_page(indexed, wanted, place, limit)).all()
        return rows, ends

    rows, ends = ledger.read(work)
    end = min(ends, key=_order, default=None)
    found = sorted(rows, key=lambda row: _order((row.place_ms, row.id)))
    if end is not None:
        found = [row for row in found if _order((row.place_ms, row.id)) <= _order(end)]
    return found[:limit], end


def _order(place: Place) -> Place:
    return -place[0], place[1]


def one(ledger: Ledger, run_id: str, length: int) -> Row[Any] | None:
    """A run with the node that has it; of its long texts *length* characters, and how long they
    are; of its traceback the last ones."""
    long = ("arguments", "error", "result")
    length_of = func.length if ledger.is_sqlite else func.char_length
    columns: _Columns = [column for column in run.c if column.name not in (*long, "traceback")]
    columns += [head(run.c[name], length).label(name) for name in long]
    columns += [length_of(run.c[name]).label(f"{name}_length") for name in (*long, "traceback")]
    statement: Select[Any] = (
        select(
            *columns,
            tail(ledger.is_sqlite, run.c.traceback, length).label("traceback"),
            *_PROGRESS,
            progress.c.updated_ms,
            node.c.host,
            node.c.pid,
            node.c.role,
            node.c.state.label("node_state"),
            node.c.lease_until_ms,
        )
        .outerjoin(progress, progress.c.run == run.c.id)
        .outerjoin(node, node.c.id == run.c.node)
        .where(run.c.namespace == ledger.namespace, run.c.id == run_id)
    )
    return ledger.read(lambda connection: connection.execute(statement).one_or_none())


def drawn(
    ledger: Ledger,
    since_ms: int,
    *,
    cell_ms: int,
    least_ms: int,
    names: Collection[str] | None,
    limit: int,
) -> Sequence[Drawn]:
    """What a drawing needs of the latest runs since then, without those that go on.

    Runs of one task and status whose instants are in one cell are one row, with their number and
    the beginning of the cell. A run that took long or was late is a row of its own.

    Args:
        cell_ms: The length of a cell.
        least_ms: Longer or later than that is a row of its own.
        names: Of these tasks; None: of all.
        limit: So many runs are read, the latest.
    """
    given = {
        "of_namespace": ledger.namespace,
        "since_ms": since_ms,
        "cell_ms": cell_ms,
        "least_ms": least_ms,
        "most": limit,
        **({} if names is None else {"names": sorted(names)}),
    }

    def work(connection: Connection) -> Sequence[Drawn]:
        rows: list[Drawn] = []
        if names is not None and not ledger.is_sqlite:
            # PostgreSQL would read all since then to sort them: the index alone is cheap to read.
            before = limit + limit // 10  # some go on
            first_ms = connection.scalar(_nth_of_some(), {**given, "before": before})
            if first_ms is not None:
                rows = read(connection, first_ms)
        return rows if sum(row[2] for row in rows) >= limit else read(connection, since_ms)

    def read(connection: Connection, from_ms: int) -> list[Drawn]:
        statement = _drawn(names is not None)
        parts = connection.execute(statement, {**given, "since_ms": from_ms}).partitions(500)
        return [tuple(row) for part in parts for row in part]

    return ledger.read(work)


@cache
def _nth_of_some() -> Select[Any]:
    """The instant of the run of these tasks before which there are so many later ones."""
    return (
        select(run.c.scheduled_ms)
        .where(*_since(), run.c.task.in_(bindparam("names", expanding=True)))
        .order_by(run.c.scheduled_ms.desc())
        .offset(bindparam("before", type_=BigInteger))
        .limit(1)
    )


@cache  # to build it takes longer than to execute it
def _drawn(of_some: bool) -> Select[Any]:
    begun: ColumnElement[int] = func.coalesce(run.c.started_ms, run.c.scheduled_ms)
    ended = func.coalesce(run.c.finished_ms, begun)
    cell_ms = bindparam("cell_ms", type_=BigInteger)
    is_apart = ended - run.c.scheduled_ms > bindparam("least_ms", type_=BigInteger)
    some: Select[Any] = (
        select(
            *_DRAWN,
            (run.c.scheduled_ms - run.c.scheduled_ms % cell_ms).label("cell_ms"),
            case((is_apart, run.c.id), else_="").label("apart"),
        )
        .where(*_since(), run.c.status != "running")
        .order_by(run.c.scheduled_ms.desc())
        .limit(bindparam("most", type_=BigInteger))
    )
    if of_some:
        some = some.where(run.c.task.in_(bindparam("names", expanding=True)))
    each = some.subquery().c
    return select(
        each.task,
        each.status,
        func.count().label("number"),
        each.cell_ms,
        func.min(each.id).label("id"),
        func.min(each.scheduled_ms).label("scheduled_ms"),
        func.min(each.started_ms).label("started_ms"),
        func.min(each.finished_ms).label("finished_ms"),
        func.max(each.scheduled_ms).label("last_ms"),
    ).group_by(each.task, each.status, each.cell_ms, each.apart)


def _since() -> tuple[ColumnElement[bool], ...]:
    return (
        run.c.namespace == bindparam("of_namespace", type_=run.c.namespace.type),
        run.c.scheduled_ms >= bindparam("since_ms", type_=BigInteger),
    )


def running(ledger: Ledger, limit: int) -> Sequence[Row[Any]]:
    """The rows of `going_on`."""
    return ledger.read(lambda connection: connection.execute(going_on(ledger, limit)).all())


def going_on(ledger: Ledger, limit: int) -> Select[Any]:
    """The runs that go on, the longest first, each with its progress and its node."""
    return _going_on(ledger.namespace, limit)


@lru_cache(maxsize=64)
def _going_on(namespace: str, limit: int) -> Select[Any]:
    of_node = node.c.host, node.c.pid, node.c.role, node.c.lease_until_ms
    return (
        select(*_line(run.c.scheduled_ms), *of_node)
        .outerjoin(progress, progress.c.run == run.c.id)
        .outerjoin(node, node.c.id == run.c.node)
        .where(run.c.namespace == namespace, run.c.status == "running")
        .order_by(run.c.not_before_ms, run.c.id)
        .limit(limit)
    )


def failed(ledger: Ledger, since_ms: int, limit: int, groups: int) -> Sequence[Row[Any]]:
    """What did not end well since then, by task, status and error: the number, `of_status` that of
    all of this status, and of the latest its id, `place_ms` and error.

    Args:
        limit: So many runs of each status are read, the latest.
        groups: At most so many, the latest.
    """
    statement = _failed(limit, groups)
    given = {"of_namespace": ledger.namespace, "since_ms": since_ms}
    rows = ledger.read(lambda connection: connection.execute(statement, given).all())
    # Of several runs of one millisecond the first.
    return list({(row.task, row.status, row.error_type): row for row in reversed(rows)}.values())[
        ::-1
    ]


@cache  # to build it takes longer than to execute it
def _failed(limit: int, groups: int) -> Select[Any]:
    namespace = bindparam("of_namespace", type_=run.c.namespace.type)
    latest = [
        select(run.c.task, run.c.status, run.c.error_type, run.c.not_before_ms)
        .where(
            run.c.namespace == namespace,
            run.c.status == status,
            run.c.not_before_ms >= bindparam("since_ms", type_=BigInteger),
        )
        .order_by(run.c.not_before_ms.desc())
        .limit(limit)
        .subquery()
        for status in FAILED
    ]
    some = union_all(*(select(each) for each in latest)).subquery().c
    number = func.count()
    alike = (
        select(
            some.task,
            some.status,
            some.error_type,
            number.label("number"),
            func.sum(number).over(partition_by=some.status).label("of_status"),
            func.max(some.not_before_ms).label("place_ms"),
        )
        .group_by(some.task, some.status, some.error_type)
        .order_by(func.max(some.not_before_ms).desc(), some.task)
        .limit(groups)
        .subquery()
        .c
    )
    return (
        select(*alike, run.c.id, head(run.c.error, SAID_LENGTH).label("error"))
        .join(
            run,
            and_(
                run.c.namespace == namespace,
                run.c.status == alike.status,
                run.c.not_before_ms == alike.place_ms,
                run.c.task == alike.task,
                func.coalesce(run.c.error_type, "") == func.coalesce(alike.error_type, ""),
            ),
        )
        .order_by(alike.place_ms.desc(), alike.task, run.c.id)
    )


def head(column: ColumnElement[Any], length: int) -> ColumnElement[Any]:
    """Its beginning. With its type: in SQLite a column may hold anything."""
    return func.substr(column, 1, length, type_=column.type)


def tail(is_sqlite: bool, column: ColumnElement[Any], length: int) -> ColumnElement[Any]:
    """Its end, as `head` its beginning."""
    size = func.length(column) if is_sqlite else func.char_length(column)
    start = case((size > length, size - length + 1), else_=1)
    return func.substr(column, start, length, type_=column.type)


_PROGRESS: _Columns = [
    progress.c.done,
    progress.c.total,
    head(progress.c.text, SAID_LENGTH).label("text"),
]
_DRAWN: _Columns = [
    run.c.id,
    run.c.task,
    run.c.status,
    run.c.scheduled_ms,
    run.c.started_ms,
    run.c.finished_ms,
]


def _line(place: ColumnElement[int]) -> _Columns:
    return [
        *_DRAWN,
        place.label("place_ms"),
        run.c.kind,
        run.c.attempt,
        run.c.queued_ms,
        run.c.not_before_ms,
        run.c.executor,
        run.c.queue,
        run.c.node,
        run.c.requested_by,
        run.c.cancel_requested_ms,
        run.c.error_type,
        head(run.c.error, SAID_LENGTH).label("error"),
        head(run.c.result, SAID_LENGTH).label("result"),
        *_PROGRESS,
    ]


def _indexed(
    ledger: Ledger,
    wanted: RunFilter,
    place: ColumnElement[int],
    after: Place | None,
    *,
    in_order: bool,
) -> list[ColumnElement[bool]]:
    """The conditions that an index serves.

    Args:
        in_order: Whether that of a task is one of them.
    """
    conditions = [run.c.namespace == ledger.namespace]
    if wanted.task is not None and (in_order or not wanted.statuses):
        conditions.append(run.c.task == wanted.task)
    if wanted.since_ms is not None:
        conditions.append(place >= wanted.since_ms)
    if wanted.until_ms is not None:
        conditions.append(place <= wanted.until_ms)
    if after is not None:
        place_ms, last = after
        conditions += [place <= place_ms, or_(place < place_ms, run.c.id > last)]
    return conditions


def _page(
    indexed: list[ColumnElement[bool]], wanted: RunFilter, place: ColumnElement[int], limit: int
) -> Select[Any]:
    conditions = [*indexed]
    if wanted.task is not None:
        conditions.append(run.c.task == wanted.task)
    if wanted.error_type is not None:
        conditions.append(run.c.error_type == wanted.error_type)
    if wanted.queue is not None:
        conditions.append(func.coalesce(run.c.queue, run.c.executor) == wanted.queue)
    return (
        select(*_line(place))
        .outerjoin(progress, progress.c.run == run.c.id)
        .where(*conditions)
        .order_by(place.desc(), run.c.id)
        .limit(limit)
    )
