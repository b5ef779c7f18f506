"""What every command is given: the common flags, and from them the settings, the app, the output.

def count(context: typer.Context) -> None:
    fsa = Fsa.of(context)
    fsa.output.line(str(len(fsa.load().databases)))
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, cast

from fsa_cli.output import Output
from fsa_cli.settings import Flags, Settings, read

if TYPE_CHECKING:
    import typer

    from fsa_cli.loader import LoadedApp


@dataclass
class Fsa:
    """One call of `fsa`. Nothing is read or imported before it is asked for."""

    flags: Flags = field(default_factory=Flags)
    _loaded: LoadedApp | None = None

    @classmethod
    def of(cls, context: typer.Context) -> Fsa:
        return cast(Fsa, context.obj)

    @property
    def output(self) -> Output:
        return Output(
            json=bool(self.flags.json),
            quiet=bool(self.flags.quiet),
            verbose=self.flags.verbose or 0,
            color=False if self.flags.no_color else None,
            traceback=bool(self.flags.traceback),
        )

    @cached_property
    def settings(self) -> Settings:
        return read(self.flags)

    def load(self) -> LoadedApp:
        """The app, imported on the first call; `db` is configured and the tasks are registered.

        Raises:
            AppLoadError: It was not found, or failed while it was imported.
            ConfigurationError: A setting is wrong.
        """
        from fsa_cli import loader

        if self._loaded is None:
            self._loaded = loader.load(self.settings)
            self.output.detail(f"app {self._loaded.target}, {self._loaded.found}")
        return self._loaded

    @staticmethod
    def variable(option: str) -> str:
        return os.environ.get(f"FSA_{option.upper()}", "")
