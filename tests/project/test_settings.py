"""Where a setting is from, and which of two wins."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsa_cli.exceptions import ConfigurationError
from fsa_cli.ledger.records import ClaimedRun
from fsa_cli.processes.subprocess_run import SubprocessRun
from fsa_cli.project import dotenv
from fsa_cli.project.settings import KEYS, Flags, read
from support.processes import FSA, Run, as_a_user, environment, run

PYPROJECT = """
[project]
name = "shop"

[tool.fastapi]
entrypoint = "from_fastapi:app"

[tool.fsa]
app = "from_pyproject:app"
tasks = ["shop.tasks", "shop.more"]
"""


def test_a_flag_wins_over_the_environment_over_the_env_file_over_pyproject(tmp_path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    app = "FSA_APP"

    def found(flag: str | None = None, **environ: str) -> tuple[str | None, str]:
        settings = read(Flags(app=flag), directory=tmp_path, environ=environ)
        return settings.app, settings.sources["app"]

    pyproject = tmp_path / "pyproject.toml"
    assert found() == ("from_pyproject:app", f"[tool.fsa] app in {pyproject}")
    (tmp_path / ".env").write_text("FSA_APP=from_file:app\n")
    assert found() == ("from_file:app", f"FSA_APP in {tmp_path / '.env'}")
    assert found(FSA_APP="from_env:app") == ("from_env:app", app)
    assert found("from_flag:app", FSA_APP="from_env:app") == ("from_flag:app", "--app")


def test_fastapis_own_entrypoint_serves_where_nothing_else_is_said(tmp_path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.fastapi]\nentrypoint = "shop.main:app"\n')
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)

    settings = read(directory=below, environ={})

    assert settings.app == "shop.main:app"
    assert settings.app_base == settings.project == tmp_path
    assert "[tool.fastapi] entrypoint" in settings.sources["app"]


def test_an_app_is_relative_to_the_file_that_names_it(tmp_path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".env").write_text("FSA_APP=main:app")
    below = tmp_path / "below"
    below.mkdir()

    assert read(directory=below, environ={}).app_base == tmp_path
    assert read(Flags(app="main:app"), directory=below, environ={}).app_base == below


def test_the_env_file_is_looked_for_up_to_the_repositorys_root_and_no_further(tmp_path) -> None:
    (tmp_path / ".env").write_text("FSA_APP=stray:app")
    repository = tmp_path / "repository"
    below = repository / "src" / "shop"
    below.mkdir(parents=True)
    assert dotenv.find(below) is None  # no repository: only the directory itself

    (repository / ".git").mkdir()
    assert dotenv.find(below) is None

    (repository / ".env").touch()
    assert dotenv.find(below) == repository / ".env"
    (below / ".env").touch()
    assert dotenv.find(below) == below / ".env"


def test_env_file_replaces_the_one_that_would_be_found(tmp_path) -> None:
    (tmp_path / ".env").write_text("FSA_APP=one:app")
    (tmp_path / "staging").write_text("FSA_APP=two:app")

    for settings in (
        read(Flags(env_file=Path("staging")), directory=tmp_path, environ={}),
        read(directory=tmp_path, environ={"FSA_ENV_FILE": "staging"}),
    ):
        assert settings.app == "two:app"
        assert settings.env_file == tmp_path / "staging"

    with pytest.raises(ConfigurationError, match="the file nowhere does not exist"):
        read(Flags(env_file=Path("nowhere")), directory=tmp_path, environ={})


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=1", "1"),
        ("export A=1", "1"),
        ("  A = one two  ", "one two"),
        ("A=", ""),
        ("A='single # $quoted'", "single # $quoted"),
        (r'A="double \"quoted\"\n" # comment', 'double "quoted"\n'),
        ("A=value # comment", "value"),
        ("A=value#no-comment", "value#no-comment"),
        ("A=postgresql://u:p=#@h/d?x=1", "postgresql://u:p=#@h/d?x=1"),
        ("A=it's", "it's"),
        (
            'A="-----BEGIN KEY-----\nabc\n-----END KEY-----"',
            "-----BEGIN KEY-----\nabc\n-----END KEY-----",
        ),
        ("A=1\nDEBUG", "1"),
        ("export FOO\nA=1", "1"),
        ("A=${UNSET_IN_TESTS:-x}/y", "x/y"),
    ],
)
def test_a_line_of_an_env_file_is_read_as_python_dotenv_reads_it(tmp_path, line, value) -> None:
    (tmp_path / ".env").write_text(f"# comment\n\n{line}\n", encoding="utf-8")

    assert dotenv.read(tmp_path / ".env") == {"A": value}


def test_a_line_that_cannot_be_read_is_named_and_not_shown(tmp_path) -> None:
    (tmp_path / ".env").write_text("A=1\nhunter2 is my password\n")

    with pytest.raises(ConfigurationError) as raised:
        dotenv.read(tmp_path / ".env")

    assert f"{tmp_path / '.env'}:2" in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_variables_of_an_env_file_are_expanded_and_those_that_are_set_go_first(
    tmp_path, monkeypatch
) -> None:
    (tmp_path / ".env").write_text("NAME=shop\nHOST=dev\nFSA_DB_URL=postgresql://${HOST}/${NAME}\n")
    monkeypatch.setenv("HOST", "prod")

    assert dotenv.read(tmp_path / ".env")["FSA_DB_URL"] == "postgresql://prod/shop"


def test_no_env_file_leaves_the_nearest_one_alone(tmp_path) -> None:
    (tmp_path / ".env").write_text("FSA_APP=one:app\nthis is not a line of a .env\n")

    for settings, source in [
        (read(Flags(no_env_file=True), directory=tmp_path, environ={}), "--no-env-file"),
        (read(directory=tmp_path, environ={"FSA_NO_ENV_FILE": "1"}), "FSA_NO_ENV_FILE"),
    ]:
        assert (settings.app, settings.env_file) == (None, None)
        assert settings.sources["env_file"] == source


@pytest.mark.parametrize(
    ("flags", "environ"),
    [
        (Flags(no_env_file=True), {"FSA_NO_ENV_FILE": "1"}),
        (Flags(env_file=Path(".env")), {"FSA_NO_ENV_FILE": "0", "FSA_ENV_FILE": "{env_file}"}),
        (Flags(), {}),
    ],
)
def test_the_process_of_an_isolated_run_reads_the_same_env_file(tmp_path, flags, environ) -> None:
    (tmp_path / ".env").touch()
    claimed = ClaimedRun("id", "token", "ship", 0, "manual", 1, "{}")
    settings = read(flags, directory=tmp_path, environ={"FSA_NO_ENV_FILE": "1"})

    child = SubprocessRun.of(claimed, settings).environ

    path = str(tmp_path / ".env")
    assert child == {name: value.format(env_file=path) for name, value in environ.items()}


def test_urls_of_databases_are_found_by_their_names(tmp_path) -> None:
    (tmp_path / ".env").write_text("FSA_DB_URL=sqlite:///file\nFSA_DB_URL_REPORTS=sqlite:///r\n")

    settings = read(directory=tmp_path, environ={"FSA_DB_URL": "sqlite:///env"})

    assert settings.database_urls == {"default": "sqlite:///env", "reports": "sqlite:///r"}
    assert settings.sources["database_urls.default"] == "FSA_DB_URL"
    assert settings.sources["database_urls.reports"].startswith("FSA_DB_URL_REPORTS in ")


def test_settings_never_show_urls_or_variables_in_their_repr(tmp_path) -> None:
    (tmp_path / ".env").write_text("FSA_DB_URL=postgresql://me:hunter2@h/d\nFSA_LEDGER_URL=hunter2")

    assert "hunter2" not in repr(read(directory=tmp_path, environ={}))


def test_the_namespace_is_the_projects_name_else_the_directorys(tmp_path) -> None:
    assert read(directory=tmp_path, environ={}).namespace == tmp_path.name
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    assert read(directory=tmp_path, environ={}).namespace == "shop"
    assert read(directory=tmp_path, environ={"FSA_NAMESPACE": "x"}).namespace == "x"


def test_a_list_may_be_a_list_or_words_between_commas(tmp_path) -> None:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    assert read(directory=tmp_path, environ={}).tasks == ("shop.tasks", "shop.more")
    assert read(directory=tmp_path, environ={"FSA_TASKS": "a, b"}).tasks == ("a", "b")


@pytest.mark.parametrize("key", sorted(KEYS))
def test_every_key_refuses_a_value_of_the_wrong_type(tmp_path, key) -> None:
    wrong = "3" if KEYS[key] is bool else "true"
    (tmp_path / "pyproject.toml").write_text(f"[tool.fsa]\n{key} = {wrong}\n")

    with pytest.raises(ConfigurationError, match=rf"\[tool\.fsa\] {key} must be"):
        read(directory=tmp_path, environ={})


def test_an_unknown_environment_is_an_error_that_guesses(tmp_path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.fsa.env.production]\nprotected = true\n")

    assert read(Flags(env="production"), directory=tmp_path, environ={}).env == "production"
    with pytest.raises(ConfigurationError) as raised:
        read(directory=tmp_path, environ={"FSA_ENV": "prodction"})

    assert raised.value.hint == "did you mean production?"


def test_an_env_file_steers_no_program(fsa: Run, write_app, tmp_path: Path) -> None:
    main = """
        import os
        from fastapi import FastAPI
        from fastapi_sqlalchemy import DBSessionMiddleware
        from fsa_cli import task
        app = FastAPI()
        app.add_middleware(DBSessionMiddleware, db_url="sqlite://")

        @task
        def seen() -> dict:
            '''Show what came from the file.'''
            return {name: value for name, value in os.environ.items() if value == "theirs"}
    """
    names = ["LD_PRELOAD", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "PYTHONSTARTUP", "PSQLRC"]
    lines = [f"{name}=theirs" for name in [*names, "SHOP_KEY", "PYTHONNODEBUGRANGES"]]
    write_app(tmp_path, {".env": "\n".join(lines)}, main=main)

    done = fsa("run-task", "seen", "--no-record", "--json")

    assert json.loads(done.stdout)["result"] == {
        "SHOP_KEY": "theirs",
        "PYTHONNODEBUGRANGES": "theirs",
    }
    (warning,) = [line for line in done.stderr.splitlines() if "warning" in line]
    assert str(tmp_path / ".env") in warning
    assert ", ".join(names) in warning
    assert "theirs" not in done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "LESSOPEN",  # psql's pager runs it
        "KRB5_CONFIG",  # libpq's Kerberos loads the plugins that it names
        "MARIADB_PLUGIN_DIR",
        "LIBMYSQL_ENABLE_CLEARTEXT_PLUGIN",  # the client sends its password as it is
        "COVERAGE_PROCESS_START",  # each Python that is started loads it
    ],
)
def test_what_libraries_and_clients_load_is_no_matter_of_an_env_file(name: str) -> None:
    assert dotenv.steers(name)


def test_a_table_outside_of_the_repository_is_not_read_and_that_is_said(tmp_path: Path) -> None:
    place = tmp_path / "repository" / "app"
    place.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[tool.fsa]\napp = 'evil:app'\n")

    assert read(Flags(), directory=place, environ={}).app == "evil:app"
    (tmp_path / "repository" / ".git").mkdir()
    settings = read(Flags(), directory=place, environ={})

    assert (settings.app, settings.project) == (None, place)
    (warning,) = settings.warnings
    assert warning.startswith(f"{tmp_path / 'pyproject.toml'} has a [tool.fsa], which is not read")
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    assert read(Flags(), directory=place, environ={}).warnings == ()
    (tmp_path / "repository" / "pyproject.toml").write_text("[tool.fsa]\napp = 'own:app'\n")
    assert read(Flags(), directory=place, environ={}).app == "own:app"


def test_a_table_of_another_user_above_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a folder below one that a stranger may write."""
    place = tmp_path / "theirs" / "mine"
    place.mkdir(parents=True)
    (tmp_path / "theirs" / "pyproject.toml").write_text("[tool.fsa]\napp = 'evil:app'\n")
    stat, strange = Path.stat, tmp_path / "theirs"

    def owned(path: Path, **options: Any) -> Any:
        found = stat(path, **options)
        if strange in (path, path.parent) and path != place:
            return os.stat_result([*found[:4], 12345, *found[5:]])
        return found

    monkeypatch.setattr(Path, "stat", owned)

    settings = read(Flags(), directory=place, environ={})

    assert settings.app is None
    assert "belongs to another user" in settings.warnings[0]
    assert read(Flags(), directory=strange, environ={}).app == "evil:app"


