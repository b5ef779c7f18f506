"""What a run commits counts only while the run is this process's.

A task that leaves the COMMIT to the runner takes effect exactly once: its rows and the row that
says it has succeeded are one transaction. Where the ledger is in another database, the task's
transaction leaves the run's id in `fsa_effect`, beside its rows: a second attempt that has the same
id cannot commit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Connection,
    CursorResult,
    Dialect,
    TextClause,
    event,
    select,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from fsa_cli.exceptions import Fenced
from fsa_cli.ledger import dialects
from fsa_cli.ledger.dialects import DialectSQL, typed
from fsa_cli.ledger.location import shares
from fsa_cli.ledger.offload import off_the_loop
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database

__all__ = ["Fence"]


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
        self._url = database.url
        self._context: Token[Fence | None] | None = None

    def __enter__(self) -> Fence:
        _listen()
        self._context = _current.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        assert self._context is not None
        _current.reset(self._context)
        self.recorded = self._sent and (kind is None or self._is_recorded())

    def returned(self, value: object) -> None:
        """The task has returned: what commits now is the runner."""
        self.result = self._encoded(value)
        self._returned = True

    def guard(self, session: Session, connection: Connection, wrote: bool) -> None:
        """Check that the run is ours, as the last thing before COMMIT.

        Raises:
            Fenced: It is not.
        """
        final = self._returned and not self._sent
        if shares(self._ledger, connection.engine.url):
            self._check(self._succeeded(connection) if final else self._counted(connection))
            self._sent = self._sent or final
        elif wrote:
            leaves_mark = final and not self._shares
            if leaves_mark:
                if not self._trusted():
                    self._check(off_the_loop(lambda: self._ledger.read(self._counted_as_mine)))
                self._leave_mark(connection)
            else:
                self._check(off_the_loop(lambda: self._ledger.write(self._counted)))

    def _leave_mark(self, connection: Connection) -> None:
        sql = dialects.dialect_sql(connection.dialect)
        try:
            _execute(connection, _marking(sql), {"run_id": self._run_id})
        except IntegrityError as exc:
            raise Fenced("an earlier attempt of this run has taken effect already") from exc

    def _succeeded(self, connection: Connection) -> int:
        given = {**self._mine, "result": self.result}
        return _execute(connection, _succeeding(self._ledger.sql), given).rowcount

    def _counted(self, connection: Connection) -> int:
        counting = _COUNTING_SENT if self._sent else _COUNTING
        return _execute(connection, counting, self._mine).rowcount

    def _counted_as_mine(self, connection: Connection) -> int:
        return 1 if connection.scalar(_LOOKING, self._mine) else 0

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


def _execute(
    connection: Connection, statement: TextClause, given: Mapping[str, str | None]
) -> CursorResult[Any]:
    sql, order = _compiled(statement, connection.dialect)
    return connection.exec_driver_sql(sql, tuple(given[n] for n in order) if order else given)


@lru_cache
def _compiled(statement: TextClause, dialect: Dialect) -> tuple[str, Sequence[str]]:
    """The driver's own text, and the order of its parameters where they have no names."""
    compiled = statement.compile(dialect=dialect)
    return str(compiled), compiled.positiontup or ()


# Texts, compiled once: every commit passes here.
_MINE = "id = :run_id AND claim = :token"
_COUNTING_SENT = typed(f"UPDATE fsa_run SET commits = commits + 1 WHERE {_MINE}")
_COUNTING = typed(f"UPDATE fsa_run SET commits = commits + 1 WHERE {_MINE} AND status = 'running'")
_LOOKING = typed(f"SELECT id FROM fsa_run WHERE {_MINE} AND status = 'running'")


@lru_cache
def _succeeding(sql: DialectSQL) -> TextClause:
    return typed(
        f"""
        UPDATE fsa_run SET status = 'succeeded', finished_ms = {sql.now_ms}, result = :result,
            lock_key = NULL, error_type = NULL, error = NULL, traceback = NULL
        WHERE {_MINE} AND status = 'running'
        """
    )


@lru_cache
def _marking(sql: DialectSQL) -> TextClause:
    return typed(f"INSERT INTO fsa_effect (run_id, applied_ms) VALUES (:run_id, {sql.now_ms})")


@cache
def _listen() -> None:
    event.listen(Session, "before_commit", _before_commit)


def _before_commit(session: Session) -> None:
    fence = _current.get()
    activity = getattr(session, "fsa_activity", None)
    if fence is None or activity is None or session.in_nested_transaction():
        return
    session.flush()
    if activity.connection is not None:
        fence.guard(session, activity.connection, activity.wrote)
