"""What a run commits counts only while the run is this process's.

A task that leaves the COMMIT to the runner takes effect exactly once: its rows and the row that
says it has succeeded are one transaction. Where the ledger is in another database, the task's
transaction leaves its marks in `fsa_effect`, beside its rows (see `effects`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from contextlib import closing
from contextvars import ContextVar, Token
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, TextClause, select
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from fsa_cli.database.listening import listen_once
from fsa_cli.exceptions import Fenced
from fsa_cli.ledger import dialects, effects
from fsa_cli.ledger.dialects import DialectSQL, typed
from fsa_cli.ledger.location import access_of, shares
from fsa_cli.ledger.offload import off_the_loop
from fsa_cli.ledger.reach import Asking, Reach, keeps_snapshot, probe, refused
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database

__all__ = ["Fence"]

logger = logging.getLogger("fsa.ledger")

_current: ContextVar[Fence | None] = ContextVar("fsa_fence", default=None)


class Fence:
    """A context manager, for the run's own context: every commit of a `db` session inside is ours.

    Args:
        database: The run's own; its COMMIT at the end is what takes effect once.
        encoded: Encodes the returned value as JSON.
        trusted: Whether this process's lease holds, by its own clock: then no other node can have
            the run, and a ledger in another database need not be asked.
    """

    def __init__(
        self,
        ledger: Ledger,
        run_id: str,
        token: str,
        database: Database,
        encoded: Callable[[object], str | None],
        trusted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.recorded = False
        """Whether the run's success is written, in the transaction of its effects."""
        self.commits = 0
        """How often the task has committed by itself."""
        self.result: str | None = None
        """The value that the task returned, as JSON; None before it has."""
        self._ledger = ledger
        self._run_id = run_id
        self._token = token
        self._mine = {"run_id": run_id, "token": token}
        self._shares = shares(ledger, database.url)
        self._encoded = encoded
        self._trusted = trusted
        self._returned = False
        self._sent = False
        self._uncounted = 0
        self._marked: set[object] = set()
        self._url = database.url
        self._context: Token[Fence | None] | None = None

    def __enter__(self) -> Fence:
        _listen()
        self.recorded = self._returned = self._sent = False
        self._uncounted = 0
        self._marked = set()
        self.result = None
        self._context = _current.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        assert self._context is not None
        _current.reset(self._context)
        self.recorded = self._sent and (kind is None or self._is_recorded())
        if self._uncounted and not self.recorded:
            with contextlib.suppress(SQLAlchemyError):  # a person would have read it
                self._ledger.at_once(lambda c: self._counted_apart(c, self._uncounted))

    def returned(self, value: object) -> None:
        """The task has returned: what commits now is the runner."""
        self.result = self._encoded(value)
        self._returned = True

    def guard(self, session: Session, connection: Connection, wrote: bool) -> None:
        """Check that the run is ours, as the last thing before COMMIT.

        Raises:
            Fenced: It is not.
        """
        if self._sent:  # with the run's other session
            self.commits += 1
            self._look(_FINDING)
            return
        final = self._returned
        self.commits += not final
        is_shared = shares(self._ledger, connection.engine.url)
        if not is_shared and not wrote:
            return
        if is_shared and not self._ledger.is_located:
            off_the_loop(lambda: self._ledger.schema)
        with closing(Asking(connection)) as asking:
            reach = probe(self._ledger, asking)
            if is_shared and self._wrote_within(asking, reach, final):
                return
        if is_shared and not (wrote or (reach is not None and reach.wrote)):
            return
        if is_shared:
            _warn(self._ledger, reach)
        # Beside what the run has done in its own database, and in no third one.
        marks = final and (is_shared or not self._shares)
        # The task's other session, sync or async, commits there too: one mark is for both.
        access = access_of(connection.engine.url)
        if marks and access not in self._marked and self._marks(connection, reach):
            self._marked.add(access)
        else:
            self._check(off_the_loop(lambda: self._ledger.at_once(self._counted_apart)))

    def _wrote_within(self, asking: Asking, reach: Reach | None, final: bool) -> bool:
        """Write in the task's own transaction; False if it may not."""
        if reach is not None and not reach.writes:
            return False
        try:
            rows = self._succeeded(asking) if final else self._counted(asking, reach)
        except DBAPIError as exc:
            if reach is not None or not refused(exc):
                raise
            return False
        self._check(rows)
        self._sent = final
        return True

    def _marks(self, connection: Connection, reach: Reach | None) -> bool:
        """Leave the mark of the run's effects beside them; False if there is no place for it."""
        if reach is not None and not reach.marks:
            return False
        if not dialects.holds_ledger(connection.dialect.name):
            return False
        if not self._trusted():
            self._look(_LOOKING)
        try:
            effects.mark(self._ledger, connection, self._run_id, self._token)
        except IntegrityError as exc:
            raise Fenced(
                "this run has taken effect already, or is no longer this process's: "
                "nothing is committed"
            ) from exc
        except DBAPIError as exc:
            if reach is not None or not refused(exc):
                raise
            return False
        return True

    def _succeeded(self, asking: Asking) -> int:
        given = {**self._mine, "result": self.result, "number": self._uncounted}
        statement = _succeeding(self._ledger.sql, self._ledger.qualified(run.name))
        return int(asking(statement, given))

    def _counted(self, asking: Asking, reach: Reach | None) -> int:
        sql, table = self._ledger.sql, self._ledger.qualified(run.name)
        if not keeps_snapshot(asking.connection, reach):
            return int(asking(_counting(sql, table), {**self._mine, "number": 1}))
        # Another transaction of the run's would fail at a row that changes: counted at its end.
        self._uncounted += 1
        return asking(_locking(sql, table), self._mine, _number_of_rows)

    def _counted_apart(self, connection: Connection, number: int = 1) -> int:
        given = {**self._mine, "number": number}
        with closing(connection.execute(_counting(self._ledger.sql, run.name), given)) as written:
            return written.rowcount

    def _look(self, statement: TextClause) -> None:
        """As `_check`, by a query of the ledger's own, which writes nothing."""

        def found(connection: Connection) -> int:
            return 1 if connection.scalar(statement, self._mine) else 0

        self._check(off_the_loop(lambda: self._ledger.read(found)))

    def _check(self, rows: int) -> None:
        if not rows:
            raise Fenced("this run is no longer this process's: nothing is committed")

    def _is_recorded(self) -> bool:
        """Whether a COMMIT that failed for this process has happened in the database."""
        try:
            row = self._ledger.read(
                lambda connection: connection.execute(
                    select(run.c.status, run.c.claim).where(run.c.id == self._run_id)
                ).one_or_none()
            )
        except SQLAlchemyError:
            return False
        return row is not None and row.status == "succeeded" and row.claim == self._token