def test_a_lease_is_a_number_of_seconds_that_leaves_time_to_renew_it(tmp_path: Path) -> None:
    for wrong in ("nan", "inf", "-5", "0", "1e-9", "2.9", "1e6", "soon"):
        with pytest.raises(ConfigurationError, match=f"FSA_LEASE_S must be .* not '{wrong}'"):
            read(directory=tmp_path, environ={"FSA_LEASE_S": wrong})
    assert read(directory=tmp_path, environ={"FSA_LEASE_S": "3"}).lease_s == 3


def test_a_namespace_that_the_ledger_cannot_keep_is_refused(tmp_path: Path) -> None:
    assert read(directory=tmp_path, environ={"FSA_NAMESPACE": "n" * 100}).namespace == "n" * 100
    with pytest.raises(ConfigurationError, match="more than 100 characters") as caught:
        read(directory=tmp_path, environ={"FSA_NAMESPACE": "n" * 101})
    assert "FSA_NAMESPACE" in caught.value.details[0]


def test_how_long_runs_are_kept_is_a_duration(tmp_path: Path) -> None:
    def found(**environ: str) -> tuple[str, str | None]:
        settings = read(directory=tmp_path, environ=environ)
        return settings.keep, settings.keep_failed

    assert found() == ("30d", None)
    assert found(FSA_KEEP="36h", FSA_KEEP_FAILED="90d") == ("36h", "90d")
    for wrong in ("30", "-1d", "5s", "for ever", "3 weeks"):
        with pytest.raises(ConfigurationError, match=f"FSA_KEEP must be .* not '{wrong}'"):
            found(FSA_KEEP=wrong)


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("tool = 3", "[tool]"),
        ('[tool]\nfsa = "main:app"', "[tool.fsa]"),
        ('[tool]\nfastapi = "main:app"', "[tool.fastapi]"),
        ('project = "shop"', "[project]"),
    ],
)
def test_what_is_no_table_in_pyproject_is_named(tmp_path: Path, text: str, table: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)

    with pytest.raises(ConfigurationError) as raised:
        read(directory=tmp_path, environ={})

    assert raised.value.message.startswith(f"{table} must be a table, not ")
    assert raised.value.details == (f"in {tmp_path / 'pyproject.toml'}",)


