"""Where the app may be: the one that the settings name, or the usual places."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fsa_cli.exceptions import AppLoadError
from fsa_cli.project.settings import Settings

# As fastapi-cli has them, in its order.
_PLACES = ("main.py", "app.py", "api.py", "app/main.py", "app/app.py", "app/api.py")
_HINT = 'fsa --app MODULE:ATTR, FSA_APP, or app = "MODULE:ATTR" in [tool.fsa] of pyproject.toml'


@dataclass(frozen=True)
class Target:
    """A module to import, and its attribute.

    Attributes:
        attribute: Dotted; None: one of the usual names.
        called: Whether it was written with `()`.
        root: The directory that the module is imported from.
        found: How it was found, for messages.
    """

    module: str
    attribute: str | None
    called: bool
    root: Path
    found: str

    @property
    def text(self) -> str:
        """As `--app` takes it."""
        if self.attribute is None:
            return self.module
        return f"{self.module}:{self.attribute}{'()' if self.called else ''}"


def targets(settings: Settings) -> list[Target]:
    """Where to look, in this order; only one if the settings name it.

    Raises:
        AppLoadError: There is no candidate, or no way to choose.
    """
    if settings.app is not None:
        return [_named(settings, settings.app)]
    here = [settings.directory]
    if settings.project not in here:
        here.append(settings.project)
    for directory in here:
        files = [directory / place for place in _PLACES if (directory / place).is_file()]
        files = files or _in_src(directory)
        if files:
            return [
                _of_file(file, None, False, f"its usual place {file.relative_to(directory)}")
                for file in files
            ]
    looked = ", ".join(str(directory) for directory in here)
    raise AppLoadError(
        "no FastAPI app was found",
        details=[
            f"looked for {', '.join(_PLACES)}",
            f"and src/<package>/ in {looked}",
        ],
        hint=_HINT,
    )


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


def _of_file(file: Path, attribute: str | None, called: bool, found: str) -> Target:
    """The import name of *file*: its packages are the directories above with an `__init__.py`."""
    file = file.resolve()
    parts = [] if file.stem == "__init__" else [file.stem]
    root = file.parent
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    return Target(".".join(parts), attribute, called, root, found)


def _in_src(directory: Path) -> list[Path]:
    packages = sorted(init.parent for init in directory.glob("src/*/__init__.py"))
    if len(packages) > 1:
        raise AppLoadError(
            "no FastAPI app was found, and src/ has more than one package to look in",
            details=[f"{package.relative_to(directory)}/" for package in packages],
            hint=_HINT,
        )
    names = ("main.py", "app.py", "api.py", "__init__.py")
    return [p / name for p in packages for name in names if (p / name).is_file()]


def _holds(directory: Path, module: str) -> bool:
    return (directory / f"{module}.py").is_file() or (directory / module).is_dir()
