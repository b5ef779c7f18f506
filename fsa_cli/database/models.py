"""The app's mapped classes and their metadata."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fsa_cli.exceptions import ConfigurationError
from fsa_cli.terminal.user_code import import_string

if TYPE_CHECKING:
    from sqlalchemy import MetaData


def mapped_classes() -> list[type[Any]]:
    """Every class that is mapped in this process, in the order of their modules and names."""
    # Private, and the only list of all registries that there is; a test holds it.
    from sqlalchemy.orm.mapper import _all_registries

    mapped = {mapper.class_ for registry in _all_registries() for mapper in registry.mappers}
    return sorted(mapped, key=lambda each: (each.__module__, each.__qualname__))


def metadata_of(named: str | None, source: str = "[tool.fsa] metadata") -> list[MetaData]:
    """The metadata of the app's tables.

    Args:
        named: `module:attr` of a MetaData or of a declarative base, or several with commas between
            them. None: whatever the mapped classes' registries hold.
        source: Where *named* is from.

    Raises:
        ConfigurationError: There are no tables, or *named* does not exist.
    """
    if named is not None:
        found = [_metadata(each.strip(), source) for each in named.split(",") if each.strip()]
    else:
        from sqlalchemy.orm.mapper import _all_registries

        found = [registry.metadata for registry in _all_registries()]
    distinct = {id(each): each for each in found if each.tables}
    if not distinct:
        raise ConfigurationError(
            f"{named} has no tables" if named else "the app has no models",
            hint='import them in the app, or name them: [tool.fsa] metadata = "app.models:Base"',
        )
    return sorted(distinct.values(), key=lambda each: min(each.tables))


def _metadata(name: str, source: str) -> MetaData:
    from sqlalchemy import MetaData

    value = import_string(name, "the metadata", attribute="metadata", source=source)
    value = getattr(value, "metadata", value)
    if not isinstance(value, MetaData):
        raise ConfigurationError(
            f"{name!r} is neither a MetaData nor a declarative base",
            details=[f"named by {source}"],
            hint="module:Base, or module:Base.metadata",
        )
    return value


def model_names(classes: list[type[Any]]) -> tuple[dict[str, type[Any] | ModuleType], list[str]]:
    """The names that a shell gives to *classes*, and notes on names that are not unique.

    A name that two classes share means the first. For both, the top-level package of each is a name
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
