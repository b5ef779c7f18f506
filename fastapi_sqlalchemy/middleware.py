"""`DBSessionMiddleware`, and the global `db`."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import anyio
from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as ASGIScope
from starlette.websockets import WebSocketDisconnect

from .asgi.exception_handlers import HANDLERS, ExceptionHandlers
from .asgi.pending_middleware import given_arguments
from .configuration import ARGUMENTS, UNSET, Configuration, Options, Unset, refuse_unknown
from .database import Database
from .engines.urls import masked
from .exceptions import ConfigurationError
from .sessions.request_scope import RequestScope
from .sessions.scope import refuse_other_loops
from .sessions.shielding import collect_abandoned

__all__ = ["DBSession", "DBSessionMeta", "DBSessionMiddleware", "db"]

logger = logging.getLogger("fastapi_sqlalchemy")

#: The one `db` of most apps. Made by importing this module, so that a test suite which deletes it
#: from `sys.modules` starts anew.
db = Database()

# The names of 0.2.1.
DBSession = db
DBSessionMeta = Database


class DBSessionMiddleware:
    """Give every request a scope: any code that it runs reaches its session as `db.session`.

    With `commit_on_exit`, a response below `rollback_from_status` is sent only once the COMMIT has
    succeeded; a failed one is answered by the app's own handler for that exception, else with 500.
    From that status on, and when an exception is raised, the request is rolled back. Without
    `commit_on_exit`, what the request did not commit itself is rolled back at its end.

    The session stays usable after the response has begun, for streams and background tasks. With
    `commit_on_exit`, what a stream writes is committed before its last body message is passed on,
    and rolled back where that never comes. A WebSocket has a scope too, which is rolled back at its
    end.

    Args:
        app: the ASGI app.
        db: the `Database` to serve, if not the global one.

    The other arguments are those of `Database.configure`. Without a URL or an engine, the database
    is the one that was configured there, and with it `commit_on_exit` and `rollback_from_status`
    where they are left alone here.

    Raises:
        ValueError: neither a URL nor an engine was given, and nothing was configured.
    """

    #: What holds where an argument is not given: for subclasses.
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        app: ASGIApp,
        db_url: str | URL | None = None,
        custom_engine: Engine | AsyncEngine | None = None,
        engine_args: Mapping[str, Any] | None = None,
        session_args: Mapping[str, Any] | None = None,
        commit_on_exit: bool | Unset = UNSET,
        *,
        db: Database | None = None,
        **options: Unpack[Options],
    ) -> None:
        refuse_unknown(options, f"{type(self).__name__}.__init__")
        self.app = app
        self.db = db if db is not None else self.default_database()
        configured = self.db._configuration
        configuration = Configuration.of(
            db_url,
            custom_engine,
            engine_args,
            session_args,
            commit_on_exit,
            **{**self.defaults, **options},
            base=configured,
        )
        self.commit_on_exit = configuration.commit_on_exit
        self.rollback_from_status = configuration.rollback_from_status
        if configured is not None and configuration.changes_nothing_of(configured):
            self.binding = self.db._bind(configured)
        else:
            self.binding = self.db._adopt(configuration)
        self.binding.holders.add(self)
        self._warned: set[str] = set()

    @classmethod
    def default_database(cls) -> Database:
        """The `Database` that is served where `db=` is not given."""
        return _global_db()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "dispatch" in vars(cls):
            raise TypeError(
                f"{cls.__name__}.dispatch() would never be called: DBSessionMiddleware is pure "
                "ASGI, no BaseHTTPMiddleware as in 0.2.1. Override "
                "`async def __call__(self, scope, receive, send)`, or put dispatch() into a "
                "BaseHTTPMiddleware of its own, added before this one."
            )

    @classmethod
    def configures(
        cls, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Database, Configuration | None]:
        """The `Database` that a middleware with these arguments serves, and how it configures it.

        None for the configuration: the arguments name no database.
        """
        given = given_arguments(cls, args, kwargs)
        database = given.get("db") or cls.default_database()
        named = {**cls.defaults, **{name: given[name] for name in ARGUMENTS if name in given}}
        if not any(named.get(name) for name in ARGUMENTS if name.endswith(("url", "engine"))):
            return database, None
        return database, Configuration.of(**named)

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        outer = self.db._scope.get()
        if isinstance(outer, RequestScope) and not outer.ended and outer.is_of(scope):
            if outer.binding is not self.binding:
                self._warn_of_second(outer)
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            sandbox = self.binding.sandbox
            request = RequestScope(self.binding, outer, scope, self._warned)
            if sandbox is None or request.is_called_inside:
                await self._serve_request(request, scope, receive, send)
                return
            await sandbox.aacquire(str(request))
            try:
                await self._serve_request(request, scope, receive, send)
            finally:
                sandbox.release()
        elif scope["type"] == "websocket":
            await self._serve_websocket(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._serve_lifespan(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _warn_of_second(self, outer: RequestScope) -> None:
        if _SECOND not in self._warned:
            self._warned.add(_SECOND)
            logger.warning(
                "The app has two DBSessionMiddleware for one db: %s, the outermost, serves its "
                "requests, and %s does not. Leave one out, or give it a database of its own: "
                "db=Database('...').",
                masked(outer.binding.url),
                masked(self.binding.url),
            )

    async def _serve_request(
        self, request: RequestScope, asgi: ASGIScope, receive: Receive, send: Send
    ) -> None:
        app, outer_handlers = asgi.get("app"), asgi.get(HANDLERS)
        failure: Exception | None = None
        started: Message | None = None
        completed = returned = left = False
        length: float | None = None
        sent_bytes = 0
        held: list[Message] = []

        async def receive_watched() -> Message:
            nonlocal left
            message = await receive()
            if message["type"] == "http.disconnect":
                left = True
            return message

        async def send_settled(message: Message) -> None:
            nonlocal failure, started, completed, length, sent_bytes
            if started is None and message["type"] == "http.response.start":
                if failure is not None or (self.commit_on_exit and request.handles):
                    commits = self._commits(message)
                    if failure is not None and commits:
                        # Somebody in between caught it, and answers as if nothing had happened.
                        raise _CommitFailed(_first_line(failure)) from failure
                    # Inside a BaseHTTPMiddleware a stream may be at its first part already, and a
                    # COMMIT ends the cursor that it reads: with MySQL's drivers without an error.
                    streams = _is_stream(message, asgi)
                    is_used = streams and (request.is_in_use or request.has_cursor)
                    if not (is_used or _is_event_stream(message)):
                        try:
                            await request.settle(commit=commits, takes_turns=streams)
                        except Exception as exc:
                            failure = exc
                            raise _CommitFailed(_first_line(exc)) from exc
                started = message
                request.stage = ", while its response is sent"
                await send(message)
                return
            # Some servers (Granian) send a file by its path, with no body message.
            is_last = message["type"] == "http.response.pathsend" or (
                message["type"] == "http.response.body" and not message.get("more_body")
            )
            if not is_last and self.commit_on_exit and started is not None:
                # A client that has as many bytes as were promised waits for no last message.
                length = _length(started) if length is None else length
                sent_bytes += len(message.get("body", b""))
                if sent_bytes >= length and request.handles:
                    held.append(message)
                    return
            if is_last and self.commit_on_exit and started is not None and request.handles:
                # An app in between may end well a stream that has lost its client.
                if _is_event_stream(started):
                    # A producer that has just failed is heard of one turn of the loop later.
                    await asyncio.sleep(0)
                whole = not (left or _is_cancelled())
                await self._settle_stream(request, commit=whole and self._commits(started))
            for each in (*held, message) if held else (message,):
                await send(each)
            held.clear()
            if is_last:
                completed = True
                request.stage = ", after its response (a background task?)"
                if request.handles:
                    await request.end_reads()

        self.db._enter(request)
        try:
            try:
                await self.app(
                    asgi, receive_watched if self.commit_on_exit else receive, send_settled
                )
            except Exception:
                if failure is None or started is not None:
                    raise
            if failure is not None and started is None:
                await request.settle(commit=False)
                refused, failure = failure, None
                handlers = ExceptionHandlers(app, outer_handlers)
                try:
                    # What the handler writes is committed by the status of its answer.
                    await handlers.answer(refused, asgi, receive, send_settled)
                except _CommitFailed as exc:
                    raise exc.__cause__ or exc from None
            returned = True
        finally:
            if not request.end_at_once():
                request.warn_of_idle()
                if returned and failure is None:
                    self._report_uncommitted(request, started, completed)
                await request.aend()
            self.db._leave(request)
            if not completed and request.holds_connections_inside:
                collect_abandoned()

    async def _settle_stream(self, request: RequestScope, *, commit: bool) -> None:
        """End what was begun since the response has started, before its last body message is sent.

        A client that has read the last message finds the rows; one that never gets it finds none.
        """
        try:
            await request.settle(commit=commit)
        except Exception as exc:
            logger.exception(
                "%s: the commit at the end of the stream failed; it is broken off", request
            )
            raise _CommitFailed(_first_line(exc)) from exc

    def _report_uncommitted(
        self, request: RequestScope, started: Message | None, completed: bool
    ) -> None:
        """Say what the end of a request that went well, as far as it knows, will roll back."""
        if started is None or completed or not self.commit_on_exit:
            if started is None or self._commits(started):
                request.warn_of_uncommitted(was_committed=self.commit_on_exit and completed)
        elif request.uncommitted:
            logger.info("%s: its client left before the end: rolled back", request)

    async def _serve_websocket(self, asgi: ASGIScope, receive: Receive, send: Send) -> None:
        connection = RequestScope(self.binding, self.db._scope.get(), asgi, self._warned)
        self.db._enter(connection)
        try:
            try:
                await self.app(asgi, receive, send)
            except WebSocketDisconnect:
                connection.warn_of_uncommitted()
                raise
            connection.warn_of_uncommitted()
        finally:
            await connection.aend()
            self.db._leave(connection)

    async def _serve_lifespan(self, asgi: ASGIScope, receive: Receive, send: Send) -> None:
        async def send_closed(message: Message) -> None:
            if message["type"] in _END_OF_LIFESPAN:
                # The server ends the event loop once it has this, and cancels who is still at work.
                await self.db._close_idle()
            await send(message)

        try:
            refuse_other_loops()
        except ConfigurationError as exc:
            # Where it is raised, a server goes on without a lifespan, and may not say why.
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(exc)})
            return
        try:
            await self.app(asgi, receive, send_closed)
        finally:
            await self.db._close_idle()

    def _commits(self, start: Message) -> bool:
        limit = self.rollback_from_status
        return bool(limit is None or start["status"] < limit)


class _CommitFailed(Exception):
    """Carries a failed commit out of `send`.

    The original could not: Starlette finds the app's handler for it, and then fails because it has
    seen the response begin ("Caught handled exception, but response already started").
    """


_SECOND = "a second middleware"
_BODILESS = (204, 304)
_END_OF_LIFESPAN = (
    "lifespan.startup.failed",
    "lifespan.shutdown.complete",
    "lifespan.shutdown.failed",
)


def _is_cancelled() -> bool:
    """Whether this task is about to be cancelled: the producer of its stream has failed."""
    task = asyncio.current_task()
    return anyio.current_effective_deadline() == -math.inf or bool(task and task.cancelling())


def _first_line(error: Exception) -> str:
    """What an access log inside of ours shows of a failed commit."""
    return f"the commit failed: {type(error).__name__}: {error}".splitlines()[0]


def _global_db() -> Database:
    return db


def _is_stream(start: Message, asgi: ASGIScope) -> bool:
    """Whether nobody knows how long the body will be: one that no client is sent has no length."""
    if start["status"] in _BODILESS or asgi["method"] == "HEAD":
        return False
    return math.isinf(_length(start))


def _length(start: Message) -> float:
    """How many bytes the response has, as its head says."""
    for name, value in start.get("headers", ()):
        if name.lower() == b"content-length" and value.isdigit():
            return int(value)
    return math.inf


def _is_event_stream(start: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.lower().startswith(b"text/event-stream")
        for name, value in start.get("headers", ())
    )
