"""Import the app, configure its databases from it, and import its tasks."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fsa_cli.database import connections
from fsa_cli.database.identity import same_database
from fsa_cli.exceptions import (
    AppLoadError,
    ConfigurationError,
    DatabaseUnreachable,
    FsaError,
    NoApp,
    UsageError,
)
from fsa_cli.project.app_discovery import Target, searched, targets
from fsa_cli.project.app_import import app_of, load_module
from fsa_cli.project.dotenv import export
from fsa_cli.project.named_databases import configure, engines_in_sight, url_of_alembic_ini
from fsa_cli.project.settings import Settings
from fsa_cli.terminal.user_code import describe_error

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from fastapi_sqlalchemy import Database


@dataclass(frozen=True)
class LoadedApp:
    """The app, with `db` configured and its tasks registered."""

    app: Starlette
    target: str
    """`module:attr`."""
    found: str
    """Its source, for messages."""
    databases: Mapping[str, Database]
    url_sources: Mapping[str, str] = field(default_factory=dict)
    """The source of each database's URL."""
    task_modules: tuple[str, ...] = ()
    searched: bool = False
    """Whether it was found by reading the sources."""
    failure: FsaError | None = None
    """Why the app, or a part of the tasks, is not there: it `may_fail`."""

    def database(self, name: str = "default") -> Database:
        """The app's database of that name.

        Raises:
            ConfigurationError: The app has no database.
            UsageError: It has others.
        """
        if name in self.databases:
            return self.databases[name]
        if not self.databases:
            raise self.no_database()
        raise UsageError(
            f"the app {self.target} has no database {name!r}",
            hint=f"it has {', '.join(self.databases)}",
        )

    def no_database(self) -> ConfigurationError:
        """What to say where the app has none, and how it gets one."""
        seen = engines_in_sight()
        line = f'[tool.fsa] database = "{seen[0] if seen else "core.db:engine"}"'
        return ConfigurationError(
            f"the app {self.target} has no database",
            details=[self._why_no_database(), *(f"there is {name}" for name in seen[:3])],
            hint=f"write {line} in pyproject.toml"
            if seen
            else f'app.add_middleware(DBSessionMiddleware, db_url="..."), FSA_DB_URL, or {line}',
        )

    def _why_no_database(self) -> str:
        from fastapi_sqlalchemy import DBSessionMiddleware

        classes: list[object] = [entry.cls for entry in self.app.user_middleware]
        if DBSessionMiddleware in classes:
            return "its DBSessionMiddleware has no db_url, and it does not call db.configure"
        return "it has no DBSessionMiddleware, and it does not call db.configure"

    def unreachable(self, error: BaseException) -> FsaError | None:
        """The error to raise if *error* means that a database cannot be reached; None if not."""
        return connections.unreachable(error, self.databases, self.url_sources)


_current: list[tuple[LoadedApp, Settings]] = []


def current() -> tuple[LoadedApp, Settings] | None:
    """The app that `fsa` has loaded in this process, and its settings; None in a web server."""
    return _current[-1] if _current else None


def load(settings: Settings, *, needs_app: bool = True, may_fail: bool = False) -> LoadedApp:
    """Find and import the app, bind its databases, import its tasks.

    What the app prints meanwhile goes to stderr. The variables of the env file are put into the
    environment first; none that is set is replaced.

    Args:
        needs_app: If not, and there is none, a database that the settings, FSA_DB_URL or an
            alembic.ini name is enough.
        may_fail: So are, for who looks at the ledger alone, FSA_DB_URL or `ledger_url` where the
            app cannot be imported, and the app where its tasks cannot.

    Raises:
        AppLoadError: The app was not found, or failed while it was imported.
        ConfigurationError: Its databases are configured wrongly.
    """
    exported = export(settings.variables)
    from sqlalchemy import Engine

    connections.watch(Engine)
    failure: FsaError | None = None
    with contextlib.redirect_stdout(sys.stderr), _without_collections():
        try:
            target, app = _app(settings, needs_app)
        except (AppLoadError, DatabaseUnreachable) as exc:
            by_sqlalchemy = type(exc.__cause__).__module__.startswith("sqlalchemy.")
            if by_sqlalchemy or isinstance(exc, DatabaseUnreachable):
                exc.details += tuple(_urls_of_env_file(exported, settings))
            if may_fail and (databases := _named_by_settings(settings)):
                return LoadedApp(*_no_app(settings), databases, failure=exc)
            if may_fail:
                exc.details += ("without the app: FSA_LEDGER_URL=... shows the ledger",)
            raise
        databases, sources = _bind(app, settings, exported, has_app=bool(target.module))
        try:
            modules = _tasks(target, settings)
        except (AppLoadError, DatabaseUnreachable) as exc:
            if not may_fail:
                raise
            failure, modules = exc, ()
    loaded = LoadedApp(
        *(app, target.text, target.found, databases, sources, modules, target.searched),
        failure=failure,
    )
    if failure is None:  # else it is not known what the tasks are
        _current[:] = [(loaded, settings)]
    return loaded


def _app(settings: Settings, needs_app: bool) -> tuple[Target, Starlette]:
    """The app; an empty one in its place if it is not needed, and a database is named."""
    places = targets(settings)
    try:
        return app_of(places, lambda: searched(settings, places))
    except NoApp:
        named = settings.databases or settings.database_urls or url_of_alembic_ini(settings)
        if needs_app or not named:
            raise
    root = settings.app_dir or settings.project
    app, _, found = _no_app(settings)
    return Target("", None, False, root, found), app


