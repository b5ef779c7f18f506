"""The command line itself: common flags, help, exit codes, and what starting it costs."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from fsa_cli.cli.command_tree import COMMANDS, _load, command
from fsa_cli.cli.flags import SPELLINGS, split_flags
from fsa_cli.exceptions import UsageError
from fsa_cli.project.settings import Flags
from fsa_cli.version import VERSION

APP = """
    from fastapi import FastAPI
    from fastapi_sqlalchemy import DBSessionMiddleware
    app = FastAPI(title="main")
    app.add_middleware(DBSessionMiddleware, db_url="sqlite://")
"""


@pytest.fixture
def loaded_modules(python):
    """The modules that are loaded after `fsa *words`."""

    def modules(*words: str) -> set[str]:
        program = (
            "import atexit, sys\n"
            "sys.argv = ['fsa', *sys.argv[1:]]\n"
            "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
            "from fsa_cli.__main__ import main\n"
            "main()\n"
        )
        return set(python("-c", program, *words).stderr.splitlines()[-1].split())

    return modules


def test_version_is_the_installed_one(fsa) -> None:
    assert version("fastapi-sqlalchemy") == VERSION
    for words in (["--version"], ["-V"], ["--json", "-V"], ["config", "--version"]):
        done = fsa(*words)
        assert (done.returncode, done.stdout) == (0, f"fsa {VERSION}\n"), words


@pytest.mark.parametrize("words", [["--version"], ["-V"], ["health", "live"]])
def test_what_probes_and_scripts_call_often_loads_no_typer(loaded_modules, words) -> None:
    loaded = loaded_modules(*words)

    assert "fsa_cli.__main__" in loaded
    assert loaded.isdisjoint(
        {
            "typer",
            "rich",
            "re",
            "typing",
            "dataclasses",
            "logging",
            "pathlib",
            "fastapi_sqlalchemy",
            "fsa_cli.api",
        }
    )


FRAMEWORKS = {"fastapi", "starlette", "sqlalchemy", "apscheduler", "alembic", "IPython", "rich"}


@pytest.mark.parametrize("words", [["--help"], [], ["shel"]])
def test_help_loads_no_framework(loaded_modules, words) -> None:
    loaded = loaded_modules(*words)

    assert "typer" in loaded
    assert loaded.isdisjoint(FRAMEWORKS | {"fsa_cli.commands.shell"})
    if "shel" not in words:
        assert loaded.isdisjoint({"logging", "zoneinfo"})


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_loads_no_framework(loaded_modules, name) -> None:
    assert loaded_modules(name, "--help").isdisjoint(FRAMEWORKS)


@pytest.mark.slow
def test_help_and_version_work_with_a_broken_app(fsa, write_app, tmp_path) -> None:
    write_app(
        tmp_path, {"pyproject.toml": "[tool.fsa]\nnonsense = 1\n"}, main="raise SystemError('no')"
    )

    for words in (["--help"], ["-h"], ["--version"], ["shell", "--help"], []):
        done = fsa(*words)
        assert done.returncode == 0, words
        assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_begins_with_examples_and_names_the_variables(name: str, fsa) -> None:
    group = _load(name)
    paths = [[name], *([name, each] for each in getattr(group, "commands", {}))]
    for path in paths:
        done = fsa(*path, "-h", env={"COLUMNS": "100"})
        assert done.returncode == 0, done.stderr
        head, common, _ = done.stdout.partition("Common options: fsa -h.")
        assert f"    fsa {path[0]}" in head or f"    fsa {' '.join(path)}" in head
        assert common
        assert "FSA_TRACEBACK" not in head


def test_the_first_help_has_the_common_options_with_their_variables(fsa) -> None:
    shown = fsa("-h").stdout
    for option in ("APP", "ENV_FILE", "DATABASE", "ENV", "JSON", "NO_COLOR", "TRACEBACK"):
        assert f"FSA_{option}]" in shown


def test_the_commands_that_the_help_lists_are_the_commands(fsa) -> None:
    listed = fsa("--help").stdout.partition("Commands:\n")[2].partition("\n\n")[0]

    assert [line.split()[0] for line in listed.splitlines()] == list(COMMANDS)


@pytest.mark.parametrize(
    "words",
    [["--json", "--app", "main:app", "health"], ["health", "--json", "-A", "main:app"]],
    ids=["before", "after"],
)
def test_common_flags_stand_before_and_after_the_command(fsa, write_app, tmp_path, words) -> None:
    write_app(tmp_path, main=APP)

    assert json.loads(fsa(*words).stdout)["ok"] is True


def test_the_commands_own_flag_wins(fsa, write_app, tmp_path) -> None:
    write_app(tmp_path, main=APP)

    done = fsa("--app", "nowhere:app", "config", "--json", "--app", "main:app")

    app, *_ = json.loads(done.stdout)
    assert app == {"setting": "app", "value": "main:app", "source": "--app"}


def test_a_flag_of_the_output_may_be_a_variable(fsa) -> None:
    assert isinstance(json.loads(fsa("config", env={"FSA_JSON": "1"}).stdout), list)
    assert fsa("config", env={"FSA_JSON": "0"}).stdout.startswith("setting\t")
    assert fsa("config", env={"FSA_JSON": "maybe"}).returncode == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["shel"], "Did you mean 'shell'"),
        (["--nope"], "No such option: --nope"),
        (["health", "--nope"], "No such option: --nope"),
        (["health", "live", "extra"], "unexpected extra argument"),
        (["config", "--app"], "requires an argument"),
        (["health", "--timeout", "soon"], "Invalid value for '--timeout'"),
        (["scheduler"], "Missing command"),
    ],
)
def test_a_wrong_word_is_exit_2_with_a_hint(fsa, words, says) -> None:
    done = fsa(*words)

    assert done.returncode == 2
    assert done.stdout == ""
    assert says in done.stderr
    assert done.stderr.splitlines()[-1].startswith("hint: fsa")
    document = json.loads(fsa(*words[:-1], "--json", words[-1]).stderr)
    assert document["error"] == "usage_error"
    assert document["exit_code"] == 2


def test_a_closed_pipe_ends_it_without_a_word(fsa_path, tmp_path) -> None:
    read, write = os.pipe()
    os.close(read)

    done = subprocess.run(
        [fsa_path, "config"], cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)

    assert done.stderr == b""
    assert done.returncode == 141


def test_a_closed_stderr_does_not_change_the_outcome(fsa_path, tmp_path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"{fsa_path} health 2>&-"], cwd=tmp_path, capture_output=True, check=False
    )

    assert (done.returncode, done.stdout) == (3, b"")


def test_an_ascii_locale_shows_what_it_can(fsa, write_app, tmp_path) -> None:
    write_app(tmp_path, {"pyproject.toml": '[tool.fsa]\nnamespace = "größe"\n'})

    done = fsa("config", env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})

    assert done.returncode == 0, done.stderr
    assert "gr" in done.stdout


def test_words_of_a_task_are_split_from_fsas_flags() -> None:
    words = ["--json", "a", "--app=x:y", "-v", "--since", "1", "-v", "--", "--json", "--", "b"]

    flags, rest = split_flags(words)

    assert flags == Flags(json=True, app="x:y", verbose=2)
    assert rest == ["a", "--since", "1", "--json", "--", "b"]
    assert split_flags(["--json", "-q"], but={"json"}) == (Flags(quiet=True), ["--json"])
    with pytest.raises(UsageError, match="--env needs a value"):
        split_flags(["--env"])


def test_the_spellings_are_those_of_the_command_line() -> None:
    options = {
        spelling: param.name
        for param in command().params
        if param.param_type_name == "option"
        for spelling in param.opts
        if param.name in Flags.__dataclass_fields__
    }

    assert options == SPELLINGS


def test_completion_knows_the_commands_and_the_options(fsa) -> None:
    def complete(line: str) -> str:
        words = line.split(" ")
        env = {
            "_FSA_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        }
        return fsa(env=env).stdout

    assert "scheduler" in complete("fsa sch")
    assert "live" in complete("fsa health l")
    assert "--traceback" in complete("fsa config --tr")


@pytest.fixture
def fsa_path() -> str:
    return os.path.join(os.path.dirname(sys.executable), "fsa")  # noqa: PTH118, PTH120
