"""The library's errors.

    DBSessionError
    ├── SessionNotInitialisedError     no database was configured
    ├── MissingSessionError            no session is open here
    ├── ConfigurationError             (also a ValueError) the configuration cannot work
    │   └── MissingDriverError         a driver is not installed
    ├── ConcurrentUseError             (also an InvalidRequestError) two tasks or threads at once
    └── SandboxError                   what a sandbox cannot do

This module is never imported twice, also where a test suite resets the library by deleting
`fastapi_sqlalchemy` from `sys.modules`: an `except` clause keeps meaning the same class.
"""

from __future__ import annotations

from sqlalchemy.exc import InvalidRequestError

__all__ = [
    "ConcurrentUseError",
    "ConfigurationError",
    "DBSessionError",
    "MissingDriverError",
    "MissingSessionError",
    "SandboxError",
    "SessionNotInitialisedError",
]


class DBSessionError(Exception):
    """Base of every error that this library raises."""


class SessionNotInitialisedError(DBSessionError):
    """A session was asked for before any database was configured."""

    def __init__(self, detail: str = "") -> None:
        super().__init__(
            "Session not initialised! Ensure that DBSessionMiddleware has been initialised before\n"
            "attempting database access:\n\n"
            '    app.add_middleware(DBSessionMiddleware, db_url="sqlite:///app.db")\n\n'
            "or, without an app:\n\n"
            '    db.configure(db_url="sqlite:///app.db")' + (f"\n\n{detail}" if detail else "")
        )


class MissingSessionError(DBSessionError):
    """A session was asked for where none is open."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(
            message
            or "No session found! Either you are not currently in a request context,\n"
            "or you need to manually create a session context by using a `db` instance as\n"
            "a context manager e.g.:\n\n"
            "    with db():\n"
            "        db.session.scalars(select(User)).all()\n\n"
            "or, in async code:\n\n"
            "    async with db():\n"
            "        await db.async_session.get(User, 1)\n\n"
            "In a request, what runs around DBSessionMiddleware has none: a middleware that was\n"
            "added after it, and an exception handler for Exception or 500."
        )


class ConfigurationError(DBSessionError, ValueError):
    """The configuration, as it was given, cannot work."""


class MissingDriverError(ConfigurationError):
    """The driver that a URL needs is not installed."""


class ConcurrentUseError(DBSessionError, InvalidRequestError):
    """Two tasks, or two threads, used one session at the same time.

    Also an error of SQLAlchemy's, which raises an InvalidRequestError where it notices by itself.
    """

    def __init__(self, message: str | None = None) -> None:
        super().__init__(
            message
            or "Another task is using this AsyncSession: concurrent operations are not permitted "
            "(is it shared through asyncio.gather or a TaskGroup?). Give each coroutine a session "
            "of its own:\n\n    await db.gather(first(), second())\n\n"
            "or open `async with db():` inside each."
        )


class SandboxError(DBSessionError):
    """Something that cannot be done inside `db.sandbox()`."""
