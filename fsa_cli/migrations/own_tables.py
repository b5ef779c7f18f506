"""Tables in the app's database that no migration of the app may touch."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["include_name", "is_own"]

#: Of fsa itself, and of Procrastinate, whose tables `fsa scheduler init` makes.
_PREFIXES = ("fsa_", "procrastinate_")


def is_own(name: str | None) -> bool:
    """Whether it is a table of the ledger, or of the broker that `fsa` has set up."""
    return (name or "").startswith(_PREFIXES)


def include_name(
    name: str | None, type_: str, parent_names: Mapping[str, str | None] | None = None
) -> bool:
    """For `context.configure(include_name=...)` of an env.py: `alembic revision --autogenerate` and
    `alembic check` leave the tables alone that `fsa` keeps in the app's database.

    https://alembic.sqlalchemy.org/en/latest/autogenerate.html#omitting-table-names-from-the-autogenerate-process
    """
    return type_ != "table" or not is_own(name)
