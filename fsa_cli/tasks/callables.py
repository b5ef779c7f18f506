"""What a callable is: whether it is async, and which function somebody wrote for it.

Around a function stand decorators, `functools.partial`, methods, objects with a `__call__`. The
outermost of them is what is called, so it says whether a coroutine comes back; the innermost has
the name, the file and the line that a person knows.
"""

from __future__ import annotations

import inspect
from functools import partial
from types import MethodType
from typing import Any

__all__ = ["docstring", "is_async", "wraps_async", "written_function"]

_MOST = 100  # an object that answers for every attribute wraps something for ever


def is_async(function: Any) -> bool:
    """Whether a call of it gives a coroutine, for all that can be known before."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or _has_async_call(function)


def wraps_async(function: Any) -> bool:
    """Whether it, or something inside it, is async: a call of it may give a coroutine."""
    return any(is_async(each) for each in _layers(function))


def written_function(function: Any) -> Any:
    """The function that somebody wrote: inside its decorators, partials and objects."""
    *_, innermost = _layers(function)
    return innermost


def docstring(function: Any) -> str:
    """Its own, or that of the function inside it, without its indentation; empty without one."""
    is_bare = isinstance(function, partial) and function.__doc__ == partial.__doc__
    own = None if is_bare else inspect.getdoc(function)
    return own or inspect.getdoc(written_function(function)) or ""


def _layers(function: Any) -> list[Any]:
    """It, and what it calls, from the outside in."""
    layers = [function]
    while len(layers) < _MOST and (inner := _inner(layers[-1])) is not None:
        layers.append(inner)
    return layers


def _inner(function: Any) -> Any:
    if isinstance(function, partial):
        return function.func
    if isinstance(function, MethodType):
        return function.__func__
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is not None:
        return wrapped if callable(wrapped) else None
    if inspect.isroutine(function) or inspect.isclass(function):
        return None
    call = getattr(type(function), "__call__", None)  # noqa: B004 - the function itself
    return call if inspect.isfunction(call) else None


def _has_async_call(function: Any) -> bool:
    if inspect.isfunction(function):
        return False  # what its type calls is itself
    call = getattr(type(function), "__call__", None)  # noqa: B004 - the function itself
    return inspect.iscoroutinefunction(call)
