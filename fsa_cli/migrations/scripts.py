"""Where a project's migrations are, and Alembic's configuration for them.

An `alembic.ini` (the nearest, or what ALEMBIC_CONFIG names) or `[tool.alembic]` of pyproject.toml
says where; without either it is `migrations`, or `alembic`, in the project, else the only
`alembic.ini` below it. A folder without an env.py uses the one of this package.
"""

from __future__ import annotations

import os
import tomllib
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsa_cli.exceptions import ConfigurationError
from fsa_cli.project.settings import Settings
from fsa_cli.project.source_search import files_named
from fsa_cli.terminal.log_levels import quieten

if TYPE_CHECKING:
    from alembic.config import Config

_DEFAULT = Path(__file__).parent / "default"
_FOLDERS = ("migrations", "alembic")


@dataclass(frozen=True, kw_only=True)
class Scripts:
    """Where the migrations of one database are.

    Attributes:
        found: The alembic.ini or pyproject.toml that says so; None if their folder was found.
        folder: Their folder, if no file names one; it may not exist yet.
        several: The alembic.ini below the project of which none can be chosen.
    """

    database: str
    found: Path | None = None
    folder: Path | None = None
    several: tuple[Path, ...] = ()

    @property
    def exist(self) -> bool:
        """Whether the project uses Alembic."""
        return self.found is not None or (self.folder is not None and self.folder.is_dir())

    @property
    def has_environment(self) -> bool:
        """Whether the project has an env.py of its own."""
        return self.folder is None or (self.folder / "env.py").is_file()

    def spares_own_tables(self) -> bool:
        """Whether the project's own Alembic leaves fsa's tables alone, by its env.py's text."""
        if not self.exist or not self.has_environment:
            return True
        try:
            config = self.config({})
            option = getattr(config, "get_alembic_option", config.get_main_option)  # 1.16, before
            location = option("script_location")
            text = Path(location or "", "env.py").read_text(encoding="utf-8")
        except Exception:  # another place, or Alembic's own complaint of the file
            return False
        return "fsa_" in text

    def config(
        self, attributes: Mapping[str, Any], *, output: Any = None, x: Sequence[str] = ()
    ) -> Config:
        """Alembic's configuration, without a URL.

        Args:
            x: What `context.get_x_argument()` gives an env.py.

        Raises:
            ConfigurationError: Alembic is not installed.
        """
        require_alembic()
        from alembic.config import Config

        more: dict[str, Any] = {
            "attributes": dict(attributes),
            "output_buffer": output,
            "cmd_opts": Namespace(quiet=True, x=list(x) or None, verbose=False),
        }
        if self.folder is not None:
            config = Config(**more)
            own = self.has_environment
            _set(config, "script_location", str(self.folder if own else _DEFAULT))
            _set(config, "version_locations", str(self.folder / "versions"))
            for name in ("path_separator", "version_path_separator"):  # 1.16, and before
                _set(config, name, "os")
        elif self.found is not None:
            beside = self.found.with_name("pyproject.toml")
            if _has_table(beside):  # it and alembic.ini may share the settings
                more["toml_file"] = beside
            if self.found != beside:
                named = _has_section(self.found, self.database)
                more["ini_section"] = self.database if named else "alembic"
                more["file_"] = self.found
            config = Config(**more)
        else:
            raise AssertionError("either a file or a folder")
        self._anchor(config)
        return config

    def _anchor(self, config: Config) -> None:
        """A folder that is written as `alembic` is beside its file, wherever fsa was started."""
        section = config.config_ini_section
        location = config.file_config.get(section, "script_location", fallback=None)
        if self.found is None or not location or ":" in location or Path(location).is_absolute():
            return
        _set(config, "script_location", str(self.found.absolute().parent / location))


def find(settings: Settings) -> Scripts:
    """Where the migrations of the chosen database are, or would be."""
    database = settings.database
    named = os.environ.get("ALEMBIC_CONFIG")
    if named and (settings.directory / named).is_file():
        return Scripts(database=database, found=settings.directory / named)
    for directory in (settings.directory, *settings.directory.parents):
        if (directory / "alembic.ini").is_file():
            return Scripts(database=database, found=directory / "alembic.ini")
        if directory == settings.project:
            break
    pyproject = settings.project / "pyproject.toml"
    if _has_table(pyproject):
        return Scripts(database=database, found=pyproject)
    suffix = "" if database == "default" else f"_{database}"
    folders = [settings.project / (name + suffix) for name in _FOLDERS]
    there = [each for each in folders if (each / "versions").is_dir()]
    if there:
        return Scripts(database=database, folder=there[0])
    below = files_named("alembic.ini", settings.project)
    if len(below) == 1:
        return Scripts(database=database, found=below[0])
    return Scripts(database=database, folder=folders[0], several=tuple(below))


def require_alembic() -> None:
    """Raises ConfigurationError if Alembic is not installed. Its progress is told by us."""
    quieten("alembic")  # before it is imported: it tells of its plugins then
    if find_spec("alembic.config" if find_spec("alembic") else "alembic") is None:
        raise ConfigurationError(
            "Alembic is not installed", hint="pip install 'fastapi-sqlalchemy[alembic]'"
        )


def _set(config: Config, name: str, value: str) -> None:
    config.set_main_option(name, value.replace("%", "%%"))


def _has_section(ini: Path, name: str) -> bool:
    from configparser import RawConfigParser

    parser = RawConfigParser()
    parser.read(ini, encoding="utf-8")
    return parser.has_section(name)


def _has_table(pyproject: Path) -> bool:
    if not pyproject.is_file():
        return False
    with pyproject.open("rb") as file:
        return "alembic" in tomllib.load(file).get("tool", {})
