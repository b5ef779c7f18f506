"""The checks of an app, each with its latency.

[tool.fsa.health]                  # checks of the app's own: a function raises or returns False
payments = "shop.checks:payments"  # if it fails, and may return text to show
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from fastapi_sqlalchemy import Database
from fastapi_sqlalchemy.health import Check, ping, run
from fsa_cli.database.connections import driver_message
from fsa_cli.database.identity import address
from fsa_cli.database.next_step import next_step
from fsa_cli.exceptions import ConfigurationError, FsaError, TaskNotFound
from fsa_cli.ledger.offload import in_thread
from fsa_cli.migrations import is_at_head
from fsa_cli.project.loader import LoadedApp
from fsa_cli.project.settings import Settings
from fsa_cli.tasks.lookup import get_task
from fsa_cli.tasks.registry import registry

__all__ = ["Check", "checks", "own_checks"]


def checks(
    loaded: LoadedApp,
    settings: Settings,
    own: Mapping[str, Callable[[], object]],
    *,
    timeout_s: float = 5.0,
    scheduler: bool = True,
) -> Iterator[Check]:
    """Each check of the app: databases and pools, the schema, the schedule, the app's own.

    What asks a server asks at once: where several are silent, that takes no longer than one.

    Args:
        own: As returned by `own_checks`.
        timeout_s: How long each may take.
        scheduler: Also check whether the schedule is kept, if there is one.
    """
    well = True
    databases = dict(loaded.databases)
    if settings.sources["database"] != "default":  # one was asked for
        databases = {settings.database: loaded.database(settings.database)}
    reaching = {
        name: in_thread(partial(_measured, f"database {name}", partial(_reach, db, timeout_s), db))
        for name, db in databases.items()
    }
    of_schedule = (
        in_thread(lambda: list(_scheduler(loaded, settings, timeout_s))) if scheduler else None
    )
    for name, db in databases.items():
        reached = reaching[name].result()
        yield reached
        if reached.ok:
            yield _pool(name, db)
            continue
        db.dispose()  # an attempt that goes on in vain must not hold a place of the next one
        if name == settings.database:
            well = False
    if well and (schema := _schema(loaded, settings, timeout_s)) is not None:
        yield schema
    if of_schedule is not None:
        yield from of_schedule.result()
    default = next(iter(loaded.databases.values()), None)
    default = loaded.databases.get("default", default)
    for name, check in own.items():
        yield _measured(name, partial(run, check, default, timeout_s=timeout_s))


def own_checks(loaded: LoadedApp, settings: Settings) -> dict[str, Callable[[], object]]:
    """The functions that `[tool.fsa.health]` names.

    Raises:
        ConfigurationError: One is not there; or there is neither a database nor a check.
    """
    found: dict[str, Callable[[], object]] = {}
    for name, place in settings.health.items():
        where = f"[tool.fsa.health] {name}"
        if not isinstance(place, str) or ":" not in place:
            raise ConfigurationError(
                f"{where} must be 'module:function', not {place!r}",
                details=[f"in {settings.project / 'pyproject.toml'}"],
            )
        try:
            found[name] = get_task(place).function
        except TaskNotFound as exc:
            raise ConfigurationError(f"{where} is {place!r}: {exc.message}", hint=exc.hint) from exc
    if not loaded.databases and not found:
        loaded.database()
    return found


def _measured(name: str, work: Callable[[], str], db: Database | None = None) -> Check:
    started = time.perf_counter()
    try:
        detail = work()
    except Exception as exc:
        if isinstance(exc, FsaError):
            said = "; ".join(part for part in (exc.message, exc.hint) if part)
        else:
            said = driver_message(exc)
        if db is not None and (step := next_step(exc)) is not None:
            said = f"{said}; {step}"
        return Check(name, False, None, f"{address(db.url)}: {said}" if db is not None else said)
    latency_ms = (time.perf_counter() - started) * 1000
    return Check(name, True, round(latency_ms, 2), detail)


def _reach(db: Database, timeout_s: float) -> str:
    ping(db, timeout_s=timeout_s)
    return address(db.url)


def _pool(name: str, db: Database) -> Check:
    """Whether every connection that was checked out of the pools came back."""
    parts, taken = [], 0
    for side, pool in db.pool_status().items():
        taken += pool["checked_out"]
        parts.append(f"{side}: {pool['checked_out']} of {pool['size']} in use")
    return Check(f"pool {name}", taken == 0, None, "; ".join(parts) or "does not queue")


def _schema(loaded: LoadedApp, settings: Settings, timeout_s: float) -> Check | None:
    """Whether the schema is at Alembic's head; None if the project has no migrations."""

    def stands() -> str:
        state = is_at_head(loaded, settings)
        if state is not None and not state.at_head:
            raise state.behind()
        return str(state or "")

    check = _measured("schema", partial(run, stands, timeout_s=timeout_s))
    return check if check.detail else None


def _scheduler(loaded: LoadedApp, settings: Settings, timeout_s: float) -> Iterator[Check]:
    """Whether a scheduler lives, how the tasks do, and what waits; nothing without any ledger."""
    names = {task.name for task in registry if task.schedule is not None}
    from fsa_cli.health import scheduler_checks as of_scheduler
    from fsa_cli.ledger.queries import Vitals

    seen: list[Vitals] = []

    def look() -> str:
        seen.append(of_scheduler.vitals(loaded, settings))
        return of_scheduler.alive(seen[0]) if names else ""

    reached = _measured("scheduler", partial(run, look, timeout_s=timeout_s))
    if names:
        yield reached
    if not seen:
        return
    known = {name for task in registry for name in task.names}
    judged: Mapping[str, Callable[[], str]] = {
        "tasks": lambda: of_scheduler.tasks(seen[0], names),
        "queue": lambda: of_scheduler.queue(seen[0], known),
        "workers": lambda: of_scheduler.workers(seen[0]),
    }
    for name, judge in judged.items():
        yield replace(_measured(name, judge), latency_ms=None)
    if paused := of_scheduler.paused(seen[0]):
        yield Check("paused", True, None, paused)
    if beside := seen[0].elsewhere:
        yield Check("namespaces", True, None, f"also alive in this ledger: {', '.join(beside)}")
