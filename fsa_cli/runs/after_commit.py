"""Work to do once a session's transaction has committed, and not if it is rolled back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session, SessionTransaction

from fastapi_sqlalchemy.sandbox.guests import Guest
from fsa_cli.ledger.offload import off_the_loop
from fsa_cli.terminal.escaping import escape_record

__all__ = ["after_commit", "unless_committed"]

logger = logging.getLogger("fsa.enqueue")
logger.addFilter(escape_record)

_PENDING = "fsa_enqueued"


class _Pending(NamedTuple):
    """What a transaction or savepoint decides: `work` follows its commit, `undo` any other end."""

    within: SessionTransaction | None
    work: Callable[[], None] | None = None
    undo: Callable[[], None] | None = None


def after_commit(session: Session, work: Callable[[], None]) -> None:
    """Do *work* when the session's transaction has committed, and not if it ends otherwise.

    In a sandbox, which never commits, it is never done.
    """
    if isinstance(session.connection(), Guest):
        return
    _pending(session).append(_Pending(_innermost(session), work=work))


def unless_committed(session: Session, undo: Callable[[], None]) -> None:
    """Call *undo* if the session's transaction ends without its commit, in a sandbox too."""
    pending = _pending(session)
    session.connection()  # begins the transaction
    pending.append(_Pending(_innermost(session), undo=undo))


def _pending(session: Session) -> list[_Pending]:
    pending: list[_Pending] | None = session.info.get(_PENDING)
    if pending is None:
        pending = session.info[_PENDING] = []
        event.listen(session, "after_commit", _committed)
        event.listen(session, "after_transaction_end", _ended)
    return pending


def _innermost(session: Session) -> SessionTransaction | None:
    return session.get_nested_transaction() or session.get_transaction()


def _committed(session: Session) -> None:
    pending = session.info[_PENDING]
    savepoint = session.get_nested_transaction()
    if savepoint is not None:  # what is in it is now its parent's to decide
        pending[:] = [
            each._replace(within=savepoint.parent) if each.within is savepoint else each
            for each in pending
        ]
        return
    decided, pending[:] = list(pending), []
    for each in decided:
        if each.work is None or _has_joined(session):
            continue
        try:
            off_the_loop(each.work)
        except Exception:  # its caller's transaction has committed all the same
            logger.exception("a run that was asked for in this transaction could not be enqueued")


def _ended(session: Session, ended: SessionTransaction) -> None:
    """Not all that ends without a commit is rolled back: a session may just be closed."""
    pending = session.info[_PENDING]
    gone = [each for each in pending if each.within is ended]
    pending[:] = [each for each in pending if each.within is not ended]
    for each in gone:
        if each.undo is not None:
            each.undo()


def _has_joined(session: Session) -> bool:
    """Whether it works inside another one's transaction, which goes on: a sandbox's, a test's."""
    bind = session.get_bind()
    return isinstance(bind, Connection) and bind.in_transaction()
