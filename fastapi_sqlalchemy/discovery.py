"""Middlewares that were added to an app and are not built yet.

Starlette builds the middleware stack at the first request. A script that imports the app, or code
after `app.add_middleware(DBSessionMiddleware, ...)` in the same module, finds nothing configured;
what the middleware will be built with is in the app's `starlette.middleware.Middleware` entries.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from starlette.middleware import Middleware

from .binding import Options
from .exceptions import SessionNotInitialisedError
from .urls import masked

if TYPE_CHECKING:
    from .database import Database

__all__ = ["DatabaseMiddleware", "find_unbuilt"]


class DatabaseMiddleware(Protocol):
    """A middleware class that tells, from its arguments, whom it will configure and how."""

    @classmethod
    def configures(
        cls, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Database, Options | None]:
        """The database, and its options if the arguments say which."""
        raise NotImplementedError


def find_unbuilt(database: Database) -> Options:
    """The options of the middlewares that will configure `database`, if they agree.

    Raises:
        SessionNotInitialisedError: there is none, or several disagree (it lists them).
    """
    # Apps are full of cycles: without this, one that is gone still has its say.
    gc.collect()
    found: list[Options] = []
    for entry in _entries():
        configured, options = entry.cls.configures(entry.args, entry.kwargs)  # type: ignore[attr-defined]
        if configured is not database or options is None:
            continue
        if not any(options.matches(known) for known in found):
            found.append(options)
    if len(found) == 1:
        return found[0]
    if not found:
        raise SessionNotInitialisedError
    urls = "\n".join(f"    {masked(options.engine.url)}" for options in found)
    raise SessionNotInitialisedError(
        "Several apps have added DBSessionMiddleware, with different arguments, and none has "
        f"served a request yet:\n\n{urls}\n\nSay which one serves outside of requests: "
        "db.configure(db_url=...)."
    )


def _entries() -> Iterator[Middleware]:
    for candidate in gc.get_objects():
        # By type(), which no proxy object answers for another.
        if issubclass(type(candidate), Middleware) and hasattr(candidate.cls, "configures"):
            yield candidate
