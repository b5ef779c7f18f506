"""`fsa doctor`."""

from __future__ import annotations

import typer

from fsa_cli.cli.fsa_context import Fsa

app = typer.Typer()


@app.command()
def doctor(context: typer.Context) -> None:
    """One page for a bug report: versions, drivers, settings, app, databases, terminal, problems.

    \b
      fsa doctor
      fsa doctor --json

    No passwords are on it. Exits with 1 if there is a problem. The app is imported, and each
    database is asked whether it is there.
    """
    from fsa_cli.health.doctor import examine

    fsa = Fsa.of(context)
    report = examine(lambda: fsa.settings, fsa.load)
    if fsa.output.json:
        fsa.output.document(report)
    else:
        for title, facts in report.sections.items():
            if facts:
                fsa.output.heading(title)
                for name, value in facts.items():
                    fsa.output.fact(f"  {name:<19}", str(value))
        fsa.output.heading("problems")
        for problem in report.problems or ["none"]:
            fsa.output.fact("", problem)
    if report.problems:
        raise typer.Exit(1)
