"""Every command as a person sees it: at 80 and 100 columns, in colour and without.

The screens are in `screens/`, a file for each; RENEW_SCREENS=1 writes them anew, to be read in the
diff. What differs from one day and machine to another is blotted out in its own width, so that the
columns stay; where widths differ too (a span, a path) the gaps between columns are made equal.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pexpect
import pytest
import typer
from packaging.version import Version
from sqlalchemy import create_engine, insert

from fsa_cli.cli.app import main
from fsa_cli.cli.command_tree import COMMANDS, _load
from fsa_cli.ledger import tables
from fsa_cli.ledger.time import ms_of
from fsa_cli.version import VERSION
from support.processes import FSA, OpenTerminal, run, write_files

HERE = Path(__file__).parent / "screens"
WIDTHS = (80, 100)
MOST_LINES = 24
#: What the helps in `screens/` were written by; others write metavars otherwise.
TYPER = (0, 29)

APP = '''
from fastapi import FastAPI
from sqlalchemy import ForeignKey, String, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from fastapi_sqlalchemy import DBSessionMiddleware, db
from fsa_cli import task

app = FastAPI()
app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")

class Base(DeclarativeBase): ...

class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name_of_the_customer: Mapped[str] = mapped_column(String(100), unique=True)

class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[int] = mapped_column(ForeignKey("customers.id"), index=True)
    item: Mapped[str]

@app.get("/orders/{number}/lines/of/the/order")
def lines_of_the_order(number: int): ...

@task(schedule="0 3 * * *", tags=["reports"])
def nightly_report_of_shops(region: str = "eu"):
    """Write the report of the night, for each shop and each of its customers."""
    raise LookupError("there is no shop with the number 4711 in the region eu, nor in any other")

@task(schedule="@hourly")
def tidy():
    """Delete what nobody needs."""
    db.session.execute(text("DELETE FROM orders"))
    return 3

@task
def ship(item: str): ...
'''
PROJECT = """
[tool.fsa]
app = "main:app"
namespace = "shop"
ledger_url = "sqlite:///ledger.db"
"""
ERROR = "there is no shop with the number 4711 in the region eu, nor in any other"

#: What is shown, by the name of its file; `~`: widths differ from one day and machine to another;
#: `~~`: and with them where lines are folded.
SCREENS = {
    "status": "~status",
    "runs": "runs",
    "runs-of-a-task": "runs nightly_report_of_shops -n 2",
    "runs-none": "runs --status missed --since 2h",
    "runs-show-failed": "runs show 0f",
    "runs-show-running": "~runs show 0c",
    "runs-show-unknown": "runs show zzz",
    "runs-retry-none": "runs retry --status missed",
    "tasks": "tasks",
    "task": "~tasks nightly_report_of_shops",
    "run-task-help": "~run-task nightly_report_of_shops -h",
    "run-task-dry": "~~run-task tidy --dry-run",
    "run-task-failed": "~~run-task nightly_report_of_shops --no-record",
    "run-task-unknown": "run-task tidi",
    "scheduler-list": "~scheduler list",
    "scheduler-next": "~scheduler next tidy -n 2",
    "scheduler-test": "scheduler test tidy --at 2026-10-25T03:00Z",
    "scheduler-status": "~scheduler status",
    "scheduler-pause": "scheduler pause tidy",
    "scheduler-init": "scheduler init",
    "health": "~~health",
    "db-show": "~db show",
    "db-table": "db table customers",
    "db-query": "db query 'select id, name_of_the_customer from customers'",
    "db-query-none": "db query 'select id from orders where id < 0'",
    "db-check": "db check",
    "db-current": "db current",
    "routes": "routes",
    "config": "~config",
    "docs": "docs",
    "docs-search": "docs --search heartbeat",
    "migrate": "migrate",
    "wrong-option": "runs --limt 3",
}
SGR = re.compile(r"\x1b\[([0-9;]*)m")
HIDDEN = (
    (re.compile(r"\d{4}-\d\d-\d\d"), "YYYY-MM-DD"),
    # Of yesterday, for a while after midnight, the date stands in the room behind the time.
    (re.compile(r"(?<![\d-])\d\d-\d\d (\d\d:\d\d:\d\d)(?= *$)", re.MULTILINE), r"\1"),
    (re.compile(r"(?<![\d-])\d\d-\d\d (\d\d:\d\d:\d\d)(?= )"), r"\1      "),
    (re.compile(r"\d\d:\d\d:\d\d"), "HH:MM:SS"),
    (re.compile(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun) "), "Day "),
)
LOOSE = (
    # Whole, or cut by the end of the line.
    (
        re.compile(
            r"\b\d+(\.\d+)? (ms|s|min|h|d)\b"
            r"(( \d+( s| min| h| m| mi)?)? ?\.\.\.|( \d+ (s|min|h)\b))?"
        ),
        "SPAN",
    ),
    (re.compile(r"\bDay (\S+ )?\d\d:\d\d\b|\bDay \S+( \S*)?\.\.\."), "INSTANT"),
    (re.compile(r"(?<=  )\d+(\.\d+)?(?=  |$)", re.MULTILINE), "N"),
    (re.compile(r"pid \d+"), "pid N"),
    (re.compile(r"─+"), "──"),
    (re.compile(r" {2,}"), "  "),
    (re.compile(r" +$", re.MULTILINE), ""),
)


def moments() -> tuple[int, int]:
    """This moment, and one of years ago, in milliseconds."""
    return ms_of(datetime.now(UTC)), ms_of(datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC))


def runs() -> Iterator[dict[str, Any]]:
    now, long_ago = moments()
    rows: list[tuple[str, str, str, int, int | None, dict[str, Any]]] = [
        ("0a", "tidy", "succeeded", long_ago, 4, {"result": "3"}),
        ("0b", "tidy", "succeeded", now, 23, {"result": "3"}),
        # What has begun in the future has taken no time yet, however slow the machine is.
        ("0c", "ship", "running", now + 20_000, None, {"arguments": '{"item": "tea"}'}),
        ("0d", "nightly_report_of_shops", "cancelled", now + 1, 0, {}),
        ("0e", "nightly_report_of_shops", "timed_out", now + 2, 3_723_000, {}),
        ("0f", "nightly_report_of_shops", "failed", now + 3, 5, {"attempt": 3}),
        # For 14 min 30 s, which is as wide for another half a minute.
        ("10", "ship_by_sea", "queued", now - 870_000, None, {"started_ms": None}),
    ]
    for number, (start, name, status, at_ms, took_ms, more) in enumerate(rows):
        wrong = status in ("failed", "timed_out")
        yield {
            "id": f"{start}{number:030x}",
            "namespace": "shop",
            "task": name,
            "scheduled_ms": at_ms,
            "slot": f"{number}",
            "kind": "manual" if name.startswith("ship") else "schedule",
            "status": status,
            "arguments": "{}",
            "executor": "local",
            "attempt": 1,
            "not_before_ms": at_ms,
            "node": None if status == "queued" else "worker1",
            "claim": f"claim{number}",
            "queued_ms": at_ms,
            "started_ms": at_ms,
            "finished_ms": None if took_ms is None else at_ms + took_ms,
            "error_type": "LookupError" if wrong else None,
            "error": ERROR if wrong else None,
            "traceback": None,
            "result": None,
            **more,
        }


def nodes() -> Iterator[dict[str, Any]]:
    now, long_ago = moments()
    for name, role, lease_ms in (("worker1", "worker", 59_900), ("gone", "scheduler", -11_130_000)):
        yield {
            "id": name,
            "namespace": "shop",
            "host": "db1.example",
            "pid": 4711,
            "version": VERSION,
            "role": role,
            "state": "alive" if lease_ms > 0 else "dead",
            "started_ms": long_ago,
            "covered_from_ms": long_ago,
            "lease_until_ms": now + lease_ms,
        }


def attempts() -> Iterator[dict[str, Any]]:
    now, _ = moments()
    for number, status in ((1, "failed"), (2, "interrupted")):
        yield {
            "run": f"0f{5:030x}",
            "claim": f"earlier{number}",
            "number": number,
            "status": status,
            "node": "worker1",
            "started_ms": now,
            "finished_ms": now + 5000,
            "error_type": "LookupError" if number == 1 else "Interrupted",
            "error": ERROR if number == 1 else "the process that ran it has died",
        }


def tasks() -> Iterator[dict[str, Any]]:
    _, long_ago = moments()
    for name, is_paused, failures in (("tidy", 1, 0), ("nightly_report_of_shops", 0, 7)):
        yield {
            "namespace": "shop",
            "name": name,
            "options": '{"schedule": "@hourly"}',
            "schedule_hash": "hash",
            "paused_ms": long_ago if is_paused else None,
            "paused_by": "ann@db1.example" if is_paused else None,
            "watermark_ms": long_ago,
            "last_success_ms": long_ago if is_paused else None,
            "consecutive_failures": failures,
        }


@pytest.fixture(scope="module")
def project() -> Iterator[Path]:
    """An app with a night behind it: one failed, one runs, one waits for nobody, one is paused."""
    directory = Path(tempfile.mkdtemp(prefix="fsa-", dir="/tmp"))  # as long as on other machines
    write_files(directory, {"pyproject.toml": PROJECT}, main=APP)
    made = "Base.metadata.create_all(db.engine); session.add(Customer(name_of_the_customer='Ann'))"
    for words in (
        ["shell", "-c", f"from main import *; {made}; session.commit()"],
        ["scheduler", "init"],
    ):
        done = run(FSA, *words, cwd=directory)
        assert done.returncode == 0, done.stderr
    yield directory
    shutil.rmtree(directory)


def fill(project: Path) -> None:
    """Write the ledger's rows of this moment."""
    engine = create_engine(f"sqlite:///{project / 'ledger.db'}")
    with engine.begin() as connection:
        rows = {
            tables.run: list(runs()),
            tables.node: list(nodes()),
            tables.attempt: list(attempts()),
            tables.task: list(tasks()),
        }
        for table, values in rows.items():
            connection.execute(table.delete())
            connection.execute(insert(table), values)
    engine.dispose()


