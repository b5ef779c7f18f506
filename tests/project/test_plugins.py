"""Commands of the user's own: found without an import, run as fsa's are, harmless when broken."""

import json
from pathlib import Path

import pytest

from support.processes import write_files

pytestmark = pytest.mark.slow

FILES = {
    "pyproject.toml": """
        [tool.fsa]
        commands = ["shop.cli:prices", "again = shop.cli:reindex", "shop.bad:boom", "nonsense"]

        [tool.fsa.env.production]
        protected = true
        prohibited = ["prices clear"]
    """,
    "shop/__init__.py": "raise SystemError('imported')",
    "main.py": """
        from fastapi import FastAPI
        from fastapi_sqlalchemy import DBSessionMiddleware
        app = FastAPI()
        app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")
    """,
    "shop/cli.py": '''
        import typer
        from fastapi_sqlalchemy import db
        from fsa_cli.cli.fsa_context import Fsa
        from sqlalchemy import text

        prices = typer.Typer(help="Prices, imported and listed.")

        @prices.command("list")
        def listing(context: typer.Context, limit: int = 3) -> None:
            """List them."""
            with db():
                row = {"database": db.url.database, "limit": limit}
                row["answer"] = db.session.scalar(text("select 40 + 2"))
            Fsa.of(context).output.record(row)

        @prices.command()
        def clear() -> None:
            """Clear."""
            print("cleared")

        @prices.command()
        async def later(n: int) -> None:
            async with db():
                print("later", n)

        def reindex(year: int, verbose: bool = typer.Option(False, "-v", "--verbose")) -> None:
            """Index it all again.

            Takes a while.
            """
            print("reindexed", year, verbose)
            raise typer.Exit(7)
    ''',
    "shop/bad.py": "import nothing_there\nboom = 1\n",
    "site/shop_prices-1.0.dist-info/entry_points.txt": """
        [console_scripts]
        other = x:y

        [fsa.commands]
        plugged = plugged_in:hello
        prices = plugged_in:shadowed

        [more]
        z = x:y
    """,
    "site/plugged_in.py": """
        def hello(name: str = "you") -> None:
            print("hello", name)
    """,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    directory = write_files(tmp_path_factory.mktemp("shop"), FILES)
    entry_points = directory / "site/shop_prices-1.0.dist-info/entry_points.txt"
    assert "\n[fsa.commands]\n" in entry_points.read_text()
    return directory


@pytest.fixture
def shop(fsa, project):
    """`fsa` in the project, whose package may be imported, with an installed plug-in."""

    def call(*words: str, package: str = "", **options):
        (project / "shop/__init__.py").write_text(package)
        env = {"PYTHONPATH": str(project / "site"), "COLUMNS": "100", **options.pop("env", {})}
        return fsa(*words, cwd=project, env=env, **options)

    return call


def test_help_lists_them_without_importing_anything(shop) -> None:
    done = shop("--help", package="raise SystemError('imported')")

    assert (done.returncode, done.stderr) == (0, "")
    commands = done.stdout.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split(maxsplit=1) for line in commands[-4:]] == [
        ["prices", "Prices, imported and listed."],
        ["again", "Index it all again."],
        ["boom", "shop.bad:boom"],
        ["plugged", "plugged_in:hello, of the package shop_prices"],
    ]


def test_it_runs_on_the_apps_database_with_the_common_flags(shop, project) -> None:
    done = shop(
        "prices", "list", "--limit", "5", "--json", env={"FSA_DB_URL": "sqlite:///other.db"}
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"database": "other.db", "limit": 5, "answer": 42}


def test_a_function_is_a_command_and_its_flags_and_exit_code_are_its_own(shop) -> None:
    done = shop("again", "2026", "-v")

    assert (done.returncode, done.stdout) == (7, "reindexed 2026 True\n")
    assert "Takes a while." in shop("again", "--help").stdout


def test_an_async_function_is_awaited(shop) -> None:
    done = shop("prices", "later", "3")

    assert (done.returncode, done.stdout) == (0, "later 3\n"), done.stderr


def test_a_package_brings_commands_that_need_no_app(fsa, project, tmp_path) -> None:
    done = fsa("plugged", "--name", "Ann", env={"PYTHONPATH": str(project / "site")})

    assert (done.returncode, done.stdout, done.stderr) == (0, "hello Ann\n", "")


def test_a_broken_one_is_reported_in_one_line_and_hurts_nothing_else(shop) -> None:
    broken = shop("boom")
    other = shop("prices", "clear")
    ours = shop("health")

    assert broken.returncode == 3
    warning, error = broken.stderr.splitlines()
    assert error.startswith("error: fsa boom (shop.bad:boom) cannot be loaded: ModuleNotFoundError")
    assert error.endswith("(shop/bad.py, line 1)")
    assert warning.startswith("warning: 'nonsense' in [tool.fsa] commands")
    assert (other.returncode, other.stdout) == (0, "cleared\n")
    assert (ours.returncode, ours.stderr) == (0, "")


def test_the_environment_prohibits_them_too(shop) -> None:
    refused = shop("--env", "production", "prices", "clear")

    assert refused.returncode == 6
    assert refused.stdout == ""
    assert "fsa prices clear is prohibited in production" in refused.stderr


def test_a_wrong_name_is_guessed_and_words_are_completed(shop) -> None:
    assert "Did you mean 'prices'?" in shop("prics").stderr
    completed = {
        line: shop(
            env={
                "_FSA_COMPLETE": "complete_bash",
                "COMP_WORDS": line,
                "COMP_CWORD": str(line.count(" ")),
            }
        )
        for line in ("fsa pri", "fsa prices cl", "fsa boom x")
    }

    assert [(done.stdout.strip(), done.stderr) for done in completed.values()] == [
        ("prices", ""),
        ("clear", ""),
        ("", ""),
    ]
