"""What a forked child must do with what it inherited.

A socket that a parent and its child share belongs to the parent: a ROLLBACK or a goodbye that the
child sends on it ends the parent's transaction or connection. The child therefore drops what it
inherited without a word to the server, and keeps the references for ever, because collecting them
would make SQLAlchemy roll back and the driver say goodbye.
https://docs.sqlalchemy.org/en/21/core/pooling.html#using-connection-pools-with-multiprocessing-or-os-fork
"""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol

from sqlalchemy import Engine, event

from ..exceptions import MissingSessionError

__all__ = ["abandon", "forget_after_fork", "guard", "token"]


class Inherits(Protocol):
    """Something that holds locks, threads or connections of the process that made it."""

    def after_fork(self) -> None:
        """Replace them, in the child, without touching the server."""


_holders: weakref.WeakSet[Inherits] = weakref.WeakSet()
_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_records: weakref.WeakSet[Any] = weakref.WeakSet()
_abandoned: list[object] = []

#: This process: another object after a fork. Cheaper than os.getpid().
token = object()


def forget_after_fork(holder: Inherits) -> None:
    """Have `holder.after_fork()` called in every child of this process."""
    _holders.add(holder)


def guard(engine: Engine) -> None:
    """Have the connections of `engine`, idle or in use, dropped in every child that is forked.

    A session that was using one can be rolled back and closed, which sends nothing; then it takes
    a connection of the child's own.
    """
    if engine not in _engines:
        _engines.add(engine)
        event.listen(engine, "connect", _remember)


def abandon(inherited: object) -> None:
    """Keep `inherited` from ever being collected in this process, not at its exit either."""
    if not _abandoned:
        # Modules are cleared at exit, and with them this list, unless it counts as still in use.
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_abandoned))
    _abandoned.append(inherited)


class _ParentsConnection:
    """What stands for a parent's connection where a child's session is using it."""

    def rollback(self) -> None: ...

    def close(self) -> None: ...

    terminate = close

    def __getattr__(self, name: str) -> Any:
        raise MissingSessionError(
            "This connection was opened before the process forked, and belongs to the parent. Open "
            "a session in the child: `with db():`."
        )


def _remember(dbapi_connection: Any, record: Any) -> None:
    _records.add(record)


def _in_child() -> None:
    global token
    token = object()
    for record in list(_records):
        abandon(record.dbapi_connection)
        fairy = record.fairy_ref() if record.fairy_ref is not None else None
        if fairy is not None:
            fairy.dbapi_connection = _ParentsConnection()
        record.dbapi_connection = None
    for engine in list(_engines):
        abandon(engine.pool)
        engine.dispose(close=False)
    for holder in list(_holders):
        holder.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
