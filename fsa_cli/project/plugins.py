"""Commands of the user's own: `[tool.fsa] commands`, and the entry points `fsa.commands`.

    [tool.fsa]
    commands = ["shop.commands:prices", "reindex = shop.search:main"]

Each is a Typer app or a function. Their names are known without importing any of them.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fsa_cli.exceptions import AppLoadError
from fsa_cli.project.settings import Settings

_ENTRY = re.compile(
    r"(?:(?P<name>[\w-]+)\s*=\s*)?(?P<module>[\w.]+)\s*:\s*(?P<attribute>\w+)\s*(?:\[.*)?"
)


@dataclass(frozen=True)
class UserCommand:
    """A command of the user's own.

    Attributes:
        source: The setting or package that names it.
        is_plugin: Whether an installed package brings it; the others are the project's.
    """

    name: str
    module: str
    attribute: str
    source: str
    is_plugin: bool

    @property
    def target(self) -> str:
        return f"{self.module}:{self.attribute}"


def find_commands(settings: Settings | None, warn: Callable[[str], None]) -> list[UserCommand]:
    """The project's, and those of the installed packages, the first of each name.

    Args:
        settings: None if they cannot be read.
        warn: Called with one line for each that is named wrongly.
    """
    texts: list[tuple[str, str, bool]] = []
    if settings is not None:
        source = settings.sources["commands"]
        texts += [(text, source, False) for text in settings.commands]
    texts += [(text, f"the package {package}", True) for package, text in _entry_points()]
    commands: dict[str, UserCommand] = {}
    for text, source, is_plugin in texts:
        match = _ENTRY.fullmatch(text)
        if match is None:
            warn(f'{text!r} in {source} is not of the form "name = module:attribute"')
            continue
        name = match["name"] or match["attribute"].replace("_", "-")
        command = UserCommand(name, match["module"], match["attribute"], source, is_plugin)
        commands.setdefault(name, command)
    return list(commands.values())


def summary(command: UserCommand, settings: Settings | None) -> str:
    """Its line in the help, read from its source file, or its target."""
    otherwise = f"{command.target}, of {command.source}" if command.is_plugin else command.target
    if settings is None or command.is_plugin:
        return otherwise
    path = Path(*command.module.split("."))
    base = settings.app_dir or settings.project
    for root in (base, base / "src"):
        for file in (root / path.with_suffix(".py"), root / path / "__init__.py"):
            try:
                tree = ast.parse(file.read_bytes())
            except (OSError, SyntaxError, ValueError):
                continue
            return _summary_in(tree, command.attribute) or otherwise
    return otherwise


def load(command: UserCommand, settings: Settings) -> Callable[..., Any]:
    """Import it.

    Raises:
        AppLoadError: In one line.
    """
    from importlib import import_module

    from fsa_cli.project.app_discovery import targets
    from fsa_cli.project.dotenv import export
    from fsa_cli.terminal.user_code import summarize_error, user_frame

    what = f"fsa {command.name} ({command.target}) cannot be loaded"
    export(settings.variables)
    if not command.is_plugin:
        base = settings.app_dir or settings.project
        (target,) = targets(replace(settings, app=command.target, app_base=base, app_dir=base))
        sys.path.insert(0, str(target.root))
    try:
        found = getattr(import_module(command.module), command.attribute)
    except (Exception, SystemExit) as exc:
        where = user_frame(exc)
        at = f" ({where.lines()[0]})" if where else ""
        raise AppLoadError(f"{what}: {summarize_error(exc)}{at}") from exc
    if callable(found):  # a Typer app is callable too
        return found  # type: ignore[no-any-return]
    raise AppLoadError(f"{what}: it is neither a Typer app nor a function but {found!r}")


def _entry_points() -> Iterator[tuple[str, str]]:
    """The package and the line of each entry point.

    `importlib.metadata` would take longer than all the rest of `fsa --help`.
    """
    seen: set[str] = set()
    for directory in sys.path:
        try:
            names = os.listdir(directory or ".")  # noqa: PTH208 - pathlib takes ten times as long
        except OSError:
            continue
        for name in names:
            if not name.endswith((".dist-info", ".egg-info")) or name in seen:
                continue
            seen.add(name)
            try:
                path = f"{directory or '.'}/{name}/entry_points.txt"
                with open(path, encoding="utf-8", errors="replace") as stream:  # noqa: PTH123
                    text = stream.read()
            except OSError:
                continue
            section = text.partition("[fsa.commands]")[2].partition("\n[")[0]
            for line in section.splitlines():
                if line.strip() and not line.lstrip().startswith(("#", ";")):
                    yield name.partition("-")[0], line.strip()


def _summary_in(tree: ast.Module, attribute: str) -> str | None:
    """The docstring's first line of the function, or the `help=` of the Typer app."""
    text: Any = None
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                if name == attribute:
                    text = ast.get_docstring(node)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(keywords=keywords)):
                if name == attribute:
                    helps = [word.value for word in keywords if word.arg == "help"]
                    text = helps[0].value if helps and isinstance(helps[0], ast.Constant) else None
    return text.strip().partition("\n")[0] if isinstance(text, str) else None