def words_of(line: str) -> list[str]:
    head, _, quoted = line.lstrip("~").partition(" '")
    return [*head.split(), *([quoted.removesuffix("'")] if quoted else [])]


def screen(
    terminal: OpenTerminal, project: Path, words: list[str], columns: int, *, color: bool
) -> str:
    """What a terminal shows, each line without what follows its last letter."""
    env = {"FSA_STATE_DIR": "state", **({} if color else {"NO_COLOR": "1"})}
    child = terminal("fsa", *words, cwd=project, columns=columns, env=env)
    child.expect(pexpect.EOF)
    text = str(child.before).replace("\r\n", "\n")
    return "\n".join(line.rstrip() for line in text.splitlines())


def blotted(text: str, project: Path, *, loose: bool, unfolded: bool) -> str:
    text = text.replace(str(project), "PROJECT").replace(VERSION, "VERSION")
    text = re.sub(rf"{project.name}-[0-9a-f]{{8}}", "OF-THE-PROJECT", text)
    if unfolded:
        text = re.sub(r" *\n +", " ", text)
    for pattern, instead in (*HIDDEN, *(LOOSE if loose else ())):
        text = pattern.sub(instead, text)
    return text


def styles(text: str) -> list[str]:
    """The pieces that have a style, as `bold red: failed`."""
    found = []
    for code, piece in re.findall(r"\x1b\[([1-9][0-9;]*)m([^\x1b]+)", text):
        if (line := f"{code}: {piece.strip()}") not in found and piece.strip(" ─"):
            found.append(line)
    return found


