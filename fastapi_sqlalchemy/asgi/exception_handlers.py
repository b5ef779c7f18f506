"""Who answers a request whose commit has failed: the handler that its app registered for that."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["HANDLERS", "ExceptionHandlers"]

#: Where Starlette keeps them in the ASGI scope: by class, and by status.
HANDLERS = "starlette.exception_handlers"


class ExceptionHandlers(NamedTuple):
    """The exception handlers that a request passes on its way in: made before it goes on.

    Those of the innermost app are in the ASGI scope, where a mounted app overwrites its parent's:
    what was there before, and our own app, are kept here.
    """

    app: ASGIApp | None
    outer: Any

    async def answer(self, failure: Exception, asgi: Scope, receive: Receive, send: Send) -> None:
        """Let the app's handler for `failure` answer; without one, `failure` is raised."""
        handler = self._find(failure, asgi)
        if handler is None:
            raise failure
        request = Request(asgi, receive, send)
        if _is_async(handler):
            response = await handler(request, failure)
        else:
            response = await run_in_threadpool(handler, request, failure)
        if response is not None:
            await response(asgi, receive, send)

    def _find(self, failure: Exception, asgi: Scope) -> Callable[..., Any] | None:
        own = getattr(self.app, "exception_handlers", {})
        # A handler for Exception or 500 belongs to ServerErrorMiddleware, around all middlewares.
        own = {key: handler for key, handler in own.items() if key not in (500, Exception)}
        nothing: tuple[dict[Any, Any], dict[Any, Any]] = ({}, {})
        for by_class, by_status in (asgi.get(HANDLERS, nothing), (own, own), self.outer or nothing):
            if isinstance(failure, HTTPException) and failure.status_code in by_status:
                return by_status[failure.status_code]  # type: ignore[no-any-return]
            for class_ in type(failure).__mro__:
                if class_ in by_class:
                    return by_class[class_]  # type: ignore[no-any-return]
        return None


def _is_async(handler: Callable[..., Any]) -> bool:
    called = getattr(handler, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(called)
