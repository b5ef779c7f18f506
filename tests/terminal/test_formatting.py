"""Times as a person reads them."""

from datetime import UTC, datetime

import pytest

from fsa_cli.terminal.formatting import format_time

AT = datetime(2026, 3, 4, 23, 59, 59, tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "shown"),
    [
        (AT.replace(hour=0), "23:59:59"),
        (datetime(2026, 3, 5, tzinfo=UTC), "03-04 23:59:59"),
        (datetime(2027, 1, 1, tzinfo=UTC), "2026-03-04 23:59:59"),
        (None, "2026-03-04 23:59:59"),
    ],
)
def test_a_time_is_without_the_date_today_and_without_the_year_this_year(
    now: datetime | None, shown: str
) -> None:
    assert format_time(AT, now) == shown
