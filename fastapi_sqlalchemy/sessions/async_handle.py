"""The handle of an `AsyncSession`: it is ended in a task of its own, or at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from ..engines.aiosqlite_connections import after_reads
from . import handles
from .activity import Activity, task_or_thread
from .connections import HANGS_UP, adiscard
from .deadlines import Deadlines
from .handles import SessionHandle, log_failure, log_given_up
from .shielding import collect_abandoned, start, wait_shielded
from .tracking import TrackedSession

__all__ = ["AsyncSessionHandle"]

logger = logging.getLogger("fastapi_sqlalchemy")


class AsyncSessionHandle(SessionHandle):
    """The `AsyncSession` of a scope."""

    __slots__ = ("async_session",)

    def __init__(self, async_session: AsyncSession, owner: object) -> None:
        super().__init__(async_session.sync_session, Activity(owner))
        self.async_session = async_session

    @property
    def _front(self) -> AsyncSession:
        return self.async_session

    def _end_transactions(self) -> Coroutine[Any, Any, None]:
        return greenlet_spawn(super()._end_transactions)

    async def close(self, who: object) -> None:
        if self.closes_at_once:
            self.close_at_once(who)
        else:
            await self._run_bounded(self.async_session.close, who)

    @property
    def closes_at_once(self) -> bool:
        """Whether closing it only lets its objects go: a greenlet would take longer than that."""
        return (
            self.session._transaction is None
            and not self._given_up
            and type(self.async_session).close is AsyncSession.close
            and type(self.session).close is Session.close
        )

    @property
    def closes_alike(self) -> bool:
        """Whether no `close` or `rollback` of its classes executes something."""
        async_class = type(self.async_session)
        return (
            async_class.close is AsyncSession.close
            and async_class.rollback is AsyncSession.rollback
            and isinstance(self.session, TrackedSession)
            and self.session.fsa_ends_alike
        )

    def close_at_once(self, who: object) -> None:
        """As `close`, where it `closes_at_once`."""
        try:
            self.session.close()
        except Exception as exc:
            log_failure(who, exc)

    async def _let_go(self) -> None:
        try:
            await self.async_session.close()
        except Exception:
            logger.debug("The session could not be closed", exc_info=True)

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        connection = self.connection
        is_idle = not self.pending and self.activity.user is None
        if is_idle and connection is None:
            await work()
        elif is_idle and connection is not None and self._has_only_read(connection):
            with after_reads(connection):
                await wait_shielded(start(work()))
        else:
            await wait_shielded(start(work()))

    async def _run_unused(self, work: Callable[[], Coroutine[Any, Any, None]], who: object) -> None:
        connection = self.activity.connection
        if connection is None and self.closes_alike:
            await self._finish(work, who)
            return
        if connection is not None and connection.invalidated and _is_file(connection):
            # Whoever was cancelled at a statement keeps its lock until the exception is collected.
            collect_abandoned()
        if connection is not None and self._has_only_read(connection):
            with after_reads(connection):
                await wait_shielded(start(self._finish(work, who)))
            return
        task = start(self._finish(work, who))
        try:
            await wait_shielded(task, handles.ROLLBACK_TIMEOUT_S)
        finally:
            if not task.done():
                self._given_up = True
                log_given_up(who)
                task.cancel()
                await adiscard(connection)

    async def _end_reads(self, who: object) -> None:
        connection = self.activity.connection
        if connection is None or connection.dialect.driver not in HANGS_UP:
            await super()._end_reads(who)
            return
        # In this very task: another one, and the turns of the loop until this one goes on, took 4 %
        # of a request. A cancellation meanwhile throws the connection away (SQLAlchemy does), and
        # the end of the scope closes the session.
        deadlines = Deadlines.of(loop := asyncio.get_running_loop())
        expire = partial(self._give_up, who, connection)
        deadlines.add(handles.ROLLBACK_TIMEOUT_S, expire, loop)
        try:
            await self._end_transactions()
        except Exception as exc:
            await self._failed(exc, who, connection)
        finally:
            deadlines.remove(expire)

    def _has_only_read(self, connection: Connection) -> bool:
        """Whether it is a file's, which has only been read, and its thread has nothing to do."""
        return (
            _is_file(connection)
            and self.activity.unfinished is None
            and not self.activity.may_have_written
            and not (connection.closed or connection.invalidated)
        )

    async def _finish(self, work: Callable[[], Coroutine[Any, Any, None]], who: object) -> None:
        connection = self.activity.connection
        self.activity.ender = task_or_thread()
        try:
            await work()
            if self.activity.ended and self.activity.connection is not None:
                await self._end_transactions()
        except Exception as exc:
            await self._failed(exc, who, connection)
        finally:
            self.activity.ender = None

    async def _failed(self, exc: Exception, who: object, connection: Connection | None) -> None:
        self.failure = self.failure or exc
        if not self._given_up:
            log_failure(who, exc)
        await adiscard(connection)


def _is_file(connection: Connection) -> bool:
    return connection.dialect.driver == "aiosqlite"
