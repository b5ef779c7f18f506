"""`fsa top`, typed into on a real terminal."""

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fsa_cli.cli.top_view import overview_lines
from fsa_cli.runs.lanes import Lanes
from fsa_cli.runs.overview import Overview, QueueLine
from support.shops import Shop
from support.waiting import wait_until

MAIN = r"""
    @task(schedule="0 3 * * *")
    def fails(n: int = 1) -> None:
        raise ValueError("[red]no[/red] \x1b[31m <b>")

    @task
    def waits() -> None: ...
"""


def test_top_shows_what_has_failed_and_acts_on_the_run_that_is_chosen(
    small_shop: Shop, terminal, fsa, tmp_path: Path
) -> None:
    small_shop.write(MAIN)
    fsa("scheduler", "init")
    assert fsa("run-task", "fails").returncode == 1
    (run_id,) = [row[0] for row in small_shop.ledger("SELECT id FROM fsa_run")]

    told = json.loads(fsa("top", "--json").stdout)
    assert [(each["task"], each["number"]) for each in told["failures"]] == [("fails", 1)]
    assert "fails" in fsa("top").stdout

    early = terminal("fsa", "top", columns=160)
    early.send("q")  # before it has taken the keyboard
    early.expect_exact("\x1b[?1049l")
    early.wait()

    screen = terminal("fsa", "top", columns=160)
    screen.expect_exact("> " + run_id[:8])
    screen.expect_exact("[red]no[/red] \\x1b[31m <b>")
    screen.send("\r")
    screen.expect_exact("main.py:")
    screen.send("\x1b")
    screen.expect_exact("> " + run_id[:8])
    screen.send("r")
    screen.expect_exact("1 queued in local, oldest ")
    screen.expect_exact("enqueued ")
    assert sorted(small_shop.runs()) == [("fails", "failed"), ("fails", "queued")]
    screen.send("p")
    screen.expect_exact("paused fails")
    assert small_shop.ledger("SELECT paused_ms > 0 FROM fsa_task") == [(1,)]
    (ledger,) = tmp_path.glob("*-ledger.db")
    # As if a process had claimed it.
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute(
            "UPDATE fsa_run SET status = 'running', started_ms = not_before_ms"
            " WHERE status = 'queued'"
        )
    screen.expect_exact("1 running")
    screen.send("\x1b[A" * 5)
    screen.send("c")
    screen.expect_exact("? y or n")
    screen.send("y")
    screen.expect_exact("asked to end")
    wait_until(
        lambda: small_shop.ledger(
            "SELECT 1 FROM fsa_run WHERE status = 'running' AND cancel_requested_ms > 0"
        ),
        "it is asked to end",
    )
    screen.send("q")
    screen.expect_exact("\x1b[?1049l")  # the screen is as it was
    screen.wait()
    assert screen.exitstatus == 0


def test_at_eighty_columns_top_says_whether_all_is_well_and_how_to_leave(
    small_shop: Shop, terminal, fsa
) -> None:
    small_shop.write(MAIN)
    fsa("scheduler", "init")
    assert fsa("run-task", "fails").returncode == 1

    screen = terminal("fsa", "top", columns=80)
    screen.expect_exact(" to look at")
    screen.expect_exact("ValueError: [red]no")  # the name takes no more room than it needs
    screen.expect_exact("q: leave")
    screen.send("q")
    screen.expect_exact("\x1b[?1049l")


def test_top_says_where_it_has_cut_a_name_or_an_error(small_shop: Shop, terminal, fsa) -> None:
    name = "report_of_the_night_and_of_the_day"
    small_shop.write(MAIN.replace("fails", name).replace("[red]no", "no user 語 4711 " * 20))
    fsa("scheduler", "init")
    assert fsa("run-task", name).returncode == 1

    screen = terminal("fsa", "top", columns=80)
    screen.expect_exact("report_of_the_night…")
    screen.expect(r"Value[^\r\n]*?\.\.\. ?(\x1b|\r)")
    screen.send("\r")
    screen.expect(r"error[^\r\n]*ValueError: no[^\r\n]*?\.\.\. ?(\x1b|\r)")
    screen.send("q")
    screen.expect_exact("\x1b[?1049l")


def test_times_of_the_lanes_do_not_run_into_each_other() -> None:
    now = datetime(2026, 11, 28, 22, 33, tzinfo=UTC)
    ticks = [(place, f"{place:02}:00") for place in (0, 12, 25, 37, 50, 62, 75, 87, 96)]
    hour = timedelta(hours=1)
    lanes = Lanes("1h", now - hour, now, now + hour, ticks, [], 0, None)
    seen = Overview(now, [], lanes, [], False, [], [], [], 0)
    (heads, *_) = [
        line[0][0]
        for line in overview_lines(seen, [], 0, "shop", width=80, height=24)
        if line and "00:00" in line[0][0]
    ]
    assert heads.split() == [label for _, label in ticks if label != "96:00"]


def test_lanes_that_are_left_out_are_counted() -> None:
    now = datetime(2026, 11, 28, 22, 33, tzinfo=UTC)

    def told(hidden: int) -> list[str]:
        lanes = Lanes("1h", now, now, now, [], [], hidden, None)
        seen = Overview(now, [], lanes, [], False, [], [], [], 0)
        lines = overview_lines(seen, [], 0, "shop", width=80, height=24)
        return [text for line in lines for text, _ in line if "more lane" in text]

    assert told(1) == ["1 more lane: fsa console, or a higher window"]
    assert told(2) == ["2 more lanes: fsa console, or a higher window"]


def test_what_waits_is_told_by_queue_on_three_lines_at_most() -> None:
    now = datetime(2026, 11, 28, 22, 33, tzinfo=UTC)
    lanes = Lanes("1h", now, now, now, [], [], 0, None)

    def told(*queues: QueueLine) -> list[str]:
        seen = Overview(now, [], lanes, [], False, queues, [], [], 0)
        lines = overview_lines(seen, [], 0, "shop", width=80, height=24)
        shown = ["".join(text for text, _ in line) for line in lines]
        (first,) = [place for place, line in enumerate(shown) if line.startswith("waiting")]
        return shown[first : shown.index("alive    nobody")]

    def line(name: str, status: str, number: int, later: int, minutes: int) -> QueueLine:
        oldest = now - timedelta(minutes=minutes)
        return QueueLine(name, "celery", status, number, number > 999, later, oldest)

    assert told() == ["waiting  nothing"]
    mail, local = line("mail", "handed_off", 12, 0, 75), line("local", "queued", 1000, 2, 14)
    assert told(mail, local) == [
        "waiting  12 dispatched in mail, oldest 1 h 15 min",
        "         1000+ queued in local, 2 for later, oldest 14 min",
    ]
    *_, last = three = told(mail, local, mail, mail)
    assert (len(three), last) == (3, "         and 2 more queues")


def test_top_without_a_keyboard_is_shown_once(small_shop: Shop, terminal, fsa) -> None:
    small_shop.write(MAIN)
    fsa("scheduler", "init")

    screen = terminal("sh", "-c", "echo q | fsa top", columns=80)
    screen.expect_exact("0 running")
    screen.wait()
    assert screen.exitstatus == 0
