"""The one place where a task is executed: by hand, by the scheduler, in a shell, in a test.

A sync task runs in `with db():`, an async one in `async with db():`; what a sync one returns is
awaited in the other, if it can be. A run that returns commits, unless the task says `commit=False`;
one that raises, takes too long or is interrupted is rolled back, and a commit that fails is a
failed run.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from fsa_cli.database.connections import autocommits
from fsa_cli.exceptions import TaskDefinitionError, TimedOut
from fsa_cli.runner.retry import is_conflict
from fsa_cli.runner.run import Run, RunResult, Status
from fsa_cli.runner.signal_handlers import handling
from fsa_cli.runner.statement_cancellation import Statements
from fsa_cli.tasks.callables import written_function
from fsa_cli.tasks.definition import TaskDefinition
from fsa_cli.tasks.outcomes import Discard
from fsa_cli.tasks.signature import Injected, signature_of
from fsa_cli.tasks.task_context import TaskContext
from fsa_cli.terminal.user_code import is_from_outside, traceback_text, unwrap_error

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database
    from fastapi_sqlalchemy.database import DatabaseContext

__all__ = ["execute", "execute_async", "failed_result", "run"]

_NOTHING = contextlib.nullcontext()
_CONFLICT_PAUSES_S = (0.01, 0.05, 0.2)
_AWAITED = 10  # an awaitable may give the next; one that gives itself would do so for ever


def run(
    task: TaskDefinition,
    arguments: Mapping[str, Any] | None = None,
    *,
    app: object = None,
    database: Database | None = None,
    timeout_s: float | None = None,
) -> RunResult:
    """Execute *task* once, here; how it ended. An async task gets an event loop of its own."""
    return execute(
        Run(
            task=task,
            arguments=arguments or {},
            app=app,
            database=database,
            timeout_s=timeout_s,
        )
    )


def execute(run: Run) -> RunResult:
    """Execute *run*; this returns when the transaction has ended.

    A sync task that takes too long is interrupted where it runs in the main thread. In another
    thread nothing can interrupt it: its context's `cancelled` becomes true, and when it returns,
    however late, it is rolled back and has timed out.

    What the database has rolled back in favour of another transaction is executed again at once,
    a few times, unless the task has committed by itself.

    Raises:
        KeyboardInterrupt: In the main thread, after the rollback: a person has stopped it.
    """
    result = _execute(run)
    for pause_s in _CONFLICT_PAUSES_S:
        if not _may_repeat(run, result):
            break
        time.sleep(_jittered(pause_s))
        result = _execute(run)
    return result


def _execute(run: Run) -> RunResult:
    attempt = _Attempt(run)
    if run.task.is_async:
        try:
            result: RunResult = run.run_async(_execute_async(attempt))
            return result
        except (SystemExit, asyncio.CancelledError) as exc:
            # A child coroutine that raises SystemExit ends the loop, which cancels the run.
            return attempt.failed(exc)
        except KeyboardInterrupt as exc:
            if _is_signalled(exc):
                raise
            return attempt.failed(exc)
    try:
        with run.statements, run.fence or _NOTHING, attempt.scope():
            with _interruptible(attempt):
                value = attempt.call()
                is_awaitable = inspect.isawaitable(value)
                if not is_awaitable:
                    attempt.check(value)
            if is_awaitable:
                value = _await_returned(attempt, value)
    except BaseException as exc:
        if _is_from_outside(exc) and not attempt.interrupted_itself:
            raise
        return attempt.failed(exc)
    return attempt.succeeded(value)


def _await_returned(attempt: _Attempt, awaitable: Awaitable[Any]) -> Any:
    """Await what a sync function has returned, in a loop and with sessions of its own."""
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        _close(awaitable)
        raise TaskDefinitionError(
            f"task {attempt.run.task.name!r} returned what must be awaited, and its thread runs an "
            "event loop already",
            hint="write the outermost function as `async def`",
        )

    async def finish() -> Any:
        with attempt.run.statements.cancelling_from_elsewhere():
            return await _in_async_scope(attempt, _resolve(attempt, awaitable))

    try:
        return attempt.run.run_async(finish())
    except KeyboardInterrupt as exc:
        attempt.interrupted_itself = not _is_signalled(exc)
        raise


async def execute_async(run: Run) -> RunResult:
    """As `execute`, for an async task on the running event loop. It is cancelled at its time-out.

    Raises:
        asyncio.CancelledError: this run was cancelled; it is rolled back.
    """
    result = await _execute_async(_Attempt(run))
    for pause_s in _CONFLICT_PAUSES_S:
        if not _may_repeat(run, result):
            break
        await asyncio.sleep(_jittered(pause_s))
        result = await _execute_async(_Attempt(run))
    return result


def _jittered(pause_s: float) -> float:
    return random.uniform(0.5, 1.5) * pause_s


def _may_repeat(run: Run, result: RunResult) -> bool:
    """Whether the run's one transaction was rolled back because another one had to go on."""
    if run.fence is None or run.fence.commits or run.stop.is_set() or result.kept:
        return False
    return result.status == "failed" and is_conflict(result.error)


