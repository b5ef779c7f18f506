"""One page with the facts for finding out why something does not work."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, TypeVar

from fsa_cli.database.connections import autocommits, driver_message
from fsa_cli.database.identity import address
from fsa_cli.exceptions import FsaError
from fsa_cli.project import environments, plugins
from fsa_cli.project.routes import routes
from fsa_cli.project.settings import Settings
from fsa_cli.schedules.schedule import parse_schedule
from fsa_cli.shell import prompts
from fsa_cli.terminal.folding import is_terminal
from fsa_cli.version import VERSION

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database
    from fsa_cli.project.loader import LoadedApp

T = TypeVar("T")

_PACKAGES = ("fastapi", "starlette", "pydantic", "sqlalchemy", "typer", "rich", "apscheduler")
_OPTIONAL = ("alembic", "ipython", "ptpython", "httpx2", "uvicorn")
_DRIVERS = (
    *("psycopg", "psycopg2", "psycopg2-binary", "asyncpg", "pg8000"),
    *("pymysql", "aiomysql", "asyncmy", "mysqlclient", "aiosqlite"),
)
_PING_TIMEOUT_S = 3.0


@dataclass
class Report:
    """The page: titled sections of named lines, and the problems found."""

    sections: dict[str, dict[str, object]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def examine(read: Callable[[], Settings], load: Callable[[], LoadedApp]) -> Report:
    """Collect all facts; a failure is a problem on the page, and the rest is there."""
    report = Report()
    report.sections["versions"] = {
        "fsa": VERSION,
        "python": f"{platform.python_version()} {sys.executable}",
        "system": platform.platform(terse=True),
        **{name: _version(name) or "not installed" for name in _PACKAGES},
        **{name: found for name in _OPTIONAL if (found := _version(name))},
    }
    report.sections["drivers"] = {
        **{name: found for name in _DRIVERS if (found := _version(name))},
        "sqlite": _sqlite(),
    }
    settings = _attempt(report, read)
    if settings is not None:
        report.sections["settings"] = _settings(settings)
        loaded = _attempt(report, load)
        if loaded is not None:
            _app(report, settings, loaded)
        commands = plugins.find_commands(settings, report.problems.append)
        report.sections["commands"] = {each.name: each.target for each in commands}
        for each in commands:
            _attempt(report, partial(plugins.load, each, settings))
    report.sections["terminal"] = _terminal(report, settings)
    return report


def _attempt(report: Report, work: Callable[[], T]) -> T | None:
    try:
        return work()
    except FsaError as exc:
        report.problems.append("; ".join([exc.message, *(line.strip() for line in exc.details)]))
        return None


def _settings(settings: Settings) -> dict[str, object]:
    """The settings that differ from their defaults, with their sources."""
    known: dict[str, object] = {"project": settings.project}
    for each in fields(settings):
        source = settings.sources.get(each.name, "default")
        if each.name in settings.sources and source != "default" and each.name != "database_urls":
            known[each.name] = f"{getattr(settings, each.name)} ({source})"
    for name in settings.database_urls:
        known[f"database_urls.{name}"] = f"set ({settings.sources[f'database_urls.{name}']})"
    known["environments"] = ", ".join(settings.environments) or "none"
    known["state_dir"] = settings.state_dir
    return known


def _app(report: Report, settings: Settings, loaded: LoadedApp) -> None:
    from fsa_cli.tasks.registry import registry

    report.sections["app"] = {
        "app": loaded.target,
        "found by": loaded.found,
        "routes": sum(1 for _ in routes(loaded.app)),
        "tasks": len(list(registry)),
        "of them scheduled": sum(task.schedule is not None for task in registry),
        "task modules": ", ".join(loaded.task_modules) or "none",
    }
    environment = _attempt(
        report, lambda: environments.of(settings, list(loaded.databases.values()))
    )
    if environment is not None and environment.name is not None:
        protected = ", protected" if environment.protected else ""
        chosen = f"{environment.name}{protected} (chosen by {environment.chosen_by})"
        report.sections["app"]["environment"] = chosen
    if not loaded.databases:
        _attempt(report, loaded.database)
    for name, db in loaded.databases.items():
        source = loaded.url_sources.get(name, "the app")
        report.sections[f"database {name}"] = _database(report, name, db, source)
    for task in registry:
        if task.schedule is not None:
            zone = task.timezone or settings.timezone
            try:
                parse_schedule(task.schedule, zone)
            except FsaError as exc:
                report.problems.append(f"task {task.name} ({task.place}): {exc.message}")


def _database(report: Report, name: str, db: Database, source: str) -> dict[str, object]:
    from fastapi_sqlalchemy.health import ping

    facts: dict[str, object] = {"address": address(db.url), "url from": source}
    facts["sync driver"] = _driver(lambda: db.engine.driver)

    async def async_driver() -> str:
        return db.async_engine.driver

    facts["async driver"] = _driver(lambda: asyncio.run(async_driver()))
    try:
        facts["reached in"] = f"{ping(db, timeout_s=_PING_TIMEOUT_S):.1f} ms"
    except Exception as exc:
        report.problems.append(f"the database {name!r} cannot be reached: {driver_message(exc)}")
        return facts
    try:
        info = db.engine.dialect.server_version_info
    except Exception:  # only an async driver: what it is, is in the driver's line
        info = None
    if autocommits(db):
        report.problems.append(
            f"the engine of the database {name!r} is in AUTOCOMMIT: nothing is rolled back, "
            "also of a request or a task that fails"
        )
    if info:
        facts["server"] = ".".join(map(str, info))
    return facts


def _driver(name: Callable[[], str]) -> str:
    try:
        return name()
    except Exception as exc:
        return f"none: {str(exc).splitlines()[0]}"


def _terminal(report: Report, settings: Settings | None) -> dict[str, object]:
    wish = settings.shell if settings is not None else None
    seen: Mapping[str, object] = {
        name: os.environ[name]
        for name in ("TERM", "NO_COLOR", "COLUMNS", "LANG", "LC_ALL", "SHELL")
        if name in os.environ
    }
    streams = (("stdin", sys.stdin), ("stdout", sys.stdout), ("stderr", sys.stderr))
    return {
        "terminals": ", ".join(n for n, s in streams if is_terminal(s)) or "none",
        "columns": shutil.get_terminal_size().columns,
        "encoding": getattr(sys.stdout, "encoding", None) or "none",
        **seen,
        "prompt of fsa shell": _attempt(report, lambda: prompts.choose(wish)) or "none",
    }


def _sqlite() -> str:
    import sqlite3

    return sqlite3.sqlite_version


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
