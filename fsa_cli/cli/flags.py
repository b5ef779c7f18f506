"""The common flags: their spellings, and taking them out of a command line."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from fsa_cli.exceptions import UsageError
from fsa_cli.project.settings import Flags

__all__ = ["COMMON", "FROM_SETTINGS", "LOADING", "SPELLINGS", "VALUED", "split_flags"]

#: The common flags, by their field of `Flags`, with their spellings.
COMMON = {
    "app": ("-A", "--app"),
    "env_file": ("--env-file",),
    "no_env_file": ("--no-env-file",),
    "database": ("-d", "--database"),
    "env": ("--env",),
    "verbose": ("-v", "--verbose"),
    "quiet": ("-q", "--quiet"),
    "json": ("--json",),
    "no_color": ("--no-color",),
    "yes": ("-y", "--yes"),
    "traceback": ("--traceback",),
}
#: The field of each spelling.
SPELLINGS = {spelling: name for name, spellings in COMMON.items() for spelling in spellings}
#: Those that take a value.
VALUED = {"app", "env_file", "database", "env"}
#: Those that choose the app.
LOADING = {"app", "env_file", "no_env_file", "env"}
#: Those whose variables the settings read themselves.
FROM_SETTINGS = {*LOADING, "database"}


def split_flags(argv: Sequence[str], *, but: Collection[str] = ()) -> tuple[Flags, list[str]]:
    """The common flags in *argv*, and the arguments that are left.

    For commands whose arguments are not fsa's: `fsa run-task NAME ARGS`. Everything after
    `--` is left as it is, without the `--`.

    Args:
        but: Fields of `Flags` to leave out, such as `{"json"}`.
    """
    found: dict[str, Any] = {}
    rest: list[str] = []
    waiting = list(argv)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            return Flags(**found), rest + waiting
        spelling, equals, value = word.partition("=")
        name = SPELLINGS.get(spelling)
        if name is None or name in but or (equals and name not in VALUED):
            rest.append(word)
        elif name in VALUED:
            if not equals and not waiting:
                raise UsageError(f"{word} needs a value")
            text = value if equals else waiting.pop(0)
            found[name] = Path(text) if name == "env_file" else text
        else:
            found[name] = found.get(name, 0) + 1 if name == "verbose" else True
    return Flags(**found), rest
