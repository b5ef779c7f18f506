"""One scope: the sessions of one request or one `with db():` block."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from ..engines import fork_safety
from ..exceptions import ConcurrentUseError, ConfigurationError, MissingSessionError
from .activity import Activity, user_here
from .async_handle import AsyncSessionHandle
from .binding import Binding
from .handles import SessionHandle
from .shielding import start, wait_shielded
from .sync_handle import SyncSessionHandle
from .tracking import ENDED, shares_bind

__all__ = ["Scope", "refuse_other_loops"]

logger = logging.getLogger("fastapi_sqlalchemy")


class Scope:
    """The sessions of one request or block, made when they are first asked for.

    One object, set once in a ContextVar, is seen by every thread and task that starts inside.
    `outer` is the scope that was open before it; `asynchronous` says whether an `AsyncSession` can
    be ended here. `handles` are those of its sessions, the sync one first.
    """

    __slots__ = (
        "__weakref__",
        "_async_handle",
        "_ended",
        "_ending",
        "_inner",
        "_lock",
        "_process",
        "_session_args",
        "_sync_handle",
        "asynchronous",
        "binding",
        "handles",
        "outer",
    )

    def __init__(
        self,
        binding: Binding,
        outer: Scope | None = None,
        *,
        asynchronous: bool,
        session_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.binding = binding
        self.outer = outer = _still_open(outer) if outer is not None else None
        self.asynchronous = asynchronous
        self._session_args = session_args or {}
        self._sync_handle: SyncSessionHandle | None = None
        self._async_handle: AsyncSessionHandle | None = None
        self.handles: tuple[SessionHandle, ...] = ()
        self._lock = threading.Lock()
        self._process = fork_safety.token
        self._inner: weakref.WeakSet[Scope] | None = None
        self._ending = False
        self._ended = False
        if outer is not None:
            if outer._inner is None:
                outer._inner = weakref.WeakSet()
            outer._inner.add(self)

    def __str__(self) -> str:
        return "async with db():" if self.asynchronous else "with db():"

    @property
    def ended(self) -> bool:
        """Whether its request or block is over, or was another process's."""
        return self._ended or self._process is not fork_safety.token

    @property
    def around(self) -> Scope | None:
        """The scope that is current again when it has ended."""
        return _still_open(self.outer) if self.outer is not None else None

    @property
    def session(self) -> Session:
        """Its `Session`, the same one for every thread and task.

        Raises:
            MissingSessionError: the scope has ended, or was opened before this process forked.
        """
        handle = self._sync_handle
        if handle is None or self.ended:
            with self._lock:
                self._check_open()
                handle = self._sync_handle
                if handle is None:
                    session = self.binding.open_session(self._session_args)
                    handle = SyncSessionHandle(
                        session, self, self.binding.is_sqlite, self._on_loop_thread
                    )
                    self.binding.enter_sandbox(handle.session, handle.activity)
                    self._sync_handle = handle
                    self.handles = (handle, *self.handles)
                    self._introduce(handle.activity)
        return handle.session

    @property
    def async_session(self) -> AsyncSession:
        """Its `AsyncSession`.

        Raises:
            MissingSessionError: as for `session`, or the scope is a plain `with db():`, which
                could not await the end of an `AsyncSession`.
        """
        handle = self._async_handle
        if handle is None or self.ended:
            if not self.asynchronous:
                raise MissingSessionError(
                    "db.async_session is not available inside a plain `with db():`, which cannot "
                    "await its end. Write `async with db():`."
                )
            with self._lock:
                self._check_open()
                handle = self._async_handle
                if handle is None:
                    session = self.binding.open_async_session(self._session_args)
                    handle = AsyncSessionHandle(session, self)
                    self.binding.enter_sandbox(handle.session, handle.activity)
                    self._async_handle = handle
                    self.handles = (*self.handles, handle)
                    self._introduce(handle.activity)
        return handle.async_session

    @property
    def used(self) -> bool:
        """Whether a session was asked for."""
        return bool(self.handles)

    @property
    def holds_connections_inside(self) -> bool:
        """Whether a scope that was opened inside this one is still open, with a connection."""
        return self._inner is not None and any(
            handle.connection is not None for scope in list(self._inner) for handle in scope.handles
        )

    @property
    def uncommitted(self) -> bool:
        """Whether something was written, or is waiting to be, that the end would roll back."""
        sync_handle, async_handle = self._sync_handle, self._async_handle
        return (sync_handle is not None and sync_handle.uncommitted) or (
            async_handle is not None and async_handle.uncommitted
        )

    def end_at_once(self) -> bool:
        """End it if there is nothing to wait for, or to roll back; else False: it is still open."""
        with self._lock:
            handle = self._async_handle
            if self._sync_handle is not None or (
                handle is not None and (self.ended or not handle.closes_at_once)
            ):
                return False
            self._ending = self._ended = True
            if self.outer is not None:
                self.outer = _still_open(self.outer)
        if handle is not None:
            handle.activity.end()
            handle.close_at_once(self)
        return True

    def end(self, *, commit: bool = False) -> None:
        """End a scope without an `AsyncSession`: commit if asked to, and close the session.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the flush or the COMMIT failed; all is rolled back.
        """
        if not self._begin_end():
            return
        handle = self._sync_handle
        try:
            if commit and handle is not None and handle.session.in_transaction():
                self._refuse_if_used(handle)
                handle.session.commit()
        finally:
            self._let_nobody_in()
            if self._sync_handle is not None:
                self._sync_handle.close_here(self)

    async def aend(self, *, commit: bool = False) -> None:
        """As `end`, for both sessions; all of it is done whatever is cancelled meanwhile.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: a flush or a COMMIT failed.
            ConcurrentUseError: another task or thread has a statement under way: no COMMIT is sent.
            asyncio.CancelledError: this task was cancelled while the sessions were ended.
        """
        if not self._begin_end():
            return
        try:
            if commit:
                begun = [handle for handle in self.handles if handle.session.in_transaction()]
                for handle in begun:
                    self._refuse_if_used(handle)
                await self._commit(begun)
        finally:
            self._let_nobody_in()
            try:
                if self._sync_handle is not None:
                    await self._sync_handle.close(self)
            finally:
                if self._async_handle is not None:
                    await self._async_handle.close(self)

    async def aroll_back(self) -> None:
        """Roll back the `AsyncSession`, in bounded time; an error is logged, and `failure`."""
        if self._async_handle is not None:
            await self._async_handle.roll_back(self)

    @property
    def failure(self) -> Exception | None:
        """Why the `AsyncSession` could not be rolled back or closed; it was logged."""
        return None if self._async_handle is None else self._async_handle.failure

    @property
    def is_in_use(self) -> bool:
        """Whether another task or thread is at one of its sessions at this moment."""
        return any(handle.is_in_use for handle in self.handles)

    @property
    def has_cursor(self) -> bool:
        """Whether somebody may still read from a server-side cursor of its sessions."""
        return any(handle.activity.has_cursor for handle in self.handles)

    async def settle(self, *, commit: bool, takes_turns: bool = False) -> None:
        """Commit or roll back what the sessions have begun, and keep them usable.

        A transaction whose own `with session.begin():` block is still open is left to that block.

        Args:
            takes_turns: a COMMIT comes between the statements of whoever uses a session, and is not
                refused.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: a flush or a COMMIT failed.
            ConcurrentUseError: as for `aend`.
            asyncio.CancelledError: this task was cancelled meanwhile; the work was done.
        """
        begun = [
            handle
            for handle in self.handles
            if handle.session.in_transaction() and not handle.in_own_block
        ]
        if commit:
            for handle in begun:
                if not takes_turns or handle.activity.user is None:
                    self._refuse_if_used(handle)
                handle.activity.takes_turns = takes_turns
            try:
                await self._commit(begun)
            finally:
                for handle in begun:
                    handle.activity.takes_turns = False
        else:
            for handle in begun:
                await handle.undo(self)

    # -- how it is done ------------------------------------------------------------------------

    def _on_loop_thread(self) -> None:
        """The sync session begins in a thread that runs an event loop: a request says so."""

    def _introduce(self, activity: Activity) -> None:
        """Let a session know of those for whose end it might wait in vain."""
        binding = self.binding
        if binding.sandbox is not None or not (binding.is_sqlite or binding.is_postgresql):
            return
        if binding.is_postgresql:
            activity.first_user = user_here()
        activity.has_others = self.outer is not None
        sync_handle, async_handle = self._sync_handle, self._async_handle
        if sync_handle is None or async_handle is None:
            return
        first, second = sync_handle.activity, async_handle.activity
        if binding.is_postgresql:
            first.has_others = second.has_others = True
        elif shares_bind(sync_handle.session, async_handle.session):
            first.beside, second.beside = weakref.ref(second), weakref.ref(first)

    def _check_open(self) -> None:
        if self._ended:
            raise MissingSessionError(ENDED)
        if self._process is not fork_safety.token:
            raise MissingSessionError(
                "This scope was opened before the process forked, and its connection belongs to "
                "the parent. Open one in the child: `with db():`."
            )

    def _begin_end(self) -> bool:
        """Whether there is something to end, and nobody else is at it.

        Until the commit is over, the sessions stay within reach: event listeners may want them.
        """
        if self._process is not fork_safety.token:
            fork_safety.abandon(self.handles)
            self._sync_handle = self._async_handle = None
            self.handles = ()
            self._ending = self._ended = True
            return False
        with self._lock:
            if self._ending:
                return False
            self._ending = True
        return True

    def _refuse_if_used(self, handle: SessionHandle) -> None:
        """Refuse a COMMIT beside the statement of another task or thread.

        It would be sent in the middle of that one's work, and some drivers lose their place in the
        conversation with the server for good.
        """
        user = handle.user
        if user is not None:
            raise ConcurrentUseError(
                f"{self} is not committed: {user} still uses its session. Await that one first, "
                "or let it open a scope of its own: `with db():` or `async with db():`."
            )

    def _let_nobody_in(self) -> None:
        with self._lock:
            self._ended = True
            # Scopes that each start the next would be a chain that nothing lets go.
            self.outer = _still_open(self.outer)
        if self._sync_handle is not None:
            self._sync_handle.activity.end()
        if self._async_handle is not None:
            self._async_handle.activity.end()

    async def _commit(self, begun: Sequence[SessionHandle]) -> None:
        if len(begun) == 2:
            # One piece of work: a cancellation must not come between the two.
            await wait_shielded(start(self._commit_both(*begun)))
        elif begun:
            await begun[0].commit()

    async def _commit_both(
        self,
        first: SessionHandle,
        second: SessionHandle,
    ) -> None:
        """Flush both before either is committed, so that what can fail early does."""
        await first.flush()
        await second.flush()
        first_wrote = first.activity.has_written
        await first.commit()
        try:
            await second.commit()
        except BaseException:
            if first_wrote:
                logger.error(
                    "%s wrote through db.session and db.async_session: what db.session wrote is "
                    "committed, the commit of db.async_session failed",
                    self,
                )
            raise


def refuse_other_loops() -> None:
    """Refuse a coroutine that no asyncio runs: nothing that it opened could be closed.

    Raises:
        ConfigurationError: it runs on trio.
    """
    if asyncio._get_running_loop() is None:
        raise ConfigurationError(
            "No asyncio event loop runs this code, and SQLAlchemy's async side knows no other (a "
            "server on trio?). Serve the app on asyncio or uvloop: hypercorn -k asyncio."
        )


def _still_open(scope: Scope | None) -> Scope | None:
    """`scope`, or the first around it that has not ended."""
    while scope is not None and scope.ended:
        scope = scope.outer
    return scope
