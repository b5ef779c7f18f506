"""Where the value of a setting comes from: flag, environment, env file, pyproject.toml."""

from __future__ import annotations

import contextlib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsa_cli.exceptions import ConfigurationError, did_you_mean
from fsa_cli.project import dotenv
from fsa_cli.schedules.durations import kept_ms

__all__ = ["DIRECTORY", "KEYS", "Flags", "SettingSources"]

#: The keys of `[tool.fsa]` and their types. A list may also be written as one string.
KEYS: Mapping[str, type] = {
    "app": str,
    "app_dir": str,
    "database": dict,
    "tasks": list,
    "metadata": str,
    "namespace": str,
    "commands": list,
    "executor": str,
    "broker_url": str,
    "celery_app": str,
    "ledger_url": str,
    "lease_s": float,
    "lifespan": bool,
    "keep": str,
    "keep_failed": str,
    "timezone": str,
    "shell": str,
    "health": dict,
    "env": dict,
}

_NAMES = {
    str: "a string",
    list: "a list of strings",
    float: "a number",
    dict: "a table",
    bool: "true or false",
}
#: The source of a namespace that nobody has given.
DIRECTORY = "the directory's name"
_YES = ("1", "true", "t", "yes", "y", "on")
_NO = ("0", "false", "f", "no", "n", "off")


@dataclass(frozen=True)
class Flags:
    """The common flags of the command line. None is "not given"."""

    app: str | None = None
    env_file: Path | None = None
    no_env_file: bool | None = None
    database: str | None = None
    env: str | None = None
    verbose: int | None = None
    quiet: bool | None = None
    json: bool | None = None
    no_color: bool | None = None
    yes: bool | None = None
    traceback: bool | None = None