def check(name: str, shown: str) -> None:
    path = HERE / f"{name}.txt"
    if os.environ.get("RENEW_SCREENS"):
        path.write_text(shown, encoding="utf-8")
    assert path.is_file(), "RENEW_SCREENS=1 writes it"
    assert shown == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_is_as_it_was_read_last(name: str, terminal: OpenTerminal, project: Path) -> None:
    line = SCREENS[name]
    words = words_of(line)

    def seen() -> str:
        parts = [f"$ fsa {' '.join(words)}"]
        for width in WIDTHS:
            fill(project)
            plain = screen(terminal, project, words, width, color=False)
            fill(project)
            colored = screen(terminal, project, words, width, color=True)
            assert "\x1b[" not in plain.replace("\x1b[?25", "")
            stripped = [part.rstrip() for part in SGR.sub("", colored).splitlines()]
            how = {"loose": line.startswith("~"), "unfolded": line.startswith("~~")}
            shown = blotted(plain, project, **how)
            assert blotted("\n".join(stripped), project, **how) == shown
            # A sentence is the terminal's to fold; a line of columns must not be.
            wide = [each for each in plain.splitlines() if len(each) > width]
            assert [each for each in wide if "  " in each.strip()] == []
            parts.append(f"--- {width} columns\n{shown}")
        parts.append("--- styles\n" + "\n".join(styles(blotted(colored, project, **how))))
        return "\n".join(parts).rstrip() + "\n"

    today = None
    while (datetime.now(UTC) + timedelta(minutes=1)).date() != today:  # again over midnight
        today = datetime.now(UTC).date()
        shown = seen()
    check(name, shown)


def helps() -> Iterator[list[str]]:
    for name in COMMANDS:
        yield [name]
        yield from ([name, each] for each in getattr(_load(name), "commands", {}))


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def help_of(words: list[str], columns: int, monkeypatch: pytest.MonkeyPatch, *, color: bool) -> str:
    out = Screen()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("TERM", "xterm-256color")
        patch.setenv("NO_COLOR", "1")
        if color:
            patch.delenv("NO_COLOR")
        assert main(words) == 0
    return out.getvalue().rstrip()


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_every_help_is_one_screen_and_as_it_was_read_last(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: a help costs milliseconds, and a process a hundred of them."""
    monkeypatch.chdir(tmp_path)
    parts = []
    for words in ([], ["-h"], *([*each, "-h"] for each in helps())):
        plain = help_of(words, width, monkeypatch, color=False)
        colored = help_of(words, width, monkeypatch, color=True)
        assert "\x1b" not in plain
        assert SGR.sub("", colored) == plain
        headings = re.findall(r"^(\w[\w, ]*:)$", plain, re.MULTILINE)
        assert styles(colored) == [f"1: {each}" for each in headings], words
        lines = plain.splitlines()
        assert max(map(len, lines)) <= width, words
        assert len(lines) <= MOST_LINES or words == ["-h"], words
        parts.append(f"$ {' '.join(['fsa', *words])}\n{plain}\n")
    if Version(typer.__version__).release[:2] == TYPER:
        check(f"help-{width}", "\n".join(parts))
