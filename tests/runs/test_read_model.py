"""What pages are made from: every run once, in pages by key, on each of the three databases."""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter
from socket import gethostname
from typing import Any

import pytest
from sqlalchemy import event, insert, update

from fsa_cli.ledger import audit, control, nodes, run_search, tables
from fsa_cli.ledger.fingerprint import fingerprint
from fsa_cli.ledger.glance import glance
from fsa_cli.ledger.run_search import RunFilter
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.time import instant_of
from fsa_cli.runs import lanes
from fsa_cli.runs.calendar import DayCounts
from fsa_cli.runs.coming import ComingInstants
from fsa_cli.runs.overview import overview
from fsa_cli.runs.run_pages import run_detail, run_page
from fsa_cli.runs.task_pages import task_detail, task_lines
from fsa_cli.runs.task_problems import problems
from fsa_cli.runs.week import WeekCounts, week
from support.ledgers import LEASE_MS, end_lease, make_node, now_ms

HOUR_MS = 3_600_000
HOSTILE = "<script>alert(1)</script> [red]x[/red] \x1b[31m"


def row(ledger: Ledger, task: str, scheduled_ms: int, status: str, **more: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": uuid.uuid4().hex,
        "namespace": ledger.namespace,
        "task": task,
        "scheduled_ms": scheduled_ms,
        "kind": "schedule",
        "status": status,
        "arguments": "{}",
        "executor": "local",
        "queue": None,
        "attempt": 1,
        "not_before_ms": scheduled_ms,
        "node": None,
        "queued_ms": scheduled_ms,
        "started_ms": None,
        "finished_ms": None,
        "error_type": None,
        "error": None,
        "traceback": None,
        "result": None,
        "requested_by": None,
    }
    if status not in ("queued", "missed", "skipped"):
        values["started_ms"] = scheduled_ms + 10
    if status in ("succeeded", "failed"):
        values["finished_ms"] = scheduled_ms + 60
    return {**values, "slot": values["id"], **more}


def write(ledger: Ledger, *rows: dict[str, Any]) -> None:
    ledger.write(lambda connection: connection.execute(insert(tables.run), list(rows)))


def add_task(ledger: Ledger, name: str, schedule: str = "0 3 * * *", **more: Any) -> None:
    values = {
        "namespace": ledger.namespace,
        "name": name,
        "options": json.dumps({"schedule": schedule, "timezone": "UTC"}),
        "schedule_hash": "hash",
        "watermark_ms": 0,
        "consecutive_failures": 0,
        **more,
    }
    ledger.write(lambda connection: connection.execute(insert(tables.task).values(**values)))


def seen_in_pages(ledger: Ledger, wanted: RunFilter, now: Any) -> list[str]:
    found: list[str] = []
    after = None
    while True:
        page = run_page(ledger, wanted, after, 7, now)
        found += [run.id for run in page.runs]
        after = page.after
        if after is None:
            return found


