"""The scope of a request or a WebSocket: a scope that knows its route, for warnings.

`middleware.DBSessionMiddleware` decides when it ends and whether it commits; `Scope.settle` and the
session's `SessionHandle` do it.
"""

from __future__ import annotations

import logging
from time import monotonic

from starlette.types import Scope as ASGIScope

from .binding import Binding
from .scope import Scope, refuse_other_loops

__all__ = ["RequestScope"]

#: In an ASGI scope, and the copies of it that mounted apps get: an object of this request's own.
_REQUEST = "fastapi_sqlalchemy.request"

#: How long a request may hold a connection and not use it before a warning names it, in seconds.
IDLE_WARNING_S = 10.0

logger = logging.getLogger("fastapi_sqlalchemy")


class RequestScope(Scope):
    """The sessions of one request. `warned` is where its middleware keeps what it warned about."""

    __slots__ = ("_app", "_asgi", "_request", "_warned", "stage")

    def __init__(
        self, binding: Binding, outer: Scope | None, asgi: ASGIScope, warned: set[str]
    ) -> None:
        refuse_other_loops()
        super().__init__(binding, outer, asynchronous=True)
        self._asgi = asgi
        self._app = asgi.get("app")
        self._request = asgi.setdefault(_REQUEST, object())
        self._warned = warned
        #: What it is at, after its last statement, for a log line.
        self.stage = ""

    def __str__(self) -> str:
        route = getattr(self._asgi.get("route"), "path", None)
        text = f"{self._asgi.get('method', 'WebSocket')} {route or self._asgi['path']}"
        if text.isprintable():
            return text
        # A client chose it: no line of a log begins in it, and no terminal obeys it.
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

    def is_of(self, asgi: ASGIScope) -> bool:
        """Whether it was opened for this request, by a middleware of the same app.

        A mounted app is another one; what wraps an app from outside is not in it yet. A route may
        call its own app, and uvicorn begins a pipelined request in the context of the one before.
        """
        return self._request is asgi.get(_REQUEST) and self._app in (None, asgi.get("app"))

    @property
    def is_called_inside(self) -> bool:
        """Whether a request waits for this one that has its turn in a sandbox, or a block has."""
        scope = self.outer
        while scope is not None:
            outer = scope.outer
            if isinstance(scope, RequestScope):
                if not scope.is_websocket:
                    return True
            elif isinstance(outer, RequestScope) and outer.is_websocket:
                return True
            scope = outer
        return False

    @property
    def is_websocket(self) -> bool:
        """Whether it may stay open for hours, mostly idle."""
        return bool(self._asgi["type"] == "websocket")

    def warn_of_uncommitted(self, *, was_committed: bool = False) -> None:
        """Log a warning if the end is about to roll something back that was written.

        `was_committed`: what was written before the response is not lost.
        """
        if not self.uncommitted:
            return
        if self.is_websocket:
            logger.warning(
                "%s wrote to the database without a commit: rolled back at its end. Open a scope "
                "for each message: `async with db(commit_on_exit=True):`.",
                self,
            )
        elif was_committed:
            logger.warning(
                "%s wrote to the database without a commit, after its response was committed: "
                "rolled back at the end of the request. What runs then (a background task, the end "
                "of a dependency with `yield`) commits for itself: db.session.commit().",
                self,
            )
        else:
            logger.warning(
                "%s wrote to the database without a commit: rolled back at the end of the request. "
                "Call db.session.commit(), or pass commit_on_exit=True to DBSessionMiddleware; "
                "what runs after the response (a stream, a background task) commits for itself.",
                self,
            )

    async def end_reads(self) -> None:
        """Give back the connections of sessions that have only read; their objects stay loaded."""
        self.warn_of_idle()
        for handle in self.handles:
            if handle.activity.connection is not None:
                await handle.end_reads(self)

    def warn_of_idle(self) -> None:
        """Log a warning, once for a route, if it kept a connection for long without using it."""
        for handle in self.handles:
            activity = handle.activity
            idle_s = monotonic() - activity.left_s
            if activity.connection is None or activity.user is not None or idle_s < IDLE_WARNING_S:
                continue
            if (label := f"idle {self}") not in self._warned:
                self._warned.add(label)
                logger.warning(
                    "%s kept a connection for %.0f s after its last statement%s: meanwhile the "
                    "pool has one less. End its transaction before what takes long: "
                    "db.session.commit() or rollback(), or read in a scope of its own, "
                    "`with db():`.",
                    self,
                    idle_s,
                    self.stage,
                )

    def _on_loop_thread(self) -> None:
        label = str(self)
        if "route" in self._asgi and label not in self._warned:
            self._warned.add(label)
            logger.warning(
                "%s uses db.session on the event loop's thread: every other request waits for its "
                "queries. Write the route with `def`, or use db.async_session.",
                label,
            )