def _no_app(settings: Settings) -> tuple[Starlette, str, str]:
    """What stands where there is none: an empty app, its name, and how it was found."""
    from starlette.applications import Starlette

    return Starlette(), settings.app or "", "nothing: there is none"


def _named_by_settings(settings: Settings) -> dict[str, Database]:
    """The databases of which the settings have the URL, or else the ledger's."""
    from fastapi_sqlalchemy import Database

    urls = dict(settings.database_urls)
    if not urls and settings.ledger_url:
        urls = {settings.database: settings.ledger_url}
    databases = {}
    for name, url in urls.items():
        databases[name] = Database(name)
        databases[name].configure(db_url=url)
    return databases


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """An import makes next to no garbage, and a tenth of its time goes into looking for some."""
    before, none = gc.get_threshold(), (0, 0, 0)
    gc.set_threshold(*none)
    try:
        yield
    finally:
        gc.freeze()  # or the next one would look through all of it: 30 ms
        if gc.get_threshold() == none:  # if not, the app has set its own
            gc.set_threshold(*before)


def _bind(
    app: Starlette, settings: Settings, exported: Mapping[str, str], *, has_app: bool
) -> tuple[dict[str, Database], dict[str, str]]:
    from fastapi_sqlalchemy.app_binding import bind_app

    urls = settings.database_urls
    try:
        databases = bind_app(app, urls)
        taken = _name_databases(databases, settings, has_app)
    except FsaError:
        raise
    except Exception as exc:
        given = [
            f"the URL of {name} is from {settings.sources[f'database_urls.{name}']}"
            for name in urls
        ]
        raise ConfigurationError(
            "the app's database cannot be configured",
            details=[*describe_error(exc), *(given or _urls_of_env_file(exported, settings))],
            hint=None
            if urls
            else "pass db_url to DBSessionMiddleware or db.configure, or set FSA_DB_URL",
        ) from exc
    unknown = urls.keys() - databases.keys()
    if unknown:
        name = min(unknown)
        raise ConfigurationError(
            f"the app has no database {name!r}",
            details=[f"named by {settings.sources[f'database_urls.{name}']}"],
            hint=f"it has {', '.join(databases) or 'none'}",
        )
    sources = {
        name: settings.sources.get(f"database_urls.{name}")
        or taken.get(name)
        or _variable_of(database, exported, settings)
        or "the app"
        for name, database in databases.items()
    }
    return databases, sources


def _name_databases(
    databases: dict[str, Database], settings: Settings, has_app: bool
) -> dict[str, str]:
    """Add what `[tool.fsa] database` names, and say where from. Without an app: an alembic.ini.

    Raises:
        ConfigurationError: The app has given `db` a database of that name itself.
    """
    from fastapi_sqlalchemy import Database, db

    sources: dict[str, str] = {}
    for name, text in settings.databases.items():
        if name in settings.database_urls:
            if name not in databases:
                databases[name] = db if name == db.name else Database(name)
                databases[name].configure(db_url=settings.database_urls[name])
            continue
        if name in databases:
            raise ConfigurationError(
                f"there are two databases {name!r}: the app's own, and {text}",
                details=[f"named by {settings.sources[f'databases.{name}']}"],
                hint="remove one of them, or write a table with another name",
            )
        database = db if name == db.name else Database(name)
        configure(database, text, settings)
        databases[name] = database
        sources[name] = settings.sources[f"databases.{name}"]
    if not databases and not has_app and (url := url_of_alembic_ini(settings)):
        db.configure(db_url=url)
        databases[db.name] = db
        sources[db.name] = "sqlalchemy.url in alembic.ini"
    return sources


def _urls_of_env_file(exported: Mapping[str, str], settings: Settings) -> Iterator[str]:
    """A line for each variable of the env file that the app may take its URL from."""
    for name, value in exported.items():
        if name.endswith(("URL", "URI", "DSN")) or "://" in value:
            yield f"{name} is from {settings.env_file}"


def _variable_of(database: Database, exported: Mapping[str, str], settings: Settings) -> str | None:
    """The variable of the env file that the app takes the URL of *database* from, if one is."""
    from fastapi_sqlalchemy.engines.urls import parse
    from fastapi_sqlalchemy.exceptions import DBSessionError

    for name, value in exported.items():
        if "://" in value:
            with contextlib.suppress(DBSessionError):
                if same_database(parse(value), database.url):
                    return f"{name} in {settings.env_file}"
    return None


def _tasks(target: Target, settings: Settings) -> tuple[str, ...]:
    modules = settings.tasks
    if modules is None and not target.module:
        modules = ()
    if modules is None:
        package = sys.modules[target.module].__package__
        name = f"{package}.tasks" if package else "tasks"
        beside = target.root / "tasks.py", target.root / "tasks" / "__init__.py"
        exists = importlib.util.find_spec(name) if package else any(p.is_file() for p in beside)
        modules = (name,) if exists else ()
    found = settings.sources["tasks"]
    for name in modules:
        by = "the app's package" if found == "default" else found
        load_module(name, replace(target, found=by), f"the tasks {name!r}")
    return modules
