"""Is it well? Each check with its latency."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastapi_sqlalchemy import Database
from fastapi_sqlalchemy.health import ping
from fsa_cli.connections import address, driver_says
from fsa_cli.loader import LoadedApp


@dataclass(frozen=True)
class Check:
    """One check and its outcome. `latency_ms` is None where nothing was measured."""

    check: str
    ok: bool
    latency_ms: float | None
    detail: str


def checks(loaded: LoadedApp, *, timeout_s: float = 5.0) -> Iterator[Check]:
    """Each check of the app's databases, as it is done.

    Raises:
        ConfigurationError: The app has no database.
    """
    if not loaded.databases:
        loaded.database()
    for name, db in loaded.databases.items():
        try:
            latency_ms = ping(db, timeout_s=timeout_s)
        except Exception as exc:
            detail = f"{address(db.url)}: {driver_says(exc)}"
            yield Check(f"database {name}", False, None, detail)
            continue
        yield Check(f"database {name}", True, round(latency_ms, 2), address(db.url))
        yield _pool(name, db)


def _pool(name: str, db: Database) -> Check:
    """Whether every connection that was taken from the pools came back."""
    parts, taken = [], 0
    for side, pool in db.pool_status().items():
        taken += pool["checked_out"]
        parts.append(f"{side}: {pool['checked_out']} of {pool['size']} in use")
    return Check(f"pool {name}", taken == 0, None, "; ".join(parts) or "does not queue")
