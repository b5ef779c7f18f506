"""What one can do from a page: run, retry, cancel, pause, resume; once, and recorded."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlencode

from sqlalchemy import URL, Row
from sqlalchemy.exc import IntegrityError

from fsa_cli.console.access import Access
from fsa_cli.console.dry_run import DryRunReport, dry_run, is_possible
from fsa_cli.console.pages import filter_of
from fsa_cli.console.source import Source
from fsa_cli.database.identity import database_name
from fsa_cli.exceptions import (
    ArgumentError,
    FsaError,
    LedgerUnusable,
    Refused,
    TaskNotFound,
    UsageError,
)
from fsa_cli.ledger import audit, run_search
from fsa_cli.ledger.tables import FINAL
from fsa_cli.project.environments import Environment
from fsa_cli.runs import control
from fsa_cli.runs.enqueue import arguments_of
from fsa_cli.runs.requester import requester
from fsa_cli.tasks.conversion import Verbatim, read_value
from fsa_cli.tasks.definition import TaskDefinition
from fsa_cli.tasks.registry import registry
from fsa_cli.tasks.signature import Parameter, signature_of
from fsa_cli.terminal.masking import mask

__all__ = ["MOST_AT_ONCE", "Forbidden", "perform", "prohibited", "rehearse", "url_of"]

V = TypeVar("V")

#: So many runs are retried or cancelled by one form.
MOST_AT_ONCE = 200

# Where they are rare, so many times a few thousand runs are looked through.
_LOOKS = 50
# As long as the audit's column for it.
_LONGEST_NAME = 255
_KEY = re.compile(r"[0-9a-f]{32}")
# The command of `fsa` that does the same: an environment may prohibit it.
_COMMANDS = {
    "run": "scheduler trigger",
    "retry": "runs retry",
    "cancel": "runs cancel",
    "pause": "scheduler pause",
    "resume": "scheduler resume",
}


class Forbidden(Refused):
    """The person may not do that."""


@dataclass(frozen=True)
class _Request:
    """A form, by whom, and its key: a second form of that key is the same request."""

    source: Source
    form: Mapping[str, list[str]]
    key: str
    person: str

    def text(self, name: str) -> str:
        """A field that names something.

        Raises:
            UsageError: Nothing is called so.
        """
        found = self.form.get(name, [""])[0]
        if len(found) > _LONGEST_NAME or "\0" in found:
            raise UsageError(f"there is no such {name}: {mask(found[:20])}...")
        return found


@dataclass(frozen=True)
class _Plan:
    """What is to be done: what the audit says of it, the work, and the page that shows it.

    Attributes:
        work: Done twice it is done once; it says what became of it.
        destroys: Whether a protected environment asks for the database's name.
    """

    target: str
    detail: str
    location: str
    work: Callable[[], str]
    destroys: bool = False


def perform(source: Source, form: Mapping[str, list[str]], access: Access) -> str:
    """Do what a form asks for, and record it; the address of the page that shows it.

    Raises:
        Forbidden: The person may not, or the environment prohibits it.
        UsageError: The form is not one of the console's.
        FsaError: It cannot be done, as by `fsa`.
    """
    action = form.get("action", [""])[0]
    key = form.get("key", [""])[0]
    if action not in _COMMANDS or not _KEY.fullmatch(key):
        raise UsageError("this is no form of the console")
    if not access.may(action):
        raise Forbidden(f"you may not {action}")
    if prohibited(source.environment, action):
        raise Forbidden(f"fsa {_COMMANDS[action]} is prohibited in {source.environment.name}")
    request = _Request(source, form, key, access.name or requester())
    plan = _PLANS[action](request)
    if plan.destroys:
        _confirm(request, action)
    if not audit.begin(source.ledger, key, request.person, action, plan.target, plan.detail):
        before = audit.find(source.ledger, key)
        if before is None or (before.action, before.target) != (action, plan.target):
            raise UsageError("this form was sent before, for something else")
        if before.outcome is not None:  # a double click
            return plan.location
    _audited(source, key, plan.work, str)
    return plan.location


def rehearse(source: Source, form: Mapping[str, list[str]], access: Access) -> DryRunReport:
    """Run a task whose changes are rolled back; raises as `perform`."""
    key, name = form.get("key", [""])[0], form.get("task", [""])[0]
    task = registry.get(name)
    if not _KEY.fullmatch(key) or task is None or not is_possible():
        raise UsageError("this is no form of the console")
    if not access.may("run"):
        raise Forbidden("you may not run")
    source.environment.refuse_prohibited("run-task")
    values = arguments_of(task, _values(task, form))
    person = access.name or requester()
    if not audit.begin(source.ledger, key, person, "dry-run", name, mask(values)):
        raise UsageError("this dry run was asked for before", hint="its outcome is in the audit")
    return _audited(
        source,
        key,
        lambda: dry_run(source.settings, name, values),
        lambda report: mask(str(report)),
    )


def _audited(source: Source, key: str, work: Callable[[], V], told: Callable[[V], str]) -> V:
    """The value of *work*; the audit keeps what is *told* of it, or why it was refused."""
    try:
        value = work()
    except FsaError as exc:
        audit.end(source.ledger, key, mask(f"refused: {exc.message}"))
        raise
    audit.end(source.ledger, key, told(value))
    return value


def prohibited(environment: Environment, action: str) -> bool:
    """Whether the environment prohibits the command that does the same."""
    return environment.prohibits(_COMMANDS[action])


def url_of(source: Source) -> URL | None:
    """The address of the database whose name is asked for."""
    database = source.databases.get(
        source.settings.database, next(iter(source.databases.values()), None)
    )
    return None if database is None else database.url


def _confirm(request: _Request, action: str) -> None:
    if not request.source.environment.protected:
        return
    name = database_name(url_of(request.source))
    if request.text("confirm") != name:
        raise Refused(
            f"{action}: {request.source.environment.name} is protected",
            hint=f"type the database's name: {name}",
        )


def _run(request: _Request) -> _Plan:
    source, name = request.source, request.text("task")
    task = registry.get(name)
    if task is None:
        raise TaskNotFound(f"the task {name!r} is not in this process")
    values = arguments_of(task, _values(task, request.form))
    return _Plan(
        name,
        mask(values) if values != "{}" else "",
        _address("run", id=request.key),
        lambda: _once(request.key, lambda run_id: _trigger(source, task, values, run_id, request)),
    )


def _trigger(
    source: Source, task: TaskDefinition, values: str, run_id: str, request: _Request
) -> None:
    if run_search.one(source.ledger, run_id, 1) is None:
        control.trigger(
            source.ledger,
            source.settings,
            task,
            values,
            _nobody,
            run_id=run_id,
            by=request.person,
        )


def _once(run_id: str, enqueue: Callable[[str], object]) -> str:
    try:
        enqueue(run_id)
    except LedgerUnusable as exc:
        if not isinstance(exc.__cause__, IntegrityError):  # the other click was first
            raise
    return f"enqueued {run_id}"


def _retry(request: _Request) -> _Plan:
    if "all" in request.form:
        return _of_filter(request, "retry", FINAL, _retried)
    run_id = request.text("run")

    def work() -> str:
        return _once(request.key, lambda new_id: _retried(request, run_id, new_id))

    return _Plan(run_id, "", _address("run", id=request.key), work)


def _retried(request: _Request, run_id: str, new_id: str) -> None:
    source = request.source
    if run_search.one(source.ledger, new_id, 1) is None:
        control.retry(
            source.ledger, source.settings, run_id, _nobody, run_id=new_id, by=request.person
        )


def _cancel(request: _Request) -> _Plan:
    if "all" in request.form:
        return _of_filter(request, "cancel", ("queued", "handed_off", "running"), _cancelled)
    run_id = request.text("run")

    def work() -> str:
        _cancelled(request, run_id, "")
        return "cancelled, or asked to end"

    return _Plan(run_id, "", _address("run", id=run_id), work, destroys=True)


def _cancelled(request: _Request, run_id: str, _: str) -> None:
    control.cancel(request.source.ledger, run_id)


def _of_filter(
    request: _Request,
    action: str,
    possible: tuple[str, ...],
    each: Callable[[_Request, str, str], None],
) -> _Plan:
    """The same for all runs that a filter names, at most `MOST_AT_ONCE`."""
    flat = {name: values[0] for name, values in request.form.items()}
    wanted = filter_of(flat, request.form.get("status", []), datetime.now(UTC))
    statuses = tuple(status for status in wanted.statuses if status in possible)
    if not statuses:
        raise UsageError(f"{action}: choose by status which runs", hint=", ".join(possible))
    wanted = run_search.RunFilter(
        wanted.task, statuses, wanted.since_ms, wanted.until_ms, wanted.error_type, wanted.queue
    )
    fields = {k: v for k, v in flat.items() if k in ("task", "since", "until", "error", "queue")}
    shown = {name: value for name, value in {**fields, "status": list(statuses)}.items() if value}

    def work() -> str:
        rows = _latest(request.source, wanted)
        done, refused = 0, []
        for row in rows:
            # The same for the same form: what is sent twice is done once.
            new_id = uuid.uuid5(uuid.UUID(request.key), row.id).hex
            try:
                _once(new_id, lambda run_id, it=row: each(request, it.id, run_id))  # type: ignore[misc]
                done += 1
            except FsaError as exc:  # it has ended meanwhile, or its task is gone
                refused.append(f"{row.id[:8]}: {exc.message}")
        said = f"{done} of {len(rows)} runs"
        return mask(f"{said}; {'; '.join(refused[:5])}" if refused else said)

    return _Plan(f"runs {json.dumps(shown)}"[:200], "", _address("audit"), work, destroys=True)


def _latest(source: Source, wanted: run_search.RunFilter) -> list[Row[Any]]:
    rows, end = run_search.search(source.ledger, wanted, None, MOST_AT_ONCE)
    for _ in range(_LOOKS):
        if end is None or len(rows) >= MOST_AT_ONCE:
            break
        more, end = run_search.search(source.ledger, wanted, end, MOST_AT_ONCE - len(rows))
        rows += more
    return rows


def _pause(request: _Request) -> _Plan:
    name = request.text("task")

    def work() -> str:
        changed = control.pause(request.source.ledger, [name], request.person)
        return "paused" if changed else "it was paused already"

    return _Plan(name, "", _address("task", name=name), work)


def _resume(request: _Request) -> _Plan:
    name = request.text("task")

    def work() -> str:
        changed = control.resume(request.source.ledger, [name])
        return "resumed" if changed else "it was not paused"

    return _Plan(name, "", _address("task", name=name), work)


_PLANS: Mapping[str, Callable[[_Request], _Plan]] = {
    "run": _run,
    "retry": _retry,
    "cancel": _cancel,
    "pause": _pause,
    "resume": _resume,
}


def _values(task: TaskDefinition, form: Mapping[str, list[str]]) -> dict[str, Any]:
    """The values of a task's parameters, read as those of a command line; no file is read."""
    values: dict[str, Any] = {}
    for parameter in signature_of(task.function).parameters:
        given = _given(parameter, form.get(f"arg.{parameter.name}", []))
        if not given:
            if parameter.required:
                raise ArgumentError(f"missing {parameter.label} ({parameter.expected})")
            continue
        values[parameter.name] = (
            given[0] == "yes"
            if parameter.kind == "flag"
            else read_value(parameter, given, Verbatim())
        )
    return values


def _given(parameter: Parameter, texts: list[str]) -> list[str]:
    if parameter.many and not parameter.choices:
        return [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    return [text.replace("\r\n", "\n") for text in texts if text]


def _nobody(warning: str) -> None:
    """The pages say themselves that nobody is there to run it."""


def _address(page: str, **query: str) -> str:
    return f"{page}?{urlencode(query)}" if query else page
