"""Apps that cannot be loaded, and databases that cannot be reached: what `fsa` says."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.processes import Run

WELL = """
    from fastapi import FastAPI
    from fastapi_sqlalchemy import DBSessionMiddleware
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="sqlite://")
"""
SECRET = "s3cret/pa%ss"


@dataclass(frozen=True)
class Broken:
    """A project that does not work, and what must be said of it."""

    name: str
    files: dict[str, str]
    says: list[str]
    app: str | None = None
    exit_code: int = 3
    never: list[str] = field(default_factory=list)
    latin_1: dict[str, str] = field(default_factory=dict)


BROKEN = [
    Broken(
        "no app at all",
        {"readme.txt": ""},
        ["no FastAPI app was found", "main.py, app.py", "--app"],
    ),
    Broken(
        "a module that does not exist",
        {"main.py": WELL},
        ["there is no module 'mian'", "did you mean main?", "found by --app"],
        app="mian:app",
    ),
    Broken(
        "a missing dependency",
        {"main.py": "import fastapi\nimport not_installed_anywhere\n"},
        ["main.py, line 2", "import not_installed_anywhere", "ModuleNotFoundError", "installed in"],
    ),
    Broken(
        "a task's option of another library",
        {"main.py": "from fsa_cli import task\n\n@task(timeout=5)\ndef t(): ...\n"},
        ["main.py, line 3", "@task has no option 'timeout'", "did you mean timeout_s?"],
    ),
    Broken(
        "a schedule as other libraries have it",
        {"main.py": "from fsa_cli import task\n\n@task(minutes=5)\ndef t(): ...\n"},
        ["main.py, line 3", "no option 'minutes'", 'did you mean schedule="every 10s"?'],
    ),
    Broken(
        "an error inside",
        {"main.py": "from deep import x\n", "deep.py": "def f():\n    return 1 / 0\n\nx = f()\n"},
        ["deep.py, line 2, in f", "return 1 / 0", "ZeroDivisionError: division by zero"],
    ),
    Broken(
        "a name that is not there",
        {"main.py": "from deep import nothing\n", "deep.py": ""},
        ["main.py, line 1", "cannot import name 'nothing' from 'deep'"],
    ),
    Broken(
        "a wrong attribute",
        {"main.py": WELL},
        ["main has no attribute 'ap'", "did you mean main:app?"],
        app="main:ap",
    ),
    Broken(
        "something that is not an app",
        {"main.py": "app = 42\n"},
        ["main:app is not a FastAPI app but an int"],
        app="main:app",
    ),
    Broken(
        "a module without any app",
        {"main.py": "x = 1\n"},
        ["there is no FastAPI app in main"],
    ),
    Broken(
        "a factory with arguments",
        {"main.py": "def create_app(settings, *, debug): ...\n"},
        ["main:create_app needs arguments: settings, debug"],
        app="main:create_app",
    ),
    Broken(
        "a factory that fails",
        {"main.py": "def create_app():\n    raise RuntimeError('no config')\n"},
        ["main.py, line 2, in create_app", "RuntimeError: no config"],
        app="main:create_app()",
    ),
    Broken(
        "an async factory",
        {"main.py": "async def create_app(): ...\n"},
        ["main:create_app is async"],
        app="main:create_app",
    ),
    Broken(
        "a factory that returns nothing",
        {"main.py": "def create_app(): ...\n"},
        ["main:create_app is not a FastAPI app but a NoneType"],
        app="main:create_app",
    ),
    Broken(
        "two apps",
        {"main.py": "from fastapi import FastAPI\none = FastAPI()\ntwo = FastAPI()\n"},
        ["main has 2 FastAPI apps", "main:one", "main:two", "choose one"],
    ),
    Broken(
        "two factories",
        {
            "main.py": """
                from fastapi import FastAPI
                def one() -> FastAPI: ...
                def two() -> "FastAPI": ...
            """
        },
        ["main has 2 FastAPI factories", "main:one", "main:two"],
    ),
    Broken(
        "two packages in src, and no app",
        {"src/one/__init__.py": "", "src/two/__init__.py": ""},
        ["no FastAPI app was found", "src/<package>/", "FastAPI( in the sources"],
    ),
    Broken(
        "a circular import",
        {
            "main.py": "from a import x\n",
            "a.py": "from b import y\nx = 1\n",
            "b.py": "from a import x",
        },
        ["b.py, line 1", "partially initialized module", "import each other"],
    ),
    Broken(
        "a SyntaxError",
        {"main.py": "import deep\n", "deep.py": "x = 1\ndef f(:\n"},
        ["deep.py, line 2", "def f(:", "SyntaxError: invalid syntax"],
    ),
    Broken(
        "no URL",
        {"main.py": WELL.replace('db_url="sqlite://"', "")},
        ["its DBSessionMiddleware has no db_url", "FSA_DB_URL"],
    ),
    Broken(
        "no database at all",
        {"main.py": "from fastapi import FastAPI\napp = FastAPI()\n"},
        ["the app main:app has no database", "add_middleware(DBSessionMiddleware"],
    ),
    Broken(
        "a URL that is none",
        {"main.py": WELL.replace("sqlite://", "postgresql:/u:hidden@h/d")},
        ["database cannot be configured", "postgresql://user:", "percent-encoded"],
        never=["hidden"],
    ),
    Broken(
        "a URL of a database that nobody knows",
        {"main.py": WELL.replace("sqlite://", "postgrs://u:hidden@h/d")},
        ["database cannot be configured", "write postgresql:// for postgrs://"],
        never=["hidden"],
    ),
    Broken(
        "an app that calls sys.exit",
        {"main.py": "import sys\nsys.exit(0)\n"},
        ["main.py, line 2", "it called sys.exit(0) while it was imported", "__main__"],
    ),
    Broken(
        "an app that connects when it is imported",
        {
            "main.py": """
                from sqlalchemy import create_engine
                create_engine("postgresql+psycopg://me:hidden@127.0.0.1:1/shop").connect()
            """
        },
        ["a database cannot be reached", "postgresql 127.0.0.1:1, database shop as me"],
        exit_code=4,
        never=["hidden"],
    ),
    Broken(
        "a password that is taken for a host",
        {"main.py": WELL.replace("sqlite://", "postgresql://u:hi@dden@h/d")},
        ["database cannot be configured", "%40"],
        never=["dden"],
    ),
    Broken(
        "a password that an app connects with as a host",
        {
            "main.py": """
                from sqlalchemy import create_engine
                create_engine("postgresql+psycopg://me:hi@dden@127.0.0.1:1/shop").connect()
            """
        },
        ["a database cannot be reached", "resolve host '***@127.0.0.1'"],
        exit_code=4,
        never=["dden"],
    ),
    Broken(
        "an error whose text has a password",
        {"main.py": "raise RuntimeError('cannot use postgresql://me:hidden@db/shop')\n"},
        ["RuntimeError: cannot use postgresql://me:***@db/shop"],
        never=["hidden"],
    ),
    Broken(
        "tasks that cannot be imported",
        {
            "main.py": WELL,
            "tasks.py": "import nowhere_to_be_found\n",
        },
        ["the tasks 'tasks' cannot be imported", "tasks.py, line 1", "nowhere_to_be_found"],
    ),
    Broken(
        "an unknown setting",
        {"main.py": WELL, "pyproject.toml": "[tool.fsa]\ntaks = ['x']\n"},
        ["unknown key 'taks' in [tool.fsa]", "did you mean tasks?"],
    ),
    Broken(
        "a setting of the wrong type",
        {"main.py": WELL, "pyproject.toml": "[tool.fsa]\napp = 3\n"},
        ["[tool.fsa] app must be a string, not 3"],
    ),
    Broken(
        "a pyproject.toml that is none",
        {"main.py": WELL, "pyproject.toml": "[tool.fsa\n"},
        ["pyproject.toml cannot be read"],
    ),
    Broken(
        "endless recursion",
        {"main.py": "def app():\n    return app()\n\napp()\n"},
        ["main.py, line 2, in app", "RecursionError"],
    ),
    Broken(
        "a file that is not UTF-8",
        {"main.py": ""},
        ["main.py, line 1", "SyntaxError", "utf-8"],
        latin_1={"main.py": "caf\u00e9 = 1\n"},
    ),
    Broken(
        "two databases, and neither is the one that was asked for",
        {
            "main.py": """
    from fastapi import FastAPI
    from fastapi_sqlalchemy import Database, DBSessionMiddleware
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="sqlite://")
    app.add_middleware(DBSessionMiddleware, db_url="sqlite://", db=Database("reports"))
