"""`fsa routes`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from fsa_cli.cli.fsa_context import Fsa

app = typer.Typer()


@app.command()
def routes(context: typer.Context) -> None:
    """The app's routes in the order in which they are tried, with the line of each endpoint.

    \b
      fsa routes
      fsa routes --json
      fsa routes | grep POST
    """
    from fsa_cli.project.routes import routes as found

    fsa = Fsa.of(context)
    rows: list[dict[str, object]] = []
    for route in found(fsa.load().app):
        if fsa.output.json:
            rows.append(asdict(route))
            continue
        # Starlette answers HEAD wherever it answers GET.
        shown = [each for each in route.methods if each != "HEAD" or "GET" not in route.methods]
        method = ", ".join(shown) or "any"
        rows.append({**asdict(route), "methods": method, "place": route.place})
    columns = {"methods": "method", "path": "path", "name": "name", "place": "endpoint"}
    fsa.output.table(rows, columns, spare=["name"])
