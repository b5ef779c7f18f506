"""No text from outside acts on a terminal: it is shown as `\\x1b`, wherever it comes from."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path

import pexpect
import pytest
from sqlalchemy import make_url

from fsa_cli.ledger import tables
from fsa_cli.ledger.store import Ledger
from fsa_cli.processes import notifications
from fsa_cli.terminal.escaping import escape_json_controls, escape_terminal
from fsa_cli.terminal.output import Output
from support.backends import Backend
from support.ledgers import open_ledger
from support.processes import OpenTerminal, Run, Start, write_files

#: A title, a colour, a clipboard, C1's CSI, an override of the direction, and what remains below.
HOSTILE = "a\x1b]0;owned\x07\x1b[31mred\x1b]52;c;cm0=\x1b\\ \x9b2J\u202eevil\u2066\x08\x00\rb"
RAW = re.compile("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
IN_SQL = HOSTILE.replace("\x00", "")

MAIN = """
    import os
    from fastapi import FastAPI
    from sqlalchemy import text
    from fastapi_sqlalchemy import DBSessionMiddleware, db
    from fsa_cli import TaskContext, task

    HOSTILE = {hostile!r}
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url=os.environ["DB"])

    @task
    def give(): return HOSTILE

    @task(schedule="@yearly")
    def fail(context: TaskContext):
        context.progress(3, HOSTILE).advance()
        raise LookupError(HOSTILE)