# Texts, compiled once: every commit passes here.
_MINE = "id = :run_id AND claim = :token"
_FINDING = typed(f"SELECT id FROM fsa_run WHERE {_MINE}")
_LOOKING = typed(f"SELECT id FROM fsa_run WHERE {_MINE} AND status = 'running'")


@lru_cache
def _counting(sql: DialectSQL, table: str) -> TextClause:
    return typed(
        f"""
        UPDATE {table} SET commits = commits + :number WHERE {_MINE} AND status = 'running'
        {_returning(sql)}
        """
    )


@lru_cache
def _locking(sql: DialectSQL, table: str) -> TextClause:
    bound = f", {sql.bound}" if sql.bound else ""
    return typed(
        f"SELECT id{bound} FROM {table} WHERE {_MINE} AND status = 'running' {sql.share_lock}"
    )


@lru_cache
def _succeeding(sql: DialectSQL, table: str) -> TextClause:
    lock = "" if sql.frees_locks_apart else "lock_key = NULL, "
    return typed(
        f"""
        UPDATE {table} SET status = 'succeeded', finished_ms = {sql.now_ms}, result = :result,
            {lock}error_type = NULL, error = NULL, traceback = NULL, commits = commits + :number
        WHERE {_MINE} AND status = 'running'
        {_returning(sql)}
        """
    )


def _returning(sql: DialectSQL) -> str:
    return f"RETURNING {sql.bound}" if sql.bound else ""


def _number_of_rows(cursor: Any) -> int:
    return len(cursor.fetchall())


@cache
def _warn_once(user: str, table: str) -> None:
    logger.warning(
        "a transaction of a task cannot write the ledger's table %s%s: the run's success is "
        "recorded after its COMMIT, so that a crash between the two leaves its effects and no "
        "success. GRANT SELECT, INSERT, UPDATE on it makes the two one.",
        table,
        f" as {user}" if user else "",
    )


def _warn(ledger: Ledger, reach: Reach | None) -> None:
    _warn_once(reach.user if reach is not None else "", ledger.qualified(run.name))


@cache
def _listen() -> None:
    listen_once(Session, "before_commit", _before_commit)


def _before_commit(session: Session) -> None:
    fence = _current.get()
    activity = getattr(session, "fsa_activity", None)
    if fence is None or activity is None or session.in_nested_transaction():
        return
    session.flush()
    if activity.connection is not None:
        fence.guard(session, activity.connection, activity.may_have_written)
