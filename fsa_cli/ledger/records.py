"""The records that go into the ledger and come out of it: instants, runs, claims, outcomes.

A run has three shapes: `NewRun`, what is inserted; `ClaimedRun`, what is ours; `RunOutcome`, what
is written back. They are tuples, as is the instant that is due: each run makes several of them, and
a frozen dataclass takes eight times as long to make.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal, NamedTuple

__all__ = [
    "EARLY_MS",
    "HIGHEST_PRIORITY",
    "LOWEST_PRIORITY",
    "OPEN_STATES",
    "SCHEDULED",
    "SENT_AGAIN_MS",
    "CatchUp",
    "ClaimResult",
    "ClaimedRun",
    "Due",
    "ExpectedInstant",
    "NewRun",
    "NodeState",
    "QueueClaim",
    "RefusedClaim",
    "RegisteredTask",
    "RunOutcome",
    "RunStatus",
    "status_word",
    "status_words",
]


class RunStatus(StrEnum):
    """The status of a run, as its row has it."""

    QUEUED = "queued"
    """Any process that knows the task may claim it, once its time has come."""
    DISPATCHED = "handed_off"
    """Its message was given to a broker; the process that receives it claims it."""
    RUNNING = "running"
    """A node has claimed it."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    INTERRUPTED = "interrupted"
    """Its process was stopped or died before its end."""
    MISSED = "missed"
    """Its instant has passed, and nobody was there."""
    SKIPPED = "skipped"
    """The run before it went on, or the task was paused."""
    CANCELLED = "cancelled"
    DISCARDED = "discarded"
    """The task said that there is nothing to do."""

    @property
    def is_final(self) -> bool:
        """Whether the run has ended for good."""
        return self not in (RunStatus.QUEUED, RunStatus.DISPATCHED, RunStatus.RUNNING)


#: What an attempt is in place of failed, which its task has ended by raising `Retry`.
PUT_OFF = "put_off"


def status_word(status: str) -> str:
    """A run's status as a text says it, and as `--status` takes it; JSON has that of the row."""
    return "dispatched" if status == RunStatus.DISPATCHED else status


@lru_cache(maxsize=64)  # each bar of a drawing asks
def status_words(status: str) -> str:
    """A run's status as a person says it, in a sentence: `timed out`."""
    return status_word(status).replace("_", " ")


class NodeState(StrEnum):
    """The state of a node, as its row has it."""

    ALIVE = "alive"
    DRAINING = "draining"
    """It claims nothing more, and waits for what it runs."""
    STOPPED = "stopped"
    DEAD = "dead"
    """Its lease was over, and others have decided its runs."""

    @property
    def is_open(self) -> bool:
        """Whether it lives as long as its lease holds."""
        return self in (NodeState.ALIVE, NodeState.DRAINING)


OPEN_STATES = tuple(state for state in NodeState if state.is_open)

#: The slot of a scheduled run; a manual run has its own id there.
SCHEDULED = "S"
#: How far ahead of the database's clock an instant may be claimed.
EARLY_MS = 500

#: The bounds of a run's priority.
LOWEST_PRIORITY, HIGHEST_PRIORITY = -100, 100

#: After so long the message of a run that has not started is sent again.
SENT_AGAIN_MS = 30_000


class Due(NamedTuple):
    """An instant that has come due.

    Attributes:
        lock_key: Only one run at a time may hold it; None: runs may overlap.
        waits: Whether the run is queued while the lock is held; otherwise it is skipped.
        before: The names that the task had before. An instant that has a row under one is done.
    """

    task: str
    scheduled_ms: int
    lock_key: str | None = None
    waits: bool = False
    arguments: str = "{}"
    executor: str = "local"
    queue: str | None = None
    before: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, int]:
        return self.task, self.scheduled_ms


