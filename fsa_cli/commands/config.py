"""`fsa config`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import typer

from fsa_cli.cli.flags import COMMON, FROM_SETTINGS
from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.project import environments
from fsa_cli.project.settings import Settings
from fsa_cli.terminal.masking import mask

app = typer.Typer()

_PLACES = ("directory", "project")
_UNSET = {
    "executor": "local",
    "lease_s": 20,
    "keep_failed": "as keep",
    "timezone": "UTC",
    "app": "its usual places",
}
_ELSEWHERE = {*_PLACES, "app_base", "database_urls", "sources", "variables", "warnings"}


@app.command()
def config(context: typer.Context) -> None:
    """Every setting, and where it came from. The app is not imported; secrets are masked.

    \b
      fsa config
      fsa config --json
      fsa --env-file staging.env config
    """
    fsa = Fsa.of(context)
    settings = fsa.settings
    environments.of(settings)  # mistakes in [tool.fsa.env.NAME] show here too
    rows = [
        {"setting": name, "value": value, "source": source}
        for name, value, source in [*_settings(settings), *_flags(fsa), *_others(settings)]
    ]
    if fsa.output.console.is_terminal and not fsa.output.json and not fsa.output.verbose:
        rows = [{**row, "value": _in_force(row)} for row in rows]
        rows = [row for row in rows if row["value"] or row["source"] != "default"]
        fsa.output.say("what is in force; -v shows every setting")
    if not fsa.output.json:
        here = f"{settings.project}{os.sep}"
        rows = [{**row, "source": str(row["source"]).replace(here, "")} for row in rows]
    fsa.output.table(
        rows, {"setting": "setting", "value": "value", "source": "from"}, wraps=("value", "source")
    )


def _in_force(row: Mapping[str, object]) -> object:
    """The value, or what holds where a setting has none."""
    return _UNSET.get(str(row["setting"])) if row["value"] is None else row["value"]


def _settings(settings: Settings) -> Iterator[tuple[str, object, str]]:
    pyproject = str(settings.project / "pyproject.toml")
    for each in fields(settings):
        value = getattr(settings, each.name)
        if each.name in _ELSEWHERE:
            continue
        if isinstance(value, Mapping):
            name = "env" if each.name == "environments" else each.name
            for key, inner in _leaves(value, name):
                yield key, inner, f"[tool.fsa] in {pyproject}"
        else:
            yield each.name, _masked(value), settings.sources.get(each.name, "default")
    for name, url in settings.database_urls.items():
        yield f"database_urls.{name}", mask(url), settings.sources[f"database_urls.{name}"]


def _flags(fsa: Fsa) -> Iterator[tuple[str, object, str]]:
    """The common flags that are not settings of the project."""
    for name in COMMON:
        if name in FROM_SETTINGS or name == "yes":
            continue
        value = getattr(fsa.flags, name)
        variable = f"FSA_{name.upper()}"
        source = variable if os.environ.get(variable) else f"--{name.replace('_', '-')}"
        yield name, value or False, source if value else "default"


def _others(settings: Settings) -> Iterator[tuple[str, object, str]]:
    yield "directory", settings.directory, "the current directory"
    has_file = (settings.project / "pyproject.toml").is_file()
    yield (
        "project",
        settings.project,
        "the nearest pyproject.toml" if has_file else "the current directory: no pyproject.toml",
    )
    named = "FSA_STATE_DIR" if os.environ.get("FSA_STATE_DIR") else "default"
    yield "state_dir", settings.state_dir, named
    if settings.env_file is not None:
        yield "env_file.variables", sorted(settings.variables), str(settings.env_file)


def _leaves(table: Mapping[str, Any], path: str) -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.{key}")
        else:
            yield f"{path}.{key}", _masked(value)


def _masked(value: object) -> object:
    return mask(value) if isinstance(value, str) else value
