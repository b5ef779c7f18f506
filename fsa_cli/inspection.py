"""What the app's models are."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


def mapped_classes() -> list[type[Any]]:
    """Every class that is mapped in this process, in the order of their modules and names."""
    # Private, and the only list of all registries that there is; a test holds it.
    from sqlalchemy.orm.mapper import _all_registries

    mapped = {mapper.class_ for registry in _all_registries() for mapper in registry.mappers}
    return sorted(mapped, key=lambda each: (each.__module__, each.__qualname__))


def model_names(classes: list[type[Any]]) -> tuple[dict[str, type[Any] | ModuleType], list[str]]:
    """The names that a shell gives to *classes*, and what to say of names that are not unique.

    A name that two classes have means the first. For both, the top-level package of each is a name
    too, so that `shop.models.User` and `billing.models.User` can be written.
    """
    names: dict[str, type[Any] | ModuleType] = {}
    homonyms: dict[str, list[str]] = {}
    for each in classes:
        homonyms.setdefault(each.__name__, []).append(f"{each.__module__}.{each.__qualname__}")
        names.setdefault(each.__name__, each)
    notes: list[str] = []
    for name, paths in homonyms.items():
        if len(paths) == 1:
            continue
        notes.append(f"{name} is {paths[0]}; there is also {', '.join(paths[1:])}")
        for path in paths:
            top = path.partition(".")[0]
            names.setdefault(top, sys.modules[top])
    return names, notes


def counted(names: Mapping[str, object]) -> str:
    """`3 models: Country, User, UserCount`, for a banner."""
    models = sorted(name for name, value in names.items() if isinstance(value, type))
    if not models:
        return "no models"
    return f"{len(models)} model{'s' if len(models) > 1 else ''}: {', '.join(models)}"
