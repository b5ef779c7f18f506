"""What the pages are made from: the ledger of this process, its databases, its settings."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi_sqlalchemy.exceptions import DBSessionError
from fsa_cli.ledger.access import is_there
from fsa_cli.ledger.fingerprint import Fingerprint, fingerprint
from fsa_cli.ledger.store import Ledger
from fsa_cli.project import environments
from fsa_cli.project.environments import Environment
from fsa_cli.project.settings import Settings
from fsa_cli.runs.calendar import DayCounts
from fsa_cli.runs.coming import ComingInstants
from fsa_cli.runs.enqueue import enqueuer_here
from fsa_cli.runs.overview import Overview, overview
from fsa_cli.runs.process_databases import databases_here, process_key
from fsa_cli.runs.week import WeekCounts

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database

__all__ = ["Source", "source_here"]

_MOST_LOOKS = 4
_lock = threading.Lock()


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
    _looks: dict[tuple[object, ...], Overview] = field(default_factory=dict)

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

    def look(self, of: Fingerprint, step_ms: int, span: str, most_lanes: int) -> Overview:
        """The overview; one for all viewers who look while nothing changes."""
        key = of.text, of.now_ms // step_ms, span, most_lanes
        seen = self._looks.get(key)
        if seen is None:
            seen = overview(
                self.ledger,
                self.coming,
                of.now_ms,
                zone=self.settings.timezone,
                span=span,
                most_lanes=most_lanes,
            )
            if len(self._looks) >= _MOST_LOOKS:
                self._looks.clear()
            self._looks[key] = seen
        return seen

    def fingerprint(self) -> Fingerprint:
        """Whether anything has changed: one statement."""
        return fingerprint(self.ledger)


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
