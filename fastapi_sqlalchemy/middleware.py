"""`DBSessionMiddleware`, and the global `db`."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as ASGIScope
from starlette.websockets import WebSocketDisconnect

from .answers import HANDLERS, Handlers
from .binding import Options
from .database import Database
from .endings import collect_abandoned
from .requests import RequestScope

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

    The session stays usable after the response has begun, for streams and background tasks. A
    `text/event-stream` is committed at its end. A WebSocket has a scope too, which is rolled back
    at its end.

    Args:
        app: the ASGI app.
        db: the `Database` to serve, if not the global one.

    The other arguments are those of `Database.configure`. Without a URL or an engine, the database
    is the one that was configured there, and with it `commit_on_exit` and `rollback_from_status`
    where they are left alone here.

    Raises:
        ValueError: neither a URL nor an engine was given, and nothing was configured.
    """

    def __init__(
        self,
        app: ASGIApp,
        db_url: str | URL | None = None,
        custom_engine: Engine | AsyncEngine | None = None,
        engine_args: Mapping[str, Any] | None = None,
        session_args: Mapping[str, Any] | None = None,
        commit_on_exit: bool = False,
        *,
        async_db_url: str | URL | None = None,
        custom_async_engine: AsyncEngine | None = None,
        async_engine_args: Mapping[str, Any] | None = None,
        async_session_args: Mapping[str, Any] | None = None,
        rollback_from_status: int | None = 400,
        db: Database | None = None,
    ) -> None:
        self.app = app
        self.db = db if db is not None else _global_db()
        self.commit_on_exit = commit_on_exit
        self.rollback_from_status = rollback_from_status
        configured = self.db._configured
        named = db_url or custom_engine or async_db_url or custom_async_engine
        if configured is not None and not named:
            self.binding = configured
            default_commit, default_status = self.db._defaults
            self.commit_on_exit = commit_on_exit or default_commit
            if rollback_from_status == 400:
                self.rollback_from_status = default_status
        else:
            self.binding = self.db._adopt(
                Options.of(
                    db_url,
                    custom_engine,
                    engine_args,
                    session_args,
                    async_db_url,
                    custom_async_engine,
                    async_engine_args,
                    async_session_args,
                )
            )
        self.binding.holders.add(self)
        self._warned: set[str] = set()

    @classmethod
    def configures(
        cls, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Database, Options | None]:
        """The `Database` that a middleware with these arguments serves, and its options.

        None for options: the arguments name no database.
        """
        given = _given(cls, args, kwargs)
        database = given.get("db") or _global_db()
        options = {name: given[name] for name in _OPTION_NAMES if given.get(name)}
        if not any(name.endswith(("url", "engine")) for name in options):
            return database, None
        return database, Options.of(**options)

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            sandbox = self.binding.sandbox
            request = RequestScope(self.binding, self.db._scope.get(), scope, self._warned)
            if sandbox is None:
                await self._serve_request(request, scope, receive, send)
                return
            await sandbox.atake_turn(str(request))
            try:
                await self._serve_request(request, scope, receive, send)
            finally:
                sandbox.end_turn()
        elif scope["type"] == "websocket":
            await self._serve_websocket(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._serve_lifespan(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _serve_request(
        self, request: RequestScope, asgi: ASGIScope, receive: Receive, send: Send
    ) -> None:
        app, outer_handlers = asgi.get("app"), asgi.get(HANDLERS)
        failure: Exception | None = None
        started: Message | None = None
        completed = returned = False

        async def send_settled(message: Message) -> None:
            nonlocal failure, started, completed
            if started is None and message["type"] == "http.response.start":
                if request.used or failure is not None:
                    commits = self._commits(message)
                    if failure is not None and commits:
                        # Somebody in between caught it, and answers as if nothing had happened.
                        raise _CommitFailed from failure
                    if self.commit_on_exit and not _is_event_stream(message):
                        try:
                            await request.settle(commit=commits)
                        except Exception as exc:
                            failure = exc
                            raise _CommitFailed from exc
                started = message
                await send(message)
                return
            await send(message)
            completed = not message.get("more_body", False)

        self.db._enter(request)
        try:
            try:
                await self.app(asgi, receive, send_settled)
            except Exception:
                if failure is None or started is not None:
                    raise
            if failure is not None and started is None:
                await request.settle(commit=False)
                await Handlers(app, outer_handlers).answer(failure, asgi, receive, send)
            returned = True
        finally:
            if not request.end_unused():
                if returned and failure is None:
                    await self._end(request, started)
                else:
                    await request.aend()
            self.db._leave(request)
            if not completed and request.holds_connections_inside:
                collect_abandoned()

    async def _end(self, request: RequestScope, started: Message | None) -> None:
        """End a request that went well, as far as it knows."""
        commits = started is None or self._commits(started)
        if commits and self.commit_on_exit and started is not None and _is_event_stream(started):
            try:
                await request.aend(commit=True)
            except Exception:
                logger.exception("%s: the commit at the end of the stream failed", request)
            return
        if commits:
            request.warn_of_uncommitted()
        await request.aend()

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


_END_OF_LIFESPAN = (
    "lifespan.startup.failed",
    "lifespan.shutdown.complete",
    "lifespan.shutdown.failed",
)
_OPTION_NAMES = tuple(inspect.signature(Options.of).parameters)


def _given(cls: type[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name; a subclass's `**kwargs` are ours, which it passes on."""
    signature = inspect.signature(cls)
    given = dict(signature.bind_partial(None, *args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    return given


def _global_db() -> Database:
    return db


def _is_event_stream(start: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.lower().startswith(b"text/event-stream")
        for name, value in start.get("headers", ())
    )


def bind_app(app: Any, urls: Mapping[str, str] | None = None) -> dict[str, Database]:
    """Configure every `Database` that the app's middlewares name, without building its stack.

    Args:
        app: a Starlette or FastAPI app.
        urls: by `Database.name`, what replaces the URL that the app gave; also where its middleware
            is built later.

    Returns:
        The databases by name.

    Raises:
        sqlalchemy.exc.ArgumentError: a URL cannot be parsed.
    """
    urls = urls or {}
    bound: dict[str, Database] = {}
    for entry in app.user_middleware:
        if not (inspect.isclass(entry.cls) and issubclass(entry.cls, DBSessionMiddleware)):
            continue
        database, options = entry.cls.configures(entry.args, entry.kwargs)
        if database.name in bound:
            continue
        url = urls.get(database.name)
        if options is not None and url is not None:
            options = options.with_url(url)
            _replace_options(entry, options)
        if options is not None:
            database._adopt(options)
        elif url is not None:
            database.configure(db_url=url)
        if database.is_configured:
            bound[database.name] = database
    if db.name not in bound and db.name in urls:
        db.configure(db_url=urls[db.name])
    if db.name not in bound and db.is_configured:
        bound[db.name] = db
    return bound


def _replace_options(entry: Any, options: Options) -> None:
    given = _given(entry.cls, entry.args, entry.kwargs)
    kept = {name: value for name, value in given.items() if name not in ("app", *_OPTION_NAMES)}
    entry.args = ()
    entry.kwargs = {
        **kept,
        "db_url": options.engine.db_url,
        "engine_args": options.engine.engine_args,
        "session_args": options.session_args,
        "async_session_args": options.async_session_args,
    }
