"""Which module of the library may import which: what stands to the right of it, and no circle."""

import ast
from pathlib import Path

import pytest

import fastapi_sqlalchemy

ROOT = Path(fastapi_sqlalchemy.__file__).parent

#: Each imports only from lines below its own.
LEVELS = (
    ("testing", "compat", "health"),
    ("__init__", "app_binding"),
    ("middleware",),
    ("database",),
    ("sandbox", "asgi"),
    ("sessions",),
    ("configuration",),
    ("engines", "pool_deadlines"),
    ("exceptions",),
)
#: Looked up when they are used: a test suite may have deleted the module.
WHEN_USED = {("app_binding", "middleware")}
MODULES = sorted(path.relative_to(ROOT).with_suffix("").parts for path in ROOT.rglob("*.py"))


def imported(parts: tuple[str, ...]) -> set[tuple[str, ...]]:
    """The modules of the library that this one imports, wherever in it."""
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse((ROOT / Path(*parts)).with_suffix(".py").read_text())):
        if isinstance(node, ast.Import):
            if any(alias.name.startswith("fastapi_sqlalchemy") for alias in node.names):
                found.add(("__init__",))
        elif isinstance(node, ast.ImportFrom) and node.level:
            package = parts[: len(parts) - node.level]
            module = (*package, *(node.module or "").split("."))
            for alias in node.names:
                submodule = (*module, alias.name)
                found.add(submodule if submodule in MODULES else module)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastapi_sql"):
            found.add(("__init__",))
    return found


def level(parts: tuple[str, ...]) -> int:
    return next(i for i, names in enumerate(LEVELS) if parts[0] in names)


@pytest.mark.parametrize("parts", MODULES, ids="/".join)
def test_a_module_imports_only_what_stands_below_it(parts: tuple[str, ...]) -> None:
    upwards = {
        "/".join(other)
        for other in imported(parts)
        if other[0] != parts[0]
        and (parts[0], other[0]) not in WHEN_USED
        and level(other) <= level(parts)
    }
    assert not upwards


@pytest.mark.parametrize("package", ["asgi", "sandbox", "sessions", "engines"])
def test_no_package_has_a_circle(package: str) -> None:
    left = {parts: imported(parts) for parts in MODULES if parts[0] == package}
    while left:
        free = {parts for parts in left if not (left[parts] & left.keys()) - {parts}}
        assert free, f"these import each other: {sorted(left)}"
        for parts in free:
            del left[parts]


@pytest.mark.parametrize("package", ["asgi", "sandbox", "sessions", "engines"])
def test_the_manual_of_each_package_names_its_files(package: str) -> None:
    manual = (ROOT / package / "README.md").read_text()
    files = {path.name for path in (ROOT / package).glob("*.py")} - {"__init__.py"}
    assert {name for name in files if f"`{name}`" not in manual} == set()
