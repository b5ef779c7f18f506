"""Import the user's modules, and take the app out of one. Failures name the user's own line."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fsa_cli.database import connections
from fsa_cli.exceptions import AppLoadError, FsaError, did_you_mean
from fsa_cli.project.app_discovery import Target
from fsa_cli.project.source_search import USUAL_NAMES
from fsa_cli.terminal.user_code import describe_error

if TYPE_CHECKING:
    from starlette.applications import Starlette


def app_of(
    candidates: Sequence[Target], otherwise: Callable[[], Sequence[Target]] = tuple
) -> tuple[Target, Starlette]:
    """The app of the first candidate that has one, and the target that names it.

    Args:
        otherwise: More candidates, asked for where no likely one has an app.

    Raises:
        AppLoadError: None has one, a module has several, or one failed while it was imported.
        DatabaseUnreachable: It failed because it connected to a database.
    """
    for more in (lambda: [each for each in candidates if each.is_likely], otherwise):
        for target in more():
            module = load_module(target.module, target, f"the app {target.text!r}")
            named = target if target.attribute else _named(module, target)
            if named is not None:
                return named, _app(module, named)
            # The next place may be a module of the same name: main.py, then app/main.py.
            sys.modules.pop(target.module, None)
    places = ", ".join(dict.fromkeys(target.module for target in candidates))
    raise AppLoadError(
        f"there is no FastAPI app in {places}",
        details=[f"found by {candidates[0].found}"],
        hint="name it as module:attr with --app, FSA_APP or [tool.fsa] app",
    )


def load_module(name: str, target: Target, what: str) -> ModuleType:
    """Import *name* from the root of *target*; *what* is its name in an error.

    Raises:
        AppLoadError: It does not exist, or raised.
    """
    _reach(target)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as exc:
        raise _failure(exc, f"{what} cannot be imported", target, name) from exc


def _reach(target: Target) -> None:
    root = str(target.root)
    if root in sys.path:
        sys.path.remove(root)
    sys.path.insert(0, root)  # before an installed package of the same name, as uvicorn does


def _named(module: ModuleType, target: Target) -> Target | None:
    """The target with its attribute: a usual name, or the only app, or the only factory."""
    from fastapi import FastAPI

    members = vars(module)
    apps = {name: value for name, value in members.items() if isinstance(value, FastAPI)}
    distinct = {id(value): name for name, value in reversed(apps.items())}
    for name in USUAL_NAMES:
        if name in apps:
            return _with(target, name)
    factories = {
        name: name
        for name, value in members.items()
        if inspect.isfunction(value) and _returns_app(value)
    }
    for kind, names in (("apps", distinct), ("factories", factories)):
        if len(names) == 1:
            return _with(target, next(iter(names.values())))
        if names:
            raise AppLoadError(
                f"{target.module} has {len(names)} FastAPI {kind}",
                details=[f"{target.module}:{name}" for name in sorted(names.values())[:4]]
                + [f"found by {target.found}"],
                hint="choose one with --app, FSA_APP or [tool.fsa] app",
            )
    return None


def _with(target: Target, attribute: str) -> Target:
    return replace(target, attribute=attribute)


def _returns_app(function: Callable[..., object]) -> bool:
    from fastapi import FastAPI

    annotation = function.__annotations__.get("return")
    if isinstance(annotation, str):
        return annotation.rpartition(".")[2] == "FastAPI"
    return isinstance(annotation, type) and issubclass(annotation, FastAPI)


def _app(module: ModuleType, target: Target) -> Starlette:
    """The app that the target's attribute is, or returns if it is a factory."""
    from starlette.applications import Starlette

    found: Any = module
    for part in (target.attribute or "").split("."):
        try:
            found = getattr(found, part)
        except AttributeError as exc:
            names = [n for n in vars(found) if n[0] != "_"]
            raise AppLoadError(
                f"{target.module} has no attribute {target.attribute!r}",
                details=[f"in {module.__file__}", f"given by {target.found}"],
                hint=did_you_mean(part, names, most=1, form=f"{target.module}:{{}}"),
            ) from exc
    if not isinstance(found, Starlette) and (target.called or inspect.isroutine(found)):
        found = _call_factory(found, target)
    if isinstance(found, Starlette):
        return found
    raise AppLoadError(
        f"{target.text} is not a FastAPI app but {_a(found)}",
        details=[f"given by {target.found}"],
        hint="name the FastAPI object itself, or a function that returns it",
    )


def _call_factory(factory: Any, target: Target) -> Any:
    if not callable(factory):
        raise AppLoadError(f"{target.module}:{target.attribute} cannot be called: {_a(factory)}")
    needed = [
        name
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise AppLoadError(
            f"the factory {target.text} needs arguments: {', '.join(needed)}",
            details=[f"given by {target.found}"],
            hint="give them defaults, or name a function that needs none",
        )
    try:
        app = factory()
    except (Exception, SystemExit) as exc:
        raise _failure(exc, f"the factory {target.text} failed", target) from exc
    if inspect.iscoroutine(app):
        app.close()
        raise AppLoadError(f"the factory {target.text} is async; fsa calls only plain functions")
    return app


def _failure(error: BaseException, message: str, target: Target, module: str = "") -> FsaError:
    if (unreachable := connections.unreachable(error, {})) is not None:
        return unreachable
    details = [*describe_error(error), f"found by {target.found}"]
    hint = error.hint if isinstance(error, FsaError) else None
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if isinstance(error, SystemExit):
        details[-2] = f"it called sys.exit({error.code!r}) while it was imported"
        hint = 'put what starts the program under if __name__ == "__main__":'
    elif missing and (module == missing or module.startswith(missing + ".")):
        details = [f"there is no module {missing!r} in {target.root}", f"found by {target.found}"]
        hint = _near(missing, target)
    elif missing and target.root.name == missing.partition(".")[0] and not target.called:
        hint = (
            f'its modules call it {target.root.name}.{target.module}: app = "{target.root.name}.'
            f'{target.module}:{target.attribute or "app"}" in [tool.fsa]'
        )
    elif missing:
        hint = (
            f"is {missing.partition('.')[0]} installed in {sys.prefix}?{_other_environment(target)}"
        )
    elif isinstance(error, ImportError) and "partially initialized" in str(error):
        hint = "two modules import each other: move what both need into a third"
    return AppLoadError(message, details=details, hint=hint)


def _other_environment(target: Target) -> str:
    """What to do where the app's environment is not the one that `fsa` is installed in."""
    for venv in (os.environ.get("VIRTUAL_ENV"), target.root / ".venv", target.root / "venv"):
        if venv and Path(venv, "pyvenv.cfg").is_file():
            if Path(venv).resolve() == Path(sys.prefix).resolve():
                return ""
            return f" fsa runs there; if the app's environment is {venv}, install fsa in that one"
    return ""


def _near(missing: str, target: Target) -> str:
    modules = [
        ".".join(file.relative_to(target.root).with_suffix("").parts)
        for pattern in ("*.py", "*/*.py")
        for file in target.root.glob(pattern)
    ]
    return did_you_mean(missing, modules, most=1) or (
        "start fsa in the project's directory, or name the one to import from: [tool.fsa] app_dir"
    )


def _a(value: object) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
