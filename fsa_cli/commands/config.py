"""`fsa config`."""

from __future__ import annotations

from dataclasses import fields

import typer

from fsa_cli.commands import Fsa
from fsa_cli.secrets import mask

app = typer.Typer()
_NOT_SETTINGS = {"directory", "project", "app_base", "database_urls", "sources", "variables"}


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
    rows: list[dict[str, object]] = [
        {"setting": each.name, "value": getattr(settings, each.name)}
        for each in fields(settings)
        if each.name not in _NOT_SETTINGS
    ]
    rows += [
        {"setting": f"database_urls.{name}", "value": mask(url)}
        for name, url in settings.database_urls.items()
    ]
    for row in rows:
        name = str(row["setting"])
        row["source"] = settings.sources.get(
            name, "default" if not row["value"] else "pyproject.toml"
        )
    fsa.output.table(rows, {"setting": "setting", "value": "value", "source": "from"})
