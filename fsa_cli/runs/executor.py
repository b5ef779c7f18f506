"""`Executor`: the protocol of every way in which a run reaches the process that executes it.

A broker carries a run's id and nothing else. The process that receives it takes the run's row from
dispatched (`handed_off`) to `running`, so that a message that comes twice runs once, and one that
never comes is sent again.

Another package adds a broker by an entry point of the group `fsa_cli.executors`: its name, and a
callable that takes a `Surroundings` and returns an `Executor`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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

#: The executor without a broker.
LOCAL = "local"
#: The broker's one task, which takes a run's id as `run_id`.
TASK = "fsa.run"


class Message(NamedTuple):
    """The message that a broker carries."""

    run_id: str
    queue: str


@dataclass(frozen=True)
class Surroundings:
    """The arguments of an executor's factory."""

    ledger: Ledger
    settings: Settings


#: Takes a run; the future is done when it has ended, or another process has it.
Take = Callable[[str], "Future[None]"]


class Executor(Protocol):
    """One way for runs to reach a process that executes them.

    Attributes:
        name: Its name in `@task(executor=...)` and the settings.
        carries: Whether it has messages of its own. If not, runs stay `queued` in the ledger, and
            any free process claims them there.
        joined: How it sends messages in the ledger's own transaction, if it can: a SELECT from
            `put (id, queue)`, the runs, that becomes part of the statement which dispatches them.
            Empty: they are published after the COMMIT.
    """

    name: str
    carries: bool
    joined: str

    def prepare(self) -> bool:
        """Create what it needs, as a schema; False if all existed.

        Raises:
            FsaError: It cannot be created, or the broker is away.
        """
        ...

    def statements(self) -> Sequence[str]:
        """The SQL that `prepare` would send to the ledger's database."""
        ...

    def check(self) -> None:
        """Raises ConfigurationError if something is missing that `prepare` creates."""
        ...

    def publish(self, messages: Sequence[Message]) -> None:
        """Send messages of runs that the ledger has committed as dispatched.

        Raises:
            BrokerUnreachable: Not all of them were sent; those that were may be sent again.
        """
        ...

    def waiting(self, queue: str) -> int:
        """How many messages wait in the broker's queue.

        Raises:
            BrokerUnreachable: It is away.
        """
        ...

    def consume(
        self, take: Take, *, queues: Collection[str], concurrency: int, stop: threading.Event
    ) -> None:
        """Host the broker's own worker in this thread until *stop* is set.

        Each message is given to *take*, at most *concurrency* at a time, and is done when the
        future is. Once *stop* is set it takes no more; the futures are all done soon after.

        Raises:
            BrokerUnreachable: It is away; the caller tries again.
        """
        ...

    def close(self) -> None:
        """Close its connections."""
        ...


class OutsideTheLedger:
    """The part of an executor that creates nothing and sends nothing in the ledger's database."""

    joined = ""

    def prepare(self) -> bool:
        return False

    def statements(self) -> Sequence[str]:
        return ()

    def check(self) -> None:
        pass


class Local(OutsideTheLedger):
    """No broker: schedulers and workers claim queued runs from the ledger itself."""

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
