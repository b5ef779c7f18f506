"""Where the app is found, and what is configured from it."""

import json
import time

import pytest

from fsa_cli.project.source_search import search

APP = """
    import os
    from fastapi import FastAPI
    from fastapi_sqlalchemy import DBSessionMiddleware
    {name} = FastAPI(title="{title}")
    {name}.add_middleware(DBSessionMiddleware, db_url="sqlite://")
"""
FACTORY = """
    from fastapi import FastAPI
    from fastapi_sqlalchemy import DBSessionMiddleware

    def {name}() -> FastAPI:
        app = FastAPI(title="made")
        app.add_middleware(DBSessionMiddleware, db_url="sqlite://")
        return app
"""


def app(title: str, name: str = "app") -> str:
    return APP.format(title=title, name=name)


@pytest.fixture
def title(fsa, tmp_path):
    """The title of the app that `fsa` finds."""

    def find(*flags: str, cwd=None, **options) -> str:
        done = fsa(*flags, "shell", "-c", "print(app.title)", cwd=cwd, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return find


def test_the_usual_places_are_looked_at_in_fastapis_order(title, write_app, tmp_path) -> None:
    places = ["app/api.py", "app/main.py", "api.py", "main.py"]
    for place in places:
        write_app(tmp_path, {place: app(place)})
        assert title() == place


def test_a_usual_place_without_an_app_is_passed_over(title, write_app, tmp_path) -> None:
    write_app(tmp_path, {"main.py": "x = 1\n", "app/main.py": app("the real one")})

    assert title() == "the real one"


def test_a_package_is_imported_from_its_root(title, write_app, tmp_path) -> None:
    write_app(
        tmp_path,
        {
            "app/__init__.py": "",
            "app/names.py": "TITLE = 'packaged'\n",
            "app/main.py": app("x").replace('"x"', "TITLE") + "    assert __name__ == 'app.main'\n",
        },
    )
    source = (tmp_path / "app/main.py").read_text()
    (tmp_path / "app/main.py").write_text("from .names import TITLE\n" + source)

    assert title() == "packaged"
    assert title(cwd=tmp_path / "app") == "packaged"  # main.py, whose package is above


def test_the_only_package_in_src_is_looked_into(title, write_app, tmp_path) -> None:
    write_app(tmp_path, {"src/shop/__init__.py": "", "src/shop/main.py": app("in src")})

    assert title() == "in src"
    assert title("--app", "shop.main:app") == "in src"


PLAIN = """
from fastapi import FastAPI
app = FastAPI(title="found")
"""
NO_MIDDLEWARE = {"FSA_DB_URL": "sqlite://"}
LAYOUTS = {
    "package/main.py": {"shop/__init__.py": "", "shop/main.py": PLAIN},
    "package/routes/base.py": {
        "shop/__init__.py": "",
        "shop/routes/__init__.py": "",
        "shop/routes/base.py": "from shop.names import T\n" + PLAIN,
        "shop/names.py": "T = 1",
    },
    "src is the package": {
        "src/__init__.py": "",
        "src/config.py": "",
        "src/main.py": "from src.config import *\n" + PLAIN,
    },
    "src is the package without an __init__.py": {
        "src/db/session.py": "",
        "src/main.py": "import src.db.session\n" + PLAIN,
    },
    "src is the folder to import from": {
        "src/config.py": "",
        "src/main.py": "import config\n" + PLAIN,
    },
    "a main.py that is a script": {
        "main.py": 'import sys\nsys.exit("not this")\n',
        "app/server.py": PLAIN,
    },
    "a main.py that starts a server": {
        "main.py": "if __name__ == '__main__':\n    raise SystemError('app.server:app')",
        "app/__init__.py": "",
        "app/server.py": "from .names import T\n" + PLAIN,
        "app/names.py": "T = 1",
    },
    "a backend beside a frontend": {
        "frontend/node_modules/x/main.py": PLAIN,
        "backend/app/__init__.py": "",
        "backend/app/core.py": "",
        "backend/app/main.py": "import app.core\n" + PLAIN,
    },
    "a factory": {
        "shop/__init__.py": "",
        "shop/factory.py": """
            import fastapi as web
            def build(debug=False) -> "web.FastAPI":
                made = web.FastAPI(title="found")
                return made
        """,
    },
    "a factory that an entry calls": {
        "shop/__init__.py": "",
        "shop/application.py": """
            from fastapi import FastAPI
            def create_app(settings=None):
                app = FastAPI(title="found")
                return app
        """,
        "shop/asgi.py": "from shop.application import create_app\napp = create_app()\n",
    },
    "two packages in src": {
        "src/shared/__init__.py": "",
        "src/web/__init__.py": "",
        "src/web/server.py": PLAIN,
    },
    "a subclass, and mounted apps beside the one with the database": {
        "shop/admin.py": PLAIN.replace("found", "admin"),
        "shop/core.py": """
            from fastapi import FastAPI
            from fastapi_sqlalchemy import DBSessionMiddleware
            class Shop(FastAPI):
                pass
            service = Shop(title="found")
            service.add_middleware(DBSessionMiddleware, db_url="sqlite://")
        """,
    },
    "a factory that needs arguments, beside another app": {
        "depends.py": PLAIN.replace("found", "without a database"),
        "service/server.py": """
            from fastapi import FastAPI
            from fastapi_sqlalchemy.compat import SQLAlchemyMiddleware
            def generate_app(url: str) -> FastAPI:
                made = FastAPI(title="found")
                made.add_middleware(SQLAlchemyMiddleware, db_url=url)
                return made
            app = generate_app("sqlite+aiosqlite://")
        """,
    },
    "a class that makes the app": {
        "core/application.py": """
            from fastapi import FastAPI
            from fastapi_sqlalchemy import DBSessionMiddleware
            class Application:
                def __init__(self, title):
                    self.title = title
                def create_app(self):
                    self.app = FastAPI(title=self.title)
                    self.bind_database()
                    return self.app
                def bind_database(self):
                    self.app.add_middleware(DBSessionMiddleware, db_url="sqlite://")
        """,
        "service/__init__.py": """
            from core.application import Application
            app = Application("found").create_app()
        """,
        "tools/web.py": PLAIN.replace("found", "without a database"),
    },
    "a factory that needs arguments, called by its module": {
        "lib/factory.py": """
            from fastapi import FastAPI
            def create_app(title):
                app = FastAPI(title=title)
                return app
        """,
        "lib/asgi.py": "import factory\napp = factory.create_app('found')",
    },
    "a middleware of their own": {
        "lib/admin.py": PLAIN.replace("found", "without a database"),
        "lib/web.py": """
            from fastapi import FastAPI
            from fastapi_sqlalchemy import DBSessionMiddleware
            class Sessions(DBSessionMiddleware):
                pass
            site = FastAPI(title="found")
            site.add_middleware(Sessions, db_url="sqlite://")
        """,
    },
    "tests and examples with apps of their own": {
        "tests/conftest.py": PLAIN.replace("found", "of the tests"),
        "examples/main.py": PLAIN.replace("found", "an example"),
        "lib/service/web.py": PLAIN,
    },
    "relative imports without an __init__.py": {
        "service/app.py": "from .names import T\n" + PLAIN,
        "service/names.py": "T = 1",
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_app_is_found_where_real_projects_have_it(title, write_app, tmp_path, layout) -> None:
    trap = "raise SystemExit('imported')\n" + PLAIN
    hidden = {f"{folder}/main.py": trap for folder in (".cache", "site-packages", "node_modules")}
    virtual = {"env/pyvenv.cfg": "", "env/lib/main.py": trap}
    write_app(tmp_path, {**hidden, **virtual, **LAYOUTS[layout]})

    assert title(env=NO_MIDDLEWARE) == "found"


def test_several_apps_are_listed_as_lines_to_run(fsa, title, write_app, tmp_path) -> None:
    for name in ("one", "two"):
        write_app(tmp_path, {f"{name}/web.py": PLAIN.replace("found", name)})

    done = fsa("routes")

    assert done.returncode == 3
    lines = [line.split() for line in done.stderr.splitlines() if "fsa --app" in line]
    assert lines == [["fsa", "--app", f"{name}/web.py:app"] for name in ("one", "two")]
    assert [title(*words[1:], env=NO_MIDDLEWARE) for words in lines] == ["one", "two"]
    (tmp_path / "two" / "web.py").unlink()
    only = fsa("routes")
    assert only.returncode == 0
    assert "app web:app, found by the sources: one/web.py:app is the only one" in only.stderr


def test_each_service_is_listed_though_their_factories_have_one_name(
    fsa, write_app, tmp_path
) -> None:
    for name in ("one", "two"):
        factory = (
            f"from fastapi import FastAPI\ndef create_app():\n    return FastAPI(title='{name}')"
        )
        main = f"from {name}.factory import create_app\napp = create_app()"
        write_app(tmp_path, {f"{name}/factory.py": factory, f"{name}/asgi.py": main})

    done = fsa("routes")

    lines = [line.split() for line in done.stderr.splitlines() if "fsa --app" in line]
    assert lines == [["fsa", "--app", f"{name}/asgi.py:app"] for name in ("one", "two")]


def test_a_big_repository_is_searched_in_a_moment(title, write_app, tmp_path) -> None:
    def fill(numbers: range) -> None:
        for number in numbers:
            folder = tmp_path / f"package_{number % 50}" / "modules"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"m{number}.py").write_text("x = 1\n" * 100)

    def shortest_s() -> float:
        took_s = []
        for _ in range(3):
            began_s = time.thread_time()
            assert [each.file.name for each in search(tmp_path)] == ["web.py"]
            took_s.append(time.thread_time() - began_s)
        return min(took_s)

    (tmp_path / "loop").symlink_to(tmp_path)
    fill(range(150))
    write_app(tmp_path, {"package_7/modules/web.py": PLAIN})
    small_s = shortest_s()
    fill(range(150, 1500))

    assert shortest_s() < 25 * small_s  # ten times the files
    assert title(env=NO_MIDDLEWARE) == "found"


@pytest.mark.parametrize(
    "named",
    ["elsewhere:thing", "elsewhere", "elsewhere.py", "elsewhere.py:thing", "elsewhere:Box.inner"],
)
def test_an_app_is_named_as_module_attribute_or_file(title, write_app, tmp_path, named) -> None:
    write_app(
        tmp_path,
        elsewhere=app("named", "thing") + "\n    class Box:\n        inner = thing\n",
        main=app("not this one"),
    )

    assert title("--app", named) == "named"
    assert title(env={"FSA_APP": named}) == "named"


@pytest.mark.parametrize("named", ["main:make", "main:make()", "main"])
def test_a_factory_is_called_with_and_without_parentheses(
    title, write_app, tmp_path, named
) -> None:
    write_app(tmp_path, main=FACTORY.format(name="make"))

    assert title("-A", named) == "made"


def test_the_usual_names_come_before_another_app_of_the_module(title, write_app, tmp_path) -> None:
    write_app(tmp_path, main=app("admin", "admin") + app("api", "api"))

    assert title() == "api"


def test_pyproject_is_found_from_a_directory_below(title, write_app, tmp_path) -> None:
    write_app(
        tmp_path,
        {
            "pyproject.toml": '[tool.fsa]\napp = "shop:app"\napp_dir = "backend"\n',
            "backend/shop.py": app("by app_dir"),
            "docs/x.txt": "",
        },
    )

    assert title(cwd=tmp_path / "docs") == "by app_dir"


def test_variables_of_the_env_file_reach_the_app_and_replace_none(
    title, write_app, tmp_path
) -> None:
    write_app(
        tmp_path,
        {".env": "TITLE=from the file\n"},
        main=app("x").replace('"x"', "os.environ['TITLE']"),
    )

    assert title() == "from the file"
    assert title(env={"TITLE": "was set"}) == "was set"


def test_an_error_about_a_url_of_the_env_file_says_so(fsa, write_app, tmp_path) -> None:
    write_app(
        tmp_path,
        {".env": "NAME=shop\nDATABASE_URL=postgresql://u@127.0.0.1:1/${NAME}\nDEBUG\n"},
        main="""
        import os
        from fastapi import FastAPI
        from fastapi_sqlalchemy import DBSessionMiddleware
        app = FastAPI()
        url = os.environ.get("DATABASE_URL", "sqlite://")
        url = url.replace("postgresql:", "postgresql+psycopg:")
        app.add_middleware(DBSessionMiddleware, db_url=url)
        """,
    )

    done = fsa("db", "show")

    assert done.returncode == 4
    assert "postgresql 127.0.0.1:1, database shop as u" in done.stderr
    assert f"its URL is from DATABASE_URL in {tmp_path / '.env'}" in done.stderr
    for words in (["--no-env-file", "db", "show"], ["db", "show", "--no-env-file"]):
        assert fsa(*words).returncode == 0
    assert fsa("db", "show", env={"FSA_NO_ENV_FILE": "1"}).returncode == 0


@pytest.mark.parametrize(
    "argument",
    [
        'db_url=os.environ["DATABASE_URL"]',
        'custom_engine=create_engine(os.environ["DATABASE_URL"])',
    ],
)
def test_a_url_of_the_env_file_that_is_none_is_named(fsa, write_app, tmp_path, argument) -> None:
    write_app(
        tmp_path,
        {".env": "DATABASE_URL=not-a-url\n"},
        main="""
        import os
        from fastapi import FastAPI
        from fastapi_sqlalchemy import DBSessionMiddleware
        app = FastAPI()
        from sqlalchemy import create_engine
        app.add_middleware(DBSessionMiddleware, {argument})
        """.replace("{argument}", argument),
    )

    done = fsa("db", "show")

    assert done.returncode == 3
    assert f"DATABASE_URL is from {tmp_path / '.env'}" in done.stderr
    assert len(done.stderr.splitlines()) <= 8


def test_the_url_is_the_middlewares_unless_fsa_db_url_replaces_it(fsa, write_app, tmp_path) -> None:
    write_app(
        tmp_path,
        main="""
        from fastapi import FastAPI
        from fastapi_sqlalchemy import Database, DBSessionMiddleware
        reports = Database(name="reports")
        app = FastAPI()
        app.add_middleware(DBSessionMiddleware, db_url="sqlite:///own.db")
        app.add_middleware(DBSessionMiddleware, db_url="sqlite:///reports.db", db=reports)
        """,
    )

    def urls(*flags: str, **env: str) -> list[str]:
        code = "from main import reports; print(db.url.database, reports.url.database)"
        done = fsa(*flags, "shell", "-c", code, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert urls() == ["own.db", "reports.db"]
    assert urls(FSA_DB_URL="sqlite:///other.db") == ["other.db", "reports.db"]
    assert urls(FSA_DB_URL_REPORTS="sqlite:///r.db") == ["own.db", "r.db"]
    assert urls("--database", "reports") == ["reports.db", "reports.db"]

    done = fsa("-d", "report", "shell", "-c", "pass")
    assert done.returncode == 2
    assert "it has" in done.stderr
    done = fsa("health", env={"FSA_DB_URL_REPORT": "sqlite:///r.db"})
    assert done.returncode == 3
    assert "named by FSA_DB_URL_REPORT" in done.stderr


def test_a_url_that_cannot_be_read_is_said_to_be_of_the_setting_that_gave_it(
    fsa, write_app, tmp_path
) -> None:
    write_app(tmp_path, main="from fastapi import FastAPI\napp = FastAPI()\n")
    (tmp_path / "pyproject.toml").write_text('[tool.fsa]\ndatabase = "sqlite:///shop.db"\n')
    done = fsa("health", env={"FSA_DB_URL": "postgresql://me:hi@dden@db/shop"})
    assert done.returncode == 3
    assert "the URL of default is from FSA_DB_URL" in done.stderr
    assert "hint" not in done.stderr


def test_what_db_configure_was_given_serves_an_app_without_the_middleware(
    fsa, write_app, tmp_path
) -> None:
    write_app(
        tmp_path,
        main="""
        from fastapi import FastAPI
        from fastapi_sqlalchemy import db
        app = FastAPI()
        db.configure(db_url="sqlite:///configured.db")
        """,
    )

    done = fsa("shell", "-c", "print(db.url.database)")
    assert done.stdout.strip() == "configured.db"
    done = fsa("shell", "-c", "print(db.url.database)", env={"FSA_DB_URL": "sqlite:///o.db"})
    assert done.stdout.strip() == "o.db"


def test_the_middleware_stack_is_not_built(fsa, write_app, tmp_path) -> None:
    write_app(
        tmp_path,
        main=app("x")
        + """
    class Never:
        def __init__(self, app):
            raise SystemError("built")

    app.add_middleware(Never)
    """,
    )

    assert fsa("health").returncode == 0


def test_task_modules_are_the_packages_own_or_those_that_are_named(
    fsa, write_app, tmp_path
) -> None:
    task = "from fsa_cli import task\n@task\ndef {name}(): ...\n"
    write_app(
        tmp_path,
        {
            "shop/__init__.py": "",
            "shop/main.py": app("x"),
            "shop/tasks.py": task.format(name="own"),
            "other.py": task.format(name="named"),
        },
    )

    def names(**env: str) -> str:
        done = fsa("-A", "shop.main:app", "shell", "-c", "print(*tasks)", env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert names() == "own"
    assert names(FSA_TASKS="other") == "named"


def test_config_says_every_value_and_its_source_without_the_app(fsa, write_app, tmp_path) -> None:
    write_app(
        tmp_path,
        {"pyproject.toml": '[tool.fsa]\ntimezone = "Europe/Berlin"\n'},
        main="raise SystemError",
    )

    env = {"FSA_DB_URL": "postgresql://me:hunter2@db/shop?password=hunter2"}
    done = fsa("config", "--json", "--app", "main:app", env=env)

    assert done.returncode == 0, done.stderr
    assert "hunter2" not in done.stdout + fsa("config", env=env).stdout
    rows = {row["setting"]: row for row in json.loads(done.stdout)}
    assert rows["app"] == {"setting": "app", "value": "main:app", "source": "--app"}
    assert rows["timezone"]["source"].startswith("[tool.fsa] timezone in ")
    assert rows["database_urls.default"]["source"] == "FSA_DB_URL"
    assert rows["database_urls.default"]["value"].startswith("postgresql://me:***@db/shop")
