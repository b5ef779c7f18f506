"""The settings: flag > environment > .env > pyproject.toml, each value with its source."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsa_cli.exceptions import ConfigurationError, did_you_mean
from fsa_cli.project.setting_sources import KEYS, Flags, SettingSources
from fsa_cli.project.state_dir import state_dir

__all__ = ["KEYS", "NAMESPACE_LENGTH", "Flags", "Settings", "read"]

#: So many characters of a namespace tell services apart.
NAMESPACE_LENGTH = 100


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting of one run of `fsa`; `sources` has the source of each."""

    directory: Path
    """Where `fsa` was started."""
    project: Path
    """The directory of the nearest pyproject.toml, else `directory`."""
    app: str | None
    """`module`, `module:attr` or a file; None leaves it to the usual places."""
    app_base: Path
    """The directory that `app` is relative to: that of the file which names it."""
    app_dir: Path | None
    database: str
    """The name of the database that a command works on."""
    database_urls: Mapping[str, str] = field(repr=False)
    """URLs that replace the app's own, by the database's name."""
    databases: Mapping[str, str] = field(repr=False)
    """`module:attr` or a URL of each database that the app does not give `db` itself."""
    tasks: tuple[str, ...] | None
    metadata: str | None
    namespace: str
    commands: tuple[str, ...]
    executor: str | None
    """The executor of tasks that name none; None is `local`."""
    broker_url: str | None = field(repr=False)
    """The broker of Celery's messages."""
    celery_app: str | None
    """`module:attr` of a Celery app of the user's own."""
    ledger_url: str | None = field(repr=False)
    lease_s: float | None
    lifespan: bool
    """Whether the app's lifespan runs around tasks and shells."""
    keep: str
    """For how long ended runs are kept: `30d`."""
    keep_failed: str | None
    """The same for those that need a look; None is as `keep`."""
    timezone: str | None
    shell: str | None
    health: Mapping[str, Any]
    env: str | None
    """The name of the chosen `[tool.fsa.env.NAME]`."""
    environments: Mapping[str, Mapping[str, Any]]
    env_file: Path | None
    variables: Mapping[str, str] = field(repr=False)
    """The variables of `env_file`."""
    sources: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    """What was found and is not used, and why."""

    @property
    def state_dir(self) -> str:
        """The folder for state, wherever the app or a task may have gone meanwhile."""
        return state_dir(directory=str(self.directory))


def read(
    flags: Flags | None = None,
    *,
    directory: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read the settings for *directory* (the current one). Nothing is imported or changed.

    Raises:
        ConfigurationError: A file cannot be read, a key is unknown, a value has the wrong type; or
            the current directory is gone.
    """
    flags = flags or Flags()
    try:
        directory = directory or Path.cwd()
    except FileNotFoundError as exc:
        raise ConfigurationError(
            "the current directory does not exist any more", hint="cd to that of the project"
        ) from exc
    environ = os.environ if environ is None else environ
    try:
        reader = SettingSources(flags, directory, environ)
    except PermissionError as exc:
        raise ConfigurationError(
            f"{exc.filename} cannot be looked for: {exc.strerror}",
            hint="may this user enter the directory, and those above it?",
        ) from exc
    namespace, namespace_source = reader.namespace()
    if len(namespace) > NAMESPACE_LENGTH:
        raise ConfigurationError(
            f"the namespace has more than {NAMESPACE_LENGTH} characters",
            details=[f"{namespace[:40]}..., {namespace_source}"],
            hint='[tool.fsa] namespace = "..." gives it a shorter name',
        )
    app_value, app_base = reader.app()
    settings = Settings(
        directory=directory,
        project=reader.project,
        app=app_value,
        app_base=app_base,
        app_dir=reader.path("app_dir"),
        database=reader.text("database", default="default") or "default",
        database_urls=reader.database_urls(),
        databases=reader.databases(),
        tasks=reader.texts("tasks"),
        metadata=reader.text("metadata"),
        namespace=namespace,
        commands=reader.texts("commands") or (),
        executor=reader.text("executor"),
        broker_url=reader.text("broker_url"),
        celery_app=reader.text("celery_app"),
        ledger_url=reader.text("ledger_url"),
        lease_s=reader.seconds("lease_s", 3, 86_400),
        lifespan=reader.flag("lifespan"),
        keep=reader.kept("keep") or "30d",
        keep_failed=reader.kept("keep_failed"),
        timezone=reader.text("timezone"),
        shell=reader.text("shell"),
        health=reader.table.get("health", {}),
        env=reader.environment(),
        environments=reader.table.get("env", {}),
        env_file=reader.env_file,
        variables=reader.variables,
        sources={**reader.sources, "namespace": namespace_source},
        warnings=tuple(reader.warnings),
    )
    if settings.env is not None and settings.env not in settings.environments:
        raise ConfigurationError(
            f"there is no environment {settings.env!r}",
            details=[f"asked for by {settings.sources['env']}"],
            hint=did_you_mean(settings.env, settings.environments, most=1)
            or (
                f"there is {', '.join(settings.environments)}"
                if settings.environments
                else f"add [tool.fsa.env.{settings.env}]"
            ),
        )
    return settings
