"""`Fsa`, the context of every command: the common flags, the settings, the app, the output.

def count(context: typer.Context) -> None:
    fsa = Fsa.of(context)
    fsa.output.line(str(len(fsa.load().databases)))
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsa_cli.cli import confirmation
from fsa_cli.exceptions import UsageError
from fsa_cli.project import environments
from fsa_cli.project.settings import Flags, Settings, read
from fsa_cli.terminal.output import Output

if TYPE_CHECKING:
    import typer

    from fastapi_sqlalchemy import Database
    from fsa_cli.project.loader import LoadedApp

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


class Fsa:
    """One call of `fsa`. Nothing is read or imported before it is asked for."""

    def __init__(self, flags: Flags | None = None) -> None:
        self.command = ""
        """The path of the command that runs, as `db downgrade`."""
        self._flags = flags or Flags()
        self._output: Output | None = None
        self._settings: Settings | None = None
        self._loaded: LoadedApp | None = None

    @classmethod
    def of(cls, context: typer.Context) -> Fsa:
        """The one that *context*'s command was called with."""
        fsa: Fsa = context.obj
        return fsa

    @property
    def flags(self) -> Flags:
        return self._flags

    @property
    def output(self) -> Output:
        if self._output is None:
            self._output = Output(
                json=bool(self._flags.json),
                quiet=bool(self._flags.quiet),
                verbose=self._flags.verbose or 0,
                color=False if self._flags.no_color else None,
                traceback=bool(self._flags.traceback),
            )
        return self._output

    @property
    def settings(self) -> Settings:
        """Raises ConfigurationError if a setting is wrong."""
        if self._settings is None:
            self._settings = read(self._flags)
        return self._settings

    @property
    def loaded(self) -> LoadedApp | None:
        """The app, if it was loaded."""
        return self._loaded

    def load(self) -> LoadedApp:
        """The app, imported on the first call; `db` is configured and the tasks are registered.

        Raises:
            AppLoadError: It was not found, or failed while it was imported.
            ConfigurationError: A setting is wrong.
            Refused: The environment prohibits the command.
        """
        if self._loaded is None:
            from fsa_cli.project import loader

            loaded = loader.load(self.settings)
            self.output.detail(f"app {loaded.target}, found by {loaded.found}")
            chosen = loaded.databases.get(self.settings.database)
            environment = environments.of(self.settings, [chosen] if chosen else [])
            environment.refuse_prohibited(self.command)
            self._loaded = loaded
        return self._loaded

    def environment(self) -> environments.Environment:
        """The environment of all the app's databases; the chosen one decides first.

        Raises:
            Refused: One was named, and a database is that of another one, which is protected.
        """
        loaded, chosen = self.load(), self.settings.database
        ordered = sorted(loaded.databases.items(), key=lambda item: item[0] != chosen)
        return environments.of(self.settings, [database for _, database in ordered])

    def confirm(self, action: str, database: Database, *, typed: str | None = None) -> None:
        """Ask a person to agree to *action* on *database*, which cannot be undone.

        Args:
            action: What would be done, as `drop the table users`.
            typed: The value of the command's `--confirm`.

        Raises:
            Refused: They do not, or there is no terminal to ask at.
        """
        environment = environments.of(self.settings, [database])
        yes = bool(self._flags.yes)
        confirmation.confirm(environment, action, database, typed=typed, yes=yes)

    def use_executor(self, executor: str | None) -> None:
        """Use *executor* for tasks that name none; None: that of the settings."""
        if executor is not None:
            sources = {**self.settings.sources, "executor": "--executor"}
            self._settings = replace(self.settings, executor=executor, sources=sources)

    def set(self, **flags: Any) -> None:
        """Set flags; values derived from the old ones are dropped.

        A loaded app stays, unless the flags choose the app.
        """
        self._flags = replace(self._flags, **flags)
        self._output = self._settings = None
        if not LOADING.isdisjoint(flags):
            self._loaded = None


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