class NewRun(NamedTuple):
    """A run that somebody asks for.

    Attributes:
        run_id: 32 hexadecimal characters.
        task: The task's name.
        arguments: JSON, an object.
        executor: The name of what carries it: `local`, or a broker.
        queue: The broker's queue; None: the run waits in the ledger.
        dispatched: Whether a broker is sent its message at once; otherwise it is `queued`.
        by: Who asks; None: a program.
        at_ms: When it may start; None: `wait_ms` from now, by the database's clock.
        priority: -100 to 100; of those that wait the highest goes first.
        unique: A key that no other run of the task has while this one waits or runs.
        key_task: The name by which the key goes; None: the task's.
        kept_ms: For how long after its end it keeps the key.
    """

    run_id: str
    task: str
    arguments: str
    executor: str
    queue: str | None
    dispatched: bool
    by: str | None = None
    at_ms: int | None = None
    wait_ms: int = 0
    priority: int = 0
    unique: str | None = None
    kept_ms: int | None = None
    key_task: str | None = None

    @classmethod
    def of(cls, task: str, arguments: str, **more: Any) -> NewRun:
        """A new one, with an id of its own."""
        return cls(uuid.uuid4().hex, task, arguments, **more)


class ClaimedRun(NamedTuple):
    """A run that is ours. Its outcome counts while its row carries the token.

    Attributes:
        token: The claim; whoever claims the run later writes another one.
        scheduled_ms: Its instant; that of its request if nothing scheduled it.
        kind: `schedule`, `catch_up` or `manual`.
        attempt: 1 for the first.
        arguments: As the row has them: `ledger.values.arguments_in` reads them.
        lock_key: The lock that it holds; None: runs of its task may overlap.
        queue: The broker's queue that it came by.
    """

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
    """What became of due instants.

    Attributes:
        early: Not yet due by the database's clock.
        left: The task is paused or the instant too old: the backfill decides.
    """

    mine: list[ClaimedRun] = field(default_factory=list)
    others: list[Due] = field(default_factory=list)
    skipped: list[Due] = field(default_factory=list)
    queued: list[Due] = field(default_factory=list)
    early: list[Due] = field(default_factory=list)
    left: list[Due] = field(default_factory=list)

    def add(self, other: ClaimResult) -> None:
        """Add what became of others."""
        for each in fields(self):
            getattr(self, each.name).extend(getattr(other, each.name))


class RefusedClaim(NamedTuple):
    """A run of which the database refuses that it starts.

    Attributes:
        reason: What the database said.
        is_ended: Whether it has failed now; otherwise its row is as it was.
    """

    run_id: str
    task: str
    reason: str
    is_ended: bool


class QueueClaim(NamedTuple):
    """Runs claimed from the queue.

    Attributes:
        more: Whether there may be more to claim.
        waits: Whether there are others whose lock is held.
        empty: Whether nothing at all has waited.
        refused: Those that the database does not let start.
    """

    runs: list[ClaimedRun]
    more: bool
    waits: bool
    empty: bool
    refused: Sequence[RefusedClaim] = ()


class RunOutcome(NamedTuple):
    """The outcome of one attempt.

    Attributes:
        status: A `RunStatus` that is final, also where the run is queued again.
        started_ms, finished_ms: By the database's clock, as this process estimates it. A start of
            None is the time of the claim: of a run that was broken off no more is known.
        result: JSON.
        error_type, error, traceback: For people, with secrets masked.
        retry_in_ms: Not None: the run is queued again, for so much later.
        counts: Whether the run that is queued again is a further attempt.
        keeps_lock: A time-out whose thread goes on: `free` frees the lock.
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
    counts: bool = True
    keeps_lock: bool = False
    recorded: bool = False

    @property
    def of_attempt(self) -> str:
        """What the attempt is counted as: its status; `put_off` where its task raised `Retry`."""
        return self.status if self.retry_in_ms is None or self.counts else PUT_OFF


CatchUp = Literal["latest", "all", "none"]


@dataclass(frozen=True, slots=True)
class RegisteredTask:
    """A task as the ledger knows it.

    Attributes:
        options: Its policies, as JSON.
        schedule_hash: Of its name and schedule; None where it has none.
        before: The names that it had before, each with the hash of its schedule under it.
    """

    name: str
    options: str
    schedule_hash: str | None = None
    before: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExpectedInstant:
    """An instant that must have a row.

    Attributes:
        passed: Not 0: it is the first of so many older than the catch-up window, and stands for
            all of them.
    """

    due: Due
    catch_up: CatchUp = "latest"
    passed: int = 0
