"""What the user gave to say which database, and how to connect to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool, QueuePool, SingletonThreadPool
from sqlalchemy.util import get_cls_kwargs

from ..exceptions import ConfigurationError
from .connect_args import connect_args_for
from .urls import Side, masked, serves, url_for

__all__ = ["EngineArguments"]


@dataclass(frozen=True, eq=False, repr=False)
class EngineArguments:
    """One database: a URL or an engine for each side, and what goes to create_engine()."""

    db_url: URL | None = None
    custom_engine: Engine | None = None
    engine_args: dict[str, Any] = field(default_factory=dict)
    async_db_url: URL | None = None
    custom_async_engine: AsyncEngine | None = None
    async_engine_args: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<EngineArguments: {masked(self.url)}>"

    @property
    def url(self) -> URL:
        """The database that these arguments mean, as the user said it."""
        if self.custom_engine is not None:
            return self.custom_engine.url
        if self.db_url is not None:
            return self.db_url
        if self.custom_async_engine is not None:
            return self.custom_async_engine.url
        assert self.async_db_url is not None
        return self.async_db_url

    def with_args(
        self, engine_args: Mapping[str, Any] | None, async_engine_args: Mapping[str, Any] | None
    ) -> EngineArguments:
        """The same database with other arguments, where any are given; else this object."""
        if not engine_args and not async_engine_args:
            return self
        return replace(
            self,
            engine_args=dict(engine_args or self.engine_args),
            async_engine_args=dict(async_engine_args or self.async_engine_args),
        )

    def url_of(self, side: Side) -> tuple[URL, dict[str, Any]]:
        """The URL that serves `side`, and the connect arguments that its translation needs."""
        given = (self.db_url, self.async_db_url)
        own, other = given if side == "sync" else given[::-1]
        url = own or other
        if url is None:
            argument, attribute = (
                ("db_url= or custom_engine=", "db.session")
                if side == "sync"
                else ("async_db_url= or custom_async_engine=", "db.async_session")
            )
            raise ConfigurationError(
                f"{attribute} needs {'a sync' if side == 'sync' else 'an async'} engine, and only "
                f"a custom engine of the other kind was given. Pass {argument} too."
            )
        return url_for(url, side)

    def arguments_of(self, side: Side, url: URL) -> dict[str, Any]:
        """`engine_args` as far as they suit `side`, then what was given for that side alone.

        Where both follow from an async driver's URL, what that side connects with is the sync
        side's too.
        """
        arguments = dict(self.engine_args)
        native = self.db_url or self.async_db_url
        is_only_url = not (self.db_url and self.async_db_url)
        if side == "sync" and is_only_url and native is not None and not serves(native, "sync"):
            of_async = {"connect_args": self.async_engine_args.get("connect_args", {})}
            arguments = {**of_async, **arguments}
        if native is not None and native.drivername != url.drivername:
            own = self.async_engine_args if side == "async" else {}
            if "connect_args" in arguments and "connect_args" not in own:
                arguments["connect_args"] = connect_args_for(arguments["connect_args"], native, url)
            # Words of the other dialect alone: psycopg2's executemany_mode.
            for name in _dialect_arguments(native) - _dialect_arguments(url):
                arguments.pop(name, None)
        if native is None or ("sync" if serves(native, "sync") else "async") != side:
            self._refuse_connections(side, arguments)
        poolclass = arguments.get("poolclass")
        if poolclass is not None and not _suits(poolclass, side):
            del arguments["poolclass"]
        if side == "async":
            arguments.update(self.async_engine_args)
        return arguments

    def _refuse_connections(self, side: Side, arguments: dict[str, Any]) -> None:
        """Take the other side's way to connect out of `arguments`, if this one has its own."""
        has_own = bool(self.async_db_url or "async_creator" in self.async_engine_args)
        for name in ("creator", "async_creator", "pool", "module", "dialect"):
            if arguments.pop(name, None) is not None and side == "async" and not has_own:
                raise ConfigurationError(
                    f"engine_args has {name!r}, which connects db.session. db.async_session would "
                    "connect by the URL instead, maybe to another database: say how, with "
                    "async_db_url=... or async_engine_args={'async_creator': ...}."
                )


def _dialect_arguments(url: URL) -> set[str]:
    return set(get_cls_kwargs(url.get_dialect()))


def _suits(poolclass: type[Pool], side: Side) -> bool:
    if issubclass(poolclass, AsyncAdaptedQueuePool):
        return side == "async"
    return side == "sync" or not issubclass(poolclass, (QueuePool, SingletonThreadPool))
