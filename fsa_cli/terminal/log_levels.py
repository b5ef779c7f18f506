"""Other packages' loggers, where the app's root logger would print what they tell of themselves."""

from __future__ import annotations

import logging

__all__ = ["quieten"]


def quieten(name: str) -> None:
    """Let the logger *name* pass on warnings only, unless the app has given it a level."""
    logger = logging.getLogger(name)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)
