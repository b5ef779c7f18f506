"""`[tool.fsa] database`: the databases of an app that gives `db` none itself."""

from __future__ import annotations

import inspect
import sys
from configparser import ConfigParser
from configparser import Error as ParseError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsa_cli.exceptions import ConfigurationError, FsaError
from fsa_cli.project.settings import Settings
from fsa_cli.terminal.user_code import describe_error, import_string, is_user_file

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from fastapi_sqlalchemy import Database

__all__ = ["configure", "engines_in_sight", "url_of_alembic_ini"]

_KINDS = "an Engine, an AsyncEngine, a sessionmaker, a function that returns one, or a URL"


def configure(database: Database, text: str, settings: Settings) -> None:
    """Configure *database* from what *text* names: `core.db.session:engine`, or a URL.

    Raises:
        ConfigurationError: It does not exist, or is nothing that names a database.
    """
    source = settings.sources[f"databases.{database.name}"]
    if "://" in text:
        value: Any = text
    else:
        _reach(settings)
        value = import_string(text, "the database", attribute="engine", source=source)
    try:
        arguments = _arguments(value)
        if arguments is not None:
            database.configure(**arguments)
            return
    except FsaError:
        raise
    except Exception as exc:
        raise ConfigurationError(
            f"the database {text!r} cannot be configured"
            if "://" not in text
            else "the database cannot be configured",
            details=[*describe_error(exc), f"named by {source}"],
        ) from exc
    raise ConfigurationError(
        f"{text!r} is not a database but a {type(value).__name__}",
        details=[f"named by {source}"],
        hint=f"name {_KINDS}",
    )


def engines_in_sight() -> list[str]:
    """Names of engines and sessionmakers in the modules that are loaded: `core.db:engine`.

    Each database once, an engine before what is bound to it.
    """
    found: dict[int, tuple[int, str]] = {}
    for module_name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is None or not is_user_file(file):
            continue
        for name, value in list(vars(module).items()):
            if (engine := _engine_of(value)) is None:
                continue
            own = getattr(value, "__module__", module_name) == module_name
            rank = (2 * (engine is not value)) + (not own)
            text = f"{module_name}:{name}"
            best = found.get(id(engine))
            # Of the names of one engine that of the module it is made in: imported from deepest.
            if best is None or (rank, -text.count(".")) < (best[0], -best[1].count(".")):
                found[id(engine)] = (rank, text)
    return [text for _, text in found.values()]


def url_of_alembic_ini(settings: Settings) -> str | None:
    """`sqlalchemy.url` of the nearest alembic.ini, if it is no placeholder."""
    for directory in dict.fromkeys((settings.directory, settings.project)):
        file = directory / "alembic.ini"
        if file.is_file():
            parser = ConfigParser({"here": str(directory)})
            try:
                parser.read(file, encoding="utf-8")
                url = parser.get("alembic", "sqlalchemy.url", fallback="")
            except (ParseError, ValueError):
                return None
            return url if "://" in url and not url.startswith("driver://") else None
    return None


def _reach(settings: Settings) -> None:
    """The app's own root is on the path by now; the project and its `src` come after it."""
    base = settings.app_dir or settings.project
    for root in (base, base / "src"):
        if Path(root).is_dir() and str(root) not in sys.path:
            sys.path.append(str(root))


def _arguments(value: Any, depth: int = 0) -> dict[str, Any] | None:
    """What `Database.configure` takes for *value*; None if it names no database."""
    from sqlalchemy import URL, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    if isinstance(value, str | URL):
        return {"db_url": value}
    if isinstance(value, Engine):
        return {"custom_engine": value}
    if isinstance(value, AsyncEngine):
        return _of_async_engine(value)
    if (engine := _engine_of(value)) is not None:
        return _arguments(engine)
    if type(value).__name__.endswith(("Dsn", "Url")):  # pydantic's
        return {"db_url": str(value)}
    if depth < 2 and (inspect.isroutine(value) or hasattr(value, "cache_info")):
        made = value()
        if inspect.iscoroutine(made):
            made.close()
            return None
        return _arguments(made, depth + 1)
    return None


def _of_async_engine(engine: AsyncEngine) -> dict[str, Any]:
    """Its URL and its `connect_args`, for an engine of each event loop, and for the sync side.

    Connections of one AsyncEngine serve one loop, and fsa runs several.
    """
    from fastapi_sqlalchemy.engines.sqlite_memory import is_in_memory

    connect = engine.sync_engine.pool._creator
    cparams = inspect.getclosurevars(connect).nonlocals.get("cparams")
    listened = engine.dialect.dispatch.do_connect
    if is_in_memory(engine.url) or cparams is None or listened:
        return {"custom_async_engine": engine}
    of_url = engine.dialect.create_connect_args(engine.url)[1]
    own = {name: value for name, value in cparams.items() if name not in of_url}
    return {"db_url": engine.url, "engine_args": {"connect_args": own} if own else None}


def _engine_of(value: Any) -> Any:
    """The engine that *value* is, or is bound to; None if there is none."""
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, async_scoped_session, async_sessionmaker
    from sqlalchemy.orm import scoped_session, sessionmaker

    if isinstance(value, scoped_session | async_scoped_session):
        value = value.session_factory
    if isinstance(value, sessionmaker | async_sessionmaker):
        value = value.kw.get("bind")
    return value if isinstance(value, Engine | AsyncEngine) else None
