"""How a run ended, as the ledger can keep it: text of bounded length, secrets masked."""

from __future__ import annotations

import json

from fsa_cli.terminal.json_values import jsonable
from fsa_cli.terminal.masking import mask
from fsa_cli.terminal.user_code import traceback_text, unwrap_error

__all__ = ["RemoteError", "encode_result", "error_fields"]

_LONGEST = 64 * 1024


class RemoteError(Exception):
    """The exception of a task in another process; its subclass has the name of the original."""

    traceback: str | None = None

    @classmethod
    def of(cls, kind: str, message: str, traceback: str | None = None) -> RemoteError:
        error: RemoteError = type(kind, (cls,), {})(message)
        error.traceback = traceback
        return error


def error_fields(error: BaseException | None) -> tuple[str | None, str | None, str | None]:
    """An error's type, its message and its traceback, with passwords masked."""
    if error is None:
        return None, None, None
    leaf = unwrap_error(error)
    traceback = leaf.traceback if isinstance(leaf, RemoteError) else traceback_text(error)
    return type(leaf).__name__, _storable(str(leaf)), _storable(traceback) if traceback else None


def encode_result(value: object) -> str | None:
    """The result of a task as JSON; None stays None, and a long one is cut."""
    if value is None:
        return None
    text = mask(json.dumps(jsonable(value), ensure_ascii=False))
    if len(text.encode()) <= _LONGEST:
        return text
    return json.dumps(text.encode()[: _LONGEST // 2].decode(errors="ignore") + " ... (cut)")


def _storable(text: str) -> str:
    """*text* as every database can keep it: passwords masked, no NUL, nothing but characters."""
    text = mask(text).replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _LONGEST else "... " + text[-_LONGEST:]
