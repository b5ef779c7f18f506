"""`fsa config` and `fsa doctor`: what was set, what is there, what is wrong; never a secret."""

import json
from pathlib import Path

import pytest

from fsa_cli.version import VERSION
from support.processes import write_files

FILES = {
    "pyproject.toml": """
        [tool.fsa]
        timezone = "Europe/Zurich"
        commands = ["shop:prices"]

        [tool.fsa.env.production]
        match = "prod-*"
        protected = true
    """,
    ".env": "FSA_LEDGER_URL=postgresql://u:hunter2@h/ledger?password=hunter2\nMAIL_KEY=hunter2\n",
    "main.py": """
        from fastapi import FastAPI
        from fastapi_sqlalchemy import Database, DBSessionMiddleware
        app = FastAPI()
        app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")
        app.add_middleware(
            DBSessionMiddleware,
            db_url="postgresql://u:hunter2@127.0.0.1:1/d",
            db=Database(name="reports"),
        )
    """,
    "tasks.py": """
        from fsa_cli import task

        @task(schedule="every 10s")
        def well(): ...

        @task(schedule="99 * * * *")
        def ill(): ...
    """,
    "shop.py": "import nothing_there\n",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return write_files(tmp_path_factory.mktemp("shop"), FILES)


def test_config_has_every_value_with_its_source_and_no_secret(fsa, project) -> None:
    env = {"FSA_DB_URL_REPORTS": "mysql://u:hunter2@h/d", "FSA_STATE_DIR": "/state"}
    done = fsa("config", "-v", "--json", cwd=project, env=env)

    assert done.returncode == 0, done.stderr
    assert "hunter2" not in done.stdout
    rows = {row["setting"]: (row["value"], row["source"]) for row in json.loads(done.stdout)}
    pyproject = project / "pyproject.toml"
    assert rows["timezone"] == ("Europe/Zurich", f"[tool.fsa] timezone in {pyproject}")
    assert rows["ledger_url"] == (
        "postgresql://u:***@h/ledger?password=***",
        f"FSA_LEDGER_URL in {project / '.env'}",
    )
    assert rows["database_urls.reports"] == ("mysql://u:***@h/d", "FSA_DB_URL_REPORTS")
    assert rows["env.production.protected"] == (True, f"[tool.fsa] in {pyproject}")
    assert rows["env_file.variables"][0] == ["FSA_LEDGER_URL", "MAIL_KEY"]
    assert rows["project"] == (str(project), "the nearest pyproject.toml")
    assert rows["verbose"] == (1, "--verbose")
    assert rows["state_dir"][0].startswith("/state/")
    assert rows["lease_s"] == (None, "default")


def test_config_tells_a_wrong_environment(fsa, tmp_path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.fsa.env.x]\nprotectd = true\n")

    done = fsa("config")

    assert done.returncode == 3
    assert "did you mean protected?" in done.stderr


def test_doctor_has_the_whole_page_and_every_problem(fsa, project) -> None:
    done = fsa("doctor", "--json", cwd=project)

    assert done.returncode == 1
    assert "hunter2" not in done.stdout + done.stderr
    page = json.loads(done.stdout)
    sections = page["sections"]
    assert sections["versions"]["fsa"] == VERSION
    assert {"python", "fastapi", "sqlalchemy", "alembic"} <= sections["versions"].keys()
    assert {"psycopg", "asyncpg", "aiosqlite"} <= sections["drivers"].keys()
    assert sections["settings"]["timezone"].startswith("Europe/Zurich ([tool.fsa] timezone in ")
    assert sections["app"]["app"] == "main:app"
    assert sections["app"]["found by"] == "its usual place main.py"
    assert (sections["app"]["tasks"], sections["app"]["of them scheduled"]) == (2, 2)
    assert sections["database default"]["async driver"] == "aiosqlite"
    assert sections["database default"]["reached in"].endswith(" ms")
    assert sections["database reports"]["address"] == "postgresql 127.0.0.1:1, database d as u"
    assert sections["commands"] == {"prices": "shop:prices"}
    assert sections["terminal"]["encoding"]
    problems = sorted(page["problems"])
    assert len(problems) == 3
    assert problems[0].startswith("fsa prices (shop:prices) cannot be loaded: ModuleNotFound")
    assert problems[1].startswith("task ill (tasks.py:7): ")
    assert problems[2].startswith("the database 'reports' cannot be reached: ")


def test_doctor_has_a_page_where_the_app_is_broken_or_the_settings_are(
    fsa, write_app, tmp_path
) -> None:
    write_app(tmp_path, main="1 / 0")
    app = fsa("doctor")
    (tmp_path / "pyproject.toml").write_text("[tool.fsa]\nnonsense = 1\n")
    settings = fsa("doctor")

    for done, problem in ((app, "ZeroDivisionError"), (settings, "unknown key 'nonsense'")):
        assert done.returncode == 1
        assert done.stderr == ""
        head, _, problems = done.stdout.partition("problems\n")
        assert head.startswith("versions\n  fsa ")
        assert problem in problems


def test_doctor_is_content_with_a_project_that_is_well(fsa, write_app, tmp_path) -> None:
    main = FILES["main.py"].partition("        app.add_middleware(\n")[0]
    write_app(tmp_path, main=main)

    done = fsa("doctor")

    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("problems\n  none\n")
    assert all(len(line) <= 100 for line in done.stdout.splitlines() if "tmp" not in line)


def test_an_engine_in_autocommit_is_a_problem_and_no_run_says_that_it_was_rolled_back(
    fsa, write_app, tmp_path
) -> None:
    write_app(
        tmp_path,
        main="""
            from fastapi import FastAPI
            from sqlalchemy import text
            from fastapi_sqlalchemy import DBSessionMiddleware, db
            from fsa_cli import task
            app = FastAPI()
            app.add_middleware(
                DBSessionMiddleware,
                db_url="sqlite:///shop.db",
                engine_args={"isolation_level": "AUTOCOMMIT"},
            )

            @task
            def fails() -> None:
                db.session.execute(text("CREATE TABLE t (n INTEGER)"))
                raise LookupError("no such user")
        """,
    )

    failed = fsa("run-task", "fails", "--no-record")
    doctor = fsa("doctor")

    assert "rolled back" not in failed.stderr
    assert "stays: its engine is in AUTOCOMMIT" in failed.stderr
    assert "'default' is in AUTOCOMMIT" in doctor.stdout
