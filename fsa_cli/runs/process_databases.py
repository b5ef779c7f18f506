"""The databases and the settings of this process: those of the app that `fsa` has loaded, or in a
web server the app's own `db` and the settings of the directory that it was started in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sqlalchemy import URL

from fastapi_sqlalchemy.exceptions import DBSessionError
from fsa_cli.exceptions import ConfigurationError
from fsa_cli.project import loader, settings
from fsa_cli.project.named_databases import configure
from fsa_cli.project.settings import Settings

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database

__all__ = ["configure_db", "databases_here", "process_key"]

# The process that has a ledger and no database: to look for a middleware each time takes 100 ms.
_without_database: int | None = None
_named_here: dict[int, dict[str, Database]] = {}


def databases_here() -> tuple[Mapping[str, Database], Settings]:
    """The databases by name, and the settings.

    Raises:
        ConfigurationError: There is no ledger here.
    """
    current = loader.current()
    if current is not None:
        return current[0].databases, current[1]
    from fastapi_sqlalchemy import db

    url, chosen = _url(), settings.read()
    named = {} if url is not None else _named(chosen)
    if url is None and not named and chosen.ledger_url is None:
        raise ConfigurationError(
            "there is no ledger: db is not configured in this process",
            hint='db.configure(...), [tool.fsa] database = "core.db:engine", or FSA_LEDGER_URL',
        )
    global _without_database
    _without_database = os.getpid() if url is None else None
    return ({"default": db} if url is not None else named), chosen


def configure_db() -> None:
    """Configure `db` as `fsa` does, from `[tool.fsa] database`, where no code of the app does.

    Raises:
        ConfigurationError: What it names is no database.
    """
    from fastapi_sqlalchemy import db

    if db.is_configured:
        return
    chosen = settings.read()
    if (text := chosen.databases.get(db.name)) is not None and _url() is None:
        configure(db, text, chosen)


def _named(chosen: Settings) -> dict[str, Database]:
    """The databases that `[tool.fsa] database` and FSA_DB_URL name, as `fsa` takes them.

    They are made once, and not the app's `db`, which its own code has not configured.
    """
    from fastapi_sqlalchemy import Database

    if os.getpid() not in _named_here:
        found = {}
        for name, text in {**chosen.databases, **chosen.database_urls}.items():
            found[name] = Database(name)
            if name in chosen.database_urls:
                found[name].configure(db_url=text)
            else:
                configure(found[name], text, chosen)
        _named_here[os.getpid()] = found
    return _named_here[os.getpid()]


def process_key() -> tuple[object, ...]:
    """What distinguishes this process and its app from another: a forked child is another one."""
    current = loader.current()
    return os.getpid(), id(current), None if current else _url()


def _url() -> URL | None:
    from fastapi_sqlalchemy import db

    if _without_database == os.getpid() and not db.is_configured:
        return None
    try:
        return db.url
    except DBSessionError:  # several apps disagree
        return None
