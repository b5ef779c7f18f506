"""What Tab offers, in real shells."""

import shutil

import pytest

APP = """
    print("noise of the app")
    from fastapi import FastAPI
    from fastapi_sqlalchemy import DBSessionMiddleware
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="sqlite://")
"""
TASKS = """
    from fsa_cli import task

    @task
    def count_users() -> None:
        "Count them."

    @task
    def count_orders() -> None: ...
"""
BASH = """
source <(fsa --show-completion bash)
COMP_WORDS=({line}) COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_fsa_completion fsa
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def complete(start, tmp_path):
    """What bash offers for a line."""

    def call(line: str) -> list[str]:
        done = start("bash", "--norc", "-c", BASH.format(line=line)).wait()
        assert done.stderr == ""
        return done.stdout.split()

    return call


def test_bash_completes_commands_options_and_tasks(complete, write_app, tmp_path) -> None:
    write_app(tmp_path, main=APP, tasks=TASKS)

    assert complete("fsa sch") == ["scheduler"]
    assert complete("fsa health --wa") == ["--wait", "--watch"]
    assert sorted(complete("fsa run-task cou")) == ["count_orders", "count_users"]
    assert complete("fsa tasks count_u") == ["count_users"]


def test_a_broken_app_is_no_noise_and_commands_and_options_do_not_import_it(
    complete, write_app, tmp_path
) -> None:
    write_app(tmp_path, main="open('imported', 'w').close()\nraise SystemError('no')")

    assert complete("fsa hea") == ["health"]
    assert complete("fsa run-task --dry") == ["--dry-run"]
    assert not (tmp_path / "imported").exists()
    assert complete("fsa run-task cou") == []
    assert (tmp_path / "imported").exists()


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_is_offered_the_tasks(start, write_app, tmp_path) -> None:
    write_app(tmp_path, main=APP, tasks=TASKS)
    program = """
        function compdef { :; }
        function _arguments { print -r -- "$@" }
        source <(fsa --show-completion zsh)
        words=(fsa run-task cou) CURRENT=3
        _fsa_completion
    """

    done = start("zsh", "-f", "-c", program).wait()

    assert "count_users" in done.stdout
    assert "noise" not in done.stdout + done.stderr
