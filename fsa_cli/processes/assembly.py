"""From an app to a node: the parts of `fsa scheduler start`, `tick` and `fsa worker start`."""

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
AnyNode = TypeVar("AnyNode", bound=Node)


@dataclass(frozen=True)
class ProcessBuilder:
    """An app's schedule and its ledger, from which a node is built."""

    tasks: list[TaskDefinition]
    planned: list[Scheduled]
    ledger: Ledger
    executors: ExecutorRegistry
    run_factory: RunFactory
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
        """The builder of an app's node; nothing is connected yet.

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
        executors = ExecutorRegistry(ledger, settings)
        run_factory = RunFactory(loaded, settings, ledger, tasks, planned)
        run_factory.databases()
        width = max((len(each.task.name) for each in planned), default=0)
        log = RunLog(output, loaded, width, json)
        return cls(tasks, planned, ledger, executors, run_factory, log, loaded, settings)

    def open(self) -> None:
        """Create the tables that are missing in the databases.

        Raises:
            LedgerUnusable: The tables cannot be created, or are those of another version.
            DatabaseUnreachable: The ledger's database is away.
        """
        with reached(self.ledger):
            if not self.ledger.create():
                self.ledger.check_keys()
        for broker, _ in self.executors.brokers(self.tasks).values():
            broker.check()
        self.run_factory.prepare(self.log.warn)

    def close(self) -> None:
        """Close every connection."""
        for database in self.loaded.databases.values():
            database.dispose()
        self.executors.close()
        self.ledger.dispose()

    def node(
        self,
        *,
        concurrency: int | None,
        grace_s: float,
        role: str = "scheduler",
        pulse: Callable[[], None] = lambda: None,
    ) -> Node:
        """The node that fires the schedule.

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
        """The node that executes the runs of *executor*; *concurrency* as in `node`."""
        options = self._options(concurrency, grace_s, pulse)
        return self._reporting(
            Worker(**self._parts(), options=options, executor=executor, queues=queues)
        )

    def _parts(self) -> dict[str, Any]:
        locks = self.run_factory.locks
        brokers = {
            name: (broker, {task.name: locks[task.name] for task in tasks})
            for name, (broker, tasks) in self.executors.brokers(self.tasks).items()
        }
        return {
            "ledger": self.ledger,
            "planned": self.planned,
            "known": registered(self.tasks, self.planned),
            "locks": locks,
            "brokers": brokers,
            "build_run": self.run_factory,
            "applied": self.run_factory.applied,
            "prune": self.run_factory.prune,
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

    def _reporting(self, node: AnyNode) -> AnyNode:
        self.run_factory.report = node.progress
        self.run_factory.trusted = lambda: node.lease.trusted
        return node

    def _concurrency(self) -> int:
        return min(map(_half_of_pool, self.run_factory.databases().values()), default=_CONCURRENCY)


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
