"""`fsa shell`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.options import option
from fsa_cli.exceptions import FsaError, ScriptFailed, UsageError
from fsa_cli.project.environments import ShellMode
from fsa_cli.terminal.folding import is_terminal
from fsa_cli.terminal.user_code import summarize_error, user_frame

app = typer.Typer()


#: What somebody who wrote it behind FILE believes to be protected by.
_PROTECTING = ("--sandbox", "--read-only")


@app.command(
    context_settings={"allow_interspersed_args": False},
    options_metavar="[OPTIONS]",
)
def shell(
    context: typer.Context,
    argv: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE [ARGS]", help="A program and its arguments. - is stdin."),
    ] = None,
    code: Annotated[
        str | None,
        option(
            "shell",
            "-c",
            "--code",
            help="Code to run, instead of a prompt.",
            metavar="CODE",
        ),
    ] = None,
    sandbox: Annotated[
        bool | None,
        option(
            "shell",
            "--sandbox/--no-sandbox",
            help="Roll all of it back, commits included.",
            show_default=False,
        ),
    ] = None,
    read_only: Annotated[
        bool | None,
        option(
            "shell",
            "--read-only/--no-read-only",
            help="Have the databases refuse to write.",
            show_default=False,
        ),
    ] = None,
    echo: Annotated[
        bool,
        option(
            "shell",
            "--echo",
            help="Show the SQL that is sent, on stderr.",
        ),
    ] = False,
) -> None:
    """A session with app, db, session, every model, select, sql, run, client, tasks.

    \b
      fsa shell --sandbox
      fsa shell -c "print(session.query(User).count())"
      fsa shell --read-only report.py --year 2026
      echo "sql('select * from users')" | fsa shell

    What is not committed is rolled back at the end. Where the environment is
    protected the shell is a sandbox. --read-only holds SQL, not Python that opens
    a connection by itself: fsa docs shell.
    """
    from fsa_cli.database import readonly
    from fsa_cli.database.sql_log import start as start_echo
    from fsa_cli.shell import prompts
    from fsa_cli.shell.session import Shell

    fsa = Fsa.of(context)
    program = _program(code, argv or [])
    prompt = None if program else prompts.choose(fsa.settings.shell)
    if read_only:
        readonly.enforce()  # also of what the app does while it is imported
    loaded = fsa.load()
    environment = fsa.environment()
    mode = _mode(sandbox, read_only, environment.shell)
    if echo:
        start_echo(fsa.output)
    with Shell(
        loaded,
        fsa.settings.database,
        mode=mode,
        environment=environment,
        output=fsa.output,
        lifespan=fsa.settings.lifespan,
    ) as opened:
        try:
            if program:
                opened.script(*program)
            elif prompt:
                prompts.interact(opened, prompt, whole_tracebacks=fsa.output.traceback)
        except Exception as exc:
            failure = _failure(exc, fsa)
            raise failure from (exc if failure is not exc else exc.__cause__)
        finally:
            if mode == "sandbox":
                fsa.output.say("sandbox: everything was rolled back")
            elif opened.inside(lambda: opened.uncommitted):
                fsa.output.warn("changes that were not committed are rolled back")
        sys.stdout.flush()


def _mode(sandbox: bool | None, read_only: bool | None, default: ShellMode) -> ShellMode:
    """The mode of the flags, or that of the environment."""
    if read_only:
        return "read-only"
    if sandbox:
        return "sandbox"
    unwanted = {"sandbox" if sandbox is False else "", "read-only" if read_only is False else ""}
    return "open" if default in unwanted else default


def _program(code: str | None, argv: list[str]) -> tuple[str, str, list[str]] | None:
    """The source, the file's name and the arguments of a program; None is a prompt."""
    argv = _arguments(argv)
    if code is not None:
        return code, "<fsa -c>", argv
    if argv and argv[0] != "-":
        try:
            return Path(argv[0]).read_text(encoding="utf-8"), argv[0], argv[1:]
        except OSError as exc:
            raise UsageError(f"{argv[0]} cannot be read: {exc.strerror}") from exc
    if argv or not is_terminal(sys.stdin):
        return sys.stdin.read(), "<stdin>", argv[1:]
    return None


def _arguments(argv: list[str]) -> list[str]:
    """FILE and what is its own: all that stands behind it, and behind a `--` there."""
    if argv[1:2] == ["--"]:
        return [argv[0], *argv[2:]]
    for misplaced in [each for each in argv[1:] if each in _PROTECTING][:1]:
        raise UsageError(
            f"{misplaced} stands behind {argv[0]}, where it would be {argv[0]}'s own",
            hint=f"fsa shell {misplaced} {argv[0]}; as its own: fsa shell {argv[0]} -- {misplaced}",
        )
    return argv


def _failure(error: Exception, fsa: Fsa) -> Exception:
    from fsa_cli.shell.session import await_hint

    if isinstance(error, FsaError):
        return error
    where = user_frame(error)
    return fsa.load().unreachable(error) or ScriptFailed(
        summarize_error(error),
        details=where.lines() if where else [],
        hint=await_hint(error),
    )
