"""Environments: which one it is, and what it lets happen."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import make_url

from fsa_cli.cli.command_tree import COMMANDS, _load
from fsa_cli.exceptions import ConfigurationError, Refused
from fsa_cli.project import environments
from fsa_cli.project.command_names import SUBCOMMANDS
from fsa_cli.project.settings import Flags, read
from support.processes import write_files

PYPROJECT = """
[tool.fsa.env.production]
match = ["prod-*", "*.prod.example"]
protected = true
prohibited = ["db downgrade", "scheduler"]

[tool.fsa.env.staging]
match = "stage?"
shell = "read-only"

[tool.fsa.env.local]
"""
APP = """
    from fastapi import FastAPI
    from fastapi_sqlalchemy import DBSessionMiddleware
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")
"""


def of(directory: Path, *urls: str, env: str | None = None) -> environments.Environment:
    settings = read(Flags(env=env), directory=directory, environ={})
    databases = [SimpleNamespace(url=make_url(url)) for url in urls]
    return environments.of(settings, databases)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql://u@prod-1/shop", "production"),
        ("postgresql://u@PROD-1/shop", "production"),
        ("postgresql://u@db.prod.example:6432/shop", "production"),
        ("postgresql:///shop?host=/run/postgresql", None),
        ("postgresql:///shop?host=a:1,prod-2:2", "production"),
        ("postgresql:///shop?host=a:1&host=prod-2:2", "production"),
        ("mysql://u@stage7/shop", "staging"),
        ("mysql://u@stage77/shop", None),
        ("sqlite:///prod-1.db", None),
    ],
)
def test_the_databases_host_chooses(tmp_path, url, name) -> None:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)

    assert of(tmp_path, url).name == name


def test_what_is_named_wins_but_never_over_a_protected_match(tmp_path) -> None:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)

    assert of(tmp_path, "postgresql://stage1/x", env="local").name == "local"
    assert of(tmp_path, "postgresql://prod-1/x", env="production").chosen_by == "--env"
    with pytest.raises(Refused, match=r"the database is production's, and --env says local"):
        of(tmp_path, "postgresql://prod-1/x", env="local")


@pytest.mark.parametrize("pattern", ["db downgrad", "runs_cancel", "schedule *", "db downgrade x"])
def test_what_prohibits_no_command_is_an_error(tmp_path, pattern) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.fsa.env.live]\nprohibited = ['{pattern}']\n")

    with pytest.raises(ConfigurationError, match=r"env.live\] prohibited names no command: '"):
        of(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "command", "is_so"),
    [
        ("fsa db downgrade", "db downgrade", True),
        ("db", "db downgrade", True),
        ("db *", "db downgrade", True),
        ("db *", "runs cancel", False),
        ("*", "shell", True),
        ("prices", "prices", True),
        ("prices", "prices raise", True),
    ],
)
def test_what_is_prohibited_is_a_command_a_group_or_a_pattern(
    tmp_path, pattern, command, is_so
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[tool.fsa]\ncommands = ['shop.commands:prices']\n"
        f"[tool.fsa.env.live]\nprohibited = ['{pattern}']\n"
    )

    assert of(tmp_path, env="live").prohibits(command) is is_so


def test_the_names_of_the_commands_are_those_of_the_command_line() -> None:
    found = {name: tuple(getattr(_load(name), "commands", ())) for name in COMMANDS}

    assert {name: set(inner) for name, inner in SUBCOMMANDS.items()} == {
        name: set(inner) for name, inner in found.items()
    }


def test_fastapis_variable_counts_where_ours_is_not_set(tmp_path) -> None:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)

    def chosen(**environ: str) -> tuple[str | None, str, int]:
        settings = read(Flags(), directory=tmp_path, environ=environ)
        return settings.env, settings.sources["env"], len(settings.warnings)

    assert chosen(FASTAPI_ENV="staging") == ("staging", "FASTAPI_ENV", 0)
    assert chosen(FASTAPI_ENV="staging", FSA_ENV="local") == ("local", "FSA_ENV", 0)
    assert chosen(FASTAPI_ENV="development") == (None, "default", 1)
    (tmp_path / ".env").write_text("FASTAPI_ENV=staging\n")
    assert chosen()[:2] == ("staging", f"FASTAPI_ENV in {tmp_path / '.env'}")


def test_a_protected_environment_has_a_sandboxed_shell_unless_it_says_otherwise(tmp_path) -> None:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)

    assert of(tmp_path, env="production").shell == "sandbox"
    assert of(tmp_path, env="staging").shell == "read-only"
    assert of(tmp_path, env="local").shell == of(tmp_path).shell == "open"


def test_a_pattern_prohibits_a_command_or_a_group_of_them(tmp_path) -> None:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    production = of(tmp_path, env="production")

    prohibited = ["db downgrade", "scheduler start", "scheduler list", "db upgrade", "schedulers"]

    assert [production.prohibits(command) for command in prohibited] == [True] * 3 + [False] * 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("protectd = true", "unknown key 'protectd' in [tool.fsa.env.x]"),
        ("protected = 1", "[tool.fsa.env.x] protected must be true or false, not 1"),
        ("match = [1]", "[tool.fsa.env.x] match must be a string or a list of strings"),
        ("shell = 'sand'", "shell must be one of 'open', 'sandbox', 'read-only', not 'sand'"),
    ],
)
def test_a_wrong_table_is_reported(tmp_path, line, says) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.fsa.env.x]\n{line}\n")

    with pytest.raises(ConfigurationError) as raised:
        of(tmp_path)

    assert says in raised.value.message


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("shop")
    program = """
        import sys
        from fsa_cli.cli.fsa_context import Fsa
        from fsa_cli.exceptions import FsaError
        from fsa_cli.project.settings import Flags
        env, typed, yes = sys.argv[1:]
        fsa = Fsa(Flags(env=env or None, yes=yes == "yes" or None))
        try:
            fsa.confirm("drop all", fsa.load().database(), typed=typed or None)
        except FsaError as error:
            fsa.output.error(error)
            sys.exit(error.exit_code)
        print("went", "on")
    """
    files = {"pyproject.toml": PYPROJECT, "program.py": program}
    return write_files(directory, files, main=APP)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "typed", "yes", "code", "says"),
    [
        ("", "", "yes", 0, "went on"),
        ("", "", "", 6, "hint: --yes, or --confirm shop.db"),
        ("", "other", "yes", 6, "the database's name is 'shop.db', not 'other'"),
        ("production", "", "yes", 6, "--yes is not enough there"),
        ("production", "shop.db", "", 0, "went on"),
        ("production", "shop", "", 6, "the database's name is 'shop.db', not 'shop'"),
    ],
)
def test_without_a_terminal_a_flag_confirms(python, project, env, typed, yes, code, says) -> None:
    done = python("program.py", env, typed, yes, cwd=project)

    assert done.returncode == code, done.stderr
    assert says in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("env", "answer", "code"),
    [
        ("", "y", 0),
        ("", "", 6),
        ("production", "shop.db", 0),
        ("production", "y", 6),
    ],
)
def test_at_a_terminal_a_person_is_asked(terminal, project, env, answer, code) -> None:
    child = terminal(sys.executable, "program.py", env, "", "", cwd=project)
    child.expect("the database's name .shop.db. to go on: " if env else r"shop\.db\? \[y/N\] ")
    child.sendline(answer)
    child.expect("went on" if code == 0 else "error:")
    child.wait()

    assert child.exitstatus == code


def test_a_prohibited_command_is_refused_with_6(fsa, write_app, tmp_path) -> None:
    write_app(
        tmp_path,
        {"pyproject.toml": PYPROJECT},
        main=APP,
        tasks="from fsa_cli import task\n@task\ndef f(): ...\n",
    )

    allowed = fsa("scheduler", "list", "--env", "staging")
    refused = fsa("scheduler", "list", "--env", "production", "--json")

    assert allowed.returncode == 0, allowed.stderr
    assert refused.returncode == 6
    document = json.loads(refused.stderr)
    assert document["error"] == "refused"
    assert document["message"] == "fsa scheduler list is prohibited in production"
