"""The result of a run for a person, as JSON, and as an error with its exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from fsa_cli.database.next_step import next_step
from fsa_cli.exceptions import FsaError, Refused, TaskFailed, TimedOut
from fsa_cli.project import loader
from fsa_cli.project.loader import LoadedApp
from fsa_cli.runner.run import RunResult
from fsa_cli.tasks.outcomes import Discard, Retry
from fsa_cli.tasks.task_context import Progress
from fsa_cli.terminal.formatting import format_elapsed
from fsa_cli.terminal.json_values import dumps, jsonable
from fsa_cli.terminal.masking import MAX_TEXT_LENGTH, mask_head
from fsa_cli.terminal.user_code import (
    UserFrame,
    error_message,
    summarize_error,
    unwrap_error,
    user_frame,
)

if TYPE_CHECKING:
    from fsa_cli.runner.dry_run import DryRun

_OF_LIFESPAN = "no lifespan of the app runs around a task, unless [tool.fsa] has lifespan = true"

__all__ = ["brief", "document", "failure_of", "format_result"]


def document(
    result: RunResult, progress: Sequence[Progress] = (), dry_run: DryRun | None = None
) -> dict[str, object]:
    """A run as JSON."""
    error: dict[str, object] | None = None
    if result.error is not None:
        leaf = unwrap_error(result.error)
        where = user_frame(leaf)
        error = {
            "type": type(leaf).__name__,
            "message": _message(leaf),
            "file": where.file if where else None,
            "line": where.line if where else None,
            "at_commit": result.at_commit,
        }
    return {
        "task": result.task.name,
        "run_id": result.run_id,
        "status": result.status,
        "attempt": result.attempt,
        "scheduled_at": result.scheduled_at,
        "started_at": result.started_at,
        "duration_ms": result.duration_ms,
        "result": jsonable(result.value),
        "error": error,
        "progress": [
            {"text": each.text, "done": each.done, "total": each.total} for each in progress
        ],
        "dry_run": asdict(dry_run) if dry_run is not None else None,
    }


def format_result(value: object) -> str:
    """The result of a task, on one or more lines: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else dumps(jsonable(value))


def brief(result: RunResult) -> str:
    """How a run failed, in a few words: `failed after 23 ms: LookupError: no such user`."""
    assert result.error is not None
    if isinstance(result.error, TimedOut):
        return f"timed out after {format_elapsed(result.duration_ms)}"
    leaf = unwrap_error(result.error)
    if isinstance(leaf, Discard | Retry) and not result.at_commit:
        said = f": {_one_line(leaf)}" if error_message(leaf) else ""
        what = "discarded" if isinstance(leaf, Discard) else "asked to be executed again"
        return f"{what} after {format_elapsed(result.duration_ms)}{said}"
    what = "could not be committed" if result.at_commit else "failed"
    summary = summarize_error(leaf)
    return f"{what} after {format_elapsed(result.duration_ms)}: {summary}"


def failure_of(result: RunResult, loaded: LoadedApp, own_commits: int) -> FsaError:
    """The error for a run that did not succeed, and has committed so often by itself."""
    from fastapi_sqlalchemy.exceptions import SandboxError

    error = result.error
    assert error is not None
    name = result.task.name
    if isinstance(error, TimedOut):
        cause = error.__cause__
        return _with_cause(
            TimedOut(
                error.message,
                details=[
                    *(
                        [summarize_error(cause), *_lines(user_frame(cause))]
                        if cause is not None
                        else []
                    ),
                    _fate(result, own_commits),
                ],
                hint="--timeout S, or timeout_s= of the task, gives it more",
            ),
            cause,
        )
    if isinstance(error, FsaError):
        return error
    if isinstance(unwrap_error(error), SandboxError):
        leaf = unwrap_error(error)
        return _with_cause(
            Refused(
                f"{name} cannot be run dry: {_one_line(leaf)}",
                details=[*_lines(user_frame(leaf)), _fate(result, own_commits)],
            ),
            error,
        )
    gone = loaded.unreachable(error)
    if gone is not None:
        return gone
    leaf = unwrap_error(error)
    where = user_frame(leaf)
    if isinstance(leaf, Discard | Retry) and not result.at_commit:
        return TaskFailed(f"{name} {brief(result)}", details=[_fate(result, own_commits)])
    if isinstance(leaf, SystemExit):
        summary = f"it called sys.exit({leaf.code!r}): return, or raise an error"
    else:
        summary = summarize_error(leaf)
    what = "could not be committed" if result.at_commit else "failed"
    attempts = f" in attempt {result.attempt}" if result.attempt > 1 else ""
    return _with_cause(
        TaskFailed(
            f"{name} {what}{attempts} after {format_elapsed(result.duration_ms)}: {summary}",
            details=[*_lines(where), _fate(result, own_commits)],
            hint=_hint(leaf),
        ),
        error,
    )


def _hint(error: BaseException) -> str:
    if _misses_state(error):
        return _OF_LIFESPAN
    is_databases = hasattr(error, "orig")  # of SQLAlchemy's alone
    step = next_step(error, migrates=_migrates) if is_databases else None
    return step or "--traceback shows where it comes from"


def _migrates() -> bool:
    """Whether the project that `fsa` has loaded has migrations; nobody knows it of others."""
    from fsa_cli.migrations.scripts import find

    loaded = loader.current()
    return loaded is None or find(loaded[1]).exist


def _misses_state(error: BaseException) -> bool:
    """Whether it misses what the app's lifespan would have put into `app.state`."""
    text = error_message(error)
    return isinstance(error, AttributeError) and text.startswith("'State' object has no attribute")


def _fate(result: RunResult, own_commits: int) -> str:
    """What became of what it wrote."""
    if result.kept:
        return "what it wrote before stays: its engine is in AUTOCOMMIT, which rolls nothing back"
    if own_commits:
        number = "a commit" if own_commits == 1 else f"{own_commits} commits"
        return f"what it had committed by itself stays ({number}); the rest was rolled back"
    return "what it wrote was rolled back"


def _message(error: BaseException) -> str:
    text = error_message(error)
    return text if len(text) <= MAX_TEXT_LENGTH else mask_head(text) + " ... (cut)"


def _lines(where: UserFrame | None) -> list[str]:
    return where.lines() if where else []


def _one_line(error: BaseException) -> str:
    return " ".join(error_message(error).split())


def _with_cause(failed: FsaError, cause: BaseException | None) -> FsaError:
    failed.__cause__ = cause
    return failed
