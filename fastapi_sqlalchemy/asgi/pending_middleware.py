"""Middlewares that were added to an app and are not built yet.

Starlette builds the middleware stack at the first request. A script that imports the app, or code
after `app.add_middleware(DBSessionMiddleware, ...)` in the same module, finds nothing configured;
what the middleware will be built with is in the app's `starlette.middleware.Middleware` entries.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware

from ..configuration import Configuration
from ..engines.urls import masked
from ..exceptions import SessionNotInitialisedError

__all__ = ["find_pending", "given_arguments"]


def find_pending(database: object) -> Configuration:
    """How the pending middlewares will configure `database`, if they agree.

    Raises:
        SessionNotInitialisedError: there is none, or several disagree (it lists them).
    """
    # Apps are full of cycles: without this, one that is gone still has its say.
    gc.collect()
    found: list[Configuration] = []
    entries, later = [], set()
    for candidate in _objects(Middleware, Starlette):
        if isinstance(candidate, Middleware):
            if hasattr(candidate.cls, "configures"):
                entries.append(candidate)
        else:
            later |= _later_entries(candidate)
    for entry in entries:
        if id(entry) in later:
            continue
        configured, configuration = entry.cls.configures(entry.args, entry.kwargs)  # type: ignore[attr-defined]
        if configured is not database or configuration is None:
            continue
        if not any(configuration.means_database_of(known) for known in found):
            found.append(configuration)
    if len(found) == 1:
        return found[0]
    if not found:
        raise SessionNotInitialisedError
    urls = "\n".join(f"    {masked(configuration.engine.url)}" for configuration in found)
    raise SessionNotInitialisedError(
        "Several apps have added DBSessionMiddleware, with different arguments, and none has "
        f"served a request yet:\n\n{urls}\n\nSay which one serves outside of requests: "
        "db.configure(db_url=...)."
    )


def given_arguments(
    middleware_class: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of an entry by name; its class's `**kwargs` are among them."""
    signature = inspect.signature(middleware_class)
    given = dict(signature.bind_partial(None, *args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    return given


def _later_entries(app: Starlette) -> set[int]:
    """The identities of the entries of `app` that an outer one for the same database replaces."""
    seen: list[object] = []
    later: set[int] = set()
    for entry in getattr(app, "user_middleware", ()):
        configures = getattr(entry.cls, "configures", None)
        if configures is not None:
            database = configures(entry.args, entry.kwargs)[0]
            if any(database is known for known in seen):
                later.add(id(entry))
            seen.append(database)
    return later


def _objects(*classes: type) -> Iterator[Any]:
    for candidate in gc.get_objects():
        # By type(), which no proxy object answers for another.
        if issubclass(type(candidate), classes):
            yield candidate