async def _execute_async(attempt: _Attempt) -> RunResult:
    run = attempt.run
    try:
        with run.statements, run.fence or _NOTHING:
            value = await _in_async_scope(attempt, attempt.await_call())
    except asyncio.CancelledError as exc:
        current = asyncio.current_task()
        if current is None or current.cancelling():
            raise
        return attempt.failed(exc)
    except BaseException as exc:
        if _is_from_outside(exc):
            raise
        return attempt.failed(exc)
    return attempt.succeeded(value)


async def _in_async_scope(attempt: _Attempt, work: Coroutine[Any, Any, Any]) -> Any:
    statements = attempt.run.statements
    async with attempt.scope():
        with statements.ended_by_signals():
            async with asyncio.timeout(attempt.remaining_s):
                value = await statements.ended_by_cancelling(work)
        attempt.check(value)
    return value


async def _resolve(attempt: _Attempt, value: Any) -> Any:
    """Await *value*, and what that gives, until it is no awaitable."""
    for _ in range(_AWAITED):
        if not inspect.isawaitable(value):
            return value
        with _EndingForkedChildren():
            value = await value
    _close(value)
    raise TaskDefinitionError(
        f"task {attempt.run.task.name!r} returned an awaitable that gives another, and so on",
        hint="return its result",
    )


class _EndingForkedChildren:
    """End a process that the task has forked where it leaves the task.

    The run is the parent's, and so is whatever waits in this process: the child would run it too.
    """

    __slots__ = ("_process_id",)

    def __enter__(self) -> None:
        self._process_id = os.getpid()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if os.getpid() != self._process_id:
            _end_child(error)


def _end_child(error: BaseException | None) -> NoReturn:
    status = 0 if error is None else 1
    with contextlib.suppress(BaseException):
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None:
            sys.stderr.write(f"{traceback_text(error)}\n")
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status & 0xFF)


def _close(awaitable: object) -> None:
    if inspect.iscoroutine(awaitable):
        awaitable.close()


def _is_signalled(error: KeyboardInterrupt) -> bool:
    """Whether a signal has ended `asyncio.run`, and no coroutine that raised it by itself."""
    if type(error) is not KeyboardInterrupt:
        return True  # of a handler of this project
    handler = signal.getsignal(signal.SIGINT)
    if handler in (signal.SIG_IGN, signal.SIG_DFL):
        return False  # none reaches Python
    if handler is not signal.default_int_handler:
        return True  # asyncio has not handled it, and it came wherever the thread was
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    return innermost is None or innermost.tb_frame.f_code.co_filename == asyncio.runners.__file__


def failed_result(run: Run, error: BaseException) -> RunResult:
    """The result of a run that *error* ended outside of its task."""
    try:
        return _Attempt(run).failed(error)
    except BaseException:  # it may be what the attempt was refused for: the run ends all the same
        return RunResult(
            task=run.task,
            run_id=run.run_id,
            attempt=run.attempt,
            scheduled_at=run.scheduled_at,
            status="failed",
            started_at=datetime.now(UTC),
            duration_ms=0.0,
            error=error,
        )


def _is_from_outside(error: BaseException) -> bool:
    """Whether a person has stopped the run, and not its time-out."""
    return not isinstance(error, _TimeIsUp) and is_from_outside(error)


