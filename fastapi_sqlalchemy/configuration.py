"""What the user said: which database, how to connect, and when a request commits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, Literal, TypedDict

from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from .engines.arguments import EngineArguments
from .engines.connect_args import connect_args_for
from .engines.urls import masked, parse
from .exceptions import ConfigurationError

__all__ = ["ARGUMENTS", "UNSET", "Configuration", "Options", "Unset", "refuse_unknown"]


class Unset(Enum):
    """The type of `UNSET`."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


#: An argument that was not given. One that is given counts, also if it equals the default.
UNSET: Final[Literal[Unset.UNSET]] = Unset.UNSET


class Options(TypedDict, total=False):
    """The arguments of `Database.configure` and `DBSessionMiddleware` that go by name only."""

    async_db_url: str | URL | None
    custom_async_engine: AsyncEngine | None
    async_engine_args: Mapping[str, Any] | None
    async_session_args: Mapping[str, Any] | None
    rollback_from_status: int | Unset | None


@dataclass(frozen=True, eq=False, repr=False)
class Configuration:
    """What `db.configure()` or `DBSessionMiddleware` was given, checked.

    `commit_on_exit` and `rollback_from_status` are those of a request.
    """

    engine: EngineArguments
    session_args: dict[str, Any]
    async_session_args: dict[str, Any]
    commit_on_exit: bool = False
    rollback_from_status: int | None = 400

    def __repr__(self) -> str:
        return f"<Configuration: {masked(self.engine.url)}>"

    @classmethod
    def of(
        cls,
        db_url: str | URL | None = None,
        custom_engine: Engine | AsyncEngine | None = None,
        engine_args: Mapping[str, Any] | None = None,
        session_args: Mapping[str, Any] | None = None,
        commit_on_exit: bool | Unset = UNSET,
        *,
        async_db_url: str | URL | None = None,
        custom_async_engine: AsyncEngine | None = None,
        async_engine_args: Mapping[str, Any] | None = None,
        async_session_args: Mapping[str, Any] | None = None,
        rollback_from_status: int | Unset | None = UNSET,
        base: Configuration | None = None,
    ) -> Configuration:
        """The arguments, checked.

        Args:
            base: what holds for the arguments that are not given, if they name no database.

        Raises:
            ValueError: neither a URL nor an engine was given, nor a `base` (0.2.1's words).
            ConfigurationError: a URL cannot be read, or an argument cannot work.
        """
        for name, given in (
            ("session_args", session_args),
            ("async_session_args", async_session_args),
        ):
            if given and given.get("autocommit"):
                raise ConfigurationError(
                    f"{name} has autocommit, which sessions of SQLAlchemy 2 do not have. For "
                    "connections that commit each statement: "
                    "engine_args={'isolation_level': 'AUTOCOMMIT'}."
                )
        if isinstance(custom_engine, AsyncEngine):
            custom_engine, custom_async_engine = None, custom_async_engine or custom_engine
        for engine in (custom_engine, custom_async_engine):
            if engine is not None:
                parse(engine.url)
        if db_url or custom_engine or async_db_url or custom_async_engine:
            configuration = cls(
                EngineArguments(
                    db_url=parse(db_url) if db_url else None,
                    custom_engine=custom_engine,
                    engine_args=dict(engine_args or {}),
                    async_db_url=parse(async_db_url) if async_db_url else None,
                    custom_async_engine=custom_async_engine,
                    async_engine_args=dict(async_engine_args or {}),
                ),
                dict(session_args or {}),
                dict(async_session_args or {}),
            )
        elif base is not None:
            configuration = replace(
                base,
                engine=base.engine.with_args(engine_args, async_engine_args),
                session_args=dict(session_args or base.session_args),
                async_session_args=dict(async_session_args or base.async_session_args),
            )
        else:
            raise ValueError("You need to pass a db_url or a custom_engine parameter.")
        if commit_on_exit is not UNSET:
            configuration = replace(configuration, commit_on_exit=commit_on_exit)
        if rollback_from_status is not UNSET:
            configuration = replace(configuration, rollback_from_status=rollback_from_status)
        return configuration

    def with_url(self, url: str | URL) -> Configuration:
        """The same for another database: what connects to the old one only is left out."""
        replaced, wanted = self.engine, parse(url)
        engine_args = dict(replaced.engine_args)
        for name in ("creator", "async_creator", "pool"):
            engine_args.pop(name, None)
        if replaced.url.get_backend_name() != wanted.get_backend_name():
            engine_args.pop("connect_args", None)
        elif "connect_args" in engine_args:
            engine_args["connect_args"] = connect_args_for(
                engine_args["connect_args"], replaced.url, wanted
            )
        return replace(
            self,
            engine=EngineArguments(db_url=wanted, engine_args=engine_args),
            session_args=_without_binds(self.session_args),
            async_session_args=_without_binds(self.async_session_args),
        )

    def changes_nothing_of(self, base: Configuration) -> bool:
        """Whether it was made on `base`, from arguments that leave the database as it is."""
        return self.engine is base.engine and self.means_database_of(base)

    def means_database_of(self, other: Configuration) -> bool:
        """Whether `other` means the same engines and sessions; custom engines by identity."""
        mine, others = self.engine, other.engine
        return (
            mine.custom_engine is others.custom_engine
            and mine.custom_async_engine is others.custom_async_engine
            and mine.db_url == others.db_url
            and mine.async_db_url == others.async_db_url
            and mine.engine_args == others.engine_args
            and mine.async_engine_args == others.async_engine_args
            and self.session_args == other.session_args
            and self.async_session_args == other.async_session_args
        )


#: The names of all arguments, those that `Configuration.of` takes by position first.
ARGUMENTS: Final = (
    "db_url",
    "custom_engine",
    "engine_args",
    "session_args",
    "commit_on_exit",
    *Options.__annotations__,
)


def refuse_unknown(options: Mapping[str, Any], callee: str) -> None:
    """Say of an argument that is not known what Python would say of it for `callee`.

    Raises:
        TypeError: one of `options` is none of `Options`.
    """
    for name in options:
        if name not in Options.__annotations__:
            raise TypeError(f"{callee}() got an unexpected keyword argument {name!r}")


def _without_binds(session_args: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in session_args.items() if name not in ("bind", "binds")}
