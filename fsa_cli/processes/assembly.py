"""What `fsa scheduler start`, `tick` and `fsa worker start` are made of, for one app."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.pool import QueuePool

from fastapi_sqlalchemy.exceptions import DBSessionError
from fsa_cli.exceptions import UsageError
from fsa_cli.ledger.access import reached
from fsa_cli.ledger.location import ledger_of
from fsa_cli.ledger.store import Ledger
from fsa_cli.processes.lease import LEASE_S
from fsa_cli.processes.node import Node, NodeOptions
from fsa_cli.processes.run_factory import RunFactory
from fsa_cli.processes.run_log import RunLog
from fsa_cli.processes.schedule_plan import Scheduled, plan, registered
from fsa_cli.processes.worker import Worker
from fsa_cli.project.loader import LoadedApp
from fsa_cli.project.settings import Settings
from fsa_cli.runs.executor import Executor
from fsa_cli.runs.executor_registry import ExecutorRegistry
from fsa_cli.tasks.definition import TaskDefinition
from fsa_cli.tasks.lookup import get_task
from fsa_cli.tasks.registry import Registry
from fsa_cli.terminal.output import Output

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database

__all__ = ["ProcessBuilder"]

_CONCURRENCY = 7
AnyHost = TypeVar("AnyHost", bound=Node)


@dataclass(frozen=True)
class ProcessBuilder:
    """An app's schedule and its ledger, ready to be hosted."""

    tasks: list[TaskDefinition]
    planned: list[Scheduled]
    ledger: Ledger
    choice: ExecutorRegistry
    orders: RunFactory
    log: RunLog
    loaded: LoadedApp
    settings: Settings

    @classmethod
    def of(
        cls,
        loaded: LoadedApp,
        settings: Settings,
        output: Output,
        registry: Registry,
        *,
        only: Collection[str] = (),
        tags: Collection[str] = (),
        json: bool = False,
    ) -> ProcessBuilder:
        """Nothing is connected yet.

        Args:
            only: The names of the tasks to run; none: all.
            tags: Tasks with one of them; none: all.

        Raises:
            UsageError: There is no such task, or none with such a tag.
            ConfigurationError: A task cannot be scheduled, or the ledger cannot be where it should.
        """
        tasks = _chosen(registry, only, tags)
        planned = plan(tasks, settings.timezone, settings.executor)
        ledger = ledger_of(loaded.databases, settings)
        choice = ExecutorRegistry(ledger, settings)
        orders = RunFactory(loaded, settings, ledger, tasks, planned)
        orders.databases()
        width = max((len(each.task.name) for each in planned), default=0)
        log = RunLog(output, loaded, width, json)
        return cls(tasks, planned, ledger, choice, orders, log, loaded, settings)

    def open(self) -> None:
        """Make what is missing in the databases.

        Raises:
            LedgerUnusable: The tables cannot be made, or another version made them.
            DatabaseUnreachable: The ledger's database is away.
        """
        with reached(self.ledger):
            self.ledger.create()
        for engine, _ in self.choice.engines(self.tasks).values():
            engine.check()
        self.orders.prepare(self.log.warn)

    def close(self) -> None:
        """Let go of every connection."""
        for database in self.loaded.databases.values():
            database.dispose()
        self.choice.close()
        self.ledger.dispose()

    def host(
        self,
        *,
        concurrency: int | None,
        grace_s: float,
        role: str = "scheduler",
        pulse: Callable[[], None] = lambda: None,
    ) -> Node:
        """What runs it.

        Args:
            concurrency: None: half of what the app's connection pool gives, because a task may open
                a scope inside its own.
        """
        options = self._options(concurrency, grace_s, pulse)
        return self._reporting(Node(**self._parts(), options=options, role=role))

    def worker(
        self,
        executor: Executor,
        queues: Collection[str],
        *,
        concurrency: int | None,
        grace_s: float,
        pulse: Callable[[], None] = lambda: None,
    ) -> Worker:
        """What makes the runs that *executor* carries; *concurrency* as in `host`."""
        options = self._options(concurrency, grace_s, pulse)
        return self._reporting(
            Worker(**self._parts(), options=options, executor=executor, queues=queues)
        )

    def _parts(self) -> dict[str, Any]:
        locks = self.orders.locks
        engines = {
            name: (engine, {task.name: locks[task.name] for task in tasks})
            for name, (engine, tasks) in self.choice.engines(self.tasks).items()
        }
        return {
            "ledger": self.ledger,
            "planned": self.planned,
            "known": registered(self.tasks, self.planned),
            "locks": locks,
            "engines": engines,
            "order": self.orders,
            "applied": self.orders.applied,
            "prune": self.orders.prune,
            "listener": self.log,
        }

    def _options(
        self, concurrency: int | None, grace_s: float, pulse: Callable[[], None]
    ) -> NodeOptions:
        return NodeOptions(
            concurrency=concurrency or self._concurrency(),
            grace_s=grace_s,
            lease_s=self.settings.lease_s or LEASE_S,
            pulse=pulse,
        )

    def _reporting(self, host: AnyHost) -> AnyHost:
        self.orders.report = host.progress
        self.orders.trusted = lambda: host.membership.trusted
        return host

    def _concurrency(self) -> int:
        return min(map(_half_of_pool, self.orders.databases().values()), default=_CONCURRENCY)


def _chosen(
    registry: Registry, only: Collection[str], tags: Collection[str]
) -> list[TaskDefinition]:
    named = [get_task(name) for name in only]
    chosen = named or list(registry)
    if tags:
        chosen = [task for task in chosen if not task.tags.isdisjoint(tags)]
        if not chosen:
            known = sorted({tag for task in registry for tag in task.tags})
            raise UsageError(
                f"no task has the tag {', '.join(sorted(tags))}",
                hint=f"there are {', '.join(known)}" if known else None,
            )
    return chosen


def _half_of_pool(database: Database) -> int:
    try:
        pool = database.engine.pool
    except DBSessionError:  # the app has an async driver only, with the same arguments
        return _CONCURRENCY
    if not isinstance(pool, QueuePool) or pool._max_overflow < 0:
        return _CONCURRENCY
    return max((pool.size() + pool._max_overflow) // 2, 1)
