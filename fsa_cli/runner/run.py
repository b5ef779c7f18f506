"""`Run`, what is to be executed, and `RunResult`, how it ended."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fsa_cli.runner.event_loop import run_async
from fsa_cli.runner.statement_cancellation import Statements
from fsa_cli.tasks.definition import TaskDefinition
from fsa_cli.tasks.task_context import Progress

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database


__all__ = ["Fence", "Run", "RunResult", "Status"]


Status = Literal["succeeded", "failed", "timed_out", "discarded"]


class Fence(Protocol):
    """A context manager around a run that checks every commit inside.

    Attributes:
        recorded: Whether the run's success is written, in the transaction of its effects.
        commits: How often the task has committed by itself.
    """

    recorded: bool
    commits: int

    def __enter__(self) -> object: ...

    def __exit__(self, *exc_info: Any) -> None: ...

    def returned(self, value: object) -> None:
        """The task has returned *value*: the next commit is the runner's."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run to execute.

    Attributes:
        arguments: The values of the task's parameters; one that is left out has its default.
        app: The value of a parameter annotated `FastAPI`.
        database: The database whose scope the task runs in; None is the global `db`.
        timeout_s: None is the task's own.
        dry_run: The context's `dry_run`; the caller opens the sandbox.
        stop: Set from outside, it makes the context's `cancelled` true.
        report: Called with the task's progress.
        fence: Refuses commits once the run is no longer this process's.
        run_async: Runs the coroutine of `execute`: on the loop of the app's lifespan, if there is
            one.
        isolated: Executes it elsewhere, in place of `execute`.
        statements: The statements that the run waits for, so that another thread can end them.
    """

    task: TaskDefinition
    arguments: Mapping[str, Any] = field(default_factory=dict)
    app: object = None
    database: Database | None = None
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    attempt: int = 1
    scheduled_at: datetime | None = None
    timeout_s: float | None = None
    dry_run: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    report: Callable[[Progress], None] | None = None
    fence: Fence | None = None
    statements: Statements = field(default_factory=Statements)
    run_async: Callable[[Coroutine[Any, Any, Any]], Any] = run_async
    isolated: Callable[[Run], RunResult] | None = None


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended.

    Attributes:
        value: The value that the task returned.
        error: The exception that it raised, or `TimedOut`; None if it succeeded.
        at_commit: Whether it was the commit that failed, after the task had returned.
        kept: Whether what it wrote before it failed stays: its engine is in AUTOCOMMIT.
    """

    task: TaskDefinition
    run_id: str
    attempt: int
    scheduled_at: datetime | None
    status: Status
    started_at: datetime
    duration_ms: float
    value: Any = None
    error: BaseException | None = None
    at_commit: bool = False
    kept: bool = False

    @property
    def succeeded(self) -> bool:
        return self.status == "succeeded"
