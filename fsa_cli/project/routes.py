"""The app's routes, as they are matched: mounted apps and included routers too."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fsa_cli.terminal.user_code import is_user_file, relative_path

__all__ = ["Route", "routes"]


@dataclass(frozen=True)
class Route:
    """One route.

    Attributes:
        methods: Of HTTP; `WEBSOCKET` for one; none if the endpoint, an ASGI app, decides.
        endpoint: `module.function`, or the type of the mounted app.
        file: The file of the endpoint, with its line; None if that is not known.
    """

    methods: tuple[str, ...]
    path: str
    name: str | None
    endpoint: str
    file: str | None
    line: int | None

    @property
    def place(self) -> str:
        """`main.py:12` for the user's own endpoints, the name for others."""
        if self.file is None or not is_user_file(self.file):
            return self.endpoint
        return f"{relative_path(self.file)}:{self.line}"


def routes(app: Any) -> Iterator[Route]:
    """The routes of *app*, in the order in which they are tried."""
    return _routes(app.routes, "")


def _routes(found: Iterable[Any], prefix: str) -> Iterator[Route]:
    from starlette.routing import Host, Mount, WebSocketRoute

    for route in _flat(found):
        path = prefix + (getattr(route, "path", None) or "")
        original = getattr(route, "original_route", route)
        if isinstance(original, Host):
            yield from _routes(getattr(original, "routes", None) or [], f"{original.host}{prefix}")
        elif isinstance(original, Mount):
            inner = getattr(original, "routes", None)
            if inner:
                yield from _routes(inner, path)
            else:
                yield _route((), f"{path}/*", route.name, original.app)
        elif (endpoint := getattr(route, "endpoint", None)) is not None:
            methods = tuple(sorted(getattr(route, "methods", None) or ()))
            if isinstance(original, WebSocketRoute):
                methods = ("WEBSOCKET",)
            yield _route(methods, path, route.name, endpoint)


def _flat(found: Iterable[Any]) -> Iterable[Any]:
    try:
        from fastapi.routing import iter_route_contexts
    except ImportError:  # before FastAPI kept included routers as they are, its routes were flat
        return found
    return iter_route_contexts(list(found))


def _route(methods: tuple[str, ...], path: str, name: str | None, endpoint: Any) -> Route:
    function = inspect.unwrap(endpoint) if callable(endpoint) else endpoint
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    try:
        file = inspect.getsourcefile(named)
        line = inspect.getsourcelines(named)[1]
    except (OSError, TypeError):
        file, line = None, None
    qualified = f"{named.__module__}.{named.__qualname__}".replace(".<locals>", "")
    return Route(methods, path, name or None, qualified, file, line)
