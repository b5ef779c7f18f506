"""The surroundings of every env.py: the app's URL, its models, and tables to leave alone."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar

from alembic import command
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection
from sqlalchemy.exc import InvalidRequestError, MissingGreenlet

from fastapi_sqlalchemy import Database
from fsa_cli.database.identity import address, same_database
from fsa_cli.exceptions import ConfigurationError
from fsa_cli.migrations.comparison import options
from fsa_cli.migrations.exclusive import LockTimeout
from fsa_cli.migrations.own_tables import is_own
from fsa_cli.migrations.scripts import Scripts

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import MetaData

T = TypeVar("T")


@dataclass
class AlembicCall:
    """One call of Alembic on one database.

    Attributes:
        metadata: Returns the models, for an env.py that names none.
        on_step: Called with each migration that was applied.
        x: What `context.get_x_argument()` gives an env.py.
        lock_timeout: How long its statements wait for locks; None: as long as it takes.
        as_if_empty: Whether models are compared with an empty database, whatever is in this one.
        configured: Whether an env.py has come to its `context.configure`.
    """

    scripts: Scripts
    database: Database
    metadata: Callable[[], list[MetaData] | None]
    on_step: Callable[[Any], None] = lambda step: None
    output: Any = None
    x: Sequence[str] = ()
    lock_timeout: LockTimeout | None = None
    as_if_empty: bool = False
    configured: bool = field(default=False, init=False)

    def run(self, work: Callable[[Config], Any]) -> Any:
        """Do *work*, which uses Alembic's commands or `look`.

        A project's env.py makes an engine from the URL, a sync or an async one. It is given the
        app's URL as it is; and, if its engine is of the other kind, that of the other kind.
        """
        urls = self._urls() if self.scripts.has_environment else [None]
        for url in urls:
            config = self._config(url)
            try:
                with (
                    contextlib.redirect_stdout(sys.stderr),
                    self._sharing(config),
                    self._own_environment(),
                ):
                    return work(config)
            except (MissingGreenlet, InvalidRequestError):
                if self.configured or url is urls[-1]:
                    raise
        raise AssertionError("there is always a URL")

    def look(self, config: Config, work: Callable[[tuple[str, ...], ScriptDirectory], T]) -> T:
        """The value of *work* on the revisions of the database, and the scripts.

        It happens in the migration context, for scripts whose modules use `op` when they are read.
        """
        script = ScriptDirectory.from_config(config)
        values: list[T] = []

        def note(revisions: tuple[str, ...], context: Any) -> list[Any]:
            values.append(work(tuple(revisions), script))
            return []

        with _environment(self, config, script, fn=note, dont_mutate=True):
            script.run_env()
        if not values:
            raise ConfigurationError(
                "the env.py of the migrations does not call context.run_migrations()"
            )
        return values[-1]

    def stepped(self, step: Any) -> None:
        """Alembic has applied a migration."""
        if self.lock_timeout is not None:
            self.lock_timeout.stepped()
        self.on_step(step)

    def _config(self, url: URL | None) -> Config:
        config = self.scripts.config({"database": self.database}, output=self.output, x=self.x)
        if url is not None:
            text = url.render_as_string(hide_password=False)
            config.set_main_option("sqlalchemy.url", text.replace("%", "%%"))
        return config

    def _urls(self) -> list[URL | None]:
        """The app's URL, and that of its other side if there is one."""
        from fastapi_sqlalchemy.engines.urls import serves, url_for
        from fastapi_sqlalchemy.exceptions import ConfigurationError as NoSuchSide

        given = self.database.url
        assert given is not None
        found: list[URL | None] = [given]
        with contextlib.suppress(NoSuchSide):
            found.append(url_for(given, "async" if serves(given, "sync") else "sync")[0])
        return found

    @contextlib.contextmanager
    def _sharing(self, config: Config) -> Iterator[None]:
        """Offer a connection as `config.attributes["connection"]`, where Alembic's cookbook has it.

        https://alembic.sqlalchemy.org/en/latest/cookbook.html#connection-sharing
        """
        from fastapi_sqlalchemy.exceptions import ConfigurationError as NoSuchSide

        if not self.scripts.has_environment or self.output is not None:
            yield
            return
        try:
            engine = self.database.engine
        except NoSuchSide:
            yield
            return
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            yield

    @contextlib.contextmanager
    def _own_environment(self) -> Iterator[None]:
        """Have Alembic's commands use `_environment`.

        They leave no other way to add to what a project's env.py configures.
        """
        theirs = getattr(command, "EnvironmentContext")  # noqa: B009
        setattr(command, "EnvironmentContext", partial(_environment, self))  # noqa: B010
        try:
            yield
        finally:
            setattr(command, "EnvironmentContext", theirs)  # noqa: B010


