"""A run that is claimed, and executed behind its fence, on a database with a table `written`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi_sqlalchemy import Database
from fsa_cli.ledger import effects, maintenance
from fsa_cli.ledger.claim_due import claim_due
from fsa_cli.ledger.fence import Fence
from fsa_cli.ledger.location import shares
from fsa_cli.ledger.records import ClaimedRun, Due
from fsa_cli.ledger.store import Ledger
from fsa_cli.runner.execute import execute
from fsa_cli.runner.outcome import encode_result
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.tasks.definition import TaskDefinition

from .backends import Backend
from .ledgers import end_lease, make_node, now_ms, runs_of

__all__ = ["Stage"]


class Stage:
    """The database of a task and the ledger, where a process claims runs of `report`.

    Attributes:
        fence: Of the run that was executed last.
    """

    fence: Fence

    def __init__(self, backend: Backend, ledger: Ledger, db: Database) -> None:
        self.backend, self.ledger, self.db = backend, ledger, db
        effects.prepare(ledger, db)
        self.node = make_node(ledger)

    @property
    def lock(self) -> str:
        return f"{self.ledger.namespace}/report"

    def claim(self) -> ClaimedRun:
        due = Due("report", now_ms(self.ledger), self.lock)
        (claimed,) = claim_due(self.ledger, self.node.id, [due], window_ms=5000).mine
        return claimed

    def run(
        self,
        claimed: ClaimedRun,
        function: Callable[..., Any],
        trusted: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> RunResult:
        """Execute it.

        Args:
            trusted: As the fence takes it.
            options: Of the task.
        """
        self.fence = Fence(
            self.ledger, claimed.run_id, claimed.token, self.db, encode_result, trusted
        )
        task = TaskDefinition(name="report", function=function, **options)
        return execute(Run(task=task, database=self.db, run_id=claimed.run_id, fence=self.fence))

    def die(self) -> None:
        """Everybody else takes this process for dead."""
        end_lease(self.ledger, self.node.id)
        maintenance.reap(self.ledger, [self.node.id])

    def written(self) -> list[int]:
        return [n for (n,) in self.backend.rows("SELECT n FROM written ORDER BY n")]

    @property
    def row(self) -> Any:
        """The first run."""
        return runs_of(self.ledger)[0]

    @property
    def together(self) -> bool:
        """Whether the ledger is in the task's database."""
        return shares(self.ledger, self.db.url)
