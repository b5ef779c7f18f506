"""`examples/users` and `examples/async_users`, run as their reader would run them."""

import csv
import filecmp
import shutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytz

from support.backends import Backend
from support.processes import Run, Start
from support.waiting import wait_until
from support.web import ServedProcess

EXAMPLES = Path(__file__).parents[2] / "examples"

USERS = 418  # the zones of the tz database's zone.tab


@dataclass(frozen=True)
class Example:
    directory: Path
    backend: Backend

    @property
    def env(self) -> dict[str, str]:
        uses_async = self.directory.name == "async_users"
        url = self.backend.async_url if uses_async else self.backend.url
        return {"USERS_DATABASE_URL": url}


@pytest.fixture(params=["users", "async_users"])
def directory(request: pytest.FixtureRequest) -> Path:
    return EXAMPLES / str(request.param)


@pytest.fixture(params=["sqlite", "postgresql"])
def example(directory: Path, request: pytest.FixtureRequest) -> Example:
    return Example(directory, request.getfixturevalue(request.param))


@pytest.fixture
def loaded(example: Example, fsa: Run) -> Example:
    """The example with its rows in the database."""
    done = fsa("run-task", "load_countries", cwd=example.directory, env=example.env)
    assert done.returncode == 0, done
    return example


def test_the_tasks_load_and_count_users_and_the_shell_sees_them(loaded: Example, fsa: Run) -> None:
    backend = loaded.backend
    assert backend.rows("SELECT count(*) FROM users") == [(USERS,)]
    assert backend.rows("SELECT name FROM countries WHERE code = 'IS'") == [("Iceland",)]

    done = fsa("run-task", "count_users", cwd=loaded.directory, env=loaded.env)
    assert done.returncode == 0, done
    assert str(USERS) in done.stdout + done.stderr
    assert backend.rows("SELECT count FROM user_counts") == [(USERS,)]

    code = "print(session.query(User).count())"
    shell = fsa("shell", "-c", code, cwd=loaded.directory, env=loaded.env)
    assert (shell.returncode, shell.stdout) == (0, f"{USERS}\n"), shell


def test_loading_again_adds_nothing(loaded: Example, fsa: Run) -> None:
    done = fsa("run-task", "load_countries", cwd=loaded.directory, env=loaded.env)
    assert done.returncode == 0, done
    assert loaded.backend.rows("SELECT count(*) FROM users") == [(USERS,)]


def test_an_argument_of_a_task_is_typed(loaded: Example, fsa: Run) -> None:
    task = ["run-task", "count_users", "--no-active"]
    done = fsa(*task, cwd=loaded.directory, env=loaded.env)
    assert done.returncode == 0, done
    assert loaded.backend.rows("SELECT count FROM user_counts") == [(0,)]


def test_the_scheduler_runs_the_task_that_is_due_every_ten_seconds(
    loaded: Example, fsa_process: Start
) -> None:
    process = fsa_process("scheduler", "start", cwd=loaded.directory, env=loaded.env)
    counts = "SELECT count FROM at_work_counts"
    ((count,), *_) = wait_until(lambda: loaded.backend.rows(counts), "a scheduled run wrote a row")
    done = process.stop(signal.SIGTERM)
    assert done.returncode == 0, process
    assert 0 < count < USERS  # somewhere it is between nine and five, and not everywhere
    loaded.backend.assert_released()


def test_the_routes_read_and_write(
    loaded: Example, serve_process: Callable[..., AbstractContextManager[ServedProcess]]
) -> None:
    with (
        serve_process("app.main:app", cwd=loaded.directory, env=loaded.env) as served,
        httpx.Client(base_url=served.base_url) as client,
    ):
        assert len(client.get("/users").json()) == 100
        germans = client.get("/users", params={"country": "DE"}).json()
        assert [user["name"] for user in germans] == ["Berlin", "Busingen"]

        new = {"name": "Bonn", "country_code": "DE", "timezone": "Europe/Berlin"}
        created = client.post("/users", json=new)
        assert created.status_code == 201
        assert client.get(f"/users/{created.json()['id']}").json() == created.json()
        assert loaded.backend.rows("SELECT count(*) FROM users") == [(USERS + 1,)]

        assert client.post("/users", json={**new, "country_code": "XX"}).status_code == 422
        assert client.get("/users/1000000").status_code == 404
        assert client.get("/user-counts").json() == []
        assert client.get("/at-work-counts").json() == []
    loaded.backend.assert_released()


def test_the_database_is_a_file_of_the_example_unless_told_otherwise(
    directory: Path, tmp_path: Path, fsa: Run
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("*.db*", "__pycache__"))
    for task in ("load_countries", "count_users"):
        done = fsa("run-task", task, cwd=copy, env={"USERS_DATABASE_URL": None})
        assert done.returncode == 0, done
    assert (copy / "users.db").exists()


def test_the_two_examples_share_their_models_and_rows() -> None:
    shared = ["models.py", "zones.csv"]
    sync, async_ = (EXAMPLES / name / "app" for name in ("users", "async_users"))
    assert filecmp.cmpfiles(sync, async_, shared, shallow=False) == (shared, [], [])


def test_every_shipped_zone_is_known_to_pytz() -> None:
    with (EXAMPLES / "users" / "app" / "zones.csv").open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == USERS
    assert {row["timezone"] for row in rows} <= set(pytz.all_timezones)
