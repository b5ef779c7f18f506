"""Where the app may be: the one that the settings name, the usual places, or the sources."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from fsa_cli.exceptions import AppLoadError, NoApp
from fsa_cli.project.settings import Settings
from fsa_cli.project.source_search import FoundApp, Source, search

# As fastapi-cli has them, in its order.
_PLACES = ("main.py", "app.py", "api.py", "app/main.py", "app/app.py", "app/api.py")
_LEVELS = 4
_HINT = (
    "start fsa in the project's directory; or fsa --app MODULE:ATTR, FSA_APP, "
    'or app = "MODULE:ATTR" in [tool.fsa] of pyproject.toml'
)


@dataclass(frozen=True)
class Target:
    """A module to import, and its attribute.

    Attributes:
        attribute: Dotted; None: one of the usual names.
        called: Whether it was written with `()`.
        root: The directory that the module is imported from.
        found: How it was found, for messages.
        searched: Whether by reading the sources.
        is_likely: Whether its source makes an app, or has one of the usual names.
    """

    module: str
    attribute: str | None
    called: bool
    root: Path
    found: str
    searched: bool = False
    is_likely: bool = True

    @property
    def text(self) -> str:
        """As `--app` takes it."""
        if self.attribute is None:
            return self.module
        return f"{self.module}:{self.attribute}{'()' if self.called else ''}"


def targets(settings: Settings) -> list[Target]:
    """Where to look, in this order; only one if the settings name it, none if there is no place.

    Raises:
        AppLoadError: What the settings name does not exist.
    """
    if settings.app is not None:
        return [_named(settings, settings.app)]
    for directory in _here(settings):
        files = [directory / place for place in _PLACES if (directory / place).is_file()]
        files = files or _in_src(directory)
        if files:
            return [_of_usual_place(file, directory) for file in files]
    return []


def searched(settings: Settings, usual: Sequence[Target]) -> list[Target]:
    """The app that the sources have; the unlikely ones of *usual*, if they have none.

    Raises:
        AppLoadError: They have several, or there is nothing to try.
    """
    if settings.app is not None:
        return []
    for directory in _here(settings):
        found = search(directory)
        if len(found) == 1:
            (only,) = found
            shown = _shown(only, settings)
            how = f"the sources: {shown} is the only one in them"
            target = _of_file(only.file, only.attribute, only.is_factory, how)
            return [replace(target, searched=True)]
        if found:
            lines = [f"fsa --app {_shown(each, settings)}" for each in found]
            more = [f"... and {len(lines) - 4} more"] if len(lines) > 5 else []
            raise AppLoadError(
                f"there are {len(found)} FastAPI apps: which one?",
                details=[*lines[: 4 if more else 5], *more],
                hint=f'in pyproject.toml, [tool.fsa] app = "{_shown(found[0], settings)}" keeps it',
            )
    if usual:
        return [each for each in usual if not each.is_likely]
    looked = ", ".join(str(directory) for directory in _here(settings))
    raise NoApp(
        "no FastAPI app was found",
        details=[
            f"looked for {', '.join(_PLACES)}, src/<package>/",
            f"and for FastAPI( in the sources, in {looked}",
        ],
        hint=_above(settings.directory) or _HINT,
    )


def _here(settings: Settings) -> list[Path]:
    return list(dict.fromkeys((settings.directory, settings.project)))


def _above(directory: Path) -> str | None:
    """What to do where *directory* is below one that has an app."""
    for folder in list(directory.parents)[:_LEVELS]:
        for file in (folder / place for place in _PLACES):
            source = Source.read(file) if file.is_file() else None
            if source is not None and source.may_hold_app():
                up = os.path.relpath(folder, directory)
                return f"cd {up}, where {file.relative_to(folder)} is; or fsa --app, or FSA_APP"
    return None


def _shown(found: FoundApp, settings: Settings) -> str:
    """As `--app` takes it where fsa was started."""
    return f"{os.path.relpath(found.file, settings.directory)}:{found.attribute}"


def _of_usual_place(file: Path, directory: Path) -> Target:
    source = Source.read(file)
    found = f"its usual place {file.relative_to(directory)}"
    target = _of_file(file, None, False, found, source)
    return replace(target, is_likely=source is None or source.may_hold_app())


def _named(settings: Settings, text: str) -> Target:
    found = settings.sources["app"]
    match = re.fullmatch(r"(?P<where>[^:]+)(?::(?P<attribute>[\w.]+)(?P<call>\(\))?)?", text)
    if match is None:
        raise AppLoadError(
            f"{text!r} does not name an app",
            details=[f"given by {found}"],
            hint="write it as module:attr, module:factory, or module",
        )
    where, attribute, called = match["where"], match["attribute"], match["call"] is not None
    base = settings.app_dir or settings.app_base
    if where.endswith(".py") or "/" in where:
        file = base / where
        if file.is_dir():
            file = file / "__init__.py"
        if not file.is_file():
            raise AppLoadError(
                f"the file {where} does not exist", details=[f"given by {found}", f"in {base}"]
            )
        return _of_file(file, attribute, called, found)
    top = where.partition(".")[0]
    here, src = _holds(base, top), _holds(base / "src", top)
    return Target(where, attribute, called, base / "src" if src and not here else base, found)


def _of_file(
    file: Path, attribute: str | None, called: bool, found: str, source: Source | None = None
) -> Target:
    """The import name of *file*, from the directory that its own imports are meant from.

    Its packages are the directories above with an `__init__.py`, and those that it imports from:
    `src/main.py` with `from src.db import ...` is `src.main`, with or without an `__init__.py`.
    """
    file = file.resolve()
    parts = [] if file.stem == "__init__" else [file.stem]
    root = file.parent
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    source = source or Source.read(file)
    if source is not None:
        needed = max(0, source.level - len(file.relative_to(root).parts) + 1)
        folders = [root, *root.parents][:3]
        for number, folder in enumerate(folders, start=1):
            if folder.name in source.imports and _is_package(folder):
                needed = max(needed, number)
        for folder in folders[:needed]:
            parts.insert(0, folder.name)
            root = folder.parent
    return Target(".".join(parts), attribute, called, root, found)


def _is_package(folder: Path) -> bool:
    """Whether an import of the folder's name can mean it: no other module has that name."""
    if _holds(folder, folder.name) or folder.name in sys.stdlib_module_names:
        return False
    installed = find_spec(folder.name)
    return installed is None or str(folder) in (installed.submodule_search_locations or ())


def _in_src(directory: Path) -> list[Path]:
    """The files of the only package in `src`."""
    packages = sorted(init.parent for init in directory.glob("src/*/__init__.py"))
    if len(packages) != 1:
        return []
    names = ("main.py", "app.py", "api.py", "__init__.py")
    return [p / name for p in packages for name in names if (p / name).is_file()]


def _holds(directory: Path, module: str) -> bool:
    return (directory / f"{module}.py").is_file() or (directory / module).is_dir()