""",
            "pyproject.toml": '[tool.fsa]\napp = "main:app"\n',
            ".env": "FSA_DATABASE=repots\n",
        },
        ["has no database 'repots'", "it has reports, default"],
        exit_code=2,
    ),
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_a_broken_app_is_reported_in_at_most_eight_lines(
    broken: Broken, fsa, write_app: Callable[..., Path], tmp_path: Path
) -> None:
    write_app(tmp_path, {"x/.git/HEAD": "", **broken.files})
    for name, text in broken.latin_1.items():
        (tmp_path / name).write_text(text, encoding="latin-1")
    flags = ["--app", broken.app] if broken.app else []

    done = fsa(*flags, "health")

    assert done.returncode == broken.exit_code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 8, done.stderr
    for text in broken.says:
        assert text in done.stderr
    for text in broken.never:
        assert text not in done.stderr

    as_json = fsa(*flags, "health", "--json")

    assert as_json.returncode == broken.exit_code
    assert as_json.stdout == ""
    document = json.loads(as_json.stderr)
    assert document["exit_code"] == broken.exit_code
    assert document["message"] in done.stderr

    for text in broken.never:
        whole = fsa(*flags, "--traceback", "health")
        assert whole.returncode == broken.exit_code
        assert text not in whole.stderr + as_json.stderr


def test_missing_settings_are_named_and_what_others_were_given_is_not(
    fsa, write_app, tmp_path
) -> None:
    settings = """
        import os
        from pydantic import BaseModel
        class Settings(BaseModel):
            db_password: str
            pool: dict[str, int]
            api_token: int
        settings = Settings(pool={"size": "many"}, api_token=os.environ["TOKEN"])
    """
    write_app(tmp_path, main=settings)

    done, whole = (fsa("health", *words, env={"TOKEN": SECRET}) for words in ((), ("--traceback",)))

    assert done.returncode == whole.returncode == 3
    said = "Settings cannot be made: db_password (Field required), pool.size (Input should be a"
    assert said in done.stderr
    assert "input_value='many'" in whole.stderr
    assert SECRET not in done.stderr + whole.stderr


def test_below_the_app_one_is_led_up_to_it(fsa, write_app, tmp_path) -> None:
    write_app(tmp_path, {"main.py": WELL, "docs/old/readme.txt": ""})
    done = fsa("tasks", cwd=tmp_path / "docs" / "old")
    assert done.returncode == 3
    assert "hint: cd ../.., where main.py is; or fsa --app" in done.stderr


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["manual"], "fsa docs"),
        (["db", "migrate"], "fsa db upgrade"),
        (["scheduler", "run"], "fsa scheduler start"),
        (["start"], "fsa scheduler start"),
    ],
)
def test_what_other_tools_call_it_leads_to_the_command(fsa, argv: list[str], hint: str) -> None:
    done = fsa(*argv)
    assert done.returncode == 2
    assert f"error: fsa has no command '{' '.join(argv)}'" in done.stderr
    assert hint in done.stderr.partition("hint: ")[2]


def test_an_unknown_status_is_said_in_no_library_s_words(fsa) -> None:
    said = fsa("runs", "--status", "fail").stderr
    assert "'fail' is not one of" in said
    assert "Value error" not in said


def test_an_argument_that_is_no_utf_8_is_the_user_s_mistake(fsa, write_app, tmp_path) -> None:
    write_app(tmp_path, {"main.py": WELL})
    result = fsa("db", "query", "select '\udcff'", cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: a text has '\\udcff', which is no character")


def test_traceback_shows_the_whole_traceback_and_no_local_variables(
    fsa, write_app, tmp_path
) -> None:
    write_app(
        tmp_path,
        main="""
        def f(value):
            raise LookupError("not there")

        f(value="a local" + " value")
        """,
    )

    done = fsa("health", "--traceback")

    assert done.returncode == 3
    assert "Traceback (most recent call last)" in done.stderr
    assert 'raise LookupError("not there")' in done.stderr
    assert "a local value" not in done.stderr


def test_what_the_app_prints_while_it_is_imported_goes_to_stderr(fsa, write_app, tmp_path) -> None:
    write_app(tmp_path, main='print("starting up")\n' + "\n".join(x[4:] for x in WELL.splitlines()))

    done = fsa("health", "--json")

    assert done.returncode == 0
    assert json.loads(done.stdout)["ok"] is True
    assert "starting up" in done.stderr


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:{secret}@127.0.0.1:1/shop",
        "postgresql+asyncpg://me:{secret}@127.0.0.1:1/shop",
        "mysql+pymysql://me:{secret}@127.0.0.1:1/shop",
        "mysql+aiomysql://me:{secret}@127.0.0.1:1/shop",
    ],
)
@pytest.mark.parametrize("side", ["sync", "async"])
def test_an_unreachable_database_is_four_clear_lines_and_exit_4(
    url: str, side: str, fsa, write_app, tmp_path
) -> None:
    write_app(tmp_path, main=WELL)
    code = "session" if side == "sync" else "await db.async_session"
    env = {"FSA_DB_URL": url.format(secret=SECRET.replace("%", "%25").replace("/", "%2F"))}

    done = fsa("shell", "-c", f"{code}.execute(text('select 1'))", env=env)

    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) <= 8
    assert "the database 'default' cannot be reached" in done.stderr
    assert "127.0.0.1:1, database shop as me" in done.stderr
    assert "its URL is from FSA_DB_URL" in done.stderr
    for flags in (["--traceback"], ["--json"]):
        again = fsa(*flags, "shell", "-c", f"{code}.execute(text('select 1'))", env=env)
        for spelling in (SECRET, "s3cret"):
            assert spelling not in again.stderr + again.stdout


def test_a_database_that_does_not_exist_cannot_be_reached(
    fsa, write_app, postgresql, tmp_path
) -> None:
    write_app(tmp_path, main=WELL)
    url, _, name = postgresql.url.rpartition("/")

    done = fsa("shell", "-c", "session.connection()", env={"FSA_DB_URL": f"{url}/no_{name}"})

    assert done.returncode == 4
    assert "does not exist" in done.stderr


def test_a_statement_that_fails_is_no_unreachable_database(
    fsa, write_app, postgresql, tmp_path
) -> None:
    write_app(tmp_path, main=WELL)

    done = fsa(
        "shell",
        "-c",
        "\nsession.execute(text('select 1 / 0'))",
        env={"FSA_DB_URL": postgresql.url},
    )

    assert done.returncode == 1
    assert "division by zero" in done.stderr
    assert "<fsa -c>, line 2" in done.stderr
    assert len(done.stderr.splitlines()) <= 8


def test_a_tool_apart_from_the_apps_environment_says_where_it_runs(
    fsa: Run, write_app: Callable[..., Path], tmp_path: Path
) -> None:
    """As installed by pipx or `uv tool`: the app's packages are in its own `.venv`."""
    write_app(tmp_path, main="import not_installed_anywhere\n")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "pyvenv.cfg").touch()

    apart = fsa("health", env={"VIRTUAL_ENV": None})
    activated = fsa("health", env={"VIRTUAL_ENV": sys.prefix})

    assert apart.returncode == activated.returncode == 3
    assert f"{sys.prefix}? fsa runs there; if the app's environment is {tmp_path}/.venv" in (
        apart.stderr
    )
    assert activated.stderr.endswith(f"installed in {sys.prefix}?\n")