@contextlib.contextmanager
def offline(database: Database) -> Iterator[None]:
    """A migration context without a connection, for scripts that use `op` when they are read."""
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext

    url = database.url
    name = url.get_backend_name() if url is not None else "default"
    with Operations.context(MigrationContext.configure(dialect_name=name, opts={"as_sql": True})):
        yield


def _environment(call: AlembicCall, *args: Any, **kwargs: Any) -> EnvironmentContext:
    """Alembic's environment, whose `configure` also heeds *call*: the models if an env.py names
    none, fsa's tables left alone, each step reported.

    No subclass: `alembic.context` hands calls on to instances of Alembic's own class only.
    """
    environment = EnvironmentContext(*args, **kwargs)
    theirs = environment.configure
    names = signature(theirs)

    def configure(*args: Any, **kwargs: Any) -> None:
        given = dict(names.bind(*args, **kwargs).arguments)
        given.update(given.pop("kw", {}))
        call.configured = True
        # Reported by `on_step`; an alembic.ini would report it twice.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        if given.get("target_metadata") is None:
            given["target_metadata"] = call.metadata()
        if (connection := given.get("connection")) is not None:
            _refuse_another_database(connection, call.database)
            if call.lock_timeout is not None:
                call.lock_timeout.apply_to(connection)
            if not call.scripts.has_environment:
                given |= options(given["target_metadata"] or [], connection)
        if call.as_if_empty:
            given["include_name"] = lambda name, kind, parents: kind != "table"
        given["include_object"] = _without_own_tables(given.get("include_object"))
        hears = given.get("on_version_apply") or ()
        own = hears if isinstance(hears, tuple) else (hears,)
        given["on_version_apply"] = (*own, lambda *, step, **_: call.stepped(step))
        theirs(**given)

    setattr(environment, "configure", configure)  # noqa: B010
    return environment


def _without_own_tables(theirs: Callable[..., bool] | None) -> Callable[..., bool]:
    def include(each: Any, name: str | None, kind: str, *more: Any) -> bool:
        if kind == "table" and is_own(name):
            return False
        return theirs is None or theirs(each, name, kind, *more)

    return include


def _refuse_another_database(connection: Connection, database: Database) -> None:
    """Refuse an env.py that connects elsewhere: the person agreed to the app's database."""
    here, there = database.url, connection.engine.url
    if here is None or same_database(here, there) or _is_engine_of(database, connection):
        return
    raise ConfigurationError(
        "the env.py of the migrations connects to another database than the app",
        details=[f"env.py  {address(there)}", f"app     {address(here)}"],
        hint='take the URL from config.get_main_option("sqlalchemy.url"): it is the app\'s there',
    )


def _is_engine_of(database: Database, connection: Connection) -> bool:
    """Whether it is the app's own: an in-memory database is named by no URL."""
    from fastapi_sqlalchemy.exceptions import ConfigurationError as NoSuchSide

    try:
        return connection.engine is database.engine
    except NoSuchSide:
        return False
