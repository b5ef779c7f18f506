"""`fsa init`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.options import option
from fsa_cli.project.setting_sources import DIRECTORY
from fsa_cli.terminal import manual

app = typer.Typer()

_TABLE = """[tool.fsa]
tasks = ["{tasks}"]
"""
_NAMESPACE = "namespace = {name}  # whoever has the same is one installation, in any directory\n"
_TASKS = '''"""The tasks of this project: `fsa tasks` lists them, `fsa run-task NAME` runs one."""

from sqlalchemy import text

from fastapi_sqlalchemy import db
from fsa_cli import task


@task(schedule="@daily")
def ask_database() -> int:
    """Ask the database whether it is there."""
    return db.session.scalar(text("SELECT 1")) or 0
'''
_CONFTEST = '''"""Fixtures; their tests are rolled back: db_session, db_sandbox, enqueued, run."""

{reach}import {module}  # noqa: {ignored} - the app, with its database

pytest_plugins = ["fastapi_sqlalchemy.testing", "fsa_cli.testing"]
'''
_REACH = """import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / {root!r}))

"""


@app.command()
def init(
    context: typer.Context,
    systemd: Annotated[
        bool, option("init", "--systemd", help="Also a unit file for the scheduler.")
    ] = False,
    kubernetes: Annotated[
        bool, option("init", "--kubernetes", help="Also a Deployment for the scheduler.")
    ] = False,
) -> None:
    """Write what a project needs: [tool.fsa], tasks.py, conftest.py. Nothing is overwritten.

    \b
      fsa init
      fsa init --systemd
      fsa init --kubernetes
    """
    fsa = Fsa.of(context)
    module = fsa.load().target.partition(":")[0]
    project, name = fsa.settings.project, _plain(fsa.settings.namespace)
    tasks, file_of_tasks, root = _beside(module, project)
    table = _TABLE.format(tasks=tasks)
    if fsa.settings.sources["namespace"] == DIRECTORY:
        table += _NAMESPACE.format(name=json.dumps(fsa.settings.namespace))
    done: list[dict[str, object]] = [_settings(project, table)]
    reach, ignored = (_REACH.format(root=root), "E402, F401") if root else ("", "F401")
    conftest = _CONFTEST.format(reach=reach, module=module, ignored=ignored)
    files = {file_of_tasks: _TASKS, "conftest.py": conftest}
    if systemd:
        files[f"{name}-scheduler.service"] = _of_manual("shop-scheduler.service", name)
    if kubernetes:
        files[f"{name}-scheduler.yaml"] = _of_manual("deployment.yaml", name)
    for file, text in files.items():
        path = project / file
        exists = path.exists() or path.with_suffix("").is_dir()
        if not exists:
            path.write_text(text, encoding="utf-8")
        done.append({"file": file, "done": "left as it is" if exists else "written"})
    fsa.output.table(done, {"file": "file", "done": "done"})
    first = (
        ", fsa run-task ask_database" if {"file": file_of_tasks, "done": "written"} in done else ""
    )
    fsa.output.say(f"next: fsa tasks{first}, fsa dev, fsa docs first-steps")


def _beside(module: str, project: Path) -> tuple[str, str, str]:
    """The module of tasks beside the app's, its file, and where both are imported from.

    The file and that directory are relative to *project*; the last is empty if it is that.
    """
    imported = sys.modules[module]
    package = imported.__package__ or ""
    folder, project = Path(imported.__file__ or module).resolve().parent, project.resolve()
    root = folder.parents[package.count(".")] if package else folder
    if not root.is_relative_to(project):
        return "tasks", "tasks.py", ""
    inside = str(root.relative_to(project))
    return (
        f"{package}.tasks" if package else "tasks",
        str(folder.relative_to(project) / "tasks.py"),
        "" if inside == "." else inside,
    )


def _settings(project: Path, table: str) -> dict[str, object]:
    path = project / "pyproject.toml"
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if re.search(r"^\[tool\.fsa[\].]", before, re.MULTILINE):
        return {"file": "pyproject.toml", "done": "has a [tool.fsa], left as it is"}
    gap = "" if not before else "\n" if before.endswith("\n") else "\n\n"
    path.write_text(f"{before}{gap}{table}", encoding="utf-8")
    return {"file": "pyproject.toml", "done": "[tool.fsa] added" if before else "written"}


def _of_manual(file: str, name: str) -> str:
    """A file that the manual shows, for the service *name*."""
    blocks: Iterator[re.Match[str]] = re.finditer(
        r"^```\w+\n# (\S+)\n(.*?)^```$",
        manual.get_page("production").text,
        re.MULTILINE | re.DOTALL,
    )
    (text,) = [block[2] for block in blocks if block[1] == file]
    return re.sub(r"\bshop\b", name, text)


def _plain(namespace: str) -> str:
    """The namespace as a name that systemd and Kubernetes take."""
    return re.sub(r"[^a-z0-9-]+", "-", namespace.lower()).strip("-") or "app"
