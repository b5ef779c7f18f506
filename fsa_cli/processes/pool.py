"""Execute runs in this process: sync tasks in threads, async ones on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from fsa_cli.exceptions import LifespanFailed
from fsa_cli.processes.active_runs import ActiveRun
from fsa_cli.runner.event_loop import Runner
from fsa_cli.runner.execute import execute, execute_async, failed_result
from fsa_cli.runner.lifespan import Lifespan
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.terminal.escaping import escape_record
from fsa_cli.terminal.user_code import traceback_text

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = ["RunPool"]

logger = logging.getLogger("fsa.scheduler")
logger.addFilter(escape_record)

Started = Callable[[ActiveRun], None]
Ended = Callable[[ActiveRun, "RunResult | None"], None]
Executed = Callable[[ActiveRun], Coroutine[Any, Any, None]]

# The slots that have come free in so long say how many will come free soon.
_LATELY_S = 0.5
# Runs that take next to nothing: as many as begin in so long are worth one claim.
_MOMENT_S = 0.02
_MOST_AHEAD = 200
# The end of a loop takes less, unless something blocks it.
_ENDED_S = 4.0


class RunPool:
    """Executes runs, *concurrency* at a time; the others wait in the order of their submission.

    None starts before `open`: a task may do to the process what it could not begin with.

    Each run has a context of its own, so that no ContextVar is carried from one to the next. The
    threads are daemons: one that hangs cannot keep the process from ending.

    Args:
        concurrency: How many runs go on at a time.
        started: Called with each run as it starts, in the thread that executes it.
        ended: Called with each run and its result, in the thread that executed it; the result is
            None if the run was cancelled.
    """

    def __init__(self, concurrency: int, started: Started, ended: Ended) -> None:
        self.concurrency = concurrency
        self._started = started
        self._ended = ended
        self._lock = threading.Lock()
        self._waiting: deque[ActiveRun] = deque()
        # By object, not by id: a run that was lost may be executed here a second time.
        self._running: set[ActiveRun] = set()
        self._opened = self._closed = False
        self._freed_s: deque[float] = deque(maxlen=max(concurrency, _MOST_AHEAD))
        self._threads = 0
        self._idle = 0
        self._work: queue.SimpleQueue[ActiveRun] = queue.SimpleQueue()
        self._loop = _LoopThread()

    def open(self) -> None:
        """Begin to start runs."""
        self._opened = True
        self.fill()

    def submit(self, active: ActiveRun) -> bool:
        """Take a run that is built; False if the pool is closed."""
        with self._lock:
            if self._closed:
                return False
            self._waiting.append(active)
        self.fill()
        return True

    def fill(self) -> None:
        """Start what waits while there is room; also each second, if no thread could be had."""
        while (active := self._next()) is not None and self._began(active):
            pass

    @property
    def active(self) -> list[ActiveRun]:
        """The runs that go on."""
        with self._lock:
            return list(self._running)

    @property
    def running(self) -> list[Run]:
        return [_run(each) for each in self.active]

    @property
    def waiting(self) -> int:
        """How many runs have not started."""
        return len(self._waiting)

    @property
    def load(self) -> int:
        """How many runs it has: running and waiting."""
        with self._lock:
            return len(self._running) + len(self._waiting)

    @property
    def comes_free_soon(self) -> int:
        """How many more runs could begin soon, by how many have ended lately.

        At most as many as go on at a time, unless more than that have ended within a moment.
        """
        soon, now_s = 0, time.monotonic()
        with self._lock:
            for ended_s in reversed(self._freed_s):
                within_s = _LATELY_S if soon < self.concurrency else _MOMENT_S
                if now_s - ended_s > within_s:
                    break
                soon += 1
        return soon

    def take_back(self) -> list[ActiveRun]:
        """Take back the runs that wait, if no slot comes free: they will not start here."""
        if self.comes_free_soon:
            return []
        with self._lock:
            if len(self._running) < self.concurrency:  # they wait for a thread, or for `open`
                return []
            left = list(self._waiting)
            self._waiting.clear()
        return left

    def withdraw(self, run_ids: set[str]) -> list[ActiveRun]:
        """Take back those of these runs that wait: they will not start here."""
        with self._lock:
            found = [each for each in self._waiting if each.claim.run_id in run_ids]
            for each in found:
                self._waiting.remove(each)
        return found

    def overdue(self, by_s: float = 0.0) -> list[ActiveRun]:
        """The sync runs that are *by_s* past their time-out. Nothing can interrupt a thread."""
        now_s = time.monotonic()
        found = []
        for each in self.active:
            run, since_s = _run(each), each.started_s
            if _on_loop(run) or run.isolated is not None or run.timeout_s is None:
                continue
            if since_s is not None and now_s >= since_s + run.timeout_s + by_s:
                found.append(each)
        return found

    @property
    def alive(self) -> bool:
        """Whether async runs can go on; if not, the process should be restarted."""
        return self._loop.alive

    def close(self) -> list[ActiveRun]:
        """Start nothing more, and return the runs that waited. What runs goes on."""
        with self._lock:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
        return left

    def cancel(self) -> None:
        """Cancel the async runs; set `TaskContext.cancelled` for the sync ones."""
        for each in self.active:
            self.cancel_run(each)

    def cancel_run(self, active: ActiveRun) -> None:
        """Cancel one run; the statement of a sync one is ended."""
        run = _run(active)
        run.stop.set()
        if _on_loop(run):
            self._loop.cancel(active)
        else:
            run.statements.end_of_thread()

    def start_lifespan(self, app: Starlette) -> Future[None]:
        """Start *app*'s lifespan on the loop of the async runs.

        The future raises `LifespanFailed`.
        """
        return self._loop.start_lifespan(app)

    def stop(self, within_s: float | None = None) -> None:
        """End the lifespan, and the event loop with what the app's async engine holds open on it.

        Raises:
            LifespanFailed: The lifespan has raised, or did not end within *within_s*.
        """
        self._loop.stop(within_s)

    def _began(self, active: ActiveRun) -> bool:
        """Start a run; False if it waits again: the system gives no more threads, for now."""
        try:
            self._begin(active)
        except RuntimeError as exc:
            with self._lock:
                self._running.discard(active)
                self._waiting.appendleft(active)
            logger.warning("a run of %s waits for a thread: %s", active.claim.task, exc)
            return False
        return True

    def _begin(self, active: ActiveRun) -> None:
        """Raises `RuntimeError`: there is no thread for it."""
        if _on_loop(_run(active)):
            self._start_on_loop(active)
            return
        with self._lock:
            needs_thread = self._idle == 0
            self._idle -= not needs_thread
            self._threads += needs_thread
        if needs_thread:
            name = f"fsa run {self._threads}"
            threading.Thread(target=self._serve, name=name, daemon=True).start()
        self._work.put(active)

    def _next(self) -> ActiveRun | None:
        """The next run that may start."""
        with self._lock:
            if not (self._waiting and self._opened) or len(self._running) >= self.concurrency:
                return None
            active = self._waiting.popleft()
            active.started_s = time.monotonic()
            self._running.add(active)
        return active

    def _serve(self) -> None:
        while True:
            active: ActiveRun | None = self._work.get()
            while active is not None:
                contextvars.Context().run(self._execute, active)
                # Waking another thread for the next one takes longer than a short run.
                active = self._next()
                if active is not None and _on_loop(_run(active)):
                    self._began(active)
                    active = None
            with self._lock:
                self._idle += 1
            self.fill()

    def _execute(self, active: ActiveRun) -> None:
        run = _run(active)
        result: RunResult | None
        try:
            self._start(active)
            result = (run.isolated or execute)(run)
        except BaseException as exc:  # whatever it is, it must not cost the slot
            result = failed_result(run, exc)
        self._end(active, result)

    def _start_on_loop(self, active: ActiveRun) -> None:
        self._loop.start_run(active, self._execute_async, self._end_cancelled)

    async def _execute_async(self, active: ActiveRun) -> None:
        run = _run(active)
        result: RunResult | None = None
        try:
            self._start(active)
            result = await execute_async(run)
        except asyncio.CancelledError as exc:
            result = None if run.stop.is_set() else failed_result(run, exc)
        except BaseException as exc:  # nothing may end the loop of the others
            result = failed_result(run, exc)
        finally:
            self._end(active, result)
            self.fill()

    def _end_cancelled(self, active: ActiveRun) -> None:
        """End a run that was cancelled before its coroutine began."""
        if active in self.active:
            self._end(active, None)
            self.fill()

    def _start(self, active: ActiveRun) -> None:
        active.started_s = time.monotonic()
        self._started(active)

    def _end(self, active: ActiveRun, result: RunResult | None) -> None:
        with self._lock:
            self._running.discard(active)
            self._freed_s.append(time.monotonic())
        try:
            self._ended(active, result)
        except BaseException as exc:  # it must not cost the thread
            name, told = active.claim.task, traceback_text(exc)
            logger.error("the end of a run of %s could not be handled\n%s", name, told)


def _run(active: ActiveRun) -> Run:
    assert active.run is not None
    return active.run


def _on_loop(run: Run) -> bool:
    return run.task.is_async and run.isolated is None


_loops: weakref.WeakSet[_LoopThread] = weakref.WeakSet()


def _end_loops_in_child() -> None:
    for each in _loops:
        each.end_in_child()


os.register_at_fork(after_in_child=_end_loops_in_child)


class _LoopThread:
    """An event loop in a thread of its own, started with the first async run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Event | None = None
        self._ready = threading.Event()
        self._lifespan: Lifespan | None = None
        self._tasks: dict[ActiveRun, asyncio.Task[None]] = {}
        _loops.add(self)

    @property
    def alive(self) -> bool:
        closes = self._closing is not None and self._closing.is_set()
        return closes or self._thread is None or self._thread.is_alive()

    def start_run(
        self, active: ActiveRun, execute: Executed, done: Callable[[ActiveRun], None]
    ) -> None:
        self._begin().call_soon_threadsafe(self._spawn, active, execute, done)

    def _begin(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._serve, name="fsa loop", daemon=True)
                thread.start()
                self._thread = thread
        self._ready.wait()
        assert self._loop is not None
        return self._loop

    def start_lifespan(self, app: Starlette) -> Future[None]:
        async def start() -> None:
            lifespan = Lifespan(app)
            await lifespan.start()
            self._lifespan = lifespan

        return asyncio.run_coroutine_threadsafe(start(), self._begin())

    def end_in_child(self) -> None:
        """Let a process that a task has forked take no further step of this loop."""
        if self._loop is not None and threading.current_thread() is self._thread:
            self._loop.stop()
            # The others' steps of this round: without them asyncio's own loop fails, and ends.
            getattr(self._loop, "_ready", deque[Any]()).clear()

    def cancel(self, active: ActiveRun) -> None:
        def cancel() -> None:
            if task := self._tasks.get(active):
                task.cancel()

        if self._loop is not None:
            self._loop.call_soon_threadsafe(cancel)

    def stop(self, within_s: float | None) -> None:
        if self._thread is None or self._loop is None or self._closing is None:
            return
        lifespan, self._lifespan = self._lifespan, None
        try:
            if lifespan is not None:
                ending = asyncio.run_coroutine_threadsafe(lifespan.stop(), self._loop)
                ending.result(within_s)
        except TimeoutError:
            raise LifespanFailed(f"the app's lifespan did not end within {within_s:g} s") from None
        finally:
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(_ENDED_S)
        if self._thread.is_alive():
            logger.warning("the event loop is left behind: something that a task began blocks it")

    def _serve(self) -> None:
        process_id = os.getpid()
        with Runner() as runner:
            loop = runner.get_loop()
            self._closing = closing = asyncio.Event()
            self._loop = loop
            self._ready.set()
            while not closing.is_set() and not loop.is_closed():
                # asyncio hands SystemExit and KeyboardInterrupt to whoever awaits the coroutine
                # that raised them, and ends the loop besides. A task may also cancel all that
                # there are, or stop the loop: the other runs go on when it is entered again.
                try:
                    with contextlib.suppress(
                        SystemExit, KeyboardInterrupt, asyncio.CancelledError, RuntimeError
                    ):
                        loop.run_until_complete(closing.wait())
                finally:
                    if os.getpid() != process_id:
                        os._exit(1)

    def _spawn(
        self, active: ActiveRun, execute: Executed, done: Callable[[ActiveRun], None]
    ) -> None:
        task = asyncio.get_running_loop().create_task(
            execute(active), name=active.claim.task, context=contextvars.Context()
        )
        self._tasks[active] = task

        def ended(task: asyncio.Task[None]) -> None:
            del self._tasks[active]
            done(active)

        task.add_done_callback(ended)