"""
LINES = [
    "run-task give",
    "run-task fail",
    "run-task fail --traceback",
    "scheduler trigger fail",
    "scheduler tick",
    "runs",
    "runs fail",
    "runs --json",
    "runs show {failed}",
    "runs show {failed} --json",
    "runs show {given}",
    "db query @rows.sql",
    "db query @rows.sql --json",
    "db query @error.sql",
    "db show",
    "shell -c sql(open('rows.sql').read())",
    "shell --echo -c sql(open('rows.sql').read())",
    "shell -c raise(LookupError(open('rows.sql').read()))",
]


def acts(shown: str) -> list[str]:
    """What is left once the colours of Rich are gone, which hold no text."""
    return RAW.findall(re.sub(r"\x1b\[[0-9;]*[mK]|\x1b\[\?25[hl]|\r\n?", "", shown))


@pytest.fixture
def laid(tmp_path: Path, backend: Backend) -> Path:
    write_files(tmp_path, main=MAIN.format(hostile=HOSTILE))
    quote = "`" if backend.name == "mariadb" else '"'
    (tmp_path / "rows.sql").write_text(f"select '{IN_SQL}' as {quote}c{IN_SQL}{quote}", "utf-8")
    (tmp_path / "error.sql").write_text(f"select * from {quote}no{IN_SQL}{quote}", "utf-8")
    if backend.name == "sqlite":
        backend.execute(f'create table "t{IN_SQL}" (a int)')
    return tmp_path


def test_nothing_from_outside_acts_on_a_terminal_or_in_a_pipe(
    laid: Path, backend: Backend, fsa: Run, terminal: OpenTerminal
) -> None:
    env = {"DB": backend.url, "FSA_STATE_DIR": str(laid / "state"), "NO_COLOR": "1"}
    assert fsa("scheduler", "init", cwd=laid, env=env).returncode == 0
    for name in ("give", "fail"):
        fsa("run-task", name, cwd=laid, env=env)
    runs = json.loads(fsa("runs", "--json", cwd=laid, env=env).stdout)
    ids = {"failed" if each["task"] == "fail" else "given": each["id"] for each in runs}
    assert len(ids) == 2

    for line in LINES:
        argv = [word.format(**ids) for word in line.split()]
        piped = fsa(*argv, cwd=laid, env=env)
        told = piped.stdout + piped.stderr
        if argv != ["run-task", "give"]:  # in a pipe a result is data
            assert not acts(told), (line, told)
        shown = terminal("fsa", *argv, cwd=laid, env=env)
        shown.expect_exact(pexpect.EOF)
        assert not acts(shown.before or ""), (line, shown.before)
        if argv[0] in ("runs", "shell") or argv[:2] == ["db", "query"]:
            # MariaDB shows names in its errors as \001B itself.
            assert re.search(r"\\x1b|\\u001b|\\001B", told), (line, told)


#: A name that would begin a line of its own, and end a command that is copied.
_SPLIT = "ship; reboot\nwarning: OWNED"


def _write_foreign_rows(ledger: Ledger) -> None:
    """A dead worker, a task that fails and a run that waits, as another program may write them."""
    now = ledger.read(ledger.now_ms)
    run = dict.fromkeys([each.name for each in tables.run.c]) | {
        "id": "f" * 32,
        "namespace": ledger.namespace,
        "task": _SPLIT,
        "slot": "f" * 32,
        "scheduled_ms": now - 90_000,
        "kind": "manual",
        "status": "failed",
        "arguments": "{}",
        "executor": "local",
        "attempt": 1,
        "not_before_ms": 0,
        "commits": 0,
        "queued_ms": 0,
        "started_ms": now,
        "finished_ms": now,
        "priority": 0,
        "requested_by": _SPLIT,
        "error_type": _SPLIT,
        "error": _SPLIT,
        "node": "n",
    }
    waiting = {"id": "e" * 32, "slot": "e" * 32, "status": "queued", "finished_ms": None}
    node = {
        "id": "n",
        "namespace": ledger.namespace,
        "host": _SPLIT,
        "pid": 1,
        "version": "1",
        "role": "worker",
        "state": "dead",
        "started_ms": now,
        "covered_from_ms": now,
        "lease_until_ms": now - 5000,
    }
    other = {"id": "o", "namespace": _SPLIT, "state": "alive", "lease_until_ms": now + 900_000}
    task = {
        "namespace": ledger.namespace,
        "name": _SPLIT,
        "options": "{}",
        "schedule_hash": "h",
        "paused_ms": now,
        "paused_by": _SPLIT,
        "watermark_ms": now,
        "consecutive_failures": 3,
    }
    for table, rows in (
        (tables.node, [node, node | other]),
        (tables.task, [task]),
        (tables.run, [run, run | waiting]),
    ):
        ledger.write(lambda connection, t=table, r=rows: connection.execute(t.insert(), r))


def test_a_name_of_several_lines_begins_no_line_and_ends_no_command(
    laid: Path, backend: Backend, fsa: Run, terminal: OpenTerminal
) -> None:
    env = {"DB": backend.url, "FSA_STATE_DIR": str(laid / "state"), "FSA_NAMESPACE": "shop"}
    assert fsa("scheduler", "init", cwd=laid, env=env).returncode == 0
    url = backend.url
    if backend.name == "sqlite":
        file = Path(make_url(url).database or "")
        url = f"sqlite:///{file.with_name(f'{file.stem}-ledger{file.suffix}')}"
    ledger = open_ledger(url, "shop")
    _write_foreign_rows(ledger)
    ledger.dispose()

    named = 0
    for line in ("status", "scheduler status", "top", "health", "runs"):
        done = fsa(*line.split(), cwd=laid, env=env)
        told = done.stdout + done.stderr
        named += told.count("OWNED")
        assert not re.search(r"(?m)^\s*warning: OWNED", told), (line, told)
        assert not re.search(r"fsa [^\n']*ship; reboot", told), (line, told)
        if line in ("status", "scheduler status"):
            shown = terminal("fsa", *line.split(), cwd=laid, env={**env, "NO_COLOR": "1"})
            shown.expect_exact(pexpect.EOF)
            assert not re.search(r"(?m)^warning: OWNED", shown.before or ""), (line, shown.before)
    assert named > 10
    begun = fsa("scheduler", "tick", cwd=laid, env=env)
    assert not re.search(r"(?m)^warning: OWNED", begun.stderr), begun.stderr


def test_json_means_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=True).document({HOSTILE: [HOSTILE, "\U000e0041"]})

    told = capsys.readouterr().out
    assert not acts(told)
    assert json.loads(told) == {HOSTILE: [HOSTILE, "\U000e0041"]}


@pytest.mark.parametrize("ends", ["give", "fail"])
def test_each_event_of_a_json_log_is_one_line_that_acts_on_nothing(
    ends: str, tmp_path: Path, sqlite: Backend, fsa: Run, fsa_process: Start
) -> None:
    write_files(tmp_path, main=MAIN.format(hostile=f"{HOSTILE}\u2028\x85\ud800"))
    env = {"DB": sqlite.url, "FSA_STATE_DIR": str(tmp_path / "state")}
    assert fsa("scheduler", "init", cwd=tmp_path, env=env).returncode == 0
    assert fsa("scheduler", "trigger", ends, cwd=tmp_path, env=env).returncode == 0

    process = fsa_process("scheduler", "start", "--log-format", "json", cwd=tmp_path, env=env)
    process.wait_for('"event": "run"')
    log = process.stop().stderr

    assert not acts(log), log
    assert "run" in [json.loads(line)["event"] for line in log.splitlines()]


def test_what_our_loggers_say_is_escaped(caplog: pytest.LogCaptureFixture) -> None:
    logger = notifications.logger
    assert logger.name == "fsa.scheduler"
    with caplog.at_level(logging.INFO):
        logger.warning("%s: %s", HOSTILE, 1)
        try:
            raise LookupError(HOSTILE)
        except LookupError:
            logger.exception("failed")

    assert "\\x1b]0;owned" in caplog.text
    assert not acts(caplog.text)


def test_what_our_loggers_say_of_a_name_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    notifications.logger.warning("on_failure of %s failed", _SPLIT)

    assert caplog.records[-1].getMessage() == "on_failure of ship; reboot warning: OWNED failed"


@pytest.mark.parametrize("text", ["plain", "Zoë\t1\n2\r\n", "日本 👩\u200d👩", "a\u00ad"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert escape_terminal(text) == text


def test_a_return_without_a_line_feed_is_escaped_and_one_before_it_is_not() -> None:
    assert escape_terminal("a\rb\r\n\r\r\nc\r") == "a\\rb\r\n\\r\r\nc\\r"


@pytest.mark.slow
@pytest.mark.parametrize("character", ["\x1b", "\r", "\u202e", "\U000e0041"])
def test_what_is_nothing_but_escapes_takes_no_call_for_each(character: str) -> None:
    """A cell of 20 MB took 40 s."""
    text = (character + "a") * 1_000_000
    called: list[int] = []

    def note(*event: object) -> None:
        called.append(1)

    for escape in (escape_terminal, escape_json_controls):
        sys.setprofile(note)
        try:
            escaped = escape(text)
        finally:
            sys.setprofile(None)
        assert escaped.count("a") >= 1_000_000
    assert len(called) < 100
