"""The child process of `subprocess_run`: load the app, execute one run, say how it ended.

Its argument is FD: the claim comes on stdin, the outcome goes to FD. The task's stdin is empty.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import replace
from typing import Any

from fsa_cli.exceptions import FsaError
from fsa_cli.ledger.location import ledger_of
from fsa_cli.ledger.records import ClaimedRun
from fsa_cli.processes.run_factory import RunFactory
from fsa_cli.project import loader, settings
from fsa_cli.project.settings import Flags, Settings
from fsa_cli.runner import lifespan
from fsa_cli.runner.execute import execute
from fsa_cli.runner.outcome import encode_result, error_fields
from fsa_cli.runner.retry import asked_again, asked_pause_s
from fsa_cli.runner.run import Run
from fsa_cli.tasks.registry import registry
from fsa_cli.terminal.lasting_streams import outlast_readers


def main() -> None:
    """Execute the run whose claim is on stdin, in the app of this directory."""
    outlast_readers()
    answers = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8")
    claimed = ClaimedRun(**json.loads(sys.stdin.readline()))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, args=(_take_stdin(),), daemon=True).start()
    ended: dict[str, Any] = {"error_type": None, "status": "failed"}
    try:
        told = settings.read(Flags())
        run = _build_run(claimed, told)
        answers.write("began\n")
        answers.flush()
        with lifespan.around(run.app, told.lifespan) as run_async:  # type: ignore[arg-type]
            result = execute(replace(run, run_async=run_async))
    except FsaError as exc:
        ended |= {"error_type": type(exc).__name__, "error": exc.message, "traceback": None}
    except KeyboardInterrupt:
        ended |= {"error_type": "Interrupted", "error": "it was cancelled", "traceback": None}
    except BaseException as exc:  # the user's own code too, as a validator's
        kind, message, traceback = error_fields(exc)
        ended |= {"error_type": kind, "error": message, "traceback": traceback}
    else:
        kind, message, traceback = error_fields(result.error)
        ended = {
            "status": result.status,
            "value": _sent(result.value),
            "error_type": kind,
            "error": message,
            "traceback": traceback,
            "asks_again": (asked := asked_again(result)) is not None,
            "retry_in_s": None if asked is None else asked_pause_s(asked),
            "at_commit": result.at_commit,
            "recorded": run.fence is not None and run.fence.recorded,
        }
    answers.write(json.dumps(ended))
    answers.flush()
    if ended["status"] == "timed_out":  # with what the task has started
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _sent(value: object) -> Any:
    """*value* as the parent can read it, of bounded length."""
    encoded = encode_result(value)
    return None if encoded is None else json.loads(encoded)


def _build_run(claimed: ClaimedRun, told: Settings) -> Run:
    loaded = loader.load(told)
    run = RunFactory(loaded, told, ledger_of(loaded.databases, told), registry)(claimed)
    return replace(run, isolated=None)


def _take_stdin() -> int:
    """The pipe that ends with the parent. A task that read it, or a child of its, would not end."""
    parent = os.dup(0)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    return parent


def _end_with_parent(parent: int) -> None:
    os.read(parent, 1)
    os._exit(1)
