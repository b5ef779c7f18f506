"""A run in a process of its own (`isolation="process"`), which can be killed when its time is over.

This is the parent; the child is `subprocess_child`. The claim goes to its stdin, the outcome comes
back on a pipe of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fsa_cli.exceptions import TimedOut
from fsa_cli.ledger.records import ClaimedRun
from fsa_cli.project.interpreter import python_command
from fsa_cli.project.settings import Settings
from fsa_cli.runner.outcome import RemoteError
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.tasks.outcomes import Retry

__all__ = ["SubprocessRun"]

_LOADING_S = 120.0
# Its own time-out ends it more gently, with a rollback and a place in the user's file.
_AFTER_TIMEOUT_S = 2.0
_TERMINATED_S = 3.0
_LOOK_S = 0.05
_AT_ONCE = 65536
# An app that cannot be loaded is an outcome without it.
_BEGAN = b"began\n"


@dataclass(frozen=True)
class SubprocessRun:
    """Executes a run in a new process, as `runner.execute` does here.

    Args:
        environ: Variables of the child besides this process's own.
        directory: Where this process was started; its app, or a task, may have gone elsewhere.
    """

    claimed: ClaimedRun
    environ: Mapping[str, str]
    directory: Path | None = None

    @classmethod
    def of(cls, claimed: ClaimedRun, settings: Settings) -> SubprocessRun:
        """The child loads the same app: flags become variables of its environment."""
        told = {
            "app": settings.app,
            "app_dir": settings.app_dir,
            "env_file": settings.env_file,
            "no_env_file": int(settings.env_file is None),
            "env": settings.env,
            "database": settings.database,
        }
        return cls(
            claimed,
            {
                f"FSA_{name.upper()}": str(value)
                for name, value in told.items()
                if value is not None and settings.sources.get(name, "").startswith("--")
            },
            settings.directory,
        )

    def __call__(self, run: Run) -> RunResult:
        """Execute *run*; the child has ended when this returns."""
        began_s, started_at = time.monotonic(), datetime.now(UTC)
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        with os.fdopen(reading, "rb", buffering=0) as answers:
            process = subprocess.Popen(
                [*python_command("fsa_cli.processes.subprocess_child"), str(writing)],
                stdin=subprocess.PIPE,
                env={**os.environ, **self.environ},
                cwd=self.directory,
                pass_fds=[writing],
                start_new_session=True,  # Ctrl-C is for the scheduler, which lets runs end
            )
            os.close(writing)
            assert process.stdin is not None
            with process.stdin:  # it ends when this process dies, and so does the child
                process.stdin.write(json.dumps(self.claimed._asdict()).encode() + b"\n")
                process.stdin.flush()
                told, late = _watched(process, run, answers.fileno())
        return self._result(run, told, started_at, time.monotonic() - began_s, late=late)

    def _result(
        self, run: Run, told: bytes, started_at: datetime, took_s: float, *, late: bool
    ) -> RunResult:
        ended: dict[str, Any] = json.loads(told) if told else {}
        error: BaseException | None = None
        if late or ended.get("status") == "timed_out":
            error = TimedOut(f"{run.task.name} took longer than {run.timeout_s or 0:g} s")
        elif not ended:
            error = RemoteError.of("ProcessDied", "its process has died")
        elif ended.get("asks_again"):
            error = Retry(ended["error"], in_s=ended["retry_in_s"])
        elif ended["error_type"] is not None:
            error = RemoteError.of(ended["error_type"], ended["error"], ended["traceback"])
        if run.fence is not None and ended.get("recorded"):
            run.fence.recorded = True
        status = "timed_out" if isinstance(error, TimedOut) else ended.get("status", "failed")
        return RunResult(
            task=run.task,
            run_id=run.run_id,
            attempt=run.attempt,
            scheduled_at=run.scheduled_at,
            status="succeeded" if error is None else status,  # type: ignore[arg-type]
            started_at=started_at,
            duration_ms=round(took_s * 1000, 1),
            value=ended.get("value"),
            error=error,
            at_commit=bool(ended.get("at_commit")),
        )


def _watched(process: subprocess.Popen[bytes], run: Run, answers: int) -> tuple[bytes, bool]:
    """Wait for the child, or end it; its outcome, and whether its time-out killed it.

    The end of the pipe is not waited for: what the task has forked may keep it open.
    """
    until_s = time.monotonic() + _LOADING_S
    kill_at_s: float | None = None
    told = b""
    late = counting = False
    while process.returncode is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_S)
        told += _available(answers)
        now_s = time.monotonic()
        if told.startswith(_BEGAN) and not counting:
            counting = True
            limit_s = run.timeout_s if run.timeout_s is not None else float("inf")
            until_s = now_s + limit_s + _AFTER_TIMEOUT_S
        if process.returncode is not None:
            break
        if kill_at_s is None and (now_s >= until_s or run.stop.is_set()):
            late = now_s >= until_s
            kill_at_s = now_s + _TERMINATED_S
            process.terminate()
        elif kill_at_s is not None and now_s >= kill_at_s:
            _kill_group(process)
    if kill_at_s is not None:  # what the task has started goes on without it
        _kill_group(process)
    return told.removeprefix(_BEGAN), late


def _available(answers: int) -> bytes:
    """What is in the pipe."""
    told = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(answers, _AT_ONCE):
            told += part
    return told


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
