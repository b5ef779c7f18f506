"""Work to do once a session's transaction has committed, and not if it is rolled back."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session, SessionTransaction

from fsa_cli.ledger.offload import off_the_loop
from fsa_cli.terminal.escaping import escape_record

__all__ = ["after_commit", "unless_committed"]

logger = logging.getLogger("fsa.enqueue")
logger.addFilter(escape_record)

_PENDING = "fsa_enqueued"
_UNDONE = "fsa_undone"


def after_commit(session: Session, work: Callable[[], None]) -> None:
    """Do *work* when the session's transaction has committed, and not if it is rolled back.

    In a sandbox, which never commits, it is never done.
    """
    if isinstance(session.get_bind(), Connection):
        return
    pending = session.info.get(_PENDING)
    if pending is None:
        pending = session.info[_PENDING] = []
        event.listen(session, "after_commit", _committed)
        event.listen(session, "after_soft_rollback", _rolled_back)
    pending.append((session.get_nested_transaction() or session.get_transaction(), work))


def unless_committed(session: Session, undo: Callable[[], None]) -> None:
    """Call *undo* if the session's transaction ends without its commit, in a sandbox too."""
    pending = session.info.get(_UNDONE)
    if pending is None:
        pending = session.info[_UNDONE] = []
        event.listen(session, "after_commit", _keep)
        event.listen(session, "after_soft_rollback", _undo)
        event.listen(session, "after_transaction_end", _end)
    session.connection()  # begins the transaction
    pending.append((session.get_nested_transaction() or session.get_transaction(), undo))


def _keep(session: Session) -> None:
    if not session.in_nested_transaction():
        session.info[_UNDONE].clear()


def _undo(session: Session, previous: SessionTransaction) -> None:
    pending = session.info[_UNDONE]
    gone = [each for each in pending if _is_in(each[0], previous)]
    pending[:] = [each for each in pending if each not in gone]
    for _, undo in gone:
        undo()


def _end(session: Session, ended: SessionTransaction) -> None:
    if ended.parent is None:  # a session that is closed has not committed, and says no more
        _undo(session, ended)


def _committed(session: Session) -> None:
    if session.in_nested_transaction():  # a savepoint's
        return
    pending, session.info[_PENDING][:] = list(session.info[_PENDING]), []
    for _, work in pending:
        try:
            off_the_loop(work)
        except Exception:  # its caller's transaction has committed all the same
            logger.exception("a run that was asked for in this transaction could not be enqueued")


def _rolled_back(session: Session, previous: SessionTransaction) -> None:
    pending = session.info[_PENDING]
    pending[:] = [(within, work) for within, work in pending if not _is_in(within, previous)]


def _is_in(transaction: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while transaction is not None:
        if transaction is outer:
            return True
        transaction = transaction.parent
    return False
