"""`Fsa`, the context of every command: the common flags, the settings, the app, the output.

def count(context: typer.Context) -> None:
    fsa = Fsa.of(context)
    fsa.output.line(str(len(fsa.load().databases)))
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fsa_cli.cli import confirmation
from fsa_cli.cli.flags import LOADING
from fsa_cli.project import environments
from fsa_cli.project.settings import Flags, Settings, read
from fsa_cli.terminal.output import Output

if TYPE_CHECKING:
    from collections.abc import Callable

    import typer

    from fastapi_sqlalchemy import Database
    from fsa_cli.project.loader import LoadedApp


#: What somebody looks at, and stops, also when the last deploy cannot be imported.
_OF_THE_LEDGER = {
    *("status", "runs", "runs show", "runs cancel", "top"),
    *("scheduler status", "scheduler pause", "scheduler resume"),
}


class Fsa:
    """One call of `fsa`. Nothing is read or imported before it is asked for."""

    def __init__(self, flags: Flags | None = None) -> None:
        self.command = ""
        """The path of the command that runs, as `db downgrade`."""
        self.tell_of_left: Callable[[str], object] | None = None
        """Told what goes on in threads when the process ends without it; None: that is waited for,
        as in any Python."""
        self._flags = flags or Flags()
        self._output: Output | None = None
        self._settings: Settings | None = None
        self._loaded: LoadedApp | None = None
        self._warned: set[str] = set()

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
            for warning in self._settings.warnings:
                if warning not in self._warned:  # they are read again with the flags of a command
                    self._warned.add(warning)
                    self.output.warn(warning)
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

            loaded = loader.load(
                self.settings,
                needs_app=not self.command.startswith("db "),
                may_fail=self.command in _OF_THE_LEDGER,
            )
            if (failure := loaded.failure) is not None:
                facts = [each for each in failure.details if not each.startswith(" ")]
                self.output.warn("; ".join((failure.message, *facts, "the ledger is shown")))
            else:
                tell = self.output.say if loaded.searched else self.output.detail
                tell(f"app {loaded.target}, found by {loaded.found}")
            chosen = loaded.databases.get(self.settings.database)
            environment = environments.of(self.settings, [chosen] if chosen else [])
            environment.refuse_prohibited(self.command)
            self._loaded = loaded
        return self._loaded

    @property
    def database(self) -> Database:
        """The database that the command works on: `--database`, or the app's own. Raises as `load`.

        Raises:
            UsageError: The app has none of that name.
        """
        return self.load().database(self.settings.database)

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
