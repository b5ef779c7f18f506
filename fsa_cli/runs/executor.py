"""`Executor`: what carries a run to the process that makes it. The ledger decides which one does.

An engine carries a run's id and nothing else. Whoever receives it takes the run's row from
`handed_off` to `running`, so that a message that comes twice runs once, and one that never comes is
sent again.

Another package adds an engine by an entry point of the group `fsa_cli.executors`: its name, and a
callable that takes a `Surroundings` and returns an `Executor`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sqlalchemy import Connection

from fsa_cli.ledger.store import Ledger
from fsa_cli.project.settings import Settings

__all__ = [
    "LOCAL",
    "TASK",
    "Executor",
    "Local",
    "Message",
    "OutsideTheLedger",
    "Surroundings",
    "Take",
]

#: The executor that needs no engine.
LOCAL = "local"
#: The engine's one task, which takes a run's id as `run_id`.
TASK = "fsa.run"


class Message(NamedTuple):
    """What an engine carries."""

    run_id: str
    queue: str


@dataclass(frozen=True)
class Surroundings:
    """What an executor is made of."""

    ledger: Ledger
    settings: Settings


#: Takes a run; the future is done when it has ended, or is not this process's to make.
Take = Callable[[str], "Future[None]"]


class Executor(Protocol):
    """One way for runs to reach a process that makes them.

    Attributes:
        name: What `@task(executor=...)` and the settings call it.
        carries: Whether it has messages of its own. If not, runs stay `queued` in the ledger, and
            whoever is free takes them there.
        enlisting: What `enlist` does for one run, as a SELECT with `:id` and `:queue` that becomes
            part of the statement which writes its row; empty if it does nothing. None: it is
            called.
    """

    name: str
    carries: bool
    enlisting: str | None

    def prepare(self) -> bool:
        """Make what it needs, as a schema; False if there was nothing to make.

        Raises:
            FsaError: It cannot be made, or the engine is away.
        """
        ...

    def statements(self) -> Sequence[str]:
        """The SQL that `prepare` would send to the ledger's database."""
        ...

    def check(self) -> None:
        """Raises ConfigurationError if something is missing that `prepare` makes."""
        ...

    def enlist(self, connection: Connection, messages: Sequence[Message]) -> None:
        """Send them in the ledger's own transaction, where the engine can."""
        ...

    def publish(self, messages: Sequence[Message]) -> None:
        """Send them now that the ledger's transaction has committed, where `enlist` cannot.

        Raises:
            EngineUnreachable: Not all of them were sent; those that were may be sent again.
        """
        ...

    def waiting(self, queue: str) -> int:
        """How many messages wait in the engine's queue.

        Raises:
            EngineUnreachable: It is away.
        """
        ...

    def consume(
        self, take: Take, *, queues: Collection[str], concurrency: int, stop: threading.Event
    ) -> None:
        """Host the engine's own worker in this thread until *stop* is set.

        Each message is given to *take*, at most *concurrency* at a time, and is done when the
        future is. Once told to stop it takes no more; the futures are all done soon after.

        Raises:
            EngineUnreachable: It is away; the caller tries again.
        """
        ...

    def close(self) -> None:
        """Let go of its connections."""
        ...


class OutsideTheLedger:
    """What an executor is to the ledger's database that makes nothing and sends nothing there."""

    enlisting: str | None = ""

    def prepare(self) -> bool:
        return False

    def statements(self) -> Sequence[str]:
        return ()

    def check(self) -> None:
        pass

    def enlist(self, connection: Connection, messages: Sequence[Message]) -> None:
        pass


class Local(OutsideTheLedger):
    """No engine: the ledger's queue is the queue; the scheduler's own processes take from it."""

    name = LOCAL
    carries = False

    def __init__(self, surroundings: Surroundings) -> None:
        pass

    def publish(self, messages: Sequence[Message]) -> None:
        pass

    def waiting(self, queue: str) -> int:
        return 0

    def consume(
        self, take: Take, *, queues: Collection[str], concurrency: int, stop: threading.Event
    ) -> None:
        stop.wait()

    def close(self) -> None:
        pass
