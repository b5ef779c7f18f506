"""What a session has done in its current transaction, seen through SQLAlchemy's session events.

The end of a scope asks: is there a connection to give back (then it is the work of a thread), was
anything written (then a rollback is worth a warning), and has the session outlived its scope?
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, TextClause, event
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction

from .exceptions import MissingSessionError

if TYPE_CHECKING:
    from sqlalchemy.orm import UOWTransaction

logger = logging.getLogger("fastapi_sqlalchemy")

_KEY = "fastapi_sqlalchemy"
_READING = re.compile(r"\s*(select|show|set|pragma|explain|values|table|desc|describe)\b", re.I)
_WRITING_CTE = re.compile(r"\b(insert|update|delete|merge)\b", re.I)

ENDED = (
    "This session's scope has ended: its request, `with db():` or `async with db():` is over, and "
    "this code has outlived it (a background task or a thread that was started inside?).\n"
    "Open a scope of its own:\n\n    with db():\n        db.session ...\n\n"
    "or, in async code, `async with db():`."
)


class Activity:
    """One session's record: `connection` and `wrote` are its current transaction's.

    Once `ended` is set, it begins no other. `on_loop_thread` is called when it begins in a thread
    that runs an event loop.
    """

    __slots__ = ("connection", "ended", "on_loop_thread", "session", "wrote")

    def __init__(self, session: Session, on_loop_thread: Callable[[], None] | None = None) -> None:
        self.session = session
        self.connection: Connection | None = None
        self.wrote = False
        self.ended = False
        self.on_loop_thread = on_loop_thread
        session.info[_KEY] = self

    @property
    def pending(self) -> bool:
        """Whether a commit would flush something."""
        session = self.session
        return bool(session.new or session.dirty or session.deleted)

    @property
    def uncommitted(self) -> bool:
        """Whether something was written, or is waiting to be, that a rollback would lose."""
        return self.wrote or (self.session.in_transaction() and self.pending)

    @property
    def in_own_block(self) -> bool:
        """Whether a `with session.begin():` that is still open owns the transaction.

        An open savepoint owns nothing. Never read off `transaction.origin`, which says BEGIN also
        after a finished `begin_nested()`.
        """
        root = self.session.get_transaction()
        block = self.session._trans_context_manager
        while block is not None and block is not root:
            block = block._outer_trans_ctx
        return block is not None


def watch(target: Any) -> None:
    """Attach the listeners to a `sessionmaker` or a `Session` subclass of our own."""
    event.listen(target, "do_orm_execute", _on_execute)
    event.listen(target, "after_flush", _on_flush)
    event.listen(target, "after_begin", _on_begin)
    event.listen(target, "after_transaction_create", _on_create)
    event.listen(target, "after_transaction_end", _on_end)


def _on_execute(state: ORMExecuteState) -> None:
    if state.is_select:
        return
    statement = state.statement
    if isinstance(statement, TextClause) and reads_only(statement.text):
        return
    state.session.info[_KEY].wrote = True


def reads_only(sql: str) -> bool:
    """Whether `sql` begins like a statement that changes no rows. A guess, good for a warning."""
    if _READING.match(sql):
        return True
    return sql.lstrip()[:4].lower() == "with" and not _WRITING_CTE.search(sql)


def _on_flush(session: Session, context: UOWTransaction) -> None:
    session.info[_KEY].wrote = True


def _on_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    activity: Activity = session.info[_KEY]
    activity.connection = connection
    if activity.on_loop_thread is not None and asyncio._get_running_loop() is not None:
        activity.on_loop_thread()


def _on_create(session: Session, transaction: SessionTransaction) -> None:
    if session.info[_KEY].ended:
        # Before any connection is taken: nobody would ever give it back.
        raise MissingSessionError(ENDED)


def _on_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        activity: Activity = session.info[_KEY]
        activity.connection = None
        activity.wrote = False
