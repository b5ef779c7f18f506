"""pytest fixtures for an app's own tasks: what a test has asked for, and running it at once.

    # conftest.py
    pytest_plugins = ["fastapi_sqlalchemy.testing", "fsa_cli.testing"]

    # test_orders.py
    def test_an_order_is_shipped(db_session, enqueued, run_enqueued):
        TestClient(app).post("/orders/tea/ship")
        enqueued.assert_enqueued(ship, item="tea")
        run_enqueued()

Nothing reaches a ledger, none is needed, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any, NamedTuple, ParamSpec, TypeVar, overload

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from fastapi_sqlalchemy import Database
from fsa_cli.api import TaskFunction
from fsa_cli.exceptions import UsageError
from fsa_cli.ledger.time import instant_of, ms_of
from fsa_cli.processes.schedule_plan import Scheduled, plan
from fsa_cli.project import settings
from fsa_cli.runner.execute import execute, execute_async
from fsa_cli.runner.outcome import encode_result, error_fields
from fsa_cli.runner.retry import RetryPolicy, asked_again
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.runs.after_commit import unless_committed
from fsa_cli.runs.enqueue import arguments_by_name
from fsa_cli.runs.process_databases import configure_db
from fsa_cli.runs.run_options import RunOptions
from fsa_cli.runs.task_result import HeldResult, TaskResult
from fsa_cli.tasks import arguments
from fsa_cli.tasks.definition import TaskDefinition
from fsa_cli.tasks.enqueue_capture import divert
from fsa_cli.tasks.registry import registry
from fsa_cli.tasks.signature import signature_of

__all__ = [
    "ArunEnqueued",
    "EnqueuedRun",
    "EnqueuedRuns",
    "Fire",
    "RunEnqueued",
    "TaskRunner",
    "arun_enqueued",
    "enqueued",
    "fires_between",
    "run",
    "run_enqueued",
    "task_app",
    "task_databases",
]

Q = ParamSpec("Q")
V = TypeVar("V")

_MOST_ATTEMPTS = 100
_USE_DB = {"sandboxed_database", "run", "run_enqueued", "arun_enqueued"}


@dataclass(eq=False)
class EnqueuedRun:
    """A run that was asked for.

    Attributes:
        arguments: By name, as the task is given them.
        options: What `using` said.
        result: What `enqueue` has returned.
        runs: Whether it was started by `run_enqueued`.
    """

    task: TaskDefinition
    arguments: Mapping[str, Any]
    options: RunOptions
    result: HeldResult = field(repr=False)
    runs: bool = field(default=False, repr=False)

    def __str__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.task.name}({said})"


class EnqueuedRuns(Sequence[EnqueuedRun]):
    """The runs that this test has asked for, in their order.

    Those of a session's transaction go with it, where it is not committed.
    """

    def __init__(self) -> None:
        self._runs: list[EnqueuedRun] = []

    def __repr__(self) -> str:
        return f"[{', '.join(map(str, self._runs))}]"

    def __len__(self) -> int:
        return len(self._runs)

    @overload
    def __getitem__(self, index: int) -> EnqueuedRun: ...

    @overload
    def __getitem__(self, index: slice) -> list[EnqueuedRun]: ...

    def __getitem__(self, index: int | slice) -> EnqueuedRun | list[EnqueuedRun]:
        return self._runs[index]

    def of(
        self, task: TaskFunction[..., Any, ..., Any] | TaskDefinition, /, **values: Any
    ) -> list[EnqueuedRun]:
        """The runs of *task* that have these arguments, among others."""
        wanted = _task_of(task)
        return [each for each in self._runs if each.task is wanted and _has(each.arguments, values)]

    def assert_enqueued(
        self, task: TaskFunction[..., Any, ..., Any] | TaskDefinition, /, **values: Any
    ) -> EnqueuedRun:
        """Fail if no run of *task* with these arguments was asked for; the last one that was."""
        __tracebackhide__ = True
        found = self.of(task, **values)
        if not found:
            pytest.fail(f"no run of {_told(task, values)} was asked for, but {self!r}")
        return found[-1]

    def assert_not_enqueued(
        self, task: TaskFunction[..., Any, ..., Any] | TaskDefinition, /, **values: Any
    ) -> None:
        """Fail if a run of *task* with these arguments was asked for."""
        __tracebackhide__ = True
        if found := self.of(task, **values):
            pytest.fail(f"{found[-1]} was asked for")

    def keep(
        self, task: TaskDefinition, texts: list[str], options: RunOptions
    ) -> list[TaskResult[Any]]:
        """Keep runs that are asked for, in place of the ledger."""
        if isinstance(options.unique, str) and (holder := self._holder(task, options.unique)):
            return [holder.result]
        kept = [
            EnqueuedRun(task, _values(task, text), options, HeldResult(uuid.uuid4().hex, task.name))
            for text in texts
        ]
        self._runs += kept
        session = options.session
        if isinstance(session, AsyncSession):
            session = session.sync_session
        if isinstance(session, Session):
            unless_committed(session, lambda: self._forget(kept))
        return [each.result for each in kept]

    def find(self, run_id: str) -> TaskResult[Any] | None:
        """The result of the run with this id."""
        return next((each.result for each in self._runs if each.result.id == run_id), None)

    def next_waiting(self) -> EnqueuedRun | None:
        """The run to start next: of the highest priority the first."""
        waiting = [each for each in self._runs if not each.runs]
        return min(waiting, key=lambda each: -_priority(each), default=None)

    def _holder(self, task: TaskDefinition, unique: str) -> EnqueuedRun | None:
        for each in self._runs:
            same = each.task is task and each.options.unique == unique
            if same and (not each.result.is_finished or each.options.unique_for):
                return each
        return None

    def _forget(self, kept: list[EnqueuedRun]) -> None:
        self._runs = [each for each in self._runs if each not in kept]


@dataclass(frozen=True)
class _Surroundings:
    app: object
    databases: Mapping[str, Database]

    def run(self, task: TaskDefinition, values: Mapping[str, Any], run_id: str = "") -> Run:
        if task.database is not None and task.database not in self.databases:
            raise UsageError(
                f"{task.name} runs in the database {task.database!r}",
                hint="a fixture task_databases that returns {name: database}",
            )
        return Run(
            task=task,
            arguments=values,
            app=self.app,
            database=self.databases.get(task.database or ""),
            run_id=run_id or uuid.uuid4().hex,
        )


class RunEnqueued:
    """Executes what was asked for, here and now, until nothing waits."""

    def __init__(self, enqueued: EnqueuedRuns, surroundings: _Surroundings) -> None:
        self._enqueued = enqueued
        self._surroundings = surroundings

    def __call__(self, *, raises: bool = True) -> list[RunResult]:
        """The results, in the order of their starts; retries come at once, and count as one.

        What a run asks for is executed too, and what was to wait for its time.

        Args:
            raises: Whether the error of a run that fails for good is raised.

        Raises:
            Exception: Of the first run that fails; those after it wait.
        """
        _refuse_loop("run_enqueued()", "await arun_enqueued()")
        results: list[RunResult] = []
        while (each := self._enqueued.next_waiting()) is not None:
            each.runs = True
            run = self._surroundings.run(each.task, each.arguments, each.result.id)
            result, tries = execute(run), 1
            while (again := _next_attempt(run, result, tries)) is not None:
                run, tries = again, tries + 1
                result = execute(run)
            results.append(_ended(each, result, raises))
        return results


class ArunEnqueued(RunEnqueued):
    """The same, in a coroutine."""

    async def __call__(self, *, raises: bool = True) -> list[RunResult]:  # type: ignore[override]
        """As `RunEnqueued`; sync tasks run in a thread."""
        results: list[RunResult] = []
        while (each := self._enqueued.next_waiting()) is not None:
            each.runs = True
            run = self._surroundings.run(each.task, each.arguments, each.result.id)
            result, tries = await _executed(run), 1
            while (again := _next_attempt(run, result, tries)) is not None:
                run, tries = again, tries + 1
                result = await _executed(run)
            results.append(_ended(each, result, raises))
        return results


class TaskRunner:
    """Executes one run of a task as the runner does, in a scope of its own."""

    def __init__(self, surroundings: _Surroundings) -> None:
        self._surroundings = surroundings

    def __call__(
        self, task: TaskFunction[..., Any, Q, V], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> V:
        """The value that the task returns.

        Raises:
            Exception: What the task raises, or its COMMIT.
        """
        _refuse_loop("run(task)", "await run.a(task)")
        value: V = _value(execute(self._run(task.task, args, kwargs)))
        return value

    async def a(
        self, task: TaskFunction[..., Any, Q, V], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> V:
        """As a call, in a coroutine."""
        value: V = _value(await _executed(self._run(task.task, args, kwargs)))
        return value

    def _run(self, task: TaskDefinition, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Run:
        values = arguments_by_name(task, args, kwargs)
        return self._surroundings.run(task, arguments.bind(signature_of(task.function), values))


class Fire(NamedTuple):
    """An instant of a schedule."""

    at: datetime
    task: str


def fires_between(
    since: datetime, until: datetime, *tasks: TaskFunction[..., Any, ..., Any]
) -> list[Fire]:
    """The instants of the tasks' schedules after *since* and up to *until*, in their order.

    Args:
        tasks: None: all that have a schedule.
    """
    chosen = [each.task for each in tasks] or [each for each in registry if each.schedule]
    read = settings.read()
    planned = plan(chosen, read.timezone, read.executor)
    until_ms = ms_of(until)

    def stream(scheduled: Scheduled) -> Iterator[Fire]:
        at_ms = scheduled.next_ms(ms_of(since))
        while at_ms is not None and at_ms <= until_ms:
            yield Fire(instant_of(at_ms), scheduled.task.name)
            at_ms = scheduled.next_ms(at_ms)

    return list(heapq.merge(*map(stream, planned)))


# -- fixtures --------------------------------------------------------------------------------------


@pytest.fixture
def task_app() -> object:
    """The value of a parameter annotated `FastAPI`. Override it with the app."""
    return None


@pytest.fixture
def task_databases() -> Mapping[str, Database]:
    """The databases of tasks that name one. Override it where there are any."""
    return {}


@pytest.fixture(autouse=True)
def _named_database(request: pytest.FixtureRequest) -> None:
    """`db` of an app that leaves that to `[tool.fsa] database`, for the tests that use it."""
    if not _USE_DB.isdisjoint(request.fixturenames):
        configure_db()


@pytest.fixture
def enqueued() -> Iterator[EnqueuedRuns]:
    """The runs that this test, and the app that it calls, ask for. None reaches a ledger."""
    kept = EnqueuedRuns()
    with divert(kept):
        yield kept


@pytest.fixture
def run_enqueued(
    enqueued: EnqueuedRuns, task_app: object, task_databases: Mapping[str, Database]
) -> RunEnqueued:
    """`run_enqueued()` executes what was asked for, here and now."""
    return RunEnqueued(enqueued, _Surroundings(task_app, task_databases))


@pytest.fixture
def arun_enqueued(
    enqueued: EnqueuedRuns, task_app: object, task_databases: Mapping[str, Database]
) -> ArunEnqueued:
    """`await arun_enqueued()`: the same, in a coroutine."""
    return ArunEnqueued(enqueued, _Surroundings(task_app, task_databases))


@pytest.fixture
def run(task_app: object, task_databases: Mapping[str, Database]) -> TaskRunner:
    """`run(ship, "tea")` executes one run; `await run.a(ship, "tea")` in a coroutine."""
    return TaskRunner(_Surroundings(task_app, task_databases))


# -- one run ---------------------------------------------------------------------------------------


async def _executed(run: Run) -> RunResult:
    if run.task.is_async:
        return await execute_async(run)
    return await asyncio.to_thread(execute, run)


def _next_attempt(run: Run, result: RunResult, tries: int) -> Run | None:
    """The next attempt; None: there is none."""
    if result.succeeded or tries >= _MOST_ATTEMPTS:
        return None
    if RetryPolicy.of(run.task).pause_after_s(result) is None:
        return None
    return replace(run, attempt=run.attempt + (0 if asked_again(result) is not None else 1))


def _ended(each: EnqueuedRun, result: RunResult, raises: bool) -> RunResult:
    """*result*, told to what `enqueue` has returned."""
    kind, message, traceback = error_fields(result.error)
    began_ms = ms_of(result.started_at)
    row = SimpleNamespace(
        status=result.status,
        scheduled_ms=began_ms,
        started_ms=began_ms,
        finished_ms=began_ms + round(result.duration_ms),
        attempt=result.attempt,
        error_type=kind,
        error=message,
        traceback=traceback,
        result=encode_result(result.value) if result.succeeded else None,
        done=None,
    )
    each.result.tell(row)
    if raises and result.status not in ("succeeded", "discarded"):
        assert result.error is not None
        raise result.error
    return result


def _value(result: RunResult) -> Any:
    if result.error is not None:
        raise result.error
    return result.value


def _values(task: TaskDefinition, text: str) -> Mapping[str, Any]:
    signature = signature_of(task.function)
    return arguments.bind(signature, json.loads(text))


def _priority(each: EnqueuedRun) -> int:
    said = each.options.priority
    return each.task.priority if said is None else said


def _task_of(task: TaskFunction[..., Any, ..., Any] | TaskDefinition) -> TaskDefinition:
    return task if isinstance(task, TaskDefinition) else task.task


def _has(given: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(name in given and given[name] == value for name, value in wanted.items())


def _told(
    task: TaskFunction[..., Any, ..., Any] | TaskDefinition, values: Mapping[str, Any]
) -> str:
    said = ", ".join(f"{name}={value!r}" for name, value in values.items())
    return f"{_task_of(task).name}({said})"


def _refuse_loop(call: str, instead: str) -> None:
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        raise UsageError(f"{call} in a coroutine would block its loop", hint=instead)
