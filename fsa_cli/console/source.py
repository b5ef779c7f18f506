"""What the pages are made from: the ledger of this process, its databases, its settings."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi_sqlalchemy.exceptions import DBSessionError
from fsa_cli.ledger.access import is_there
from fsa_cli.ledger.fingerprint import Fingerprint, fingerprint
from fsa_cli.ledger.offload import within
from fsa_cli.ledger.store import Ledger
from fsa_cli.project import environments
from fsa_cli.project.environments import Environment
from fsa_cli.project.settings import Settings
from fsa_cli.runs.calendar import DayCounts
from fsa_cli.runs.coming import ComingInstants
from fsa_cli.runs.enqueue import enqueuer_here
from fsa_cli.runs.overview import Overview, overview
from fsa_cli.runs.process_databases import databases_here, process_key
from fsa_cli.runs.run_activity import Doing, doing
from fsa_cli.runs.run_pages import RunLine
from fsa_cli.runs.week import WeekCounts

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database

__all__ = ["Look", "Source", "source_here"]

_MOST_LOOKS = 4
_ANSWERED_WITHIN_S = 1.0
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Look:
    """The overview, and what is known of the runs that go on, by their ids."""

    overview: Overview
    doing: Mapping[str, Doing]


@dataclass
class Source:
    """The ledger and what belongs to it; one for each process."""

    ledger: Ledger
    databases: Mapping[str, Database]
    settings: Settings
    environment: Environment
    coming: ComingInstants = field(default_factory=ComingInstants)
    week: WeekCounts = field(default_factory=WeekCounts)
    days: DayCounts = field(default_factory=DayCounts)
    _is_there: bool = False
    _looks: dict[tuple[object, ...], Look] = field(default_factory=dict)
    _asks: threading.Lock = field(default_factory=threading.Lock)

    def is_there(self) -> bool:
        """Whether the ledger's tables exist; asked until they do.

        Raises:
            LedgerUnusable: They are those of another version, or not all.
        """
        if not self._is_there:
            self._is_there = is_there(self.ledger)
        return self._is_there

    def sync_databases(self) -> dict[str, Database]:
        """The databases that have a sync driver: an async engine belongs to the app's own loop."""
        found = {}
        for name, database in self.databases.items():
            with contextlib.suppress(DBSessionError):
                _ = database.engine
                found[name] = database
        return found

    def look(self, of: Fingerprint, step_ms: int, span: str, most_lanes: int) -> Look:
        """The overview; one for all viewers who look while nothing changes."""
        key = of.text, of.now_ms // step_ms, span, most_lanes
        seen = self._looks.get(key)
        if seen is None:
            found = overview(
                self.ledger,
                self.coming,
                of.now_ms,
                zone=self.settings.timezone,
                span=span,
                most_lanes=most_lanes,
            )
            does = self._doing(found.running) if found.running else {}
            seen = Look(found, does or {})
            if does is None:  # for this once
                return seen
            if len(self._looks) >= _MOST_LOOKS:
                self._looks.clear()
            self._looks[key] = seen
        return seen

    def _doing(self, running: Sequence[RunLine]) -> Mapping[str, Doing] | None:
        """What the runs do; None while another thread asks for it, or nobody answers.

        One alone asks the app's databases, and takes a connection that is free: where a lock keeps
        requests waiting they have all, and a page is not to wait too.
        """

        def ask() -> Mapping[str, Doing] | None:
            if not self._asks.acquire(blocking=False):
                return None
            try:
                free = {n: d for n, d in self.sync_databases().items() if _has_free_place(d)}
                return doing(self.ledger, running, free)
            finally:
                self._asks.release()

        with contextlib.suppress(TimeoutError):
            return within(_ANSWERED_WITHIN_S, ask)
        return None

    def fingerprint(self) -> Fingerprint:
        """Whether anything has changed: one statement."""
        return fingerprint(self.ledger)


def _has_free_place(database: Database) -> bool:
    pool = database.pool_status().get("sync")
    return pool is None or pool["checked_in"] > 0 or pool["checked_out"] < pool["size"]


_sources: dict[tuple[object, ...], Source] = {}


def source_here() -> Source:
    """The source of this process; a forked child has its own.

    Raises:
        FsaError: There is no ledger here, or a setting is wrong.
    """
    key = process_key()
    with _lock:
        if key not in _sources:
            databases, settings = databases_here()
            environment = environments.of(settings, databases.values())
            _sources[key] = Source(enqueuer_here().ledger, databases, settings, environment)
        return _sources[key]
