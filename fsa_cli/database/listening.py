"""Listeners of every session, engine or pool: one each, however many threads begin at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["listen_once"]

_lock = threading.Lock()


def listen_once(target: object, name: str, listener: Callable[..., Any]) -> None:
    """`event.listen`, once.

    SQLAlchemy adds a listener twice where two threads add it at the same moment, and calls it twice
    from then on.
    """
    from sqlalchemy import event

    with _lock:
        if not event.contains(target, name, listener):
            event.listen(target, name, listener)
