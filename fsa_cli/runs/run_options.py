"""What is said of a run that is asked for, and not of its task: `using(run_after=..., ...)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from fsa_cli.exceptions import UsageError, did_you_mean
from fsa_cli.ledger.records import HIGHEST_PRIORITY, LOWEST_PRIORITY
from fsa_cli.ledger.tables import KEY_LENGTH

__all__ = ["RunOptions", "check_priority", "check_unique"]

_MOST_QUEUE = 50


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run is asked for.

    Attributes:
        session: The run is part of its transaction.
        run_after: When it may start: an instant, or how long from now by the database's clock.
        priority: None is the task's.
        queue: The broker's queue; None is the task's.
        unique: A key: while a run of the task with this key waits or runs, that one is meant. Or a
            function that returns it, given the arguments by name.
        unique_for: For how long after its end a run keeps the key.
    """

    session: object = None
    run_after: datetime | timedelta | None = None
    priority: int | None = None
    queue: str | None = None
    unique: str | Callable[[Mapping[str, Any]], str] | None = None
    unique_for: timedelta | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> RunOptions:
        """The options *given*, checked.

        Raises:
            UsageError: There is no such option, or one has a value that it cannot have.
        """
        known = list(cls.__dataclass_fields__)
        if unknown := given.keys() - set(known):
            raise UsageError(
                f"using() has no option {min(unknown)!r}",
                hint=did_you_mean(min(unknown), known, most=1) or f"it has {', '.join(known)}",
            )
        options = cls(**given)
        options._check()
        return options

    @property
    def at_ms(self) -> int | None:
        """The instant at which it may start; None: `wait_ms` from now."""
        after = self.run_after
        return round(after.timestamp() * 1000) if isinstance(after, datetime) else None

    @property
    def wait_ms(self) -> int:
        after = self.run_after
        return max(_ms(after), 0) if isinstance(after, timedelta) else 0

    @property
    def kept_ms(self) -> int | None:
        return None if self.unique_for is None else _ms(self.unique_for)

    def _check(self) -> None:
        after = self.run_after
        if isinstance(after, datetime):
            if after.tzinfo is None:
                raise _wrong("run_after", after, "an instant with its zone: datetime.now(UTC)")
        elif after is not None and not isinstance(after, timedelta):
            raise _wrong("run_after", after, "a datetime with a zone, or a timedelta")
        if self.priority is not None:
            check_priority(self.priority, "priority")
        queue = self.queue
        if queue is not None and not _is_line(queue, _MOST_QUEUE):
            raise _wrong("queue", queue, f"a name of at most {_MOST_QUEUE} characters")
        key = self.unique
        if key is not None and not callable(key):
            check_unique(key)
        if self.unique_for is not None:
            if key is None:
                raise UsageError("unique_for is for how long a key is kept", hint="unique=...")
            if not isinstance(self.unique_for, timedelta) or self.unique_for < timedelta():
                raise _wrong("unique_for", self.unique_for, "a timedelta, 0 or more")


def _is_line(text: object, most: int) -> bool:
    return isinstance(text, str) and 0 < len(text) <= most and text.isprintable()


def check_unique(key: object) -> str:
    """*key*; raises UsageError if it is none."""
    # MySQL compares text without the spaces at its end: another run would be meant.
    if isinstance(key, str) and _is_line(key, KEY_LENGTH) and not key.endswith(" "):
        return key
    expected = f"a text of 1 to {KEY_LENGTH} characters in one line, no space at its end"
    raise _wrong("unique", key, expected)


def check_priority(value: object, name: str) -> None:
    """Raises UsageError if *value* is no priority."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not LOWEST_PRIORITY <= value <= HIGHEST_PRIORITY:  # type: ignore[operator]
        expected = f"a whole number from {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}"
        raise _wrong(name, value, expected)


def _wrong(name: str, value: object, expected: str) -> UsageError:
    return UsageError(f"{name}={value!r}: expected {expected}")


def _ms(span: timedelta) -> int:
    return round(span.total_seconds() * 1000)
