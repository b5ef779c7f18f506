"""A binding: one set of arguments, the engines they mean, and the sessions made on them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from . import forks
from .activity import watched
from .arguments import EngineArguments
from .engines import Engines
from .urls import masked, parse, same_words

if TYPE_CHECKING:
    from .sandbox import Sandbox

__all__ = ["Binding", "Options"]


@dataclass(frozen=True, eq=False, repr=False)
class Options:
    """What `db.configure()` or `DBSessionMiddleware` was given, checked."""

    engine: EngineArguments
    session_args: dict[str, Any] = field(default_factory=dict)
    async_session_args: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Options: {masked(self.engine.url)}>"

    @classmethod
    def of(
        cls,
        db_url: str | URL | None = None,
        custom_engine: Engine | AsyncEngine | None = None,
        engine_args: Mapping[str, Any] | None = None,
        session_args: Mapping[str, Any] | None = None,
        async_db_url: str | URL | None = None,
        custom_async_engine: AsyncEngine | None = None,
        async_engine_args: Mapping[str, Any] | None = None,
        async_session_args: Mapping[str, Any] | None = None,
    ) -> Options:
        """The arguments as options.

        Raises:
            ValueError: neither a URL nor an engine was given (0.2.1's words).
            ConfigurationError: a URL cannot be read.
        """
        if isinstance(custom_engine, AsyncEngine):
            custom_engine, custom_async_engine = None, custom_async_engine or custom_engine
        if not (db_url or custom_engine or async_db_url or custom_async_engine):
            raise ValueError("You need to pass a db_url or a custom_engine parameter.")
        return cls(
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

    def with_url(self, url: str | URL) -> Options:
        """The same for another database: what connects to the old one only is left out."""
        replaced, wanted = self.engine, parse(url)
        engine_args = dict(replaced.engine_args)
        for name in ("creator", "async_creator", "pool"):
            engine_args.pop(name, None)
        if not same_words(replaced.url, wanted):
            engine_args.pop("connect_args", None)
        return Options(
            EngineArguments(db_url=wanted, engine_args=engine_args),
            _without_binds(self.session_args),
            _without_binds(self.async_session_args),
        )

    def matches(self, other: Options) -> bool:
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


class Binding:
    """The engines and the session factories of one `Options`.

    `holders` are the middlewares that use it; `sandbox` is the open sandbox, if there is one.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.engines = Engines(options.engine)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.holders: weakref.WeakSet[Any] = weakref.WeakSet()
        self.sandbox: Sandbox | None = None
        self._lock = threading.Lock()
        forks.forget_after_fork(self)
        self._of_blocks: dict[tuple[type[Session], bool], type[Session]] = {}
        self._sync_maker: sessionmaker[Session] | None = None
        self._async_maker: async_sessionmaker[AsyncSession] | None = None

    @property
    def url(self) -> URL:
        """The URL of the database, as the user gave it."""
        return self.options.engine.url

    def open_session(self, session_args: Mapping[str, Any]) -> Session:
        """A new `Session`. It connects when it is first used; its user gives it an `Activity`."""
        maker = self.sync_maker
        own: dict[str, Any] = _split(session_args)[0] if session_args else {}
        if "class_" in own:
            maker = sessionmaker(class_=self._watched(own.pop("class_")), **maker.kw)
        if self.sandbox is not None:
            own |= self.sandbox.session_args(self)
        elif maker.kw["bind"] is None:
            own.setdefault("bind", self.engines.sync)
        return maker(**own)

    def open_async_session(self, session_args: Mapping[str, Any]) -> AsyncSession:
        """A new `AsyncSession`; as `open_session`."""
        maker = self.async_maker
        own: dict[str, Any] = _split(session_args)[1] if session_args else {}
        if "class_" in own:
            maker = async_sessionmaker(class_=own.pop("class_"), **maker.kw)
        if "sync_session_class" in own:
            own["sync_session_class"] = self._watched(own["sync_session_class"], in_task=True)
        if self.sandbox is not None:
            return self.sandbox.open_async_session(self, maker, own)
        if maker.kw["bind"] is None:
            own.setdefault("bind", self.engines.asynchronous)
        return maker(**own)

    @property
    def sync_maker(self) -> sessionmaker[Session]:
        """The factory of the sync sessions, without an engine: making one may fail, later."""
        if self._sync_maker is None:
            own, _ = _split(self.options.session_args)
            with self._lock:
                if self._sync_maker is None:
                    own["class_"] = watched(own.get("class_", Session))
                    self._sync_maker = sessionmaker(**own)
        return self._sync_maker

    @property
    def async_maker(self) -> async_sessionmaker[AsyncSession]:
        """The factory of the async sessions, without an engine: that is the running loop's."""
        if self._async_maker is None:
            _, own = _split(self.options.session_args)
            own = {"expire_on_commit": False, **own, **self.options.async_session_args}
            class_: type[AsyncSession] = own.get("class_", AsyncSession)
            sync_class = own.get("sync_session_class", class_.sync_session_class)
            with self._lock:
                if self._async_maker is None:
                    own["sync_session_class"] = watched(sync_class, in_task=True)
                    self._async_maker = async_sessionmaker(**own)
        return self._async_maker

    def _watched(self, class_: type[Session], *, in_task: bool = False) -> type[Session]:
        """`class_` of one block's `session_args`, watched: one class however many blocks."""
        made = self._of_blocks.get((class_, in_task))
        if made is None:
            made = self._of_blocks[class_, in_task] = watched(class_, in_task=in_task)
        return made

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock, and is not there to give it back."""
        self._lock = threading.Lock()

    def dispose(self) -> None:
        """Close the idle sync connections, and end an in-memory database."""
        self.engines.dispose()

    async def adispose(self) -> None:
        """As `dispose`, with the async connections of the running event loop."""
        await self.engines.adispose()


def _without_binds(session_args: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in session_args.items() if name not in ("bind", "binds")}


def _split(session_args: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`session_args` for a `Session`, and for an `AsyncSession`.

    Both get what suits both. `class_` goes to the side that it subclasses, `bind` and `binds` to
    the side whose engines they are.
    """
    own, other = dict(session_args), dict(session_args)
    for name in ("class_", "bind", "binds", "sync_session_class"):
        value = session_args.get(name)
        if value is not None:
            del (own if _is_async(value) or name == "sync_session_class" else other)[name]
    return own, other


def _is_async(value: Any) -> bool:
    if isinstance(value, type):
        return issubclass(value, AsyncSession)
    if isinstance(value, Mapping):
        return all(_is_async(engine) for engine in value.values())
    return not isinstance(value, Engine) and hasattr(value, "sync_engine")
