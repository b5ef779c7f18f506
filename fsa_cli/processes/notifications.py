"""A task's `on_failure` functions and its ping URL. No run waits for them."""

from __future__ import annotations

import logging
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Callable

from fsa_cli.ledger.records import RunOutcome
from fsa_cli.processes.events import NodeListener
from fsa_cli.runner.report import brief
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.terminal.escaping import escape_record
from fsa_cli.terminal.masking import mask

__all__ = ["Notifications"]

logger = logging.getLogger("fsa.scheduler")
logger.addFilter(escape_record)

_WAITING = 1000
_TIMEOUT_S = 10.0


class Notifications(NodeListener):
    """Calls them one after another, in threads of their own; drops what is too many.

    What a function raises is logged. The pings follow https://healthchecks.io/docs/http_api/:
    `/start`, the URL itself for a success, `/fail`, with the run's id as `rid`.
    """

    name = "notifications"
    alive = True  # its threads come with the first call, and no run waits for them

    def __init__(self) -> None:
        self._queues: dict[str, queue.Queue[Callable[[], object] | None]] = {}
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def run_started(self, run: Run) -> None:
        if run.task.ping is not None:
            self._ping(run, "/start")

    def run_finished(self, run: Run, result: RunResult | None, outcome: RunOutcome | None) -> None:
        """Notify that a run has ended; not yet if another attempt follows."""
        if result is None or outcome is None or outcome.retry_in_ms is not None:
            return
        if run.task.ping is not None:
            text = "" if result.succeeded else brief(result)
            self._ping(run, "" if result.succeeded else "/fail", text)
        if not result.succeeded:
            for hook in run.task.on_failure:
                self._put(
                    "failures",
                    lambda hook=hook: hook(result),  # type: ignore[misc]
                )

    def start(self) -> None: ...

    def quiesce(self) -> None: ...

    def stop(self, within_s: float = 1.0) -> None:
        """Make the calls that are left, for *within_s* at most."""
        for waiting in self._queues.values():
            try:
                waiting.put_nowait(None)
            except queue.Full:
                return
        for thread in self._threads:
            thread.join(within_s)

    def _ping(self, run: Run, path: str, text: str = "") -> None:
        assert run.task.ping is not None
        base, _, query = run.task.ping.partition("?")
        rid = f"{run.run_id[:8]}-{run.run_id[8:12]}-{run.run_id[12:16]}-{run.run_id[16:20]}"
        url = f"{base.rstrip('/')}{path}?rid={rid}-{run.run_id[20:]}{'&' if query else ''}{query}"
        self._put("pings", lambda: _post(url, mask(text)))

    def _put(self, name: str, call: Callable[[], object]) -> None:
        with self._lock:
            waiting = self._queues.get(name)
            if waiting is None:
                waiting = self._queues[name] = queue.Queue(_WAITING)
                thread = threading.Thread(
                    target=self._serve, args=(waiting,), name=f"fsa {name}", daemon=True
                )
                self._threads.append(thread)
                thread.start()
        try:
            waiting.put_nowait(call)
        except queue.Full:
            logger.warning("more than %d %s are waiting: one is left out", _WAITING, name)

    def _serve(self, waiting: queue.Queue[Callable[[], object] | None]) -> None:
        while (call := waiting.get()) is not None:
            try:
                call()
            except Exception:
                logger.exception("an on_failure function failed")


def _post(url: str, text: str) -> None:
    request = urllib.request.Request(url, data=text.encode(), method="POST")
    try:
        urllib.request.urlopen(request, timeout=_TIMEOUT_S).close()
    except (urllib.error.URLError, OSError) as exc:
        logger.warning("%s could not be pinged: %s", mask(url), exc)
