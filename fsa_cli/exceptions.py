"""The errors of `fsa`, each kind with its exit code.

FsaError                    1
├── TaskFailed              1    the task raised
├── Fenced                  1    a run that another process has taken over commits nothing
├── ScriptFailed            1    what `fsa shell` was given to run raised
├── OutputFailed            1    what a command shows cannot be written
├── CheckFailed             1    a check of `fsa health` failed
├── StatementFailed         1    the database refused a statement
├── MigrationFailed         1    a migration raised, or Alembic refused
├── UsageError              2    the command line is wrong
│   ├── TaskNotFound        2
│   └── ArgumentError       2    a task's argument is wrong
├── ConfigurationError      3    a setting is wrong
│   ├── AppLoadError        3    the app was not found, or failed while it was imported
│   │   └── NoApp           3    there is none
│   ├── TaskDefinitionError 3    a function cannot be a task as it is written
│   │   └── DuplicateTask   3
│   ├── ScheduleError       3    a schedule or a time zone cannot be read
│   ├── DriverMissing       3    the package that connects to the database is not installed
│   └── LedgerUnusable      3    the ledger's tables are missing, old or cannot be created
│       └── NoLedger        3    there is none yet
├── DatabaseUnreachable     4    a connection that cannot be opened
├── BrokerUnreachable       4    the broker that carries runs is away
├── SchemaBehind            5    the schema is not at Alembic's head
├── Refused                 6    a protected environment, or nobody to confirm
├── SchedulerStuck         70    the watchdog gave up: restart it
├── LockHeld               75    another process holds the lock: try later
├── TimedOut              124
├── Interrupted           130    Ctrl-C
└── Terminated            143    SIGTERM or SIGHUP, with work left
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import ClassVar


class FsaError(Exception):
    """An error that is shown to the user as a few lines, without a traceback.

    Args:
        message: What is wrong, in one line.
        hint: What to write or do, in one line.
        details: Lines between the two: where, how it was found. The whole is at most eight lines.
    """

    exit_code: ClassVar[int] = 1
    page: ClassVar[str | None] = None
    """The page of the manual that says more."""

    def __init__(
        self, message: str, *, hint: str | None = None, details: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = tuple(details)

    @property
    def kind(self) -> str:
        """The error's name in JSON: `TaskNotFound` is `task_not_found`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()


class TaskFailed(FsaError):
    """The task raised, or its commit failed."""

    page = "trouble"


class LifespanFailed(FsaError):
    """The app's lifespan, which `[tool.fsa] lifespan` has run around tasks, raised."""

    page = "tasks"


class Fenced(FsaError):
    """The run is no longer this process's: it was declared dead, or cancelled."""


class OutputFailed(FsaError):
    """What a command shows cannot be written: the disk is full, the terminal has gone."""


class ScriptFailed(FsaError):
    """The code that `fsa shell` was given raised."""


class CheckFailed(FsaError):
    """A health check failed."""

    page = "health"


class StatementFailed(FsaError):
    """The database refused a statement."""


class MigrationFailed(FsaError):
    """A migration raised, or Alembic refused."""

    page = "database"


class UsageError(FsaError):
    """The command line is wrong."""

    exit_code = 2


class TaskNotFound(UsageError):
    """No task has this name."""


class RunNotFound(UsageError):
    """No run has this id, or the transaction that asked for it is not committed yet."""


class ArgumentError(UsageError):
    """A word after a task's name is not what the task takes."""

    page = "tasks"


class ConfigurationError(FsaError):
    """A setting is wrong or missing."""

    exit_code = 3


class TaskDefinitionError(ConfigurationError, TypeError):
    """A function cannot be a task as it is written."""

    page = "tasks"


class DuplicateTask(TaskDefinitionError):
    """Two functions have one task name."""


class ScheduleError(ConfigurationError):
    """A schedule or a time zone cannot be read."""

    page = "scheduling"


class DriverMissing(ConfigurationError):
    """The package that connects to a database is not installed."""

    page = "configuring"


class LedgerUnusable(ConfigurationError):
    """The ledger's tables are missing, of another version, or cannot be created."""

    page = "scheduling"


class NoLedger(LedgerUnusable):
    """There is none yet."""

    @property
    def kind(self) -> str:
        return "ledger_unusable"


class AppLoadError(ConfigurationError):
    """The app was not found, or failed while it was imported."""

    page = "settings"


class NoApp(AppLoadError):
    """The project has no app."""

    @property
    def kind(self) -> str:
        return "app_load_error"


class DatabaseUnreachable(FsaError):
    """A connection to the database cannot be opened."""

    exit_code = 4
    page = "trouble"


class BrokerUnreachable(FsaError):
    """The broker that carries runs cannot be reached."""

    exit_code = 4
    page = "brokers"


class SchemaBehind(FsaError):
    """The schema is not at head."""

    exit_code = 5
    page = "database"


class Refused(FsaError):
    """A protected environment, or a confirmation with no terminal to ask."""

    exit_code = 6
    page = "environments"


class SchedulerStuck(FsaError):
    """The scheduler's watchdog gave up."""

    exit_code = 70
    page = "production"


class LockHeld(FsaError):
    """Another process holds the lock."""

    exit_code = 75
    page = "scheduling"


class TimedOut(FsaError):
    """It took longer than it was given."""

    exit_code = 124
    page = "trouble"


class Interrupted(FsaError):
    """Stopped by Ctrl-C."""

    exit_code = 130


class Terminated(FsaError):
    """Stopped by SIGTERM or SIGHUP, with work left."""

    exit_code = 143


def did_you_mean(word: str, known: Iterable[str], *, most: int = 3, form: str = "{}") -> str | None:
    """The hint that names what *word* is near to; None if it is near to nothing.

    Args:
        most: How many at most.
        form: How each is written, as `main:{}`.
    """
    from difflib import get_close_matches  # 4 ms, which `fsa --help` does not need

    close = [form.format(each) for each in get_close_matches(word, list(known), n=most)]
    return f"did you mean {' or '.join(close)}?" if close else None


def no_text(error: UnicodeEncodeError) -> UsageError:
    """The error of a text with half a character: an argument's bytes that are no UTF-8."""
    half = error.object[error.start : error.end]
    return UsageError(f"a text has {half!r}, which is no character: no UTF-8?")