class _Attempt:
    """One execution of a run."""

    def __init__(self, run: Run) -> None:
        import fastapi_sqlalchemy

        self.run = run
        self.timeout_s = run.timeout_s if run.timeout_s is not None else run.task.timeout_s
        self.database: Database = run.database or fastapi_sqlalchemy.db
        self.interrupted_itself = False
        self.started_at = datetime.now(UTC)
        self._began_s = time.monotonic()
        self._returned = False
        self._value: object = None
        limit = self.timeout_s
        self._deadline_s = self._began_s + limit if limit is not None else None
        self._context = TaskContext(
            task=run.task.name,
            run_id=run.run_id,
            attempt=run.attempt,
            scheduled_at=run.scheduled_at,
            dry_run=run.dry_run,
            deadline=self.started_at + timedelta(seconds=limit) if limit is not None else None,
            _deadline_s=self._deadline_s,
            _stop=run.stop,
            _report=run.report,
        )

    def scope(self) -> DatabaseContext:
        return self.database(commit_on_exit=self.run.task.commit)

    @property
    def remaining_s(self) -> float | None:
        """How much of its time is left; None: no end."""
        return None if self._deadline_s is None else self._deadline_s - time.monotonic()

    def call(self) -> Any:
        """Call the user's function, inside its scope."""
        signature = signature_of(self.run.task.function)
        values = dict(self.run.arguments)
        for name, kind in signature.injected.items():
            values[name] = self._inject(name, kind)
        positional, named = signature.call(values)
        with _EndingForkedChildren():
            return self.run.task.function(*positional, **named)

    async def await_call(self) -> Any:
        return await _resolve(self, self.call())

    def _inject(self, name: str, kind: Injected) -> object:
        match kind:
            case "session":
                return self.database.session
            case "async_session":
                return self.database.async_session
            case "context":
                return self._context
            case "app" if self.run.app is not None:
                return self.run.app
        raise TaskDefinitionError(
            f"task {self.run.task.name!r} takes the app as {name!r}, and here is none",
            hint="run(task, app=app)",
        )

    def check(self, value: object) -> None:
        """Check the result before the commit."""
        if inspect.isgenerator(value) or inspect.isasyncgen(value):
            code = getattr(value, "gi_code", None) or getattr(value, "ag_code", None)
            if code is getattr(written_function(self.run.task.function), "__code__", self):
                raise TaskDefinitionError(
                    f"task {self.run.task.name!r} returned its generator, of which nothing ran",
                    hint="return instead of yield",
                )
        if self._late:
            raise _TimeIsUp
        self._returned = True
        self._value = value
        if self.run.fence is not None:
            self.run.fence.returned(value)

    @property
    def _late(self) -> bool:
        return self._deadline_s is not None and time.monotonic() >= self._deadline_s

    def succeeded(self, value: object) -> RunResult:
        return self._result("succeeded", value=value)

    def failed(self, error: BaseException) -> RunResult:
        if self.run.fence is not None and self.run.fence.recorded:
            # The answer to COMMIT was lost on its way, and the database says that it has happened.
            return self.succeeded(self._value)
        if isinstance(error, _TimeIsUp) or (self._late and not self._returned):
            late = TimedOut(f"{self.run.task.name} took longer than {self.timeout_s:g} s")
            told = isinstance(error, _TimeIsUp) or (type(error) is TimeoutError and not str(error))
            late.__cause__ = None if told else error
            return self._result("timed_out", error=late, kept=self._keeps)
        if isinstance(unwrap_error(error), Discard) and not self._returned:
            return self._result("discarded", error=error, kept=self._keeps)
        return self._result("failed", error=error, at_commit=self._returned, kept=self._keeps)

    @property
    def _keeps(self) -> bool:
        return not self.run.dry_run and autocommits(self.database)

    def _result(self, status: Status, **outcome: Any) -> RunResult:
        return RunResult(
            task=self.run.task,
            run_id=self.run.run_id,
            attempt=self.run.attempt,
            scheduled_at=self.run.scheduled_at,
            status=status,
            started_at=self.started_at,
            duration_ms=round((time.monotonic() - self._began_s) * 1000, 1),
            **outcome,
        )


class _TimeIsUp(KeyboardInterrupt):
    """A sync task's time is over.

    A KeyboardInterrupt, so that no `except Exception` of the task keeps it going, and so that
    psycopg cancels the statement that it waits for.
    """


def _interruptible(attempt: _Attempt) -> AbstractContextManager[object]:
    """While inside, signals and the time limit end what the main thread does; no other can."""
    if threading.current_thread() is not threading.main_thread():
        return _NOTHING
    return _in_main_thread(attempt.run.statements, attempt.timeout_s)


@contextlib.contextmanager
def _in_main_thread(statements: Statements, seconds: float | None) -> Iterator[None]:
    with statements.ended_by_signals(), _alarm(seconds):
        yield


@contextlib.contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    """Interrupt the main thread after *seconds*."""
    if seconds is None:
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _TimeIsUp

    with handling(ring, signal.SIGALRM):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
