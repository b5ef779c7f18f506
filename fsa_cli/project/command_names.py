"""The names of all commands, for what names them in a file: nothing is imported for it."""

from __future__ import annotations

from collections.abc import Iterator

from fsa_cli.project.settings import Settings

__all__ = ["SUBCOMMANDS", "all_names", "is_own"]

#: Those of `cli.command_tree.COMMANDS`, each with the commands in it.
SUBCOMMANDS: dict[str, tuple[str, ...]] = {
    "status": (),
    "run-task": (),
    "tasks": (),
    "runs": ("show", "retry", "cancel"),
    "shell": (),
    "scheduler": (
        *("start", "tick", "status", "list", "next", "test"),
        *("trigger", "pause", "resume", "init"),
    ),
    "worker": ("start",),
    "console": (),
    "top": (),
    "dev": (),
    "health": ("live", "ready"),
    "db": (
        *("show", "table", "query", "shell", "create", "check"),
        *("revision", "merge", "upgrade", "downgrade", "current", "history", "stamp"),
    ),
    "routes": (),
    "config": (),
    "doctor": (),
    "init": (),
    "docs": (),
}


def all_names() -> Iterator[str]:
    """Each as it is typed behind `fsa`: `db`, `db show`."""
    for name, inner in SUBCOMMANDS.items():
        yield name
        yield from (f"{name} {each}" for each in inner)


def is_own(word: str, settings: Settings) -> bool:
    """Whether it is a command of the user's own."""
    from fsa_cli.project import plugins

    return any(word == each.name for each in plugins.find_commands(settings, lambda _: None))
