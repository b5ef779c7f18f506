"""Binding an app's databases without building its middleware stack: for scripts and `fsa`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .asgi.pending_middleware import given_arguments
from .configuration import ARGUMENTS, Configuration
from .database import Database
from .exceptions import ConfigurationError

__all__ = ["bind_app"]


def bind_app(app: Any, urls: Mapping[str, str] | None = None) -> dict[str, Database]:
    """Configure every `Database` that the app's middlewares name, without building its stack.

    Args:
        app: a Starlette or FastAPI app.
        urls: by `Database.name`, what replaces the URL that the app gave; also where its middleware
            is built later.

    Returns:
        The databases by name.

    Raises:
        ConfigurationError: a URL cannot be read, or two databases have one name.
    """
    # Looked up when it is used: a test suite that deletes the module makes another `db`.
    from .middleware import db

    urls = urls or {}
    bound: dict[str, Database] = {}
    seen: dict[str, Database] = {}
    for entry in app.user_middleware:
        configures = getattr(entry.cls, "configures", None)
        if configures is None:
            continue
        database, configuration = configures(entry.args, entry.kwargs)
        known = seen.setdefault(database.name, database)
        if known is not database:
            raise ConfigurationError(
                f"Two databases of this app are named {database.name!r}. Give each a name of its "
                "own: Database('reports')."
            )
        if database.name in bound:
            continue  # the outermost middleware of a database serves its requests
        url = urls.get(database.name)
        if configuration is not None and url is not None:
            configuration = configuration.with_url(url)
            _replace_database(entry, configuration)
        if configuration is not None:
            database._adopt(configuration)
        elif url is not None:
            database.configure(db_url=url)
        if database.is_configured:
            bound[database.name] = database
    if db.name not in bound and db.name in urls:
        db.configure(db_url=urls[db.name])
    if db.name not in bound and db.is_configured:
        bound[db.name] = db
    return bound


def _replace_database(entry: Any, configuration: Configuration) -> None:
    """Have `entry` build its middleware for the database of `configuration`."""
    given = given_arguments(entry.cls, entry.args, entry.kwargs)
    replaced = {"app", *ARGUMENTS} - {"commit_on_exit", "rollback_from_status"}
    entry.args = ()
    entry.kwargs = {
        **{name: value for name, value in given.items() if name not in replaced},
        "db_url": configuration.engine.db_url,
        "engine_args": configuration.engine.engine_args,
        "session_args": configuration.session_args,
        "async_session_args": configuration.async_session_args,
    }
