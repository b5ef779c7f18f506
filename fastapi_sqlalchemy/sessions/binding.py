"""A binding: one set of arguments, the engines they mean, and the sessions made on them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import Any, Protocol

from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from ..configuration import Configuration
from ..engines import fork_safety
from ..engines.engines import Engines
from .activity import Activity
from .tracking import tracked

__all__ = ["Binding", "OpenSandbox"]


class OpenSandbox(Protocol):
    """What a binding asks of the sandbox that holds its database."""

    def session_args(self, binding: Binding) -> dict[str, Any]:
        """What a `Session` is made with, inside."""
        raise NotImplementedError

    def open_async_session(
        self, binding: Binding, maker: async_sessionmaker[AsyncSession], own: dict[str, Any]
    ) -> AsyncSession:
        """An `AsyncSession`, inside."""
        raise NotImplementedError

    def hold(self, binding: Binding) -> None:
        """Capture the engines of `binding`."""

    def main_for(self, binding: Binding, bind: Any) -> Any:
        """The sandbox's connection for what a session would connect with."""
        raise NotImplementedError

    def awaitable(self, result: Any) -> Any:
        """A sync driver's result as an `AsyncSession`'s."""
        raise NotImplementedError

    def acquire(self, label: str) -> None:
        """Wait until nobody else is inside; for code in a thread."""

    async def aacquire(self, label: str) -> None:
        """As `acquire`, on an event loop."""

    def release(self) -> None:
        """Let the next one in."""


class Binding:
    """The engines and the session factories of one `Configuration`.

    `holders` are the middlewares that use it; `sandbox` is the open sandbox, if there is one.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.engines = Engines(configuration.engine)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.is_postgresql = self.url.get_backend_name() == "postgresql"
        self.holders: weakref.WeakSet[Any] = weakref.WeakSet()
        self._sandbox: OpenSandbox | None = None
        self._lock = threading.Lock()
        fork_safety.forget_after_fork(self)
        self._of_blocks: dict[tuple[type[Session], bool], type[Session]] = {}
        self._sync_maker: sessionmaker[Session] | None = None
        self._async_maker: async_sessionmaker[AsyncSession] | None = None

    @property
    def url(self) -> URL:
        """The URL of the database, as the user gave it."""
        return self.configuration.engine.url

    @property
    def sandbox(self) -> OpenSandbox | None:
        """The open sandbox, if there is one; setting it captures the engines."""
        return self._sandbox

    @sandbox.setter
    def sandbox(self, sandbox: OpenSandbox | None) -> None:
        self._sandbox = sandbox
        if sandbox is not None:
            sandbox.hold(self)

    def enter_sandbox(self, session: Session, activity: Activity) -> None:
        """Have `session` connect by the open sandbox, if there is one, whatever it chooses."""
        sandbox = self._sandbox
        if sandbox is not None:
            choose = session.get_bind

            def get_bind(*args: Any, **kwargs: Any) -> Any:
                return sandbox.main_for(self, choose(*args, **kwargs))

            vars(session)["get_bind"] = get_bind
            session.twophase = False  # what it begins is a savepoint
            activity.awaitable = sandbox.awaitable

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
        maker = self._async_maker or self.async_maker
        own: dict[str, Any] = _split(session_args)[1] if session_args else {}
        if "class_" in own:
            maker = async_sessionmaker(class_=own.pop("class_"), **maker.kw)
        if "sync_session_class" in own:
            own["sync_session_class"] = self._watched(own["sync_session_class"], in_task=True)
        if self._sandbox is not None:
            return self._sandbox.open_async_session(self, maker, own)
        if maker.kw["bind"] is None:
            own.setdefault("bind", self.engines.asynchronous)
        if session_args:
            return maker(**own)
        return maker.class_(**{**maker.kw, **own})  # as the factory does, in less time

    @property
    def sync_maker(self) -> sessionmaker[Session]:
        """The factory of the sync sessions, without an engine: making one may fail, later."""
        if self._sync_maker is None:
            own, _ = _split(self.configuration.session_args)
            with self._lock:
                if self._sync_maker is None:
                    own["class_"] = tracked(own.get("class_", Session))
                    self._sync_maker = sessionmaker(**own)
        return self._sync_maker

    @property
    def async_maker(self) -> async_sessionmaker[AsyncSession]:
        """The factory of the async sessions, without an engine: that is the running loop's."""
        if self._async_maker is None:
            _, own = _split(self.configuration.session_args)
            own = {"expire_on_commit": False, **own, **self.configuration.async_session_args}
            class_: type[AsyncSession] = own.get("class_", AsyncSession)
            sync_class = own.get("sync_session_class", class_.sync_session_class)
            with self._lock:
                if self._async_maker is None:
                    own["sync_session_class"] = tracked(sync_class, in_task=True)
                    self._async_maker = async_sessionmaker(**own)
        return self._async_maker

    def _watched(self, class_: type[Session], *, in_task: bool = False) -> type[Session]:
        """`class_` of one block's `session_args`, tracked: one class however many blocks."""
        made = self._of_blocks.get((class_, in_task))
        if made is None:
            made = self._of_blocks[class_, in_task] = tracked(class_, in_task=in_task)
        return made

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock, and is not there to give it back."""
        self._lock = threading.Lock()


def _split(session_args: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`session_args` for a `Session`, and for an `AsyncSession`.

    Both get what suits both. `class_` goes to the one that it subclasses, `bind` and `binds` to
    the one whose engines they are.
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
