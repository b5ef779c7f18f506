"""Find FastAPI apps by reading a project's sources. Nothing is imported."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

__all__ = ["USUAL_NAMES", "FoundApp", "Source", "files_named", "search"]

#: So many directories and files of a repository are looked at, those near its top first.
MAX_DIRECTORIES = 2_000
MAX_FILES = 5_000
_MAX_DEPTH = 6
_MAX_BYTES = 1_000_000

_SKIPPED = {"node_modules", "site-packages", "dist-packages", "__pycache__", "build", "dist"}
#: Apps in these are taken only where there is no other.
_ASIDE = {"test", "tests", "doc", "docs", "docs_src", "example", "examples", "benchmarks"}
_USUAL_FILES = ("main.py", "app.py", "api.py")
#: Files that may call a factory of another one: `app = create_app()`.
_ENTRIES = {*_USUAL_FILES, "asgi.py", "wsgi.py", "server.py", "__init__.py", "__main__.py"}
USUAL_NAMES = ("app", "api", "application")
_MIDDLEWARES = ("DBSessionMiddleware", "SQLAlchemyMiddleware")
_WORDS = tuple(word.encode() for word in ("FastAPI", *_MIDDLEWARES))


@dataclass(frozen=True)
class FoundApp:
    """An app, or a factory, that a source file makes.

    Attributes:
        has_database: Whether the file adds our middleware to it.
    """

    file: Path
    attribute: str
    is_factory: bool = False
    has_database: bool = False


@dataclass
class Source:
    """What one file's text says of apps.

    Attributes:
        apps: Names of the module that are apps.
        factories: Its functions that return one and need no arguments.
        makers: All its functions and methods that return one.
        with_database: Names to which our middleware is added; of a maker its own.
        calls: Names that are assigned what a function returns: `app = create_app()`.
        bound: Every name of the module.
    """

    apps: list[str] = field(default_factory=list)
    factories: list[str] = field(default_factory=list)
    makers: list[str] = field(default_factory=list)
    with_database: set[str] = field(default_factory=set)
    calls: dict[str, str] = field(default_factory=dict)
    bound: set[str] = field(default_factory=set)
    imports: set[str] = field(default_factory=set)
    level: int = 0
    """The dots of its furthest relative import."""

    @classmethod
    def read(cls, file: Path) -> Source | None:
        """None if the file cannot be read, or is not Python."""
        try:
            return _Reader(ast.parse(file.read_bytes())).source
        except (OSError, SyntaxError, ValueError, RecursionError):
            return None

    def may_hold_app(self) -> bool:
        """Whether importing it may give an app: it makes one, or has one of the usual names."""
        names = {*USUAL_NAMES, "*"}
        return bool(self.apps or self.factories or self.with_database or names & self.bound)


def search(directory: Path) -> list[FoundApp]:
    """The apps in the sources below *directory*; of several those that more speaks for.

    Those with our middleware, else those in `*/main.py`, `*/app.py`, `*/api.py` and below `src`,
    else all; those of tests, docs and examples only where there is nothing else.
    """
    files = list(_files(directory))
    found: list[FoundApp] = []
    makers: dict[str, list[FoundApp]] = {}
    for file in files:
        if _mentions(file, _WORDS) and (source := Source.read(file)):
            found.extend(_apps_of(file, source))
            for name in source.makers:
                has_database = name in source.with_database
                makers.setdefault(name, []).append(FoundApp(file, name, True, has_database))
    found = _called(files, found, makers)
    for chosen in (
        [each for each in found if not _is_aside(each.file, directory)],
        found,
    ):
        if chosen:
            with_database = [each for each in chosen if each.has_database]
            usual = [each for each in chosen if _is_usual(each.file, directory)]
            return next((each for each in (with_database, usual) if each), chosen)
    return []


def _files(directory: Path) -> Iterator[Path]:
    """Python files, breadth first, in a fixed order."""
    found = (file for file in _walk(directory) if file.name.endswith(".py"))
    yield from islice(found, MAX_FILES)


def files_named(name: str, directory: Path) -> list[Path]:
    """The files of that name below *directory*, but in tests, docs and examples; ten at most."""
    found = (file for file in _walk(directory) if file.name == name)
    return list(islice((file for file in found if not _is_aside(file, directory)), 10))


def _walk(directory: Path) -> Iterator[Path]:
    """Files, breadth first, in a fixed order; none of virtual environments and hidden folders."""
    level, directories = [directory], 0
    for _ in range(_MAX_DEPTH):
        below: list[Path] = []
        for each in level:
            directories += 1
            if directories > MAX_DIRECTORIES:
                return
            try:
                entries = sorted(os.scandir(each), key=lambda entry: entry.name)
            except OSError:
                continue
            if any(entry.name == "pyvenv.cfg" for entry in entries):
                continue
            for entry in entries:
                if entry.name.startswith(".") or entry.name in _SKIPPED:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    below.append(Path(entry.path))
                else:
                    yield Path(entry.path)
        level = below


def _mentions(file: Path, words: Iterable[bytes]) -> bool:
    try:
        if file.stat().st_size > _MAX_BYTES:
            return False
        text = file.read_bytes()
    except OSError:
        return False
    return any(word in text for word in words)


def _apps_of(file: Path, source: Source) -> list[FoundApp]:
    """The apps of a file; its factories where it has none, and those of a usual name alone."""
    apps = list(dict.fromkeys((*source.apps, *(source.with_database & source.bound))))
    apps = [name for name in apps if name not in source.makers]
    names, is_factory = (apps, False) if apps else (source.factories, True)
    usual = [name for name in USUAL_NAMES if name in names]
    return [
        FoundApp(file, name, is_factory, name in source.with_database)
        for name in (usual[:1] or names)
    ]


def _called(
    files: list[Path], found: list[FoundApp], makers: dict[str, list[FoundApp]]
) -> list[FoundApp]:
    """With `app = create_app()` of another file, in the place of its factory where that is one."""
    if not makers:
        return found
    words = [name.encode() for name in makers]
    known = {each.file for each in found}
    called: dict[FoundApp, FoundApp] = {}
    for file in files:
        if file.name not in _ENTRIES or file in known or not _mentions(file, words):
            continue
        source = Source.read(file)
        for name, function in source.calls.items() if source else ():
            if function in makers:
                maker = max(makers[function], key=lambda each: _nearness(each.file, file))
                called.setdefault(maker, FoundApp(file, name, has_database=maker.has_database))
    return [
        *(called.pop(each, each) for each in found),
        *called.values(),  # of makers that need arguments
    ]


def _nearness(one: Path, other: Path) -> int:
    return len(os.path.commonpath([one, other]))


def _is_aside(file: Path, directory: Path) -> bool:
    *folders, name = file.relative_to(directory).parts
    is_test = name.startswith("test_") or name.endswith("_test.py") or name == "conftest.py"
    return is_test or not _ASIDE.isdisjoint(folders)


def _is_usual(file: Path, directory: Path) -> bool:
    *folders, name = file.relative_to(directory).parts
    depth = 2 if folders[:1] == ["src"] else 1
    return name in _USUAL_FILES and len(folders) <= depth


class _Reader:
    """Reads the statements of a module that run when it is imported, and its functions' returns."""

    def __init__(self, module: ast.Module) -> None:
        self.source = Source()
        self._classes = {"FastAPI"}
        """Names of FastAPI and of its subclasses in this module."""
        self._modules: set[str] = set()
        self._middlewares = set(_MIDDLEWARES)
        statements = list(_top_level(module.body))
        for statement in statements:
            self._import(statement)
        for each in ast.walk(module):
            if isinstance(each, ast.Import | ast.ImportFrom):
                self._note_import(each)
        for statement in statements:
            self._statement(statement)

    def _import(self, statement: ast.stmt) -> None:
        source = self.source
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                name = alias.asname or alias.name
                source.bound.add(name)
                if alias.name == "FastAPI":
                    self._classes.add(name)
                elif alias.name in _MIDDLEWARES:
                    self._middlewares.add(name)
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                source.bound.add(alias.asname or alias.name.partition(".")[0])
                if alias.name == "fastapi":
                    self._modules.add(alias.asname or "fastapi")

    def _note_import(self, each: ast.Import | ast.ImportFrom) -> None:
        if isinstance(each, ast.Import):
            self.source.imports.update(alias.name.partition(".")[0] for alias in each.names)
        elif each.level:
            self.source.level = max(self.source.level, each.level)
        elif each.module:
            self.source.imports.add(each.module.partition(".")[0])

    def _statement(self, statement: ast.stmt) -> None:
        source = self.source
        if isinstance(statement, ast.ClassDef):
            source.bound.add(statement.name)
            if any(self._is_class(base) for base in statement.bases):
                self._classes.add(statement.name)
            if any(isinstance(b, ast.Name) and b.id in self._middlewares for b in statement.bases):
                self._middlewares.add(statement.name)
            self._methods(statement)
        elif isinstance(statement, ast.FunctionDef):
            source.bound.add(statement.name)
            self._function(statement)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    source.bound.add(target.id)
                    self._assigned(target.id, statement.value)
        elif isinstance(statement, ast.Expr) and (name := self._given_database(statement.value)):
            source.with_database.add(name)

    def _assigned(self, name: str, value: ast.expr | None) -> None:
        if not isinstance(value, ast.Call):
            return
        function = value.func.id if isinstance(value.func, ast.Name) else ""
        if isinstance(value.func, ast.Attribute):  # factory.create_app(), Server().create_app()
            function = value.func.attr
        if self._is_class(value.func):
            self.source.apps.append(name)
            if self._names_middleware(value):
                self.source.with_database.add(name)
        elif function in self.source.makers:
            self.source.apps.append(name)
            if function in self.source.with_database:
                self.source.with_database.add(name)
        elif function:
            self.source.calls[name] = function

    def _function(self, function: ast.FunctionDef) -> None:
        if self._makes_app(function):
            self.source.makers.append(function.name)
            arguments = function.args
            positional = [*arguments.posonlyargs, *arguments.args]
            if len(positional) == len(arguments.defaults) and None not in arguments.kw_defaults:
                self.source.factories.append(function.name)
            if self._gives_database(function):
                self.source.with_database.add(function.name)

    def _methods(self, of: ast.ClassDef) -> None:
        for each in of.body:
            if isinstance(each, ast.FunctionDef) and self._makes_app(each):
                self.source.makers.append(each.name)
                if self._gives_database(of):  # often in another method
                    self.source.with_database.add(each.name)

    def _makes_app(self, function: ast.FunctionDef) -> bool:
        """Whether it returns an app that it makes, or says that it returns one."""
        made: set[str] = set()
        returned: set[str] = set()
        given_back = function.returns is not None and self._is_class(_unquoted(function.returns))
        for each in ast.walk(function):
            if isinstance(each, ast.Assign | ast.AnnAssign) and isinstance(each.value, ast.Call):
                targets = each.targets if isinstance(each, ast.Assign) else [each.target]
                if self._is_class(each.value.func):
                    made.update(ast.unparse(target) for target in targets)  # also self.app
            elif isinstance(each, ast.Return) and isinstance(each.value, ast.Call):
                given_back |= self._is_class(each.value.func)
            elif isinstance(each, ast.Return) and each.value is not None:
                returned.add(ast.unparse(each.value))
        return given_back or bool(made & returned)

    def _gives_database(self, node: ast.AST) -> bool:
        return any(
            isinstance(each, ast.Call) and self._names_middleware(each) for each in ast.walk(node)
        )

    def _is_class(self, node: ast.expr | None) -> bool:
        if isinstance(node, ast.Name):
            return node.id in self._classes
        return (
            isinstance(node, ast.Attribute)
            and node.attr == "FastAPI"
            and isinstance(node.value, ast.Name)
            and node.value.id in self._modules
        )

    def _given_database(self, node: ast.expr) -> str | None:
        """The `app` of `app.add_middleware(DBSessionMiddleware, ...)`."""
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "add_middleware"
            and isinstance(node.func.value, ast.Name)
            and self._names_middleware(node)
        ):
            return node.func.value.id
        return None

    def _names_middleware(self, call: ast.Call) -> bool:
        return any(
            (isinstance(each, ast.Name) and each.id in self._middlewares)
            or (isinstance(each, ast.Attribute) and each.attr in self._middlewares)
            for argument in (*call.args, *(keyword.value for keyword in call.keywords))
            for each in ast.walk(argument)
        )


def _top_level(statements: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run at import, also those inside `if`, `try` and `with`."""
    for each in statements:
        yield each
        if isinstance(each, ast.If | ast.Try | ast.With):
            if isinstance(each, ast.If) and "__main__" in ast.dump(each.test):
                continue
            yield from _top_level(each.body)
            yield from _top_level(getattr(each, "orelse", ()))
            yield from _top_level(getattr(each, "finalbody", ()))
            for handler in getattr(each, "handlers", ()):
                yield from _top_level(handler.body)


def _unquoted(node: ast.expr) -> ast.expr:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return ast.parse(node.value, mode="eval").body
        except SyntaxError:
            return node
    return node