class SettingSources:
    """Looks values up in their order and notes the source of each."""

    def __init__(self, flags: Flags, directory: Path, environ: Mapping[str, str]) -> None:
        self.flags = flags
        self.directory = directory
        self.environ = environ
        self.sources: dict[str, str] = {}
        self.warnings: list[str] = []
        self.env_file = self._env_file()
        self.variables = self._variables()
        self.project = self._project()
        self.pyproject = _toml(self.project / "pyproject.toml")
        self.table = self._table()

    def _env_file(self) -> Path | None:
        if self.flags.no_env_file or self.flags.env_file:
            given = "--no-env-file" if self.flags.no_env_file else "--env-file"
            self.sources["no_env_file"] = given
        if source := self._without_env_file():
            self.sources["env_file"] = source
            return None
        asked, source = self.flags.env_file, "--env-file"
        if asked is None and (named := self.environ.get("FSA_ENV_FILE")):
            asked, source = Path(named), "FSA_ENV_FILE"
        if asked is None:
            found = dotenv.find(self.directory)
            if found:
                self.sources["env_file"] = "found"
            return found
        path = self.directory / asked
        if not path.is_file():
            raise ConfigurationError(
                f"the file {asked} does not exist", details=[f"asked for by {source}"]
            )
        self.sources["env_file"] = source
        return path

    def _variables(self) -> dict[str, str]:
        variables = dotenv.read(self.env_file) if self.env_file else {}
        left_out = [name for name in variables if dotenv.steers(name)]
        told = [name for name in left_out if variables[name] != self.environ.get(name)]
        if told:
            self.warnings.append(
                f"{self.env_file} sets {', '.join(told)}: not taken from a file, because other "
                "programs are loaded by it"
            )
        return {name: value for name, value in variables.items() if name not in left_out}

    def _project(self) -> Path:
        """The nearest directory with a pyproject.toml; the current one if there is none.

        It is looked for in the repository, and without one in directories of the same people: a
        file that a stranger has put above them must not have its modules imported.
        """
        root, left = dotenv.repository(self.directory), False
        for place in (self.directory, *self.directory.parents):
            why = _why_strange(place, self.directory)
            why = "it is outside of the repository" if left else why
            if (place / "pyproject.toml").is_file():
                if why is None:
                    return place
                if _names_modules(place / "pyproject.toml"):
                    self.warnings.append(
                        f"{place / 'pyproject.toml'} has a [tool.fsa], which is not read: {why}"
                    )
                break
            left = left or place == root
        return self.directory

    def _without_env_file(self) -> str | None:
        """What asked for none; None if nothing did."""
        if self.flags.no_env_file:
            return "--no-env-file"
        if self.flags.env_file is None:
            value = self.environ.get("FSA_NO_ENV_FILE", "").lower()
            return "FSA_NO_ENV_FILE" if value in _YES else None
        return None

    def _table(self) -> dict[str, Any]:
        table = self._named("tool", "fsa")
        where = self.project / "pyproject.toml"
        for key, value in table.items():
            if key not in KEYS:
                raise ConfigurationError(
                    f"unknown key {key!r} in [tool.fsa]",
                    details=[f"in {where}"],
                    hint=did_you_mean(key, KEYS, most=1) or f"the keys are {', '.join(KEYS)}",
                )
            kind = KEYS[key]
            fits = isinstance(value, (float, int) if kind is float else kind)
            if key == "database":  # one by itself, or several by their names
                named = value if isinstance(value, dict) else {"default": value}
                fits = all(isinstance(each, str) for each in named.values())
            if kind is list:
                fits = isinstance(value, str) or (
                    fits and all(isinstance(item, str) for item in value)
                )
            if isinstance(value, bool) is not (kind is bool) or not fits:
                raise ConfigurationError(
                    f"[tool.fsa] {key} must be {_expected(key)}, not {value!r}",
                    details=[f"in {where}"],
                )
        return dict(table)

    def _named(self, *names: str) -> dict[str, Any]:
        """The table of pyproject.toml that *names* lead to; an empty one if there is none."""
        table = self.pyproject
        for number, name in enumerate(names, start=1):
            table = table.get(name, {})
            if not isinstance(table, dict):
                raise ConfigurationError(
                    f"[{'.'.join(names[:number])}] must be a table, not {table!r}",
                    details=[f"in {self.project / 'pyproject.toml'}"],
                )
        return table

    def _find(self, name: str) -> tuple[Any, str]:
        """The first of flag, environment, env file and pyproject.toml that has a value."""
        variable = f"FSA_{name.upper()}"
        if (flag := getattr(self.flags, name, None)) is not None:
            return flag, f"--{name.replace('_', '-')}"
        if value := self.environ.get(variable):
            return value, variable
        if value := self.variables.get(variable):
            return value, f"{variable} in {self.env_file}"
        if name in KEYS and KEYS[name] is not dict and name in self.table:
            return self.table[name], f"[tool.fsa] {name} in {self.project / 'pyproject.toml'}"
        return None, "default"

    def text(self, name: str, *, default: str | None = None) -> str | None:
        value, self.sources[name] = self._find(name)
        return default if value is None else str(value)

    def environment(self) -> str | None:
        """The name of the environment; FastAPI's own variable counts where ours is not set."""
        value = self.text("env")
        if value is not None:
            return value
        known = self.table.get("env", {})
        for variables, suffix in ((self.environ, ""), (self.variables, f" in {self.env_file}")):
            if named := variables.get("FASTAPI_ENV"):
                if named in known:
                    self.sources["env"] = f"FASTAPI_ENV{suffix}"
                    return named
                if known:
                    self.warnings.append(
                        f"FASTAPI_ENV is {named!r}, and there is no [tool.fsa.env.{named}]"
                    )
                return None
        return None

    def texts(self, name: str) -> tuple[str, ...] | None:
        value, self.sources[name] = self._find(name)
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        return None if value is None else tuple(value)

    def seconds(self, name: str, least: float, most: float) -> float | None:
        value, source = self._find(name)
        self.sources[name] = source
        if value is None:
            return None
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            if least <= (number := float(value)) <= most:
                return number
        raise ConfigurationError(
            f"{source} must be a number of seconds from {least:g} to {most:g}, not {value!r}"
        )

    def flag(self, name: str) -> bool:
        value, source = self._find(name)
        self.sources[name] = source
        if isinstance(value, str):
            if value.lower() not in (*_YES, *_NO):
                raise ConfigurationError(f"{source} must be true or false, not {value!r}")
            return value.lower() in _YES
        return bool(value)

    def kept(self, name: str) -> str | None:
        """For how long something is kept, as `schedules.durations.kept_ms` reads it."""
        value = self.text(name)
        if value is not None and kept_ms(value) is None:
            raise ConfigurationError(
                f"{self.sources[name]} must be a duration of a minute or more, not {value!r}",
                hint=f'{name} = "30d": s, m, h or d',
            )
        return value

    def path(self, name: str) -> Path | None:
        value, source = self._find(name)
        self.sources[name] = source
        return None if value is None else self._base(source) / value

    def app(self) -> tuple[str | None, Path]:
        value, source = self._find("app")
        if value is None:
            entrypoint = self._named("tool", "fastapi").get("entrypoint")
            if isinstance(entrypoint, str):
                pyproject = self.project / "pyproject.toml"
                value, source = entrypoint, f"[tool.fastapi] entrypoint in {pyproject}"
        self.sources["app"] = source
        return value, self._base(source)

    def namespace(self) -> tuple[str, str]:
        value, source = self._find("namespace")
        if value is None:
            project = self._named("project").get("name")
            if isinstance(project, str):
                return project, f"[project] name in {self.project / 'pyproject.toml'}"
            # A ledger keeps text: bytes that are no UTF-8, and all others in an ASCII locale.
            name = os.fsencode(self.project.name).decode(errors="replace") or "root"
            return name, DIRECTORY
        return str(value), source

    def database_urls(self) -> dict[str, str]:
        urls: dict[str, str] = {}
        for origin, variables in (("env_file", self.variables), ("environ", self.environ)):
            for variable, value in variables.items():
                if not value or not (variable + "_").startswith("FSA_DB_URL_"):
                    continue
                name = variable.removeprefix("FSA_DB_URL").removeprefix("_").lower() or "default"
                urls[name] = value
                self.sources[f"database_urls.{name}"] = (
                    variable if origin == "environ" else f"{variable} in {self.env_file}"
                )
        return urls

    def databases(self) -> dict[str, str]:
        """What `[tool.fsa] database` names, by the database's name."""
        value = self.table.get("database", {})
        named = value if isinstance(value, dict) else {"default": value}
        for name in named:
            where = self.project / "pyproject.toml"
            self.sources[f"databases.{name}"] = f"[tool.fsa] database in {where}"
        return dict(named)

    def _base(self, source: str) -> Path:
        """The base of a relative value: the directory of the file that it is in."""
        if source.endswith("pyproject.toml"):
            return self.project
        if self.env_file is not None and source.endswith(str(self.env_file)):
            return self.env_file.parent
        return self.directory


def _why_strange(place: Path, directory: Path) -> str | None:
    """Why a file in *place* may be somebody else's; None if it is root's, ours, or of the person to
    whom *directory* belongs."""
    if place == directory:
        return None
    try:
        known = {os.geteuid(), 0, directory.stat().st_uid}
        owners = {place.stat().st_uid, (place / "pyproject.toml").stat().st_uid}
    except OSError:  # there is none
        return None
    return None if owners <= known else "it belongs to another user"


def _names_modules(path: Path) -> bool:
    try:
        return "fsa" in _toml(path).get("tool", {})
    except (ConfigurationError, AttributeError, TypeError):
        return False


def _expected(key: str) -> str:
    return "a string or a table of strings" if key == "database" else _NAMES[KEYS[key]]


def _toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows' editors begin so
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc}") from exc
