"""What a driver's error says by its code."""

from __future__ import annotations

from typing import Any

__all__ = ["driver_code"]


def driver_code(error: Any) -> str | int | None:
    """MySQL's and MariaDB's number of a driver's error, PostgreSQL's SQLSTATE; None: neither.

    PyMySQL (1.2) has a SQLSTATE beside the number: HY000 for most of what matters here.
    """
    arguments = getattr(error, "args", ())
    if arguments and isinstance(arguments[0], int):
        return int(arguments[0])
    code = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return None if code is None else str(code)
