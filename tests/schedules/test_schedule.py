"""Schedules against a written table of instants, and against a minute-by-minute count."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time as clock
import zoneinfo
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import pytz
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from cronsim import CronSim
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fsa_cli.exceptions import ScheduleError
from fsa_cli.schedules.schedule import Schedule, parse_schedule, upcoming
from fsa_cli.schedules.timezones import parse_timezone, zone_name

BERLIN = "Europe/Berlin"
NEW_YORK = "America/New_York"
LORD_HOWE = "Australia/Lord_Howe"
WEST = timezone(timedelta(hours=-5))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def instants(schedule: object, zone: object, after: str, count: int) -> list[str]:
    found = upcoming(parse_schedule(schedule, zone), utc(after), count)
    assert all(instant.tzinfo is UTC for instant in found)
    return [instant.strftime("%Y-%m-%d %H:%M") for instant in found]


# Berlin:    +1 -> +2 on 2026-03-29 at 02:00 (01:00 UTC), +2 -> +1 on 10-25 at 03:00 (01:00 UTC).
# New York:  -5 -> -4 on 2026-03-08 at 02:00 (07:00 UTC), -4 -> -5 on 11-01 at 02:00 (06:00 UTC).
# Lord Howe: +11 -> +10:30 on 2026-04-05 at 02:00 (04-04 15:00 UTC),
#            +10:30 -> +11 on 2026-10-04 at 02:00 (10-03 15:30 UTC).
TABLE = [
    # A fixed time that is skipped comes when the clocks have gone forward, once.
    ("30 2 * * *", BERLIN, "2026-03-28 00:00", ["03-28 01:30", "03-29 01:00", "03-30 00:30"]),
    ("30 2 * * *", NEW_YORK, "2026-03-07 00:00", ["03-07 07:30", "03-08 07:00", "03-09 06:30"]),
    ("15 2 * * *", LORD_HOWE, "2026-10-02 00:00", ["10-02 15:45", "10-03 15:30", "10-04 15:15"]),
    # A minute that begins with `*` follows the wall clock, whatever the hour.
    ("*/30 2 * * *", BERLIN, "2026-03-28 12:00", ["03-30 00:00", "03-30 00:30"]),
    (
        "*/30 2 * * *",
        BERLIN,
        "2026-10-24 12:00",
        ["10-25 00:00", "10-25 00:30", "10-25 01:00", "10-25 01:30"],
    ),
    # A fixed time that is repeated comes the first time only.
    ("30 2 * * *", BERLIN, "2026-10-24 00:00", ["10-24 00:30", "10-25 00:30", "10-26 01:30"]),
    ("30 1 * * *", NEW_YORK, "2026-10-31 00:00", ["10-31 05:30", "11-01 05:30", "11-02 06:30"]),
    ("45 1 * * *", LORD_HOWE, "2026-04-03 00:00", ["04-03 14:45", "04-04 14:45", "04-05 15:15"]),
    # Several fixed times of which two fall together count once.
    ("0 2,3 * * *", BERLIN, "2026-03-28 12:00", ["03-29 01:00", "03-30 00:00", "03-30 01:00"]),
    ("0,30 2,3 * * *", BERLIN, "2026-03-28 12:00", ["03-29 01:00", "03-29 01:30", "03-30 00:00"]),
    # The wall clock: every matching minute that occurs.
    (
        "30 * * * *",
        BERLIN,
        "2026-03-28 23:45",
        ["03-29 00:30", "03-29 01:30", "03-29 02:30"],
    ),
    (
        "30 * * * *",
        BERLIN,
        "2026-10-24 23:45",
        ["10-25 00:30", "10-25 01:30", "10-25 02:30"],
    ),
    (
        "0 * * * *",
        LORD_HOWE,
        "2026-10-03 14:00",
        ["10-03 14:30", "10-03 16:00", "10-03 17:00"],  # 01:00, (no 02:00), 03:00, 04:00
    ),
    (
        "30 * * * *",
        LORD_HOWE,
        "2026-10-03 14:40",
        ["10-03 15:00", "10-03 15:30", "10-03 16:30"],  # 01:30, 02:30 (no 02:00), 03:30
    ),
    (
        "*/30 2 * * *",
        LORD_HOWE,
        "2026-04-04 00:00",
        ["04-04 15:30", "04-04 16:00", "04-05 15:30"],  # 02:00 and 02:30, after 01:30 again
    ),
    (
        "45 * * * *",
        LORD_HOWE,
        "2026-04-04 14:00",
        ["04-04 14:45", "04-04 15:15", "04-04 16:15"],  # 01:45, 01:45 again, 02:45
    ),
    (
        "*/15 */2 * * *",
        NEW_YORK,
        "2026-11-01 04:40",
        ["11-01 04:45", "11-01 07:00", "11-01 07:15"],  # 00:45 EDT, 02:00 EST
    ),
    # Weekdays are crontab's.
    ("0 0 * * 0", "UTC", "2026-11-22 00:00", ["11-29 00:00", "12-06 00:00"]),
    ("0 0 * * 7", "UTC", "2026-11-22 00:00", ["11-29 00:00", "12-06 00:00"]),
    ("0 0 * * 1", "UTC", "2026-11-22 00:00", ["11-23 00:00", "11-30 00:00"]),
    ("0 0 * * sun", "UTC", "2026-11-22 00:00", ["11-29 00:00"]),
    ("0 0 * * 5-7", "UTC", "2026-11-22 00:00", ["11-27 00:00", "11-28 00:00", "11-29 00:00"]),
    ("0 0 * * fri-sun", "UTC", "2026-11-22 00:00", ["11-27 00:00", "11-28 00:00", "11-29 00:00"]),
    ("0 12 * JAN,dec MON", "UTC", "2026-11-22 00:00", ["12-07 12:00", "12-14 12:00"]),
    # Day of month and weekday: either, unless one begins with a star.
    ("0 0 13 * 5", "UTC", "2026-11-01 00:00", ["11-06 00:00", "11-13 00:00", "11-20 00:00"]),
    ("0 0 13 * *", "UTC", "2026-11-01 00:00", ["11-13 00:00", "12-13 00:00"]),
    ("0 0 */2 * 1", "UTC", "2026-11-01 00:00", ["11-09 00:00", "11-23 00:00", "12-07 00:00"]),
    # Ranges, steps, lists.
    (
        "10-30/10 9,17 * * *",
        "UTC",
        "2026-11-22 09:10",
        ["11-22 09:20", "11-22 09:30", "11-22 17:10"],
    ),
    ("0 0 31 * *", "UTC", "2026-09-01 00:00", ["10-31 00:00", "12-31 00:00"]),
    ("@daily", BERLIN, "2026-11-22 00:00", ["11-22 23:00", "11-23 23:00"]),
    ("@hourly", "Asia/Kolkata", "2026-11-22 00:00", ["11-22 00:30", "11-22 01:30"]),
    ("@weekly", "UTC", "2026-11-22 00:00", ["11-29 00:00"]),
    # Steps from 1970, in no zone.
    ("every 15m", BERLIN, "2026-11-22 12:07", ["11-22 12:15", "11-22 12:30"]),
    ("every 1h30m", "UTC", "2026-11-22 00:00", ["11-22 01:30", "11-22 03:00"]),
    ("every 2 days", "UTC", "2026-11-22 00:00", ["11-23 00:00", "11-25 00:00"]),
    # A list: equal instants count once.
    (
        ["0 3 * * *", "every 1h"],
        "UTC",
        "2026-11-22 01:30",
        ["11-22 02:00", "11-22 03:00", "11-22 04:00"],
    ),
]


@pytest.mark.parametrize(("schedule", "zone", "after", "expected"), TABLE, ids=str)
def test_the_written_table(schedule: object, zone: str, after: str, expected: list[str]) -> None:
    found = instants(schedule, zone, after, len(expected))

    assert found == [f"{after[:4]}-{instant}" for instant in expected]


def test_a_leap_day_is_found_across_a_century_without_one() -> None:
    assert instants("0 0 29 2 *", "UTC", "2096-03-01 00:00", 1) == ["2104-02-29 00:00"]


def test_a_midnight_that_the_clocks_skip_comes_when_they_have() -> None:
    # Havana goes from 00:00 to 01:00 on 2026-03-08 (05:00 UTC).
    assert instants("0 0 * * *", "America/Havana", "2026-03-07 12:00", 2) == [
        "2026-03-08 05:00",
        "2026-03-09 04:00",
    ]


def test_a_skipped_time_that_comes_past_midnight_keeps_its_place() -> None:
    # Pyongyang went from 23:30 on 2018-05-04 to 00:00 on 05-05 (15:00 UTC): 23:45 comes at 00:00.
    assert instants("10,45 0,23 * * *", "Asia/Pyongyang", "2018-05-04 14:00", 4) == [
        "2018-05-04 14:40",
        "2018-05-04 15:00",
        "2018-05-04 15:10",
        "2018-05-04 15:45",
    ]


def test_a_day_that_a_zone_left_out_counts_once() -> None:
    # Samoa had no 2011-12-30.
    assert instants("0 12 * * *", "Pacific/Apia", "2011-12-29 12:00", 3) == [
        "2011-12-29 22:00",
        "2011-12-30 22:00",
        "2011-12-31 22:00",
    ]


def changes(zone: ZoneInfo, year: int) -> list[datetime]:
    """The hours, in UTC, in which a zone's clocks change."""
    noons = [datetime(year, 1, 1, 12, tzinfo=UTC) + timedelta(days=n) for n in range(366)]
    hours = itertools.chain.from_iterable(
        (early + timedelta(hours=n) for n in range(24))
        for early in noons
        if _changes(zone, early, 24)
    )
    return [hour for hour in hours if _changes(zone, hour, 1)]


