"""Environments: `[tool.fsa.env.NAME]`, and what each protects.

[tool.fsa.env.production]
match = "prod-*"              # on the host of the database; or a list
protected = true              # destructive commands want --confirm DATABASE, not --yes
shell = "sandbox"             # or "read-only", "open"; protected alone means "sandbox"
prohibited = ["db downgrade", "scheduler *"]     # a command, a group, or a pattern
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, cast

from fsa_cli.exceptions import ConfigurationError, Refused, did_you_mean
from fsa_cli.project import command_names
from fsa_cli.project.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import URL

    from fastapi_sqlalchemy import Database

ShellMode = Literal["open", "sandbox", "read-only"]

_MODES = ("open", "sandbox", "read-only")
_KEYS = ("match", "protected", "shell", "prohibited")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The environment of a command. Without a `[tool.fsa.env.NAME]` it protects nothing.

    Attributes:
        match: Patterns of the hosts of its databases.
        chosen_by: Its source: `--env`, `FSA_ENV`, or the host that matched.
    """

    name: str | None = None
    match: tuple[str, ...] = ()
    protected: bool = False
    shell: ShellMode = "open"
    prohibited: tuple[str, ...] = ()
    chosen_by: str = "default"

    def prohibits(self, command: str) -> bool:
        """Whether *command* (`db downgrade`) may not be used here; `db` prohibits all of its."""
        return any(_means(pattern, command) for pattern in self.prohibited)

    def refuse_prohibited(self, command: str) -> None:
        """Raises Refused if *command* may not be used here."""
        if self.prohibits(command):
            raise Refused(
                f"fsa {command} is prohibited in {self.name}",
                details=[f"the environment is chosen by {self.chosen_by}"],
                hint=f"[tool.fsa.env.{self.name}] prohibited says so",
            )


def _means(pattern: str, command: str) -> bool:
    return fnmatchcase(command, pattern) or (command + " ").startswith(pattern + " ")


def of(settings: Settings, databases: Iterable[Database] = ()) -> Environment:
    """The environment of *databases*: named by `--env` or `FSA_ENV`, or the one whose host matches.

    Raises:
        ConfigurationError: A `[tool.fsa.env.NAME]` is wrong.
        Refused: One was named, and a database is that of another one, which is protected.
    """
    known = {name: _parsed(name, table, settings) for name, table in settings.environments.items()}
    matching = _matching(known, [database.url for database in databases])
    if settings.env is None:
        return matching or Environment()
    named = known[settings.env]
    source = settings.sources["env"]
    if matching is not None and matching.protected and matching.name != named.name:
        raise Refused(
            f"the database is {matching.name}'s, and {source} says {named.name}",
            details=[f"{matching.name} is chosen by {matching.chosen_by}"],
            hint=f"--env {matching.name}, or another database",
        )
    return _chosen(named, source)


def _matching(known: Mapping[str, Environment], urls: list[URL | None]) -> Environment | None:
    from fsa_cli.database.identity import hosts

    for host in (host for url in urls if url is not None for host in hosts(url)):
        for environment in known.values():
            for pattern in environment.match:
                if fnmatchcase(host.lower(), pattern.lower()):
                    return _chosen(environment, f"its match {pattern!r} on the host {host}")
    return None


def _chosen(environment: Environment, by: str) -> Environment:
    return replace(environment, chosen_by=by)


def _parsed(name: str, table: object, settings: Settings) -> Environment:
    where = f"[tool.fsa.env.{name}]"
    pyproject = f"in {settings.project / 'pyproject.toml'}"
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{where} must be a table, not {table!r}", details=[pyproject])
    values: dict[str, Any] = dict(table)
    for key in values:
        if key not in _KEYS:
            raise ConfigurationError(
                f"unknown key {key!r} in {where}",
                details=[pyproject],
                hint=did_you_mean(key, _KEYS, most=1) or f"the keys are {', '.join(_KEYS)}",
            )

    def wrong(key: str, expected: str) -> ConfigurationError:
        return ConfigurationError(
            f"{where} {key} must be {expected}, not {values[key]!r}", details=[pyproject]
        )

    def texts(key: str) -> tuple[str, ...]:
        value = values.get(key, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise wrong(key, "a string or a list of strings")
        return tuple(value)

    protected = values.get("protected", False)
    if not isinstance(protected, bool):
        raise wrong("protected", "true or false")
    shell = values.get("shell", "sandbox" if protected else "open")
    if shell not in _MODES:
        raise wrong("shell", "one of " + ", ".join(repr(mode) for mode in _MODES))
    prohibited = tuple(each.removeprefix("fsa ").strip() for each in texts("prohibited"))
    for pattern in prohibited:
        # A guard that is misspelled would guard nothing.
        if not _names_a_command(pattern, settings):
            raise ConfigurationError(
                f"{where} prohibited names no command: {pattern!r}",
                details=[pyproject],
                hint=did_you_mean(pattern, command_names.all_names(), most=1) or "fsa --help",
            )
    return Environment(
        name=name,
        match=texts("match"),
        protected=protected,
        shell=cast(ShellMode, shell),
        prohibited=prohibited,
    )


def _names_a_command(pattern: str, settings: Settings) -> bool:
    return any(_means(pattern, each) for each in command_names.all_names()) or (
        command_names.is_own(pattern.partition(" ")[0], settings)
    )
