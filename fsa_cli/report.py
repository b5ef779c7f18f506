"""How a run ended, told to a person, as JSON, and as an error with its exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from fsa_cli.blame import Place, described, place
from fsa_cli.context import Progress
from fsa_cli.exceptions import FsaError, Refused, TaskFailed, TimedOut
from fsa_cli.loader import LoadedApp
from fsa_cli.output import dumps
from fsa_cli.runner import RunResult

if TYPE_CHECKING:
    from fsa_cli.rehearsal import Rehearsal

__all__ = ["brief", "culprit", "document", "failure", "shown", "took"]


def document(
    result: RunResult, progress: Sequence[Progress] = (), rehearsal: Rehearsal | None = None
) -> dict[str, object]:
    """A run as JSON has it."""
    error: dict[str, object] | None = None
    if result.error is not None:
        leaf = culprit(result.error)
        where = place(leaf)
        error = {
            "type": type(leaf).__name__,
            "message": str(leaf),
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
        "dry_run": asdict(rehearsal) if rehearsal is not None else None,
    }


def jsonable(value: object) -> Any:
    """*value* as JSON can hold it; what it cannot hold as its repr."""
    try:
        return to_jsonable_python(value, fallback=_repr)
    except Exception:  # a cycle, or an object that fails when it is looked at
        return _repr(value)


def shown(value: object) -> str:
    """What a task returned, on one or more lines: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else dumps(jsonable(value))


def took(duration_ms: float) -> str:
    """`23 ms`, `4.2 s`, `3 min 20 s`."""
    if duration_ms < 1000:
        return f"{duration_ms:.0f} ms"
    if duration_ms < 60_000:
        return f"{duration_ms / 1000:.1f} s"
    minutes, seconds = divmod(round(duration_ms / 1000), 60)
    return f"{minutes} min {seconds} s"


def brief(result: RunResult) -> str:
    """How a run failed, in a few words: `failed after 23 ms: LookupError: no such user`."""
    assert result.error is not None
    if isinstance(result.error, TimedOut):
        return f"timed out after {took(result.duration_ms)}"
    what = "could not be committed" if result.at_commit else "failed"
    return f"{what} after {took(result.duration_ms)}: {described(culprit(result.error))}"


def failure(result: RunResult, loaded: LoadedApp) -> FsaError:
    """What to say of a run that did not succeed."""
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
                    *([described(cause), *_lines(place(cause))] if cause is not None else []),
                    "what it wrote was rolled back",
                ],
                hint="--timeout S, or timeout_s= of the task, gives it more",
            ),
            cause,
        )
    if isinstance(error, FsaError):
        return error
    if isinstance(culprit(error), SandboxError):
        leaf = culprit(error)
        return _with_cause(
            Refused(
                f"{name} cannot be run dry: {_one_line(leaf)}",
                details=[*_lines(place(leaf)), "what it wrote was rolled back"],
            ),
            error,
        )
    gone = loaded.unreachable(error)
    if gone is not None:
        return gone
    leaf = culprit(error)
    where = place(leaf)
    if isinstance(leaf, SystemExit):
        summary = f"it called sys.exit({leaf.code!r}): return, or raise an error"
    else:
        summary = described(leaf)
    what = "could not be committed" if result.at_commit else "failed"
    attempts = f" in attempt {result.attempt}" if result.attempt > 1 else ""
    return _with_cause(
        TaskFailed(
            f"{name} {what}{attempts} after {took(result.duration_ms)}: {summary}",
            details=[*_lines(where), "what it wrote was rolled back"],
            hint="--traceback shows where it comes from",
        ),
        error,
    )


def culprit(error: BaseException) -> BaseException:
    """The error inside a group of one, as a TaskGroup raises it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _lines(where: Place | None) -> list[str]:
    return where.lines() if where else []


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _with_cause(failed: FsaError, cause: BaseException | None) -> FsaError:
    failed.__cause__ = cause
    return failed


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # an ORM object whose session is closed
        return object.__repr__(value)
