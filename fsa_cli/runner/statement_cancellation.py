"""End the statements that a run waits for in a driver's C code, when it is interrupted.

SQLite and psycopg2 do not return to Python before a statement has ended, so neither Ctrl-C nor a
time-out would reach the task. Drivers that wait in Python need none of this.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar

from fsa_cli.database.listening import listen_once
from fsa_cli.runner.signal_handlers import ENDING, hearing

__all__ = ["Statements"]

#: What only connections of the drivers that wait in C have: SQLite's and psycopg2's. Their class is
#: an agent's where one wraps them (Datadog's, Elastic's, New Relic's), or the app's own.
_IN_C = ("interrupt", "pgconn_ptr")
_KEY = "fsa_statements"
_SIGNALS = {*ENDING, signal.SIGINT, signal.SIGALRM}
_AGAIN_S = 0.05
# A server has so long to answer the wish to end a statement, and the ROLLBACK after a signal.
_ANSWER_S = 5.0
_TEXT = 256

#: How each driver says the server's number of a connection, without asking the server.
_SESSION_ID: tuple[Callable[[Any], int], ...] = (
    lambda raw: raw.info.backend_pid,  # psycopg
    lambda raw: raw.get_backend_pid(),  # psycopg2
    lambda raw: raw.get_server_pid(),  # asyncpg
    lambda raw: raw.thread_id(),  # pymysql, aiomysql, asyncmy
)

T = TypeVar("T")

_current: ContextVar[Statements | None] = ContextVar("fsa_statements", default=None)


class Statements:
    """The connections that one run has in use; a context manager, for the run's own context."""

    def __init__(self) -> None:
        self._connections: dict[int, Any] = {}
        self._aiosqlite: dict[int, Any] = {}
        self._waiting_in_python: dict[int, Any] = {}
        self._rollbacks: list[asyncio.Task[None]] = []
        self._task: asyncio.Task[Any] | None = None
        self._cutting: threading.Timer | None = None
        self.thread_id: int | None = None
        """Of the thread that executes the run, while it goes on."""
        self.task: asyncio.Task[Any] | None = None
        """That executes an async one."""

    def __enter__(self) -> Statements:
        self.thread_id = threading.get_ident()
        with contextlib.suppress(RuntimeError):  # no loop runs here
            self.task = asyncio.current_task()
        _listen()
        self._token = _current.set(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self.thread_id = self.task = None
        if self._cutting is not None:
            self._cutting.cancel()
        _current.reset(self._token)

    def add(self, record: object, connection: object) -> None:
        driver_connection: Any = getattr(connection, "driver_connection", connection)
        raw = getattr(driver_connection, "_conn", driver_connection)  # aiosqlite's own
        if any(hasattr(raw, name) for name in _IN_C):
            self._connections[id(record)] = raw
            if raw is not driver_connection:
                self._aiosqlite[id(record)] = driver_connection
        else:
            self._waiting_in_python[id(record)] = raw

    def remove(self, record: object) -> None:
        for known in (self._connections, self._aiosqlite, self._waiting_in_python):
            known.pop(id(record), None)

    def session_ids(self) -> list[int]:
        """The numbers by which the server knows these connections; none of SQLite's."""
        found = []
        for raw in [*self._connections.values(), *self._waiting_in_python.values()]:
            for read in _SESSION_ID:
                with contextlib.suppress(Exception):  # another driver, or closed meanwhile
                    found.append(int(read(raw)))
                    break
        return found

    def end(self) -> None:
        """End the statements that run on them, if any."""
        for connection in list(self._connections.values()):
            with contextlib.suppress(Exception):  # closed meanwhile
                _end(connection)

    def cut(self) -> None:
        """End the connections themselves, where the server says nothing."""
        for connection in [*self._connections.values(), *self._waiting_in_python.values()]:
            _cut(connection)

    def end_of_thread(self) -> None:
        """End them for a run in another thread, which no signal reaches."""
        self.end()
        if (task := self._task) is not None:
            with contextlib.suppress(RuntimeError):  # its loop has ended meanwhile
                task.get_loop().call_soon_threadsafe(task.cancel)
            return
        for connection in list(self._waiting_in_python.values()):
            with contextlib.suppress(Exception):  # closed meanwhile
                if hasattr(connection, "cancel"):  # psycopg: it tells the server
                    _end(connection)
                else:  # pymysql knows no way: its thread gets an error instead of an answer
                    _cut(connection)

    def cancel(self) -> None:
        """End them, on the loop of a run that is being cancelled.

        SQLAlchemy closes an aiosqlite connection that was cancelled. sqlite3 keeps it, and its lock
        on the database, until the exception that holds the cursor is gone: so it is rolled back
        before that.
        """
        self.end()
        for connection in list(self._aiosqlite.values()):
            self._rollbacks.append(asyncio.create_task(_roll_back(connection)))

    @contextlib.contextmanager
    def ended_by_signals(self) -> Iterator[None]:
        """While inside, a signal ends them, so that its handler is run. In the main thread only.

        The ROLLBACK that follows has a few seconds.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        left = threading.Event()
        ending = threading.Lock()

        def heard(number: int) -> None:
            with ending:
                if number in _SIGNALS and not left.is_set():
                    self.end()
                    # The signal may have come just before the statement began.
                    if not left.wait(_AGAIN_S):
                        self.end()

        try:
            with hearing(heard):
                yield
        except KeyboardInterrupt:
            self._cutting = threading.Timer(_ANSWER_S, self.cut)
            self._cutting.daemon = True
            self._cutting.start()
            raise
        finally:
            left.set()
            ending.acquire()  # what ends the task's statement must not end its COMMIT

    @contextlib.contextmanager
    def cancelling_from_elsewhere(self) -> Iterator[None]:
        """While inside, `end_of_thread` cancels the current asyncio task."""
        self._task = asyncio.current_task()
        try:
            yield
        finally:
            self._task = None

    def ended_by_cancelling(self, coroutine: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """*coroutine*, which ends them when it is cancelled: else its cleanup waits for them."""
        return _CancellableCoroutine(coroutine, self)


class _CancellableCoroutine(Generator[Any, Any, Any]):
    """Passes everything on to a coroutine, and sees when it is cancelled."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], statements: Statements) -> None:
        self._coroutine = coroutine
        self._statements = statements

    def __await__(self) -> Generator[Any, Any, Any]:
        return self

    def send(self, value: Any) -> Any:
        return self._coroutine.send(value)

    def throw(self, error: Any, *rest: Any) -> Any:
        if isinstance(error, asyncio.CancelledError):
            self._statements.cancel()
        return self._coroutine.throw(error, *rest)

    def close(self) -> None:
        self._coroutine.close()


def _end(connection: Any) -> None:
    """Have the server end the statement; where it does not answer, end the connection."""
    if hasattr(connection, "interrupt"):  # SQLite's, which asks nobody
        connection.interrupt()
        return
    asking = threading.Thread(target=_ask, args=(connection,), daemon=True)
    asking.start()
    asking.join(_ANSWER_S)
    if asking.is_alive():
        _cut(connection)


def _ask(connection: Any) -> None:
    with contextlib.suppress(Exception):  # closed meanwhile
        if hasattr(connection, "cancel_safe"):  # psycopg from 3.2 on
            connection.cancel_safe(timeout=_ANSWER_S)
        else:
            _cancel(connection)


def _cancel(connection: Any) -> None:
    """As psycopg2's `cancel`, which lets no thread of the process go on before the server answers.

    Raises:
        Exception: The connection was closed meanwhile.
    """
    import ctypes  # 3 ms, which few runs need

    try:
        get, cancel, free = _libpq()
    except (AttributeError, KeyError, OSError):  # another build
        connection.cancel()
        return
    asked = get(connection.pgconn_ptr)
    try:
        cancel(asked, ctypes.create_string_buffer(_TEXT), _TEXT)
    finally:
        free(asked)


@cache
def _libpq() -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """PQgetCancel, PQcancel and PQfreeCancel of the libpq that psycopg2's C code is linked to.

    https://www.postgresql.org/docs/current/libpq-cancel.html
    """
    import ctypes

    file = sys.modules["psycopg2._psycopg"].__file__
    # A PyDLL's functions keep other threads from closing the connection meanwhile.
    get = ctypes.PyDLL(file).PQgetCancel
    get.argtypes, get.restype = [ctypes.c_void_p], ctypes.c_void_p
    library = ctypes.CDLL(file)
    library.PQcancel.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
    library.PQfreeCancel.argtypes, library.PQfreeCancel.restype = [ctypes.c_void_p], None
    return get, library.PQcancel, library.PQfreeCancel


def _cut(connection: Any) -> None:
    with contextlib.suppress(Exception):  # closed meanwhile, or SQLite's
        if hasattr(connection, "fileno"):  # libpq's
            with socket.socket(fileno=os.dup(connection.fileno())) as ours:
                ours.shutdown(socket.SHUT_RDWR)
        else:
            connection._sock.shutdown(socket.SHUT_RDWR)


async def _roll_back(connection: Any) -> None:
    with contextlib.suppress(Exception):  # closed meanwhile
        await connection.rollback()


@cache
def _listen() -> None:
    from sqlalchemy.pool import Pool

    listen_once(Pool, "checkout", _checked_out)
    listen_once(Pool, "checkin", _checked_in)


def _checked_out(dbapi_connection: Any, record: Any, proxy: Any) -> None:
    statements = _current.get()
    if statements is not None:
        record.info[_KEY] = statements
        statements.add(record, dbapi_connection)


def _checked_in(dbapi_connection: Any, record: Any) -> None:
    statements: Statements | None = record.info.pop(_KEY, None)
    if statements is not None:
        statements.remove(record)