def _changes(zone: ZoneInfo, start: datetime, hours: int) -> bool:
    end = start + timedelta(hours=hours)
    return start.astimezone(zone).utcoffset() != end.astimezone(zone).utcoffset()


CRON_TEXTS = [
    *("30 2 * * *", "0 0 * * *", "15 0,1,2,3 * * *", "5-55/10 1-4 * * *", "59 23 * * *"),
    *("30 * * * *", "*/30 2 * * *", "*/20 0-3 * * *", "0 */2 * * *"),
    *("30 1,2 * * sun", "0 3 1-15 3,10 *"),
]
#: As often at any other time: what they do within a few hours of a change tells all.
OFTEN = ["* * * * *", "*/15 * * * *", "0-59 0-23 * * *"]


@pytest.mark.slow
def test_every_change_of_every_zone_is_as_crons_own_simulation_has_it() -> None:
    """https://github.com/cuu508/cronsim is tested against Debian's cron.

    But of a change by half an hour it leaves out times that the clock shows: `TABLE` has these.
    """
    seen = 0
    rules = set()
    for name in sorted(zoneinfo.available_timezones() - {LORD_HOWE, "Australia/LHI"}):
        zone = ZoneInfo(name)
        hours = changes(zone, 2026)
        # A zone with the changes of another one tells nothing new.
        rule = tuple((hour, hour.astimezone(zone).utcoffset()) for hour in hours)
        if not hours or rule in rules:
            continue
        rules.add(rule)
        for hour, text in itertools.product(hours, CRON_TEXTS + OFTEN):
            reach = timedelta(hours=4 if text in OFTEN else 28)
            start, until = hour - reach, hour + reach
            oracle = CronSim(text, start.astimezone(zone))
            expected = [at for at, _ in itertools.groupby(_until(until, oracle))]
            found = _until(until, _following(parse_schedule(text, name), start))
            assert found == expected, (name, hour, text)
            seen += 1
    assert seen > 200


