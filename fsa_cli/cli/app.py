"""The command line: `main` runs it, and is the one place where errors end."""

from __future__ import annotations

import os
from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING

import typer

from fsa_cli.cli.command_tree import command, command_path
from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.exceptions import ConfigurationError, FsaError, Interrupted, UsageError, no_text

if TYPE_CHECKING:
    from typer.exceptions import TyperException
else:
    # `typer.exceptions` is of Typer 0.28.
    TyperException = typer.BadParameter.__mro__[2]


def main(argv: Sequence[str], fsa: Fsa | None = None) -> int:
    """Run `fsa` with *argv*; the exit code. The one place where errors end."""
    fsa = fsa or Fsa()
    root = command(brief=not argv)
    _drop_service_links(os.environ)
    try:
        if "_FSA_COMPLETE" in os.environ:
            root.main(list(argv), prog_name="fsa")
        with root.make_context("fsa", list(argv) or ["--help"], obj=fsa) as context:
            root.invoke(context)
        return 0
    except typer.Exit as exc:
        return exc.exit_code
    except BrokenPipeError:
        raise  # what reads us has gone
    except Exception as exc:
        error = _as_error(exc, fsa)
    except KeyboardInterrupt:
        error = Interrupted("interrupted")
    if isinstance(error, Interrupted):
        fsa.output.leave_line()
    if fsa.flags.json is None and "--json" in argv:  # a wrong argument before it hid it
        fsa.set(json=True)
    fsa.output.error(error)
    return error.exit_code


def _drop_service_links(environ: MutableMapping[str, str]) -> None:
    """Drop what Kubernetes says of a Service that is called `fsa-console`: no option of ours."""
    for name in [each for each in environ if each.startswith("FSA_") and each.endswith("_PORT")]:
        if environ[name].startswith(("tcp://", "udp://")):
            del environ[name]


def _place_of(option: str, path: str) -> str | None:
    """Where an option belongs that *path* does not have."""
    if path in ("fsa run-task", "fsa scheduler trigger"):
        return f"the task's own options come after its name: {path} NAME {option} ..."
    if path.startswith("fsa runs") and option.startswith("--"):
        from fsa_cli.ledger.records import RunStatus

        name = option.removeprefix("--").replace("-", "_")
        return f"--status {name}" if name in [each.value for each in RunStatus] else None
    return None


def _as_error(error: Exception, fsa: Fsa) -> FsaError:
    if isinstance(error, FsaError):
        return error
    if isinstance(error, TyperException):
        context = getattr(error, "ctx", None)
        path = command_path(context) if context is not None else "fsa"
        word = str(getattr(error, "option_name", ""))  # of one that there is not
        wrong = UsageError(
            error.format_message().replace("Value error, ", ""),
            hint=(word and _place_of(word, path)) or f"{path} --help",
        )
        wrong.__cause__ = error
        return wrong
    if isinstance(error, typer.Abort):
        return Interrupted("nothing was answered")
    if fsa.loaded is not None and (unreachable := fsa.loaded.unreachable(error)) is not None:
        return unreachable
    if isinstance(error, ValueError) and type(error).__module__ == "fastapi_sqlalchemy.exceptions":
        wrong_setting = ConfigurationError(str(error), hint="fsa config says where the URL is from")
        wrong_setting.__cause__ = error
        return wrong_setting
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        half = no_text(error)
        half.__cause__ = error
        return half
    unexpected = FsaError(
        f"{type(error).__name__}: {error}", hint="--traceback shows where it comes from"
    )
    unexpected.__cause__ = error
    return unexpected
