"""What a task has committed by itself stays when it fails; no message may say it is undone."""

from __future__ import annotations

from types import TracebackType

from sqlalchemy import event
from sqlalchemy.orm import Session

__all__ = ["OwnCommits"]


class OwnCommits:
    """A context manager: counts the commits of `db` sessions that wrote, in every thread.

    Attributes:
        number: How many there were. Savepoints are none, and an engine's own transactions are not
            seen.
    """

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> OwnCommits:
        event.listen(Session, "after_commit", self._count)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        event.remove(Session, "after_commit", self._count)

    def _count(self, session: Session) -> None:
        activity = getattr(session, "fsa_activity", None)
        if activity is not None and activity.has_written and not session.in_nested_transaction():
            self.number += 1
