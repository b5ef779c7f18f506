"""Record a run that a person starts. Without a ledger this costs next to nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fsa_cli.exceptions import DatabaseUnreachable, FsaError
from fsa_cli.ledger.access import is_there, reached, require
from fsa_cli.ledger.location import cannot_hold, ledger_of
from fsa_cli.ledger.offload import within
from fsa_cli.runner.run import Run

if TYPE_CHECKING:
    from fsa_cli.processes.recorded_run import RecordedRun
    from fsa_cli.project.loader import LoadedApp
    from fsa_cli.project.settings import Settings

__all__ = ["begin"]

# It may wait for a lock of SQLite's, or for a server that begins.
_BEGUN_S = 30.0
_SILENT = "the ledger does not answer"


def begin(
    loaded: LoadedApp,
    settings: Settings,
    run: Run,
    name: str,
    *,
    locks: bool,
    warn: Callable[[str], None],
) -> RecordedRun | None:
    """Write that a run starts; None: there is no ledger, and it goes on without a record.

    A ledger that is away, old or read-only keeps no task from running, unless the lock is asked
    for: then it is an error.

    Args:
        name: What the ledger calls the task.
        locks: Whether the run holds the task's lock meanwhile.

    Raises:
        LockHeld: Another run holds the lock.
        FsaError: The lock is asked for, and the ledger cannot give it.
    """
    if not locks and cannot_hold(loaded.databases, settings) is not None:
        return None

    def begun() -> RecordedRun | None:
        ledger = ledger_of(loaded.databases, settings)
        try:
            with reached(ledger):
                if locks:
                    require(ledger)
                elif not is_there(ledger):
                    ledger.dispose()
                    return None
                from fsa_cli.processes.lease import LEASE_S
                from fsa_cli.processes.recorded_run import RecordedRun

                return RecordedRun(ledger, settings.lease_s or LEASE_S, run, name, locks, warn)
        except BaseException:
            ledger.dispose()
            raise

    try:
        return within(_BEGUN_S, begun)
    except (FsaError, TimeoutError) as exc:
        error = exc if isinstance(exc, FsaError) else DatabaseUnreachable(_SILENT)
        if locks:
            raise error from exc
        why = next(iter(reversed(error.details)), None)
        warn(f"the run is not recorded: {error.message}{f' ({why})' if why else ''}")
        return None
