"""Execute runs in this process: sync tasks in threads, async ones on one event loop."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from fsa_cli.runner.execute import execute, execute_async
from fsa_cli.runner.run import Run, RunResult

__all__ = ["RunPool"]

logger = logging.getLogger("fsa.scheduler")

Finished = Callable[[Run, RunResult | None], None]


class RunPool:
    """Executes runs, *concurrency* at a time; the others wait in the order of their submission.

    Each run has a context of its own, so that no ContextVar is carried from one to the next. The
    threads are daemons: one that hangs cannot keep the process from ending.

    Args:
        concurrency: How many runs go on at a time.
        finished: Called with each run and its result, in the thread that executed it; the result is
            None if the run was cancelled.
        began: Called with each run as it starts, in the thread that executes it.
    """

    def __init__(
        self, concurrency: int, finished: Finished, began: Callable[[Run], None] = lambda run: None
    ) -> None:
        self.concurrency = concurrency
        self._finished = finished
        self._began = began
        self._lock = threading.Lock()
        self._waiting: deque[Run] = deque()
        self._running: dict[str, Run] = {}
        self._begun_s: dict[str, float] = {}
        self._closed = False
        self._threads = 0
        self._idle = 0
        self._work: queue.SimpleQueue[Run] = queue.SimpleQueue()
        self._loop = _LoopThread()

    def submit(self, run: Run) -> bool:
        """Take *run*; False if the pool is closed."""
        with self._lock:
            if self._closed:
                return False
            self._waiting.append(run)
        self._fill()
        return True

    @property
    def running(self) -> list[Run]:
        with self._lock:
            return list(self._running.values())

    @property
    def waiting(self) -> int:
        """How many runs have not started."""
        return len(self._waiting)

    @property
    def load(self) -> int:
        """How many runs it has: running and waiting."""
        with self._lock:
            return len(self._running) + len(self._waiting)

    def overdue(self, by_s: float = 0.0) -> list[Run]:
        """The sync runs that are *by_s* past their time-out. Nothing can interrupt a thread."""
        now_s = time.monotonic()
        with self._lock:
            return [
                run
                for run_id, run in self._running.items()
                if not _on_loop(run)
                and run.isolated is None
                and run.timeout_s is not None
                and now_s >= self._begun_s[run_id] + run.timeout_s + by_s
            ]

    def close(self) -> list[Run]:
        """Start nothing more, and return the runs that waited. What runs goes on."""
        with self._lock:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
        return left

    def cancel(self) -> None:
        """Cancel the async runs; set `TaskContext.cancelled` for the sync ones."""
        for run in self.running:
            self.cancel_run(run)

    def cancel_run(self, run: Run) -> None:
        """Cancel one run; the statement of a sync one is ended."""
        run.stop.set()
        if _on_loop(run):
            self._loop.cancel(run.run_id)
        else:
            run.statements.end_of_thread()

    def stop(self) -> None:
        """End the event loop, with what the app's async engine holds open on it."""
        self._loop.stop()

    def _fill(self) -> None:
        while (run := self._next()) is not None:
            if _on_loop(run):
                self._loop.start_run(run, self._begin, self._ended_on_loop)
                continue
            with self._lock:
                needs_thread = self._idle == 0
                self._idle -= not needs_thread
                self._threads += needs_thread
            self._work.put(run)
            if needs_thread:
                name = f"fsa run {self._threads}"
                threading.Thread(target=self._serve, name=name, daemon=True).start()

    def _next(self) -> Run | None:
        """The next run that may start."""
        with self._lock:
            if not self._waiting or len(self._running) >= self.concurrency:
                return None
            run = self._waiting.popleft()
            self._running[run.run_id] = run
            self._begun_s[run.run_id] = time.monotonic()
        return run

    def _serve(self) -> None:
        while True:
            run: Run | None = self._work.get()
            while run is not None:
                contextvars.Context().run(self._make, run)
                # Waking another thread for the next one takes longer than a short run.
                run = self._next()
                if run is not None and _on_loop(run):
                    self._loop.start_run(run, self._begin, self._ended_on_loop)
                    run = None
            with self._lock:
                self._idle += 1
            self._fill()

    def _make(self, run: Run) -> None:
        result: RunResult | None = None
        try:
            self._begin(run)
            result = (run.isolated or execute)(run)
        except BaseException:  # a task may raise KeyboardInterrupt; it must not cost the slot
            result = None
        self._end(run, result)

    def _begin(self, run: Run) -> None:
        self._begun_s[run.run_id] = time.monotonic()
        self._began(run)

    def _ended_on_loop(self, run: Run, result: RunResult | None) -> None:
        self._end(run, result)
        self._fill()

    def _end(self, run: Run, result: RunResult | None) -> None:
        with self._lock:
            del self._running[run.run_id]
            del self._begun_s[run.run_id]
        try:
            self._finished(run, result)
        except Exception:
            logger.exception("the outcome of a run of %s could not be handled", run.task.name)


def _on_loop(run: Run) -> bool:
    return run.task.is_async and run.isolated is None


class _LoopThread:
    """An event loop in a thread of its own, started with the first async run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Event | None = None
        self._ready = threading.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start_run(self, run: Run, begin: Callable[[Run], None], end: Finished) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="fsa loop", daemon=True)
                self._thread.start()
        self._ready.wait()
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._spawn, run, begin, end)

    def cancel(self, run_id: str) -> None:
        def cancel() -> None:
            if task := self._tasks.get(run_id):
                task.cancel()

        if self._loop is not None:
            self._loop.call_soon_threadsafe(cancel)

    def stop(self) -> None:
        if self._thread is not None and self._loop is not None and self._closing is not None:
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    def _serve(self) -> None:
        asyncio.run(self._until_closed())

    async def _until_closed(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        self._ready.set()
        await self._closing.wait()

    def _spawn(self, run: Run, begin: Callable[[Run], None], end: Finished) -> None:
        task = asyncio.get_running_loop().create_task(
            self._make(run, begin, end), name=run.task.name, context=contextvars.Context()
        )
        self._tasks[run.run_id] = task

    async def _make(self, run: Run, begin: Callable[[Run], None], end: Finished) -> None:
        result: RunResult | None = None
        try:
            begin(run)
            result = await execute_async(run)
        except BaseException:  # cancelled; or a KeyboardInterrupt, which would end the loop
            result = None
        finally:
            del self._tasks[run.run_id]
            end(run, result)
