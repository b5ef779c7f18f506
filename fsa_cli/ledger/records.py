"""What goes into the ledger and comes out of it: instants, runs, claims, outcomes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

__all__ = [
    "EARLY_MS",
    "SCHEDULED",
    "SENT_AGAIN_MS",
    "CatchUp",
    "ClaimResult",
    "ClaimedRun",
    "Due",
    "ExpectedInstant",
    "QueueClaim",
    "RegisteredTask",
    "RunOutcome",
]


#: The slot of what the schedule starts; a manual run has its own id there.
SCHEDULED = "S"
#: How far ahead of the database's clock an instant may be claimed.
EARLY_MS = 500

#: After so long the message of a run that has not begun is sent again.
SENT_AGAIN_MS = 30_000


@dataclass(frozen=True, slots=True)
class Due:
    """An instant that has come.

    Attributes:
        lock_key: What only one run may hold at a time; None where runs may overlap.
        waits: Where the lock is held: whether the run is queued. Else it is skipped.
    """

    task: str
    scheduled_ms: int
    lock_key: str | None = None
    waits: bool = False
    arguments: str = "{}"
    executor: str = "local"
    queue: str | None = None

    @property
    def key(self) -> tuple[str, int]:
        return self.task, self.scheduled_ms


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run that is ours to make. Its result counts while its row carries the token."""

    run_id: str
    token: str
    task: str
    scheduled_ms: int
    kind: str
    attempt: int
    arguments: str
    lock_key: str | None = None
    queue: str | None = None


@dataclass
class ClaimResult:
    """What became of what was due.

    Attributes:
        early: Not yet, by the database's clock.
        left: The task is paused or its time is over: the sweep says what becomes of it.
    """

    mine: list[ClaimedRun] = field(default_factory=list)
    others: list[Due] = field(default_factory=list)
    skipped: list[Due] = field(default_factory=list)
    queued: list[Due] = field(default_factory=list)
    early: list[Due] = field(default_factory=list)
    left: list[Due] = field(default_factory=list)


class QueueClaim(NamedTuple):
    """What was taken from the queue.

    Attributes:
        more: Whether there may be more that could be taken.
        waits: Whether there are others whose lock is held.
    """

    runs: list[ClaimedRun]
    more: bool
    waits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """The end of one attempt.

    Attributes:
        started_ms, finished_ms: By the database's clock, as far as this process knows it. Of a run
            that was broken off it is known only when it was claimed: None.
        result: JSON.
        retry_in_ms: Not None: it is queued again, for so much later.
        keeps_lock: A time-out whose thread goes on: `free` gives the lock back.
        recorded: The row is written already, in the task's own transaction.
    """

    run_id: str
    token: str
    task: str
    status: str
    started_ms: int | None
    finished_ms: int
    result: str | None = None
    error_type: str | None = None
    error: str | None = None
    traceback: str | None = None
    retry_in_ms: int | None = None
    keeps_lock: bool = False
    recorded: bool = False


CatchUp = Literal["latest", "all", "none"]


@dataclass(frozen=True, slots=True)
class RegisteredTask:
    """A task as the ledger knows it.

    Attributes:
        options: Its policies, as JSON.
        schedule_hash: Of its name and schedule; None where it has none.
    """

    name: str
    options: str
    schedule_hash: str | None = None


@dataclass(frozen=True, slots=True)
class ExpectedInstant:
    """An instant that must have a row.

    Attributes:
        passed: Not 0: it is the first of so many that are older than the catch-up window, and
            stands for all of them.
    """

    due: Due
    catch_up: CatchUp = "latest"
    passed: int = 0
