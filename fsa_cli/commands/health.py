"""`fsa health`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from fsa_cli.commands import Fsa

app = typer.Typer()


@app.callback(invoke_without_command=True)
def health(
    context: typer.Context,
    timeout_s: Annotated[
        float,
        typer.Option(
            "--timeout",
            help="Seconds that each check may take.",
            envvar="FSA_HEALTH_TIMEOUT",
            show_envvar=True,
            metavar="S",
        ),
    ] = 5.0,
) -> None:
    """Each check of the app with its latency. Exits 0 if it is well, 1 if a check fails.

    \b
      fsa health
      fsa health --json
      fsa health live
    """
    if context.invoked_subcommand is None:
        _check(Fsa.of(context), timeout_s)


@app.command()
def ready(
    context: typer.Context,
    timeout_s: Annotated[
        float,
        typer.Option(
            "--timeout",
            help="Seconds that each check may take.",
            envvar="FSA_HEALTH_READY_TIMEOUT",
            show_envvar=True,
            metavar="S",
        ),
    ] = 5.0,
) -> None:
    """Can it serve? As `fsa health`, without the scheduler.

    \b
      fsa health ready
      fsa health ready --timeout 1
    """
    _check(Fsa.of(context), timeout_s)


@app.command()
def live(context: typer.Context) -> None:
    """Is the scheduler of this project alive? Touches neither the app nor the database.

    \b
      fsa health live
      fsa health live --json
    """
    from fsa_cli import heartbeat

    fsa = Fsa.of(context)
    if not fsa.output.json:
        raise typer.Exit(heartbeat.live())
    age_s = heartbeat.age_s()
    alive = age_s is not None and age_s <= heartbeat.STALE_S
    fsa.output.document({"ok": alive, "heartbeat_age_s": age_s})
    raise typer.Exit(0 if alive else 1)


def _check(fsa: Fsa, timeout_s: float) -> None:
    from fsa_cli.health import checks

    done = list(checks(fsa.load(), timeout_s=timeout_s))
    ok = all(check.ok for check in done)
    if fsa.output.json:
        fsa.output.document({"ok": ok, "checks": [asdict(check) for check in done]})
    else:
        fsa.output.table(
            [{**asdict(check), "state": "ok" if check.ok else "FAILED"} for check in done],
            {"check": "check", "state": "state", "latency_ms": "ms", "detail": "detail"},
        )
    if not ok:
        raise typer.Exit(1)
