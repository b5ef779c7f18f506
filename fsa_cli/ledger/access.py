"""A ledger that exists: every command that reads or controls it begins here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from fsa_cli.database import connections
from fsa_cli.database.identity import file_trouble, same_database
from fsa_cli.database.next_step import disk_is_full, next_step, refuses
from fsa_cli.exceptions import DatabaseUnreachable, LedgerUnusable, NoLedger, no_text
from fsa_cli.ledger.location import ledger_of
from fsa_cli.ledger.store import Ledger
from fsa_cli.project.settings import Settings

if TYPE_CHECKING:
    from fsa_cli.project.loader import LoadedApp

__all__ = ["existing", "is_there", "reached", "require"]

_ELSEWHERE = "ledger_url in [tool.fsa] puts it elsewhere"


@contextlib.contextmanager
def existing(loaded: LoadedApp, settings: Settings) -> Iterator[Ledger]:
    """The app's ledger, while inside; its errors are raised as by `reached`.

    Raises:
        NoLedger: There is none yet.
    """
    ledger = ledger_of(loaded.databases, settings)
    try:
        with reached(ledger, _url_source(loaded, settings, ledger)):
            require(ledger)
            yield ledger
    finally:
        ledger.dispose()


def is_there(ledger: Ledger) -> bool:
    """Whether *ledger* exists.

    Raises:
        LedgerUnusable: It does, but not whole.
    """
    if ledger.exists():
        return True
    if lost := ledger.lost_tables():
        raise LedgerUnusable(
            f"the ledger has no table {', '.join(lost)}",
            details=[ledger.where, "dropped, or not yet made by this version of fsa"],
            hint="fsa scheduler init makes what is missing; rows that are lost are in a backup",
        )
    return False


def require(ledger: Ledger) -> None:
    """Raises NoLedger if *ledger* does not exist, LedgerUnusable if not whole."""
    if not is_there(ledger):
        trouble = _trouble(ledger)
        raise NoLedger(
            "there is no ledger of runs yet",
            details=[
                f"looked for at {ledger.where}",
                "runs by hand are kept too, once there is one",
                *trouble,
            ],
            hint=_ELSEWHERE if trouble else "fsa scheduler start creates it, or fsa scheduler init",
        )


@contextlib.contextmanager
def reached(ledger: Ledger, url_source: str | None = None) -> Iterator[None]:
    """Translate a database's error inside.

    Args:
        url_source: Where the URL of its database is from, for the error's text.

    Raises:
        DatabaseUnreachable: The ledger's database is away.
        LedgerUnusable: It refuses, as one does that is read-only or has no room left.
        UsageError: What is asked for is no text.
    """
    try:
        yield
    except UnicodeEncodeError as exc:
        raise no_text(exc) from exc
    except SQLAlchemyError as exc:
        trouble = _trouble(ledger)
        details = [ledger.where, connections.driver_message(exc), *trouble]
        if url_source:
            details.append(f"its URL is from {url_source}")
        if refuses(exc) or not connections.is_away(exc) or trouble:
            raise LedgerUnusable(
                "the disk of the ledger's database is full"
                if disk_is_full(exc)
                else "the ledger's database refuses",
                details=details,
                hint=next_step(exc) or "may this user read and write the tables fsa_*?",
            ) from exc
        raise DatabaseUnreachable(
            "the ledger cannot be reached",
            details=details,
            hint=next_step(exc) or _ELSEWHERE,
        ) from exc


def _trouble(ledger: Ledger) -> list[str]:
    trouble = file_trouble(ledger.engine.url) if ledger.is_sqlite else None
    return [trouble] if trouble else []


def _url_source(loaded: LoadedApp, settings: Settings, ledger: Ledger) -> str | None:
    if settings.ledger_url:
        return settings.sources.get("ledger_url")
    for name, database in loaded.databases.items():
        if same_database(database.url, ledger.engine.url):
            return loaded.url_sources.get(name)
    return None
