"""Cron text in words, for a person who does not read it every day."""

import pytest

from fsa_cli.schedules.words import in_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 3 * * *", "at 03:00"),
        ("@daily", "at 00:00"),
        ("30 2,14 1 * *", "at 02:30, 14:30 on day 1"),
        ("0 3 * * 1-5", "at 03:00 on Monday to Friday"),
        ("0 0 13 * fri", "at 00:00 on day 13 or on Friday"),
        ("0 0 1 1 7", "at 00:00 on day 1 or on Sunday in January"),
        ("*/5 * * * *", "every 5 minutes"),
        ("*/15 8-10 * mar *", "every 15 minutes of the hours 8 to 10 in March"),
        ("5 */2 * * *", "every 2 hours at :05"),
        ("0 9-17 * * mon-fri", "at :00 of each hour 9 to 17 on Monday to Friday"),
        ("* * * * *", "each minute"),
        ("every 5m", None),
        ("cron[hour='3']", None),
        ("0 3 * * 9", None),
    ],
)
def test_a_schedule_is_said_in_words_or_not_at_all(text: str, words: str | None) -> None:
    assert in_words(text) == words