def _until(until: datetime, instants: Iterator[datetime]) -> list[datetime]:
    in_utc = (instant.astimezone(UTC) for instant in instants)
    return list(itertools.takewhile(lambda instant: instant <= until, in_utc))


def _following(schedule: Schedule, instant: datetime) -> Iterator[datetime]:
    while (following := schedule.next_after(instant)) is not None:
        yield following
        instant = following


@pytest.mark.parametrize("text", ["* * * * *", "0-59 0-23 * * *", "30 2 * * *"])
def test_a_day_of_change_is_found_as_fast_as_another(text: str) -> None:
    schedule = parse_schedule(text, BERLIN)

    def best_s(start: datetime) -> float:
        took = []
        for minute in range(0, 24 * 60, 10):
            begun_s = clock.perf_counter()
            schedule.next_after(start + timedelta(minutes=minute))
            took.append(clock.perf_counter() - begun_s)
        return sorted(took)[len(took) // 2]

    best_s(utc("2026-10-24 22:00"))
    assert best_s(utc("2026-10-24 22:00")) < max(10 * best_s(utc("2026-10-20 22:00")), 0.001)


#: Their spring change skips midnight.
SKIP_MIDNIGHT = ["America/Havana", "Africa/Cairo", "Asia/Beirut", pytz.timezone("America/Havana")]


@pytest.mark.parametrize(
    "zone", [BERLIN, NEW_YORK, LORD_HOWE, pytz.timezone(BERLIN), *SKIP_MIDNIGHT], ids=str
)
@pytest.mark.parametrize("hour", [0, 1, 3, 12, 23])
def test_a_cron_trigger_loses_no_day_around_a_change(zone: Any, hour: int) -> None:
    """https://github.com/agronholm/apscheduler/issues/606"""
    schedule = parse_schedule(CronTrigger(hour=hour, timezone=zone))
    found = upcoming(schedule, utc("2026-01-01 12:00"), 364)

    # In New York 01:00 comes twice on one day: so APScheduler means it.
    days = sorted({each.astimezone(schedule.timezone).date() for each in found})
    assert len(days) >= 363
    assert days == [days[0] + timedelta(days=n) for n in range(len(days))]


def test_a_cron_trigger_in_a_skipped_midnight_comes_as_late_as_in_another_skipped_hour() -> None:
    havana = parse_schedule(CronTrigger(hour=0, minute=30, timezone="America/Havana"))
    start = utc("2026-03-07 12:00")
    for hours in range(17):
        assert havana.next_after(start + timedelta(hours=hours)) == utc("2026-03-08 05:30")
    assert havana.next_after(utc("2026-03-08 05:30")) == utc("2026-03-09 04:30")


def test_a_cron_trigger_is_the_same_from_wherever_it_is_asked() -> None:
    schedule = parse_schedule(CronTrigger(day="*/5", hour=0, timezone=BERLIN))
    all_found = upcoming(schedule, utc("2026-03-20 00:00"), 6)

    for hours in range(24 * 14):
        start = utc("2026-03-20 00:00") + timedelta(hours=hours)
        assert schedule.next_after(start) == next(each for each in all_found if each > start)


def test_a_calendar_interval_without_a_start_is_the_same_in_each_process() -> None:
    daily = parse_schedule(CalendarIntervalTrigger(days=1, hour=3, timezone="UTC"))
    yesterday = datetime.now(UTC) - timedelta(days=1)
    [first, second] = upcoming(daily, yesterday, 2)
    assert (first.hour, second - first) == (3, timedelta(days=1))
    assert first - yesterday <= timedelta(days=1)

    for trigger in (
        CalendarIntervalTrigger(days=2, timezone="UTC"),
        CalendarIntervalTrigger(months=1, timezone="UTC"),
    ):
        with pytest.raises(ScheduleError, match="start_date"):
            parse_schedule(trigger)
    kept = CalendarIntervalTrigger(months=1, start_date="2026-01-31", timezone="UTC")
    assert parse_schedule(kept).next_after(utc("2026-01-01 00:00")) == utc("2026-01-31 00:00")


def test_an_and_trigger_has_what_its_triggers_have_in_common_or_is_refused() -> None:
    both = AndTrigger(
        [CronTrigger(hour="*/6", timezone="UTC"), CronTrigger(day_of_week="mon", timezone="UTC")]
    )
    assert instants(both, "UTC", "2026-11-24 00:00", 2) == ["2026-11-30 00:00", "2026-12-07 00:00"]
    intervals = AndTrigger([IntervalTrigger(minutes=20), IntervalTrigger(minutes=30)])
    assert instants(intervals, "UTC", "2026-11-24 00:00", 2) == [
        "2026-11-24 01:00",
        "2026-11-24 02:00",
    ]
    never = AndTrigger(
        [IntervalTrigger(hours=1), IntervalTrigger(hours=1, start_date="2026-01-01 00:30:00")]
    )
    begun_s = clock.monotonic()
    with pytest.raises(ScheduleError, match="never comes"):
        parse_schedule(never)
    assert clock.monotonic() - begun_s < 5


class OwnTrigger:
    timezone: object = None

    def __init__(self, next_fire_time: Callable[[datetime | None, datetime], object]) -> None:
        self.get_next_fire_time = next_fire_time

    def __str__(self) -> str:
        raise ValueError("no text")


def _raises(previous: datetime | None, now: datetime) -> object:
    raise KeyError("holidays")


def _creeps(previous: datetime | None, now: datetime) -> object:
    step = timedelta(microseconds=1)
    return previous + step if previous else datetime(2000, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("next_fire_time", "said"),
    [
        (_raises, "raised KeyError: 'holidays'"),
        (_creeps, "has more than 5000 instants that are past"),
        (lambda previous, now: now - timedelta(hours=1), "does not go on after"),
        (lambda previous, now: datetime(2100, 1, 1), "gives a datetime that is no time with"),
        (lambda previous, now: "tomorrow", "gives a str that is no time with"),
        (lambda previous, now: datetime.max.replace(tzinfo=WEST), "raised OverflowError"),
    ],
)
def test_a_trigger_that_raises_goes_back_or_hangs_is_refused(
    next_fire_time: Callable[[datetime | None, datetime], object], said: str
) -> None:
    begun_s = clock.monotonic()
    with pytest.raises(ScheduleError, match=f'"OwnTrigger" {said}'):
        parse_schedule(OwnTrigger(next_fire_time)).next_after(utc("2026-03-28 00:00"))
    assert clock.monotonic() - begun_s < 5


def test_a_trigger_says_its_zone_by_name_and_its_text_need_not_be_had() -> None:
    trigger = OwnTrigger(lambda previous, now: now + timedelta(hours=1))
    trigger.timezone = "Europe/Berlin"
    schedule = parse_schedule(trigger)
    assert (schedule.text, schedule.timezone) == ("OwnTrigger", ZoneInfo("Europe/Berlin"))


@pytest.mark.parametrize("trigger", [AndTrigger([]), OrTrigger([]), CronTrigger])
def test_a_trigger_without_triggers_and_a_class_are_no_schedules(trigger: object) -> None:
    with pytest.raises(ScheduleError, match=r"has no triggers|cannot be a"):
        parse_schedule(trigger)


@pytest.mark.parametrize("text", ["9" * 5000 + " * * * *", "*/" + "9" * 5000 + " * * * *"])
def test_a_number_of_5000_digits_is_no_time(text: str) -> None:
    with pytest.raises(ScheduleError, match="too long"):
        parse_schedule(text)


@pytest.mark.parametrize("days", [36_601, 99_999_999_999_999])
def test_a_step_that_no_calendar_has_is_refused(days: int) -> None:
    with pytest.raises(ScheduleError, match="not understood"):
        parse_schedule(f"every {days}d")


@pytest.mark.parametrize(("weeks", "days"), [(0, 1), (0, 3), (2, 0), (1, 2)])
@pytest.mark.parametrize("clock_time", [(0, 0), (2, 30)])
def test_a_calendar_trigger_that_began_long_ago_is_read_from_nearby(
    weeks: int, days: int, clock_time: tuple[int, int]
) -> None:
    def trigger(start: str) -> CalendarIntervalTrigger:
        hour, minute = clock_time
        return CalendarIntervalTrigger(
            weeks=weeks, days=days, hour=hour, minute=minute, start_date=start, timezone=BERLIN
        )

    one_by_one, found = [], trigger("2026-01-01").get_next_fire_time(None, utc("2026-01-01 00:00"))
    while len(one_by_one) < 200:
        one_by_one.append(found.astimezone(UTC))
        found = trigger("2026-01-01").get_next_fire_time(found, found)
    step = timedelta(weeks=weeks, days=days)
    ages_ago = date(2026, 1, 1) - step * (700_000 // step.days)
    begun_s = clock.monotonic()
    schedule = parse_schedule(trigger(str(ages_ago)))
    assert upcoming(schedule, one_by_one[0] - timedelta(seconds=1), 200) == one_by_one
    assert clock.monotonic() - begun_s < 5


def test_a_cron_trigger_of_the_year_9999_is_read_at_once() -> None:
    begun_s = clock.monotonic()
    schedule = parse_schedule(CronTrigger(year=9999, timezone=BERLIN))
    assert schedule.next_after(utc("2026-03-28 00:00")) == utc("9998-12-31 23:00")
    assert clock.monotonic() - begun_s < 5


@settings(max_examples=60, deadline=None)
@given(
    minute=st.sampled_from(["0", "30", "*/20", "5,45", "10-14", "*"]),
    hour=st.sampled_from(["*", "*/2", "*/3"]),
    day=st.sampled_from(["*", "*/2", "1-15", "29,30,31"]),
    month=st.sampled_from(["*", "3,4", "10-11"]),
    weekday=st.sampled_from(["*", "*/2", "0", "mon-wed", "6-7"]),
    zone=st.sampled_from([BERLIN, NEW_YORK, LORD_HOWE, "America/Havana", "UTC"]),
    start=st.datetimes(min_value=datetime(2026, 2, 25), max_value=datetime(2026, 12, 1)),
)
@example("30", "*", "*", "*", "*", LORD_HOWE, datetime(2026, 4, 4, 13, 0))
def test_wall_clock_text_gives_exactly_the_minutes_that_match(
    minute: str, hour: str, day: str, month: str, weekday: str, zone: str, start: datetime
) -> None:
    after = start.replace(tzinfo=UTC, second=0, microsecond=0)
    until = after + timedelta(days=3)
    schedule = parse_schedule(f"{minute} {hour} {day} {month} {weekday}", zone)

    found = []
    instant = schedule.next_after(after)
    while instant is not None and instant <= until:
        found.append(instant)
        instant = schedule.next_after(instant)

    def values(word: str, first: int, last: int) -> set[int]:
        word = word.replace("mon-wed", "1-3")
        chosen: set[int] = set()
        for part in word.split(","):
            span, _, step = part.partition("/")
            low, _, high = (f"{first}-{last}" if span == "*" else span).partition("-")
            chosen |= set(range(int(low), int(high or low) + 1, int(step or 1)))
        return chosen

    minutes, hours = values(minute, 0, 59), values(hour, 0, 23)
    days, months = values(day, 1, 31), values(month, 1, 12)
    weekdays = {number % 7 for number in values(weekday, 0, 6)}
    expected = []
    instant = after + timedelta(minutes=1)
    while instant <= until:
        local = instant.astimezone(ZoneInfo(zone))
        in_month, in_week = local.day in days, local.isoweekday() % 7 in weekdays
        starred = day.startswith("*") or weekday.startswith("*")
        in_day = (in_month and in_week) if starred else (in_month or in_week)
        if local.minute in minutes and local.hour in hours and local.month in months and in_day:
            expected.append(instant)
        instant += timedelta(minutes=1)
    assert found == expected


@pytest.mark.parametrize("zone", [BERLIN, NEW_YORK, LORD_HOWE, "America/Havana"])
@pytest.mark.parametrize("text", ["0 0 * * *", "30 1 * * *", "15 2 * * *", "45 23 * * *"])
def test_a_fixed_time_comes_once_on_every_day_of_the_year(text: str, zone: str) -> None:
    schedule = parse_schedule(text, zone)
    first = utc("2026-01-01 12:00")

    found = upcoming(schedule, first, 365)

    days = [each.astimezone(ZoneInfo(zone)).date() for each in found]
    assert days == [days[0] + timedelta(days=n) for n in range(365)]
    assert found[-1] - found[0] == timedelta(days=364)


WRONG = {
    "": "has 0 fields",
    "* * * *": "has 4 fields",
    "0 0 3 * * *": "has 6 fields",
    "60 * * * *": "outside 0-59",
    "0 24 * * *": "outside 0-23",
    "0 0 0 * *": "outside 1-31",
    "0 0 * 13 *": "outside 1-12",
    "0 0 * * 8": "outside 0-7",
    "5/15 * * * *": "a step without a range",
    "*/0 * * * *": "a step that is not a number",
    "*/x * * * *": "a step that is not a number",
    "0 0 * * 5#2": "nth weekday",
    "0 0 L * *": "last day",
    "0 0 15W * *": "nearest weekday",
    "0 0 ? * *": "is not crontab's",
    "30-10 * * * *": "runs backwards",
    "0 0 * * fri-mon": "runs backwards",
    "0 0 30 2 *": "never comes",
    "0 0 31 4,6 *": "never comes",
    "a * * * *": "is not understood",
    "1,,2 * * * *": "is not understood",
    "-5 * * * *": "is not understood",
    "٣ * * * *": "is not understood",
    "@reboot": "is not a time",
    "@fortnightly": "is not known",
    "every": "is not understood",
    "every 0s": "is not understood",
    "every 15": "is not understood",
    "every 15 fortnights": "is no unit",
    "every -5m": "is not understood",
    "every 1.5h": "is not understood",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_text_says_what_is_wrong(text: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        parse_schedule(text)

    assert WRONG[text] in caught.value.message
    assert f'"{text}"' in caught.value.message


MEANT = {
    "0 0 3 * * *": 'write "0 3 * * *"',
    "30 0 3 * * *": 'write "0 3 * * *" (its seconds, "30", left out: "every 10s")',
    "0 0 3 ? * MON-FRI 2027": 'write "0 3 * * MON-FRI"',
    "0 0 3 ? * 2": 'write "0 3 * * 2": here 1 is Monday, in Quartz Sunday',
    "cron(0 3 * * ? *)": 'write "0 3 * * *"',
    "rate(5 minutes)": 'write "every 5 minutes"',
    "CRON_TZ=Europe/Berlin 0 3 * * *": 'write "0 3 * * *", and timezone="Europe/Berlin"',
    "TZ=Europe/Berlin 0 3 * * Friday": 'write "0 3 * * fri", and timezone="Europe/Berlin"',
    "0 3 ? * *": 'write "0 3 * * *"',
    "0 3 * * * /usr/bin/report >/dev/null": 'write "0 3 * * *": what runs is the task itself',
    "@daily /usr/bin/report": 'write "@daily": what runs is the task itself',
    "0 3 1 July,december *": 'write "0 3 1 jul,dec *"',
    "0 3 * * Wednesday": 'write "0 3 * * wed"',
    "@every 5m": 'write "every 5m"',
    "5 minutes": 'write "every 5 minutes"',
    "hourly": 'write "@hourly"',
    "every day": 'write "@daily"',
    "daily at 3:05": 'write "5 3 * * *"',
    timedelta(minutes=5): 'write "every 5m"',
    timedelta(seconds=90): 'write "every 90s"',
    time(3, 5): 'write "5 3 * * *"',
    300: 'seconds? write "every 300s"',
}


@pytest.mark.parametrize("written", MEANT, ids=str)
def test_what_other_programs_write_is_offered_as_it_is_written_here(written: object) -> None:
    with pytest.raises(ScheduleError) as caught:
        parse_schedule(written)

    assert caught.value.hint == MEANT[written]
    assert "Wednesday" not in str(written) or "sign for" not in caught.value.message


def test_celerys_crontab_is_offered_as_it_is_written_here() -> None:
    from celery.schedules import crontab

    with pytest.raises(ScheduleError) as caught:
        parse_schedule(crontab(hour=3, day_of_week="mon-fri"))

    assert caught.value.hint == 'write "* 3 * * mon-fri"'


@pytest.mark.parametrize(("schedule", "kind"), [(15, "int"), (None, "NoneType"), ({}, "dict")])
def test_what_is_no_schedule_says_what_one_is(schedule: object, kind: str) -> None:
    with pytest.raises(ScheduleError, match=f"cannot be a {kind}"):
        parse_schedule(schedule)


def test_an_empty_list_is_no_schedule() -> None:
    with pytest.raises(ScheduleError, match="empty"):
        parse_schedule([])


def test_a_backward_range_says_how_to_write_it() -> None:
    with pytest.raises(ScheduleError) as caught:
        parse_schedule("0 0 * * fri-mon")

    hint = caught.value.hint or ""
    assert hint == 'write "fri-sat,sun-mon"'
    assert instants("0 0 * * fri-sat,sun-mon", "UTC", "2026-11-22 00:00", 1) == ["2026-11-23 00:00"]


@pytest.mark.parametrize(
    ("zone", "name"),
    [
        (None, "UTC"),
        ("UTC", "UTC"),
        (pytz.utc, "UTC"),
        (UTC, "UTC"),
        (BERLIN, BERLIN),
        (ZoneInfo(BERLIN), BERLIN),
        (pytz.timezone(BERLIN), BERLIN),
        (pytz.FixedOffset(90), "UTC+01:30"),
        (timezone(timedelta(hours=2)), "UTC+02:00"),
    ],
    ids=str,
)
def test_a_time_zone_may_be_a_name_zoneinfo_or_pytz(zone: object, name: str) -> None:
    assert zone_name(parse_timezone(zone)) == name


@pytest.mark.parametrize("zone", [pytz.timezone(BERLIN), ZoneInfo(BERLIN), BERLIN], ids=repr)
def test_every_kind_of_zone_gives_the_same_instants(zone: tzinfo) -> None:
    assert instants("0 3 * * *", zone, "2026-11-22 12:00", 1) == ["2026-11-23 02:00"]


def test_a_fixed_offset_of_pytz_works() -> None:
    assert instants("0 3 * * *", pytz.FixedOffset(90), "2026-11-22 12:00", 1) == [
        "2026-11-23 01:30"
    ]


def test_a_mistyped_zone_names_the_one_that_was_meant() -> None:
    with pytest.raises(ScheduleError) as caught:
        parse_timezone("Europe/Berlim")

    assert 'no time zone "Europe/Berlim"' in caught.value.message
    assert BERLIN in (caught.value.hint or "")


def test_a_zone_is_found_where_the_system_has_no_zone_files() -> None:
    program = (
        "import zoneinfo; zoneinfo.reset_tzpath(['/nonexistent'])\n"
        "from fsa_cli.schedules.timezones import parse_timezone\n"
        "from datetime import datetime\n"
        "print(datetime(2026, 7, 1, tzinfo=parse_timezone('Europe/Berlin')).utcoffset())\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == "2:00:00\n"


def test_an_interval_trigger_counts_from_1970_in_every_process() -> None:
    assert instants(IntervalTrigger(minutes=15, timezone=UTC), None, "2026-11-22 12:07", 2) == [
        "2026-11-22 12:15",
        "2026-11-22 12:30",
    ]


def test_an_interval_trigger_with_a_start_of_its_own_keeps_it() -> None:
    trigger = IntervalTrigger(hours=24, start_date="2026-01-01 03:00:00", timezone=UTC)

    assert instants(trigger, None, "2026-11-22 12:00", 1) == ["2026-11-23 03:00"]


def test_reading_a_trigger_leaves_the_trigger_as_it_was() -> None:
    trigger = IntervalTrigger(minutes=15, timezone=UTC)
    start = trigger.start_date

    parse_schedule(trigger)

    assert trigger.start_date == start


def test_a_cron_trigger_keeps_apschedulers_meaning() -> None:
    trigger = CronTrigger(day_of_week=0, hour=4, timezone=BERLIN)

    assert instants(trigger, "UTC", "2026-11-22 12:00", 1) == ["2026-11-23 03:00"]
    assert zone_name(parse_schedule(trigger, "UTC").timezone) == BERLIN


def test_a_cron_trigger_does_not_stick_in_the_repeated_hour() -> None:
    trigger = CronTrigger(minute="*/30", timezone=BERLIN)

    found = instants(trigger, None, "2026-10-24 23:45", 5)

    assert found == [f"2026-10-25 {t}" for t in ("00:00", "00:30", "01:00", "01:30", "02:00")]


def test_a_date_trigger_comes_once() -> None:
    trigger = DateTrigger("2026-11-23 12:00:00", timezone=UTC)

    assert instants(trigger, None, "2026-11-22 12:00", 3) == ["2026-11-23 12:00"]
    assert instants(trigger, None, "2026-11-23 12:00", 3) == []


def test_a_calendar_trigger_goes_on_from_its_start() -> None:
    trigger = CalendarIntervalTrigger(days=2, hour=5, start_date="2026-11-01", timezone=UTC)

    assert instants(trigger, None, "2026-11-22 12:00", 2) == [
        "2026-11-23 05:00",
        "2026-11-25 05:00",
    ]


def test_an_or_trigger_is_any_of_its_parts() -> None:
    trigger = OrTrigger(
        [DateTrigger("2026-11-01 00:00:00", timezone=UTC), IntervalTrigger(hours=1, timezone=UTC)]
    )

    assert instants(trigger, None, "2026-11-22 12:30", 2) == [
        "2026-11-22 13:00",
        "2026-11-22 14:00",
    ]


def test_jitter_in_a_trigger_is_refused() -> None:
    with pytest.raises(ScheduleError, match="jitter"):
        parse_schedule(IntervalTrigger(hours=1, jitter=10, timezone=UTC))


def test_text_is_read_without_apscheduler() -> None:
    program = (
        "import sys\n"
        "from fsa_cli.schedules.schedule import parse_schedule\n"
        "parse_schedule('0 3 * * *', 'Europe/Berlin'); parse_schedule('every 15m')\n"
        "print([name for name in sys.modules if name.startswith('apscheduler')])\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"
