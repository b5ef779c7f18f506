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
from typing import Protocol

__all__ = ["abandon", "forget_after_fork", "process"]


class Inherits(Protocol):
    """Something that holds connections of the process that made it."""

    def after_fork(self) -> None:
        """Drop them, in the child, without touching the server."""


_holders: weakref.WeakSet[Inherits] = weakref.WeakSet()
_abandoned: list[object] = []
_process = object()


def process() -> object:
    """A token of this process: another one after a fork. Cheaper than os.getpid()."""
    return _process


def forget_after_fork(holder: Inherits) -> None:
    """Have `holder.after_fork()` called in every child that this process forks."""
    _holders.add(holder)


def abandon(inherited: object) -> None:
    """Keep `inherited` from ever being collected in this process."""
    _abandoned.append(inherited)


def _in_child() -> None:
    global _process
    _process = object()
    for holder in list(_holders):
        holder.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
