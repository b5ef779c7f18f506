"""Whether a run that a person makes is recorded. Where it is not, this costs next to no time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fsa_cli.exceptions import FsaError
from fsa_cli.ledger.access import reached, require
from fsa_cli.ledger.location import ledger_of
from fsa_cli.tasks import Task

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database
    from fsa_cli.loader import LoadedApp
    from fsa_cli.scheduler.record import Record
    from fsa_cli.settings import Settings

__all__ = ["Order", "begin"]


@dataclass(frozen=True)
class Order:
    """What is to be run and recorded.

    Attributes:
        name: What the ledger calls the task.
        locks: Whether it holds the task's lock meanwhile.
    """

    name: str
    task: Task
    values: Mapping[str, Any]
    database: Database
    locks: bool = False


def begin(
    loaded: LoadedApp, settings: Settings, order: Order, warn: Callable[[str], None]
) -> Record | None:
    """Write down that it begins, where there is a ledger; None: it goes on without a record.

    A ledger that is away, old or read-only keeps no task from running, unless the lock is asked
    for: then it is an error.

    Raises:
        LockHeld: Another run holds the lock.
        FsaError: The lock is asked for, and the ledger cannot give it.
    """
    try:
        ledger = ledger_of(loaded.databases, settings)
        try:
            with reached(ledger):
                if order.locks:
                    require(ledger)
                elif not ledger.exists():
                    ledger.dispose()
                    return None
                from fsa_cli.scheduler.plan import LEASE_S
                from fsa_cli.scheduler.record import Record

                return Record(ledger, settings.lease_s or LEASE_S, order, warn)
        except BaseException:
            ledger.dispose()
            raise
    except FsaError as exc:
        if order.locks:
            raise
        why = next(iter(reversed(exc.details)), None)
        warn(f"the run is not recorded: {exc.message}{f' ({why})' if why else ''}")
        return None
