"""The handle of a `Session`: it is ended in a thread of our own, or where its block ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from sqlalchemy.orm import Session

from . import handles
from .activity import Activity, task_or_thread
from .connections import discard, hang_up
from .handles import SessionHandle, log_failure, log_still_used
from .shielding import in_default_thread, in_thread, wait_shielded
from .tracking import TrackedSession

__all__ = ["SyncSessionHandle"]

logger = logging.getLogger("fastapi_sqlalchemy")


class SyncSessionHandle(SessionHandle):
    """The `Session` of a scope."""

    __slots__ = ("_is_sqlite",)

    def __init__(
        self, session: Session, owner: object, is_sqlite: bool, on_loop_thread: Callable[[], None]
    ) -> None:
        super().__init__(session, Activity(owner, on_loop_thread))
        self._is_sqlite = is_sqlite

    async def close(self, who: object) -> None:
        await self._run_bounded(self.session.close, who)

    def _abandon_here(self, who: object) -> None:
        """As `abandon`, in this thread."""
        log_still_used(who, self.user or "another task or thread")
        for connection in self._connections():
            hang_up(connection)
        deadline = time.monotonic() + self._leave_timeout_s
        while self.user is not None and time.monotonic() < deadline:
            time.sleep(handles.POLL_S)
        self._close_hard()

    async def _let_go(self) -> None:
        await wait_shielded(in_thread(self._close_hard))

    def _close_hard(self) -> None:
        for connection in self._connections():
            discard(connection)
        try:
            self.session.close()
        except Exception:
            logger.debug("The session could not be closed", exc_info=True)

    def close_here(self, who: object) -> None:
        """As `close`, in this thread, for as long as it takes."""
        if self.user is not None:
            self._abandon_here(who)
            return
        self._finish(self.session.close, who)

    async def _run(self, work: Callable[[], None]) -> None:
        waits = self.pending or self.activity.user is not None or not self._ends_alike
        if self.connection is None:
            if not waits:
                work()
            else:
                await wait_shielded(in_default_thread(work))
        elif self._is_sqlite and not self.activity.wrote and not waits:
            work()
        else:
            await wait_shielded(in_thread(work))

    async def _run_unused(self, work: Callable[[], None], who: object) -> None:
        connection = self.connection
        if self._ends_alike and (
            connection is None or (self._is_sqlite and not self.activity.wrote)
        ):
            self._finish(work, who)
            return
        run = in_thread if connection is not None else in_default_thread
        future = run(lambda: self._finish(work, who))
        try:
            await wait_shielded(future, handles.ROLLBACK_TIMEOUT_S)
        finally:
            if not future.done():
                self._give_up(who, connection)

    def _finish(self, work: Callable[[], None], who: object) -> None:
        """Do `work`, a rollback or a close. If it fails, the server ends what was begun."""
        connection = self.connection
        self.activity.ender = task_or_thread()
        try:
            work()
            if self.activity.ended and self.connection is not None:
                self._end_transactions()  # a close() of its class has executed something after all
        except Exception as exc:
            if not self._given_up:
                log_failure(who, exc)
            discard(connection)
        finally:
            self.activity.ender = None

    @property
    def _ends_alike(self) -> bool:
        return isinstance(self.session, TrackedSession) and self.session.fsa_ends_alike