@pytest.mark.parametrize("scanned", [3000, 4])
def test_pages_hold_every_run_once_and_never_a_large_text(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, scanned: int
) -> None:
    monkeypatch.setattr(run_search, "_SCANNED", scanned)
    now = now_ms(ledger)
    long = "x" * 2_000_000
    rows = [
        # Several of one instant: the end of a page falls between them.
        row(ledger, f"task{n % 3}", now - (n // 4) * 1000, ("succeeded", "failed", "missed")[n % 3])
        for n in range(40)
    ]
    rows.append(
        row(
            ledger,
            HOSTILE,
            now - 500,
            "failed",
            error_type="ValueError",
            error=long,
            traceback=long + "the end",
            result=json.dumps(long),
            arguments=json.dumps({"password": "hunter2", "deep": {"api_key": "k"}, "to": "ann"}),
        )
    )
    write(ledger, *rows)
    newest_first = [
        each["id"] for each in sorted(rows, key=lambda r: (-r["scheduled_ms"], r["id"]))
    ]

    assert seen_in_pages(ledger, RunFilter(), instant_of(now)) == newest_first
    failed = {each["id"] for each in rows if each["status"] in ("failed", "missed")}
    wanted = RunFilter(statuses=("failed", "missed", "failed"))
    assert seen_in_pages(ledger, wanted, instant_of(now)) == [
        n for n in newest_first if n in failed
    ]
    assert len(seen_in_pages(ledger, RunFilter("task1"), instant_of(now))) == 13
    rare = RunFilter("task1", statuses=("failed", "missed"))
    assert seen_in_pages(ledger, rare, instant_of(now)) == [
        each["id"]
        for each in sorted(rows, key=lambda r: (-r["scheduled_ms"], r["id"]))
        if each["task"] == "task1"
    ]
    assert seen_in_pages(ledger, RunFilter(error_type="ValueError"), instant_of(now)) == [
        rows[-1]["id"]
    ]
    since = RunFilter(statuses=("failed",), since_ms=now - 2000, until_ms=now - 1000)
    assert len(seen_in_pages(ledger, since, instant_of(now))) == sum(
        each["status"] == "failed" and now - 2000 <= each["scheduled_ms"] <= now - 1000
        for each in rows
    )
    assert (
        run_page(ledger, RunFilter(), "no cursor", 5, instant_of(now)).runs[0].id == newest_first[0]
    )

    (line,) = run_page(ledger, RunFilter(HOSTILE), None, 5, instant_of(now)).runs
    assert line.task == HOSTILE
    assert len(line.said) <= 300
    detail = run_detail(ledger, rows[-1]["id"], instant_of(now))
    assert detail is not None
    assert detail.traceback is not None
    assert detail.traceback.endswith("the end")
    assert max(len(detail.traceback), len(detail.error or ""), len(detail.result or "")) <= 65_536
    assert detail.cut == {"error", "traceback", "result"}
    assert json.loads(detail.arguments) == {
        "password": "***",
        "deep": {"api_key": "***"},
        "to": "ann",
    }
    assert run_detail(ledger, "none", instant_of(now)) is None
    assert run_detail(ledger, rows[-1]["id"][:10].upper(), instant_of(now)) == detail
    assert run_detail(ledger, "", instant_of(now)) is None  # the beginning of each


def test_a_fingerprint_is_one_statement_and_another_one_after_each_change(ledger: Ledger) -> None:
    sent: list[str] = []
    for engine in {ledger.engine, ledger._single}:
        event.listen(engine, "before_cursor_execute", lambda *a: sent.append(a[2]))
    now = now_ms(ledger)
    add_task(ledger, "tea")
    node = make_node(ledger, "tea")
    running = row(ledger, "tea", now - 1000, "running", node=node.id)
    queued = row(ledger, "tea", now - 2000, "queued")
    write(ledger, running, queued)
    sent.clear()
    seen = [fingerprint(ledger).text]
    assert len([each for each in sent if each.lstrip().upper().startswith("SELECT")]) == 1
    assert fingerprint(ledger).text == seen[0]

    def change(table: Any, where: Any, **values: Any) -> None:
        ledger.write(
            lambda connection: connection.execute(update(table).where(where).values(values))
        )
        seen.append(fingerprint(ledger).text)

    write(ledger, row(ledger, "tea", now, "missed"))
    seen.append(fingerprint(ledger).text)
    ledger.write(
        lambda connection: connection.execute(
            insert(tables.progress).values(run=running["id"], done=1, text="", updated_ms=now)
        )
    )
    seen.append(fingerprint(ledger).text)
    change(tables.progress, tables.progress.c.run == running["id"], done=2)
    change(tables.run, tables.run.c.id == running["id"], status="failed", finished_ms=now)
    change(tables.task, tables.task.c.name == "tea", consecutive_failures=1)
    control.cancel(ledger, queued["id"])
    seen.append(fingerprint(ledger).text)
    control.pause(ledger, ["tea"], "ann")
    seen.append(fingerprint(ledger).text)
    change(tables.node, tables.node.c.id == node.id, lease_until_ms=now - 1)
    audit.begin(ledger, uuid.uuid4().hex, "ann", "pause", "tea", "")
    seen.append(fingerprint(ledger).text)
    assert len(set(seen)) == len(seen)


def test_what_failed_and_was_missed_since_the_last_success_is_one_thing(ledger: Ledger) -> None:
    now = now_ms(ledger)
    add_task(ledger, "tea", "every 15m", consecutive_failures=2)
    write(
        ledger,
        row(ledger, "tea", now - 3000, "missed"),
        row(ledger, "tea", now - 2000, "failed"),
        last := row(ledger, "tea", now - 1000, "failed"),
    )
    (found,) = [each for each in problems(glance(ledger)) if each.subject == "tea"]
    assert found.said == "failed 2 times, missed 1, never succeeded"
    assert found.commands == (f"fsa runs show {last['id'][:8]}", "fsa runs tea")


def test_what_has_failed_before_a_success_is_over(ledger: Ledger) -> None:
    now = now_ms(ledger)
    add_task(ledger, "tea", "every 15m", last_success_ms=now - 1500)
    add_task(ledger, "mail", "every 15m")
    write(
        ledger,
        row(ledger, "tea", now - 1000, "failed", error_type="After"),
        row(ledger, "tea", now - 2000, "failed", error_type="Before"),
        row(ledger, "mail", now - 2000, "failed", error_type="Another"),
    )
    found = overview(ledger, ComingInstants(), now, zone=None).failures
    assert {each.error_type for each in found if each.is_over} == {"Before"}
    assert len(found) == 3


def test_the_overview_names_what_is_wrong_and_draws_each_run(ledger: Ledger) -> None:
    now = now_ms(ledger)
    empty = overview(ledger, ComingInstants(), now, zone=None)
    assert (empty.running, empty.waiting, empty.failures, empty.nodes) == ([], [], [], [])

    make_node(ledger, "tea", "mail")
    dead = make_node(ledger, lease_ms=-3000)
    going = row(ledger, "tea", now - 5 * HOUR_MS, "running", node=dead.id)
    add_task(ledger, "tea", "every 15m")
    add_task(ledger, "mail", "0 3 * * *", consecutive_failures=3)
    add_task(ledger, "old", "every 5m", paused_ms=now, paused_by="ann")
    add_task(ledger, "lost", "@hourly")
    write(
        ledger,
        row(ledger, "tea", now - 600_000, "succeeded"),
        row(ledger, "tea", now - 300_000, "missed"),
        going,
        *(
            row(ledger, "mail", now - n * 1000, "failed", error_type="KeyError", error=HOSTILE)
            for n in range(5)
        ),
        row(ledger, "tea", now - 180_000, "queued", queue="slow"),
        row(ledger, "tea", now + 60_000, "queued"),
    )
    seen = overview(ledger, ComingInstants(), now, zone=None)
    said = [re.sub(r" (\d\d:){2}\d\d| 3 min| \d+ s\b", " T", each.text) for each in seen.problems]
    assert [each.partition(", pid")[0].replace(gethostname(), "here") for each in said] == [
        "scheduler: one has died T ago: here",
        "lost: no live scheduler knows it (--only, --tag, another version?)",
        "mail: failed 3 times, never succeeded",
        "old: paused T by ann",
        "tea: missed 1, never succeeded",
        f"tea: 1 queued for T: its run {going['id'][:8]} goes on",
        "tea: runs on a process that is silent: scheduler here",
    ]
    (mail,) = [each for each in seen.problems if each.subject == "mail"]
    assert mail.detail == f"KeyError: {HOSTILE}"
    by_task = {lane.task: lane for lane in seen.lanes.lanes}
    assert next(iter(by_task)) == "mail"
    drawn = [bar.status for bar in by_task["tea"].bars]
    assert sorted(drawn) == [*["coming"] * 4, "missed", *["queued"] * 2, "running", "succeeded"]
    assert not any(bar.status == "coming" for bar in by_task["old"].bars)
    running = next(bar for bar in by_task["tea"].bars if bar.status == "running")
    assert (running.start, running.start + running.width) == (0, 50)
    assert all(0 <= bar.start <= bar.start + bar.width <= 100.01 for bar in by_task["tea"].bars)
    assert by_task["mail"].summary.startswith("5 failed")
    assert [(each.task, each.number, each.error_type) for each in seen.failures] == [
        ("mail", 5, "KeyError"),
        ("tea", 1, None),
    ]
    assert {(line.name, line.number, line.later) for line in seen.waiting} == {
        ("slow", 1, 0),
        ("local", 1, 1),
    }

    lines = {line.name: line for line in task_lines(ledger, ComingInstants(), now, None)}
    assert lines["mail"].last_status == "failed"
    assert lines["old"].next_at is None
    assert (lines["tea"].is_known, lines["lost"].is_known) == (True, False)
    detail = task_detail(ledger, "tea", ComingInstants(), DayCounts(), now, None)
    assert detail is not None
    days = detail.calendar.days
    assert {day.worst for day in days} <= {None, "missed", "running", "succeeded", "queued"}
    assert sum(day.counts.get("missed", 0) for day in days) == 1
    assert detail.durations.p50_ms == 50
    assert len(detail.coming) == 5
    assert task_detail(ledger, "none", ComingInstants(), DayCounts(), now, None) is None

    counts = WeekCounts()
    while (coming := week(ledger, counts, now, None)).left:  # it counts for a little at a time
        pass
    assert coming.often == [("tea", 4)]
    assert sum(hour.runs for _, hours in coming.days for hour in hours if hour) in (
        7 * 25,
        7 * 25 + 1,
    )
    assert run_search.one(ledger, "none", 10) is None


def test_what_nobody_takes_waits_for_no_run_where_none_goes_on(ledger: Ledger) -> None:
    now = now_ms(ledger)
    make_node(ledger, "tea")
    write(ledger, row(ledger, "mail", now - 180_000, "queued"))
    seen = overview(ledger, ComingInstants(), now, zone=None)
    (mail,) = [each for each in seen.problems if each.subject == "mail"]
    assert mail.said.endswith(": no live process takes it (--only, --tag, another version?)")
    assert "fsa worker start" in mail.commands


def test_processes_that_have_died_are_one_problem_for_each_role(ledger: Ledger) -> None:
    for lease_ms in (-120_000, -3000, -60_000):
        make_node(ledger, lease_ms=lease_ms)
    seen = overview(ledger, ComingInstants(), now_ms(ledger), zone=None)

    (died,) = [each for each in seen.problems if "died" in each.said]
    assert re.fullmatch(r"3 have died, the last \d{1,2} s ago: .*, pid \d+", died.said)
    assert died.detail.startswith("start them again unless that is done")
    assert died.commands == ("fsa scheduler start", "fsa runs --status interrupted")


def test_a_process_that_has_died_needs_no_look_once_another_serves_the_same(ledger: Ledger) -> None:
    mail, both = {"@celery/mail": ""}, {"@celery/mail": "", "@celery/slow": ""}

    def change(node: nodes.RegisteredNode, **values: Any) -> None:
        where = tables.node.c.id == node.id
        ledger.write(lambda c: c.execute(update(tables.node).where(where).values(values)))

    def died() -> list[str]:
        found = [each for each in problems(glance(ledger)) if "died" in each.said]
        return [f"{each.said}: {each.detail}" for each in found]

    change(make_node(ledger), started_ms=now_ms(ledger) - 900_000)  # it was there before
    first = make_node(ledger, lease_ms=-60_000)
    assert died()[0].startswith("one has died 1 min ")

    second = make_node(ledger)
    assert died() == []
    assert first.id in {each.id for each in glance(ledger).nodes}
    write(ledger, row(ledger, "tea", now_ms(ledger), "running", node=first.id))
    assert len(died()) == 1
    ledger.write(
        lambda c: c.execute(
            update(tables.run).where(tables.run.c.node == first.id).values(status="interrupted")
        )
    )
    assert died() == []

    end_lease(ledger, second.id)  # it dies again and again
    make_node(ledger)
    assert died()[0].startswith("2 have died")
    assert ": 1 started since; " in died()[0]
    change(second, state="stopped")
    assert died() == []

    nodes.register(ledger, "worker", -60_000, both)
    nodes.register(ledger, "worker", LEASE_MS, mail)
    assert len(died()) == 1
    nodes.register(ledger, "worker", LEASE_MS, both)
    assert died() == []

    nodes.register(ledger, "tick", -60_000)
    (tick,) = [each for each in problems(glance(ledger)) if each.subject == "tick"]
    assert tick.commands[0] == "fsa scheduler tick"
    nodes.release(ledger, nodes.register(ledger, "tick", LEASE_MS).id)
    assert died() == []


def test_a_calendar_counts_every_run_a_few_at_a_look(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsa_cli.runs.calendar._AT_ONCE", 7)
    now = now_ms(ledger)
    day_ms = 24 * HOUR_MS
    today_ms = now - now % day_ms
    old = [
        # Several of one instant: what is counted at a look may end between them.
        row(
            ledger,
            "tea",
            today_ms - (40 + n // 3) * day_ms + HOUR_MS,
            ("succeeded", "failed")[n % 2],
        )
        for n in range(20)
    ]
    write(ledger, *old, row(ledger, "tea", now, "succeeded"), row(ledger, "mail", now, "failed"))
    counts = DayCounts()
    looks = [counts.calendar(ledger, "tea", now)]
    while looks[-1].is_unfinished:
        looks.append(counts.calendar(ledger, "tea", now))

    assert len(looks) > 2
    assert {day.worst for day in looks[0].days} >= {"unread"}
    seen = {day.day: day for day in looks[-1].days if day.worst is not None}
    expected: dict[Any, Counter[str]] = {}
    for each in old:
        day = instant_of(each["scheduled_ms"]).date()
        expected.setdefault(day, Counter())[each["status"]] += 1
    expected[instant_of(now).date()] = Counter({"succeeded": 1})
    assert {day: dict(each.counts) for day, each in seen.items()} == expected
    assert {seen[day].worst for day in expected} == {"failed", "succeeded"}
    assert looks[-1].since == instant_of(min(each["scheduled_ms"] for each in old))
    assert looks[-1].days[0].day.weekday() == 0
    write(ledger, row(ledger, "tea", now + 1, "failed"))
    assert counts.calendar(ledger, "tea", now).days[-1].worst == "failed"


def test_short_runs_of_one_cell_are_one_bar_and_every_other_has_its_own(ledger: Ledger) -> None:
    now = now_ms(ledger)
    cell_ms = lanes.Scale.around(now, "1h").cell_ms(1)
    begin = now - now % cell_ms - 10 * cell_ms
    add_task(ledger, "tea", "@yearly")
    write(
        ledger,
        *(row(ledger, "tea", begin + n * 1000, "succeeded") for n in range(3)),
        row(ledger, "tea", begin + 3000, "succeeded", finished_ms=begin + 600_000),
        row(ledger, "tea", begin + 4000, "failed"),
        row(ledger, "tea", begin + 5000, "skipped"),
    )

    (lane,) = overview(ledger, ComingInstants(), now, zone=None).lanes.lanes
    drawn = [(bar.status, bar.run_id is None, bar.label.split()[0]) for bar in lane.bars]
    assert sorted(drawn) == [
        ("failed", False, "failed"),
        ("skipped", False, "skipped"),
        ("succeeded", False, "succeeded"),
        ("succeeded", True, "3"),
    ]
    several = next(bar for bar in lane.bars if bar.run_id is None)
    wanted = RunFilter("tea", ("succeeded",), several.since_ms, several.until_ms)
    assert len(seen_in_pages(ledger, wanted, instant_of(now))) == 3
    assert lane.summary == "1 failed, 1 skipped, 4 succeeded"


def test_of_many_tasks_what_runs_all_the_time_is_one_bar_from_its_first_run_to_its_last(
    ledger: Ledger,
) -> None:
    now = now_ms(ledger)
    cell_ms = lanes.Scale.around(now, "1h").cell_ms(100)
    for number in range(100):
        add_task(ledger, f"task{number:02}", "*/2 * * * *")
    begins = [now - now % cell_ms - number * cell_ms for number in (5, 4, 2, 1)]
    instants = [begin + n * 60_000 for begin in begins for n in (2, 4, 6)]
    write(
        ledger,
        *(row(ledger, "task07", each, "succeeded") for each in instants),
        row(ledger, "task07", begins[1] + 1000, "failed"),
    )

    found = overview(ledger, ComingInstants(), now, zone=None, most_lanes=500).lanes.lanes
    (lane,) = [each for each in found if each.task == "task07"]
    assert [(bar.status, bar.since_ms, bar.until_ms) for bar in lane.bars[:3]] == [
        ("succeeded", instants[0], instants[5]),
        ("succeeded", instants[6], instants[11]),
        ("failed", None, None),
    ]
    assert [bar.status for bar in lane.bars[3:]] == ["coming"]
    assert lane.summary.startswith("1 failed, 12 succeeded, next ")


def test_a_bar_calls_a_run_that_was_given_to_a_broker_dispatched(ledger: Ledger) -> None:
    now = now_ms(ledger)
    add_task(ledger, "tea", "@yearly")
    write(ledger, row(ledger, "tea", now - 60_000, "handed_off"))

    (lane,) = overview(ledger, ComingInstants(), now, zone=None).lanes.lanes
    assert lane.bars[0].label.startswith("dispatched ")
    assert lane.summary.startswith("1 dispatched")


def test_a_run_that_was_repeated_says_nothing_of_how_late_its_task_starts(ledger: Ledger) -> None:
    now = now_ms(ledger)
    add_task(ledger, "tea")
    retried = row(ledger, "tea", now - 120_000, "failed", attempt=2, started_ms=now - 30_000)
    write(ledger, row(ledger, "tea", now - 180_000, "succeeded"), retried)

    detail = task_detail(ledger, "tea", ComingInstants(), DayCounts(), now, None)

    assert detail is not None
    assert [late_ms for _, late_ms in detail.durations.lateness] == [10]


@pytest.mark.parametrize("going_on", [1, 9])
def test_of_too_many_runs_of_some_tasks_the_latest_are_drawn_and_it_says_since_when(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, going_on: int
) -> None:
    monkeypatch.setattr(lanes, "MOST_RUNS", 20)
    now = now_ms(ledger)
    add_task(ledger, "tea", last_success_ms=now)
    add_task(ledger, "zoo")
    write(
        ledger,
        *(row(ledger, "tea", now - n * 60_000, "failed") for n in range(10, 50)),
        *(row(ledger, "tea", now - n * 60_000, "running") for n in range(10, 10 + going_on)),
        *(row(ledger, "zoo", now - n * 1000, "failed") for n in range(30)),
    )

    found = overview(ledger, ComingInstants(), now, zone=None, most_lanes=1).lanes
    (lane,) = found.lanes
    assert (lane.task, found.hidden) == ("tea", 1)
    assert Counter(bar.status for bar in lane.bars if bar.status != "coming") == {
        "failed": 20,
        "running": going_on,
    }
    assert found.read_from == instant_of(now - 29 * 60_000)
