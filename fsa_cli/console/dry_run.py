"""A dry run from a page: in a process of its own, since it holds up every write of its process."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any

from fsa_cli.exceptions import UsageError
from fsa_cli.project import loader
from fsa_cli.project.interpreter import python_command
from fsa_cli.project.settings import Settings
from fsa_cli.terminal.json_values import dumps
from fsa_cli.terminal.masking import mask_head

__all__ = ["DryRunReport", "dry_run", "is_possible"]

_TIMEOUT_S = 60
_OUTPUT_LENGTH = 4 * 1024 * 1024
# Settings that flags of `fsa console` have set: everything else is the same for its child.
_FLAGS = {"app": "--app", "env": "--env", "database": "--database", "env_file": "--env-file"}


@dataclass(frozen=True)
class DryRunReport:
    """What a task would have changed; all of it was rolled back.

    Attributes:
        tables: For each table how many rows would be `inserted`, `updated`, `deleted`.
        notes: What else is to be said of it: statements, runs that it would enqueue.
    """

    task: str
    status: str
    duration_ms: float
    result: str
    error: str | None
    tables: list[dict[str, Any]]
    notes: list[str]

    def __str__(self) -> str:
        changes = [
            f"{row['table']}: {row['inserted']} inserted, {row['updated']} updated, "
            f"{row['deleted']} deleted"
            for row in self.tables
        ]
        return "; ".join([self.status, *changes, *([self.error] if self.error else [])])


def is_possible() -> bool:
    """Whether this process is `fsa console`, whose app a child can load in the same way."""
    return loader.current() is not None


def dry_run(settings: Settings, name: str, values: str) -> DryRunReport:
    """Run a task by `fsa run-task --dry-run`, for a minute at most.

    Args:
        values: Its arguments, as JSON.

    Raises:
        UsageError: It cannot be run; the reason is that of `fsa run-task`.
    """
    flags = [
        part
        for key, flag in _FLAGS.items()
        if settings.sources.get(key) == flag
        for part in (flag, str(getattr(settings, key)))
    ]
    command = [*python_command("fsa_cli.__main__"), *flags, "--json", "run-task", "--dry-run"]
    command += ["--timeout", str(_TIMEOUT_S), "--args-json", "-", name]
    try:
        done = subprocess.run(
            command,
            input=values.encode(),
            capture_output=True,
            timeout=_TIMEOUT_S + 30,
            cwd=settings.directory,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f"the dry run of {name} did not end within {_TIMEOUT_S} s") from None
    if len(done.stdout) > _OUTPUT_LENGTH:
        raise UsageError(f"the dry run of {name} says more than a page can hold")
    try:
        told = json.loads(done.stdout)
        return _report(told)
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"the dry run of {name} failed: {_reason(done.stderr)}") from None


def _report(told: dict[str, Any]) -> DryRunReport:
    changes = told["dry_run"] or {}
    error = told["error"]
    notes = [f"schema: {each}" for each in changes.get("schema", [])]
    notes += [f"rows not counted: {each}" for each in changes.get("uncounted", [])]
    notes += [
        f"would enqueue {each['runs']} of {each['task']}" for each in changes.get("enqueued", [])
    ]
    notes += [f"not undone: {each}" for each in changes.get("kept", [])]
    return DryRunReport(
        task=told["task"],
        status=told["status"],
        duration_ms=told["duration_ms"],
        result="" if told["result"] is None else mask_head(dumps(told["result"], indent=2)),
        error=None if error is None else mask_head(f"{error['type']}: {error['message']}"),
        tables=changes.get("tables", []),
        notes=[mask_head(note, 1000) for note in notes[:100]],
    )


def _reason(stderr: bytes) -> str:
    """The message of the error that `fsa --json` has written last."""
    last = stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    try:
        return str(json.loads(last[0])["message"]) if last else "it said nothing"
    except (ValueError, KeyError, TypeError):
        return mask_head(last[0], 500)
