"""The rule of dependency: a module imports only what stands below it, and nothing in a circle."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from shutil import which

import fastapi_sqlalchemy
import fsa_cli

HOUSE = Path(fsa_cli.__file__).parent
LIBRARY = Path(fastapi_sqlalchemy.__file__).parent

ROOT = HOUSE.parent
BESIDE = {
    *("fastapi_sqlalchemy", "fsa_cli", "tests", "examples"),
    *("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"),
}

# From what calls to what is called. A package imports nothing of its own row but itself.
LEVELS = (
    {"__main__", "__init__", "testing"},
    {"api", "commands", "results"},
    {"cli", "health", "console"},
    {"executors"},
    {"processes"},
    {"runs", "shell"},
    {"runner"},
    {"ledger", "tasks", "migrations"},
    {"project"},
    {"database"},
    {"schedules"},
    {"terminal"},
    {"exceptions", "version"},
)
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}

# Where each of these may be imported; everywhere else it would cost start-up or spread.
THIRD_PARTY: Mapping[str, tuple[str, ...]] = {
    "typer": ("cli", "commands"),
    "rich": ("terminal", "cli.progress_bar"),
    "apscheduler": ("processes.timer", "schedules.schedule", "schedules.triggered"),
    "alembic": ("migrations",),
    "celery": ("executors.celery",),
    "kombu": ("executors.celery",),
    "procrastinate": ("executors.procrastinate",),
    "jinja2": ("console",),
}

# Packages and modules at the top of fsa_cli, dunder files apart: 25 with the library's own four.
# Two of them are an app's own to import: `results` and `testing`.
MOST_AT_THE_TOP = 21


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of fsa_cli by its name inside it, parsed."""
    found = {}
    for file in sorted(HOUSE.rglob("*.py")):
        parts = file.relative_to(HOUSE).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        found[".".join(parts)] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def imported(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """What a module imports, also in its functions and for its types alone: dotted names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def own_imports(known: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Of each module the modules of fsa_cli that it imports."""
    found: dict[str, set[str]] = {}
    for name, tree in known.items():
        targets = set()
        for dotted, _ in imported(tree):
            if dotted == "fsa_cli" or dotted.startswith("fsa_cli."):
                inside = dotted.removeprefix("fsa_cli").lstrip(".")
                target = inside if inside in known else inside.rpartition(".")[0] or "__init__"
                targets.add(target)
        found[name] = targets - {name}
    return found


def test_a_module_imports_only_what_stands_below_it() -> None:
    wrong = []
    for name, targets in own_imports(modules()).items():
        top = name.partition(".")[0]
        for target in targets:
            below = target.partition(".")[0]
            if below != top and LEVEL[below] <= LEVEL[top]:
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_no_module_imports_itself_through_others() -> None:
    imports = own_imports(modules())
    left = dict(imports)
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    while used := [name for name in left if not any(name in targets for targets in left.values())]:
        for name in used:
            del left[name]
    assert sorted(left) == []


def test_the_library_knows_nothing_of_the_tool() -> None:
    for file in LIBRARY.rglob("*.py"):
        for dotted, _ in imported(ast.parse(file.read_text(encoding="utf-8"))):
            assert dotted.partition(".")[0] != "fsa_cli", file


def test_each_third_party_package_is_imported_in_its_place_alone() -> None:
    wrong = []
    for name, tree in modules().items():
        for dotted, node in imported(tree):
            places = THIRD_PARTY.get(dotted.partition(".")[0])
            if places is not None and not any(
                name == place or name.startswith(place + ".") for place in places
            ):
                wrong.append(f"{name}:{node.lineno} imports {dotted}")
    assert wrong == []


def test_a_schedule_imports_apscheduler_for_a_trigger_alone() -> None:
    for name in ("schedules.schedule", "schedules.triggered"):
        tree = modules()[name]
        for dotted, node in imported(tree):
            if dotted.startswith("apscheduler"):
                assert node not in tree.body


def test_the_top_is_seen_at_one_look() -> None:
    top = {
        path.stem
        for path in HOUSE.iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").is_file())
        and not path.stem.startswith("__")
    }
    assert top <= LEVEL.keys()
    assert len(top) <= MOST_AT_THE_TOP


def test_nothing_else_lies_beside_the_packages() -> None:
    """What git knows, where this is a clone of it: an editor's files are nobody else's."""
    if not (ROOT / ".git").exists() or which("git") is None:
        return
    asked = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files"]
    known = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    tops = {file.partition("/")[0] for file in known}
    assert {top for top in tops if not top.startswith(".")} == BESIDE


def test_the_page_of_each_package_names_its_files() -> None:
    inside = [path.parent for top in (HOUSE, LIBRARY) for path in top.glob("*/__init__.py")]
    for package in (HOUSE, LIBRARY, *inside):
        page = (package / "README.md").read_text(encoding="utf-8")
        files = {path.name for path in package.glob("*.py")} - {"__init__.py"}
        assert {name for name in files if f"`{name}`" not in page} == set(), package.name
