"""`fsa dev`."""

from __future__ import annotations

import os
import socket
from importlib.util import find_spec
from typing import Annotated

import typer

from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.options import option
from fsa_cli.exceptions import ConfigurationError, UsageError

app = typer.Typer()

_COLORS = {"web": "36", "scheduler": "33", "worker": "35", "dev": "2"}


@app.command()
def dev(
    context: typer.Context,
    port: Annotated[
        int, option("dev", "--port", help="Where the app is served.", max=65535, metavar="N")
    ] = 8000,
    host: Annotated[
        str, option("dev", "--host", help="The address of that.", metavar="ADDRESS")
    ] = "127.0.0.1",
) -> None:
    """The app, its schedule and what is enqueued, in one terminal, until Ctrl-C.

    A change of a Python file, of .env or of pyproject.toml starts all of it again.

    \b
      fsa dev
      fsa dev --port 8080

    Needs uvicorn. In production each is a process of its own: fsa docs production.
    """
    from fsa_cli.cli.side_by_side import SideBySide, sources
    from fsa_cli.runs.executor import LOCAL
    from fsa_cli.tasks.registry import registry

    fsa = Fsa.of(context)
    loaded, settings = fsa.load(), fsa.settings
    if find_spec("uvicorn") is None:
        raise ConfigurationError("uvicorn is not installed", hint="pip install uvicorn")
    for name in settings.database_urls:
        source = settings.sources[f"database_urls.{name}"]
        fsa.output.warn(f"{source} is for fsa alone: the web process keeps the app's own database")
    base = str(settings.app_dir or settings.app_base)
    web = ["uvicorn", loaded.target, "--app-dir", base, "--host", host, "--port", str(port)]
    programs = {"web": web}
    if any(task.schedule is not None for task in registry):
        programs["scheduler"] = ["fsa_cli", "scheduler", "start", "--grace", "5"]
    carried = {task.executor or settings.executor or LOCAL for task in registry}
    if carried - {LOCAL} or (carried and "scheduler" not in programs):
        programs["worker"] = ["fsa_cli", "worker", "start", "--grace", "5"]
    _require_free(host, port)
    os.environ.update(_environment(fsa))
    width = max(map(len, programs))

    def write(name: str, line: str) -> None:
        fsa.output.marked(name.ljust(width), line, _COLORS[name])

    SideBySide(programs, write, lambda: sources(settings.project)).run()


def _require_free(host: str, port: int) -> None:
    """Raises UsageError if the app cannot be served there: uvicorn would say so among the rest."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as exc:
        raise UsageError(
            f"the port {port} of {host} cannot be taken: {exc.strerror}", hint="--port N"
        ) from exc


def _environment(fsa: Fsa) -> dict[str, str]:
    """The flags of this command, for those that it starts."""
    flags = fsa.flags
    given = {"FSA_APP": flags.app, "FSA_ENV": flags.env, "FSA_ENV_FILE": flags.env_file}
    return {name: str(value) for name, value in given.items() if value is not None}
