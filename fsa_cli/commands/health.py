"""`fsa health`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.options import option
from fsa_cli.exceptions import ScheduleError, UsageError

if TYPE_CHECKING:
    from fsa_cli.health.checks import Check

app = typer.Typer()

_PAUSE_S = 1.0
_WATCH_EVERY_S = 2.0
_COLUMNS = {"check": "check", "state": "state", "latency_ms": "ms", "detail": "detail"}


def _options(command: str) -> tuple[Any, Any, Any]:
    timeout = option(command, "--timeout", help="Seconds that each check may take.", metavar="S")
    wait = option(
        command,
        "--wait",
        help="Try again until all is well, at most so long: 60s, 5m.",
        metavar="TIME",
        show_default=False,
    )
    watch = option(
        command, "--watch", help="Check again every 2 s, until Ctrl-C.", show_default=False
    )
    return timeout, wait, watch


_TIMEOUT, _WAIT, _WATCH = _options("health")
_READY_TIMEOUT, _READY_WAIT, _READY_WATCH = _options("health ready")


@app.callback(invoke_without_command=True)
def health(
    context: typer.Context,
    timeout: Annotated[float, _TIMEOUT] = 5.0,
    wait: Annotated[str | None, _WAIT] = None,
    watch: Annotated[bool, _WATCH] = False,
) -> None:
    """Each check of the app with its latency. Exits 0 if it is well, 1 if a check fails.

    \b
      fsa health
      fsa health ready --wait 60s  in an init container
      fsa health live              for a liveness probe
    """
    if context.invoked_subcommand is None:
        _check(Fsa.of(context), timeout, wait, watch, scheduler=True)


@app.command()
def ready(
    context: typer.Context,
    timeout: Annotated[float, _READY_TIMEOUT] = 5.0,
    wait: Annotated[str | None, _READY_WAIT] = None,
    watch: Annotated[bool, _READY_WATCH] = False,
) -> None:
    """Can it serve? As `fsa health`, without the scheduler.

    \b
      fsa health ready
      fsa health ready --timeout 1
    """
    before = context.parent.params if context.parent is not None else {}
    source = context.get_parameter_source("timeout")
    if source is not None and source.name == "DEFAULT":
        timeout = before.get("timeout", timeout)
    wait, watch = wait or before.get("wait"), watch or bool(before.get("watch"))
    _check(Fsa.of(context), timeout, wait, watch, scheduler=False)


@app.command()
def live(context: typer.Context) -> None:
    """Is the scheduler alive? Touches neither app nor database.

    \b
      fsa health live
      fsa health live --json
    """
    from fsa_cli.processes import heartbeat

    fsa = Fsa.of(context)
    if not fsa.output.json:
        raise typer.Exit(heartbeat.live())
    age_s = None
    with contextlib.suppress(OSError):  # another user's folder
        age_s = heartbeat.age_s()
    alive = age_s is not None and age_s <= heartbeat.STALE_S
    fsa.output.document({"ok": alive, "heartbeat_age_s": age_s})
    raise typer.Exit(0 if alive else 1)


def _check(fsa: Fsa, timeout_s: float, wait: str | None, watch: bool, *, scheduler: bool) -> None:
    wait_s = None if wait is None else _seconds(wait)
    if timeout_s <= 0:
        raise UsageError(f"--timeout {timeout_s:g}: expected more than nothing")
    loaded = fsa.load()
    from fsa_cli.health.checks import checks, own_checks

    own = own_checks(loaded, fsa.settings)

    def look() -> list[Check]:
        found = checks(loaded, fsa.settings, own, timeout_s=timeout_s, scheduler=scheduler)
        return list(found)

    if watch:
        _watch(fsa, look)
    done = look() if wait_s is None else _wait(fsa, look, wait_s)
    ok = _well(done)
    if fsa.output.json:
        fsa.output.document({"ok": ok, "checks": [asdict(check) for check in done]})
    else:
        fsa.output.table([_row(check) for check in done], _COLUMNS, wraps=("detail",))
    if not ok:
        raise typer.Exit(1)


def _wait(fsa: Fsa, look: Callable[[], list[Check]], wait_s: float) -> list[Check]:
    """The checks, repeated until all is well or the time is over. A failure is reported once."""
    deadline = time.monotonic() + wait_s
    said: set[tuple[str, str]] = set()
    while not _well(done := look()) and time.monotonic() < deadline:
        for check in done:
            if not check.ok and (check.check, check.detail) not in said:
                said.add((check.check, check.detail))
                fsa.output.say(f"waiting for {check.check}: {check.detail}")
        time.sleep(min(_PAUSE_S, max(deadline - time.monotonic(), 0)))
    return done


def _watch(fsa: Fsa, look: Callable[[], list[Check]]) -> NoReturn:
    """Show the checks again and again: a screen on a terminal, or a line for each check."""
    done: list[Check] = []
    try:
        while True:
            done, at = look(), datetime.now(UTC).replace(microsecond=0)
            rows = [{"at": at, **_row(check)} for check in done]
            if fsa.output.json:
                checks = [asdict(check) for check in done]
                fsa.output.document({"at": at, "ok": _well(done), "checks": checks})
            elif fsa.output.console.is_terminal:
                fsa.output.console.clear()
                fsa.output.table(rows, _COLUMNS, wraps=("detail",))
                fsa.output.text(f"\n{at:%H:%M:%S} UTC, again every {_WATCH_EVERY_S:g} s")
            else:
                fsa.output.table(rows, {"at": "at", **_COLUMNS}, wraps=("detail",))
            time.sleep(_WATCH_EVERY_S)
    except KeyboardInterrupt:
        fsa.output.leave_line()
        raise typer.Exit(0 if _well(done) else 1) from None


def _row(check: Check) -> dict[str, object]:
    return {**asdict(check), "state": "ok" if check.ok else "FAILED"}


def _well(done: list[Check]) -> bool:
    return all(check.ok for check in done)


def _seconds(text: str) -> float:
    from fsa_cli.schedules.durations import duration_s

    try:
        seconds = float(text) if text.replace(".", "", 1).isdigit() else duration_s(text)
    except ScheduleError:
        seconds = None
    if seconds is None:
        raise UsageError(f"--wait {text}: expected a time", hint="60s, 5m")
    return seconds
