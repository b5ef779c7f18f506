"""`fsa shell`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fsa_cli.blame import described, place
from fsa_cli.commands import Fsa
from fsa_cli.exceptions import ScriptFailed, UsageError

app = typer.Typer()


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    options_metavar="[OPTIONS]",
)
def shell(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE [ARGS]", help="A program and its arguments. - is stdin."),
    ] = None,
    code: Annotated[
        str | None,
        typer.Option(
            "-c",
            "--code",
            help="Code to run, instead of a prompt.",
            envvar="FSA_SHELL_CODE",
            show_envvar=True,
            metavar="CODE",
        ),
    ] = None,
) -> None:
    """An interactive session: app, db, session, every model, select, func, text, tasks, run.

    \b
      fsa shell
      fsa shell -c "print(session.query(User).count())"
      fsa shell report.py --year 2026
      echo "print(await db.async_session.get(User, 1))" | fsa shell

    `await` works at the prompt. What is not committed is rolled back at the end.
    The prompt is IPython, ptpython or Python, the first that is installed; FSA_SHELL
    or [tool.fsa] shell choose one.
    """
    from fsa_cli import prompts
    from fsa_cli.shell import Shell

    fsa = Fsa.of(context)
    program = _program(code, words or [])
    prompt = None if program else prompts.choose(fsa.settings.shell)
    with Shell(fsa.load(), fsa.settings.database) as opened:
        try:
            if program:
                opened.script(*program)
            elif prompt:
                prompts.interact(opened, prompt, whole_tracebacks=fsa.output.traceback)
        except Exception as exc:
            raise _failure(exc, fsa) from exc
        finally:
            if opened.inside(lambda: opened.uncommitted):
                fsa.output.warn("changes that were not committed are rolled back")
        sys.stdout.flush()


def _program(code: str | None, words: list[str]) -> tuple[str, str, list[str]] | None:
    """The source, the file's name and the arguments of what is to be run; None is a prompt."""
    if code is not None:
        return code, "<fsa -c>", words
    if words and words[0] != "-":
        try:
            return Path(words[0]).read_text(encoding="utf-8"), words[0], words[1:]
        except OSError as exc:
            raise UsageError(f"{words[0]} cannot be read: {exc.strerror}") from exc
    if words or not sys.stdin.isatty():
        return sys.stdin.read(), "<stdin>", words[1:]
    return None


def _failure(error: Exception, fsa: Fsa) -> Exception:
    where = place(error)
    return fsa.load().unreachable(error) or ScriptFailed(
        described(error), details=where.lines() if where else []
    )
