"""Standard streams that can be printed to when nobody reads them any more.

A process that hosts tasks outlives what reads it: a terminal that is closed, a logger that died, a
disk that its log has filled. `print` would raise in every task from then on.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["outlast_readers"]

# The reader has gone for good.
_GONE = {errno.EPIPE, errno.EIO}


def outlast_readers() -> None:
    """Have stdout and stderr drop what cannot be written; before the app is imported, which may
    keep them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        is_buffered = isinstance(stream.buffer, io.BufferedWriter)
        raw = stream.buffer.raw if is_buffered else stream.buffer
        if not isinstance(raw, io.FileIO) or isinstance(raw, _Lasting):
            continue
        lasting = _Lasting(raw.fileno(), "w", closefd=False)
        with contextlib.suppress(OSError):
            stream.flush()
        kept = io.TextIOWrapper(
            io.BufferedWriter(lasting) if is_buffered else lasting,
            encoding=stream.encoding,
            errors=stream.errors,
            newline="\n",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, kept)


class _Lasting(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as exc:
            if exc.errno in _GONE:  # for child processes, and what else prints there
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self.fileno())
                os.close(nothing)
            return memoryview(data).nbytes
