"""The ledger's tables in a revision of the team's own Alembic."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from fsa_cli.exceptions import LedgerUnusable
from support.backends import Backend
from support.ledgers import make_like_before, open_ledger
from support.migrating import APP, HOOK

Run = Callable[..., "subprocess.CompletedProcess[str]"]

FAILS = '\n\ndef upgrade():\n    upgrade_ledger(op)\n    raise RuntimeError("half way")\n'


class Team:
    """A project with an env.py of its own, as its developers use it."""

    def __init__(self, folder: Path, backend: Backend, fsa: Run, python: Run) -> None:
        self.folder, self.backend = folder, backend
        self._fsa, self._python = fsa, python
        self._init()

    def fsa(self, *argv: str) -> subprocess.CompletedProcess[str]:
        # On SQLite the ledger is in a file beside the app's, if nothing else is said.
        env = {"FSA_DB_URL": self.backend.url, "FSA_LEDGER_URL": self.backend.url}
        done = self._fsa(*argv, env=env)
        assert done.returncode == 0, done.stderr
        return done

    def alembic(self, *argv: str, code: int = 0) -> str:
        done = self._python("-m", "alembic", *argv)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    def revision(self) -> Path:
        return self.folder / self.fsa("db", "revision", "--ledger").stdout.strip()

    def is_whole(self) -> bool:
        ledger = open_ledger(self.backend.url)
        try:
            if ledger.exists():
                ledger.check_keys()
                return True
            assert ledger.lost_tables() == []
            return False
        finally:
            ledger.dispose()

    def _init(self) -> None:
        argv = [sys.executable, "-m", "alembic", "init", "scripts"]
        subprocess.run(argv, cwd=self.folder, check=True, capture_output=True)
        ini = self.folder / "alembic.ini"
        url = self.backend.url.replace("%", "%%")
        ini.write_text(ini.read_text().replace("driver://user:pass@localhost/dbname", url))
        environment = self.folder / "scripts" / "env.py"
        models = "from main import Base\ntarget_metadata = Base.metadata"
        lines = environment.read_text().replace("target_metadata = None", models)
        lines = lines.replace("connection=connection,", HOOK)
        environment.write_text("from fsa_cli import include_name\n" + lines)
        self.fsa("db", "create")


@pytest.fixture
def team(write_app: Callable[..., Path], tmp_path: Path, fsa: Run, python: Run) -> object:
    return lambda backend: Team(write_app(tmp_path, main=APP), backend, fsa, python)


def test_a_revision_creates_the_ledger_and_drops_it(
    team: Callable[[Backend], Team], backend: Backend
) -> None:
    project = team(backend)
    first = project.revision()
    assert "upgrade_ledger(op)" in first.read_text()

    project.alembic("upgrade", "head")
    assert project.is_whole()
    assert "it exists already" in project.fsa("scheduler", "init").stderr
    project.alembic("check")

    # A later version of fsa is another revision, without which this one's tables serve as well.
    project.revision()
    project.alembic("upgrade", "head")
    project.alembic("downgrade", "-1")
    assert project.is_whole()
    project.alembic("downgrade", "base")
    assert not project.is_whole()


def test_a_revision_brings_an_older_ledger_to_this_version(
    team: Callable[[Backend], Team], backend: Backend
) -> None:
    project = team(backend)
    ledger = open_ledger(backend.url)
    make_like_before(ledger)
    with pytest.raises(LedgerUnusable, match="no column priority"):
        ledger.exists()

    project.revision()
    project.alembic("upgrade", "head")

    assert project.is_whole()
    assert ledger.read(lambda c: c.execute(text("SELECT id FROM fsa_run")).all()) == [("old",)]
    ledger.write(lambda c: c.execute(text("UPDATE fsa_schema SET version = 9, oldest = 9")))
    project.revision()
    assert "of version 9, and this fsa knows 2" in project.alembic("upgrade", "head", code=1)
    ledger.dispose()


def test_a_revision_prints_the_sql_of_scheduler_init(
    team: Callable[[Backend], Team], backend: Backend
) -> None:
    project = team(backend)
    project.revision()

    printed = project.alembic("upgrade", "head", "--sql").splitlines()

    # Under the name of its database; SQLite's app has a table of its own, under another one.
    wanted = project.fsa("scheduler", "init", "--sql").stdout.split("-- sqlite ")
    assert set("".join(wanted[:2]).splitlines()[1:]) <= set(printed)
    lines = [each for each in printed if not each.startswith(("--", "INFO", "BEGIN", "COMMIT"))]
    for statement in "\n".join(lines).split(";"):
        if statement.strip():
            backend.execute(statement)
    assert project.is_whole()
    assert "DROP TABLE fsa_run;" in project.alembic("downgrade", "head:base", "--sql")


def test_a_migration_that_fails_leaves_no_ledger(
    team: Callable[[Backend], Team], postgresql: Backend
) -> None:
    project = team(postgresql)
    with project.revision().open("a") as file:
        file.write(FAILS)

    assert "half way" in project.alembic("upgrade", "head", code=1)

    assert not project.is_whole()


def test_no_revision_is_written_for_a_ledger_that_is_elsewhere(
    write_app: Callable[..., Path], tmp_path: Path, fsa: Run
) -> None:
    write_app(tmp_path, main=APP)

    refused = fsa("db", "revision", "--ledger")

    assert refused.returncode == 2
    assert "the ledger of runs is not in the database" in refused.stderr
    assert "shop-ledger.db" in refused.stderr
    assert not (tmp_path / "migrations").exists()
