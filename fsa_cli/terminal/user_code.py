"""Import what the user names; the user's own frame of a traceback; errors in one line."""

from __future__ import annotations

import linecache
import os
import re
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsa_cli.exceptions import ConfigurationError, FsaError
from fsa_cli.terminal.masking import mask_head

_MAX_SUMMARY_LENGTH = 4000
_MAX_SUMMARY_SOURCE = 64 * 1024
_MAX_FIELDS = 5
_FLUSHED_FOR = re.compile(r"\A\(raised as a result of [^\n]*\)\s+")
_OURS = str(Path(__file__).parents[1])
_LIBRARY = str(Path(_OURS).parent / "fastapi_sqlalchemy")
_INSTALLED = tuple(
    {*(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))}
)
# Not by the instance: a class may have an attribute of that name that raises, or never ends.
_TRACEBACK: Any = vars(BaseException)["__traceback__"]
_EXCEPTIONS: Any = vars(BaseExceptionGroup)["exceptions"]
_CAUSE: Any = vars(BaseException)["__cause__"]
_CONTEXT: Any = vars(BaseException)["__context__"]
_PYTHONS = (object, BaseException, BaseExceptionGroup)
_OWN_CHAIN = {"__cause__", "__context__", "exceptions", "__getattribute__"}


@dataclass(frozen=True)
class UserFrame:
    """A line of the user's code."""

    file: str
    line: int
    function: str
    source: str

    def lines(self) -> list[str]:
        """For a person: the file relative to the current directory, the line, and its source."""
        inside = f", in {self.function}" if self.function not in ("", "<module>") else ""
        head = f"{relative_path(self.file)}, line {self.line}{inside}"
        return [head, f"  {self.source}"] if self.source else [head]


def user_frame(error: BaseException) -> UserFrame | None:
    """The innermost line of *error*'s traceback that is the user's own.

    A SyntaxError is about the line that it names, though nothing ran there. None if all of it is
    in installed packages.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        source = error.text or linecache.getline(error.filename, error.lineno)
        return UserFrame(error.filename, error.lineno, "", source.strip())
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_user_file(frame.filename):
            return UserFrame(frame.filename, frame.lineno or 0, frame.name, frame.line or "")
    return None


def describe_error(error: BaseException) -> list[str]:
    """The user's own line of *error*, if there is one, and the error: the details of a message."""
    where = user_frame(error)
    return [*(where.lines() if where else []), summarize_error(error)]


def import_string(
    text: str,
    what: str,
    *,
    attribute: str = "",
    kind: type[FsaError] = ConfigurationError,
    source: str | None = None,
) -> Any:
    """The object that `module:attr` or `module:a.b` names.

    Args:
        what: Its name in an error, as `the metadata`.
        attribute: Taken where *text* names a module alone.
        kind: The error to raise.
        source: The place that names it, for the error.

    Raises:
        FsaError: Of *kind*, with the user's own line: it does not exist, or raised.
    """
    from pkgutil import resolve_name

    module, _, name = text.partition(":")
    try:
        return resolve_name(f"{module}:{name or attribute}")
    except (Exception, SystemExit) as exc:
        raise kind(
            f"{what} {text!r} cannot be imported",
            details=[*describe_error(exc), *([f"named by {source}"] if source else [])],
        ) from exc


def is_user_file(file: str) -> bool:
    """Whether *file* is the user's: neither Python's, nor installed, nor of this project."""
    if file.startswith(("<fsa", "<stdin>", "<ipython")):  # code that a person gave to `fsa shell`
        return True
    if file.startswith("<") or "site-packages" in file or "dist-packages" in file:
        return False
    return not file.startswith(tuple(p + os.sep for p in (*_INSTALLED, _OURS, _LIBRARY)))


def is_from_outside(error: BaseException) -> bool:
    """Whether a person has stopped what this thread does: only the main one hears of signals."""
    if not issubclass(type(error), KeyboardInterrupt):
        return False
    return threading.current_thread() is threading.main_thread()


def error_message(error: BaseException) -> str:
    """`str(error)`, also where the exception cannot say it, without SQLAlchemy's first line of what
    it was flushing for: the error is the next one.

    The `__str__` of an exception is the user's code, or that of a library: it may raise, and it may
    give a str with methods of its own.
    """
    try:
        return _FLUSHED_FOR.sub("", str.__str__(str(error)), count=1)
    except BaseException as exc:
        if is_from_outside(exc):
            raise
        return f"(its message cannot be shown: __str__ raised {type(exc).__name__})"


def summarize_error(error: BaseException) -> str:
    """The exception's type and the first line of its message.

    The first line of Pydantic's says only how many fields are wrong: here it says which, and why.
    """
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    text = _invalid_fields(error) or error_message(error)
    first, *_ = text[:_MAX_SUMMARY_SOURCE].strip().splitlines() or [""]
    if len(first) > _MAX_SUMMARY_LENGTH:
        first = mask_head(first, _MAX_SUMMARY_LENGTH) + " ... (cut)"
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _invalid_fields(error: BaseException) -> str | None:
    """`Settings cannot be made: port (Field required), ...`, without what was given: secrets."""
    if "pydantic" not in sys.modules:  # nothing is imported for this alone
        return None
    from pydantic import ValidationError

    if type(error) is not ValidationError:
        return None
    wrong = error.errors(include_url=False, include_context=False, include_input=False)
    said = [_invalid_field(each["loc"], each["msg"]) for each in wrong[:_MAX_FIELDS]]
    more = [f"and {len(wrong) - _MAX_FIELDS} more"] if len(wrong) > _MAX_FIELDS else []
    return f"{error.title} cannot be made: {', '.join([*said, *more])}"


def _invalid_field(path: tuple[int | str, ...], message: str) -> str:
    first, *_ = message.splitlines() or [""]
    # As `password: Field` it would be masked.
    return f"{'.'.join(map(str, path))} ({first})" if path else first


def relative_path(file: str) -> str:
    """*file* relative to the current directory, if it is below that."""
    if file.startswith("<"):
        return file
    relative = os.path.relpath(file)
    return file if relative.startswith(os.pardir) else relative


def traceback_text(error: BaseException) -> str:
    """The whole traceback, without the values of local variables.

    Of an error that gives its causes, or the members of its group, in a way of its own, its own
    alone: they may be ever new ones, or itself, and Python would follow them for ever.
    """
    try:
        if not _gives_its_own_chain(error):
            return "".join(traceback.format_exception(error)).rstrip("\n")
    except BaseException as exc:  # its attributes raise when they are looked at
        if is_from_outside(exc):
            raise
    return "".join(traceback.format_tb(_TRACEBACK.__get__(error))) + summarize_error(error)


def _gives_its_own_chain(error: BaseException) -> bool:
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        bases = type.mro(type(each))
        if any(_OWN_CHAIN & vars(base).keys() for base in bases if base not in _PYTHONS):
            return True
        known = _CAUSE.__get__(each), _CONTEXT.__get__(each)
        waiting += [one for one in known if one is not None]
        if issubclass(type(each), BaseExceptionGroup):
            waiting += _EXCEPTIONS.__get__(each)
    return False


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and one after the other those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = _CAUSE.__get__(error) or _CONTEXT.__get__(error)


def unwrap_error(error: BaseException) -> BaseException:
    """The error inside a group of one, as a TaskGroup raises it."""
    while issubclass(type(error), BaseExceptionGroup):
        inside = _EXCEPTIONS.__get__(error)
        if len(inside) != 1:
            break
        error = inside[0]
    return error