def test_a_byte_order_mark_is_no_part_of_pyproject(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes(b'\xef\xbb\xbf[tool.fsa]\r\napp = "shop:app"\r\n')

    assert read(directory=tmp_path, environ={}).app == "shop:app"


def test_a_directory_that_this_user_may_not_enter_is_a_wrong_setting(
    tmp_path: Path, write_app: Callable[..., Path]
) -> None:
    write_app(tmp_path, {"main.py": "app = 1"})
    tmp_path.chmod(0)
    try:
        done = as_a_user("tasks", tmp_path, environment())
    finally:
        tmp_path.chmod(0o700)

    assert done.returncode == 3
    assert f"error: {tmp_path}/.git cannot be looked for: Permission denied" in done.stderr


@pytest.mark.slow
def test_the_names_of_a_projects_directories_may_be_no_utf_8(
    tmp_path: Path, write_app: Callable[..., Path]
) -> None:
    directory = Path(os.fsdecode(os.fsencode(tmp_path) + b"/shop\xff"))
    write_app(
        directory,
        {
            "main.py": """
                from pathlib import Path

                from fastapi import FastAPI
                from fastapi_sqlalchemy import DBSessionMiddleware
                from fsa_cli import task

                app = FastAPI()
                file = Path(__file__).with_name("shop.db")
                app.add_middleware(DBSessionMiddleware, db_url=f"sqlite:///{file}")

                @task
                def ship() -> str:
                    return "tea"
            """
        },
    )

    for words in ("scheduler init", "run-task ship", "db query select+1", "status", "health live"):
        done = run(FSA, *(word.replace("+", " ") for word in words.split()), cwd=directory)
        assert done.returncode == (words == "health live"), done.stderr
    (ran,) = json.loads(run(FSA, "runs", "--json", cwd=directory).stdout)
    assert (ran["task"], ran["status"]) == ("ship", "succeeded")
