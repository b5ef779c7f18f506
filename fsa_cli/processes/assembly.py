"""From an app to a node: the parts of `fsa scheduler start`, `tick` and `fsa worker start`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlalchemy.pool import QueuePool

from fastapi_sqlalchemy.exceptions import DBSessionError
from fsa_cli.exceptions import UsageError
from fsa_cli.ledger.access import reached
from fsa_cli.ledger.backfill import backfill, register_tasks
from fsa_cli.ledger.location import ledger_of
from fsa_cli.ledger.pruning import Pruning
from fsa_cli.ledger.served_queues import service
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.wake import can_listen
from fsa_cli.processes.broker_dispatcher import BrokerDispatcher
from fsa_cli.processes.claimer import Claimer, Fired
from fsa_cli.processes.consumer import Consumer
from fsa_cli.processes.events import NodeEvents, NodeListener, RunCounts
from fsa_cli.processes.lease import LEASE_S
from fsa_cli.processes.listener import FileWatch, Listener
from fsa_cli.processes.local_dispatcher import LocalDispatcher
from fsa_cli.processes.maintenance import Effects, Maintenance
from fsa_cli.processes.message_claimer import MessageClaimer
from fsa_cli.processes.node import Node, NodeOptions, NodeParts
from fsa_cli.processes.node_context import NodeContext
from fsa_cli.processes.notifications import Notifications
from fsa_cli.processes.run_factory import RunFactory
from fsa_cli.processes.run_lifecycle import RunLifecycle, RunSource
from fsa_cli.processes.run_log import RunLog
from fsa_cli.processes.schedule_plan import Scheduled, catch_up, plan, registered
from fsa_cli.processes.service import Service
from fsa_cli.processes.timer import Timer
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
    known: frozenset[str] = frozenset()
    """Every task of the app, also those that were not chosen."""

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
        known = frozenset(name for task in registry for name in task.names)
        return cls(tasks, planned, ledger, executors, run_factory, log, loaded, settings, known)

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
        self.run_factory.prepare(self.log.warned)

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
        if role == "scheduler":
            self._warn_of_queues()
        context = self._context(role)
        lifecycle, claimers = self._lifecycle(context, concurrency)
        local = LocalDispatcher(context, lifecycle, self.run_factory.locks)
        brokers = BrokerDispatcher(context, self._brokers())
        claimers += [local, brokers]
        timer = Timer(context.clock, lambda due: fire(due)) if role == "scheduler" else None
        maintenance = self._maintenance(context, lifecycle, claimers, timer)

        def fire(due: Sequence[Fired]) -> None:
            carried = [each for each in due if brokers.carries(each[0])]
            if carried:
                brokers.fire(carried)
            own = [each for each in due if not brokers.carries(each[0])]
            if own:
                local.fire(own)
            maintenance.expect(due)

        def join() -> None:
            watermarks = register_tasks(self.ledger, registered(self.tasks, self.planned))
            context.lease.join()
            context.lease.start()
            until_ms = context.lease.started_ms
            if timer is not None:
                timer.expect(self.planned, until_ms)
            expected = catch_up(self.planned, watermarks, until_ms, self.ledger.namespace)
            plain = {e.task.name: e.schedule_hash for e in self.planned if not e.jitter_ms}
            refused: dict[tuple[str, int], Exception] = {}
            backfill(self.ledger, context.lease.id, expected, until_ms, plain, refused)
            maintenance.note_refused(refused)

        intake: list[Service] = [brokers, local]
        if role == "scheduler":
            intake += self._woken(context, local)
        parts = self._parts(context, lifecycle, maintenance, claimers, intake, join)
        return Node(replace(parts, timer=timer), self._options(grace_s, pulse))

    def worker(
        self,
        executor: Executor,
        queues: Collection[str],
        *,
        concurrency: int | None,
        grace_s: float,
        pulse: Callable[[], None] = lambda: None,
    ) -> Node:
        """The node that executes the runs of *executor*; *concurrency* as in `node`.

        It fires no schedule; it reaps dead nodes and records as the scheduler does. Of a broker the
        messages are taken, of an executor without one the ledger's queue.
        """
        self._warn_of_queues()
        served = [service(executor.name, queue) for queue in queues or [""]]
        context = self._context("worker", served)
        lifecycle, claimers = self._lifecycle(context, concurrency)
        claimers.append(BrokerDispatcher(context, self._brokers()))
        intake: list[Service] = [*claimers]
        if executor.carries:
            messages = MessageClaimer(context, lifecycle, self.run_factory.locks)
            limit, warn = lifecycle.pool.concurrency, context.events.warned
            intake += [messages, Consumer(executor, messages, queues, limit, warn)]
        else:
            local = LocalDispatcher(context, lifecycle, self.run_factory.locks)
            claimers.append(local)
            intake += [local, *self._woken(context, local)]
        parts = self._worker_parts(context, lifecycle, claimers, intake)
        return Node(parts, self._options(grace_s, pulse))

    def embedded(self, *, concurrency: int, grace_s: float) -> tuple[Node, MessageClaimer]:
        """The node inside a broker's worker that a team starts itself, and what takes messages."""
        context = self._context("worker")
        lifecycle, claimers = self._lifecycle(context, concurrency)
        claimers.append(BrokerDispatcher(context, self._brokers()))
        messages = MessageClaimer(context, lifecycle, self.run_factory.locks)
        parts = self._worker_parts(context, lifecycle, claimers, [*claimers, messages])
        return Node(parts, self._options(grace_s)), messages

    def _warn_of_queues(self) -> None:
        """Say once which tasks name a queue that no broker has."""
        named = [
            task.name for task in self.tasks if task.queue and not self.executors.of(task).carries
        ]
        if named:
            self.log.warned(
                f"queue= of {', '.join(named)} is a broker's, and their executor has none: every "
                "worker takes them; the name is there for fsa runs --queue"
            )

    def _woken(self, context: NodeContext, local: LocalDispatcher) -> list[Service]:
        """What wakes *local* when a run is asked for; where nothing can, it polls often."""
        if self.ledger.file is not None:
            return [FileWatch(self.ledger.file, local.poll)]
        if can_listen(self.ledger):
            return [Listener(context, local.heard, local.poll_often)]
        local.poll_often()
        return []

    def _options(self, grace_s: float, pulse: Callable[[], None] = lambda: None) -> NodeOptions:
        app = self.loaded.app if self.settings.lifespan else None
        return NodeOptions(grace_s=grace_s, pulse=pulse, lifespan_of=app)

    # -- the parts -----------------------------------------------------------------------------

    def _worker_parts(
        self,
        context: NodeContext,
        lifecycle: RunLifecycle,
        claimers: Sequence[Claimer],
        intake: Sequence[Service],
    ) -> NodeParts:
        def join() -> None:
            register_tasks(self.ledger, registered(self.tasks, self.planned))
            context.lease.join()
            context.lease.start()

        maintenance = self._maintenance(context, lifecycle, claimers, None)
        return self._parts(context, lifecycle, maintenance, claimers, intake, join)

    def _parts(
        self,
        context: NodeContext,
        lifecycle: RunLifecycle,
        maintenance: Maintenance,
        claimers: Sequence[Claimer],
        intake: Sequence[Service],
        join: Callable[[], None],
    ) -> NodeParts:
        """The parts, those of them that hear of events listening."""
        counts, notifications = RunCounts(), Notifications()
        hearing = (each for each in intake if isinstance(each, NodeListener))
        for each in (counts, notifications, *hearing):
            context.events.add(each)
        return NodeParts(
            context, lifecycle, maintenance, claimers, intake, counts, notifications, join
        )

    def _context(self, role: str, served: Collection[str] = ()) -> NodeContext:
        context = NodeContext.of(
            self.ledger,
            NodeEvents(self.log),
            role=role,
            lease_s=self.settings.lease_s or LEASE_S,
            # A tick stands for no instant: it is gone before the next one comes.
            tasks={e.task.name: e.schedule_hash for e in self.planned if role == "scheduler"}
            | dict.fromkeys(served, ""),
        )
        self.run_factory.trusted = lambda: context.lease.trusted
        self.ledger.on_lost(self._renew_connections)
        return context

    def _renew_connections(self) -> None:
        """Where the ledger has lost a connection, so has the app: a run is claimed through the
        ledger, and its task is not to be the first to meet that."""
        for database in self.loaded.databases.values():
            database.renew_connections()

    def _lifecycle(
        self, context: NodeContext, concurrency: int | None
    ) -> tuple[RunLifecycle, list[Claimer]]:
        """The runs of the node, and the list of those that will claim them."""
        databases = set(self.run_factory.databases().values())
        concurrency = concurrency or min(map(_half_of_pool, databases), default=_CONCURRENCY)
        for database in databases:
            database.keep_connections(concurrency)
        claimers: list[Claimer] = []
        source = RunSource(
            build=self.run_factory,
            applied=self.run_factory.applied,
            late_ms={name: _late_ms(each) for each in self.planned for name in each.task.names},
        )
        lifecycle = RunLifecycle(
            context,
            source,
            concurrency,
            busy=lambda: any(each.backlog for each in claimers),
        )
        return lifecycle, claimers

    def _maintenance(
        self,
        context: NodeContext,
        lifecycle: RunLifecycle,
        claimers: Sequence[Claimer],
        timer: Timer | None,
    ) -> Maintenance:
        def fired_until_ms() -> int:
            return context.clock.now_ms if timer is None else timer.fired_until_ms

        effects = Effects(self.run_factory.fence_off, self.run_factory.prune)
        knows, pruning = self.known.__contains__, Pruning.of(self.settings)
        return Maintenance(context, lifecycle, claimers, effects, fired_until_ms, knows, pruning)

    def _brokers(self) -> Mapping[str, tuple[Executor, Mapping[str, str | None]]]:
        locks = self.run_factory.locks
        return {
            name: (broker, {each: locks[each] for task in tasks for each in task.names})
            for name, (broker, tasks) in self.executors.brokers(self.tasks).items()
        }


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


def _late_ms(scheduled: Scheduled) -> int:
    """How late its runs may start."""
    within_s = scheduled.task.start_within_s
    window_ms = scheduled.window_ms if within_s is None else round(within_s * 1000)
    return window_ms + scheduled.jitter_ms
