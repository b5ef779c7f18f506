"""How a run ended, as the ledger can keep it: text of bounded length, secrets masked."""

from __future__ import annotations

import json
from typing import Any

from fsa_cli.tasks.task_context import Progress
from fsa_cli.terminal.json_values import describe, dumps, jsonable_within
from fsa_cli.terminal.masking import MAX_TEXT_LENGTH, mask_head, mask_tail
from fsa_cli.terminal.user_code import (
    error_message,
    is_from_outside,
    traceback_text,
    unwrap_error,
)

__all__ = ["RemoteError", "encode_result", "error_fields", "progress_fields"]

# `fsa_run.error_type` takes no more.
_MAX_TYPE_LENGTH = 255
_MAX_PROGRESS_LENGTH = 1000
_MOST = 2**63 - 1


class RemoteError(Exception):
    """The exception of a task in another process; its subclass has the name of the original."""

    traceback: str | None = None

    @classmethod
    def of(cls, kind: str, message: str, traceback: str | None = None) -> RemoteError:
        error: RemoteError = type(kind, (cls,), {})(message)
        error.traceback = traceback
        return error


def error_fields(error: BaseException | None) -> tuple[str | None, str | None, str | None]:
    """An error's type, its message and its traceback, with passwords masked.

    Whatever the error is, and whatever its `__str__` does: a run must end.
    """
    if error is None:
        return None, None, None
    leaf = unwrap_error(error)
    traceback = leaf.traceback if isinstance(leaf, RemoteError) else traceback_text(error)
    kind = _storable(type(leaf).__name__)[:_MAX_TYPE_LENGTH]
    return kind, _storable(error_message(leaf)), _storable(traceback) if traceback else None


def progress_fields(progress: Progress) -> tuple[int, int | None, str]:
    """What a task says of its progress, as the ledger can keep it: done, total, text."""
    total = None if progress.total is None else _whole(progress.total)
    text = progress.text if isinstance(progress.text, str) else describe(progress.text)
    return _whole(progress.done), total, _storable(mask_head(text, _MAX_PROGRESS_LENGTH))


def _whole(number: Any) -> int:
    try:
        return max(min(int(number), _MOST), -_MOST)
    except Exception:  # no number at all, or none that is finite
        return 0


def encode_result(value: object) -> str | None:
    """The result of a task as JSON; None stays None, and a long one is cut.

    A value that JSON cannot hold is described: the task has done its work, and has succeeded.
    """
    if value is None:
        return None
    text = _json(value)
    if len(text.encode()) <= MAX_TEXT_LENGTH:
        return text
    return json.dumps(text.encode()[: MAX_TEXT_LENGTH // 2].decode(errors="ignore") + " ... (cut)")


def _json(value: object) -> str:
    try:
        return dumps(jsonable_within(value))
    except BaseException as exc:  # what its methods do when it is looked at is not ours to know
        if is_from_outside(exc):
            raise
        return json.dumps(f"({type(value).__name__}, which cannot be shown)")


def _storable(text: str) -> str:
    """*text* as every database can keep it: passwords masked, no NUL, nothing but characters."""
    is_cut = len(text) > MAX_TEXT_LENGTH
    text = mask_tail(text).replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
    return "... " + text[-MAX_TEXT_LENGTH:] if is_cut else text[-MAX_TEXT_LENGTH:]
