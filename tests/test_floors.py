"""floors.txt installs the oldest releases that pyproject.toml allows, and the manual names them."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def floors() -> dict[str, Version]:
    lines = (ROOT / "tests/floors.txt").read_text().split()
    return {name: Version(version) for name, _, version in (line.partition("==") for line in lines)}


def lower_bounds() -> dict[str, Version]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {
        requirement.name: Version(specifier.version)
        for requirement in map(Requirement, project["dependencies"])
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }


def test_each_dependency_is_tested_at_its_lower_bound() -> None:
    bounds = lower_bounds()
    assert {name: version for name, version in floors().items() if name in bounds} == bounds


def test_the_manual_names_the_lower_bounds() -> None:
    figures = " ".join((ROOT / "fsa_cli/manual/figures.md").read_text().split()).lower()
    for name, version in lower_bounds().items():
        assert f"{name} {version}" in figures
