"""Build the run of a claim: its task, arguments, database and fence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from fastapi_sqlalchemy import Database
from fsa_cli.database.connections import driver_message
from fsa_cli.exceptions import FsaError, TaskNotFound
from fsa_cli.ledger import effects
from fsa_cli.ledger.fence import Fence
from fsa_cli.ledger.location import shares
from fsa_cli.ledger.records import ClaimedRun
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.time import instant_of
from fsa_cli.ledger.values import arguments_in
from fsa_cli.processes.schedule_plan import Scheduled
from fsa_cli.processes.subprocess_run import SubprocessRun
from fsa_cli.project.loader import LoadedApp
from fsa_cli.project.settings import Settings
from fsa_cli.runner.outcome import encode_result
from fsa_cli.runner.run import Run
from fsa_cli.tasks import arguments
from fsa_cli.tasks.definition import TaskDefinition
from fsa_cli.tasks.locks import lock_of
from fsa_cli.tasks.lookup import database_for
from fsa_cli.tasks.signature import signature_of
from fsa_cli.tasks.task_context import Progress

__all__ = ["RunFactory"]


class RunFactory:
    """The tasks that this process can run."""

    def __init__(
        self,
        loaded: LoadedApp,
        settings: Settings,
        ledger: Ledger,
        tasks: Iterable[TaskDefinition],
        planned: Iterable[Scheduled] = (),
    ) -> None:
        self._loaded = loaded
        self._settings = settings
        self._ledger = ledger
        # Under the names before too: of those runs may still wait.
        self._tasks = {name: task for task in tasks for name in task.names}
        self._planned = {name: scheduled for scheduled in planned for name in scheduled.task.names}
        self.trusted: Callable[[], bool] = lambda: False
        """Whether this process's lease holds."""
        self._elsewhere = [
            database
            for database in loaded.databases.values()
            if database.url is not None and not shares(ledger, database.url)
        ]

    @property
    def locks(self) -> Mapping[str, str | None]:
        """Each name of a task, and the lock of its runs."""
        return {name: lock_of(task, self._ledger.namespace) for name, task in self._tasks.items()}

    def __call__(
        self, claimed: ClaimedRun, report: Callable[[Progress], None] | None = None
    ) -> Run:
        """The run of a claim.

        Args:
            report: As that of `Run`.

        Raises:
            FsaError: The task is not here, or its arguments are not what it takes.
            Exception: What the user's own validators raise.
        """
        task = self._tasks.get(claimed.task)
        if task is None:
            raise TaskNotFound(f"there is no task {claimed.task!r} here")
        scheduled = self._planned.get(claimed.task)
        if claimed.kind != "manual" and scheduled is not None:
            values = scheduled.arguments
        else:
            given: Mapping[str, Any] = task.args  # where nothing is planned: in an isolated run's
            if claimed.kind == "manual" or task.schedule is None:
                given = arguments_in(claimed.arguments, claimed.run_id)
            values = arguments.bind(signature_of(task.function), given)
        database = database_for(task, self._loaded, self._settings)
        at = None if claimed.kind == "manual" else instant_of(claimed.scheduled_ms)
        return Run(
            task=task,
            arguments=values,
            app=self._loaded.app,
            database=database,
            run_id=claimed.run_id,
            attempt=claimed.attempt,
            scheduled_at=at,
            timeout_s=task.timeout_s,
            report=report,
            isolated=SubprocessRun.of(claimed, self._settings) if task.isolation else None,
            fence=Fence(
                self._ledger, claimed.run_id, claimed.token, database, encode_result, self.trusted
            ),
        )

    def applied(self, run_ids: Sequence[str]) -> set[str]:
        """Which of these runs have taken effect in databases that are not the ledger's.

        Raises:
            SQLAlchemyError: One of them is away.
        """
        found = (effects.applied(self._ledger, each, run_ids) for each in self._elsewhere)
        return set[str]().union(*found)

    def fence_off(self, claims: Mapping[str, str | None]) -> set[str]:
        """Which of these runs have taken effect there: under these claims the others cannot.

        Raises:
            SQLAlchemyError: One of the databases is away.
        """
        found = (effects.fence_off(self._ledger, each, claims) for each in self._elsewhere)
        return set[str]().union(*found)

    def prune(self) -> None:
        """Delete the marks of runs that the ledger has pruned."""
        for database in self._elsewhere:
            with contextlib.suppress(SQLAlchemyError):  # it is away, or may not: the next time
                effects.prune(self._ledger, database)

    def prepare(self, warn: Callable[[str], None]) -> None:
        """Create `fsa_effect` in the databases that need it; warn of those where that fails."""
        databases = [each for each in self._loaded.databases.values() if each.url is not None]
        for database in databases:
            try:
                effects.prepare(self._ledger, database)
            except (SQLAlchemyError, FsaError) as exc:
                warn(
                    f"fsa_effect cannot be created in the database {database.name!r}: "
                    f"{driver_message(exc)}; a crash in COMMIT may repeat what a task wrote"
                )
        self._elsewhere = [each for each in databases if not shares(self._ledger, each.url)]

    def databases(self) -> Mapping[str, Database]:
        """The database of each task, looked up now so that a mistake shows at the start.

        Raises:
            FsaError: The app has no such database.
        """
        return {
            name: database_for(task, self._loaded, self._settings)
            for name, task in self._tasks.items()
        }
