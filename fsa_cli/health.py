"""Is it well? And: was it the database that could not be reached?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastapi_sqlalchemy import Database
from fastapi_sqlalchemy.health import ping
from fsa_cli.blame import described
from fsa_cli.exceptions import DatabaseUnreachable
from fsa_cli.loader import LoadedApp

_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}


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
            detail = f"{address(db)}: {_driver_says(exc)}"
            yield Check(f"database {name}", False, None, detail)
            continue
        yield Check(f"database {name}", True, round(latency_ms, 2), address(db))
        yield _pool(name, db)


def _pool(name: str, db: Database) -> Check:
    """Whether every connection that was taken from the pools came back."""
    parts, taken = [], 0
    for side, pool in db.pool_status().items():
        taken += pool["checked_out"]
        parts.append(f"{side}: {pool['checked_out']} of {pool['size']} in use")
    return Check(f"pool {name}", taken == 0, None, "; ".join(parts) or "does not queue")


def unreachable(error: BaseException, loaded: LoadedApp) -> DatabaseUnreachable | None:
    """What to say if *error* is there because a database cannot be reached; else None.

    Drivers have no common word for it, and `ConnectionRefusedError` may be about something else, so
    where *error* may mean it, the databases are asked.
    """
    if not _may_mean_it(error):
        return None
    for name, db in loaded.databases.items():
        try:
            ping(db, timeout_s=5.0)
        except Exception as exc:
            failure = DatabaseUnreachable(
                f"the database {name!r} cannot be reached",
                details=[
                    address(db),
                    _driver_says(exc),
                    f"its URL is from {loaded.url_sources.get(name, 'the app')}",
                ],
                hint="is the server running, and are the host, the port and the user right?",
            )
            failure.__cause__ = exc
            return failure
    return None


def address(db: Database) -> str:
    """Where a database is, for a person: never its password."""
    url = db.url
    if url is None:
        return "not configured"
    kind = url.get_backend_name()
    if kind == "sqlite":
        return f"sqlite {url.database or 'in memory'}"
    port = url.port or _DEFAULT_PORTS.get(kind)
    where = f"{url.host or 'local socket'}{f':{port}' if port else ''}"
    user = f" as {url.username}" if url.username else ""
    return f"{kind} {where}, database {url.database}{user}"


def _may_mean_it(error: BaseException) -> bool:
    from sqlalchemy.exc import DBAPIError

    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        if isinstance(each, DBAPIError | OSError):
            return True
        each = each.__cause__ or each.__context__
    return type(error).__module__.partition(".")[0] in ("asyncpg", "psycopg", "pymysql", "aiomysql")


def _driver_says(error: BaseException) -> str:
    """The driver's own words: SQLAlchemy's wrapping and link left out."""
    return described(getattr(error, "orig", None) or error)
